//! How long traffic is interrupted when the active one of three members is
//! killed, and in what that time is spent. `cluster-tests/measure-takeover`
//! builds and starts it.

use anyhow::{Context, ensure};
use evergate_cluster_tests::capture::{now, packets};
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio, place};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::log;
use evergate_cluster_tests::packet::Body;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs};
use serde_json::{Value, json};
use std::io::Write;
use std::net::IpAddr;

/// The goal for every gap, and what it must stay below, in milliseconds.
const BOUNDS: (f64, f64) = (500.0, 1000.0);

/// Who is killed.
#[derive(Clone, Copy, PartialEq)]
enum Victim {
    /// The active member, which does not lead.
    Follower,
    /// The active member, which leads.
    Leader,
    /// The leader, which is not active: nobody should notice.
    Bystander,
}

/// In this order, over and over.
const VICTIMS: [Victim; 2] = [Victim::Follower, Victim::Leader];

fn main() -> Result<()> {
    let kills = match std::env::args().nth(1) {
        Some(text) => text.parse().context("KILLS is a number")?,
        None => 20,
    };
    ensure!(kills > 0, "nothing to measure");
    let gateway = Gateway::usual();
    let mut trio = Trio::start(
        Pace::Usual,
        Esp::InUdp,
        std::slice::from_ref(&gateway),
        |_| {},
    )?;
    let (spis, established) = (trio.up(&gateway.name)?, now());
    let mut all = Vec::new();
    let victims = VICTIMS.iter().copied().cycle().take(kills);
    let bystanders = std::iter::repeat_n(Victim::Bystander, kills.div_ceil(2));
    for (round, victim) in (1..).zip(victims.chain(bystanders)) {
        let taken = kill(&mut trio, &gateway.name, victim)?;
        ensure!(
            trio.agree(&gateway.name, 1)? == spis,
            "other SAs after a takeover"
        );
        say(&format!("{round:>3}: {taken}"))?;
        all.push(taken);
    }
    let found = trio.finish()?;
    let again = found.authentications_after(established);
    ensure!(again == 0, "{again} messages of new authentications");
    if let Some(path) = std::env::var_os("RESULTS") {
        let lines: Vec<String> = all.iter().map(Value::to_string).collect();
        std::fs::write(path, lines.join("\n") + "\n")?;
    }
    say(&format!(
        "\nthe same SPIs, no new authentication, no IV twice in {} frames",
        found.frames_checked
    ))?;
    let group = |takeover: bool, leader: Option<bool>| -> Vec<&Value> {
        let fits = |one: &&Value| {
            one["takeover"] == takeover && leader.is_none_or(|leader| one["leader"] == leader)
        };
        all.iter().filter(fits).collect()
    };
    report("kills of the active member", &group(true, None))?;
    report("of them, it did not lead", &group(true, Some(false)))?;
    report("of them, it led", &group(true, Some(true)))?;
    report("kills of a leader that was not active", &group(false, None))
}

/// Kills a member under traffic, starts it again, and says what the takeover consisted of, in milliseconds.
fn kill(trio: &mut Trio, gateway: &str, victim: Victim) -> Result<Value> {
    let active = place(&mut trio.members, gateway, victim == Victim::Leader)?;
    let takeover = victim != Victim::Bystander;
    let dead = if takeover { active } else { trio.leader()? };
    // All members are as they were before the last kill, their connections too.
    std::thread::sleep(secs(1));
    let flow = trio.traffic(V4, 1)?;
    flow.runs(500, secs(20))?;
    let killed = now();
    trio.members[dead].kill9()?;
    flow.runs(if takeover { 500 } else { 1000 }, secs(20))?;
    let report = flow.stop();
    report.has_no_duplicate()?;
    let gap = report.forth.longest_gap.max(report.back.longest_gap);
    let successor = trio.active(gateway)?;
    let mut survivors = String::new();
    for (n, member) in trio.members.iter().enumerate() {
        if n != dead {
            survivors += &member.log()?;
        }
    }
    let when = |event: &str| log::first(&survivors, event, killed);
    // The first packet may come before the line that says so.
    let between = |from: u64, to: u64| (to as f64 - from as f64).max(0.0) / 1000.0;
    let mut result = json!({
        "killed": dead + 1,
        "leader": victim != Victim::Follower,
        "takeover": takeover,
        "successor": successor + 1,
        "gap_ms": gap.as_secs_f64() * 1000.0,
        "elected_ms": when("leads").map(|at| between(killed, at)),
        "lost": [report.forth.lost, report.back.lost],
    });
    if takeover {
        let assigned = when("assigning").context("nobody assigned the gateway")?;
        let prepared = when("gateway-prepared").context("nobody prepared the gateway")?;
        let taken = when("gateway-taken").context("nobody took the gateway")?;
        let first = first_packet(trio, prepared)?;
        result["detection_ms"] = between(killed, assigned).into();
        result["commit_ms"] = between(assigned, prepared).into();
        result["address_ms"] = between(prepared, taken).into();
        result["first_packet_ms"] = between(taken, first).into();
    } else {
        ensure!(successor == active, "the gateway moved");
    }
    trio.start_again(dead)?;
    Ok(result)
}

/// When the gateway sent its first ESP packet after that.
fn first_packet(trio: &Trio, after: u64) -> Result<u64> {
    let gateway: IpAddr = V4.outer(2).parse()?;
    let mut frames = trio.capture.so_far()?;
    frames.retain(|(at, _)| *at > after);
    let sent = packets(&frames)
        .into_iter()
        .filter(|p| p.src == gateway && matches!(p.body, Body::Esp { .. }));
    sent.map(|p| p.at)
        .min()
        .context("no packet after the takeover")
}

fn report(what: &str, some: &[&Value]) -> Result<()> {
    if some.is_empty() {
        return Ok(());
    }
    let title = format!("{} {what}", some.len());
    say(&format!("\n{title:<44}{:>10}{:>10}", "median", "worst"))?;
    let rows = [
        ("longest gap", "gap_ms"),
        (
            "  until the gateway is assigned (detection)",
            "detection_ms",
        ),
        ("  of it until there is a leader, if it died", "elected_ms"),
        ("  until the successor knows it (commit)", "commit_ms"),
        ("  until it serves (lease, address)", "address_ms"),
        ("  until its first packet", "first_packet_ms"),
    ];
    for (what, key) in rows {
        let mut values: Vec<f64> = some.iter().filter_map(|one| one[key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        if let (Some(median), Some(worst)) = (values.get(values.len() / 2), values.last()) {
            say(&format!("{what:<44}{median:>10.1}{worst:>10.1}  ms"))?;
        }
    }
    let gaps = || some.iter().filter_map(|one| one["gap_ms"].as_f64());
    say(&format!(
        "{} of {} gaps within the goal of {} ms, {} at {} ms or above",
        gaps().filter(|gap| *gap <= BOUNDS.0).count(),
        some.len(),
        BOUNDS.0,
        gaps().filter(|gap| *gap >= BOUNDS.1).count(),
        BOUNDS.1
    ))
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
