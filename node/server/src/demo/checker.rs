//! Looks at every frame of the internet segment: is an IV used twice, is anything in the clear?
//!
//! Nothing needs to be decrypted for it: two packets of one SA with the same IV must be the same packet, byte for byte. ESP and IKE are
//! taken to carry their IV in the first eight bytes, as all AEADs here do (RFC 4106 §3.1, RFC 7634 §2, RFC 5282 §3.1). Of the 16 bytes of CBC the first
//! eight say as much: equal IVs have them equal, and different ones only by a chance of 2^-64.

use ipnet::Ipv4Net;
use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Stands in every packet of the traffic, and nowhere on the internet segment.
pub(super) const MARKER: [u8; 16] = *b"evergate-cleartx";

/// Bytes of an IV on the wire.
const IV_LEN: usize = 8;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Frames looked at.
    pub(super) frames: u64,
    /// ESP packets, in UDP or not.
    pub(super) esp: u64,
    /// Protected IKE messages.
    pub(super) ike: u64,
    /// Protected packets that repeat an earlier one byte for byte.
    pub(super) repeated: u64,
    /// Different ciphertexts under one key and IV.
    pub(super) iv_reuse: u64,
    /// Frames that show inner addresses or contents.
    pub(super) in_clear: u64,
    /// Frames that are none of IKE, ESP, address resolution and ICMP, so that nothing can be said of them.
    pub(super) unexplained: u64,
    /// IKE SAs that were begun by IKE_SA_INIT.
    pub(super) handshakes: u64,
}

/// One direction of one SA, as far as the outside can tell keys apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Esp {
        to: IpAddr,
        spi: u32,
    },
    Ike {
        spis: (u64, u64),
        by_initiator: bool,
    },
}

/// Looks at one frame after the other.
pub(super) struct Checker {
    inner: Ipv4Net,
    sealed: HashMap<(Key, [u8; IV_LEN]), u64>,
    initiators: HashSet<u64>,
    findings: Findings,
}

/// What a frame carries beyond its addresses.
enum Content<'a> {
    Esp(&'a [u8]),
    Ike(&'a [u8]),
    /// Address resolution, ICMP, keepalives.
    Harmless,
    Unknown,
}

impl Checker {
    /// Addresses in `inner` must not be seen.
    pub(super) fn new(inner: Ipv4Net) -> Self {
        Self {
            inner,
            sealed: HashMap::new(),
            initiators: HashSet::new(),
            findings: Findings::default(),
        }
    }

    /// What was found until now.
    pub(super) fn findings(&self) -> Findings {
        self.findings
    }

    /// A frame that was cut short.
    pub(super) fn truncated(&mut self) {
        self.findings.frames += 1;
        self.findings.unexplained += 1;
    }

    /// Looks at an Ethernet frame.
    pub(super) fn frame(&mut self, frame: &[u8]) {
        self.findings.frames += 1;
        let (to, content) = parse(frame).unwrap_or((None, Content::Unknown));
        if self.shows_inside(frame) {
            self.findings.in_clear += 1;
        }
        let known = match (to, content) {
            (Some(to), Content::Esp(packet)) => self.esp(to, packet),
            (_, Content::Ike(message)) => self.ike(message),
            (_, Content::Harmless) => Some(()),
            _ => None,
        };
        if known.is_none() {
            self.findings.unexplained += 1;
        }
    }

    /// Whether the marker, an ARP or IP header with an inner address, or a pair of inner addresses as in an inner header stands anywhere.
    /// A single address deep in a ciphertext would be there by chance once in a while; a pair would not.
    fn shows_inside(&self, frame: &[u8]) -> bool {
        let address = |at: usize| {
            let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
            Some(self.inner.contains(&Ipv4Addr::from(bytes)))
        };
        let at_fixed_places: &[usize] = match frame.get(12..14) {
            Some([0x08, 0x00]) => &[26, 30],
            Some([0x08, 0x06]) => &[28, 38],
            _ => &[],
        };
        at_fixed_places.iter().any(|at| address(*at) == Some(true))
            || frame.windows(MARKER.len()).any(|w| w == MARKER)
            || self.shows_inner_header(frame)
    }

    /// An IPv4 header without options between two inner addresses: version, length, a protocol that exists here, addresses.
    fn shows_inner_header(&self, frame: &[u8]) -> bool {
        frame.windows(20).skip(14).any(|w| {
            let inner = |at: usize| {
                self.inner
                    .contains(&Ipv4Addr::new(w[at], w[at + 1], w[at + 2], w[at + 3]))
            };
            w[0] == 0x45
                && matches!(w[9], 1 | 6 | 17)
                && inner(12)
                && inner(16)
                && checksum(w) == 0xffff
        })
    }

    /// RFC 4303 §2: SPI, sequence number, IV, ciphertext.
    fn esp(&mut self, to: IpAddr, packet: &[u8]) -> Option<()> {
        let spi = u32::from_be_bytes(packet.get(..4)?.try_into().ok()?);
        let iv = packet.get(8..8 + IV_LEN)?.try_into().ok()?;
        self.findings.esp += 1;
        self.sealed(Key::Esp { to, spi }, iv, packet);
        Some(())
    }

    /// RFC 7296 §3.1, §3.2, §3.14.
    fn ike(&mut self, message: &[u8]) -> Option<()> {
        const IKE_SA_INIT: u8 = 34;
        const SK: u8 = 46;
        const SKF: u8 = 53;
        let header = message.get(..28)?;
        let spi = |at: usize| Some(u64::from_be_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let spis = (spi(0)?, spi(8)?);
        let by_initiator = header[19] & 0x08 != 0;
        if header[18] == IKE_SA_INIT && by_initiator && self.initiators.insert(spis.0) {
            self.findings.handshakes += 1;
        }
        let (mut kind, mut rest) = (header[16], &message[28..]);
        while kind != 0 {
            let length = usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?));
            let body = rest.get(4..length)?;
            if kind == SK || kind == SKF {
                // A fragment has its number and the total before the IV (RFC 7383 §2.5).
                let body = if kind == SKF { body.get(4..)? } else { body };
                let iv = body.get(..IV_LEN)?.try_into().ok()?;
                self.findings.ike += 1;
                self.sealed(Key::Ike { spis, by_initiator }, iv, message);
                return Some(());
            }
            kind = rest[0];
            rest = &rest[length..];
        }
        Some(())
    }

    fn sealed(&mut self, key: Key, iv: [u8; IV_LEN], bytes: &[u8]) {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let digest = hasher.finish();
        match self.sealed.entry((key, iv)) {
            Entry::Vacant(slot) => {
                slot.insert(digest);
            }
            Entry::Occupied(earlier) if *earlier.get() == digest => self.findings.repeated += 1,
            Entry::Occupied(_) => self.findings.iv_reuse += 1,
        }
    }
}

