//! New authentications every few seconds, from either side, under traffic: a new IKE SA with its Child SA is there before the old one goes, and not one
//! datagram is lost.

use crate::addresses::{pools, roaming};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{
    Family::{V4, V6},
    PROTECTED,
};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, millis, secs, until};

/// So many times the ends authenticate again in a drill.
const ROUNDS: usize = 5;

/// Waits until there were so many IKE SAs as there have to be.
fn renewed(duo: &Duo) -> Result<()> {
    let mut seen = duo.agree(1)?.ike;
    until(secs(120), "new IKE SAs", || {
        seen.extend(duo.spis()?.ike);
        Ok(seen.len() > ROUNDS)
    })
}

fn without_a_loss(setup: &Setup, begin: impl Fn(&Duo) -> Result<()>) -> Result<Duo> {
    let duo = Duo::start(setup)?;
    begin(&duo)?;
    let flows = [duo.traffic(V4, 4)?, duo.traffic(V6, 4)?];
    flows[0].runs(10, secs(20))?;
    renewed(&duo)?;
    for flow in flows {
        flow.stop().is_lossless()?;
    }
    let after = duo.agree(1)?;
    assert_eq!(after.ike.len(), 1, "{after:x?}");
    Ok(duo)
}

fn by_member(esp: Esp) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.gateway.reauth = 4;
    let duo = without_a_loss(&setup, |duo| duo.member.initiate(C1, C1))?;
    assert!(duo.member.log()?.contains("ike-reauthenticating"));
    duo.finish()?;
    Ok(())
}

fn by_peer(esp: Esp, unique: &'static str) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.gateway.unique = unique;
    setup.peer.reauth = 4;
    setup.peer.make_before_break = true;
    let duo = without_a_loss(&setup, |duo| duo.peer.initiate(C1, C1))?;
    duo.finish()?;
    Ok(())
}

#[test]
fn by_the_member_without_a_loss() -> Result<()> {
    by_member(Esp::InUdp)
}

#[test]
fn by_the_member_with_strongswan_6_1() -> Result<()> {
    by_member(Esp::Plain)
}

#[test]
fn by_the_peer_without_a_loss() -> Result<()> {
    by_peer(Esp::InUdp, "no")
}

#[test]
fn by_strongswan_6_1_without_a_loss() -> Result<()> {
    by_peer(Esp::Plain, "no")
}

#[test]
fn where_one_ike_sa_of_a_peer_is_kept() -> Result<()> {
    by_peer(Esp::InUdp, "keep")
}

#[test]
fn where_a_new_ike_sa_replaces_others() -> Result<()> {
    by_peer(Esp::Plain, "replace")
}

/// Each look finds that more was carried than is allowed.
const PACKETS: u32 = 300;

#[test]
fn by_the_member_after_so_many_packets() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.together_packets = (0, PACKETS);
    let duo = without_a_loss(&setup, |duo| duo.member.initiate(C1, C1))?;
    assert!(duo.member.log()?.contains("ike-reauthenticating"));
    duo.finish()?;
    Ok(())
}

/// A peer that began the IKE SA is asked to.
fn asked(esp: Esp) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.gateway.together_packets = (0, PACKETS);
    setup.peer.make_before_break = true;
    let duo = without_a_loss(&setup, |duo| duo.peer.initiate(C1, C1))?;
    assert!(duo.peer.logged("received AUTH_LIFETIME of 0s")? >= ROUNDS);
    assert!(duo.member.log()?.contains("ike-reauthentication-asked"));
    duo.finish()?;
    Ok(())
}

#[test]
fn the_peer_is_asked_after_so_many_packets() -> Result<()> {
    asked(Esp::InUdp)
}

#[test]
fn strongswan_6_1_is_asked_after_so_many_packets() -> Result<()> {
    asked(Esp::Plain)
}

/// strongSwan begins so long before the end of the lifetime that it is told as its own `over_time` is, which is 30 s.
#[test]
fn the_peer_is_told_when() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.reauth = 34;
    setup.peer.make_before_break = true;
    let duo = without_a_loss(&setup, |duo| duo.peer.initiate(C1, C1))?;
    assert!(duo.peer.logged("received AUTH_LIFETIME of 34s")? > ROUNDS);
    duo.finish()?;
    Ok(())
}

#[test]
fn a_peer_keeps_its_virtual_address() -> Result<()> {
    let mut setup = Setup::new(V4);
    (setup.peer, setup.gateway) = roaming(1, &["0.0.0.0"]);
    setup.peer.reauth = 4;
    setup.pools = pools("10.99.0.0/24", "fd00:99::/112");
    setup.peer.make_before_break = true;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let address = duo.peer.virtual_addresses()?.remove(0);
    let flow = Flow::start(
        &duo.lab,
        ("peer1", &address),
        ("host", PROTECTED[0]),
        millis(4),
        200,
    )?;
    flow.runs(10, secs(20))?;
    renewed(&duo)?;
    flow.stop().is_lossless()?;
    let got = duo.peer.virtual_addresses()?;
    assert!(got.iter().all(|a| *a == address), "{got:?}");
    duo.agree(1)?;
    duo.finish()?;
    Ok(())
}
