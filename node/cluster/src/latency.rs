//! How long commits take: a histogram that costs who counts one atomic step.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Values that are told apart between one power of two and the next: a value is known to an eighth.
const PARTS: usize = 8;
/// Powers of two: up to 2^36 µs, which is most of a day. What takes longer counts as that.
const POWERS: usize = 34;

/// How often something took how long.
#[derive(Debug)]
pub(crate) struct Histogram([AtomicU64; PARTS * POWERS]);

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// How often something took how long, at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies(Vec<(Duration, u64)>);

/// The place of a value: those below 8 have one each, and from there on each power of two has eight.
fn place(micros: u64) -> usize {
    let parts = PARTS as u64;
    if micros < parts {
        return usize::try_from(micros).unwrap_or(0);
    }
    let power = micros.ilog2() - parts.ilog2();
    let part = (micros >> power) - parts;
    let place = (u64::from(power) + 1) * parts + part;
    usize::try_from(place).unwrap_or(usize::MAX)
}

/// The largest value of a place.
fn largest(place: usize) -> u64 {
    let (power, part) = (place / PARTS, (place % PARTS) as u64);
    match power.checked_sub(1) {
        None => part,
        Some(power) => ((PARTS as u64 + part + 1) << power) - 1,
    }
}

impl Histogram {
    /// Counts one.
    pub(crate) fn count(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = place(micros).min(self.0.len() - 1);
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted.
    pub(crate) fn read(&self) -> Latencies {
        let counts = self.0.iter().map(|n| n.load(Ordering::Relaxed));
        let known = counts.enumerate().filter(|(_, n)| *n > 0);
        Latencies(
            known
                .map(|(place, n)| (Duration::from_micros(largest(place)), n))
                .collect(),
        )
    }
}

impl Latencies {
    /// Each value that occurred, rounded up by an eighth at most, and how often it did; ascending.
    pub fn counts(&self) -> &[(Duration, u64)] {
        &self.0
    }

    /// How many there are.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }

    /// The value that so many of a hundred do not exceed, rounded up by an eighth at most; zero if there are none.
    pub fn percentile(&self, percent: u64) -> Duration {
        let rank = u128::from(self.total()) * u128::from(percent);
        let mut below = 0;
        let found = self.0.iter().find(|(_, n)| {
            below += u128::from(*n) * 100;
            below >= rank
        });
        found.map_or(Duration::ZERO, |(took, _)| *took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_place_that_is_not_far_above_it() {
        let powers = (0..60).map(|n| 1_u64 << n);
        let values = (0..5000).chain(powers.flat_map(|p| [p - 1, p, p + p / 3]));
        let mut last = (0, 0);
        let mut sorted: Vec<u64> = values.collect();
        sorted.sort_unstable();
        for value in sorted {
            let top = largest(place(value));
            assert!(value <= top && top <= value + value / 8, "{value}: {top}");
            assert!(place(value) >= last.1, "{value} after {}", last.0);
            last = (value, place(value));
        }
        assert_eq!(largest(PARTS * POWERS - 1), (1 << 36) - 1);
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().percentile(99), Duration::ZERO);
        for n in 1..=100 {
            histogram.count(Duration::from_millis(n));
        }
        histogram.count(Duration::MAX);
        let read = histogram.read();
        assert_eq!(read.total(), 101);
        for (percent, ms) in [(50, 51), (99, 100), (1, 2)] {
            let found = read.percentile(percent);
            let exact = Duration::from_millis(ms);
            assert!(found >= exact && found <= exact * 9 / 8, "{found:?}");
        }
        assert_eq!(read.percentile(100), Duration::from_micros((1 << 36) - 1));
    }
}
