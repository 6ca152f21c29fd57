//! A member whose disk is full, cannot be written, or is lost.

use anyhow::ensure;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::member::DISK;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use std::{fs, io::Write};

const G: &str = "g1";

/// The disk of each member: enough for its log, and soon full.
const SMALL: [(&str, &str); 1] = [(DISK, "size=16m,mode=0700")];

const READ_ONLY: [(&str, &str); 1] = [(DISK, "size=16m,mode=0700,ro")];

fn start() -> Result<Trio> {
    Trio::start_with(
        Pace::Patient,
        Esp::InUdp,
        &[Gateway::usual()],
        |_| {},
        &SMALL,
    )
}

/// Leaves no room on the disk of a member, which is in a mount namespace of its own.
fn fill(trio: &mut Trio, n: usize) -> Result<()> {
    let state = trio.members[n].dir().join("state");
    let pid = trio.members[n].process()?.pid();
    let path = format!("/proc/{pid}/root{}/filler", state.display());
    let mut file = fs::File::create(path)?;
    let (mut left, block) = (32 << 20, [0x55; 4096]);
    while left > 0 && file.write_all(&block).is_ok() {
        left -= block.len();
    }
    ensure!(left > 0, "the disk is not small");
    Ok(())
}

#[test]
fn a_member_whose_disk_is_full_serves_no_more_and_joins_again_with_another() -> Result<()> {
    let mut trio = start()?;
    let up = trio.up(G)?;
    let flow = trio.traffic(V4, 5)?;
    flow.runs(20, secs(10))?;
    let full = trio.active(G)?;
    fill(&mut trio, full)?;
    let asked = (full + 1) % MEMBERS;
    until(secs(30), "another member takes over", || {
        Ok((0..MEMBERS).any(|n| n != full && trio.serves(n, G).is_ok_and(|serves| serves)))
    })?;
    flow.runs(100, secs(20))?;
    // It says itself why, and others that it does not answer.
    let says = |n: usize, parts: [String; 2]| {
        until(secs(20), "the doctor says what is wrong", || {
            let text = trio.members[n].ctl(&["doctor"])?;
            ensure!(parts.iter().all(|part| text.contains(part)), "{text}");
            Ok(true)
        })
    };
    let name = format!("m{}", full + 1);
    says(
        full,
        [
            format!("{name}: failure: it serves nothing any more"),
            "No space left".to_owned(),
        ],
    )?;
    says(
        asked,
        [
            format!("{name}: quorum: it does not answer"),
            "no further loss is borne".to_owned(),
        ],
    )?;
    ensure!(!trio.serves(full, G)?, "both serve");
    // With a new disk, which is empty, it is a member again.
    trio.members[full].kill9()?;
    trio.members[full].start_again(&SMALL)?;
    trio.active(G)?;
    trio.peer.rekey_child(C1)?;
    ensure!(trio.agree(G, 1)?.ike == up.ike, "the IKE SA is the same");
    until(secs(20), "nothing is wrong any more", || {
        let text = trio.members[asked].ctl(&["doctor"])?;
        ensure!(text.starts_with("nothing is wrong"), "{text}");
        Ok(true)
    })?;
    trio.has_voters(asked, &["m1", "m2", "m3"])?;
    // And counts: the cluster bears the loss of another one.
    trio.members[asked].kill9()?;
    trio.active(G)?;
    flow.runs(100, secs(20))?;
    flow.stop().has_no_duplicate()?;
    trio.finish().map(drop)
}

#[test]
fn a_disk_that_cannot_be_written_is_said_at_the_start() -> Result<()> {
    let mut trio = start()?;
    let active = trio.active(G)?;
    let other = (active + 1) % MEMBERS;
    trio.members[other].kill9()?;
    trio.members[other].spawn(&READ_ONLY)?;
    until(secs(20), "the member ends", || {
        Ok(trio.members[other].process()?.ended()?.is_some())
    })?;
    let log = trio.members[other].log()?;
    ensure!(
        log.contains("/state") && log.contains("Read-only file system"),
        "{log}"
    );
    trio.members[other].start_again(&SMALL)?;
    trio.up(G)?;
    trio.finish().map(drop)
}
