//! The verdict over a capture: no IV twice, nothing in the clear, and
//! retransmissions that repeat bytes.
//!
//! Ciphers are not told apart. Eight bytes are taken for the IV: all of it in
//! counter modes, the first half in CBC, where two IVs have it in common only
//! if they are equal (or by a chance of 2^-64 for each pair). Where no IV is on
//! the wire (RFC 8750) these bytes are ciphertext; there the sequence number is
//! the IV, and it is looked at for every packet anyway.

use crate::packet::{Body, IkeHeader, Packet, Parser};
use crate::streams::{Streams, TCP};
use crate::wire::{Exchange, Kind};
use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// Stands in every datagram of the traffic generator, and nowhere on the wire.
pub const MARKER: &[u8] = b"evergate-drill-plaintext";

/// One key, as far as the outside can tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Esp(IpAddr, IpAddr, u32),
    Ike(IpAddr, (u64, u64), bool),
}

/// The exchange that is not protected (RFC 7296 §3.1).
const IKE_SA_INIT: u8 = 34;

/// Number and total of a fragment of an IKE message.
type Place = Option<(u16, u16)>;

/// What an IKE message, or a fragment of one, is known by: key, exchange, whether it is a response, Message ID, and which fragment.
type Name = (Key, u8, bool, u32, Place);

/// What was found. Empty lists mean that the invariants held.
#[derive(Debug, Default)]
pub struct Findings {
    /// Frames looked at.
    pub frames_checked: u64,
    /// ESP packets by (source, destination, SPI).
    pub esp: BTreeMap<(IpAddr, IpAddr, u32), u64>,
    /// Messages and packets in TCP.
    pub in_tcp: u64,
    /// ESP packets in UDP (or TCP), and plain.
    pub esp_in_udp: u64,
    /// See `esp_in_udp`.
    pub esp_plain: u64,
    /// Protected IKE messages whose IV was compared.
    pub ike_sealed: u64,
    /// Messages by (source, exchange type, is a response), retransmissions too.
    pub exchanges: BTreeMap<(IpAddr, u8, bool), u64>,
    /// Those of them that are fragments (RFC 7383).
    pub ike_fragments: BTreeMap<(IpAddr, u8, bool), u64>,
    /// When each was on the wire, in microseconds of Unix time.
    pub times: Vec<(u64, IpAddr, u8, bool)>,
    /// Two different ciphertexts under one key and IV.
    pub iv_reuse: Vec<String>,
    /// An ESP sequence number sent twice with different contents.
    pub sequence_reuse: Vec<String>,
    /// Messages under one Message ID with different bytes.
    pub changed_retransmissions: Vec<String>,
    /// Messages that were repeated byte for byte.
    pub retransmissions: u64,
    /// Inner addresses or contents in the clear.
    pub leaks: Vec<String>,
    /// Frames or IKE messages that cannot be parsed.
    pub malformed: u64,
    /// Fragments of outer packets.
    pub fragments: u64,
}

/// Looks at one frame after the other.
#[derive(Default)]
pub struct Checker {
    parser: Parser,
    streams: Streams,
    ivs: HashMap<(Key, [u8; 8]), (u64, usize)>,
    sequences: HashMap<(Key, u32), (u64, usize)>,
    messages: HashMap<Name, (u64, usize)>,
    /// Hosts that send what they like.
    hostile: BTreeSet<IpAddr>,
    findings: Findings,
}

