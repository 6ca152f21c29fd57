//! The anti-replay window (RFC 4303 §3.4.3, Appendix A).

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayWindow {
    right_edge: u64,
    bitmap: Box<[u64]>,
}

impl ReplayWindow {
    /// The size that the configuration has by default.
    pub const DEFAULT_SIZE: usize = 1024;
    /// The smallest size.
    pub const MIN_SIZE: usize = 64;
    /// The largest size.
    pub const MAX_SIZE: usize = 4096;

    /// An empty window. `size` is brought into `MIN_SIZE..=MAX_SIZE` and rounded up to a multiple of 64.
    pub fn new(size: usize) -> Self {
        let _ = size;
        todo!()
    }

    /// How many numbers are remembered one by one.
    pub fn size(&self) -> usize {
        self.bitmap.len() * 64
    }

    /// The highest number received (or resumed from); 0 before the first.
    pub fn right_edge(&self) -> u64 {
        self.right_edge
    }

    /// After a takeover: refuses everything at or below `edge`, seen or not. Never moves backwards.
    pub fn resume_from(&mut self, edge: u64) {
        let _ = edge;
        todo!()
    }

    /// Whether `seq` could be accepted. Changes nothing: the packet is not authenticated yet.
    ///
    /// # Errors
    /// See [`Replayed`].
    pub fn check(&self, seq: u64) -> Result<(), Replayed> {
        let _ = seq;
        todo!()
    }

    /// Marks `seq`, of an authentic packet, as received, after checking it again.
    ///
    /// # Errors
    /// See [`Replayed`]; another thread may have been faster with a copy.
    pub fn update(&mut self, seq: u64) -> Result<(), Replayed> {
        let _ = seq;
        todo!()
    }

    /// The 64-bit number that the low half `low` stands for with ESN (RFC 4303 Appendix A2.2).
    ///
    /// # Errors
    /// If it would lie before the beginning.
    pub fn infer(&self, low: u32) -> Result<u64, Replayed> {
        let _ = low;
        todo!()
    }
}
