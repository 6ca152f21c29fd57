//! What is changed while a cluster goes on: its key, its certificates, and the version of the program.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::member::binary;
use evergate_cluster_tests::process::run;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::PathBuf};

const G: &str = "g1";

/// The environment in which a member is of an older version: it knows level 1 of the replicated format.
const OLDER: [(&str, &str); 1] = [("EVERGATE_LEVEL", "1")];

fn key_file(trio: &Trio, n: usize) -> PathBuf {
    trio.members[n].dir().join("cluster.key")
}

/// Changes the first member's file of keys, and gives the others the same.
fn change_keys(trio: &mut Trio, how: &str, members: impl Iterator<Item = usize>) -> Result<()> {
    let first = key_file(trio, 0);
    if !how.is_empty() {
        let path = first.to_str().context("path")?;
        run(&[&binary()?, "keygen", how, path])?;
    }
    for n in members {
        if n > 0 {
            fs::copy(&first, key_file(trio, n))?;
        }
        trio.signal(n, Signal::SIGHUP)?;
    }
    Ok(())
}

/// What a member says of the keys of all.
fn keys(trio: &Trio, n: usize) -> Result<Vec<Value>> {
    let text = trio.members[n].ctl(&["keys", "--json"])?;
    let all: Value = serde_json::from_str(&text)?;
    Ok(all.as_array().context("no keys")?.clone())
}

/// The keys for which something holds, according to any member.
fn named(keys: &[Value], which: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let chosen = keys.iter().filter(|k| which(k));
    chosen
        .map(|k| k["key"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn the_cluster_key_changes_under_traffic() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |_| {})?;
    trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    let mut old = BTreeSet::new();
    until(secs(20), "all members have told of their key", || {
        let all = keys(&trio, 0)?;
        old = named(&all, |k| k["used"] == true && k["needed"] == true);
        Ok(all.len() == MEMBERS && old.len() == 1)
    })?;
    // The key of who has not all of it yet is not used.
    change_keys(&mut trio, "--rotate", 0..1)?;
    until(secs(20), "one member has another key", || {
        Ok(keys(&trio, 1)?.len() == MEMBERS + 1)
    })?;
    ensure!(named(&keys(&trio, 1)?, |k| k["used"] == true) == old);
    change_keys(&mut trio, "", 1..MEMBERS)?;
    let mut new = BTreeSet::new();
    until(secs(60), "only the new key is needed", || {
        let all = keys(&trio, 2)?;
        new = named(&all, |k| k["used"] == true);
        Ok(new.is_disjoint(&old) && named(&all, |k| k["needed"] == true) == new)
    })?;
    // A file without the key that is used is refused, and nothing changes.
    let kept = trio.members[1].dir().join("kept.key");
    fs::rename(key_file(&trio, 1), &kept)?;
    let path = key_file(&trio, 1);
    run(&[
        &binary()?,
        "keygen",
        "--out",
        path.to_str().context("path")?,
    ])?;
    trio.signal(1, Signal::SIGHUP)?;
    until(secs(20), "the file is refused", || {
        Ok(trio.members[1].log()?.contains("still needed"))
    })?;
    fs::rename(&kept, key_file(&trio, 1))?;
    change_keys(&mut trio, "--prune", 0..MEMBERS)?;
    until(secs(20), "the former key is gone", || {
        let all = keys(&trio, 0)?;
        Ok(all.len() == MEMBERS && named(&all, |_| true) == new)
    })?;
    // Tunnels live on, and members start with the new key alone.
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    flow.runs(100, secs(20))?;
    trio.start_again(active)?;
    trio.active(G)?;
    trio.peer.rekey_child(C1)?;
    trio.agree(G, 1)?;
    flow.runs(100, secs(20))?;
    flow.stop().has_no_duplicate()?;
    trio.finish().map(drop)
}

/// Waits until all members have read their files again so many times.
fn read_again(trio: &mut Trio, times: usize) -> Result<()> {
    for n in 0..MEMBERS {
        trio.signal(n, Signal::SIGHUP)?;
    }
    until(secs(20), "all members have read their certificates", || {
        (0..MEMBERS).try_fold(true, |all, n| {
            let log = trio.members[n].log()?;
            Ok(all && log.matches("event=\"credentials\"").count() >= times)
        })
    })
}

/// Waits until a member finds that nothing is wrong, so all of them talk with each other.
fn is_well(trio: &Trio, n: usize) -> Result<()> {
    until(secs(30), "nothing is wrong", || {
        let text = trio.members[n].ctl(&["doctor"])?;
        ensure!(text.starts_with("nothing is wrong"), "{text}");
        Ok(true)
    })
}

#[test]
fn another_authority_takes_the_place_of_the_first() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |_| {})?;
    trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    let old = trio.lab.dir_of("pki")?.join("ca");
    let new = trio.lab.dir_of("pki")?.join("new");
    let path = new.to_str().context("path")?.to_owned();
    run(&[&binary()?, "pki", "init", &path])?;
    let authority = |dir: &std::path::Path| fs::read_to_string(dir.join("ca.pem"));
    // Both authorities are believed, then all have a certificate of the new one, then only that is believed.
    fs::write(old.join("ca.pem"), authority(&old)? + &authority(&new)?)?;
    read_again(&mut trio, 1)?;
    for n in 1..=MEMBERS {
        let name = format!("m{n}");
        run(&[&binary()?, "pki", "issue", "--name", &name, &path])?;
        for file in [format!("{name}.key"), format!("{name}.pem")] {
            fs::copy(new.join(&file), old.join(&file))?;
        }
    }
    read_again(&mut trio, 2)?;
    let active = trio.active(G)?;
    let other = (active + 1) % MEMBERS;
    trio.members[other].kill9()?;
    trio.start_again(other)?;
    is_well(&trio, active)?;
    fs::copy(new.join("ca.pem"), old.join("ca.pem"))?;
    read_again(&mut trio, 3)?;
    trio.members[active].kill9()?;
    flow.runs(100, secs(20))?;
    trio.start_again(active)?;
    is_well(&trio, active)?;
    // What cannot be used is refused, and nothing changes.
    fs::write(old.join(format!("m{}.pem", other + 1)), "nothing")?;
    trio.signal(other, Signal::SIGHUP)?;
    until(secs(20), "the file is refused", || {
        Ok(trio.members[other].log()?.contains("credentials-refused"))
    })?;
    is_well(&trio, other)?;
    flow.runs(50, secs(20))?;
    flow.stop().has_no_duplicate()?;
    trio.finish().map(drop)
}

