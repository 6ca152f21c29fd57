//! ESP (RFC 4303) in tunnel and transport mode, without I/O, clock or randomness of its own.
//!
//! Outbound: [`packet::parse`] → [`Policies::lookup`] → [`OutboundSa::next_seq`] → [`OutboundSa::seal`].
//! Inbound: [`spi_of`] → [`Sad::get`] → [`InboundSa::open`] → [`tunnel::decapsulate`] → [`InboundSa::admits`].
//! In transport mode [`transport::covered`] says what to seal, and [`transport::restore`] takes the place of decapsulation.
//!
//! The initialisation vector is a function of key and sequence number and nothing else, and sequence numbers come only out of
//! reserved ranges, so that two members that hold disjoint ranges can never use one twice.

mod checksum;
pub mod fragment;
pub mod icmp;
mod inbound;
pub mod mss;
pub mod mtu;
mod outbound;
pub mod packet;
pub mod reassembly;
mod replay;
pub mod segment;
mod selector;
mod sequence;
mod spd;
mod table;
pub mod transport;
pub mod tunnel;
pub mod udp;

pub use evergate_crypto::{
    Cipher, Encryption, Integrity, Key, KeyError, MAX_ICV_LEN, MAX_IV_LEN, prefetch, prefetch_some,
};
pub use inbound::*;
pub use outbound::*;
pub use replay::*;
pub use selector::*;
pub use sequence::*;
pub use spd::*;

/// Length of the ESP header, SPI and low half of the sequence number, in bytes.
pub const ESP_HEADER_LEN: usize = 8;
/// Free bytes that [`OutboundSa::seal`] needs at most before the inner packet: header and IV.
pub const HEADROOM: usize = ESP_HEADER_LEN + MAX_IV_LEN;
/// Free bytes that [`OutboundSa::seal`] needs at most behind the inner packet: padding, Pad Length, Next Header, ICV.
pub const TAILROOM: usize = evergate_crypto::MAX_BLOCK - 1 + 2 + MAX_ICV_LEN;

/// What payload, padding, Pad Length and Next Header together are a multiple of: words at least (RFC 4303 §2.4).
const fn alignment(block: usize) -> usize {
    if block > 4 { block } else { 4 }
}

/// IP protocol numbers that ESP deals with.
pub mod protocol {
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv4 inside IP.
    pub const IPV4: u8 = 4;
    /// IPv6 inside IP.
    pub const IPV6: u8 = 41;
    /// ESP.
    pub const ESP: u8 = 50;
    /// No next header: in ESP, a dummy packet (RFC 4303 §2.6).
    pub const NO_NEXT_HEADER: u8 = 59;
}

/// The SPI of an ESP packet, if there are enough bytes for one.
pub fn spi_of(packet: &[u8]) -> Option<u32> {
    packet.first_chunk().map(|spi| u32::from_be_bytes(*spi))
}
