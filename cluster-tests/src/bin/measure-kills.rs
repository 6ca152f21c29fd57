//! Kills of the active member, and handovers, with traffic on a thousand SAs. `cluster-tests/measure-kills` builds and starts it.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{MEMBERS, Pace};
use evergate_cluster_tests::crowd::{Bench, Crowd};
use evergate_cluster_tests::{Result, log, millis, secs};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::str::FromStr;
use std::time::Instant;

/// The goals for the longest gap of a kill, at the 99th percentile, and of a handover, in milliseconds.
const GOALS: (f64, f64) = (500.0, 50.0);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--report", files)) = arguments.split_first().map(|(a, b)| (a.as_str(), b)) {
        let mut lines = Vec::new();
        for file in files {
            let text = std::fs::read_to_string(file).context(file.clone())?;
            for line in text.lines() {
                lines.push(serde_json::from_str(line)?);
            }
        }
        return report(&lines);
    }
    let plan = Plan {
        kills: arguments.first().map_or(Ok(100), |n| n.parse())?,
        drains: setting("DRAINS", 20)?,
        sas: setting("SAS", 1000)?,
        minutes: setting("MINUTES", 60)?,
    };
    let lines = run(&plan)?;
    report(&lines)
}

/// What is to be done.
struct Plan {
    kills: usize,
    drains: usize,
    sas: usize,
    /// Nothing new is begun after that.
    minutes: u64,
}

/// A number of the environment.
fn setting<T: FromStr>(name: &str, usual: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is a number")),
        Err(_) => Ok(usual),
    }
}

