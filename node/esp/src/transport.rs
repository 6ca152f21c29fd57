//! Transport mode (RFC 4303 §3.1.1): ESP stands between the IP header of a packet and what that carries, and covers the latter only.
//!
//! It is between the two hosts themselves. A NAT between them changes the addresses in the header, which ESP does not cover, while the checksums of what
//! it covers were made with those of the sender; [`Ends`] knows both (RFC 3948 §3.1.2, RFC 7296 §2.23.1).

use crate::{
    checksum,
    packet::{self, Fragment, Inner, PacketError},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

/// The addresses of a pair of SAs in transport mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Ours, in the packets of this host.
    pub local: IpAddr,
    /// The peer's there, of the same family.
    pub remote: IpAddr,
    /// Ours as the peer has it in its packets: another one if a NAT is in front of us.
    pub local_there: IpAddr,
    /// The peer's own as it has it there: another one if a NAT is in front of it.
    pub remote_there: IpAddr,
}

/// Why a packet cannot go in transport mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// It is a fragment: only whole packets can be covered (RFC 4303 §3.1.1).
    #[error("a fragment cannot be covered")]
    Fragment,
    /// It has IPv4 options, or IPv6 headers that routers look at: they would have to go in front of ESP.
    #[error("it has options or extension headers for routers")]
    Options,
    /// It would be longer than any packet is.
    #[error("it is too long")]
    TooLong,
    /// What was inside ESP does not make an IP packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const UDP_LITE: u8 = 136;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
/// Where IPv4 has its checksum.
const IPV4_CHECKSUM: usize = 10;
/// The hop limit of rebuilt headers; the packet is at its destination.
const HOP_LIMIT: u8 = 64;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// What ESP covers of a packet that we send: its bytes, and their Next Header. IPv6 destination options are covered, as RFC 4303 §3.1.1 prefers it.
///
/// # Errors
/// If it cannot go in transport mode.
pub fn covered(packet: &[u8], inner: &Inner) -> Result<(Range<usize>, u8), TransportError> {
    if inner.fragment != Fragment::No {
        return Err(TransportError::Fragment);
    }
    if inner.selectors.source.is_ipv4() {
        return match inner.upper_offset {
            IPV4_HEADER_LEN => Ok((IPV4_HEADER_LEN..inner.total_len, inner.selectors.protocol)),
            _ => Err(TransportError::Options),
        };
    }
    let first = *packet.get(6).ok_or(PacketError::Truncated)?;
    let (mut next, mut at) = (first, IPV6_HEADER_LEN);
    // Destination options in front of a routing header are for the hosts that it names.
    while next == DESTINATION_OPTIONS {
        let &[following, len] = packet
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .ok_or(PacketError::Truncated)?;
        next = following;
        at += (usize::from(len) + 1) * 8;
    }
    match next {
        HOP_BY_HOP | ROUTING | FRAGMENT => Err(TransportError::Options),
        _ => Ok((IPV6_HEADER_LEN..inner.total_len, first)),
    }
}

/// The packet that this host is to see for what came inside ESP: with an IP header in front, and a checksum as if the peer had made it with our addresses.
/// `traffic_class` is that of the header that it came with.
///
/// # Errors
/// If that makes no IP packet.
pub fn restore(
    payload: &[u8],
    next_header: u8,
    ends: &Ends,
    traffic_class: u8,
) -> Result<Vec<u8>, TransportError> {
    let mut packet = header(payload.len(), next_header, ends, traffic_class)?;
    packet.extend_from_slice(payload);
    let inner = packet::parse(&packet)?;
    correct(&mut packet, &inner, ends);
    Ok(packet)
}

/// An IP header from the peer to us, without options.
fn header(
    payload_len: usize,
    next_header: u8,
    ends: &Ends,
    traffic_class: u8,
) -> Result<Vec<u8>, TransportError> {
    let too_long = |_| TransportError::TooLong;
    let (source, destination) = match (ends.remote, ends.local) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(IPV4_HEADER_LEN + payload_len).map_err(too_long)?;
            return Ok(header_v4(total, next_header, (source, destination), traffic_class).into());
        }
        // Never of two families: then both are, for what that is worth, IPv6.
        (source, destination) => (v6(source), v6(destination)),
    };
    let len = u16::try_from(payload_len).map_err(too_long)?;
    let mut header = vec![0; IPV6_HEADER_LEN];
    header[0] = 0x60 | traffic_class >> 4;
    header[1] = traffic_class << 4;
    header[4..6].copy_from_slice(&len.to_be_bytes());
    header[6] = next_header;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    Ok(header)
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

fn header_v4(
    total: u16,
    protocol: u8,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    traffic_class: u8,
) -> [u8; IPV4_HEADER_LEN] {
    let mut header = [0; IPV4_HEADER_LEN];
    header[0] = 0x45;
    header[1] = traffic_class;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[8] = HOP_LIMIT;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let sum = checksum::checksum(&header, 0);
    header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Brings a checksum that covers the addresses from those that the peer used to those that we have (RFC 3948 §3.1.2, RFC 1624).
fn correct(packet: &mut [u8], inner: &Inner, ends: &Ends) {
    let at = match inner.selectors.protocol {
        TCP => 16,
        UDP | UDP_LITE | DCCP => 6,
        ICMPV6 => 2,
        _ => return,
    };
    let at = inner.upper_offset + at;
    if inner.fragment == Fragment::Later || inner.total_len < at + 2 {
        return;
    }
    let old = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let none = inner.selectors.protocol == UDP && old == 0;
    if none {
        return;
    }
    let theirs = [ends.remote_there, ends.local_there];
    let ours = [ends.remote, ends.local];
    if theirs == ours {
        return;
    }
    let words = |addresses: [IpAddr; 2]| addresses.into_iter().flat_map(words_of);
    let mut new = checksum::update_words(old, words(theirs), words(ours));
    if inner.selectors.protocol == UDP && new == 0 {
        new = u16::MAX; // zero would say that there is none (RFC 768)
    }
    packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
}

/// An address in the words of a pseudo-header.
fn words_of(address: IpAddr) -> Vec<u16> {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            vec![u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
        }
        IpAddr::V6(a) => a.segments().to_vec(),
    }
}

#[cfg(test)]
mod tests;
