//! "Too big" messages for inner packets that do not fit (RFC 1191 §4, RFC 4443 §3.2), and which packets ICMP errors are about (RFC 4301 §6.2).

use crate::{
    checksum::checksum,
    packet::{self, Fragment, Inner, PacketSelectors},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// No IPv4 link has less (RFC 791 §3.2).
const MIN_MTU_V4: usize = 68;
/// No IPv6 link has less (RFC 8200 §5).
const MIN_MTU_V6: usize = 1280;
/// An IPv4 error is no longer than this (RFC 1812 §4.3.2.3).
const MAX_LEN_V4: usize = 576;
/// An IPv6 error is no longer than this (RFC 4443 §2.4 (c)).
const MAX_LEN_V6: usize = MIN_MTU_V6;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOP_LIMIT: u8 = 64;
const ICMP_HEADER_LEN: usize = 8;
const IPV6_HEADER_LEN: u16 = 40;
/// Internetwork control, which RFC 1812 §4.3.2.5 asks for.
const PRECEDENCE: u8 = 0xc0;

/// The message for the sender of `packet`, which is larger than `mtu` bytes: a whole IP packet from `source`.
///
/// `None` where none may be sent: about ICMP errors, packets to or from groups, fragments but the first
/// (RFC 1122 §3.2.2, RFC 4443 §2.4), about IPv4 packets that may be fragmented, about IPv6 packets of at most 1280
/// bytes (the outer packet must be fragmented for them), about what fits, and if `source` is of another family.
pub fn too_big(packet: &[u8], mtu: usize, source: IpAddr) -> Option<Vec<u8>> {
    let inner = packet::parse(packet).ok()?;
    if inner.fragment == Fragment::Later || !inner.dont_fragment || is_icmp_error(&inner) {
        return None;
    }
    let packet = &packet[..inner.total_len];
    match (source, inner.selectors.source, inner.selectors.destination) {
        (IpAddr::V4(source), IpAddr::V4(sender), IpAddr::V4(receiver)) => {
            let mtu = mtu.max(MIN_MTU_V4);
            let allowed = is_host_v4(source) && is_host_v4(sender) && is_host_v4(receiver);
            (allowed && packet.len() > mtu).then(|| message_v4(packet, mtu, source, sender))
        }
        (IpAddr::V6(source), IpAddr::V6(sender), IpAddr::V6(receiver)) => {
            let mtu = mtu.max(MIN_MTU_V6);
            let allowed = is_host_v6(source) && is_host_v6(sender) && is_host_v6(receiver);
            (allowed && packet.len() > mtu).then(|| message_v6(packet, mtu, source, sender))
        }
        _ => None,
    }
}

/// What a packet would be that answers the one that an ICMP error is about: by the Child SA for that it may go, and by that it may have come, if policy has
/// nothing for the message itself (RFC 4301 §6.2).
///
/// `None` if the packet is no ICMP error, is a fragment, does not go to the sender of the packet that it is about, or quotes too little of that.
pub fn answers(packet: &[u8], inner: &Inner) -> Option<PacketSelectors> {
    let (type_and_code, _) = inner.selectors.ports?;
    let is_error = match inner.selectors.protocol {
        // Unreachable, source quench, time exceeded, parameter problem.
        ICMP => matches!(type_and_code >> 8, 3 | 4 | 11 | 12),
        ICMPV6 => type_and_code >> 8 < 128,
        _ => false,
    };
    if !is_error || inner.fragment != Fragment::No {
        return None;
    }
    let quoted = packet.get(inner.upper_offset + ICMP_HEADER_LEN..inner.total_len)?;
    let mut whole = quoted.to_vec();
    // The quotation may end early, while its header says how long the packet was.
    let len = saturate(quoted.len());
    match quoted.first()? >> 4 {
        4 => whole.get_mut(2..4)?.copy_from_slice(&len.to_be_bytes()),
        6 => {
            let payload = len.checked_sub(IPV6_HEADER_LEN)?.to_be_bytes();
            whole.get_mut(4..6)?.copy_from_slice(&payload);
        }
        _ => return None,
    }
    let about = packet::parse(&whole).ok()?.selectors;
    (about.source == inner.selectors.destination).then_some(PacketSelectors {
        source: about.destination,
        destination: about.source,
        protocol: about.protocol,
        ports: about.ports.map(|(from, to)| (to, from)),
    })
}

/// Whether the packet is an ICMP error or redirect, or an ICMP message of which we cannot tell.
fn is_icmp_error(inner: &Inner) -> bool {
    let kind = inner
        .selectors
        .ports
        .map(|(type_and_code, _)| type_and_code >> 8);
    match (inner.selectors.protocol, kind) {
        (ICMP | ICMPV6, None) => true,
        (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ICMPV6, Some(kind)) => kind < 128 || kind == 137,
        _ => false,
    }
}

/// Whether the address names one host.
fn is_host_v4(address: Ipv4Addr) -> bool {
    !(address.octets()[0] == 0
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240)
}

/// Whether the address names one host.
fn is_host_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// Destination unreachable, fragmentation needed.
fn message_v4(packet: &[u8], mtu: usize, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(MAX_LEN_V4 - 28)];
    let total = saturate(28 + quoted.len()).to_be_bytes();
    let mut out = Vec::with_capacity(28 + quoted.len());
    out.extend_from_slice(&[
        0x45, PRECEDENCE, total[0], total[1], 0, 0, 0x40, 0, HOP_LIMIT, ICMP, 0, 0,
    ]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    let check = checksum(&out, 0);
    out[10..12].copy_from_slice(&check.to_be_bytes());

    let mtu = saturate(mtu).to_be_bytes();
    out.extend_from_slice(&[3, 4, 0, 0, 0, 0, mtu[0], mtu[1]]);
    out.extend_from_slice(quoted);
    let check = checksum(&out[20..], 0);
    out[22..24].copy_from_slice(&check.to_be_bytes());
    out
}

/// Packet too big.
fn message_v6(packet: &[u8], mtu: usize, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let quoted = &packet[..packet.len().min(MAX_LEN_V6 - 48)];
    let len = saturate(8 + quoted.len());
    let mut out = Vec::with_capacity(48 + quoted.len());
    out.extend_from_slice(&[0x60 | PRECEDENCE >> 4, PRECEDENCE << 4, 0, 0]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[ICMPV6, HOP_LIMIT]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());

    out.extend_from_slice(&[2, 0, 0, 0]);
    out.extend_from_slice(&u32::from(saturate(mtu)).to_be_bytes());
    out.extend_from_slice(quoted);
    // The pseudo-header holds the addresses, the length and the protocol (RFC 8200 §8.1).
    let pseudo = u64::from(len) + u64::from(ICMPV6);
    let check = checksum(&out[8..], pseudo);
    out[42..44].copy_from_slice(&check.to_be_bytes());
    out
}

/// Inner packets have at most 65535 bytes (and a header), so that nothing is lost.
fn saturate(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
