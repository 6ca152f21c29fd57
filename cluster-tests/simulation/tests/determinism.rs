//! A seed says all.

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

#[test]
fn a_seed_played_twice_is_the_same_to_the_last_line() {
    let first = play("1");
    assert!(first.contains("digest"), "{first}");
    assert_eq!(first, play("1"));
    assert_ne!(first, play("3"));
}
