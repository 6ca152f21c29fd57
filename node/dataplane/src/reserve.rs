//! When a Child SA asks for more sequence numbers.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Rates are measured over this time.
const WINDOW_MS: u64 = 100;
/// An extension takes less than this; so many seconds at peak rate must be left when it is asked for.
const LEAD_SECONDS: u64 = 2;

/// Counts what is left of a reservation and how fast it goes.
#[derive(Debug, Default)]
pub(crate) struct Reserve {
    left: AtomicI64,
    /// A quarter of the first range: the least low-water mark.
    floor: AtomicU64,
    told: AtomicBool,
    window_start: AtomicU64,
    window_count: AtomicU64,
    peak: AtomicU64,
}

impl Reserve {
    /// More numbers are there.
    pub(crate) fn extended(&self, count: u64) {
        if self.floor.load(Ordering::Relaxed) == 0 {
            self.floor.store(count.div_ceil(4), Ordering::Relaxed);
        }
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let add = |left: i64| Some(left.saturating_add(count));
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        self.told.store(false, Ordering::Release);
    }

    /// So many were used at `now_ms`. Yields what is left when that is to be told, now.
    pub(crate) fn used(&self, count: u64, now_ms: u64) -> Option<u64> {
        let used = i64::try_from(count).unwrap_or(i64::MAX);
        let left = self
            .left
            .fetch_sub(used, Ordering::Relaxed)
            .saturating_sub(used)
            .max(0)
            .cast_unsigned();
        self.measure(count, now_ms);
        (left < self.low_water()).then_some(left)?;
        self.should_tell().then_some(left)
    }

    /// None was left for a packet. Yields whether that is to be told, now.
    pub(crate) fn should_tell(&self) -> bool {
        !self.told.swap(true, Ordering::AcqRel)
    }

    /// It could not be told: try again with the next packet.
    pub(crate) fn not_told(&self) {
        self.told.store(false, Ordering::Release);
    }

    /// Packets per second, in the fastest tenth of a second so far.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Below this, more is needed.
    pub(crate) fn low_water(&self) -> u64 {
        self.floor
            .load(Ordering::Relaxed)
            .max(self.peak().saturating_mul(LEAD_SECONDS))
    }

    /// Relaxed: a packet more or less in a window matters to nobody.
    fn measure(&self, used: u64, now_ms: u64) {
        let start = self.window_start.load(Ordering::Relaxed);
        let count = self.window_count.fetch_add(used, Ordering::Relaxed) + used;
        let elapsed = now_ms.saturating_sub(start);
        if elapsed < WINDOW_MS {
            return;
        }
        self.peak
            .fetch_max(count.saturating_mul(1000) / elapsed, Ordering::Relaxed);
        self.window_start.store(now_ms, Ordering::Relaxed);
        self.window_count.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_once_below_a_quarter_until_extended() {
        let reserve = Reserve::default();
        reserve.extended(100);
        let mut told = Vec::new();
        for i in 0..100 {
            // One a second: the peak alone would ask for less.
            told.extend(reserve.used(1, i * 1000));
        }
        assert_eq!(told, [24]);
        reserve.extended(100);
        let told: Vec<_> = (100..200)
            .filter_map(|i| reserve.used(1, i * 1000))
            .collect();
        assert_eq!(told, [24]);
    }

    #[test]
    fn a_fast_one_tells_two_seconds_ahead() {
        let reserve = Reserve::default();
        reserve.extended(65_536);
        let told = (0..65_536).find_map(|i| reserve.used(1, i / 20));
        assert!(reserve.peak() >= 19_000, "{}", reserve.peak());
        let told = told.expect("it must tell");
        assert!((38_000..=41_000).contains(&told), "{told}");
    }

    #[test]
    fn many_at_a_time_are_no_different() {
        let reserve = Reserve::default();
        reserve.extended(1000);
        let told: Vec<_> = (0..20).filter_map(|i| reserve.used(50, i * 1000)).collect();
        assert_eq!(told, [200]);
    }

    #[test]
    fn what_was_not_told_is_told_again() {
        let reserve = Reserve::default();
        reserve.extended(4);
        for _ in 0..3 {
            assert_eq!(reserve.used(1, 0), None);
        }
        assert_eq!(reserve.used(1, 0), Some(0));
        reserve.not_told();
        assert!(reserve.should_tell());
        assert!(!reserve.should_tell());
    }
}
