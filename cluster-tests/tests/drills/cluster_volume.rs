//! What SAs have carried counts over a takeover.

use crate::cluster_exchanges::armed;
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Spis;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};

const G: &str = "g1";

/// After so many packets the Child SA is replaced, or up to a tenth earlier.
const REKEY: u32 = 3000;

/// So many pass before the kill, and with as many as `REKEY` allows after it nobody would have counted them.
const BEFORE: usize = 2000;

/// Kills the active member after so many datagrams in each direction; says how many there were in all when this came true.
fn counted_on(
    mut trio: Trio,
    before: usize,
    what: &str,
    done: impl Fn(&Spis, &Spis) -> bool,
) -> Result<usize> {
    let first = trio.up(G)?;
    let flow = trio.traffic(V4, 4)?;
    flow.runs(before, secs(60))?;
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    let mut carried = 0;
    until(secs(60), what, || {
        let after = trio.agree(G, 1)?;
        let (forth, back) = flow.arrived();
        carried = forth.max(back);
        Ok(done(&first, &after))
    })?;
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(carried)
}

/// The successor replaces the Child SA when both members have carried what is allowed, not when it has done so by itself.
#[test]
fn packets_are_counted_on_by_the_successor() -> Result<()> {
    let trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |c| {
        c.child_rekey_packets = REKEY;
    })?;
    let carried = counted_on(trio, BEFORE, "the Child SA is another", |before, after| {
        after.child.is_disjoint(&before.child)
    })?;
    let (least, by_itself) = (
        usize::try_from(REKEY / 10 * 9)?,
        BEFORE + usize::try_from(REKEY / 10 * 9)?,
    );
    assert!(carried >= least && carried < by_itself, "{carried}");
    Ok(())
}

/// Likewise for the IKE SA, which the peer is asked to authenticate anew: there packets of both directions count together.
#[test]
fn packets_of_all_child_sas_are_counted_on_by_the_successor() -> Result<()> {
    let trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |c| {
        c.together_packets = (0, 2 * REKEY);
        c.make_before_break = true;
    })?;
    let carried = counted_on(trio, BEFORE, "the IKE SA is another", |before, after| {
        after.ike.len() == 1 && after.ike.is_disjoint(&before.ike)
    })?;
    let least = usize::try_from(REKEY)?;
    assert!(carried >= least && carried < BEFORE + least, "{carried}");
    Ok(())
}

/// The member dies when its request for a new authentication is committed and not sent.
#[test]
fn the_member_dies_before_it_asks_for_a_new_authentication() -> Result<()> {
    let (mut trio, doomed) = armed("after-commit:INFORMATIONAL:1", |c| {
        c.together_packets = (0, 500);
        c.make_before_break = true;
    })?;
    let before = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    trio.members[doomed].wait_for_failpoint()?;
    // With more traffic there would be more new authentications.
    flow.stop().has_no_duplicate()?;
    assert_ne!(trio.active(G)?, doomed);
    trio.agree_on(G, 1, |now| {
        now.ike.len() == 1 && now.ike.is_disjoint(&before.ike)
    })?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(())
}
