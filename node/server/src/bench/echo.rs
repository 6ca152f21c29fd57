//! Echo requests (RFC 792) through the Child SA of a peer, and their answers.

use anyhow::bail;
use evergate_esp::{InboundSa, Key, OpenError, OutboundSa, ReplayWindow, Selectors, protocol};
use evergate_ike::record::Child;
use std::net::{IpAddr, Ipv4Addr};

/// More than is ever asked.
const RESERVATION: u64 = 1 << 31;
const WINDOW: usize = 64;
/// IPv4 header and ICMP header: there is no payload.
const LEN: usize = 28;
const TOTAL_LEN: [u8; 2] = [0, 28];

/// A Child SA of a peer.
pub(super) struct Tunnel {
    /// By which pair of sockets its packets go.
    pub(super) link: usize,
    outbound: OutboundSa,
    inbound: InboundSa,
    address: Ipv4Addr,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The number of the request.
    pub(super) number: u32,
    /// The sequence number that it came with.
    pub(super) seq: u64,
}

impl Tunnel {
    /// # Errors
    /// If it is not for IPv4.
    pub(super) fn new(link: usize, child: &Child) -> anyhow::Result<Self> {
        let key = |secret: &[u8]| Key::new(child.suite.cipher(), secret);
        let esn = child.suite.esn;
        let address = match child.local_ts.first().map(|ts| ts.start) {
            Some(IpAddr::V4(address)) => address,
            _ => bail!("the peers need addresses of IPv4 (--local-net)"),
        };
        let outbound = OutboundSa::new(child.spi_out, key(child.key_out.expose())?, esn);
        outbound.extend(1..RESERVATION)?;
        let (selectors, window) = (Selectors::default(), ReplayWindow::new(WINDOW));
        let key = key(child.key_in.expose())?;
        Ok(Self {
            link,
            outbound,
            inbound: InboundSa::new(child.spi_in, key, esn, selectors, window),
            address,
        })
    }

    /// The SPI of what it receives.
    pub(super) fn spi(&self) -> u32 {
        self.inbound.spi()
    }

    /// The next packet: an echo request with this number.
    ///
    /// # Errors
    /// If there are no more sequence numbers.
    pub(super) fn request(&self, to: Ipv4Addr, number: u32) -> anyhow::Result<Vec<u8>> {
        let mut buffer = vec![0; evergate_esp::HEADROOM + LEN + evergate_esp::TAILROOM];
        let inner = evergate_esp::HEADROOM..evergate_esp::HEADROOM + LEN;
        buffer[inner.clone()].copy_from_slice(&request(self.address, to, number));
        let seq = self.outbound.next_seq()?;
        let sealed = self
            .outbound
            .seal(seq, protocol::IPV4, &mut buffer, inner)?;
        Ok(buffer[sealed].to_vec())
    }

    /// Opens a packet; `None` if it is authentic but no answer.
    ///
    /// # Errors
    /// If it is not authentic, or its sequence number is refused.
    pub(super) fn open(&self, packet: &mut [u8]) -> Result<Option<Answer>, OpenError> {
        let opened = self.inbound.open(packet)?;
        let number = answers(&packet[opened.payload]);
        Ok(number.map(|number| Answer {
            number,
            seq: opened.seq,
        }))
    }
}

/// An echo request whose identifier and sequence number are a number.
fn request(from: Ipv4Addr, to: Ipv4Addr, number: u32) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&TOTAL_LEN);
    packet[8] = 64;
    packet[9] = 1;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20] = 8;
    packet[24..28].copy_from_slice(&number.to_be_bytes());
    let (header, message) = packet.split_at_mut(20);
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum);
    packet
}

/// The number of an echo reply.
fn answers(packet: &[u8]) -> Option<u32> {
    let packet: &[u8; LEN] = packet.first_chunk()?;
    let is_reply = packet[0] == 0x45 && packet[9] == 1 && packet[20] == 0;
    is_reply.then(|| u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks_exact(2)
        .map(|w| u16::from_be_bytes([w[0], w[1]]));
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    (!sum).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_packet_and_its_answer_is_known() {
        let (from, to) = (Ipv4Addr::new(10, 128, 0, 1), Ipv4Addr::new(10, 10, 2, 1));
        let mut packet = request(from, to, 70_000);
        let inner = evergate_esp::packet::parse(&packet).unwrap();
        assert_eq!(
            (inner.total_len, inner.selectors.destination),
            (LEN, to.into())
        );
        assert_eq!(checksum(&packet[..20]), [0, 0]);
        assert_eq!(checksum(&packet[20..]), [0, 0]);
        assert_eq!(answers(&packet), None, "it is a request");
        packet[20] = 0;
        assert_eq!(answers(&packet), Some(70_000));
        assert_eq!(answers(&packet[..27]), None);
    }
}
