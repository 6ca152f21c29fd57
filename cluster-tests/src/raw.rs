//! Datagrams made by hand, and random numbers that repeat.

use crate::Result;
use crate::lab::Lab;
use std::net::UdpSocket;

/// A UDP socket on `host` that sends what it is told.
pub fn socket(lab: &Lab, host: &str, bind: &str) -> Result<UdpSocket> {
    lab.on(host, || Ok(UdpSocket::bind(bind)?))
}

/// A small generator (SplitMix64), so that a failing drill can be repeated.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `length` random bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8))
            .flat_map(|_| self.next_u64().to_be_bytes())
            .collect();
        bytes.truncate(length);
        bytes
    }
}
