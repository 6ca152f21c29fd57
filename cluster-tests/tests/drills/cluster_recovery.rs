//! A cluster without most of its members: for a while, for good, and when nothing is left but a backup.

use anyhow::{Context, ensure};
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Spis;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use std::{fs, thread};

const G: &str = "g1";

const DO_IT: &str = "--the-others-are-gone";

fn start() -> Result<Trio> {
    Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |_| {})
}

/// The members but these.
fn others(but: &[usize]) -> Vec<usize> {
    (0..MEMBERS).filter(|n| !but.contains(n)).collect()
}

fn name(n: usize) -> String {
    format!("m{}", n + 1)
}

/// What a member that does not run is asked to do is refused.
fn refused(trio: &Trio, n: usize, arguments: &[&str], why: &str) -> Result<()> {
    let error = trio.members[n].offline(arguments).err().context("done")?;
    ensure!(error.to_string().contains(why), "{error:#}");
    Ok(())
}

fn logs(trio: &Trio, n: usize, what: &str) -> Result<()> {
    until(secs(20), &format!("{what:?} is in the log"), || {
        Ok(trio.members[n].log()?.contains(what))
    })
}

fn ends_with(trio: &mut Trio, n: usize, why: &str) -> Result<()> {
    trio.members[n].wait_for_end()?;
    let log = trio.members[n].log()?;
    ensure!(log.contains(why), "{why:?} is not in {log}");
    Ok(())
}

/// The only member of a generation serves, without any SA, and the peer sets up its tunnel anew.
fn begins_anew(trio: &mut Trio, n: usize, generation: u64) -> Result<Spis> {
    ensure!(trio.active(G)? == n);
    let status = trio.members[n].status()?;
    ensure!(status["generation"] == generation, "{status}");
    ensure!(
        trio.sas_of(n)?.is_empty(),
        "it has SAs of the former generation"
    );
    trio.peer.forget(C1)?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    Ok(up)
}

/// The others join with tokens and empty directories, and one of them goes on with the tunnel when the first one dies.
fn grows_again(trio: &mut Trio, first: usize, up: &Spis) -> Result<()> {
    for n in others(&[first]) {
        let state = trio.members[n].dir().join("state");
        if state.exists() {
            fs::remove_dir_all(state)?;
        }
        trio.is_to_join(n, first)?;
        let address = format!("10.77.0.{}:4510", 11 + n);
        trio.join(n, first, &["add", &name(n), &address])?;
    }
    trio.has_voters(first, &["m1", "m2", "m3"])?;
    trio.members[first].kill9()?;
    let flow = trio.traffic(V4, 5)?;
    trio.active(G)?;
    flow.runs(50, secs(20))?;
    flow.stop().has_no_duplicate()?;
    ensure!(trio.agree(G, 1)? == *up, "the same tunnel");
    Ok(())
}

#[test]
fn one_of_three_goes_on_as_another_generation() -> Result<()> {
    let mut trio = start()?;
    trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    let owner = trio.active(G)?;
    let [survivor, cut] = others(&[owner])[..] else {
        anyhow::bail!("three members");
    };
    refused(&trio, survivor, &["recover"], "in use by another process")?;
    // One dies, and one is only cut off, which nobody can tell from here.
    trio.members[owner].kill9()?;
    trio.members[survivor].kill9()?;
    flow.stop().has_no_duplicate()?;
    refused(
        &trio,
        survivor,
        &["recover", DO_IT],
        &format!("{} still runs", name(cut)),
    )?;
    trio.cut(cut, true)?;
    let said = trio.members[survivor].offline(&["recover"])?;
    ensure!(
        said.contains("Nothing was changed") && said.contains("generation 2 will have"),
        "{said}"
    );
    let said = trio.members[survivor].offline(&["recover", DO_IT])?;
    ensure!(said.contains("generation-founded"), "{said}");

    let founded = now();
    trio.start_again(survivor)?;
    logs(&trio, survivor, "this is generation 2 of the cluster")?;
    until(secs(20), "the gateway is served", || {
        trio.serves(survivor, G)
    })?;
    // Who ran all the time hears of it, and says so; what it has is good for nothing from then on, whether it is heard or not.
    trio.cut(cut, false)?;
    logs(&trio, cut, "generation 2 of this cluster has begun")?;
    until(secs(10), "it serves nothing", || Ok(!trio.serves(cut, G)?))?;
    trio.members[cut].kill9()?;
    trio.cut(cut, true)?;
    trio.members[cut].spawn(&[])?;
    ends_with(&mut trio, cut, "generation 2 of this cluster has begun")?;
    trio.cut(cut, false)?;
    // So does who starts again with what it had.
    trio.members[owner].spawn(&[])?;
    ends_with(&mut trio, owner, "generation 2 of this cluster has begun")?;

    let up = begins_anew(&mut trio, survivor, 2)?;
    let speakers = trio.speakers(founded)?;
    ensure!(
        speakers.len() == 1,
        "two speak from the gateway's addresses: {speakers:?}"
    );
    grows_again(&mut trio, survivor, &up)?;
    trio.finish().map(drop)
}

