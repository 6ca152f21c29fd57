//! The anti-replay window (RFC 4303 §3.4.3, Appendix A).

use evergate_crypto::prefetch;
use std::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

/// Why a sequence number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Replayed {
    /// It was seen before.
    #[error("the sequence number was received before")]
    Duplicate,
    /// It is left of the window: whether it was seen is not known.
    #[error("the sequence number is older than the window")]
    TooOld,
    /// Zero is never sent.
    #[error("the sequence number is zero")]
    Zero,
}

/// Which sequence numbers were received. `size` numbers up to the right edge are remembered one by one; all
/// before them are refused.
///
/// Several threads may use it at once, without a lock. The ring is made of words, each of which says for which 32 numbers it stands (its
/// *block*) and which of them were received; a word changes in one atomic step. The right edge is moved before a word goes on to a later
/// block. So whoever finds another block in a word, and then an edge that still has the own number in the window, knows that the other
/// block is an old one. And whoever sets a mark has found it unset in the very word that it is in: no number is accepted twice, however
/// threads overtake each other.
#[derive(Debug)]
#[repr(C)] // the edges lie with what is before them
pub struct ReplayWindow {
    right_edge: AtomicU64,
    /// All up to here are refused.
    floor: AtomicU64,
    ring: Ring,
}

/// Numbers of one word.
const BLOCK: u64 = 32;
/// Words of a window of the usual size. One more than it spans in whole blocks: it may begin in the middle of one.
const USUAL: usize = ReplayWindow::DEFAULT_SIZE / 32 + 1;

/// The words of a window. That of the usual size is no memory of its own, which would have to be waited for.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is the usual one, and to be where it is"
)]
enum Ring {
    Usual([AtomicU64; USUAL]),
    Other(Box<[AtomicU64]>),
}

impl Ring {
    fn new(words: usize) -> Self {
        if words == USUAL {
            return Self::Usual(std::array::from_fn(|_| AtomicU64::new(0)));
        }
        Self::Other((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    fn len(&self) -> usize {
        match self {
            Self::Usual(words) => words.len(),
            Self::Other(words) => words.len(),
        }
    }

    /// The word for a block, which later blocks will need too.
    fn word(&self, block: u64) -> &AtomicU64 {
        // That the one length is known makes no division of it.
        let (words, place) = match self {
            Self::Usual(words) => (&words[..], block % USUAL as u64),
            Self::Other(words) => (&words[..], block % words.len() as u64),
        };
        &words[usize::try_from(place).expect("below the length")]
    }
}

/// What becomes of a word, of this block or an older one, when `seq` is marked. It bears its block modulo 2^32: one that is so much older
/// looks the same, and up to 32 numbers might be refused; never the other way round.
fn mark(word: u64, seq: u64) -> Result<u64, Replayed> {
    let [tag, marks] = halves(word);
    let (block, mark) = (halves(seq / BLOCK)[1], 1 << (seq % BLOCK));
    let marks = if tag == block { marks } else { 0 };
    if marks & mark != 0 {
        return Err(Replayed::Duplicate);
    }
    Ok(u64::from(block) << 32 | u64::from(marks | mark))
}

impl ReplayWindow {
    /// What each packet needs of it lies in so many bytes at its beginning; and one word of the ring.
    pub(crate) const EDGES_LEN: usize = offset_of!(Self, ring);
    /// The size that the configuration has by default.
    pub const DEFAULT_SIZE: usize = 1024;
    /// The smallest size.
    pub const MIN_SIZE: usize = 64;
    /// The largest size.
    pub const MAX_SIZE: usize = 4096;

    /// An empty window. `size` is brought into `MIN_SIZE..=MAX_SIZE` and rounded up to a multiple of 64.
    pub fn new(size: usize) -> Self {
        let size = size.clamp(Self::MIN_SIZE, Self::MAX_SIZE);
        let blocks = size.next_multiple_of(64) as u64 / BLOCK;
        Self {
            right_edge: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            ring: Ring::new(usize::try_from(blocks).expect("the size is bounded") + 1),
        }
    }

    /// How many numbers are remembered one by one.
    pub fn size(&self) -> usize {
        (self.ring.len() - 1) * 32
    }

    /// The highest number received (or resumed from); 0 before the first.
    pub fn right_edge(&self) -> u64 {
        self.right_edge.load(Ordering::Acquire)
    }

    /// Has the place fetched where the next number will most probably be marked.
    pub(crate) fn warm(&self) {
        prefetch(self.word(self.right_edge()));
    }

    /// After a takeover: refuses everything at or below `edge`, seen or not. Never moves backwards.
    pub fn resume_from(&self, edge: u64) {
        self.floor.fetch_max(edge, Ordering::AcqRel);
        self.right_edge.fetch_max(edge, Ordering::AcqRel);
    }

    /// Whether `seq` could be accepted. Changes nothing: the packet is not authenticated yet.
    ///
    /// # Errors
    /// See [`Replayed`].
    pub fn check(&self, seq: u64) -> Result<(), Replayed> {
        let word = self.word(seq).load(Ordering::Acquire);
        self.check_edges(seq)?;
        mark(word, seq).map(|_| ())
    }

    fn check_edges(&self, seq: u64) -> Result<(), Replayed> {
        if seq == 0 {
            return Err(Replayed::Zero);
        }
        let edge = self.right_edge();
        if edge.saturating_sub(seq) >= self.size() as u64 {
            return Err(Replayed::TooOld);
        }
        if seq <= self.floor.load(Ordering::Acquire) {
            return Err(Replayed::Duplicate);
        }
        Ok(())
    }

    /// Marks `seq`, of an authentic packet, as received, after checking it again.
    ///
    /// # Errors
    /// See [`Replayed`]; another thread may have been faster with a copy.
    pub fn update(&self, seq: u64) -> Result<(), Replayed> {
        if seq > self.right_edge() {
            self.right_edge.fetch_max(seq, Ordering::AcqRel);
        }
        let word = self.word(seq);
        let mut before = word.load(Ordering::Acquire);
        loop {
            // After the word was read: see above.
            self.check_edges(seq)?;
            let marked = mark(before, seq)?;
            match word.compare_exchange_weak(before, marked, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(now) => before = now,
            }
        }
    }

    /// The 64-bit number that the low half `low` stands for with ESN (RFC 4303 Appendix A2.2).
    ///
    /// # Errors
    /// If it would lie before the beginning.
    pub fn infer(&self, low: u32) -> Result<u64, Replayed> {
        let [high, edge_low] = halves(self.right_edge());
        let span = u32::try_from(self.size() - 1).expect("the size is bounded");
        let bottom = edge_low.wrapping_sub(span);
        let high = match (edge_low >= span, low >= bottom) {
            // The window lies in one subspace: below its bottom only the next subspace can be meant.
            (true, true) => Some(high),
            (true, false) => high.checked_add(1),
            // The window spans two: its older part lies in the one before.
            (false, true) => high.checked_sub(1),
            (false, false) => Some(high),
        };
        let high = high.ok_or(Replayed::TooOld)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn word(&self, seq: u64) -> &AtomicU64 {
        self.ring.word(seq / BLOCK)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "taking halves apart")]
fn halves(seq: u64) -> [u32; 2] {
    [(seq >> 32) as u32, seq as u32]
}

#[cfg(test)]
mod tests;
