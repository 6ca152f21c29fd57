//! What lets packets of a virtual gateway out only while its lease runs.

use nix::time::{ClockId, clock_gettime};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Open until a time, which a renewed lease moves on. All Child SAs of a virtual gateway share one.
///
/// It is a check before a send, and so no fence: a process may be stopped in between. What then comes too late, the dead-man
/// switch holds back.
#[derive(Debug)]
pub struct Gate(AtomicU64);

/// Time since the machine started, also while it was suspended (`CLOCK_BOOTTIME`). Means nothing on another machine.
pub fn boot_time() -> Duration {
    // The clock is there on every kernel that this runs on; without it nothing would ever be sent.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

impl Default for Gate {
    /// One that is always open: for gateways that nobody else can have.
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Gate {
    /// One that is closed.
    pub fn closed() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Opens it until a time on the boot-time clock, or closes it if that is past.
    pub fn open_until(&self, time: Duration) {
        self.0.store(micros(time), Ordering::Release);
    }

    /// Closes it now.
    pub fn close(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Whether it is open at a time on the boot-time clock.
    pub fn is_open(&self, now: Duration) -> bool {
        micros(now) < self.0.load(Ordering::Acquire)
    }
}

/// Rounded down: a lease ends rather too early than too late.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_open_until_its_time_and_no_longer() {
        let gate = Gate::closed();
        let at = Duration::from_millis;
        assert!(!gate.is_open(Duration::ZERO));
        gate.open_until(at(100));
        assert!(gate.is_open(at(99)));
        assert!(!gate.is_open(at(100)));
        gate.open_until(at(150));
        gate.close();
        assert!(!gate.is_open(at(1)));
        assert!(Gate::default().is_open(boot_time()));
        assert!(
            !Gate::default().is_open(Duration::MAX),
            "no clock, no packet"
        );
    }

    #[test]
    fn boot_time_goes_on() {
        let before = boot_time();
        std::thread::sleep(Duration::from_millis(2));
        assert!(boot_time() > before);
    }
}
