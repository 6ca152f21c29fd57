//! A cluster grows, shrinks and is repaired while a peer's tunnel is up.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use std::{thread, time::Duration};

const G: &str = "g1";

/// Where a member is reached by others.
fn address(n: usize) -> String {
    format!("10.77.0.{}:4510", 11 + n)
}

/// The members with these numbers are added, one after the other; the one before is asked each time.
fn grow(trio: &mut Trio, more: std::ops::Range<usize>) -> Result<()> {
    for n in more {
        let name = format!("m{}", n + 1);
        trio.join(n, n - 1, &["add", &name, &address(n)])?;
        let names: Vec<String> = (0..=n).map(|n| format!("m{}", n + 1)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        trio.has_voters(0, &names)?;
    }
    Ok(())
}

/// Why a command of an operator is refused.
fn refused(trio: &Trio, n: usize, arguments: &[&str], why: &str) -> Result<()> {
    let error = trio.members[n].ctl(arguments).err().context("done")?;
    ensure!(error.to_string().contains(why), "{error:#}");
    Ok(())
}

/// Waits until a member's process has ended, and said why.
fn ends_with(trio: &mut Trio, n: usize, why: &str) -> Result<()> {
    trio.members[n].wait_for_end()?;
    let log = trio.members[n].log()?;
    ensure!(log.contains(why), "{why:?} is not in {log}");
    Ok(())
}

#[test]
fn one_member_grows_to_three_and_the_first_dies() -> Result<()> {
    let mut trio = Trio::start_with_one(Pace::Patient, Esp::InUdp, 3)?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    grow(&mut trio, 1..3)?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;

    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    trio.members[0].kill9()?;
    let successor = trio.active(G)?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    ensure!(trio.agree(G, 1)?.child == up.child, "the same tunnel");

    // Two are left of three: neither may go, and the dead one may.
    refused(
        &trio,
        successor,
        &["member", "remove", "m2"],
        "only 1 answer",
    )?;
    trio.members[successor].ctl(&["member", "remove", "m1"])?;
    trio.has_voters(1, &["m2", "m3"])?;
    // Its disk says that it is a member, the others that it is none.
    trio.members[0].spawn(&[])?;
    ends_with(&mut trio, 0, "was removed from the cluster")?;
    ensure!(trio.active(G)? == successor);
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    trio.finish().map(drop)
}

#[test]
fn a_member_is_replaced_and_no_packet_is_lost() -> Result<()> {
    let mut trio = Trio::start_with_one(Pace::Patient, Esp::InUdp, 4)?;
    grow(&mut trio, 1..3)?;
    trio.up(G)?;
    let old = trio.active(G)?;
    ensure!(old == 0, "who was there first has the gateway");
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    trio.join(3, 1, &["replace", "m1", "m4", &address(3)])?;
    trio.has_voters(1, &["m2", "m3", "m4"])?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    // It was told, serves nothing, and is good for nothing.
    until(secs(10), "the member says that it was removed", || {
        Ok(trio.members[0]
            .log()?
            .contains("was removed from the cluster"))
    })?;
    ensure!(!trio.serves(0, G)?);
    refused(
        &trio,
        0,
        &["member", "add", "m9", "10.77.0.19:4510"],
        "no longer serves anything",
    )?;
    trio.members[0].stop()?;
    trio.members[0].spawn(&[])?;
    ends_with(&mut trio, 0, "cannot register this process")?;
    trio.has_voters(1, &["m2", "m3", "m4"])?;
    trio.finish().map(drop)
}

#[test]
fn a_token_that_is_no_good_lets_nobody_in() -> Result<()> {
    let mut trio = Trio::start_with_one(Pace::Patient, Esp::InUdp, 3)?;
    let token = |trio: &Trio, arguments: &[&str]| -> Result<String> {
        let said = trio.members[0].ctl(&[&["member"], arguments].concat())?;
        Ok(said.lines().next().context("no token")?.to_owned())
    };
    let comes = |trio: &mut Trio, n: usize, token: &str, why: &str| -> Result<()> {
        trio.give_token(n, token)?;
        trio.members[n].spawn(&[])?;
        ends_with(trio, n, why)
    };
    let of_m2 = token(&trio, &["add", "m2", &address(1)])?;
    comes(&mut trio, 2, &of_m2, "there is no token for member m3")?;
    let late = token(&trio, &["add", "m3", &address(2), "--valid-for", "1s"])?;
    thread::sleep(Duration::from_millis(1500));
    comes(&mut trio, 2, &late, "the token for member m3 has expired")?;
    let withdrawn = token(&trio, &["add", "m3", &address(2)])?;
    trio.members[0].ctl(&["member", "remove", "m3"])?;
    comes(&mut trio, 2, &withdrawn, "there is no token for member m3")?;

    trio.give_token(1, &of_m2)?;
    trio.members[1].start_again(&[])?;
    trio.has_voters(0, &["m1", "m2"])?;
    refused(
        &trio,
        1,
        &["member", "add", "m2", "10.77.0.19:4510"],
        "is a member already",
    )?;
    trio.members[0].ctl(&["member", "remove", "m2"])?;
    trio.has_voters(0, &["m1"])?;
    // What is on its disk is not looked at any more, and its token is used up.
    trio.members[1].stop()?;
    std::fs::remove_dir_all(trio.members[1].dir().join("state"))?;
    trio.members[1].spawn(&[])?;
    ends_with(&mut trio, 1, "there is no token for member m2")?;
    trio.has_voters(0, &["m1"])?;
    refused(&trio, 0, &["member", "remove", "m1"], "is the only voter")?;
    trio.finish().map(drop)
}

#[test]
fn a_learner_serves_and_votes_once_it_is_promoted() -> Result<()> {
    let mut trio = Trio::start_with_one(Pace::Patient, Esp::InUdp, 2)?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    trio.join(1, 0, &["add", "m2", &address(1), "--learner"])?;
    trio.move_to(0, G, 1)?;
    ensure!(trio.active(G)? == 1);
    flow.runs(50, secs(10))?;
    // One change of the members is made after the other.
    until(secs(30), "the learner has joined", || {
        Ok(trio.member(0, "m2")?["way"] == "in")
    })?;
    ensure!(trio.member(1, "m2")?["voter"] == false, "it votes already");

    let refused = trio.members[1].ctl(&["member", "promote", "m9"]);
    let refused = refused.err().context("a stranger votes")?;
    ensure!(refused.to_string().contains("m9"), "{refused:#}");
    trio.members[1].ctl(&["member", "promote", "m2"])?;
    trio.has_voters(0, &["m1", "m2"])?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    ensure!(trio.agree(G, 1)? == up, "other SAs");
    trio.finish().map(drop)
}
