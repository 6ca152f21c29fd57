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
        let words = size.clamp(Self::MIN_SIZE, Self::MAX_SIZE).div_ceil(64);
        Self {
            right_edge: 0,
            bitmap: vec![0; words].into(),
        }
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
        if edge > self.right_edge {
            self.right_edge = edge;
            self.bitmap.fill(u64::MAX);
            return;
        }
        let oldest = self.right_edge.saturating_sub(self.size() as u64 - 1);
        (oldest..=edge).for_each(|seq| self.set(seq));
    }

    /// Whether `seq` could be accepted. Changes nothing: the packet is not authenticated yet.
    ///
    /// # Errors
    /// See [`Replayed`].
    pub fn check(&self, seq: u64) -> Result<(), Replayed> {
        if seq == 0 {
            return Err(Replayed::Zero);
        }
        if seq > self.right_edge {
            return Ok(());
        }
        if self.right_edge - seq >= self.size() as u64 {
            return Err(Replayed::TooOld);
        }
        if self.is_set(seq) {
            return Err(Replayed::Duplicate);
        }
        Ok(())
    }

    /// Marks `seq`, of an authentic packet, as received, after checking it again.
    ///
    /// # Errors
    /// See [`Replayed`]; another thread may have been faster with a copy.
    pub fn update(&mut self, seq: u64) -> Result<(), Replayed> {
        self.check(seq)?;
        if seq > self.right_edge {
            self.advance(seq);
        }
        self.set(seq);
        Ok(())
    }

    /// The 64-bit number that the low half `low` stands for with ESN (RFC 4303 Appendix A2.2).
    ///
    /// # Errors
    /// If it would lie before the beginning.
    pub fn infer(&self, low: u32) -> Result<u64, Replayed> {
        let [high, edge_low] = halves(self.right_edge);
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

    /// Moves the right edge and forgets the bits that the new numbers take over.
    fn advance(&mut self, edge: u64) {
        if edge - self.right_edge >= self.size() as u64 {
            self.bitmap.fill(0);
        } else {
            for seq in self.right_edge + 1..=edge {
                let (word, bit) = self.position(seq);
                self.bitmap[word] &= !bit;
            }
        }
        self.right_edge = edge;
    }

    fn set(&mut self, seq: u64) {
        let (word, bit) = self.position(seq);
        self.bitmap[word] |= bit;
    }

    fn is_set(&self, seq: u64) -> bool {
        let (word, bit) = self.position(seq);
        self.bitmap[word] & bit != 0
    }

    /// The bitmap is a ring: a number's place does not change while it is in the window.
    fn position(&self, seq: u64) -> (usize, u64) {
        let place = seq % (self.size() as u64);
        (
            usize::try_from(place / 64).expect("below the size"),
            1 << (place % 64),
        )
    }
}

#[expect(clippy::cast_possible_truncation, reason = "taking halves apart")]
fn halves(seq: u64) -> [u32; 2] {
    [(seq >> 32) as u32, seq as u32]
}

#[cfg(test)]
mod tests;
