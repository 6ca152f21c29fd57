//! Peers that come again: with their state lost, and while they have an SA already.

use crate::addresses::{pools, roaming};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{Family::V4, PROTECTED};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::{
    Esp::{self, InUdp, Plain},
    StrongSwan,
};
use evergate_cluster_tests::{Result, millis, patience, secs, until};

fn setup(esp: Esp, unique: &'static str) -> Setup {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    (setup.peer, setup.gateway) = roaming(1, &["0.0.0.0"]);
    setup.gateway.unique = unique;
    setup.pools = pools("10.99.0.0/24", "fd00:99::/112");
    setup
}

fn killed_and_back(esp: Esp) -> Result<()> {
    let setup = setup(esp, "no");
    let mut duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let before = duo.agree(1)?;
    duo.peer.process().kill9()?;
    duo.peer = StrongSwan::start(&duo.lab, "peer1", esp, std::slice::from_ref(&setup.peer))?;
    duo.peer.initiate(C1, C1)?;
    // There are no liveness checks here: what has gone has gone by what the peer said.
    let after = duo.agree(1)?;
    assert!(after.ike.len() == 1 && after.ike.is_disjoint(&before.ike));
    let got = duo.peer.virtual_addresses()?;
    assert!(got.len() == 2 && got[0] == got[1], "{got:?}");
    let flow = Flow::start(
        &duo.lab,
        ("peer1", &got[0]),
        ("host", PROTECTED[0]),
        millis(5),
        200,
    )?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    assert!(duo.member.log()?.contains("ike-displaced"));
    duo.finish()?;
    Ok(())
}

#[test]
fn a_peer_that_was_killed_comes_again_with_the_same_address() -> Result<()> {
    killed_and_back(InUdp)
}

#[test]
fn so_does_strongswan_6_1() -> Result<()> {
    killed_and_back(Plain)
}

/// Two hosts with one identity: neither says that it is alone, because its own state knows of no other, so strongSwan is told not to.
fn second_with_the_same_identity(unique: &'static str) -> Result<(Duo, Result<String>)> {
    let mut setup = setup(InUdp, unique);
    setup.gateway.remote = "%any".into();
    let mut lab = evergate_cluster_tests::lab::Lab::new(1500)?;
    lab.add_peer(1)?;
    lab.add_peer(3)?;
    let capture = evergate_cluster_tests::capture::Capture::start(&lab)?;
    let gateway = std::slice::from_ref(&setup.gateway);
    let member = evergate_cluster_tests::member::Member::start(&lab, "gw", gateway, &setup.pools)?;
    setup.peer.unique = "never";
    let duo = Duo::with(lab, capture, member, &setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let mut other = setup.peer.clone();
    other.local = V4.outer(3);
    let second = StrongSwan::start(&duo.lab, "peer3", InUdp, &[other])?;
    let outcome = second.initiate_within(C1, 30 * patience());
    if outcome.is_ok() {
        until(secs(30), "the first peer is told", || {
            Ok(Spis::of(&duo.peer.sas()?) == Spis::default())
        })?;
    }
    drop(second);
    Ok((duo, outcome))
}

#[test]
fn a_second_one_is_refused_where_the_first_is_kept() -> Result<()> {
    let (duo, outcome) = second_with_the_same_identity("keep")?;
    let refusal = outcome.expect_err("it was accepted").to_string();
    assert!(refusal.contains("AUTH_FAILED"), "{refusal}");
    duo.agree(1)?;
    duo.finish()?;
    Ok(())
}

#[test]
fn a_second_one_replaces_the_first_which_is_told() -> Result<()> {
    let (duo, outcome) = second_with_the_same_identity("replace")?;
    outcome?;
    duo.finish()?;
    Ok(())
}
