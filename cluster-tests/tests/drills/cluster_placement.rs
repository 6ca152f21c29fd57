//! Which member has how many gateways: by the weights that members are configured with.

use anyhow::ensure;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

#[test]
fn gateways_are_spread_by_the_weights_that_members_are_configured_with() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &Gateway::several(6), |_| {})?;
    trio.has_spread(0, |counts| counts.values().all(|n| *n == 2))?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    for n in 0..MEMBERS {
        trio.members[n].stop()?;
        let (rack, weight) = (n / 2, (n + 1) * 100);
        trio.configure_member(n, &format!("zone = \"rack{rack}\"\nweight = {weight}"))?;
        trio.start_again(n)?;
        // The next one hands over what it has, which takes a majority.
        trio.has_caught_up(n)?;
    }
    let wanted = [("m1", 1), ("m2", 2), ("m3", 3)].map(|(name, n)| (name.to_owned(), n));
    trio.has_spread(0, |counts| {
        counts.iter().eq(wanted.iter().map(|(m, n)| (m, n)))
    })?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    ensure!(trio.agree(G, 1)? == up, "other SAs");
    let third = trio.member(0, "m3")?;
    ensure!(
        third["zone"] == "rack1" && third["weight"] == 300,
        "{third}"
    );
    trio.finish().map(drop)
}
