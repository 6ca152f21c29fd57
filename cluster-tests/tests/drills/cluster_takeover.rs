//! A member is killed or ends, and another one goes on with its
//! tunnels: the same SPIs, no new authentication, and no IV twice (which every
//! drill checks).

use anyhow::ensure;
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio, place};
use evergate_cluster_tests::connection::Plane;
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::flow::{Direction, Report};
use evergate_cluster_tests::lab::Family::{self, V4, V6};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, millis, patience, secs};
use std::time::Duration;

const PACE: Pace = Pace::Usual;

const G: &str = "g1";

#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Peer,
    Member,
}

fn start(esp: Esp) -> Result<Trio> {
    Trio::start(PACE, esp, &[Gateway::usual()], |_| {})
}

/// Members whose plain ESP goes by packet sockets.
pub(crate) fn start_with_packet_sockets() -> Result<Trio> {
    Trio::start(PACE, Esp::Plain, &[Gateway::usual()], |connection| {
        connection.plane = Plane::Userspace;
        connection.dataplane = "link_devices = [\"up0\"]\n";
    })
}

fn up(trio: &mut Trio, by: By) -> Result<Spis> {
    match by {
        By::Peer => trio.up(G),
        By::Member => {
            let active = trio.active(G)?;
            trio.members[active].initiate(C1, C1)?;
            trio.agree(G, 1)
        }
    }
}

fn gap(report: &Report) -> Duration {
    report.forth.longest_outage.max(report.back.longest_outage)
}

/// Kills the active member `rounds` times under traffic, and starts it again each time.
fn kills(
    mut trio: Trio,
    by: By,
    rounds: usize,
    before: impl Fn(&mut Trio) -> Result<()>,
) -> Result<()> {
    let (spis, established) = (up(&mut trio, by)?, now());
    let mut gaps = Vec::new();
    for round in 0..rounds {
        before(&mut trio)?;
        let active = trio.active(G)?;
        let led = trio.leader()? == active;
        let flow = trio.traffic(V4, 2)?;
        flow.runs(100, secs(10))?;
        trio.members[active].kill9()?;
        flow.runs(300, secs(10))?;
        let report = flow.stop();
        report.has_no_duplicate()?;
        let gap = gap(&report);
        eprintln!(
            "round {round}: m{} killed (leader: {led}), gap {gap:?}, lost {} and {}",
            active + 1,
            report.forth.lost,
            report.back.lost
        );
        gaps.push(gap);
        assert_eq!(trio.agree(G, 1)?, spis, "other SAs after a takeover");
        trio.start_again(active)?;
        trio.has_caught_up(active)?;
    }
    // The successor can do all that its predecessors could.
    trio.peer.rekey_child(C1)?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&spis.child))?;
    let active = trio.active(G)?;
    trio.members[active].rekey_ike(C1)?;
    assert!(trio.agree(G, 1)?.ike.is_disjoint(&spis.ike));
    let found = trio.finish()?;
    assert_eq!(
        found.authentications_after(established),
        0,
        "authenticated again"
    );
    gaps.sort();
    eprintln!("gaps: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < PACE.longest_gap()), "{gaps:?}");
    Ok(())
}

#[test]
fn the_tunnel_outlives_the_active_member_ten_times() -> Result<()> {
    kills(start(Esp::InUdp)?, By::Peer, 10, |_| Ok(()))
}

#[test]
fn the_tunnel_outlives_its_member_by_packet_sockets_too() -> Result<()> {
    kills(start_with_packet_sockets()?, By::Peer, 4, |_| Ok(()))
}

#[test]
fn the_tunnel_outlives_the_leader_as_initiator() -> Result<()> {
    kills(start(Esp::Plain)?, By::Member, 4, |trio| {
        place(&mut trio.members, G, true).map(drop)
    })
}

