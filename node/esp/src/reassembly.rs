//! Packets of this host that its kernel has cut, put together again: transport mode covers whole ones (RFC 4303 §3.1.1).
//!
//! The kernel hands the fragments of a packet over one after the other, so nothing but that is taken.

use crate::{
    checksum,
    packet::{Fragment, Inner},
};
use std::{collections::VecDeque, net::IpAddr};

/// So many packets may be unfinished; with another one the oldest is given up. A kernel finishes one before it begins the next, unless it drops a fragment or works on
/// several processors.
const UNFINISHED: usize = 32;
/// No packet is longer.
const MAX_LEN: usize = 65_535;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const FRAGMENT_HEADER_LEN: usize = 8;
const FRAGMENT: u8 = 44;

/// What the fragments of a packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
}

/// A fragment: what it is part of, and which part.
struct Part<'a> {
    name: Name,
    /// Offset of its bytes in the whole payload.
    offset: usize,
    more: bool,
    bytes: &'a [u8],
}

/// A packet that is not whole yet.
struct Unfinished {
    name: Name,
    /// Header and payload so far.
    packet: Vec<u8>,
    header_len: usize,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub enum Added {
    /// More have to come.
    Waits,
    /// The packet is whole.
    Whole(Vec<u8>),
    /// It does not go on where another has ended, or has options or extension headers; nothing waits for the rest.
    Lost,
}

/// Packets that are not whole yet.
#[derive(Default)]
pub struct Reassembler {
    unfinished: VecDeque<Unfinished>,
}

impl Reassembler {
    /// Whether a fragment is of a packet whose first one was added.
    pub fn waits_for(&self, packet: &[u8], inner: &Inner) -> bool {
        inner.fragment == Fragment::Later
            && part(packet, inner).is_some_and(|part| self.position(&part.name).is_some())
    }

    /// Adds a fragment. Yields besides whether another packet had to be given up.
    pub fn add(&mut self, packet: &[u8], inner: &Inner) -> (Added, bool) {
        let Some(part) = part(packet, inner) else {
            return (Added::Lost, false);
        };
        let at = self.position(&part.name);
        if part.offset == 0 {
            let given_up = self.begin(packet, &part, at);
            return (Added::Waits, given_up);
        }
        let Some(mut before) = at.and_then(|at| self.unfinished.remove(at)) else {
            return (Added::Lost, false);
        };
        let so_far = before.packet.len() - before.header_len;
        if part.offset != so_far || before.packet.len() + part.bytes.len() > MAX_LEN {
            return (Added::Lost, false);
        }
        before.packet.extend_from_slice(part.bytes);
        if part.more {
            self.unfinished.push_back(before);
            return (Added::Waits, false);
        }
        finish(&mut before.packet, before.header_len);
        (Added::Whole(before.packet), false)
    }

    /// Begins a packet with its first fragment.
    fn begin(&mut self, packet: &[u8], part: &Part<'_>, before: Option<usize>) -> bool {
        let stale = before.and_then(|at| self.unfinished.remove(at)).is_some();
        let full = self.unfinished.len() >= UNFINISHED && self.unfinished.pop_front().is_some();
        let (header_len, protocol_at) = match part.name.source {
            IpAddr::V4(_) => (IPV4_HEADER_LEN, 9),
            IpAddr::V6(_) => (IPV6_HEADER_LEN, 6),
        };
        let mut whole = packet[..header_len].to_vec();
        whole[protocol_at] = part.name.protocol;
        whole.extend_from_slice(part.bytes);
        self.unfinished.push_back(Unfinished {
            name: part.name,
            packet: whole,
            header_len,
        });
        stale || full
    }

    fn position(&self, name: &Name) -> Option<usize> {
        self.unfinished.iter().position(|u| u.name == *name)
    }
}

/// A fragment without options, or with no other extension header than that which says that it is one.
fn part<'a>(packet: &'a [u8], inner: &Inner) -> Option<Part<'a>> {
    let packet = packet.get(..inner.total_len)?;
    let (source, destination) = (inner.selectors.source, inner.selectors.destination);
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    if source.is_ipv4() {
        let flags = word(6)?;
        let bytes = packet.get(IPV4_HEADER_LEN..)?;
        return (packet[0] == 0x45).then_some(Part {
            name: Name {
                source,
                destination,
                id: word(4)?.into(),
                protocol: packet[9],
            },
            offset: usize::from(flags & 0x1fff) * 8,
            more: flags & 0x2000 != 0,
            bytes,
        });
    }
    let (header, bytes) = packet
        .get(IPV6_HEADER_LEN..)?
        .split_first_chunk::<FRAGMENT_HEADER_LEN>()?;
    let &[protocol, _, high, low, a, b, c, d] = header;
    let field = u16::from_be_bytes([high, low]);
    (packet[6] == FRAGMENT).then_some(Part {
        name: Name {
            source,
            destination,
            id: u32::from_be_bytes([a, b, c, d]),
            protocol,
        },
        offset: usize::from(field & 0xfff8),
        more: field & 1 != 0,
        bytes,
    })
}

/// Makes the header that of a whole packet.
fn finish(packet: &mut [u8], header_len: usize) {
    let len = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    if header_len == IPV6_HEADER_LEN {
        let payload = len(packet.len() - IPV6_HEADER_LEN);
        packet[4..6].copy_from_slice(&payload);
        return;
    }
    let total = len(packet.len());
    packet[2..4].copy_from_slice(&total);
    packet[6..8].fill(0);
    packet[10..12].fill(0);
    let sum = checksum::checksum(&packet[..IPV4_HEADER_LEN], 0);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests;
