//! Inbound SAs: opening (RFC 4303 §3.4), and their look-up.

use crate::{
    ESP_HEADER_LEN, Key, ReplayWindow, Replayed, Selectors, outbound::Aad, packet::PacketSelectors,
    protocol, selector::First, table::Table,
};
use evergate_crypto::prefetch_some;
use std::{mem::offset_of, ops::Range, sync::Arc};

/// Why an ESP packet was dropped. Counting is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is too short, or of another SPI.
    #[error("the packet is malformed")]
    Malformed,
    /// Its sequence number is refused.
    #[error(transparent)]
    Replayed(#[from] Replayed),
    /// It was not sealed with this key, or was changed on its way.
    #[error("the integrity check failed")]
    Integrity,
    /// It is authentic, but its padding is not what RFC 4303 §2.4 demands.
    #[error("the padding is invalid")]
    Padding,
}

/// What an ESP packet held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the payload is: [`protocol::IPV4`], [`protocol::IPV6`], or [`protocol::NO_NEXT_HEADER`].
    pub next_header: u8,
    /// Where the payload is in the buffer.
    pub payload: Range<usize>,
    /// The sequence number in full.
    pub seq: u64,
}

impl Opened {
    /// Whether this is a dummy packet, to be dropped without a word (RFC 4303 §2.6).
    pub fn is_dummy(&self) -> bool {
        self.next_header == protocol::NO_NEXT_HEADER
    }
}

/// An SA that we receive with. Cheap to make: no key schedule before the first packet.
#[derive(Debug)]
#[repr(C)] // what each packet needs lies together
pub struct InboundSa {
    spi: u32,
    esn: bool,
    key: Key,
    /// What most packets match.
    first: Option<First>,
    selectors: Arc<Selectors>,
    /// Last, as it is long.
    window: ReplayWindow,
}

impl InboundSa {
    /// An SA with the given replay window; to continue another member's, use [`ReplayWindow::resume_from`] first.
    pub fn new(
        spi: u32,
        key: Key,
        esn: bool,
        selectors: impl Into<Arc<Selectors>>,
        window: ReplayWindow,
    ) -> Self {
        let selectors = selectors.into();
        Self {
            spi,
            esn,
            key,
            first: First::of(&selectors),
            selectors,
            window,
        }
    }

    /// Our SPI.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether sequence numbers have 64 bits.
    pub fn esn(&self) -> bool {
        self.esn
    }

    /// What inner packets must match.
    pub fn selectors(&self) -> &Arc<Selectors> {
        &self.selectors
    }

    /// The highest sequence number received.
    pub fn right_edge(&self) -> u64 {
        self.window.right_edge()
    }

    /// Refuses everything at or below `edge` from now on.
    pub fn resume_from(&self, edge: u64) {
        self.window.resume_from(edge);
    }

    /// Whether an inner packet may come through this SA (RFC 4301 §5.2, step 4).
    pub fn admits(&self, packet: &PacketSelectors) -> bool {
        let first = self.first.as_ref();
        first.is_some_and(|first| first.match_inbound(packet))
            || self.selectors.match_inbound(packet)
    }

    /// Has the memory of this fetched, as far as each packet needs it.
    pub fn fetch(&self) {
        prefetch_some(self, offset_of!(Self, window) + ReplayWindow::EDGES_LEN);
    }

    /// Has all else fetched that opening a packet needs, so that they are in the cache when that is done soon. A processor fetches those of several
    /// SAs at a time, which it cannot while it decrypts.
    pub fn warm(&self) {
        self.key.warm();
        self.window.warm();
    }

    /// Opens an ESP packet (from its SPI on, without a UDP header) in place.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(&self, packet: &mut [u8]) -> Result<Opened, OpenError> {
        let shape = self.key.shape();
        let parsed = Parsed::new(packet).filter(|parsed| parsed.spi == self.spi);
        let parsed = parsed.ok_or(OpenError::Malformed)?;
        let head_len = ESP_HEADER_LEN + shape.iv_len;
        let text_len = packet.len().checked_sub(head_len + shape.icv_len);
        let text_len = text_len.ok_or(OpenError::Malformed)?;
        if text_len < 2 || text_len & (shape.block - 1) != 0 {
            return Err(OpenError::Malformed);
        }
        let seq = self.check(parsed.low)?;
        let aad = Aad::new(self.spi, seq, self.esn);
        let (header, rest) = packet.split_at_mut(ESP_HEADER_LEN);
        let (iv, sealed) = rest.split_at_mut(shape.iv_len);
        self.key
            .open(seq, &aad.associated(header), iv, sealed)
            .map_err(|_| OpenError::Integrity)?;
        // A copy may have been faster in another thread: the window decides again.
        self.window.update(seq)?;
        let (payload_len, next_header) = strip(&sealed[..text_len]).ok_or(OpenError::Padding)?;
        Ok(Opened {
            next_header,
            payload: head_len..head_len + payload_len,
            seq,
        })
    }

    /// The whole sequence number, if the window would take it.
    fn check(&self, low: u32) -> Result<u64, Replayed> {
        let window = &self.window;
        let seq = if self.esn {
            window.infer(low)?
        } else {
            u64::from(low)
        };
        window.check(seq)?;
        Ok(seq)
    }
}

