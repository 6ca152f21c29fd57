//! Large packets: several segments of one flow behind one header, as the kernel hands them over and takes them (TSO, USO and GRO).
//!
//! Outside of this host nobody sees them. [`Segments`] cuts one into the packets that it stands for; [`Large`] puts packets together.

use crate::{
    checksum::{checksum, fold, sum},
    packet::{Fragment, Inner},
    protocol,
};
use std::ops::Range;

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Segments of one large packet that we make: what kernels take at least (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;
/// The longest IP packet.
const MAX_LEN: usize = 65_535;

/// What the segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP segments that follow each other.
    Tcp,
    /// UDP datagrams of one flow.
    Udp,
}

impl Kind {
    /// Where the checksum is in the upper-layer header, in bytes.
    pub fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    fn of(protocol: u8) -> Option<Self> {
        match protocol {
            protocol::TCP => Some(Self::Tcp),
            protocol::UDP => Some(Self::Udp),
            _ => None,
        }
    }
}

/// It is no large packet of the kind that was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the headers of a large packet are not those of its kind")]
pub struct NotLarge;

/// Computes a checksum that was left to the device: over all from `start` on, put `offset` behind it, where the sum of the pseudo-header is
/// (RFC 9293 §3.1, RFC 768).
///
/// # Errors
/// If that is not inside the packet.
pub fn complete_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), NotLarge> {
    let covered = packet.get_mut(start..).ok_or(NotLarge)?;
    if offset.checked_add(2).is_none_or(|end| end > covered.len()) {
        return Err(NotLarge);
    }
    let check = !sum(covered);
    // In UDP zero means that there is none; in TCP both zeros are the same.
    let check = if check == 0 { 0xffff } else { check };
    put_u16(covered, offset, check);
    Ok(())
}

/// The segments of a large packet.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'p> {
    packet: &'p [u8],
    kind: Kind,
    ipv4: bool,
    upper: usize,
    header_len: usize,
    size: usize,
    /// Sum of the pseudo-header without the length.
    pseudo: u64,
}

