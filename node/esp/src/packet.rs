//! Inner packets: what policy looks at (RFC 4301 §4.4.1.1).

use crate::{checksum, protocol};
use std::net::IpAddr;

/// What policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketSelectors {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The upper-layer protocol; for a non-first IPv6 fragment, what its fragment header names.
    pub protocol: u8,
    /// Source and destination port; `None` if the protocol has none, or they are not in this fragment. For ICMP
    /// both are type and code as one number.
    pub ports: Option<(u16, u16)>,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is whole.
    No,
    /// It is the first of several.
    First,
    /// It is one of the others.
    Later,
}

/// An inner packet, parsed as far as we need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// What policy looks at.
    pub selectors: PacketSelectors,
    /// Length as the IP header says, in bytes; what is behind it in the buffer is no part of the packet.
    pub total_len: usize,
    /// Offset of the upper-layer header (after options and extension headers), in bytes.
    pub upper_offset: usize,
    /// The traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// Whether routers must not fragment it: DF, and always in IPv6.
    pub dont_fragment: bool,
    /// Whether it is a fragment.
    pub fragment: Fragment,
}

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// It ends before its header or its length says.
    #[error("the packet is truncated")]
    Truncated,
    /// It is neither IPv4 nor IPv6.
    #[error("IP version {0} is unknown")]
    Version(u8),
    /// A length or offset contradicts the rest.
    #[error("the header is invalid")]
    Invalid,
    /// There are more extension headers than we walk.
    #[error("there are too many extension headers")]
    TooManyHeaders,
}

/// Extension headers that we walk before we call a packet hostile.
const MAX_EXTENSION_HEADERS: usize = 8;
/// No reassembled packet is longer than this.
const MAX_LEN: usize = 65535;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Parses an inner packet. The IPv4 header checksum is not verified: the kernel does that where packets come in.
///
/// # Errors
/// See [`PacketError`].
pub fn parse(packet: &[u8]) -> Result<Inner, PacketError> {
    match packet.first().ok_or(PacketError::Truncated)? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        version => Err(PacketError::Version(version)),
    }
}

/// The ESP Next Header for an inner packet ([`protocol::IPV4`] or [`protocol::IPV6`]), if it is one at all.
pub fn next_header(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => Some(protocol::IPV4),
        6 => Some(protocol::IPV6),
        _ => None,
    }
}

/// Writes the traffic class into an IPv4 or IPv6 header and keeps the IPv4 header checksum right. Bytes that are
/// no IP header stay as they are.
pub fn set_traffic_class(packet: &mut [u8], traffic_class: u8) {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let word = u16::from_be_bytes([packet[0], traffic_class]);
            checksum::replace_word(packet, 0, 0, word, 10);
        }
        Some(6) if packet.len() >= 40 => {
            packet[0] = 0x60 | traffic_class >> 4;
            packet[1] = traffic_class << 4 | packet[1] & 0x0f;
        }
        _ => {}
    }
}

fn parse_v4(packet: &[u8]) -> Result<Inner, PacketError> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(PacketError::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16_at(header, 2));
    if header_len < 20 || total_len < header_len {
        return Err(PacketError::Invalid);
    }
    let upper = packet
        .get(header_len..total_len)
        .ok_or(PacketError::Truncated)?;
    let flags = u16_at(header, 6);
    let fragment = classify_fragment(
        usize::from(flags & 0x1fff) * 8,
        flags & 0x2000 != 0,
        upper.len(),
    )?;
    let protocol = header[9];
    let selectors = PacketSelectors {
        source: IpAddr::from(
            *packet[12..]
                .first_chunk::<4>()
                .ok_or(PacketError::Truncated)?,
        ),
        destination: IpAddr::from(
            *packet[16..]
                .first_chunk::<4>()
                .ok_or(PacketError::Truncated)?,
        ),
        protocol,
        ports: ports(protocol, fragment, upper),
    };
    Ok(Inner {
        selectors,
        total_len,
        upper_offset: header_len,
        traffic_class: header[1],
        hop_limit: header[8],
        dont_fragment: flags & 0x4000 != 0,
        fragment,
    })
}

fn parse_v6(packet: &[u8]) -> Result<Inner, PacketError> {
    let header: &[u8; 40] = packet.first_chunk().ok_or(PacketError::Truncated)?;
    let total_len = header.len() + usize::from(u16_at(header, 4));
    let packet = packet.get(..total_len).ok_or(PacketError::Truncated)?;
    let walked = walk_extension_headers(packet, header[6])?;
    let selectors = PacketSelectors {
        source: IpAddr::from(
            *header[8..]
                .first_chunk::<16>()
                .ok_or(PacketError::Truncated)?,
        ),
        destination: IpAddr::from(
            *header[24..]
                .first_chunk::<16>()
                .ok_or(PacketError::Truncated)?,
        ),
        protocol: walked.protocol,
        ports: ports(walked.protocol, walked.fragment, &packet[walked.offset..]),
    };
    Ok(Inner {
        selectors,
        total_len,
        upper_offset: walked.offset,
        traffic_class: header[0] << 4 | header[1] >> 4,
        hop_limit: header[7],
        dont_fragment: true,
        fragment: walked.fragment,
    })
}

/// Where the extension headers of an IPv6 packet lead.
struct Walked {
    protocol: u8,
    /// At most the length of the packet.
    offset: usize,
    fragment: Fragment,
}

/// Walks to the upper-layer header, or to the end of the fragment header of a non-first fragment.
fn walk_extension_headers(packet: &[u8], first: u8) -> Result<Walked, PacketError> {
    let mut walked = Walked {
        protocol: first,
        offset: 40,
        fragment: Fragment::No,
    };
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let len_of = match walked.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => |field: u8| (usize::from(field) + 1) * 8,
            AUTHENTICATION => |field: u8| (usize::from(field) + 2) * 4,
            FRAGMENT => |_| 8,
            _ => return Ok(walked),
        };
        let rest = &packet[walked.offset..];
        let &[next, field] = rest.first_chunk().ok_or(PacketError::Truncated)?;
        let header = rest.get(..len_of(field)).ok_or(PacketError::Truncated)?;
        walked.offset += header.len();
        if walked.protocol == FRAGMENT {
            let field = u16_at(header, 2);
            let len = packet.len() - walked.offset;
            walked.fragment = classify_fragment(usize::from(field & 0xfff8), field & 1 != 0, len)?;
        }
        walked.protocol = next;
        if walked.fragment == Fragment::Later {
            return Ok(walked);
        }
    }
    Err(PacketError::TooManyHeaders)
}

fn classify_fragment(offset: usize, more: bool, len: usize) -> Result<Fragment, PacketError> {
    match (offset, more) {
        (0, false) => Ok(Fragment::No),
        (0, true) => Ok(Fragment::First),
        _ if offset + len > MAX_LEN => Err(PacketError::Invalid),
        _ => Ok(Fragment::Later),
    }
}

/// Ports, or type and code, where `upper` shows them.
fn ports(protocol: u8, fragment: Fragment, upper: &[u8]) -> Option<(u16, u16)> {
    if fragment == Fragment::Later {
        return None;
    }
    match protocol {
        TCP | UDP | UDP_LITE | SCTP | DCCP => {
            let upper: &[u8; 4] = upper.first_chunk()?;
            Some((u16_at(upper, 0), u16_at(upper, 2)))
        }
        ICMP | ICMPV6 => {
            let type_and_code = u16::from_be_bytes(*upper.first_chunk()?);
            Some((type_and_code, type_and_code))
        }
        _ => None,
    }
}

/// The 16-bit number at `at`; callers know that it is inside.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests;