fn run(plan: &Plan) -> Result<Vec<Value>> {
    let end = Instant::now() + secs(plan.minutes * 60);
    let mut results = match std::env::var_os("RESULTS") {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let crowd = Crowd::start(Pace::Usual, |_| {})?;
    let close = setting("CLOSE", "100".to_owned())?;
    let half_open = setting("HALF_OPEN", "8".to_owned())?;
    let bench = crowd.traffic(plan.sas, &["--close", &close, "--half-open", &half_open])?;
    let mut run = Run {
        crowd,
        bench,
        sas: plan.sas,
    };
    let mut lines = vec![run.quiet()?];
    // Every second one is of the member that leads.
    let kills = (0..plan.kills).map(|n| Some(n % 2 == 1));
    let drains = std::iter::repeat_n(None, plan.drains);
    for (round, what) in (1..).zip(kills.chain(drains)) {
        if Instant::now() > end {
            say("the time is over")?;
            break;
        }
        let line = match what {
            Some(leader) => run.kill(leader)?,
            None => run.drain()?,
        };
        say(&format!("{round:>3}: {}", brief(&line)))?;
        lines.push(line);
        if let Some(file) = &mut results {
            writeln!(file, "{}", lines[lines.len() - 1])?;
        }
    }
    lines.push(run.finish()?);
    if let Some(file) = &mut results {
        for line in [&lines[0], &lines[lines.len() - 1]] {
            writeln!(file, "{line}")?;
        }
    }
    Ok(lines)
}

struct Run {
    crowd: Crowd,
    bench: Bench,
    sas: usize,
}

impl Run {
    /// The same traffic while nothing happens.
    fn quiet(&mut self) -> Result<Value> {
        let window = self.during(|_| {
            std::thread::sleep(secs(3));
            Ok(())
        })?;
        Ok(json!({ "what": "quiet", "window": window }))
    }

    /// What peers see while something is done, and for a while after it.
    fn during(&mut self, act: impl FnOnce(&mut Crowd) -> Result<()>) -> Result<Value> {
        let before = self.crowd.drops()?;
        self.bench.say("begin")?;
        act(&mut self.crowd)?;
        std::thread::sleep(millis(500));
        let mut window = self.bench.ask("end")?;
        let mut dropped = self.crowd.drops()?;
        for (what, count) in &mut dropped {
            // A member that started meanwhile counts from zero.
            *count -= before.get(what).filter(|b| *b <= count).unwrap_or(&0);
        }
        dropped.retain(|_, count| *count > 0);
        window["dropped"] = json!(dropped);
        Ok(window)
    }

    /// Kills the active member, which leads or does not, and starts it again.
    fn kill(&mut self, leader: bool) -> Result<Value> {
        // It is no handover if the gateway is there already; what is moved is moved under traffic, too.
        let before = self.crowd.active()?;
        let moved = self.during(|crowd| crowd.place(leader).map(drop))?;
        let dead = self.crowd.active()?;
        // All members are as they were before the last kill, their connections too.
        std::thread::sleep(secs(1));
        let offsets = self.crowd.log_offsets()?;
        let pid = self.crowd.pid(dead)?;
        let window = self.bench.ask(&format!("kill {pid}"))?;
        self.crowd.members[dead].kill9()?;
        let successor = self.crowd.active()?;
        let logs = self.crowd.logs_but(dead, &offsets)?;
        let known = self.crowd.sas(successor)?;
        let began = window["began_us"].as_u64().context("no time")?;
        let trace = trace(&logs, began, &window)?;
        let rejoin = self.during(|crowd| crowd.start_again(dead))?;
        let mut line = json!({
            "what": "kill", "leader": leader, "killed": dead + 1, "successor": successor + 1, "window": window,
            "trace": trace, "known": [known.0, known.1], "rejoin": rejoin,
        });
        if before != dead {
            line["handover"] = moved;
        }
        Ok(line)
    }

    /// Takes the gateway away from the member that has it.
    fn drain(&mut self) -> Result<Value> {
        let from = self.crowd.active()?;
        let name = format!("m{}", from + 1);
        std::thread::sleep(millis(500));
        let window = self.during(|crowd| crowd.members[from].ctl(&["drain", &name]).map(drop))?;
        let to = self.crowd.active()?;
        ensure!(to != from, "nothing was handed over");
        self.crowd.members[from].ctl(&["drain", &name, "--undo"])?;
        Ok(json!({ "what": "drain", "from": from + 1, "to": to + 1, "window": window }))
    }

    /// What is left at the end.
    fn finish(mut self) -> Result<Value> {
        let last = self.bench.ask("quit")?;
        let known = (0..MEMBERS).map(|n| self.crowd.sas(n));
        let known = known.collect::<Result<Vec<_>>>()?;
        let dropped = self.crowd.dropped_at_peers()?;
        self.crowd.lab.passed();
        Ok(json!({
            "what": "end", "sas": self.sas, "window": last, "dropped_at_peers": dropped,
            "known": known.iter().map(|(ike, children)| [ike, children]).collect::<Vec<_>>(),
        }))
    }
}

/// What a gap consisted of, in milliseconds.
fn trace(logs: &str, killed: u64, window: &Value) -> Result<Value> {
    let when = |event: &str| log::first(logs, event, killed);
    let between = |from: u64, to: u64| (to as f64 - from as f64).max(0.0) / 1000.0;
    let assigned = when("assigning").context("nobody assigned the gateway")?;
    let prepared = when("gateway-prepared").context("nobody prepared the gateway")?;
    let taken = when("gateway-taken").context("nobody took the gateway")?;
    let soonest = number(&window["soonest_ms"]);
    let last = number(&window["first_answer"]["worst_ms"]);
    Ok(json!({
        "elected_ms": when("leads").filter(|at| *at <= assigned).map(|at| between(killed, at)),
        "detection_ms": between(killed, assigned),
        "commit_ms": between(assigned, prepared),
        "address_ms": between(prepared, taken),
        // The first packet may come before the line that says so.
        "first_packet_ms": (soonest - between(killed, taken)).max(0.0),
        "last_sa_ms": (last - soonest).max(0.0),
    }))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn brief(line: &Value) -> String {
    let window = &line["window"];
    format!(
        "{} {} gap {:.1} ms (all {:.1}), missing {}, unanswered {}, twice {}+{}, half-open {}, stall {:.1} ms {}",
        line["what"].as_str().unwrap_or_default(),
        if line["leader"] == true {
            "of the leader,"
        } else {
            ""
        },
        number(&window["close_gaps"]["worst_ms"]),
        number(&window["gaps"]["worst_ms"]),
        window["missing"],
        window["unanswered"],
        window["numbers_twice"],
        window["ike_ivs_twice"],
        window["half_open"],
        number(&window["stall_ms"]),
        line["trace"],
    )
}

fn report(lines: &[Value]) -> Result<()> {
    let is = |what: &str| -> Vec<&Value> { lines.iter().filter(|l| l["what"] == *what).collect() };
    let (kills, drains, ends) = (is("kill"), is("drain"), is("end"));
    let of = |leader: bool| -> Vec<&Value> {
        let some = kills.iter().filter(|k| k["leader"] == leader);
        some.copied().collect()
    };
    head(&format!("{} kills of the active member", kills.len()))?;
    gaps(&kills, "window")?;
    for (what, leader) in [("it did not lead", false), ("it led", true)] {
        let some = of(leader);
        head(&format!("{} of them: {what}", some.len()))?;
        gaps(&some, "window")?;
        trace_rows(&some)?;
    }
    head(&format!("{} drains under load", drains.len()))?;
    gaps(&drains, "window")?;
    lost(&drains, "window")?;
    let moves = kills.iter().filter(|k| !k["handover"].is_null());
    let moves: Vec<&Value> = moves.copied().collect();
    head(&format!("{} moves under load", moves.len()))?;
    gaps(&moves, "handover")?;
    lost(&moves, "handover")?;
    head(&format!(
        "{} members that came back under load",
        kills.len()
    ))?;
    gaps(&kills, "rejoin")?;
    lost(&kills, "rejoin")?;
    let quiet = is("quiet");
    head("nothing happens")?;
    gaps(&quiet, "window")?;
    lost(&quiet, "window")?;
    verdict(&kills, &ends)
}

/// What must hold whatever the machine does.
fn verdict(kills: &[&Value], ends: &[&Value]) -> Result<()> {
    let sum = |of: &[&Value], path: &str| -> f64 {
        let all = of.iter().filter_map(|line| line.pointer(path)?.as_f64());
        all.sum()
    };
    say(&format!(
        "\nlost SAs: {} without an answer after a kill, {} deleted by the gateway; half-open at a kill: {}, of them completed {}, failed {}",
        sum(kills, "/window/missing"),
        sum(ends, "/window/deleted"),
        sum(kills, "/window/half_open/at_kill"),
        sum(kills, "/window/half_open/completed"),
        sum(kills, "/window/half_open/failed"),
    ))?;
    for end in ends {
        say(&format!(
            "twice: {} ESP sequence numbers, {} IVs of IKE ({} not looked at); {} packets forged, {} late, {} dropped in full queues of the peers; members know {} (IKE SAs, Child SAs) of {}",
            end["window"]["numbers_twice"],
            end["window"]["ike_ivs_twice"],
            end["window"]["ivs_unchecked"],
            end["window"]["forged"],
            end["window"]["late"],
            end["dropped_at_peers"],
            end["known"],
            end["sas"],
        ))?;
    }
    let stall = kills.iter().map(|k| number(&k["window"]["stall_ms"]));
    say(&format!(
        "the peers themselves stood still for at most {:.1} ms during a kill; goals: {} ms for the gap of a kill (99 %), {} ms for that of a handover",
        stall.fold(0.0, f64::max),
        GOALS.0,
        GOALS.1,
    ))
}

fn head(title: &str) -> Result<()> {
    say(&format!(
        "\n{title:<64}{:>10}{:>10}{:>10}",
        "median", "99 %", "worst"
    ))
}

/// The longest gaps, one value for each line.
fn gaps(some: &[&Value], window: &str) -> Result<()> {
    for (what, path) in [
        (
            "longest gap, of SAs with a request each 10 ms",
            "close_gaps/worst_ms",
        ),
        (
            "longest gap, of all SAs, with a request each 100 ms",
            "gaps/worst_ms",
        ),
    ] {
        row(what, some, &format!("/{window}/{path}"))?;
    }
    Ok(())
}

fn trace_rows(some: &[&Value]) -> Result<()> {
    for (what, key) in [
        (
            "  until the gateway is assigned (detection)",
            "detection_ms",
        ),
        (
            "    of it until there is a leader, if it died",
            "elected_ms",
        ),
        ("  until the successor knows it (commit)", "commit_ms"),
        ("  until it serves (lease, address)", "address_ms"),
        ("  until the first answer of any SA", "first_packet_ms"),
        ("  until every SA had one", "last_sa_ms"),
    ] {
        row(what, some, &format!("/trace/{key}"))?;
    }
    Ok(())
}

fn row(what: &str, some: &[&Value], path: &str) -> Result<()> {
    let values = some.iter().filter_map(|line| line.pointer(path)?.as_f64());
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |percent: usize| {
        let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
        values.get(index)
    };
    if let (Some(median), Some(p99), Some(worst)) = (at(50), at(99), values.last()) {
        say(&format!(
            "{what:<64}{median:>10.1}{p99:>10.1}{worst:>10.1}  ms"
        ))?;
    }
    Ok(())
}

/// Requests without an answer.
fn lost(some: &[&Value], window: &str) -> Result<()> {
    let sum = |key: &str| -> u64 {
        let all = some.iter().filter_map(|line| line[window][key].as_u64());
        all.sum()
    };
    let without = some.iter().filter(|line| line[window]["unanswered"] == 0);
    say(&format!(
        "requests without an answer: {} of {}; none in {} of {}",
        sum("unanswered"),
        sum("requests"),
        without.count(),
        some.len()
    ))?;
    let mut dropped = BTreeMap::<&str, u64>::new();
    for line in some.iter().filter(|line| line[window]["unanswered"] != 0) {
        for (what, count) in line[window]["dropped"].as_object().into_iter().flatten() {
            *dropped.entry(what).or_default() += count.as_u64().unwrap_or(0);
        }
    }
    for (what, count) in dropped {
        say(&format!(
            "  dropped meanwhile, where some have none: {count} by {what}"
        ))?;
    }
    Ok(())
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
