//! What crossed the internet segment, parsed as far as the checker needs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One datagram on the segment, fragments put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Microseconds since the epoch.
    pub at: u64,
    /// Outer source.
    pub src: IpAddr,
    /// Outer destination.
    pub dst: IpAddr,
    /// What it carries.
    pub body: Body,
}

/// The contents of a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// An IKE message, without the non-ESP marker.
    Ike(Vec<u8>),
    /// An ESP packet from the SPI on; `encap` when it came in UDP.
    Esp {
        /// In UDP, RFC 3948.
        encap: bool,
        /// From the SPI on.
        bytes: Vec<u8>,
    },
    /// A NAT keepalive.
    Keepalive,
    /// Any other protocol, with its payload.
    Other(u8, Vec<u8>),
}

#[derive(Default)]
struct Parts {
    pieces: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
}

/// Reassembles and classifies frames in the order of their capture.
#[derive(Default)]
pub struct Parser {
    parts: HashMap<(IpAddr, IpAddr, u32, u8), Parts>,
    /// Frames that are no IP and no known neighbour protocol, or that lie.
    pub malformed: u64,
    /// Fragments seen.
    pub fragments: u64,
}

const ESP: u8 = 50;
const UDP: u8 = 17;

impl Parser {
    /// The datagram that this frame completes, if it does.
    pub fn frame(&mut self, at: u64, frame: &[u8]) -> Option<Packet> {
        let ethertype = be16(frame, 12)?;
        let ip = frame.get(14..)?;
        let parsed = match ethertype {
            0x0800 => self.ipv4(ip),
            0x86dd => self.ipv6(ip),
            0x0806 => return None,
            _ => {
                self.malformed += 1;
                return None;
            }
        };
        let (src, dst, protocol, payload) = parsed?;
        let Some(body) = classify(protocol, payload) else {
            self.malformed += 1;
            return None;
        };
        Some(Packet { at, src, dst, body })
    }

    fn ipv4(&mut self, ip: &[u8]) -> Option<(IpAddr, IpAddr, u8, Vec<u8>)> {
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let total = usize::from(be16(ip, 2)?);
        let src = IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?));
        let dst = IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?));
        let (protocol, payload) = (*ip.get(9)?, ip.get(header..total)?);
        let field = be16(ip, 6)?;
        let (offset, more) = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
        let id = u32::from(be16(ip, 4)?);
        let payload = self.join((src, dst, id, protocol), offset, more, payload)?;
        Some((src, dst, protocol, payload))
    }

    fn ipv6(&mut self, ip: &[u8]) -> Option<(IpAddr, IpAddr, u8, Vec<u8>)> {
        let length = usize::from(be16(ip, 4)?);
        let src = IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?));
        let dst = IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?));
        let (mut next, mut rest) = (*ip.get(6)?, ip.get(40..40 + length)?);
        // Hop-by-hop, routing and destination options carry nothing of ours.
        while matches!(next, 0 | 43 | 60) {
            let skip = (usize::from(*rest.get(1)?) + 1) * 8;
            (next, rest) = (*rest.first()?, rest.get(skip..)?);
        }
        if next != 44 {
            return Some((src, dst, next, rest.to_vec()));
        }
        let field = be16(rest, 2)?;
        let id = u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?);
        let protocol = *rest.first()?;
        let (offset, more) = (usize::from(field & 0xfff8), field & 1 != 0);
        let payload = self.join((src, dst, id, protocol), offset, more, rest.get(8..)?)?;
        Some((src, dst, protocol, payload))
    }

    fn join(
        &mut self,
        key: (IpAddr, IpAddr, u32, u8),
        offset: usize,
        more: bool,
        payload: &[u8],
    ) -> Option<Vec<u8>> {
        if offset == 0 && !more {
            return Some(payload.to_vec());
        }
        self.fragments += 1;
        let parts = self.parts.entry(key).or_default();
        if !more {
            parts.total = Some(offset + payload.len());
        }
        parts.pieces.push((offset, payload.to_vec()));
        let total = parts.total?;
        parts.pieces.sort();
        let mut whole = Vec::new();
        for (at, piece) in &parts.pieces {
            if *at == whole.len() {
                whole.extend_from_slice(piece);
            }
        }
        if whole.len() != total {
            return None;
        }
        self.parts.remove(&key);
        Some(whole)
    }
}

fn classify(protocol: u8, payload: Vec<u8>) -> Option<Body> {
    match protocol {
        ESP => Some(Body::Esp {
            encap: false,
            bytes: payload,
        }),
        UDP => {
            let ports = [be16(&payload, 0)?, be16(&payload, 2)?];
            let data = payload.get(8..)?;
            if ports.contains(&500) {
                Some(Body::Ike(data.to_vec()))
            } else if ports.contains(&4500) {
                Some(match data {
                    [0xff] => Body::Keepalive,
                    [0, 0, 0, 0, ike @ ..] => Body::Ike(ike.to_vec()),
                    esp => Body::Esp {
                        encap: true,
                        bytes: esp.to_vec(),
                    },
                })
            } else {
                Some(Body::Other(UDP, data.to_vec()))
            }
        }
        other => Some(Body::Other(other, payload)),
    }
}

/// The fixed header of an IKE message, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IkeHeader {
    /// SPIs of initiator and responder.
    pub spis: (u64, u64),
    /// The first payload's type.
    pub next: u8,
    /// Exchange type.
    pub exchange: u8,
    /// The sender is the original initiator.
    pub initiator: bool,
    /// A response.
    pub response: bool,
    /// Message ID.
    pub id: u32,
}

/// The type of the SK payload, and of SKF (RFC 7383).
const SK: [u8; 2] = [46, 53];

impl IkeHeader {
    /// The header of a message whose length field is right.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| {
            Some(u64::from_be_bytes(
                message.get(at..at + 8)?.try_into().ok()?,
            ))
        };
        let u32_at = |at: usize| {
            Some(u32::from_be_bytes(
                message.get(at..at + 4)?.try_into().ok()?,
            ))
        };
        if usize::try_from(u32_at(24)?).ok()? != message.len() {
            return None;
        }
        Some(Self {
            spis: (u64_at(0)?, u64_at(8)?),
            next: message[16],
            exchange: message[18],
            initiator: message[19] & 0x08 != 0,
            response: message[19] & 0x20 != 0,
            id: u32_at(20)?,
        })
    }

    /// Its payloads are encrypted.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        SK.contains(&self.next)
    }

    /// The 8-byte IV and what follows it, of a protected message.
    #[must_use]
    pub fn sealed<'a>(&self, message: &'a [u8]) -> Option<([u8; 8], &'a [u8])> {
        let start = if self.next == SK[0] { 32 } else { 36 };
        if !self.is_protected() {
            return None;
        }
        Some((
            message.get(start..start + 8)?.try_into().ok()?,
            &message[start + 8..],
        ))
    }

    /// Fragment Number and Total Fragments, of a fragment (RFC 7383 §2.5).
    #[must_use]
    pub fn fragment(&self, message: &[u8]) -> Option<(u16, u16)> {
        (self.next == SK[1]).then_some(())?;
        Some((be16(message, 32)?, be16(message, 34)?))
    }

    /// An INFORMATIONAL whose protected payload is empty.
    #[must_use]
    pub fn is_empty_informational(&self, message: &[u8]) -> bool {
        self.exchange == 37 && self.next == SK[0] && message.get(28) == Some(&0)
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
