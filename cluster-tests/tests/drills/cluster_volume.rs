//! What a Child SA has carried counts over a takeover.

use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};

const G: &str = "g1";

/// After so many packets the Child SA is replaced, or up to a tenth earlier.
const REKEY: u32 = 3000;

/// So many pass before the kill, and with as many as `REKEY` allows after it nobody would have counted them.
const BEFORE: usize = 2000;

/// The successor replaces the Child SA when both members have carried what is allowed, not when it has done so by itself.
#[test]
fn packets_are_counted_on_by_the_successor() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |c| {
        c.child_rekey_packets = REKEY;
    })?;
    let before = trio.up(G)?;
    let flow = trio.traffic(V4, 4)?;
    flow.runs(BEFORE, secs(60))?;
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    let mut carried = 0;
    until(secs(60), "the Child SA is another", || {
        let after = trio.agree(G, 1)?;
        let (forth, back) = flow.arrived();
        carried = forth.max(back);
        Ok(after.child.is_disjoint(&before.child))
    })?;
    let (least, by_itself) = (
        usize::try_from(REKEY / 10 * 9)?,
        BEFORE + usize::try_from(REKEY / 10 * 9)?,
    );
    assert!(carried >= least && carried < by_itself, "{carried}");
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(())
}