/// Where a frame goes and what is in it. `None` if it ends too early.
fn parse(frame: &[u8]) -> Option<(Option<IpAddr>, Content<'_>)> {
    let payload = frame.get(14..)?;
    match frame[12..14] {
        [0x08, 0x00] => {
            let header_len = usize::from(payload.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?));
            let fragment = u16::from_be_bytes(payload.get(6..8)?.try_into().ok()?) & 0x3fff != 0;
            let to: [u8; 4] = payload.get(16..20)?.try_into().ok()?;
            let body = payload.get(header_len..total)?;
            Some((Some(to.into()), content(*payload.get(9)?, fragment, body)))
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(payload.get(4..6)?.try_into().ok()?));
            let to: [u8; 16] = payload.get(24..40)?.try_into().ok()?;
            let to = IpAddr::from(Ipv6Addr::from(to));
            let mut body = payload.get(40..40 + length)?;
            let mut protocol = *payload.get(6)?;
            // Hop-by-hop options: multicast listener reports have them.
            if protocol == 0 {
                protocol = *body.first()?;
                body = body.get(usize::from(*body.get(1)?) * 8 + 8..)?;
            }
            Some((Some(to), content(protocol, false, body)))
        }
        [0x08, 0x06] => Some((None, Content::Harmless)),
        _ => None,
    }
}

fn content(protocol: u8, fragment: bool, body: &[u8]) -> Content<'_> {
    match protocol {
        _ if fragment => Content::Unknown,
        1 | 58 => Content::Harmless,
        50 => Content::Esp(body),
        17 => udp(body).unwrap_or(Content::Unknown),
        _ => Content::Unknown,
    }
}

/// RFC 3948 §2: on port 4500 four zero bytes stand before IKE, and a single 0xff is a keepalive.
fn udp(datagram: &[u8]) -> Option<Content<'_>> {
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            datagram.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let ports = [port(0)?, port(2)?];
    let body = datagram.get(8..usize::from(port(4)?))?;
    if ports.contains(&500) {
        return Some(Content::Ike(body));
    }
    if !ports.contains(&4500) {
        return None;
    }
    Some(match body {
        [0xff] => Content::Harmless,
        [0, 0, 0, 0, message @ ..] => Content::Ike(message),
        packet => Content::Esp(packet),
    })
}

/// The ones' complement sum of a header; 0xffff if its checksum is right (RFC 791 §3.1).
fn checksum(header: &[u8]) -> u16 {
    let words = header.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
