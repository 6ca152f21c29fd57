//! `evergate bench esp`: what two planes carry between them, and what that costs.

mod end;
mod load;
mod report;

use anyhow::{Context, bail, ensure};
pub(super) use end::EndOptions;
use end::Snapshot;
use report::{Measured, Report};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How ESP crosses the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encap {
    /// In UDP.
    Udp,
    /// Right on IP.
    None,
    /// The same, by packet sockets.
    Link,
}

/// The cipher of all Child SAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CipherName {
    /// AES-256-GCM.
    Aes256gcm16,
    /// ChaCha20-Poly1305.
    Chacha20poly1305,
}

/// Arguments of `evergate bench esp`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Runs of each load; medians are reported
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Length of a run
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// TCP streams at a time
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8")]
    streams: Vec<u16>,
    /// Datagrams of 1350 bytes that are offered, in Mbit/s, spread over all Child SAs; none if zero
    #[arg(
        long,
        value_name = "MBIT",
        value_delimiter = ',',
        default_value = "400"
    )]
    udp: Vec<u32>,
    /// Child SAs that there are
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    sas: Vec<u32>,
    /// Hosts behind the second end, spread over the Child SAs and sent to in turn; one for each Child SA if not given. With the same hosts whatever the
    /// number of SAs, the traffic is the same, too
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    hosts: Option<u32>,
    /// Their ciphers
    #[arg(
        long,
        value_name = "CIPHER",
        value_delimiter = ',',
        default_value = "aes256gcm16"
    )]
    cipher: Vec<CipherName>,
    /// How ESP crosses the wire
    #[arg(
        long,
        value_name = "HOW",
        value_delimiter = ',',
        default_value = "udp,none"
    )]
    encap: Vec<Encap>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One way to set up the two planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
struct Case {
    encap: Encap,
    cipher: CipherName,
    sas: u32,
    hosts: u32,
}

/// Runs the loads and prints the report.
///
/// # Errors
/// If they cannot be run, or nothing came through.
pub(super) fn run(options: &Options) -> anyhow::Result<()> {
    let most = options.sas.iter().max().copied().unwrap_or(1);
    ensure!(
        options.hosts.is_none_or(|hosts| hosts >= most),
        "--hosts: each of {most} Child SAs needs one"
    );
    let mut measured = Vec::new();
    for run in 1..=options.runs {
        for case in cases(options) {
            let mut pair = Pair::start(case)?;
            for load in loads(options) {
                let result = pair.measure(&load, Duration::from_secs(options.seconds));
                let result = result.with_context(|| format!("{case:?}, {load}"))?;
                if !options.json {
                    let mbit = result.mbit_per_second;
                    writeln!(
                        std::io::stderr(),
                        "run {run} of {}: {mbit:.0} Mbit/s",
                        options.runs
                    )?;
                }
                measured.push(result);
            }
        }
    }
    let report = Report::new(&measured);
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    ensure!(report.is_whole(), "nothing came through");
    Ok(())
}

/// Runs one end until its input ends. For internal use.
///
/// # Errors
/// If it cannot be set up.
pub(super) fn run_end(options: &EndOptions) -> anyhow::Result<()> {
    end::run(options)
}

fn cases(options: &Options) -> Vec<Case> {
    let mut cases = Vec::new();
    for &cipher in &options.cipher {
        for &encap in &options.encap {
            let of = |&sas| Case {
                encap,
                cipher,
                sas,
                hosts: options.hosts.unwrap_or(sas),
            };
            cases.extend(options.sas.iter().map(of));
        }
    }
    cases
}

fn loads(options: &Options) -> Vec<String> {
    let tcp = options.streams.iter().filter(|&&n| n > 0);
    let udp = options.udp.iter().filter(|&&n| n > 0);
    tcp.map(|n| format!("tcp {n}"))
        .chain(udp.map(|n| format!("udp {n}")))
        .collect()
}

/// Both ends, each a process in a network namespace of its own.
struct Pair {
    case: Case,
    a: End,
    b: End,
}

impl Pair {
    fn start(case: Case) -> anyhow::Result<Self> {
        let mut pair = Self {
            case,
            a: End::start(1, case)?,
            b: End::start(2, case)?,
        };
        let line = format!(
            "link add eg0 netns {} type veth peer name eg0 netns {}",
            pair.a.process.id(),
            pair.b.process.id()
        );
        end::ip(&line)?;
        pair.a.ask("set up")?;
        pair.b.ask("set up")?;
        Ok(pair)
    }

    fn measure(&mut self, load: &str, time: Duration) -> anyhow::Result<Measured> {
        self.a.ask(load)?;
        // Windows open, the path MTU is known.
        thread::sleep(Duration::from_millis(700));
        let (began, before) = (Instant::now(), self.snapshots()?);
        thread::sleep(time);
        let (took, after) = (began.elapsed(), self.snapshots()?);
        self.a.ask("stop")?;
        Ok(Measured::new(self.case, load, took, before, after))
    }

    fn snapshots(&mut self) -> anyhow::Result<[Snapshot; 2]> {
        let of = |end: &mut End| -> anyhow::Result<Snapshot> {
            let answer = end.ask("snapshot")?;
            serde_json::from_str(&answer).context("the snapshot is not understood")
        };
        Ok([of(&mut self.a)?, of(&mut self.b)?])
    }
}

/// One end. It ends when its input does.
struct End {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl End {
    fn start(number: u8, case: Case) -> anyhow::Result<Self> {
        fn value(name: &impl clap::ValueEnum) -> String {
            let value = name.to_possible_value();
            value.map_or_else(String::new, |v| v.get_name().to_owned())
        }
        let mut process = Command::new("/proc/self/exe")
            .args(["bench", "esp-end", "--number", &number.to_string()])
            .args(["--encap", &value(&case.encap)])
            .args(["--cipher", &value(&case.cipher)])
            .args(["--sas", &case.sas.to_string()])
            .args(["--hosts", &case.hosts.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process")?;
        let output = process.stdout.take().context("it has no output")?;
        let mut end = Self {
            input: process.stdin.take(),
            output: BufReader::new(output),
            process,
        };
        end.answer()?;
        Ok(end)
    }

    fn ask(&mut self, what: &str) -> anyhow::Result<String> {
        let input = self.input.as_mut().context("it has no input")?;
        writeln!(input, "{what}")?;
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            bail!("an end of the benchmark has ended; it said why above");
        }
        Ok(line)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}