impl Checker {
    /// A checker that leaves aside what `hostile` addresses sent.
    #[must_use]
    pub fn new(hostile: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            hostile: hostile.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Takes the next frame of the capture.
    pub fn frame(&mut self, at: u64, frame: &[u8]) {
        self.findings.frames_checked += 1;
        if contains(frame, MARKER) {
            self.findings
                .leaks
                .push(format!("contents in the clear at {at}"));
        }
        if let Some(packet) = self.parser.frame(at, frame) {
            self.packet(&packet);
        }
    }

    /// The verdict.
    #[must_use]
    pub fn finish(mut self) -> Findings {
        self.findings.malformed += self.parser.malformed + self.streams.malformed;
        self.findings.fragments = self.parser.fragments;
        self.findings
    }

    fn packet(&mut self, packet: &Packet) {
        if [packet.src, packet.dst].into_iter().any(is_inner) {
            let (src, dst) = (packet.src, packet.dst);
            self.findings
                .leaks
                .push(format!("{src} to {dst} in the clear"));
        }
        if self.hostile.contains(&packet.src) {
            return;
        }
        match &packet.body {
            Body::Esp { encap, bytes } => self.esp(packet, *encap, bytes),
            Body::Ike(message) => self.ike(packet, message),
            Body::Other(TCP, segment) => {
                for body in self.streams.take(packet.src, packet.dst, segment) {
                    self.findings.in_tcp += 1;
                    let (at, src, dst) = (packet.at, packet.src, packet.dst);
                    self.packet(&Packet { at, src, dst, body });
                }
            }
            Body::Keepalive | Body::Other(..) => {}
        }
    }

    fn esp(&mut self, packet: &Packet, encap: bool, bytes: &[u8]) {
        let (Some(spi), Some(sequence), Some(iv)) = (
            word(bytes, 0),
            word(bytes, 4),
            bytes.get(8..16).and_then(|iv| iv.try_into().ok()),
        ) else {
            self.findings.malformed += 1;
            return;
        };
        let key = Key::Esp(packet.src, packet.dst, spi);
        *self
            .findings
            .esp
            .entry((packet.src, packet.dst, spi))
            .or_default() += 1;
        if encap {
            self.findings.esp_in_udp += 1;
        } else {
            self.findings.esp_plain += 1;
        }
        self.iv(key, iv, &bytes[16..]);
        if differs(&mut self.sequences, (key, sequence), bytes) {
            let text = format!("{key:?}: sequence number {sequence} twice");
            self.findings.sequence_reuse.push(text);
        }
    }

    fn ike(&mut self, packet: &Packet, message: &[u8]) {
        let Some(header) = IkeHeader::parse(message) else {
            self.findings.malformed += 1;
            return;
        };
        let count = (packet.src, header.exchange, header.response);
        *self.findings.exchanges.entry(count).or_default() += 1;
        self.findings
            .times
            .push((packet.at, count.0, count.1, count.2));
        let place = header.fragment(message);
        if place.is_some() {
            *self.findings.ike_fragments.entry(count).or_default() += 1;
        }
        let key = Key::Ike(packet.src, header.spis, header.initiator);
        if let Some((iv, ciphertext)) = header.sealed(message) {
            self.findings.ike_sealed += 1;
            self.iv(key, iv, ciphertext);
        } else if !header.response || header.spis.1 == 0 || header.exchange != IKE_SA_INIT {
            // An IKE_SA_INIT request comes again with a cookie or another
            // group (RFC 7296 §2.6, §1.2), and each gets its own answer. What
            // is not protected later is not said by the IKE SA (§2.21.4).
            return;
        }
        let known = self.messages.len();
        let name = (key, header.exchange, header.response, header.id, place);
        if differs(&mut self.messages, name, message) {
            if !header.is_empty_informational(message) {
                let text = format!("{name:?} changed its bytes");
                self.findings.changed_retransmissions.push(text);
            }
        } else if self.messages.len() == known {
            self.findings.retransmissions += 1;
        }
    }

    fn iv(&mut self, key: Key, iv: [u8; 8], ciphertext: &[u8]) {
        if differs(&mut self.ivs, (key, iv), ciphertext) {
            let text = format!("{key:?}: IV {iv:02x?} with two ciphertexts");
            self.findings.iv_reuse.push(text);
        }
    }
}

impl Findings {
    /// Fails unless every invariant held over a capture that saw something.
    pub fn verdict(&self) -> crate::Result<()> {
        anyhow::ensure!(self.frames_checked > 0, "the capture is empty");
        anyhow::ensure!(
            self.iv_reuse.is_empty(),
            "IV reuse: {:?}",
            first(&self.iv_reuse)
        );
        anyhow::ensure!(
            self.sequence_reuse.is_empty(),
            "sequence numbers: {:?}",
            first(&self.sequence_reuse)
        );
        anyhow::ensure!(
            self.changed_retransmissions.is_empty(),
            "retransmissions: {:?}",
            first(&self.changed_retransmissions)
        );
        anyhow::ensure!(self.leaks.is_empty(), "leaks: {:?}", first(&self.leaks));
        anyhow::ensure!(self.malformed == 0, "{} malformed messages", self.malformed);
        Ok(())
    }

    /// How many such messages `from` sent, retransmissions too.
    #[must_use]
    pub fn count(&self, from: &str, exchange: Exchange, kind: Kind) -> u64 {
        let Ok(from) = from.parse::<IpAddr>() else {
            return 0;
        };
        let key = (from, exchange as u8, kind == Kind::Response);
        self.exchanges.get(&key).copied().unwrap_or(0)
    }

