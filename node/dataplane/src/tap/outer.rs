//! The outer headers of a packet, made again for a capture.

use evergate_esp::protocol;
use std::net::IpAddr;

const TTL: u8 = 64;
const UDP_HEADER_LEN: usize = 8;

/// An IP packet with these addresses (from, to), with UDP in it if there are ports, that holds a marker and a payload. `None` if the addresses are of different
/// families, or it would be longer than a packet can be.
pub(super) fn wrap(
    (from, to): (IpAddr, IpAddr),
    ports: Option<(u16, u16)>,
    traffic_class: u8,
    marker: &[u8],
    payload: &[u8],
) -> Option<Vec<u8>> {
    let udp_len = ports.map_or(0, |_| UDP_HEADER_LEN);
    let len = udp_len + marker.len() + payload.len();
    let protocol = match ports {
        Some(_) => protocol::UDP,
        None => protocol::ESP,
    };
    let mut packet = Vec::with_capacity(40 + len);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(20 + len).ok()?.to_be_bytes();
            packet.extend([0x45, traffic_class, total[0], total[1], 0, 0, 0, 0]);
            packet.extend([TTL, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let check = !sum(&packet, 0);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let payload_len = u16::try_from(len).ok()?.to_be_bytes();
            packet.extend([0x60 | traffic_class >> 4, traffic_class << 4, 0, 0]);
            packet.extend(payload_len);
            packet.extend([protocol, TTL]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => return None,
    }
    let begin = packet.len();
    if let Some((from, to)) = ports {
        packet.extend(from.to_be_bytes());
        packet.extend(to.to_be_bytes());
        packet.extend(u16::try_from(len).ok()?.to_be_bytes());
        packet.extend([0, 0]);
    }
    packet.extend(marker);
    packet.extend(payload);
    if ports.is_some() && from.is_ipv6() {
        // A pseudo-header of addresses, length and protocol comes first (RFC 8200 §8.1). Over IPv4 none is needed (RFC 3948 §2.1).
        let pseudo = sum(
            &packet[8..40],
            u32::try_from(len).ok()? + u32::from(protocol),
        );
        let check = match !sum(&packet[begin..], u32::from(pseudo)) {
            0 => 0xffff,
            check => check,
        };
        packet[begin + 6..begin + 8].copy_from_slice(&check.to_be_bytes());
    }
    Some(packet)
}

/// The one's complement sum of the 16-bit words (RFC 1071), and what is added to it.
fn sum(bytes: &[u8], initial: u32) -> u16 {
    let (words, odd) = bytes.as_chunks::<2>();
    let words = words.iter().map(|w| u32::from(u16::from_be_bytes(*w)));
    // A packet has too few words for 32 bits to overflow.
    let mut sum = initial + words.sum::<u32>() + odd.first().map_or(0, |b| u32::from(*b) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}
