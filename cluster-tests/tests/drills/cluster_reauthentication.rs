//! One end authenticates again, and the active member dies in the middle of it.

use crate::cluster_exchanges::armed;
use evergate_cluster_tests::cluster::Trio;
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

/// The record of the new IKE SA is committed, and the peer has not been answered.
#[test]
fn the_member_dies_before_it_answers() -> Result<()> {
    let (mut trio, doomed) = armed("after-commit:IKE_AUTH:2", |c| c.make_before_break = true)?;
    let before = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    std::thread::scope(|scope| -> Result<()> {
        let peer = &trio.peer;
        let driver = scope.spawn(move || peer.reauthenticate(C1));
        trio.members[doomed].wait_for_failpoint()?;
        driver.join().map_err(|_| anyhow::anyhow!("driver"))?
    })?;
    renewed(trio, doomed, flow, &before)
}

/// Another member brings it to its end.
fn renewed(mut trio: Trio, doomed: usize, flow: Flow, before: &Spis) -> Result<()> {
    assert_ne!(trio.active(G)?, doomed);
    trio.agree_on(G, 1, |now| {
        now.ike.len() == 1 && now.ike.is_disjoint(&before.ike)
    })?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(())
}

/// It is the member that authenticates again, and it dies when a request is committed and not sent.
fn by_the_member(request: &str) -> Result<()> {
    let (mut trio, doomed) = armed(&format!("after-commit:{request}"), |_| {})?;
    trio.members[doomed].initiate(C1, C1)?;
    let before = trio.agree(G, 1)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    // It may die before it has answered.
    let _dies = trio.members[doomed].reauthenticate(C1);
    trio.members[doomed].wait_for_failpoint()?;
    renewed(trio, doomed, flow, &before)
}

#[test]
fn the_member_dies_before_it_sends_its_new_ike_auth() -> Result<()> {
    by_the_member("IKE_AUTH:2")
}

/// The new IKE SA is complete.
#[test]
fn the_member_dies_before_it_deletes_the_old_ike_sa() -> Result<()> {
    by_the_member("INFORMATIONAL:1")
}
