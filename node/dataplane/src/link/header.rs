//! The IP headers of ESP packets that a packet socket carries: the kernel neither makes nor checks them.

use evergate_esp::protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Lengths of the headers.
pub(crate) const V4: usize = 20;
/// See there.
pub(crate) const V6: usize = 40;
/// As many hops as Linux gives unless told otherwise (RFC 1700).
const TTL: u8 = 64;
/// Flags and offset of IPv4: "don't fragment".
const DF: u8 = 0x40;

/// An IP header for ESP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; V6],
    len: usize,
}

/// What the header of a received packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) traffic_class: u8,
    /// Where ESP is in the packet: what is behind that is padding of the link.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Header {
    /// The header in front of so many bytes of ESP. `None` if a packet cannot be that long, or the addresses are of different families.
    pub(crate) fn new(from: IpAddr, to: IpAddr, traffic_class: u8, len: usize) -> Option<Self> {
        let mut bytes = [0; V6];
        let header_len = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let total = u16::try_from(V4 + len).ok()?;
                bytes[0] = 0x45;
                bytes[1] = traffic_class;
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
                // An identification means nothing where DF is set (RFC 6864 §4.1).
                bytes[6] = DF;
                bytes[8] = TTL;
                bytes[9] = protocol::ESP;
                bytes[12..16].copy_from_slice(&from.octets());
                bytes[16..20].copy_from_slice(&to.octets());
                let check = !sum(&bytes[..V4]);
                bytes[10..12].copy_from_slice(&check.to_be_bytes());
                V4
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let payload = u16::try_from(len).ok()?;
                bytes[0] = 0x60 | traffic_class >> 4;
                bytes[1] = traffic_class << 4;
                bytes[4..6].copy_from_slice(&payload.to_be_bytes());
                bytes[6] = protocol::ESP;
                bytes[7] = TTL;
                bytes[8..24].copy_from_slice(&from.octets());
                bytes[24..40].copy_from_slice(&to.octets());
                V6
            }
            _ => return None,
        };
        Some(Self {
            bytes,
            len: header_len,
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Reads the header of a packet without options or extension headers that is no fragment and holds ESP. `None` if it is not such a one, is shorter than it says,
/// its checksum is wrong (RFC 1122 §3.2.1.2), or no host can have sent it (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2, §2.7).
pub(crate) fn parse(packet: &[u8]) -> Option<Parsed> {
    let (source, destination, traffic_class, start, end) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<V4>()?;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
            if header[0] != 0x45
                || fragment != 0
                || header[9] != protocol::ESP
                || sum(header) != 0xffff
            {
                return None;
            }
            let address = |at: usize| {
                let octets = [header[at], header[at + 1], header[at + 2], header[at + 3]];
                IpAddr::V4(Ipv4Addr::from(octets))
            };
            let total = u16::from_be_bytes([header[2], header[3]]);
            (address(12), address(16), header[1], V4, usize::from(total))
        }
        6 => {
            let header = packet.first_chunk::<V6>()?;
            if header[6] != protocol::ESP {
                return None;
            }
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            let class = header[0] << 4 | header[1] >> 4;
            let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
            (address(8), address(24), class, V6, V6 + payload)
        }
        _ => return None,
    };
    (start <= end && end <= packet.len() && is_host(source)).then_some(Parsed {
        source,
        destination,
        traffic_class,
        start,
        end,
    })
}

/// Whether it can be the address of another host.
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(broadcast || address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

/// The one's complement sum of the 16-bit words of a header (RFC 1071): all ones if its checksum is right.
fn sum(header: &[u8]) -> u16 {
    let (words, _) = header.as_chunks::<2>();
    let sum: u32 = words
        .iter()
        .map(|w| u32::from(u16::from_be_bytes(*w)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let header = Header::new(
            from.parse().unwrap(),
            to.parse().unwrap(),
            0xb8,
            payload.len(),
        );
        [header.unwrap().bytes(), payload].concat()
    }

    #[test]
    fn what_is_made_is_read() {
        for (from, to) in [
            ("192.0.2.1", "198.51.100.7"),
            ("2001:db8::1", "2001:db8:1::2"),
        ] {
            let mut packet = packet(from, to, b"payload");
            let len = packet.len();
            // Ethernet fills short frames up.
            packet.extend([0; 20]);
            let parsed = parse(&packet).unwrap();
            assert_eq!(
                (parsed.source, parsed.destination),
                (from.parse().unwrap(), to.parse().unwrap())
            );
            assert_eq!(parsed.traffic_class, 0xb8);
            assert_eq!(
                (&packet[parsed.start..parsed.end], parsed.end),
                (&b"payload"[..], len)
            );
            for short in 0..len {
                assert_eq!(parse(&packet[..short]), None, "{short}");
            }
        }
        let mixed = Header::new(
            "192.0.2.1".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
            0,
            8,
        );
        assert!(mixed.is_none());
        let long = Header::new(
            "192.0.2.1".parse().unwrap(),
            "192.0.2.2".parse().unwrap(),
            0,
            65_516,
        );
        assert!(long.is_none());
    }

    #[test]
    fn what_the_kernel_would_refuse_or_put_together_is_left_to_it() {
        let good = packet("192.0.2.1", "198.51.100.7", b"payload");
        let with = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            packet[10..12].fill(0);
            let check = !sum(&packet[..V4]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
            packet
        };
        assert!(parse(&with(8, 1)).is_some());
        for (at, value) in [(0, 0x46), (6, 0x20), (7, 1), (9, 17), (3, 19), (3, 28)] {
            assert_eq!(parse(&with(at, value)), None, "{at} {value}");
        }
        let mut wrong = good.clone();
        wrong[10] ^= 1;
        assert_eq!(parse(&wrong), None);
        let mut other = packet("2001:db8::1", "2001:db8::2", b"payload");
        other[6] = 44;
        assert_eq!(parse(&other), None);
    }

    #[test]
    fn what_no_host_sends_is_nothing() {
        for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(parse(&packet(source, "192.0.2.1", b"x")), None, "{source}");
        }
        for source in ["::", "::1", "ff02::1"] {
            assert_eq!(
                parse(&packet(source, "2001:db8::1", b"x")),
                None,
                "{source}"
            );
        }
    }
}
