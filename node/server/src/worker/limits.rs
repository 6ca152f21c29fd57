//! What bounds the load that strangers can cause: half-open IKE SAs, and log lines about them.

use crate::config::Limits;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Counts half-open IKE SAs of the whole process.
#[derive(Debug)]
pub(crate) struct HalfOpenLimits {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// The right to one half-open IKE SA, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    limits: Arc<HalfOpenLimits>,
    source: IpAddr,
}

/// Whether a request for a new IKE SA may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Free,
    /// If it returns a cookie (RFC 7296 §2.6).
    WithCookie,
    /// No: there are too many.
    Full,
}

impl HalfOpenLimits {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counts: Mutex::default(),
        })
    }

    /// How long a half-open IKE SA waits for IKE_AUTH.
    pub(super) fn patience(&self) -> Duration {
        self.limits.half_open_timeout.0
    }

    /// How a request from `source` is to be served.
    pub(super) fn admission(&self, source: IpAddr) -> Admission {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = |limit: usize, count: usize| limit != 0 && count >= limit;
        let of_source = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.total >= self.limits.half_open || reached(self.limits.block_threshold, of_source)
        {
            Admission::Full
        } else if reached(self.limits.cookie_threshold, counts.total)
            || reached(self.limits.cookie_threshold_ip, of_source)
        {
            Admission::WithCookie
        } else {
            Admission::Free
        }
    }

    /// Counts one more, whatever the limits say.
    pub(super) fn permit(self: &Arc<Self>, source: IpAddr) -> Permit {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total += 1;
        *counts.by_source.entry(source).or_default() += 1;
        Permit {
            limits: Arc::clone(self),
            source,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self
            .limits
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Some(n) = counts.by_source.get_mut(&self.source) {
            *n -= 1;
            if *n == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

/// Lets so many events through in a second, and counts the others.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_second: u32,
    state: Mutex<Second>,
}

#[derive(Debug)]
struct Second {
    began: Instant,
    passed: u32,
    suppressed: u64,
}

impl RateLimit {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            state: Mutex::new(Second {
                began: Instant::now(),
                passed: 0,
                suppressed: 0,
            }),
        }
    }

    /// Whether an event may pass; if so, how many could not since the last one that could.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.began) >= Duration::from_secs(1) {
            state.began = now;
            state.passed = 0;
        }
        if state.passed == self.per_second {
            state.suppressed += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cookie: usize, block: usize, all: usize) -> Arc<HalfOpenLimits> {
        HalfOpenLimits::new(Limits {
            cookie_threshold: cookie,
            cookie_threshold_ip: 0,
            block_threshold: block,
            half_open: all,
            ..Limits::default()
        })
    }

    #[test]
    fn cookies_are_demanded_from_the_threshold_on_and_sources_are_blocked_at_theirs() {
        let limits = limits(2, 3, 5);
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut permits = vec![limits.permit(a)];
        assert_eq!(limits.admission(a), Admission::Free);
        permits.push(limits.permit(a));
        assert_eq!(limits.admission(a), Admission::WithCookie);
        permits.push(limits.permit(a));
        assert_eq!(limits.admission(a), Admission::Full);
        assert_eq!(limits.admission(b), Admission::WithCookie);
        permits.push(limits.permit(b));
        permits.push(limits.permit(b));
        assert_eq!(limits.admission([192, 0, 2, 3].into()), Admission::Full);
        permits.clear();
        assert_eq!(limits.admission(a), Admission::Free);
        assert!(limits.counts.lock().unwrap().by_source.is_empty());
    }

    #[test]
    fn one_address_is_asked_for_cookies_sooner_than_all() {
        let limits = HalfOpenLimits::new(Limits::default());
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut permits = Vec::new();
        for _ in 0..3 {
            assert_eq!(limits.admission(a), Admission::Free);
            permits.push(limits.permit(a));
        }
        assert_eq!(limits.admission(a), Admission::WithCookie);
        assert_eq!(limits.admission(b), Admission::Free);
        permits.extend((0..7).map(|_| limits.permit(a)));
        assert_eq!(limits.admission(a), Admission::Full);
        assert_eq!(limits.admission(b), Admission::Free);
    }

    #[test]
    fn zero_switches_thresholds_off() {
        let limits = limits(0, 0, 100);
        let source: IpAddr = [192, 0, 2, 1].into();
        let permits: Vec<Permit> = (0..99).map(|_| limits.permit(source)).collect();
        assert_eq!(limits.admission(source), Admission::Free);
        let _last = limits.permit(source);
        assert_eq!(limits.admission(source), Admission::Full);
        drop(permits);
    }

    #[test]
    fn a_rate_limit_tells_how_much_it_held_back() {
        let limit = RateLimit::new(2);
        let now = Instant::now();
        assert_eq!(
            [
                limit.pass(now),
                limit.pass(now),
                limit.pass(now),
                limit.pass(now)
            ],
            [Some(0), Some(0), None, None]
        );
        let later = now + Duration::from_secs(2);
        assert_eq!(
            [limit.pass(later), limit.pass(later), limit.pass(later)],
            [Some(2), Some(0), None]
        );
    }
}