/// Whether a member uses a later level of the replicated format than the first.
fn is_raised(trio: &Trio, n: usize) -> Result<bool> {
    Ok(trio.members[n].log()?.contains("event=\"format-raised\""))
}

#[test]
fn an_upgrade_one_by_one_loses_nothing() -> Result<()> {
    let gateways = [Gateway::usual()];
    let mut trio = Trio::start_with(Pace::Patient, Esp::InUdp, &gateways, |_| {}, &OLDER)?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    for n in 0..MEMBERS {
        let name = format!("m{}", n + 1);
        trio.members[n].ctl(&["drain", &name])?;
        trio.members[n].stop()?;
        trio.start_again(n)?;
        trio.members[n].ctl(&["drain", &name, "--undo"])?;
        // Both versions do all that there is to do.
        trio.peer.rekey_child(C1)?;
        trio.agree(G, 1)?;
        flow.runs(50, secs(20))?;
        let raised = (0..MEMBERS).filter(|n| is_raised(&trio, *n).is_ok_and(|raised| raised));
        ensure!(n + 1 == MEMBERS || raised.count() == 0, "after {name}");
    }
    until(secs(20), "all members use what is new", || {
        (0..MEMBERS).try_fold(true, |all, n| Ok(all && is_raised(&trio, n)?))
    })?;
    until(secs(20), "what is new works", || {
        Ok(keys(&trio, 0)?.len() == MEMBERS)
    })?;
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    ensure!(trio.agree(G, 1)?.ike == up.ike, "the IKE SA is the same");
    // There is no way back, and that is said.
    trio.members[0].stop()?;
    trio.members[0].spawn(&OLDER)?;
    until(secs(20), "the older version says what is wrong", || {
        let log = trio.members[0].log()?;
        Ok(log.contains("another version of the program wrote it")
            || log.contains("this program knows up to"))
    })?;
    trio.members[0].kill9()?;
    trio.start_again(0)?;
    trio.agree(G, 1)?;
    trio.finish().map(drop)
}
