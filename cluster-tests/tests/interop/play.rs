//! The course of every scenario: the tunnel comes up, carries traffic, is
//! rekeyed by both sides, carries traffic again, and ends. Nothing is lost, and
//! Wireshark decodes all that was said.

use crate::scenario::{By, Case, Scenario};
use anyhow::ensure;
use evergate_cluster_tests::decrypt::{decode, dissect};
use evergate_cluster_tests::duo::{C1, Duo};
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::{Result, secs, until};

pub(crate) fn play(scenario: &Scenario, case: Case) -> Result<()> {
    let duo = (scenario.start)(&scenario.setup(case))?;
    let children = scenario.children.len();
    for child in scenario.children {
        initiate_child(&duo, case.by, child)?;
    }
    duo.agree(children)?;
    (scenario.traffic)(&duo)?;
    (scenario.look)(&duo, case.by)?;
    if !scenario.by_timers {
        let before = duo.agree(children)?;
        rekey(&duo, children, case.by, &before)?;
        (scenario.traffic)(&duo)?;
    }
    end(&duo, case.by)?;
    dissected(&duo, true)?;
    decoded(&duo, scenario)?;
    duo.finish().map(drop)
}

/// The responder ends it.
pub(crate) fn end(duo: &Duo, by: By) -> Result<()> {
    match by {
        By::Peer => duo.member.terminate(C1)?,
        By::Member => duo.peer.terminate(C1)?,
    }
    until(secs(30), "both sides forget", || {
        let (member, peer) = (Spis::of(&duo.member.sas()?), Spis::of(&duo.peer.sas()?));
        Ok(member == Spis::default() && peer == Spis::default())
    })
}

/// The other side rekeys the Child SA, and the initiator the IKE SA, so that each case has both roles.
pub(crate) fn rekey(duo: &Duo, children: usize, by: By, first: &Spis) -> Result<()> {
    match by {
        By::Peer => duo.member.rekey_child(C1)?,
        By::Member => duo.peer.rekey_child(C1)?,
    }
    let second = other_than(duo, children, |now| !first.child.is_subset(&now.child))?;
    match by {
        By::Peer => duo.peer.rekey_ike(C1)?,
        By::Member => duo.member.rekey_ike(C1)?,
    }
    other_than(duo, children, |now| now.ike.is_disjoint(&second.ike)).map(drop)
}

/// The initiator starts the usual child.
pub(crate) fn initiate(duo: &Duo, by: By) -> Result<()> {
    initiate_child(duo, by, C1)
}

fn initiate_child(duo: &Duo, by: By, child: &str) -> Result<()> {
    match by {
        By::Peer => duo.peer.initiate(C1, child),
        By::Member => duo.member.initiate(C1, child),
    }
}

/// Waits until both sides agree on SAs that are others than before.
fn other_than(duo: &Duo, children: usize, others: impl Fn(&Spis) -> bool) -> Result<Spis> {
    duo.agree_on(children, others)
}

/// Datagrams both ways in both inner families: none is lost.
pub(crate) fn between_networks(duo: &Duo) -> Result<()> {
    let flows = [duo.traffic(V4, 5)?, duo.traffic(V6, 5)?];
    for flow in &flows {
        flow.runs(20, secs(10))?;
    }
    for flow in flows {
        flow.stop().is_lossless()?;
    }
    Ok(())
}

/// Wireshark finds nothing wrong with any message, and, with `keys`, inside them where it can open them.
pub(crate) fn dissected(duo: &Duo, keys: bool) -> Result<()> {
    let profile = if keys {
        duo.member.dir().join("keys")
    } else {
        duo.lab.dir_of("no-keys")?
    };
    let wrong = dissect(&duo.capture.copy()?, &profile)?;
    ensure!(wrong.is_empty(), "Wireshark complains: {wrong:?}");
    Ok(())
}

/// Wireshark opens what it knows the keys and the algorithm of.
fn decoded(duo: &Duo, scenario: &Scenario) -> Result<()> {
    let (capture, keys) = (duo.capture.copy()?, duo.member.dir().join("keys"));
    if scenario.decrypted {
        let decoded = decode(&capture, &keys)?;
        ensure!(
            decoded.ike >= 8 && decoded.esp >= 80 && decoded.ike_failed + decoded.esp_failed == 0,
            "Wireshark opens not all: {decoded:?}"
        );
    }
    Ok(())
}
