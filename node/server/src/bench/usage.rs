//! What processes use: processor time and memory.

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use std::{fs, time::Duration};

/// Ticks of `/proc/PID/stat` per second: the kernel's interface to programs has had this value on every
/// architecture of today (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// What some processes have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time, user and system, all threads.
    pub(super) cpu: Duration,
    /// Resident memory in KiB.
    pub(super) rss_kib: u64,
}

impl Usage {
    /// The sum over processes.
    ///
    /// # Errors
    /// If one of them has ended, or is not ours to see.
    pub(super) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let read = |file: &str| {
                fs::read_to_string(format!("/proc/{pid}/{file}"))
                    .with_context(|| format!("cannot tell what process {pid} uses"))
            };
            sum.cpu += cpu(&read("stat")?).context("/proc/PID/stat is not as expected")?;
            let rss = rss_kib(&read("status")?);
            ensure!(rss.is_some(), "process {pid} has ended");
            sum.rss_kib += rss.unwrap_or_default();
        }
        Ok(sum)
    }
}

/// Processor time of this process, all threads.
pub(super) fn own_cpu() -> Duration {
    let time = |t: nix::sys::time::TimeVal| {
        let micros = t.tv_sec() * 1_000_000 + t.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|u| time(u.user_time()) + time(u.system_time()))
        .unwrap_or_default()
}

/// utime + stime. The second field is the program's name in parentheses and may hold anything, parentheses too.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let total = ticks()?.checked_add(ticks()?)?;
    Some(Duration::from_millis(total * 1000 / TICKS_PER_SECOND))
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 0 0";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let before = own_cpu();
        let mut x = 1_u64;
        while own_cpu() == before {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let usage = Usage::of(&[std::process::id()]).unwrap();
        assert!(usage.rss_kib > 100, "{usage:?}");
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(Usage::of(&[u32::MAX]).is_err());
    }
}
