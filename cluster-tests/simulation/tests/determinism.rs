//! A seed says all.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::process::Command;

/// Plays a seed, and returns what it says in the end: figures, and a digest of all that happened.
fn play(seed: &str) -> String {
    let played = Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(["--quiet", "--seed", seed])
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&played.stdout).into_owned();
    assert!(played.status.success(), "{said}");
    said
}

/// What this thread starts from now on has one processor.
fn have_one_processor() {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).expect("they can be asked for");
    let first = (0..CpuSet::count()).find(|n| all.is_set(*n) == Ok(true));
    let mut one = CpuSet::new();
    one.set(first.expect("there is one")).expect("it is one");
    sched_setaffinity(this, &one).expect("one of ours");
}

#[test]
fn a_seed_played_twice_is_the_same_to_the_last_line() {
    let first = play("1");
    assert!(first.contains("digest"), "{first}");
    have_one_processor();
    assert_eq!(
        first,
        play("1"),
        "what happens depends on the processors that there are"
    );
    assert_ne!(first, play("3"));
}
