//! Rekeys every two seconds for a minute, from either side, under traffic: not
//! one datagram is lost, and none arrives twice.

use anyhow::ensure;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, patience, secs, until};
use std::time::{Duration, Instant};

const MINUTE: Duration = secs(60);
const PAUSE: Duration = secs(2);

/// How many rekeys there are to be at least. On a machine that cannot do them in a minute they take longer.
const REKEYS: u32 = 25;

/// Calls `rekey` every two seconds for a minute under traffic.
fn minute(esp: Esp, rekey: impl Fn(&Duo) -> Result<()>) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let (mut spis, mut rekeys) = (duo.agree(1)?, 0);
    let flows = [duo.traffic(V4, 4)?, duo.traffic(V6, 4)?];
    flows[0].runs(10, secs(20))?;
    let (start, mut next) = (Instant::now(), Instant::now());
    while start.elapsed() < MINUTE || rekeys < REKEYS / patience() {
        ensure!(
            start.elapsed() < 5 * MINUTE,
            "only {rekeys} rekeys in five minutes"
        );
        rekey(&duo)?;
        spis = duo.agree_on(1, |now| *now != spis)?;
        rekeys += 1;
        next += PAUSE;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    duo.agree(1)?;
    for flow in flows {
        flow.stop().is_lossless()?;
    }
    duo.finish()?;
    Ok(())
}

#[test]
fn child_sa_by_the_peer_for_a_minute() -> Result<()> {
    minute(Esp::InUdp, |duo| duo.peer.rekey_child(C1))
}

#[test]
fn child_sa_by_the_member_for_a_minute() -> Result<()> {
    minute(Esp::Plain, |duo| duo.member.rekey_child(C1))
}

#[test]
fn ike_sa_by_the_peer_for_a_minute() -> Result<()> {
    minute(Esp::Plain, |duo| duo.peer.rekey_ike(C1))
}

#[test]
fn ike_sa_by_the_member_for_a_minute() -> Result<()> {
    minute(Esp::InUdp, |duo| duo.member.rekey_ike(C1))
}

#[test]
fn both_sides_rekey_by_the_same_clock() -> Result<()> {
    // Equal lifetimes make the exchanges cross (RFC 7296 §2.8.1, §2.8.2).
    let setup = Setup::new(V4).both(|c| (c.rekey, c.child_rekey) = (5, 3));
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(V4, 4)?;
    std::thread::sleep(secs(25));
    flow.stop().is_lossless()?;
    // A rekey may be under way at any time.
    until(secs(30), "one IKE SA and one Child SA, and others", || {
        let last = duo.spis()?;
        let others = first.ike.is_disjoint(&last.ike) && first.child.is_disjoint(&last.child);
        let one = (last.ike.len(), last.child.len()) == (1, 1);
        ensure!(others && one, "{first:x?}, then {last:x?}");
        Ok(true)
    })?;
    duo.finish()?;
    Ok(())
}

#[test]
fn both_sides_rekey_at_once() -> Result<()> {
    let duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let flow = duo.traffic(V4, 4)?;
    for round in 0..8 {
        std::thread::scope(|scope| {
            let duo = &duo;
            let ike = round % 2 == 0;
            // A refused collision is an answer too; what counts is the outcome.
            let peer = scope.spawn(move || match ike {
                true => duo.peer.rekey_ike(C1),
                false => duo.peer.rekey_child(C1),
            });
            let _ = match ike {
                true => duo.member.rekey_ike(C1),
                false => duo.member.rekey_child(C1),
            };
            let _ = peer.join();
        });
        std::thread::sleep(secs(1));
        duo.agree(1)?;
    }
    flow.stop().is_lossless()?;
    duo.finish()?;
    Ok(())
}

#[test]
fn ike_sa_by_the_number_of_packets() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.together_packets = (600, 0);
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    let mut seen = first.ike.clone();
    until(secs(90), "three rekeys", || {
        seen.extend(duo.spis()?.ike);
        Ok(seen.len() >= 4)
    })?;
    flow.stop().is_lossless()?;
    let last = duo.agree(1)?;
    assert_eq!(last.child, first.child);
    duo.finish()?;
    Ok(())
}

#[test]
fn child_sa_by_the_number_of_packets() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.child_rekey_packets = 300;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    let mut seen = first.child.clone();
    until(secs(90), "three rekeys", || {
        seen.extend(duo.spis()?.child);
        Ok(seen.len() >= 4)
    })?;
    flow.stop().is_lossless()?;
    let last = duo.agree(1)?;
    assert_eq!(last.ike, first.ike);
    duo.finish()?;
    Ok(())
}
