//! A member is killed, and another one goes on with its tunnels: the same SPIs,
//! no new authentication, and no IV twice (which every drill checks).

use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, millis, secs};
use std::time::Duration;

/// No gap may be as long as this.
const LONGEST: Duration = millis(1000);

/// Kills the active member `rounds` times under traffic, and starts it again each time.
fn kills(esp: Esp, rounds: usize, before: impl Fn(&mut Trio) -> Result<()>) -> Result<()> {
    let mut trio = Trio::start(esp, &[Gateway::usual()], |_| {})?;
    let (spis, established) = (trio.up("g1")?, now());
    let mut gaps = Vec::new();
    for round in 0..rounds {
        before(&mut trio)?;
        let active = trio.active("g1")?;
        let led = trio.leader()? == active;
        let flow = trio.traffic(V4, 2)?;
        flow.runs(100, secs(10))?;
        trio.members[active].kill9()?;
        flow.runs(300, secs(10))?;
        let report = flow.stop();
        report.has_no_duplicate()?;
        let gap = report.forth.longest_gap.max(report.back.longest_gap);
        eprintln!(
            "round {round}: m{} killed (leader: {led}), gap {gap:?}, lost {} and {}",
            active + 1,
            report.forth.lost,
            report.back.lost
        );
        gaps.push(gap);
        assert_eq!(trio.agree("g1", 1)?, spis, "other SAs after a takeover");
        trio.start_again(active)?;
    }
    // The successor can do all that its predecessors could.
    trio.peer.rekey_child(C1)?;
    let rekeyed = trio.agree("g1", 1)?;
    assert!(rekeyed.child.is_disjoint(&spis.child));
    let found = trio.finish()?;
    assert_eq!(
        found.authentications_after(established),
        0,
        "authenticated again"
    );
    gaps.sort();
    eprintln!("gaps: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap < LONGEST), "{gaps:?}");
    Ok(())
}

#[test]
fn the_tunnel_outlives_the_active_member() -> Result<()> {
    kills(Esp::InUdp, 1, |_| Ok(()))
}
