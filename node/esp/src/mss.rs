//! Clamping of the TCP maximum segment size.

use crate::{
    checksum,
    packet::{self, Fragment},
};

const TCP: u8 = 6;
const TCP_HEADER_LEN: usize = 20;
const SYN: u8 = 0x02;
const CHECKSUM: usize = 16;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the MSS option of a TCP SYN (whole or first fragment, IPv4 or IPv6) so that segments fit into inner
/// packets of `mtu` bytes, and corrects the TCP checksum. Yields whether anything was changed. Other packets stay
/// as they are.
pub fn clamp(packet: &mut [u8], mtu: usize) -> bool {
    let Ok(inner) = packet::parse(packet) else {
        return false;
    };
    if inner.selectors.protocol != TCP || inner.fragment == Fragment::Later {
        return false;
    }
    let headers = if inner.selectors.source.is_ipv4() {
        20
    } else {
        40
    } + TCP_HEADER_LEN;
    let Some(limit) = mtu.checked_sub(headers).filter(|&limit| limit > 0) else {
        return false;
    };
    let tcp = &packet[inner.upper_offset..inner.total_len];
    let Some(at) = mss_offset(tcp) else {
        return false;
    };
    let mss = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    match u16::try_from(limit) {
        Ok(limit) if limit < mss => {
            let base = inner.upper_offset;
            checksum::replace_word(packet, base, base + at, limit, base + CHECKSUM);
            true
        }
        _ => false,
    }
}

/// Whether [`clamp`] may have something to do with a packet: whether it is a TCP SYN.
pub fn concerns(packet: &[u8], inner: &packet::Inner) -> bool {
    inner.selectors.protocol == TCP
        && inner.fragment != Fragment::Later
        && packet
            .get(inner.upper_offset + 13)
            .is_some_and(|flags| flags & SYN != 0)
}

/// Where the value of the MSS option of a SYN is, in a TCP header.
fn mss_offset(tcp: &[u8]) -> Option<usize> {
    let header: &[u8; TCP_HEADER_LEN] = tcp.first_chunk()?;
    if header[13] & SYN == 0 {
        return None;
    }
    let header_len = usize::from(header[12] >> 4) * 4;
    let mut at = TCP_HEADER_LEN;
    let header = tcp.get(..header_len)?;
    loop {
        match *header.get(at..)? {
            [OPTION_NOP, ..] => at += 1,
            [OPTION_MSS, 4, _, _, ..] => return Some(at + 2),
            [OPTION_END | OPTION_MSS, ..] => return None,
            [_, len @ 2..=u8::MAX, ..] => at += usize::from(len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