#[test]
fn tunnels_outlive_all_members() -> Result<()> {
    let mut trio = start(Esp::InUdp)?;
    let (spis, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V6, 4)?;
    flow.runs(50, secs(10))?;
    for member in &mut trio.members {
        member.kill9()?;
    }
    for member in &mut trio.members {
        member.spawn(&[])?;
    }
    trio.all_serve()?;
    flow.runs(100, secs(20))?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn a_member_whose_disk_was_wiped_joins_again_and_takes_over() -> Result<()> {
    let mut trio = start(Esp::InUdp)?;
    let (spis, established) = (trio.up(G)?, now());
    let wiped = trio.active(G)?;
    trio.members[wiped].kill9()?;
    std::fs::remove_dir_all(trio.members[wiped].dir().join("state"))?;
    trio.active(G)?;
    trio.start_again(wiped)?;
    let flow = trio.traffic(V4, 4)?;
    flow.runs(50, secs(10))?;
    trio.move_to(wiped, G, wiped)?;
    assert_eq!(trio.active(G)?, wiped);
    flow.runs(100, secs(10))?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

/// A handover interrupts traffic for less than this: at least every other one, because a stall of the machine is in the gap, too.
const HANDOVER: Duration = millis(100);

/// Handovers lost nothing, and nothing came twice. The kernel cannot hold ESP back: there, what comes between two owners is dropped, and nothing else. Yields the longest gap.
fn lost_nothing(trio: &Trio, handovers: usize, what: &str, report: &Report) -> Result<Duration> {
    let count = |way: &Direction| (way.sent, way.lost, way.reordered);
    eprintln!(
        "{what}: longest gap {:?}; sent, lost, out of order: {:?} and {:?}",
        gap(report),
        count(&report.forth),
        count(&report.back)
    );
    match Plane::usual() {
        Plane::Userspace => trio.lost_nothing(report)?,
        Plane::Kernel => {
            report.has_no_duplicate()?;
            report.lost_at_most(handovers, HANDOVER * patience())?;
        }
    }
    ensure!(
        gap(report) < PACE.longest_gap(),
        "{what}: a gap of {:?}",
        gap(report)
    );
    Ok(gap(report))
}

/// Under load: each member is drained in turn.
fn drains(mut trio: Trio, family: Family) -> Result<()> {
    let (spis, established) = (trio.up(G)?, now());
    let mut gaps = Vec::new();
    for _ in 0..MEMBERS {
        let flow = trio.traffic(family, 1)?;
        flow.runs(200, secs(10))?;
        let active = trio.active(G)?;
        let name = format!("m{}", active + 1);
        trio.members[active].ctl(&["drain", &name])?;
        assert_ne!(trio.active(G)?, active);
        // The former owner relays for a second; and a peer's whole window is past.
        flow.runs(1200, secs(20))?;
        gaps.push(lost_nothing(
            &trio,
            1,
            &format!("{name} drained"),
            &flow.stop(),
        )?);
        trio.members[active].ctl(&["drain", &name, "--undo"])?;
    }
    gaps.sort();
    ensure!(
        gaps[MEMBERS / 2] < HANDOVER * patience(),
        "the gaps: {gaps:?}"
    );
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn a_drained_member_loses_no_packet() -> Result<()> {
    drains(start(Esp::InUdp)?, V4)
}

#[test]
fn a_drained_member_loses_no_plain_esp_either() -> Result<()> {
    drains(start(Esp::Plain)?, V6)
}

#[test]
fn a_drained_member_loses_nothing_of_packet_sockets() -> Result<()> {
    drains(start_with_packet_sockets()?, V4)
}

/// Faster than neighbours and relays forget where a gateway was.
#[test]
fn a_gateway_that_moves_again_and_again_loses_no_packet() -> Result<()> {
    let mut trio = start(Esp::InUdp)?;
    let (spis, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V4, 1)?;
    flow.runs(200, secs(10))?;
    let first = trio.active(G)?;
    let before = now();
    for round in 1..=20 {
        let to = (first + round) % MEMBERS;
        trio.move_to(first, G, to)?;
        assert_eq!(trio.active(G)?, to);
    }
    flow.runs(1200, secs(20))?;
    lost_nothing(&trio, 20, "20 moves", &flow.stop())?;
    assert_eq!(trio.agree(G, 1)?, spis);
    // The peer was always answered by whoever had the gateway, and in the end by one alone.
    let taken = now();
    let flow = trio.traffic(V4, 4)?;
    flow.runs(100, secs(10))?;
    flow.stop().is_lossless()?;
    assert_eq!(trio.speakers(taken)?.len(), 1);
    assert_eq!(trio.speakers(before)?.len(), MEMBERS);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

/// The peer rekeys all the time while the gateway moves: IKE goes on as well.
#[test]
fn rekeys_go_on_while_a_gateway_moves() -> Result<()> {
    let mut trio = start(Esp::InUdp)?;
    let (_, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V4, 2)?;
    for _ in 0..4 {
        let to = (trio.active(G)? + 1) % MEMBERS;
        let trio = &trio;
        std::thread::scope(|scope| -> Result<()> {
            let moving = scope.spawn(|| trio.move_to(to, G, to));
            for _ in 0..3 {
                trio.peer.rekey_child(C1)?;
            }
            moving.join().expect("it does not panic")?;
            Ok(())
        })?;
        flow.runs(100, secs(10))?;
    }
    flow.runs(500, secs(10))?;
    lost_nothing(&trio, 4, "four moves", &flow.stop())?;
    trio.agree(G, 1)?;
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn a_clean_stop_hands_over_at_once() -> Result<()> {
    let mut trio = start(Esp::InUdp)?;
    let (spis, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V4, 2)?;
    flow.runs(100, secs(10))?;
    let active = trio.active(G)?;
    trio.members[active].stop()?;
    flow.runs(500, secs(10))?;
    lost_nothing(&trio, 1, "stopped", &flow.stop())?;
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn gateways_spread_over_all_members_that_live() -> Result<()> {
    let gateways = Gateway::several(6);
    let mut trio = Trio::start(PACE, Esp::InUdp, &gateways, |_| {})?;
    let wait = |trio: &Trio, ask, wanted: &[usize]| {
        trio.has_spread(ask, |counts| {
            let mut sorted: Vec<usize> = counts.values().copied().collect();
            sorted.sort_unstable();
            sorted == wanted
        })
    };
    wait(&trio, 0, &[2, 2, 2])?;
    let (spis, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V4, 4)?;
    let active = trio.active(G)?;
    let other = (active + 1) % MEMBERS;
    trio.members[active].kill9()?;
    wait(&trio, other, &[3, 3])?;
    flow.runs(50, secs(10))?;
    trio.start_again(active)?;
    wait(&trio, other, &[2, 2, 2])?;
    flow.runs(50, secs(10))?;
    let name = format!("m{}", active + 1);
    trio.members[other].ctl(&["drain", &name])?;
    wait(&trio, other, &[3, 3])?;
    trio.members[other].ctl(&["drain", &name, "--undo"])?;
    wait(&trio, other, &[2, 2, 2])?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}
