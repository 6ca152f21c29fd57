//! What ever more peers cost three members. `cluster-tests/measure-scale` builds and starts it.

use anyhow::Context;
use evergate_cluster_tests::cluster::{MEMBERS, Pace};
use evergate_cluster_tests::crowd::{Bench, Crowd};
use evergate_cluster_tests::lab::walk;
use evergate_cluster_tests::{Result, secs};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{OpenOptions, read_to_string};
use std::io::Write;

/// Seconds between two checks of a peer, in milliseconds.
const DELAY: u64 = 5000;
/// How long a load is kept up.
const SPAN: u64 = 10;
/// New SAs in a second, in bursts of a second.
const BURSTS: [u32; 5] = [125, 250, 500, 1000, 2000];

fn main() -> Result<()> {
    let sizes: Vec<u32> = std::env::args()
        .skip(1)
        .map(|n| n.parse())
        .collect::<std::result::Result<_, _>>()?;
    let sizes = if sizes.is_empty() {
        vec![1000, 3000, 10_000, 30_000]
    } else {
        sizes
    };
    let mut results = match std::env::var_os("RESULTS") {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let mut scale = Scale::start()?;
    let mut lines = Vec::new();
    for size in sizes {
        for line in scale.stage(size)? {
            say(&line.to_string())?;
            if let Some(file) = &mut results {
                writeln!(file, "{line}")?;
            }
            lines.push(line);
        }
    }
    scale.crowd.lab.passed();
    report(&lines)
}

struct Scale {
    crowd: Crowd,
    bench: Bench,
    /// SAs that were asked for.
    held: u32,
    /// What members had before there was an SA.
    empty: Vec<Resources>,
}

/// What a member has used, and holds.
#[derive(Clone, Copy, Debug)]
struct Resources {
    /// Processor time in seconds.
    cpu: f64,
    resident_kib: u64,
    disk_bytes: u64,
    /// What it sent to other members, with all headers.
    wire_bytes: u64,
    entries: u64,
}

impl Scale {
    fn start() -> Result<Self> {
        let crowd = Crowd::start(Pace::Usual, |_| {})?;
        let arguments = ["--count", "1", "--concurrency", "32", "--timeout", "3600"];
        let mut bench = crowd.bench("scale", &arguments)?;
        bench.line(secs(30))?;
        let mut scale = Self {
            crowd,
            bench,
            held: 1,
            empty: Vec::new(),
        };
        scale.crowd.place(true)?;
        scale.empty = scale.resources()?.0;
        Ok(scale)
    }

    fn stage(&mut self, size: u32) -> Result<Vec<Value>> {
        let more = size.saturating_sub(self.held);
        self.held = self.held.max(size);
        let mut lines = vec![self.measure("fill", &format!("connect {more} 0"))?];
        // Snapshots of it may still be written.
        std::thread::sleep(secs(3));
        lines.push(self.memory()?);
        lines.push(self.measure("idle", &format!("check 3600000 {SPAN}"))?);
        lines.push(self.measure("check", &format!("check {DELAY} {SPAN}"))?);
        // Where the active member does not lead, each commit takes the way to the leader first.
        for leads in [true, false] {
            self.crowd.place(leads)?;
            for rate in BURSTS {
                let mut line = self.measure("burst", &format!("burst {rate} {rate}"))?;
                line["rate"] = rate.into();
                lines.push(line);
            }
        }
        self.crowd.place(true)?;
        Ok(lines)
    }

    /// What one command gave, and what it cost.
    fn measure(&mut self, what: &str, command: &str) -> Result<Value> {
        let (before, commits) = self.resources()?;
        self.bench.say(command)?;
        let said = self.bench.line(secs(3600))?;
        let (after, commits_after) = self.resources()?;
        let active = self.crowd.active()?;
        let leads = self.crowd.leader()? == active;
        let cpu: Vec<f64> = before
            .iter()
            .zip(&after)
            .map(|(b, a)| a.cpu - b.cpu)
            .collect();
        let wire: u64 = before
            .iter()
            .zip(&after)
            .map(|(b, a)| a.wire_bytes - b.wire_bytes)
            .sum();
        Ok(json!({
            "stage": what, "held": self.held, "bench": said, "active_leads": leads,
            "active_cpu": cpu[active], "all_cpu": cpu.iter().sum::<f64>(),
            "wire_bytes": wire, "entries": after[active].entries - before[active].entries,
            "commits": between(&commits[active], &commits_after[active]),
        }))
    }

    fn memory(&mut self) -> Result<Value> {
        let now = self.resources()?.0;
        let active = self.crowd.active()?;
        let per = |n: u64| n as f64 / f64::from(self.held);
        let of = |n: usize, what: fn(&Resources) -> u64| {
            per(what(&now[n]).saturating_sub(what(&self.empty[n])))
        };
        let standby = (active + 1) % MEMBERS;
        Ok(json!({
            "stage": "memory", "held": self.held,
            "active_kib": of(active, |r| r.resident_kib), "standby_kib": of(standby, |r| r.resident_kib),
            "disk_bytes": of(active, |r| r.disk_bytes),
        }))
    }

    /// What each member used, and its histogram of commits.
    fn resources(&mut self) -> Result<(Vec<Resources>, Vec<Histogram>)> {
        let (mut all, mut commits) = (Vec::new(), Vec::new());
        for n in 0..MEMBERS {
            let status = self.crowd.members[n].status()?;
            let pid = self.crowd.pid(n)?;
            let files = walk(&self.crowd.members[n].dir().join("state"))?;
            let sizes = files.iter().filter_map(|f| Some(f.metadata().ok()?.len()));
            let sent = "/sys/class/net/raft0/statistics/tx_bytes";
            let wire = self.crowd.lab.exec(&self.crowd.host(n), &["cat", sent])?;
            all.push(Resources {
                cpu: cpu(pid)?,
                resident_kib: self.crowd.members[n].process()?.resident_kib()?,
                disk_bytes: sizes.sum(),
                wire_bytes: wire.trim().parse()?,
                entries: status["commits"]["entries"].as_u64().unwrap_or(0),
            });
            commits.push(histogram(&status["commits"]["latencies_us"]));
        }
        Ok((all, commits))
    }
}

/// How often something took so many microseconds.
type Histogram = BTreeMap<u64, u64>;

fn histogram(value: &Value) -> Histogram {
    let pairs = value.as_array().into_iter().flatten();
    pairs
        .filter_map(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?)))
        .collect()
}

