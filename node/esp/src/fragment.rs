//! Fragmentation of inner IPv4 packets before encryption (RFC 791 §3.2, RFC 4301 §8).

use crate::{checksum::checksum, packet};

/// Why a packet was not fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// It is not IPv4, or its header is malformed.
    #[error("the packet is not a valid IPv4 packet")]
    NotIpv4,
    /// It has DF set: an ICMP message is due.
    #[error("the packet must not be fragmented")]
    DontFragment,
    /// `mtu` is less than the 68 bytes of RFC 791.
    #[error("the MTU is too small")]
    MtuTooSmall,
}

/// No link has less, and the longest header fits into it with eight bytes of payload (RFC 791 §3.2).
const MIN_MTU: usize = 68;

const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
const COPIED: u8 = 0x80;

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes; a packet that fits stays whole.
///
/// # Errors
/// See [`FragmentError`].
pub fn ipv4(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
    let inner = packet::parse(packet).map_err(|_| FragmentError::NotIpv4)?;
    if inner.selectors.source.is_ipv6() {
        return Err(FragmentError::NotIpv4);
    }
    let packet = &packet[..inner.total_len];
    if packet.len() <= mtu {
        return Ok(vec![packet.to_vec()]);
    }
    if inner.dont_fragment {
        return Err(FragmentError::DontFragment);
    }
    if mtu < MIN_MTU {
        return Err(FragmentError::MtuTooSmall);
    }
    let (header, mut rest) = packet.split_at(inner.upper_offset);
    let field = u16::from_be_bytes([header[6], header[7]]);
    let mut offset = field & OFFSET;
    let mut header = header.to_vec();
    let mut out = Vec::with_capacity(packet.len() / (mtu - header.len()) + 1);
    loop {
        let room = (mtu - header.len()) & !7;
        let is_last = rest.len() <= mtu - header.len();
        let (piece, behind) = rest.split_at(if is_last { rest.len() } else { room });
        let more = if is_last { field & MORE } else { MORE };
        out.push(fragment(&header, piece, more | offset));
        if is_last {
            return Ok(out);
        }
        offset += saturate(room / 8);
        header = later_header(&header);
        rest = behind;
    }
}

/// A fragment with its header completed.
fn fragment(header: &[u8], payload: &[u8], field: u16) -> Vec<u8> {
    let mut out = [header, payload].concat();
    let total = saturate(out.len());
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out[6..8].copy_from_slice(&field.to_be_bytes());
    out[10..12].fill(0);
    let check = checksum(&out[..header.len()], 0);
    out[10..12].copy_from_slice(&check.to_be_bytes());
    out
}

/// The header of all fragments but the first: only options with the copied flag stay (RFC 791 §3.1).
fn later_header(header: &[u8]) -> Vec<u8> {
    let (fixed, mut options) = header.split_at(20);
    let mut out = fixed.to_vec();
    while let [kind @ 1..=u8::MAX, behind @ ..] = options {
        let len = match (kind, behind.first()) {
            (1, _) => 1,
            (_, Some(&len @ 2..)) if usize::from(len) <= options.len() => usize::from(len),
            _ => break,
        };
        if kind & COPIED != 0 {
            out.extend_from_slice(&options[..len]);
        }
        options = &options[len..];
    }
    out.resize(out.len().next_multiple_of(4), 0);
    out[0] =
        0x40 | u8::try_from(out.len() / 4).expect("not longer than the header that it comes from");
    out
}

/// Nothing inside an IPv4 packet is longer than 65535.
fn saturate(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
