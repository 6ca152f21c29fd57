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

/// What is not a time.
const CLOSED: u64 = 0;
const SHUT: u64 = 1;

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
        Self(AtomicU64::new(CLOSED))
    }

    /// Opens it until a time on the boot-time clock, or closes it if that is past. One that was shut stays so.
    pub fn open_until(&self, time: Duration) {
        let until = micros(time).max(SHUT + 1);
        self.set(until);
    }

    /// Closes it now.
    pub fn close(&self) {
        self.set(CLOSED);
    }

    /// Closes it for good, whoever wants to open it at the same moment.
    pub fn shut(&self) {
        self.0.store(SHUT, Ordering::Release);
    }

    /// Whether it was closed for good.
    pub(crate) fn is_shut(&self) -> bool {
        self.0.load(Ordering::Acquire) == SHUT
    }

    fn set(&self, until: u64) {
        let unless_shut = |before| (before != SHUT).then_some(until);
        // Refused means that it is shut.
        let _ = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, unless_shut);
    }

    /// Whether it is open at a time on the boot-time clock.
    pub fn is_open(&self, now: Duration) -> bool {
        let until = self.0.load(Ordering::Acquire);
        until > SHUT && micros(now) < until
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
        gate.open_until(at(150));
        assert!(gate.is_open(at(1)));
        gate.shut();
        assert!(!gate.is_open(Duration::ZERO));
        gate.open_until(at(200));
        gate.close();
        gate.open_until(at(200));
        assert!(!gate.is_open(at(1)), "shut is shut");
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
