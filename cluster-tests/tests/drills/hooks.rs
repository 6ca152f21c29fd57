//! `updown`: what a program hears of Child SAs that come and go, and of the processes that serve them.

use anyhow::Context;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::hook::Hook;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs, until};
use std::fs;

/// A setup whose gateway has it.
fn setup(hook: &Hook) -> Setup {
    let mut setup = Setup::new(V4);
    hook.install(&mut setup.gateway);
    setup.peer.local_ts.truncate(1);
    setup.peer.remote_ts.truncate(1);
    setup
}

/// Waits until it was run for these verbs, and for nothing else; and yields the lines.
fn heard(hook: &Hook, verbs: &[&str]) -> Result<Vec<String>> {
    let lines = hook.ran(verbs.len())?;
    let heard: Vec<&str> = lines.iter().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(heard, verbs, "{lines:?}");
    Ok(lines)
}

#[test]
fn a_program_hears_of_up_takeover_release_and_down() -> Result<()> {
    let hook = Hook::new()?;
    let mut duo = Duo::start(&setup(&hook))?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    let lines = heard(&hook, &["up-client"])?;
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(words[1..3], [C1, "peer1.test"]);
    let networks = (
        duo.connection.remote_ts.first().context("a selector")?,
        duo.connection.local_ts.first().context("a selector")?,
    );
    assert_eq!(
        (words[3], words[4]),
        (networks.0.as_str(), networks.1.as_str())
    );
    // A new Child SA, or IKE SA, in the place of one is no news.
    duo.peer.rekey_child(C1)?;
    let second = duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    duo.member.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&second.child))?;
    duo.peer.rekey_ike(C1)?;
    duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
    duo.member.kill9()?;
    duo.member.start_again(&[])?;
    heard(&hook, &["up-client", "takeover-client"])?;
    duo.agree(1)?;
    duo.member.stop()?;
    heard(&hook, &["up-client", "takeover-client", "release-client"])?;
    duo.member.start_again(&[])?;
    let all = [
        "up-client",
        "takeover-client",
        "release-client",
        "takeover-client",
    ];
    heard(&hook, &all)?;
    duo.agree(1)?;
    duo.member.rekey_child(C1)?;
    duo.agree(1)?;
    duo.peer.terminate(C1)?;
    let lines = heard(&hook, &[&all[..], &["down-client"]].concat())?;
    assert!(lines[4].ends_with("deleted-by-peer"), "{lines:?}");
    until(secs(20), "what it says is in the log", || {
        let log = duo.member.log()?;
        Ok(log.contains("said by the hook for down-client"))
    })?;
    duo.finish()?;
    Ok(())
}

#[test]
fn a_program_that_hangs_or_is_missing_holds_nothing_up() -> Result<()> {
    let hook = Hook::new()?;
    let duo = Duo::start(&setup(&hook))?;
    hook.hang()?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let flow = duo.traffic(V4, 10)?;
    flow.runs(100, secs(20))?;
    fs::remove_file(hook.program())?;
    duo.member.terminate(C1)?;
    flow.stop().has_no_duplicate()?;
    assert!(!hook.lines_file().exists());
    // The first one is killed when its time is over, and the other cannot be begun.
    until(secs(120), "the log says so", || {
        let log = duo.member.log()?;
        Ok(log.contains("killed after 30 s") && log.matches("updown-failed").count() == 2)
    })?;
    duo.finish()?;
    Ok(())
}