    /// How many fragments of such messages `from` sent, retransmissions too.
    #[must_use]
    pub fn fragments_of(&self, from: &str, exchange: Exchange, kind: Kind) -> u64 {
        let Ok(from) = from.parse::<IpAddr>() else {
            return 0;
        };
        let key = (from, exchange as u8, kind == Kind::Response);
        self.ike_fragments.get(&key).copied().unwrap_or(0)
    }

    /// How many IKE_SA_INIT and IKE_AUTH messages, by anyone, were on the wire
    /// after `at` (microseconds of Unix time).
    #[must_use]
    pub fn authentications_after(&self, at: u64) -> usize {
        let initial = |exchange: u8| exchange == 34 || exchange == 35;
        self.times
            .iter()
            .filter(|t| t.0 > at && initial(t.2))
            .count()
    }

    /// ESP packets that `from` sent.
    #[must_use]
    pub fn esp_from(&self, from: &str) -> u64 {
        let from: Option<IpAddr> = from.parse().ok();
        let sent = self
            .esp
            .iter()
            .filter(|((src, _, _), _)| Some(*src) == from);
        sent.map(|(_, count)| count).sum()
    }
}

fn first(list: &[String]) -> &[String] {
    &list[..list.len().min(5)]
}

/// Remembers `bytes` under `name`; true if other bytes were there before.
fn differs<K: Eq + Hash>(seen: &mut HashMap<K, (u64, usize)>, name: K, bytes: &[u8]) -> bool {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let digest = (hasher.finish(), bytes.len());
    match seen.entry(name) {
        Entry::Occupied(known) => *known.get() != digest,
        Entry::Vacant(free) => {
            free.insert(digest);
            false
        }
    }
}

fn is_inner(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Ethernet frame with an IPv4 packet.
    fn ipv4(
        src: [u8; 4],
        dst: [u8; 4],
        protocol: u8,
        id: u16,
        fragment: u16,
        data: &[u8],
    ) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(20 + data.len()).unwrap().to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(src);
        frame.extend(dst);
        frame.extend(data);
        frame
    }

    const A: [u8; 4] = [192, 0, 2, 1];
    const B: [u8; 4] = [192, 0, 2, 2];

    fn udp(port: u16, data: &[u8]) -> Vec<u8> {
        let mut out = port.to_be_bytes().to_vec();
        out.extend(port.to_be_bytes());
        out.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
        out.extend([0, 0]);
        out.extend(data);
        out
    }

    fn esp(sequence: u32, iv: u64, data: &[u8]) -> Vec<u8> {
        let mut out = 0xc0ff_ee01_u32.to_be_bytes().to_vec();
        out.extend(sequence.to_be_bytes());
        out.extend(iv.to_be_bytes());
        out.extend(data);
        out
    }

    fn ike(exchange: u8, flags: u8, id: u32, next_in_sk: u8, iv: u64, data: &[u8]) -> Vec<u8> {
        let mut out = vec![1; 16];
        out.extend([46, 0x20, exchange, flags]);
        out.extend(id.to_be_bytes());
        out.extend(
            u32::try_from(28 + 4 + 8 + data.len())
                .unwrap()
                .to_be_bytes(),
        );
        out.extend([next_in_sk, 0]);
        out.extend(u16::try_from(12 + data.len()).unwrap().to_be_bytes());
        out.extend(iv.to_be_bytes());
        out.extend(data);
        out
    }

    fn check(frames: &[Vec<u8>]) -> Findings {
        let mut checker = Checker::default();
        for frame in frames {
            checker.frame(0, frame);
        }
        checker.finish()
    }

    #[test]
    fn a_planted_iv_reuse_in_esp_is_found() {
        let plain = |esp: &[u8]| ipv4(A, B, 50, 0, 0, esp);
        let wrapped = |esp: &[u8]| ipv4(A, B, 17, 0, 0, &udp(4500, esp));
        for wrap in [&plain as &dyn Fn(&[u8]) -> Vec<u8>, &wrapped] {
            let good = [
                wrap(&esp(1, 1, b"one")),
                wrap(&esp(2, 2, b"two")),
                wrap(&esp(1, 1, b"one")),
            ];
            assert!(check(&good).verdict().is_ok());
            let bad = [wrap(&esp(1, 1, b"one")), wrap(&esp(9, 1, b"two"))];
            assert_eq!(check(&bad).iv_reuse.len(), 1);
            assert!(check(&bad).verdict().is_err());
            let bad = [wrap(&esp(1, 1, b"one")), wrap(&esp(1, 2, b"one"))];
            assert_eq!(check(&bad).sequence_reuse.len(), 1);
        }
    }

