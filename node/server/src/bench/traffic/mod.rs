//! `evergate bench traffic`: many peers with steady traffic on every SA, while somebody else kills, drains and starts members.
//!
//! The peers are those of [`load`](super::load), and each sends echo requests to an address behind the gateway all the time. What is to be looked at is said on standard input, a command
//! a line, each answered by one line of JSON:
//!
//! - `kill PID` begins some handshakes, kills the process while they are under way, and waits until every SA had an answer again and the handshakes are decided;
//! - `begin`, and later `end`: what happened in between;
//! - `quit`, or the end of the input: the last line.

mod flow;
mod window;

use super::{handshake, load::Load};
use anyhow::{Context, bail, ensure};
use flow::Flow;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::Write,
    net::Ipv4Addr,
    sync::mpsc::{Receiver, TryRecvError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use window::{HalfOpen, Line};

/// Traffic goes on for so long after the last SA had an answer: a second gap would be seen.
const SETTLE: Duration = Duration::from_millis(500);
/// Answers to what was sent in a window may come so much later.
const GRACE: Duration = Duration::from_millis(300);
/// From the first handshakes until the kill: some have sent their second message then.
const HALF_WAY: Duration = Duration::from_millis(4);

/// Arguments of `evergate bench traffic`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    peers: handshake::Options,
    /// An address behind the gateway that answers echo requests
    #[arg(long, value_name = "ADDR")]
    to: Ipv4Addr,
    /// Milliseconds between two requests of an SA
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval: u64,
    /// So many SAs are looked at more closely
    #[arg(long, value_name = "N", default_value_t = 100)]
    close: usize,
    /// Milliseconds between two requests of these
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    close_interval: u64,
    /// Handshakes that are under way when a process is killed
    #[arg(long, value_name = "N", default_value_t = 8)]
    half_open: u32,
    /// Wait so long for the last SA, and for handshakes
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
}

/// Runs it until standard input ends.
///
/// # Errors
/// If peers cannot be set up, a process cannot be killed, or a command is none.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let (plan, shared) = handshake::one_thread(&options.peers)?;
    let mut load = Load::new(&plan, &shared)?;
    load.watch_ivs();
    let began = Instant::now();
    load.connect_all(began + options.peers.timeout())?;
    let intervals = [options.close_interval, options.interval].map(Duration::from_millis);
    let flow = Flow::new(&load, options.to, options.close, intervals)?;
    ensure!(flow.len() > 0, "not one handshake succeeded");
    let up = serde_json::json!({
        "what": "up", "sas": flow.len(), "seconds": began.elapsed().as_secs_f64(), "failed": load.tally().failed(),
    });
    writeln!(std::io::stdout(), "{up}")?;
    let mut bench = Bench {
        load,
        flow,
        patience: Duration::from_secs(options.patience),
        half_open: options.half_open,
        began: Instant::now(),
        stall: Duration::ZERO,
    };
    bench.obey(&super::commands())
}

struct Bench<'s> {
    load: Load<'s>,
    flow: Flow,
    patience: Duration,
    half_open: u32,
    /// When the present window began.
    began: Instant,
    stall: Duration,
}

impl Bench<'_> {
    fn obey(&mut self, commands: &Receiver<String>) -> anyhow::Result<()> {
        loop {
            match commands.try_recv() {
                Ok(line) => match line.split_whitespace().collect::<Vec<_>>()[..] {
                    ["begin"] => self.begin(),
                    ["end"] => self.end("window", None)?,
                    ["kill", pid] => self.kill(pid.parse().context("kill PID")?)?,
                    ["quit"] => return self.end("quit", None),
                    _ => bail!("{line:?} is no command: kill PID, begin, end or quit"),
                },
                Err(TryRecvError::Disconnected) => return self.end("quit", None),
                Err(TryRecvError::Empty) => self.turn()?,
            }
        }
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.flow.turn(&mut self.load)?;
        self.stall = self.stall.max(began.elapsed());
        Ok(())
    }

    fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn()?;
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.flow.begin();
        (self.began, self.stall) = (Instant::now(), Duration::ZERO);
    }

    /// Reports on the window that began last.
    fn end(&mut self, what: &'static str, half_open: Option<HalfOpen>) -> anyhow::Result<()> {
        let took = self.began.elapsed();
        self.flow.stop_counting();
        self.run_for(GRACE)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let began = now.unwrap_or_default().saturating_sub(took + GRACE);
        let line = Line {
            what,
            began_us: u64::try_from(began.as_micros()).unwrap_or(u64::MAX),
            window: self.flow.found(self.began, self.load.ivs_seen()),
            deleted: self.load.tally().lost,
            half_open,
            stall_ms: self.stall.as_secs_f64() * 1000.0,
        };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&line)?)?;
        Ok(())
    }

    /// Kills a process under traffic and handshakes.
    fn kill(&mut self, pid: i32) -> anyhow::Result<()> {
        // What came of the last time is deleted.
        let deadline = Instant::now() + self.patience;
        while self.load.busy() > 0 && Instant::now() < deadline {
            self.turn()?;
        }
        // The first ones are some messages ahead of the others.
        let first = self.load.next_number();
        self.load.begin_more(self.half_open.div_ceil(2))?;
        self.run_for(HALF_WAY)?;
        self.load.begin_more(self.half_open / 2)?;
        self.turn()?;
        let decided = |load: &Load<'_>| (load.tally().latencies().len(), load.tally().failed());
        let (at_kill, before) = (self.load.busy(), decided(&self.load));
        self.begin();
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("cannot kill the process")?;
        let deadline = self.began + self.patience;
        while self.flow.silent() > 0 && Instant::now() < deadline {
            self.turn()?;
        }
        self.run_for(SETTLE)?;
        while self.load.busy() > 0 && Instant::now() < deadline {
            self.turn()?;
        }
        let after = decided(&self.load);
        let half_open = HalfOpen {
            at_kill,
            completed: after.0 - before.0,
            failed: after.1 - before.1,
        };
        self.end("kill", Some(half_open))?;
        self.load.delete_from(first)
    }
}
