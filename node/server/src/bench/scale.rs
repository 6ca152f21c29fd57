//! `evergate bench scale`: ever more peers that ask whether the gateway is still there, and bursts of new ones, as standard input says.
//!
//! The peers are those of [`load`](super::load). Each command is answered by one line of JSON:
//!
//! - `connect N RATE` sets up so many more IKE SAs, so many in a second whether they are answered or not; with a rate of 0 as fast as `--concurrency` at a time goes;
//! - `burst N RATE` does the same, and deletes them afterwards;
//! - `check DELAY SECONDS` lets each peer check so many milliseconds after it heard something, for so long;
//! - `quit`, or the end of the input.

use super::{handshake, load::Load, report::percentile};
use anyhow::{Context, bail};
use serde::Serialize;
use std::{
    io::Write,
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant},
};

/// Who has not answered so long after the end is counted as silent.
const GRACE: Duration = Duration::from_secs(2);

/// Handshakes that are begun in a turn: making keys must not keep answers waiting.
const AT_ONCE: u32 = 4;

/// Arguments of `evergate bench scale`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    peers: handshake::Options,
}

/// What came of a command. The names of its fields are an interface.
#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    /// IKE SAs that there are.
    sas: usize,
    #[serde(flatten)]
    counts: Counts,
    seconds: f64,
    /// From the first message to the last, in milliseconds.
    median_ms: f64,
    p99_ms: f64,
    worst_ms: f64,
    /// IKE SAs that the other end deleted since the start of the program.
    deleted: u64,
}

/// Handshakes, or checks.
#[derive(Clone, Copy, Debug, Serialize)]
struct Counts {
    begun: u64,
    succeeded: usize,
    failed: u64,
    /// Requests that were sent again.
    retransmits: u64,
}

/// Runs it until standard input ends.
///
/// # Errors
/// If the sockets fail, or a command is none.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (plan, shared) = handshake::one_thread(&options.peers)?;
    let mut bench = Bench {
        load: Load::new(&plan, &shared)?,
        concurrency: plan.concurrency,
        timeout: options.peers.timeout(),
    };
    let began = Instant::now();
    bench.load.connect_all(began + bench.timeout)?;
    let latencies = bench.load.tally().latencies().to_vec();
    bench.say("up", bench.handshakes(), began.elapsed(), latencies)?;
    bench.obey(&super::commands())
}

struct Bench<'s> {
    load: Load<'s>,
    /// Handshakes at a time, where no rate is given.
    concurrency: usize,
    timeout: Duration,
}

impl Bench<'_> {
    fn obey(&mut self, commands: &Receiver<String>) -> anyhow::Result<()> {
        loop {
            match commands.try_recv() {
                Ok(line) => match line.split_whitespace().collect::<Vec<_>>()[..] {
                    ["connect", n, rate] => self.connect("connect", n.parse()?, rate.parse()?)?,
                    ["burst", n, rate] => {
                        let first = self.load.next_number();
                        self.connect("burst", n.parse()?, rate.parse()?)?;
                        self.load.delete_from(first)?;
                        self.settle(Instant::now() + self.timeout)?;
                    }
                    ["check", delay, seconds] => self.check(delay.parse()?, seconds.parse()?)?,
                    ["quit"] => return Ok(()),
                    _ => bail!(
                        "{line:?} is no command: connect N RATE, burst N RATE, check DELAY SECONDS or quit"
                    ),
                },
                Err(TryRecvError::Disconnected) => return Ok(()),
                Err(TryRecvError::Empty) => self.serve()?,
            }
        }
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        self.load.serve(&mut |_| {})
    }

    /// What became of all handshakes up to now.
    fn handshakes(&self) -> Counts {
        let tally = self.load.tally();
        Counts {
            begun: tally.started,
            succeeded: tally.latencies().len(),
            failed: tally.failed(),
            retransmits: tally.retransmits,
        }
    }

    /// Sets up so many more IKE SAs.
    fn connect(&mut self, what: &'static str, count: u32, rate: u32) -> anyhow::Result<()> {
        let (before, began) = (self.handshakes(), Instant::now());
        let (mut begun, deadline) = (0, began + self.timeout);
        while begun < count && Instant::now() < deadline {
            let due = if rate > 0 {
                let due = began.elapsed().as_micros() * u128::from(rate) / 1_000_000 + 1;
                u32::try_from(due).unwrap_or(u32::MAX)
            } else {
                let room = self.concurrency.saturating_sub(self.load.busy());
                begun.saturating_add(u32::try_from(room).unwrap_or(u32::MAX))
            };
            let now = (due.min(count) - begun).min(AT_ONCE);
            self.load.begin_more(now)?;
            begun += now;
            self.load.turn(now > 0, Instant::now())?;
        }
        self.settle(deadline)?;
        let after = self.handshakes();
        let counts = Counts {
            begun: after.begun - before.begun,
            succeeded: after.succeeded - before.succeeded,
            failed: after.failed - before.failed,
            retransmits: after.retransmits - before.retransmits,
        };
        let latencies = self.load.tally().latencies()[before.succeeded..].to_vec();
        self.say(what, counts, began.elapsed(), latencies)
    }

    /// Waits until nothing is under way.
    fn settle(&mut self, deadline: Instant) -> anyhow::Result<()> {
        while self.load.busy() > 0 && Instant::now() < deadline {
            self.serve()?;
        }
        Ok(())
    }

    /// Lets all peers check.
    fn check(&mut self, delay: u64, seconds: u64) -> anyhow::Result<()> {
        let began = Instant::now();
        self.load.check_every(Some(Duration::from_millis(delay)));
        let until = began + Duration::from_secs(seconds);
        while Instant::now() < until {
            self.serve()?;
        }
        let took = began.elapsed();
        self.load.check_every(None);
        let until = Instant::now() + GRACE;
        let waiting = |load: &Load<'_>| load.checks().begun > load.checks().latencies.len() as u64;
        while waiting(&self.load) && Instant::now() < until {
            self.serve()?;
        }
        let checks = self.load.checks();
        let counts = Counts {
            begun: checks.begun,
            succeeded: checks.latencies.len(),
            failed: checks.begun - checks.latencies.len() as u64,
            retransmits: checks.retransmits,
        };
        self.say("check", counts, took, checks.latencies.clone())
    }

    fn say(
        &self,
        what: &'static str,
        counts: Counts,
        took: Duration,
        mut times: Vec<Duration>,
    ) -> anyhow::Result<()> {
        times.sort_unstable();
        let line = Line {
            what,
            sas: self.load.held(),
            counts,
            seconds: took.as_secs_f64(),
            median_ms: percentile(&times, 50),
            p99_ms: percentile(&times, 99),
            worst_ms: percentile(&times, 100),
            deleted: self.load.tally().lost,
        };
        let text = serde_json::to_string(&line)?;
        writeln!(std::io::stdout(), "{text}").context("standard output")
    }
}