    #[test]
    fn a_planted_iv_reuse_is_found_whatever_the_length_of_the_iv() {
        // CBC: 16 bytes of IV, the first eight of which are enough.
        let cbc = |sequence, iv: [u64; 2], data: &[u8]| {
            let text = [&iv[1].to_be_bytes(), data].concat();
            ipv4(A, B, 50, 0, 0, &esp(sequence, iv[0], &text))
        };
        let good = [cbc(1, [5, 6], b"one"), cbc(2, [7, 6], b"two")];
        assert!(check(&good).verdict().is_ok());
        let bad = [cbc(1, [5, 6], b"one"), cbc(2, [5, 6], b"two")];
        assert_eq!(check(&bad).iv_reuse.len(), 1);
        // Implicit: the sequence number is the IV, and what follows is ciphertext.
        let implicit = |sequence: u32, data: &[u8]| {
            let head = [&0xc0ff_ee01_u32.to_be_bytes(), &sequence.to_be_bytes()[..]].concat();
            ipv4(A, B, 50, 0, 0, &[&head, data].concat())
        };
        let good = [implicit(1, b"first one"), implicit(2, b"second one")];
        assert!(check(&good).verdict().is_ok());
        let bad = [implicit(1, b"first one"), implicit(1, b"second one")];
        assert_eq!(check(&bad).sequence_reuse.len(), 1);
    }

    #[test]
    fn directions_and_spis_have_their_own_ivs() {
        let there = ipv4(A, B, 50, 0, 0, &esp(1, 1, b"one"));
        let back = ipv4(B, A, 50, 0, 0, &esp(1, 1, b"two"));
        assert!(check(&[there, back]).verdict().is_ok());
    }

    #[test]
    fn a_planted_iv_reuse_in_ike_is_found() {
        let send = |message: &[u8]| {
            let mut data = vec![0; 4];
            data.extend(message);
            ipv4(A, B, 17, 0, 0, &udp(4500, &data))
        };
        let first = ike(36, 0x08, 5, 33, 7, b"request");
        assert!(check(&[send(&first), send(&first)]).verdict().is_ok());
        let again = ike(36, 0x08, 6, 33, 7, b"another");
        assert_eq!(check(&[send(&first), send(&again)]).iv_reuse.len(), 1);
        let changed = ike(36, 0x08, 5, 33, 8, b"request");
        let found = check(&[send(&first), send(&changed)]);
        assert_eq!(
            (found.iv_reuse.len(), found.changed_retransmissions.len()),
            (0, 1)
        );
    }

    #[test]
    fn an_empty_informational_may_be_sealed_afresh_but_not_under_an_old_iv() {
        let send = |message: &[u8]| ipv4(A, B, 17, 0, 0, &udp(500, message));
        let fresh = [
            send(&ike(37, 0x20, 5, 0, 7, b"tag-1")),
            send(&ike(37, 0x20, 5, 0, 8, b"tag-2")),
        ];
        assert!(check(&fresh).verdict().is_ok());
        let stale = [
            send(&ike(37, 0x20, 5, 0, 7, b"tag-1")),
            send(&ike(37, 0x20, 5, 0, 7, b"tag-2")),
        ];
        assert_eq!(check(&stale).iv_reuse.len(), 1);
    }

    #[test]
    fn fragments_are_put_together_before_they_are_checked() {
        let whole = esp(1, 1, &[7; 48]);
        let parts = |whole: &[u8], id| {
            vec![
                ipv4(A, B, 50, id, 0x2000, &whole[..32]),
                ipv4(A, B, 50, id, 4, &whole[32..]),
            ]
        };
        let mut frames = parts(&whole, 1);
        frames.extend(parts(&esp(2, 1, &[8; 48]), 2));
        let found = check(&frames);
        assert_eq!((found.fragments, found.iv_reuse.len()), (4, 1));
    }

    #[test]
    fn what_is_in_the_clear_is_found() {
        let inner = ipv4(
            [10, 10, 1, 1],
            [10, 10, 2, 10],
            17,
            0,
            0,
            &udp(7000, b"hello"),
        );
        assert_eq!(check(&[inner]).leaks.len(), 1);
        let contents = ipv4(A, B, 50, 0, 0, &esp(1, 1, MARKER));
        assert_eq!(check(&[contents]).leaks.len(), 1);
    }

    #[test]
    fn hostile_hosts_are_left_aside() {
        let mut checker = Checker::new([IpAddr::from(A)]);
        checker.frame(0, &ipv4(A, B, 50, 0, 0, &esp(1, 1, b"one")));
        checker.frame(0, &ipv4(A, B, 50, 0, 0, &esp(1, 1, b"two")));
        assert!(checker.finish().verdict().is_ok());
    }
}
