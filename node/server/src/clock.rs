//! Time and randomness as the core wants them.

use evergate_ike::env::{Entropy, UnixMillis};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Unix time that never goes back: when the system's clock is set back, it goes on by the monotonic clock.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// Unix time of `started`, in milliseconds, as the latest reading of the system's clock has it.
    offset: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            offset: AtomicU64::new(millis(SystemTime::now()).0),
        }
    }

    /// The present.
    pub(crate) fn now(&self) -> UnixMillis {
        let elapsed = self.uptime_millis();
        let offset = millis(SystemTime::now()).0.saturating_sub(elapsed);
        let offset = self.offset.fetch_max(offset, Ordering::Relaxed).max(offset);
        UnixMillis(offset + elapsed)
    }

    /// The instant at which it will be `at`, as far as can be told now.
    pub(crate) fn instant_of(&self, at: UnixMillis) -> Instant {
        // Nobody sleeps longer than this in one go, and it never overflows.
        const LONGEST: Duration = Duration::from_secs(24 * 3600);
        Instant::now() + at.since(self.now()).min(LONGEST)
    }

    /// Milliseconds since the process started.
    pub(crate) fn uptime_millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A time of the system's clock as the core writes it.
pub(crate) fn millis(time: SystemTime) -> UnixMillis {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The random generator of the cryptographic library.
#[derive(Debug)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    /// # Panics
    /// If there is no randomness: nothing may go on then.
    fn fill(&mut self, buf: &mut [u8]) {
        aws_lc_rs::rand::fill(buf).expect("the system has a source of randomness");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_the_system_forward_and_never_back() {
        let clock = Clock::new();
        let real = millis(SystemTime::now());
        assert!(clock.now().since(real) < Duration::from_secs(5));
        clock.offset.fetch_add(3_600_000, Ordering::Relaxed); // as if the system had been an hour ahead
        let ahead = clock.now();
        assert!(ahead.since(real) >= Duration::from_secs(3600));
        assert!(clock.now() >= ahead);
    }
}
