//! Telling the neighbours that an address has moved: gratuitous ARP (RFC 5227 §2.3, RFC 5944 §4.6) and unsolicited neighbour
//! advertisements (RFC 4861 §7.2.6).
//!
//! These are sent by packet sockets, which no `output` hook sees: only the `egress` hook of the [`DeadMan`](crate::DeadMan) holds them back.

use super::Taken;
use crate::{PlaneError, netlink::refused, sys};
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    time::Duration,
};

/// When to announce an address, counted from when it was taken: at once, and again for those that missed it, spaced more and more.
pub const ANNOUNCEMENTS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
    Duration::from_millis(5000),
];

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet address of ff02::1 (RFC 2464 §7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A packet socket of the network namespace in which it was made.
pub struct Announcer {
    socket: Socket,
}

impl Announcer {
    /// Opens the socket. It receives nothing.
    ///
    /// # Errors
    /// If the process lacks the right to (`CAP_NET_RAW`).
    pub fn open() -> Result<Self, PlaneError> {
        let open = || {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| refused("open packet socket", e))?;
        Ok(Self { socket })
    }

    /// Announces an address once. On an interface without Ethernet addresses there is nothing to announce.
    ///
    /// # Errors
    /// If the interface is gone or down, or the [`DeadMan`](crate::DeadMan) holds the announcement back.
    pub fn announce(&self, taken: &Taken) -> Result<(), PlaneError> {
        let sent = self.send(taken);
        sent.map_err(|e| refused(&format!("announce {}", taken.address.addr()), e))
    }

    fn send(&self, taken: &Taken) -> io::Result<()> {
        let name = nix::net::if_::if_indextoname(taken.device)?;
        let name = name.to_string_lossy();
        let Some(mac) = mac_of(&name)? else {
            return Ok(());
        };
        match taken.address.addr() {
            IpAddr::V4(address) => {
                // Some update their caches by requests only, some by replies only.
                for operation in [Operation::Request, Operation::Reply] {
                    let packet = gratuitous_arp(operation, address, mac);
                    self.put(&packet, ETHERTYPE_ARP, taken.device, BROADCAST)?;
                }
                Ok(())
            }
            IpAddr::V6(address) => {
                let packet = advertisement(address, mac, forwards(&name));
                self.put(&packet, ETHERTYPE_IPV6, taken.device, ALL_NODES_MAC)
            }
        }
    }

    fn put(&self, packet: &[u8], ethertype: u16, device: u32, to: [u8; 6]) -> io::Result<()> {
        let to = sys::link_address(ethertype, device, to)?;
        self.socket.send_to(packet, &to).map(|_| ())
    }
}

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Announcer")
            .field(&self.socket.as_raw_fd())
            .finish()
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Request = 1,
    Reply = 2,
}

/// Sender and target are the address itself (RFC 826 for the layout).
fn gratuitous_arp(operation: Operation, address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let target_mac = match operation {
        Operation::Request => [0; 6],
        Operation::Reply => BROADCAST,
    };
    // Ethernet, IPv4, lengths 6 and 4.
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation as u8];
    packet.extend(mac);
    packet.extend(address.octets());
    packet.extend(target_mac);
    packet.extend(address.octets());
    packet
}

/// Unsolicited, with the override flag, to all nodes (RFC 4861 §4.4).
fn advertisement(address: Ipv6Addr, mac: [u8; 6], router: bool) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    const ROUTER: u8 = 0x80;
    let flags = OVERRIDE | if router { ROUTER } else { 0 };
    let mut icmp = vec![136, 0, 0, 0, flags, 0, 0, 0];
    icmp.extend(address.octets());
    // Target link-layer address, one unit of eight bytes.
    icmp.extend([2, 1]);
    icmp.extend(mac);
    let sum = checksum(address, ALL_NODES, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let len = u8::try_from(icmp.len()).unwrap_or(u8::MAX);
    // Version 6, ICMPv6, hop limit 255.
    let mut packet = vec![0x60, 0, 0, 0, 0, len, 58, 255];
    packet.extend(address.octets());
    packet.extend(ALL_NODES.octets());
    packet.extend(icmp);
    packet
}

/// The checksum with the pseudo-header (RFC 8200 §8.1) of a message of an even number of bytes.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, icmp: &[u8]) -> u16 {
    let length = u32::try_from(icmp.len()).unwrap_or(u32::MAX);
    let words = |bytes: &[u8]| -> u32 {
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])))
            .sum()
    };
    let mut sum = words(&from.octets()) + words(&to.octets()) + length + 58 + words(icmp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// The Ethernet address of an interface, if it has one.
fn mac_of(name: &str) -> io::Result<Option<[u8; 6]>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let mut macs = interfaces
        .filter(|i| i.interface_name == name)
        .filter_map(|i| i.address?.as_link_addr()?.addr());
    Ok(macs.find(|mac| *mac != [0; 6]))
}

/// Whether the kernel says in its own advertisements that this is a router.
fn forwards(name: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/forwarding");
    std::fs::read_to_string(path).is_ok_and(|v| v.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_arp_say_who_has_the_address() {
        let address = Ipv4Addr::new(192, 0, 2, 9);
        let mac = [2, 0, 0, 0, 0, 7];
        let request = gratuitous_arp(Operation::Request, address, mac);
        let expected = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9,
        ];
        assert_eq!(request, expected);
        let reply = gratuitous_arp(Operation::Reply, address, mac);
        assert_eq!(reply[7], 2);
        assert_eq!(reply[18..24], BROADCAST);
    }

    #[test]
    fn an_advertisement_sums_up() {
        let address: Ipv6Addr = "2001:db8::9".parse().unwrap();
        let packet = advertisement(address, [2, 0, 0, 0, 0, 7], true);
        assert_eq!(packet.len(), 40 + 32);
        assert_eq!(packet[5], 32);
        assert_eq!(packet[44], 0xa0);
        assert_eq!(checksum(address, ALL_NODES, &packet[40..]), 0);
        assert_eq!(advertisement(address, [2; 6], false)[44], 0x20);
    }
}
