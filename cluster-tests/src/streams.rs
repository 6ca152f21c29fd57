//! IKE and ESP in TCP (RFC 9329), as far as the checker needs: what each direction of a connection carries, put together from segments.

use crate::Result;
use crate::capture::{Frame, packets};
use crate::packet::Body;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;

/// TCP in an IP header.
pub const TCP: u8 = 6;
/// The port of the responders of connections.
const PORT: u16 = 4500;
/// What the originator says first.
const PREFIX: &[u8] = b"IKETCP";

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    /// The number of the byte that comes next.
    next: u32,
    /// What came too soon, by its number.
    early: BTreeMap<u32, Vec<u8>>,
    bytes: Vec<u8>,
    prefix_due: bool,
    /// Nothing can be found in it any more.
    corrupt: bool,
}

/// All connections of a capture.
#[derive(Debug, Default)]
pub struct Streams {
    directions: HashMap<(IpAddr, u16, IpAddr, u16), Direction>,
    /// Streams that are not as the RFC wants them.
    pub malformed: u64,
}

impl Streams {
    /// What this segment completes.
    pub fn take(&mut self, src: IpAddr, dst: IpAddr, segment: &[u8]) -> Vec<Body> {
        let Some((from, to, sequence, flags, data)) = parse(segment) else {
            return Vec::new();
        };
        if from != PORT && to != PORT {
            return Vec::new();
        }
        let key = (src, from, dst, to);
        if flags & SYN != 0 {
            let fresh = Direction {
                next: sequence.wrapping_add(1),
                prefix_due: to == PORT,
                ..Direction::default()
            };
            self.directions.insert(key, fresh);
            return Vec::new();
        }
        let Some(direction) = self.directions.get_mut(&key) else {
            return Vec::new();
        };
        direction.put(sequence, data);
        let before = direction.corrupt;
        let found = direction.messages();
        self.malformed += u64::from(direction.corrupt && !before);
        found
    }
}

const SYN: u8 = 2;

fn parse(segment: &[u8]) -> Option<(u16, u16, u32, u8, &[u8])> {
    let be16 = |at: usize| {
        Some(u16::from_be_bytes(
            segment.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let sequence = u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?);
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let data = segment.get(header..)?;
    Some((be16(0)?, be16(2)?, sequence, *segment.get(13)?, data))
}

impl Direction {
    fn put(&mut self, sequence: u32, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.early.insert(sequence, data.to_vec());
        loop {
            let next = self.next;
            // What was there before counts once.
            let ready = self.early.iter().find_map(|(at, data)| {
                let known = usize::try_from(next.wrapping_sub(*at)).ok()?;
                (known < 1 << 31).then_some((*at, known.min(data.len())))
            });
            let Some((at, known)) = ready else { return };
            let Some(data) = self.early.remove(&at) else {
                return;
            };
            let new = &data[known..];
            self.next = next.wrapping_add(u32::try_from(new.len()).unwrap_or(0));
            self.bytes.extend_from_slice(new);
        }
    }

    fn messages(&mut self) -> Vec<Body> {
        let mut found = Vec::new();
        if self.prefix_due && self.bytes.len() >= PREFIX.len() {
            self.corrupt |= !self.bytes.starts_with(PREFIX);
            self.bytes.drain(..PREFIX.len());
            self.prefix_due = false;
        }
        while !self.prefix_due && !self.corrupt && self.bytes.len() >= 2 {
            let len = usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]));
            if len < 2 {
                self.corrupt = true;
            }
            if self.bytes.len() < len || self.corrupt {
                break;
            }
            let message: Vec<u8> = self.bytes.drain(..len).skip(2).collect();
            found.push(match &message[..] {
                [0xff] => Body::Keepalive,
                [0, 0, 0, 0, ike @ ..] => Body::Ike(ike.to_vec()),
                _ => Body::Esp {
                    encap: true,
                    bytes: message,
                },
            });
        }
        found
    }
}

/// Writes what a capture has in TCP over IPv4 to another, as the datagrams at port 4500 that it would be in UDP: Wireshark knows only those. How many there are.
pub fn as_datagrams(frames: &[Frame], to: &Path) -> Result<usize> {
    let mut streams = Streams::default();
    let mut out = Vec::new();
    out.extend(0xa1b2_c3d4_u32.to_le_bytes());
    out.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(0xffff_u32.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    let mut count = 0;
    for packet in packets(frames) {
        let (Body::Other(TCP, segment), IpAddr::V4(src), IpAddr::V4(dst)) =
            (&packet.body, packet.src, packet.dst)
        else {
            continue;
        };
        for body in streams.take(packet.src, packet.dst, segment) {
            let data = match body {
                Body::Ike(message) => [&[0; 4], &message[..]].concat(),
                Body::Esp { bytes, .. } => bytes,
                Body::Keepalive | Body::Other(..) => continue,
            };
            let udp = u16::try_from(8 + data.len())?;
            let mut frame = vec![2; 12];
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + udp).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
            frame.extend(src.octets().iter().chain(&dst.octets()));
            frame.extend(
                [
                    PORT.to_be_bytes(),
                    PORT.to_be_bytes(),
                    udp.to_be_bytes(),
                    [0; 2],
                ]
                .concat(),
            );
            frame.extend(data);
            let len = u32::try_from(frame.len())?.to_le_bytes();
            out.extend(u32::try_from(packet.at / 1_000_000)?.to_le_bytes());
            out.extend(u32::try_from(packet.at % 1_000_000)?.to_le_bytes());
            out.extend([len, len].concat());
            out.extend(frame);
            count += 1;
        }
    }
    std::fs::write(to, out)?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: u16, to: u16, sequence: u32, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut out = [from.to_be_bytes(), to.to_be_bytes()].concat();
        out.extend(sequence.to_be_bytes());
        out.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        out.extend(data);
        out
    }

    #[test]
    fn segments_make_messages_whatever_their_order() {
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let stream = b"IKETCP\x00\x03\xff\x00\x07\x00\x00\x00\x00\x09\x00\x0b\x00\x00\x01\x00esp56";
        let first = u32::MAX - 3;
        let mut streams = Streams::default();
        let mut found = streams.take(a, b, &segment(50_000, 4500, first, SYN, &[]));
        for (at, len) in [(0, 4), (10, 9), (2, 3), (4, 7), (4, 7), (19, 8)] {
            let sequence = first.wrapping_add(1 + u32::try_from(at).unwrap());
            let data = &stream[at..at + len];
            found.extend(streams.take(a, b, &segment(50_000, 4500, sequence, 0, data)));
        }
        let esp = Body::Esp {
            encap: true,
            bytes: b"\x00\x00\x01\x00esp56".to_vec(),
        };
        assert_eq!(found, [Body::Keepalive, Body::Ike(vec![9]), esp]);
        assert_eq!(streams.malformed, 0);
        streams.take(a, b, &segment(50_001, 4500, 7, SYN, &[]));
        streams.take(a, b, &segment(50_001, 4500, 8, 0, b"GET / "));
        assert_eq!(streams.malformed, 1);
    }
}
