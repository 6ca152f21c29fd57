//! What a benchmark found.

use super::usage::Usage;
use evergate_ike::sa::Failure;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// Kinds of failure that are told apart: a responder could send ever new ones.
const MAX_REASONS: usize = 32;

/// What one thread counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) started: u64,
    pub(super) failures: BTreeMap<String, u64>,
    pub(super) retransmits: u64,
    pub(super) restarts: u64,
    pub(super) send_errors: u64,
    pub(super) lost: u64,
    pub(super) deleted: u64,
    encapsulated: u64,
    latencies: Vec<Duration>,
    last: Option<Instant>,
}

impl Tally {
    /// A handshake that began then is complete.
    pub(super) fn succeed(&mut self, began: Instant, encapsulated: bool) {
        let now = Instant::now();
        self.latencies.push(now - began);
        self.last = Some(now);
        self.encapsulated += u64::from(encapsulated);
    }

    /// How long handshakes took that are complete, in the order in which they were.
    pub(super) fn latencies(&self) -> &[Duration] {
        &self.latencies
    }

    /// Handshakes that failed.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// A handshake failed.
    pub(super) fn fail(&mut self, reason: &str) {
        let known = self.failures.contains_key(reason) || self.failures.len() < MAX_REASONS;
        let reason = if known { reason } else { "other" };
        *self.failures.entry(reason.to_owned()).or_default() += 1;
    }

    /// Takes in what another thread counted.
    pub(super) fn add(&mut self, other: Self) {
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
        self.started += other.started;
        self.retransmits += other.retransmits;
        self.restarts += other.restarts;
        self.send_errors += other.send_errors;
        self.lost += other.lost;
        self.deleted += other.deleted;
        self.encapsulated += other.encapsulated;
        self.latencies.extend(other.latencies);
        self.last = self.last.max(other.last);
    }
}

/// The name of a failure: stable, and without what differs from peer to peer.
pub(super) fn reason(failure: &Failure) -> String {
    let name = match failure {
        Failure::NoIkeProposal => "no_ike_proposal",
        Failure::NoChildProposal => "no_child_proposal",
        Failure::UnknownIdentity { .. } => "unknown_identity",
        Failure::BadAuth(_) => "bad_auth",
        Failure::BadAuthMethod(_) => "bad_auth_method",
        Failure::NoSelectors => "no_selectors",
        Failure::NoAddress(_) => "no_address",
        Failure::PeerRefused(kind) => return format!("refused:{kind}"),
        Failure::Invalid(_) => "invalid_message",
        Failure::Malformed(_) => "malformed_message",
        Failure::Silent => "silent",
        _ => "other",
    };
    name.to_owned()
}

/// What was asked for and what was measured around the load.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) against: String,
    pub(super) count: u32,
    pub(super) concurrency: usize,
    pub(super) threads: usize,
    pub(super) proposals: Vec<String>,
    pub(super) esp_proposals: Vec<String>,
    pub(super) began: Instant,
    pub(super) own_cpu: Duration,
    /// The responder before and after, if it is on this machine.
    pub(super) responder: Option<(Usage, Usage)>,
}

/// The report. The names of its fields are an interface.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Address and port of the responder.
    against: String,
    /// Handshakes that were asked for.
    count: u32,
    /// Handshakes under way at a time.
    concurrency: usize,
    threads: usize,
    proposals: Vec<String>,
    esp_proposals: Vec<String>,
    /// IKE SAs with a Child SA that were set up.
    pub(super) established: u64,
    failed: u64,
    /// Not even begun when the time was over.
    not_started: u64,
    /// Failed handshakes by reason.
    failures: BTreeMap<String, u64>,
    /// From the first message to the last success.
    seconds: f64,
    handshakes_per_second: f64,
    latency_ms: Latency,
    /// Requests of handshakes that were sent again.
    retransmits: u64,
    /// First messages that were made anew, with a cookie or another group.
    restarts: u64,
    send_errors: u64,
    /// IKE SAs that found a NAT, or what pretends to be one.
    encapsulated: u64,
    /// IKE SAs that the responder deleted.
    lost: u64,
    /// IKE SAs that were deleted afterwards.
    deleted: u64,
    own_cpu_seconds: f64,
    own_cpu_ms_per_handshake: f64,
    responder: Option<Responder>,
}

