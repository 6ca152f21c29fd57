//! Packets for which there is no Child SA: the kernel tells of them.
//!
//! It does so once for each flow, and then makes the flow wait for an SA until it forgets (`net.core.xfrm_acq_expires`, 30 s). That is too long where
//! a tunnel was closed or its set-up has failed. So the trap gets another number from time to time, which makes it another one for the kernel.

use std::time::Duration;

/// A flow is told of again after this time.
const AGAIN: Duration = Duration::from_secs(5);
/// The numbers of traps: there are more than the kernel remembers.
const FIRST: u32 = 0xE5FF_F000;
const COUNT: u64 = 0x1000;

/// The number of the trap at a time on the boot-time clock: another process has others.
pub(super) fn number(now: Duration) -> u32 {
    let turn = now.as_secs() / AGAIN.as_secs() % COUNT;
    FIRST + u32::try_from(turn).unwrap_or(0)
}

/// Whether this is a trap of ours.
pub(super) fn is_trap(reqid: u32) -> bool {
    u64::from(reqid.wrapping_sub(FIRST)) < COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_a_trap_of_its_own() {
        let at = |s| number(Duration::from_secs(s));
        assert_eq!(at(0), at(4));
        assert_ne!(at(4), at(5));
        for s in [0, 5, 1 << 40] {
            assert!(is_trap(at(s)));
        }
        assert!(!is_trap(0) && !is_trap(1) && !is_trap(0xE600_0001));
    }
}
