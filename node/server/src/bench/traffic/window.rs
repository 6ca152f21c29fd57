//! What traffic shows of a span of time.

use crate::bench::report::percentile;
use serde::Serialize;
use std::time::Duration;

/// Times of many SAs, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Gaps {
    pub(super) median_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) worst_ms: f64,
}

impl Gaps {
    pub(super) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self {
            median_ms: percentile(&times, 50),
            p99_ms: percentile(&times, 99),
            worst_ms: percentile(&times, 100),
        }
    }
}

/// What became of the requests that were sent in a span of time. The names of its fields are an interface.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Window {
    pub(super) sas: usize,
    pub(super) seconds: f64,
    /// The longest time between two answers, of all SAs, and of those that are looked at closely.
    pub(super) gaps: Gaps,
    pub(super) close_gaps: Gaps,
    /// From the beginning until the first answer to a request that was sent since.
    pub(super) first_answer: Gaps,
    /// The soonest of these.
    pub(super) soonest_ms: f64,
    /// SAs that had no answer at all.
    pub(super) missing: usize,
    pub(super) requests: u64,
    pub(super) unanswered: u64,
    pub(super) unanswered_close: u64,
    /// Since the start of the program: ESP sequence numbers that came twice, and IVs of IKE messages that stood over different ones.
    pub(super) numbers_twice: u64,
    pub(super) ike_ivs_twice: u64,
    pub(super) ivs_unchecked: u64,
    /// Packets that were not authentic, or too old for the replay window.
    pub(super) forged: u64,
    pub(super) late: u64,
}

/// Handshakes that were under way when a process was killed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct HalfOpen {
    /// Neither end may know of the SA yet, or only one.
    pub(super) at_kill: usize,
    pub(super) completed: usize,
    pub(super) failed: u64,
}

/// A line of the report.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    /// `kill` or `window`.
    pub(super) what: &'static str,
    /// When it began, in microseconds of Unix time.
    pub(super) began_us: u64,
    #[serde(flatten)]
    pub(super) window: Window,
    /// IKE SAs that the other end deleted since the start of the program.
    pub(super) deleted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) half_open: Option<HalfOpen>,
    /// The longest time in which this program itself did nothing: gaps are not known better than that.
    pub(super) stall_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_values_that_were_measured() {
        let gaps = Gaps::of((1..=200).rev().map(Duration::from_millis).collect());
        let expected = Gaps {
            median_ms: 100.0,
            p99_ms: 198.0,
            worst_ms: 200.0,
        };
        assert_eq!(gaps, expected);
        assert_eq!(Gaps::of(vec![]).worst_ms, 0.0);
    }
}
