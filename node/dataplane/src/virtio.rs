//! The header that stands before each packet of the TUN device (`struct virtio_net_hdr`): what was left to the device.

use evergate_esp::segment::{Kind, Large};

/// Its length in bytes.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A flag beside the type: segments after the first are marked otherwise. We do not offer to take such.
const GSO_ECN: u8 = 0x80;

/// What the kernel left to us with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing.
    Nothing,
    /// The checksum: from `start` on, to be put `offset` behind that.
    Checksum {
        /// See there.
        start: usize,
        /// See there.
        offset: usize,
    },
    /// To cut it into segments with so many bytes of payload.
    Segments(Kind, usize),
}

/// What a header says. `None` if it says what we did not offer to do. Its numbers are those of the host.
pub(crate) fn parse(header: &[u8; LEN]) -> Option<Left> {
    let number = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let checksum = header[0] & NEEDS_CSUM != 0;
    match header[1] & !GSO_ECN {
        GSO_NONE if checksum => Some(Left::Checksum {
            start: number(6),
            offset: number(8),
        }),
        GSO_NONE => Some(Left::Nothing),
        GSO_TCPV4 | GSO_TCPV6 if checksum => Some(Left::Segments(Kind::Tcp, number(4))),
        GSO_UDP_L4 if checksum => Some(Left::Segments(Kind::Udp, number(4))),
        _ => None,
    }
}

/// The header of a large packet that we hand over.
pub(crate) fn of_large(large: &Large, ipv4: bool) -> [u8; LEN] {
    let mut header = [0; LEN];
    let mut put = |at: usize, value: usize| {
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    };
    put(2, large.header_len());
    put(4, large.size());
    put(6, large.upper_offset());
    put(8, large.kind().checksum_offset());
    header[0] = NEEDS_CSUM;
    header[1] = match (large.kind(), ipv4) {
        (Kind::Tcp, true) => GSO_TCPV4,
        (Kind::Tcp, false) => GSO_TCPV6,
        (Kind::Udp, _) => GSO_UDP_L4,
    };
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8, rest: [u16; 4]) -> [u8; LEN] {
        let mut header = [0; LEN];
        (header[0], header[1]) = (flags, gso);
        for (to, value) in header[2..].chunks_exact_mut(2).zip(rest) {
            to.copy_from_slice(&value.to_ne_bytes());
        }
        header
    }

    #[test]
    fn what_was_left_to_us_is_understood() {
        let parse = |flags, gso| parse(&header(flags, gso, [52, 1348, 20, 16]));
        assert_eq!(parse(0, 0), Some(Left::Nothing));
        let (start, offset) = (20, 16);
        assert_eq!(parse(1, 0), Some(Left::Checksum { start, offset }));
        for gso in [1, 4, 0x81] {
            assert_eq!(parse(1, gso), Some(Left::Segments(Kind::Tcp, 1348)));
        }
        assert_eq!(parse(1, 5), Some(Left::Segments(Kind::Udp, 1348)));
        for (flags, gso) in [(0, 1), (0, 4), (0, 5), (1, 3), (1, 7)] {
            assert_eq!(parse(flags, gso), None);
        }
    }
}
