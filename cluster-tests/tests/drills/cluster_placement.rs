//! Which member has how many gateways, by weight; and a learner, which serves before it votes.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs};
use serde_json::Value;

const G: &str = "g1";

/// A member, as another one sees it.
fn member(trio: &Trio, n: usize, name: &str) -> Result<Value> {
    let text = trio.members[n].ctl(&["members", "--json"])?;
    let all: Vec<Value> = serde_json::from_str(&text)?;
    let found = all.into_iter().find(|m| m["name"] == name);
    found.with_context(|| format!("no {name} in {text}"))
}

#[test]
fn gateways_are_spread_by_the_weights_that_members_are_configured_with() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &Gateway::several(6), |_| {})?;
    trio.has_spread(0, |counts| counts.values().all(|n| *n == 2))?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    for n in 0..MEMBERS {
        trio.members[n].stop()?;
        let (rack, weight) = (n / 2, (n + 1) * 100);
        trio.configure_member(n, &format!("zone = \"rack{rack}\"\nweight = {weight}"))?;
        trio.start_again(n)?;
    }
    let wanted = [("m1", 1), ("m2", 2), ("m3", 3)].map(|(name, n)| (name.to_owned(), n));
    trio.has_spread(0, |counts| {
        counts.iter().eq(wanted.iter().map(|(m, n)| (m, n)))
    })?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    ensure!(trio.agree(G, 1)? == up, "other SAs");
    let third = member(&trio, 0, "m3")?;
    ensure!(
        third["zone"] == "rack1" && third["weight"] == 300,
        "{third}"
    );
    trio.finish().map(drop)
}

#[test]
fn a_learner_serves_and_votes_once_it_is_promoted() -> Result<()> {
    let mut trio = Trio::start_with_one(Pace::Patient, Esp::InUdp, 2)?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    trio.join(1, 0, &["add", "m2", "10.77.0.12:4510", "--learner"])?;
    trio.members[0].ctl(&["move", G, "m2"])?;
    ensure!(trio.active(G)? == 1);
    flow.runs(50, secs(10))?;
    ensure!(
        member(&trio, 1, "m2")?["voter"] == false,
        "it votes already"
    );

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
