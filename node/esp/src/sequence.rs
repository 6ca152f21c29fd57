//! Outbound sequence numbers out of reserved ranges.

use std::{
    collections::VecDeque,
    mem::offset_of,
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Ranges that may wait behind the one in use. One is enough for a background extension; the bound only keeps a
/// caller that extends without end from growing memory.
const MAX_WAITING: usize = 16;

/// One past the last sequence number of an SA without ESN: it must not wrap (RFC 4303 §3.3.3).
const END_32: u64 = 1 << 32;

/// A sequence number that was taken out of a reservation. It can be used for one packet only.
#[derive(Debug, PartialEq, Eq)]
pub struct SequenceNumber(u64);

impl SequenceNumber {
    /// The 64-bit number.
    pub fn get(&self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(number: u64) -> Self {
        Self(number)
    }
}

/// Sequence numbers that follow each other, taken out of a reservation together. Each is yielded once; those that are not are lost, which
/// only makes a gap.
#[derive(Debug, PartialEq, Eq)]
pub struct SequenceNumbers(Range<u64>);

impl Iterator for SequenceNumbers {
    type Item = SequenceNumber;

    fn next(&mut self) -> Option<SequenceNumber> {
        self.0.next().map(SequenceNumber)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for SequenceNumbers {
    fn len(&self) -> usize {
        usize::try_from(self.0.end - self.0.start).unwrap_or(usize::MAX)
    }
}

/// The reservation is used up (or was revoked): nothing may be sent until there is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reserved sequence numbers are used up")]
pub struct Exhausted;

/// Why a range cannot be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// It holds 0, or ends before it starts.
    #[error("{start}..{end} is no range of sequence numbers")]
    Invalid {
        /// First number.
        start: u64,
        /// One past the last number.
        end: u64,
    },
    /// It begins before the end of an earlier range.
    #[error("the range begins at {start}, before {floor}, where the last one ended")]
    Overlap {
        /// First number.
        start: u64,
        /// The lowest acceptable start.
        floor: u64,
    },
    /// Without ESN, numbers end at 2^32 - 1.
    #[error("the range ends beyond the 32-bit space")]
    BeyondSpace,
    /// Too many disjoint ranges wait to be used.
    #[error("too many ranges wait to be used")]
    TooMany,
}

/// Hands out each number of the reserved ranges once, in order, without a lock as long as a range lasts.
#[derive(Debug)]
#[repr(C)] // what each packet needs lies together
pub(crate) struct Allocator {
    /// The next number. Only grows.
    next: AtomicU64,
    /// One past the last number of the range in use; 0 if there is none.
    end: AtomicU64,
    /// One past the last number that can ever be given.
    space: u64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    ranges: VecDeque<Range<u64>>,
    /// Where a new range may begin.
    floor: u64,
}

impl Allocator {
    /// What each packet needs of it lies in so many bytes at its beginning.
    pub(crate) const HOT_LEN: usize = offset_of!(Self, waiting);

    pub(crate) fn new(esn: bool) -> Self {
        Self {
            next: AtomicU64::new(0),
            end: AtomicU64::new(0),
            space: if esn { u64::MAX } else { END_32 },
            waiting: Mutex::new(Waiting {
                ranges: VecDeque::new(),
                floor: 1,
            }),
        }
    }

    pub(crate) fn take(&self) -> Result<SequenceNumber, Exhausted> {
        self.take_some(1)
            .map(|numbers| SequenceNumber(numbers.0.start))
    }

    /// Takes up to `most` numbers, and at least one. They are fewer where a range ends.
    pub(crate) fn take_some(&self, most: u64) -> Result<SequenceNumbers, Exhausted> {
        loop {
            if let Some(numbers) = self.take_from_current(most.max(1)) {
                return Ok(SequenceNumbers(numbers));
            }
            self.advance()?;
        }
    }

    /// Takes from the range in use. `next` is read before `end`: [`Self::advance`] moves `next` first, so whoever
    /// sees the new `end` with an old `next` fails to exchange it.
    fn take_from_current(&self, most: u64) -> Option<Range<u64>> {
        let mut next = self.next.load(Ordering::Acquire);
        loop {
            let end = self.end.load(Ordering::Acquire);
            if next >= end {
                return None;
            }
            let behind = next.saturating_add(most).min(end);
            match self
                .next
                .compare_exchange_weak(next, behind, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(first) => return Some(first..behind),
                Err(current) => next = current,
            }
        }
    }

    /// Goes on to the next waiting range, unless another thread just did.
    fn advance(&self) -> Result<(), Exhausted> {
        let mut waiting = self.lock();
        if self.next.load(Ordering::Acquire) < self.end.load(Ordering::Acquire) {
            return Ok(());
        }
        let range = waiting.ranges.pop_front().ok_or(Exhausted)?;
        self.next.store(range.start, Ordering::Release);
        self.end.store(range.end, Ordering::Release);
        Ok(())
    }

    pub(crate) fn extend(&self, range: Range<u64>) -> Result<(), RangeError> {
        let Range { start, end } = range;
        let mut waiting = self.lock();
        if start == 0 || end < start {
            return Err(RangeError::Invalid { start, end });
        }
        if start < waiting.floor {
            return Err(RangeError::Overlap {
                start,
                floor: waiting.floor,
            });
        }
        if end > self.space {
            return Err(RangeError::BeyondSpace);
        }
        let count = waiting.ranges.len();
        match waiting.ranges.back_mut() {
            _ if start == end => {}
            Some(last) if last.end == start => last.end = end,
            _ if count >= MAX_WAITING => return Err(RangeError::TooMany),
            _ => {
                // Most SAs have one, and there are many.
                if count == 0 {
                    waiting.ranges.reserve_exact(1);
                }
                waiting.ranges.push_back(start..end);
            }
        }
        waiting.floor = end;
        Ok(())
    }

    pub(crate) fn revoke(&self) {
        let mut waiting = self.lock();
        waiting.ranges.clear();
        self.end.store(0, Ordering::Release);
    }

    pub(crate) fn remaining(&self) -> u64 {
        let waiting = self.lock();
        let end = self.end.load(Ordering::Acquire);
        let current = end.saturating_sub(self.next.load(Ordering::Acquire));
        waiting.ranges.iter().fold(current, |sum, range| {
            sum.saturating_add(range.end - range.start)
        })
    }

    pub(crate) fn next(&self) -> u64 {
        let waiting = self.lock();
        let next = self.next.load(Ordering::Acquire);
        if next < self.end.load(Ordering::Acquire) {
            return next;
        }
        waiting
            .ranges
            .front()
            .map_or(waiting.floor, |range| range.start)
    }

    /// A panic elsewhere leaves the ranges whole: no operation on them stops half way.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