impl<'p> Segments<'p> {
    /// A packet whose payload is to be cut into pieces of `size` bytes. Its checksum field holds the sum of the pseudo-header, as kernels
    /// leave it.
    ///
    /// # Errors
    /// If the headers are not there, or `size` is zero.
    pub fn new(packet: &'p [u8], inner: &Inner, kind: Kind, size: usize) -> Result<Self, NotLarge> {
        let upper = inner.upper_offset;
        let packet = packet.get(..inner.total_len).ok_or(NotLarge)?;
        let header_len = upper + upper_header_len(packet, upper, kind).ok_or(NotLarge)?;
        let same_kind = Kind::of(inner.selectors.protocol) == Some(kind);
        if !same_kind || size == 0 || header_len > packet.len() || inner.fragment != Fragment::No {
            return Err(NotLarge);
        }
        let length = u64::from(!saturate(packet.len() - upper));
        let pseudo = u64::from(u16_at(packet, upper + kind.checksum_offset())) + length;
        Ok(Self {
            packet,
            kind,
            ipv4: inner.selectors.source.is_ipv4(),
            upper,
            header_len,
            size,
            pseudo,
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        (self.packet.len() - self.header_len)
            .div_ceil(self.size)
            .max(1)
    }

    /// The length of the longest, in bytes.
    pub fn max_len(&self) -> usize {
        self.packet.len().min(self.header_len + self.size)
    }

    /// The length of segment `i`, in bytes.
    pub fn len(&self, i: usize) -> usize {
        self.header_len + self.payload(i).len()
    }

    /// Whether there is none: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn payload(&self, i: usize) -> &'p [u8] {
        let payload = &self.packet[self.header_len..];
        let start = (i * self.size).min(payload.len());
        &payload[start..payload.len().min(start + self.size)]
    }

    /// Writes segment `i` into `out`, which has its length.
    ///
    /// # Panics
    /// If it has not.
    pub fn write(&self, i: usize, out: &mut [u8]) {
        let payload = self.payload(i);
        let (header, rest) = out.split_at_mut(self.header_len);
        header.copy_from_slice(&self.packet[..self.header_len]);
        rest.copy_from_slice(payload);
        if self.ipv4 {
            let id = u16_at(header, 4).wrapping_add(saturate(i));
            put_u16(header, 4, id);
        }
        let upper_len = out.len() - self.upper;
        put_lengths(out, self.ipv4, self.upper, self.kind);
        let segment = &mut out[self.upper..];
        if self.kind == Kind::Tcp {
            let sequence = u32_at(segment, 4).wrapping_add(low_half(i * self.size));
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            if i > 0 {
                segment[13] &= !CWR;
            }
            if i + 1 < self.count() {
                segment[13] &= !(FIN | PSH);
            }
        }
        let pseudo = fold(self.pseudo + upper_len as u64);
        put_u16(segment, self.kind.checksum_offset(), pseudo);
        // The offset is inside the header, which is inside the segment.
        let _ = complete_checksum(out, self.upper, self.kind.checksum_offset());
    }
}

/// Packets of one flow that follow each other, about to become one large packet. The first stays where it is and lends its headers.
#[derive(Clone, Copy, Debug)]
pub struct Large {
    kind: Kind,
    ipv4: bool,
    upper: usize,
    header_len: usize,
    size: usize,
    len: usize,
    count: usize,
    next_sequence: u32,
    push: bool,
    /// Nothing may follow any more.
    complete: bool,
    /// Whether the checksum of the first was verified.
    verified: bool,
}

impl Large {
    /// Begins with a packet, if others could follow it.
    pub fn begin(packet: &[u8], inner: &Inner) -> Option<Self> {
        let kind = Kind::of(inner.selectors.protocol)?;
        let upper = inner.upper_offset;
        let ipv4 = inner.selectors.source.is_ipv4();
        let plain = if ipv4 {
            IPV4_HEADER_LEN
        } else {
            IPV6_HEADER_LEN
        };
        if upper != plain || inner.fragment != Fragment::No || packet.len() != inner.total_len {
            return None;
        }
        let header_len = upper + upper_header_len(packet, upper, kind)?;
        let size = packet
            .len()
            .checked_sub(header_len)
            .filter(|&len| len > 0)?;
        let mut next_sequence = 0;
        match kind {
            Kind::Tcp if packet[upper + 13] & !PSH == ACK => {
                next_sequence = u32_at(packet, upper + 4).wrapping_add(low_half(size));
            }
            Kind::Udp if u16_at(packet, upper + 6) != 0 => {
                // What is behind the datagram is not for us to judge.
                let whole = usize::from(u16_at(packet, upper + 4)) == packet.len() - upper;
                whole.then_some(())?;
            }
            _ => return None,
        }
        let push = kind == Kind::Tcp && packet[upper + 13] & PSH != 0;
        Some(Self {
            kind,
            ipv4,
            upper,
            header_len,
            size,
            len: packet.len(),
            count: 1,
            next_sequence,
            push,
            complete: push,
            verified: false,
        })
    }

    /// What the segments are.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the upper-layer header is, in bytes.
    pub fn upper_offset(&self) -> usize {
        self.upper
    }

    /// Length of all headers, in bytes.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of payload of each segment but the last.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many packets it stands for.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether nothing can follow any more.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Takes `packet` as the next, if it goes on where the last ended and differs from `first` in nothing that could not be made again: yields
    /// where the payload is that goes behind all the others. Checksums are verified, because those of a large packet are not any more.
    pub fn follow(&mut self, first: &[u8], packet: &[u8], inner: &Inner) -> Option<Range<usize>> {
        let next = Self::begin(packet, inner)?;
        let fits = self.len + next.size <= MAX_LEN && self.count < MAX_SEGMENTS;
        let same = next.kind == self.kind
            && next.ipv4 == self.ipv4
            && next.header_len == self.header_len
            && next.size <= self.size
            && self.same_headers(first, packet);
        if self.complete || !fits || !same {
            return None;
        }
        let valid = |packet: &[u8]| is_valid(packet, self.ipv4, self.upper);
        if !valid(packet) || !(self.verified || valid(first)) {
            return None;
        }
        self.verified = true;
        self.count += 1;
        self.len += next.size;
        self.next_sequence = next.next_sequence;
        self.push = next.push;
        self.complete = next.push || next.size < self.size;
        Some(self.header_len..packet.len())
    }

