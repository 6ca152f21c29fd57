//! A peer that can use nothing but TCP survives the death of the member that has its connection.

use crate::tcp::{falls_back, no_offload, only_tcp};
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio, host};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs};
use std::time::Instant;

const G: &str = "g1";

fn trio() -> Result<Trio<Member>> {
    let mut trio = Trio::start_against_member(Pace::Patient, &[Gateway::usual()], falls_back)?;
    only_tcp(&trio.lab, "peer1")?;
    no_offload(&trio.lab, "peer1")?;
    for n in 0..MEMBERS {
        no_offload(&trio.lab, &host(n))?;
    }
    trio.peer.initiate(C1, C1)?;
    trio.agree(G, 1)?;
    Ok(trio)
}

#[test]
fn a_peer_behind_a_firewall_survives_a_kill_and_a_drain_by_tcp() -> Result<()> {
    let mut trio = trio()?;
    let spis = trio.agree(G, 1)?;
    let flow = trio.traffic(V4, 4)?;
    flow.runs(50, secs(10))?;
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    let killed = Instant::now();
    flow.runs(25, secs(20))?;
    eprintln!("traffic again {:?} after the kill", killed.elapsed());
    assert_eq!(trio.agree(G, 1)?, spis, "other SAs after a takeover");
    trio.start_again(active)?;
    // A drain: the tunnel stays, by another connection.
    let active = trio.active(G)?;
    trio.members[active].ctl(&["drain", &format!("m{}", active + 1)])?;
    flow.runs(100, secs(20))?;
    assert_ne!(trio.active(G)?, active);
    assert_eq!(trio.agree(G, 1)?, spis, "other SAs after a drain");
    flow.stop().has_no_duplicate()?;
    let before = spis.child;
    trio.peer.rekey_child(C1)?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&before))?;
    let findings = trio.finish()?;
    assert!(findings.in_tcp > 0);
    Ok(())
}