/// What came between two looks, in milliseconds.
fn between(before: &Histogram, after: &Histogram) -> Value {
    let counts = after
        .iter()
        .map(|(took, n)| (*took, n - before.get(took).unwrap_or(&0)));
    let counts: Vec<(u64, u64)> = counts.filter(|(_, n)| *n > 0).collect();
    let total: u64 = counts.iter().map(|(_, n)| n).sum();
    let percentile = |percent: u64| {
        let mut below = 0;
        let found = counts.iter().find(|(_, n)| {
            below += n;
            below * 100 >= total * percent
        });
        found.map_or(0.0, |(took, _)| *took as f64 / 1000.0)
    };
    json!({ "count": total, "median_ms": percentile(50), "p99_ms": percentile(99), "worst_ms": percentile(100) })
}

/// Processor time of a process in seconds, user and system, in hundredths.
fn cpu(pid: u32) -> Result<f64> {
    let stat = read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks =
        || -> Result<f64> { Ok(fields.next().context("/proc/PID/stat")?.parse::<f64>()?) };
    Ok((ticks()? + ticks()?) / 100.0)
}

fn report(lines: &[Value]) -> Result<()> {
    let of =
        |stage: &str| -> Vec<&Value> { lines.iter().filter(|l| l["stage"] == *stage).collect() };
    let n = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    say(
        "\nSetting up, 32 at a time\n    SAs   SAs/s  CPU ms, active    all  latency ms    99 %  commit ms    99 %  SAs/entry  bytes between members/SA",
    )?;
    for l in of("fill") {
        let b = &l["bench"];
        let done = n(&b["succeeded"]).max(1.0);
        say(&format!(
            "{:>7}{:>8.0}{:>16.2}{:>7.2}{:>12.1}{:>8.1}{:>11.1}{:>8.1}{:>11.1}{:>12.0}",
            n(&l["held"]),
            done / n(&b["seconds"]),
            n(&l["active_cpu"]) * 1000.0 / done,
            n(&l["all_cpu"]) * 1000.0 / done,
            n(&b["median_ms"]),
            n(&b["p99_ms"]),
            n(&l["commits"]["median_ms"]),
            n(&l["commits"]["p99_ms"]),
            done / n(&l["entries"]).max(1.0),
            n(&l["wire_bytes"]) / done,
        ))?;
    }
    say("\nHeld\n    SAs  KiB/SA active  standby  bytes/SA on disk")?;
    for l in of("memory") {
        say(&format!(
            "{:>7}{:>15.1}{:>9.1}{:>18.0}",
            n(&l["held"]),
            n(&l["active_kib"]),
            n(&l["standby_kib"]),
            n(&l["disk_bytes"])
        ))?;
    }
    say(
        "\nLiveness checks every 5 s\n    SAs  checks/s  answered %  latency ms    99 %   worst  CPU µs, active    all  bytes between members/check",
    )?;
    for (l, idle) in of("check").into_iter().zip(of("idle")) {
        let b = &l["bench"];
        let begun = n(&b["begun"]).max(1.0);
        let cpu = |key: &str| (n(&l[key]) - n(&idle[key])) * 1e6 / begun;
        say(&format!(
            "{:>7}{:>10.0}{:>12.2}{:>12.1}{:>8.1}{:>8.1}{:>16.1}{:>7.1}{:>12.1}",
            n(&l["held"]),
            begun / n(&b["seconds"]),
            n(&b["succeeded"]) * 100.0 / begun,
            n(&b["median_ms"]),
            n(&b["p99_ms"]),
            n(&b["worst_ms"]),
            cpu("active_cpu"),
            cpu("all_cpu"),
            (n(&l["wire_bytes"]) - n(&idle["wire_bytes"])) / begun,
        ))?;
    }
    say(
        "\nBursts of a second\n    SAs leads  new SAs/s  up    failed  sent again  seconds  latency ms    99 %   worst  commit ms    99 %  SAs/entry",
    )?;
    for l in of("burst") {
        let b = &l["bench"];
        say(&format!(
            "{:>7}{:>6}{:>11}{:>8}{:>6}{:>10}{:>10.2}{:>12.1}{:>8.1}{:>8.1}{:>11.1}{:>8.1}{:>11.1}",
            n(&l["held"]),
            l["active_leads"].to_string(),
            n(&l["rate"]),
            n(&b["succeeded"]),
            n(&b["failed"]),
            n(&b["retransmits"]),
            n(&b["seconds"]),
            n(&b["median_ms"]),
            n(&b["p99_ms"]),
            n(&b["worst_ms"]),
            n(&l["commits"]["median_ms"]),
            n(&l["commits"]["p99_ms"]),
            n(&b["succeeded"]) / n(&l["entries"]).max(1.0),
        ))?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