    /// Whether everything but lengths, identification, sequence number and checksums is the same, and those go on.
    fn same_headers(&self, first: &[u8], packet: &[u8]) -> bool {
        let same = |range: Range<usize>| first[range.clone()] == packet[range];
        let network = if self.ipv4 {
            let (flags, id) = (u16_at(first, 6), u16_at(first, 4));
            let dont_fragment = flags & 0x4000 != 0;
            // An identification means something only where routers may fragment (RFC 6864 §4.1); then it must go on.
            let id_goes_on = u16_at(packet, 4) == id.wrapping_add(saturate(self.count));
            same(0..2) && same(6..10) && same(12..20) && (dont_fragment || id_goes_on)
        } else {
            same(0..4) && same(6..40)
        };
        let at = self.upper;
        let transport = match self.kind {
            Kind::Udp => same(at..at + 4),
            Kind::Tcp => {
                let sequence = self.header_len - at >= TCP_HEADER_LEN
                    && u32_at(packet, at + 4) == self.next_sequence;
                // PSH differs; the window must not, so that none is lost.
                sequence
                    && same(at..at + 4)
                    && same(at + 8..at + 13)
                    && same(at + 14..at + 16)
                    && same(at + 18..self.header_len)
            }
        };
        network && transport
    }

    /// Makes the headers of the first packet those of the large one: lengths, PSH, and the sum of the pseudo-header as checksum.
    pub fn finish(&self, first: &mut [u8]) {
        let upper_len = self.len - self.upper;
        let pseudo = pseudo_sum(first, self.ipv4, self.kind, upper_len);
        if self.ipv4 {
            put_u16(first, 2, saturate(self.len));
            put_ipv4_checksum(first, self.upper);
        } else {
            put_u16(first, 4, saturate(upper_len));
        }
        match self.kind {
            Kind::Udp => put_u16(first, self.upper + 4, saturate(upper_len)),
            Kind::Tcp if self.push => first[self.upper + 13] |= PSH,
            Kind::Tcp => {}
        }
        put_u16(
            first,
            self.upper + self.kind.checksum_offset(),
            fold(pseudo),
        );
    }
}

/// Length of the TCP or UDP header, if it is there.
fn upper_header_len(packet: &[u8], upper: usize, kind: Kind) -> Option<usize> {
    let rest = packet.get(upper..)?;
    let len = match kind {
        Kind::Tcp => {
            rest.get(..TCP_HEADER_LEN)?;
            usize::from(rest[12] >> 4) * 4
        }
        Kind::Udp => UDP_HEADER_LEN,
    };
    let least = if kind == Kind::Tcp {
        TCP_HEADER_LEN
    } else {
        UDP_HEADER_LEN
    };
    (len >= least && len <= rest.len()).then_some(len)
}

/// Whether the checksum of TCP or UDP is right.
fn is_valid(packet: &[u8], ipv4: bool, upper: usize) -> bool {
    let kind = match if ipv4 { packet[9] } else { packet[6] } {
        protocol::TCP => Kind::Tcp,
        _ => Kind::Udp,
    };
    let pseudo = pseudo_sum(packet, ipv4, kind, packet.len() - upper);
    checksum(&packet[upper..], pseudo) == 0
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), not folded.
fn pseudo_sum(packet: &[u8], ipv4: bool, kind: Kind, upper_len: usize) -> u64 {
    let addresses = if ipv4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    let protocol = match kind {
        Kind::Tcp => protocol::TCP,
        Kind::Udp => protocol::UDP,
    };
    u64::from(sum(addresses)) + u64::from(protocol) + upper_len as u64
}

/// Writes the lengths into the headers of a packet that ends where `packet` does.
fn put_lengths(packet: &mut [u8], ipv4: bool, upper: usize, kind: Kind) {
    let len = packet.len();
    if ipv4 {
        put_u16(packet, 2, saturate(len));
        put_ipv4_checksum(packet, upper);
    } else {
        put_u16(packet, 4, saturate(len - IPV6_HEADER_LEN));
    }
    if kind == Kind::Udp {
        put_u16(packet, upper + 4, saturate(len - upper));
    }
}

fn put_ipv4_checksum(packet: &mut [u8], header_len: usize) {
    put_u16(packet, 10, 0);
    let check = checksum(&packet[..header_len], 0);
    put_u16(packet, 10, check);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// No packet is longer than 65535.
fn saturate(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// No packet is longer than 65535.
fn low_half(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