/// From the first message of a handshake to the verified response of IKE_AUTH, in milliseconds.
#[derive(Debug, Serialize)]
struct Latency {
    median: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What the handshakes cost the responder.
#[derive(Debug, Serialize)]
struct Responder {
    cpu_seconds: f64,
    cpu_ms_per_handshake: f64,
    handshakes_per_cpu_second: f64,
    rss_kib_before: u64,
    rss_kib_after: u64,
    rss_kib_per_sa: f64,
}

impl Report {
    pub(super) fn new(measured: Measured, mut tally: Tally) -> Self {
        tally.latencies.sort_unstable();
        let established = tally.latencies.len() as u64;
        let took = tally.last.map_or(Duration::ZERO, |t| t - measured.began);
        let (seconds, own) = (took.as_secs_f64(), measured.own_cpu.as_secs_f64());
        let n = established as f64;
        Self {
            against: measured.against,
            count: measured.count,
            concurrency: measured.concurrency,
            threads: measured.threads,
            proposals: measured.proposals,
            esp_proposals: measured.esp_proposals,
            established,
            failed: tally.failed(),
            not_started: u64::from(measured.count).saturating_sub(tally.started),
            failures: tally.failures,
            seconds,
            handshakes_per_second: ratio(n, seconds),
            latency_ms: Latency {
                median: percentile(&tally.latencies, 50),
                p90: percentile(&tally.latencies, 90),
                p99: percentile(&tally.latencies, 99),
                max: percentile(&tally.latencies, 100),
            },
            retransmits: tally.retransmits,
            restarts: tally.restarts,
            send_errors: tally.send_errors,
            encapsulated: tally.encapsulated,
            lost: tally.lost,
            deleted: tally.deleted,
            own_cpu_seconds: own,
            own_cpu_ms_per_handshake: ratio(own * 1000.0, n),
            responder: measured
                .responder
                .map(|(before, after)| Responder::new(before, after, n)),
        }
    }
}

impl Responder {
    fn new(before: Usage, after: Usage, handshakes: f64) -> Self {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        Self {
            cpu_seconds: cpu,
            cpu_ms_per_handshake: ratio(cpu * 1000.0, handshakes),
            handshakes_per_cpu_second: ratio(handshakes, cpu),
            rss_kib_before: before.rss_kib,
            rss_kib_after: after.rss_kib,
            rss_kib_per_sa: ratio(after.rss_kib as f64 - before.rss_kib as f64, handshakes),
        }
    }
}

/// Zero where there is nothing to divide by.
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// The smallest value that so many of a hundred do not exceed, in milliseconds; zero without values.
pub(in crate::bench) fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted
        .get(rank.saturating_sub(1))
        .map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = &self.latency_ms;
        writeln!(f, "responder         {}", self.against)?;
        writeln!(
            f,
            "proposals         {} / {}",
            self.proposals.join(","),
            self.esp_proposals.join(",")
        )?;
        writeln!(
            f,
            "established       {} of {}, {} at a time, {} with UDP encapsulation",
            self.established, self.count, self.concurrency, self.encapsulated
        )?;
        if self.failed + self.not_started + self.lost > 0 {
            writeln!(
                f,
                "failed            {}, not started {}, lost afterwards {}",
                self.failed, self.not_started, self.lost
            )?;
        }
        for (reason, count) in &self.failures {
            writeln!(f, "  {reason}: {count}")?;
        }
        writeln!(
            f,
            "rate              {:.1} handshakes/s in {:.2} s",
            self.handshakes_per_second, self.seconds
        )?;
        writeln!(
            f,
            "latency           median {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            l.median, l.p90, l.p99, l.max
        )?;
        writeln!(
            f,
            "sent again        {} requests; {} first messages made anew",
            self.retransmits, self.restarts
        )?;
        if let Some(r) = &self.responder {
            writeln!(
                f,
                "responder's CPU   {:.3} ms a handshake, {:.1} handshakes per CPU second",
                r.cpu_ms_per_handshake, r.handshakes_per_cpu_second
            )?;
            writeln!(
                f,
                "responder's RSS   {} KiB before, {} KiB after, {:.2} KiB an SA",
                r.rss_kib_before, r.rss_kib_after, r.rss_kib_per_sa
            )?;
        }
        writeln!(
            f,
            "own CPU           {:.3} ms a handshake",
            self.own_cpu_ms_per_handshake
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_ike::wire::NotifyType;

    fn measured(began: Instant) -> Measured {
        Measured {
            against: "192.0.2.2:500".into(),
            count: 4,
            concurrency: 2,
            threads: 1,
            proposals: vec!["p".into()],
            esp_proposals: vec!["e".into()],
            began,
            own_cpu: Duration::from_millis(6),
            responder: Some((
                Usage::default(),
                Usage {
                    cpu: Duration::from_millis(10),
                    rss_kib: 20,
                },
            )),
        }
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), 100.0);
        assert_eq!(percentile(&values, 99), 198.0);
        assert_eq!(percentile(&values, 100), 200.0);
        assert_eq!(percentile(&values[..1], 1), 1.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }

    #[test]
    fn threads_add_up_and_cost_is_per_success() {
        let began = Instant::now();
        let mut all = Tally::default();
        for encapsulated in [true, false] {
            let mut tally = Tally {
                started: 1,
                ..Tally::default()
            };
            tally.succeed(began, encapsulated);
            all.add(tally);
        }
        all.started += 1;
        all.fail(&reason(&Failure::PeerRefused(
            NotifyType::AUTHENTICATION_FAILED,
        )));
        let report = Report::new(measured(began), all);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["established"], 2);
        assert_eq!(json["encapsulated"], 1);
        assert_eq!(json["not_started"], 1);
        assert_eq!(json["failures"]["refused:AUTHENTICATION_FAILED"], 1);
        assert_eq!(json["responder"]["cpu_ms_per_handshake"], 5.0);
        assert_eq!(json["responder"]["rss_kib_per_sa"], 10.0);
        assert_eq!(json["own_cpu_ms_per_handshake"], 3.0);
        assert!(report.to_string().contains("2 of 4"));
    }

    #[test]
    fn nothing_established_is_all_zero_and_no_division_by_zero() {
        let report = Report::new(measured(Instant::now()), Tally::default());
        assert_eq!(report.handshakes_per_second, 0.0);
        assert_eq!(report.latency_ms.median, 0.0);
        assert_eq!(report.not_started, 4);
    }

    #[test]
    fn kinds_of_failures_are_bounded() {
        let mut tally = Tally::default();
        for kind in 0..1000 {
            tally.fail(&reason(&Failure::PeerRefused(NotifyType(9000 + kind))));
        }
        assert!(tally.failures.len() <= MAX_REASONS + 1);
        assert_eq!(tally.failures.values().sum::<u64>(), 1000);
    }
}