#[test]
fn a_cluster_is_restored_from_a_backup() -> Result<()> {
    let mut trio = start()?;
    trio.up(G)?;
    let file = trio.lab.dir().join("backup");
    let file = file.to_str().context("path")?.to_owned();
    let asked = (trio.leader()? + 1) % MEMBERS;
    trio.members[asked].ctl(&["backup", &file])?;
    let again = trio.members[asked].ctl(&["backup", &file]).err();
    let again = again.context("a backup was overwritten")?;
    ensure!(again.to_string().contains("exists already"), "{again:#}");
    refused(
        &trio,
        1,
        &["restore", DO_IT, &file],
        "in use by another process",
    )?;
    for member in &mut trio.members {
        member.kill9()?;
    }
    refused(&trio, 1, &["restore", DO_IT, &file], "is not empty")?;
    for member in &trio.members {
        fs::remove_dir_all(member.dir().join("state"))?;
    }
    let said = trio.members[1].offline(&["restore", &file])?;
    ensure!(
        said.contains("Nothing was changed") && said.contains("its members were m1, m2, m3"),
        "{said}"
    );
    trio.members[1].offline(&["restore", DO_IT, &file])?;
    trio.start_again(1)?;
    let up = begins_anew(&mut trio, 1, 2)?;
    grows_again(&mut trio, 1, &up)?;
    trio.finish().map(drop)
}

#[test]
fn without_a_majority_the_owner_falls_silent_and_goes_on_later() -> Result<()> {
    let mut trio = start()?;
    let (up, established) = (trio.up(G)?, now());
    let owner = trio.active(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    for n in others(&[owner]) {
        trio.members[n].kill9()?;
    }
    until(
        secs(20),
        "its lease is over",
        || Ok(!trio.serves(owner, G)?),
    )?;
    logs(&trio, owner, "lease-over")?;
    logs(&trio, owner, "majority-lost")?;
    // What it sent before that was allowed; from now on neither it nor its kernel says anything, though the protected network goes on to send.
    thread::sleep(secs(1));
    let silent = now();
    thread::sleep(secs(3));
    let speakers = trio.speakers(silent)?;
    ensure!(speakers.is_empty(), "{speakers:?} speak without a lease");
    let text = trio.members[owner].ctl(&["doctor"])?;
    ensure!(
        text.contains("nobody serves until 1 more are back") && text.contains("evergate recover"),
        "{text}"
    );
    let text = trio.members[owner].ctl(&["status"])?;
    ensure!(
        text.contains("most members have not answered for"),
        "{text}"
    );
    flow.stop().has_no_duplicate()?;

    trio.start_again(others(&[owner])[0])?;
    trio.active(G)?;
    logs(&trio, owner, "majority-back")?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    flow.stop().has_no_duplicate()?;
    ensure!(trio.agree(G, 1)? == up, "the same SAs");
    let found = trio.finish()?;
    ensure!(found.authentications_after(established) == 0);
    Ok(())
}
