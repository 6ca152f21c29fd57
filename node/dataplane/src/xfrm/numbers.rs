//! Which outbound sequence numbers a state in the kernel uses.
//!
//! **The law.** A state takes the numbers one after the other, one for each packet that it counts, beginning where it was made to begin; and it
//! dies of its hard limit before it counts a packet more than it may. So a state that begins before number `first` and may count `n` packets
//! uses nothing but `first..first + n`, whatever this process does or does not do. One count is one number because no packet of several segments
//! comes to a state of ours: see [`crate::netlink::Netlink::make_xfrm_interface`].
//!
//! A new state with the same keys begins behind all that the one before can have used: where that is not known for sure, behind its limit.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// An extension takes less than this; so many seconds at peak rate must be left when it is asked for.
const LEAD_SECONDS: u64 = 2;

/// The numbers that a state has, or would have if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    /// Where the state begins; below it are only numbers of others, and such that were used.
    first: u64,
    end: u64,
    /// So many must be left, else more is asked for.
    low: u64,
    /// How many the fastest use was, in a second.
    peak: u64,
    measured: (Instant, u64),
}

/// What a state is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// The number before its first.
    pub(super) before: u64,
    /// So many packets, then it tells.
    pub(super) soft: u64,
    /// So many packets, and no more.
    pub(super) hard: u64,
}

/// How a state gets more numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    /// They follow its own: its limits are raised.
    Raise,
    /// They do not: another state takes its place.
    Restart,
}

/// A range that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Impossible;

impl Numbers {
    /// The first numbers. There may be none. Number 0 is never used (RFC 4303 §3.3.3).
    pub(super) fn new(range: Range<u64>, esn: bool, now: Instant) -> Result<Self, Impossible> {
        if range.is_empty() {
            let at = range.start.max(1);
            return Ok(Self::of(at..at, now));
        }
        possible(&range, esn)?;
        Ok(Self::of(range.start.max(1)..range.end, now))
    }

    fn of(range: Range<u64>, now: Instant) -> Self {
        Self {
            first: range.start,
            end: range.end,
            // Nothing is known of its rate yet.
            low: (range.end - range.start) / 2,
            peak: 0,
            measured: (now, 0),
        }
    }

    /// `None` if there are no numbers, and so no state.
    pub(super) fn limits(&self) -> Option<Limits> {
        let hard = self.end - self.first;
        (hard > 0).then(|| Limits {
            before: self.first - 1,
            soft: hard.saturating_sub(self.low).max(1),
            hard,
        })
    }

    /// How many are left after a state has counted so many packets.
    pub(super) fn left(&self, counted: u64) -> u64 {
        (self.end - self.first).saturating_sub(counted)
    }

    /// The number that comes after so many packets; `None` if none is left.
    pub(super) fn next(&self, counted: u64) -> Option<u64> {
        (self.left(counted) > 0).then(|| self.first.saturating_add(counted))
    }

    /// Packets in a second, at most so far.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// The state has counted so many packets by now: how fast that was, and what should therefore be left when more is asked for.
    pub(super) fn measure(&mut self, counted: u64, now: Instant) {
        let (since, before) = self.measured;
        let elapsed = now.saturating_duration_since(since);
        if elapsed < Duration::from_millis(1) {
            return;
        }
        let rate = u128::from(counted.saturating_sub(before)) * 1000 / elapsed.as_millis();
        self.peak = self.peak.max(u64::try_from(rate).unwrap_or(u64::MAX));
        self.measured = (now, counted);
    }

    /// More numbers, which must lie above all that there were.
    pub(super) fn extend(&mut self, range: Range<u64>, esn: bool) -> Result<More, Impossible> {
        possible(&range, esn)?;
        if range.start < self.end {
            return Err(Impossible);
        }
        self.low = (self.peak.saturating_mul(LEAD_SECONDS)).max((range.end - range.start) / 4);
        if range.start > self.end || self.first == self.end {
            (self.first, self.end) = (range.start.max(1), range.end);
            self.measured.1 = 0;
            return Ok(More::Restart);
        }
        self.end = range.end;
        Ok(More::Raise)
    }

    /// Uses nothing of what there was before this range, which was taken by [`Self::extend`]: the state that had it died meanwhile.
    pub(super) fn restart(&mut self, range: &Range<u64>) {
        self.first = range.start.max(1).max(self.first);
        self.measured.1 = 0;
    }

    /// The state is gone; its last number, if that is known for sure. Else all it could have used counts as used.
    pub(super) fn ended(&mut self, last: Option<u64>) {
        let next = last.map_or(self.end, |last| last.saturating_add(1));
        self.first = next.clamp(self.first, self.end);
        self.measured.1 = 0;
    }

    /// None are left: the Child SA sends no more.
    pub(super) fn revoke(&mut self) {
        self.first = self.end;
    }
}

/// That a range is not empty, and within the space of sequence numbers.
fn possible(range: &Range<u64>, esn: bool) -> Result<(), Impossible> {
    let fits = esn || range.end <= 1 << 32;
    (!range.is_empty() && fits && range.end > 1)
        .then_some(())
        .ok_or(Impossible)
}

#[cfg(test)]
#[path = "tests/numbers.rs"]
mod tests;
