//! A peer that lost its state comes again, and the active member dies in the middle of it.

use crate::cluster_exchanges::armed;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

/// The record of the new SA is committed, and with it that the old one goes; whoever goes on sees to it.
#[test]
fn the_member_dies_before_it_tells_the_old_sa() -> Result<()> {
    let (mut trio, doomed) = armed("after-commit:IKE_AUTH:2", |_| {})?;
    let before = trio.up(G)?;
    trio.peer.process().kill9()?;
    let connection = Connection::peer(1, V4);
    trio.peer = StrongSwan::start(&trio.lab, "peer1", Esp::InUdp, &[connection])?;
    std::thread::scope(|scope| -> Result<()> {
        let peer = &trio.peer;
        let driver = scope.spawn(move || peer.initiate(C1, C1));
        trio.members[doomed].wait_for_failpoint()?;
        driver.join().map_err(|_| anyhow::anyhow!("driver"))?
    })?;
    assert_ne!(trio.active(G)?, doomed);
    let after = trio.agree(G, 1)?;
    assert!(
        after.ike.len() == 1 && after.ike.is_disjoint(&before.ike),
        "{after:x?}"
    );
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(())
}
