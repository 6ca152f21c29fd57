//! `updown` in a cluster: who runs programs, and for what.

use anyhow::{Context, ensure};
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::hook::Hook;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

/// Verb and member of a line.
fn who(line: &str) -> (String, String) {
    let words: Vec<&str> = line.split(' ').collect();
    let word = |n: usize| words.get(n).copied().unwrap_or_default().to_owned();
    (word(0), word(5))
}

#[test]
fn whoever_serves_a_child_sa_says_so_and_standbys_say_nothing() -> Result<()> {
    let hook = Hook::new()?;
    let install = |c: &mut _| hook.install(c);
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], install)?;
    let spis = trio.up(G)?;
    let first = trio.active(G)?;
    let name = |n: usize| format!("m{}", n + 1);
    let said = |verb: &str, n: usize| (verb.to_owned(), name(n));
    ensure!(who(&hook.ran(1)?[0]) == said("up-client", first));
    // A capture is where the packets are.
    let spi = spis.child.first().context("a child")?.0;
    let standby = &trio.members[(first + 1) % 3];
    let refused = standby.ctl(&[
        "capture",
        "--sa",
        &format!("0x{spi:08x}"),
        "--write",
        "/dev/null",
    ]);
    let refusal = refused.err().context("it is not served there")?.to_string();
    ensure!(
        refusal.contains(&format!("member {} serves", name(first))),
        "{refusal}"
    );

    trio.members[first].kill9()?;
    let second = trio.active(G)?;
    ensure!(who(&hook.ran(2)?[1]) == said("takeover-client", second));
    ensure!(trio.agree(G, 1)? == spis);
    trio.start_again(first)?;
    trio.members[second].ctl(&["drain", &name(second)])?;
    let third = trio.active(G)?;
    ensure!(third != second, "it was drained");
    let mut both: Vec<_> = hook.ran(4)?[2..].iter().map(|l| who(l)).collect();
    both.sort();
    let expected = [
        said("release-client", second),
        said("takeover-client", third),
    ];
    ensure!(both == expected, "{both:?}");
    let flow = trio.traffic(evergate_cluster_tests::lab::Family::V4, 10)?;
    flow.runs(50, secs(10))?;
    flow.stop().has_no_duplicate()?;
    trio.finish()?;
    Ok(())
}
