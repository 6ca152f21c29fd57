//! `evergate bench takeover`: many peers with traffic on every SA, and how long each is without after the member that serves them is killed.
//!
//! The peers are those of [`load`](super::load). Each sends echo requests (RFC 792) through its Child SA to an address behind the gateway. A process of this machine is
//! killed, and from then on all are asked again, in turn, until each has had an answer to a request that it sent after the kill. How fast requests can be sent bounds what
//! can be seen; so the same is measured before the kill, too.

use super::{echo::Tunnel, handshake, load::Load};
use anyhow::{Context, ensure};
use evergate_esp::spi_of;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Serialize;
use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    net::Ipv4Addr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Requests of a turn at most: answers must not wait for long.
const BURST: usize = 64;
/// A peer that had no answer is asked again no sooner than this.
const AGAIN: Duration = Duration::from_millis(100);

/// Arguments of `evergate bench takeover`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    peers: handshake::Options,
    /// An address behind the gateway that answers echo requests
    #[arg(long, value_name = "ADDR")]
    to: Ipv4Addr,
    /// Echo requests of all peers together in a second
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// The process to kill; without one, only what is without a takeover is measured
    #[arg(long, value_name = "PID")]
    kill: Option<i32>,
    /// Wait so long for the last peer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

struct Peer {
    tunnel: Tunnel,
    /// The round in which it had an answer.
    answered: u32,
    asked: Option<Instant>,
}

/// When peers had their answers, from the beginning of a round, in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Times {
    answered: usize,
    missing: usize,
    median_ms: f64,
    p99_ms: f64,
    last_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    sas: usize,
    setup_seconds: f64,
    rate: u32,
    before: Times,
    /// When the process was killed, in microseconds of Unix time.
    killed_us: Option<u64>,
    after: Option<Times>,
}

impl Times {
    fn of(mut times: Vec<Duration>, peers: usize) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1000.0)
        };
        Self {
            answered: times.len(),
            missing: peers - times.len(),
            median_ms: at(50),
            p99_ms: at(99),
            last_ms: at(100),
        }
    }
}

/// Runs it and prints the report, one line of JSON.
///
/// # Errors
/// If peers cannot be set up, or the process cannot be killed.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (plan, shared) = handshake::one_thread(&options.peers)?;
    let mut load = Load::new(&plan, &shared)?;
    let began = Instant::now();
    load.connect_all(began + options.peers.timeout())?;
    let setup = began.elapsed();
    let mut echo = Echo::new(&load, options)?;
    ensure!(!echo.peers.is_empty(), "not one handshake succeeded");
    let before = echo.round(&mut load)?;
    let (mut killed_us, mut after) = (None, None);
    if let Some(pid) = options.kill {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        killed_us = Some(u64::try_from(now.as_micros())?);
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the process")?;
        after = Some(echo.round(&mut load)?);
    }
    let report = Report {
        sas: echo.peers.len(),
        setup_seconds: setup.as_secs_f64(),
        rate: options.rate,
        before,
        killed_us,
        after,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// Requests and answers of all peers.
struct Echo {
    peers: Vec<Peer>,
    /// Which peer receives with an SPI.
    by_spi: HashMap<u32, usize>,
    to: Ipv4Addr,
    rate: f64,
    patience: Duration,
    round: u32,
}

impl Echo {
    fn new(load: &Load<'_>, options: &Options) -> anyhow::Result<Self> {
        let mut peers = Vec::new();
        let mut by_spi = HashMap::new();
        for (link, child) in load.children() {
            by_spi.insert(child.spi_in, peers.len());
            peers.push(Peer {
                tunnel: Tunnel::new(link, child)?,
                answered: 0,
                asked: None,
            });
        }
        Ok(Self {
            peers,
            by_spi,
            to: options.to,
            rate: f64::from(options.rate),
            patience: Duration::from_secs(options.patience),
            round: 0,
        })
    }

    /// Asks all in turn until each has had an answer, or nobody waits any longer.
    fn round(&mut self, load: &mut Load<'_>) -> anyhow::Result<Times> {
        self.round += 1;
        let (began, mut sent, mut times) = (Instant::now(), 0.0, Vec::new());
        let mut waiting: VecDeque<usize> = (0..self.peers.len()).collect();
        while times.len() < self.peers.len() && began.elapsed() < self.patience {
            for _ in 0..BURST {
                let now = Instant::now();
                // What could not be sent in time is not made up for.
                sent = f64::max(sent, (now - began).as_secs_f64() * self.rate - BURST as f64);
                if sent >= (now - began).as_secs_f64() * self.rate {
                    break;
                }
                let Some(i) = waiting.pop_front() else { break };
                if self.peers[i].answered == self.round {
                    continue;
                }
                waiting.push_back(i);
                if self.peers[i].asked.is_some_and(|asked| now - asked < AGAIN) {
                    break;
                }
                self.peers[i].asked = Some(now);
                sent += 1.0;
                let tunnel = &self.peers[i].tunnel;
                let packet = tunnel.request(self.to, self.round)?;
                load.send_esp(tunnel.link, &packet);
            }
            load.serve(&mut |packet| {
                if self.is_answer(packet) {
                    times.push(began.elapsed());
                }
            })?;
        }
        Ok(Times::of(times, self.peers.len()))
    }

    /// Whether this is the first answer that a peer has in this round.
    fn is_answer(&mut self, packet: &mut [u8]) -> bool {
        let peer = spi_of(packet).and_then(|spi| self.by_spi.get(&spi));
        let Some(peer) = peer.and_then(|i| self.peers.get_mut(*i)) else {
            return false;
        };
        let Ok(Some(answer)) = peer.tunnel.open(packet) else {
            return false;
        };
        let is_new = answer.number == self.round && peer.answered != self.round;
        if is_new {
            peer.answered = self.round;
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_who_was_answered() {
        let ms = |n| Duration::from_millis(n);
        let times = Times::of((1..=100).rev().map(ms).collect(), 103);
        let expected = Times {
            answered: 100,
            missing: 3,
            median_ms: 50.0,
            p99_ms: 99.0,
            last_ms: 100.0,
        };
        assert_eq!(times, expected);
        assert_eq!(Times::of(vec![], 2).missing, 2);
    }
}