/// The ESP header.
struct Parsed {
    spi: u32,
    low: u32,
}

impl Parsed {
    fn new(packet: &[u8]) -> Option<Self> {
        let (spi, rest) = packet.split_first_chunk()?;
        let (low, _) = rest.split_first_chunk()?;
        Some(Self {
            spi: u32::from_be_bytes(*spi),
            low: u32::from_be_bytes(*low),
        })
    }
}

/// Length of the payload and the Next Header of decrypted bytes, if the padding is 1, 2, 3, … (RFC 4303 §2.4).
fn strip(text: &[u8]) -> Option<(usize, u8)> {
    let (rest, &[pad_len, next_header]) = text.split_last_chunk()?;
    let payload_len = rest.len().checked_sub(usize::from(pad_len))?;
    let regular = (1..=pad_len)
        .zip(&rest[payload_len..])
        .all(|(expected, &byte)| expected == byte);
    regular.then_some((payload_len, next_header))
}

/// So many packets are looked at ahead at a time: more than memory can answer for at once, and few enough for the nearest caches.
pub const AHEAD: usize = 32;

/// Inbound SAs by SPI. `S` is what the data plane keeps for one. Looking one up takes no lock.
pub struct Sad<S = InboundSa> {
    by_spi: Table<(u32, Arc<S>)>,
}

impl<S> Default for Sad<S> {
    fn default() -> Self {
        Self {
            by_spi: Table::default(),
        }
    }
}

/// SPIs are chosen here: nobody else has a say in what meets in one place. All their bits count.
fn hash(spi: u32) -> u32 {
    spi.wrapping_mul(0x9e37_79b1).rotate_left(16)
}

impl<S> Sad<S> {
    /// Adds an SA; yields the one that had this SPI before.
    pub fn insert(&self, spi: u32, sa: Arc<S>) -> Option<Arc<S>> {
        let is = |(other, _): &(u32, Arc<S>)| *other == spi;
        let item = (spi, sa);
        let before = self.by_spi.replace(hash(spi), item.clone(), is);
        if before.is_none() {
            self.by_spi.insert_before(hash(spi), item, |_| true);
        }
        before.map(|(_, sa)| sa)
    }

    /// The SA with this SPI.
    pub fn get(&self, spi: u32) -> Option<Arc<S>> {
        let is = |(other, sa): &(u32, Arc<S>)| (*other == spi).then(|| Arc::clone(sa));
        self.by_spi.find(hash(spi), is)
    }

    /// Has what leads to these SAs fetched into the cache, for all at once: with many SAs, most of the time goes by until memory has answered. Then `fetch` is to
    /// do the same for their own memory, and at last `warm` for what they point to. At most [`AHEAD`] are looked at.
    pub fn look_ahead(&self, spis: &[u32], fetch: impl Fn(&S), warm: impl Fn(&S)) {
        let mut hashes = [0; AHEAD];
        let spis = &spis[..spis.len().min(AHEAD)];
        for (hash_of, spi) in hashes.iter_mut().zip(spis) {
            *hash_of = hash(*spi);
        }
        // Equal hashes are equal SPIs.
        self.by_spi.look_ahead(
            &hashes[..spis.len()],
            |(_, sa)| fetch(sa),
            |(_, sa)| warm(sa),
        );
    }

    /// Removes the SA with this SPI.
    pub fn remove(&self, spi: u32) -> Option<Arc<S>> {
        let removed = self.by_spi.remove(hash(spi), |(other, _)| *other == spi);
        removed.map(|(_, sa)| sa)
    }

    /// Shows all SAs, in no particular order.
    pub fn for_each(&self, mut look: impl FnMut(u32, &Arc<S>)) {
        self.by_spi.for_each(|(spi, sa)| look(*spi, sa));
    }

    /// How many SAs there are.
    pub fn len(&self) -> usize {
        self.by_spi.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
