//! Levels of the format: when they are raised, and that what was written in former ones is still read.

use super::*;
use crate::{Level, Refusal};

fn announce(member: &str, incarnation: u128, level: u16) -> Command {
    Command::AnnounceLevel {
        member: member.into(),
        incarnation,
        level: Level(level),
    }
}

#[test]
fn the_level_is_what_all_members_understand() {
    let mut state = State::new();
    for (member, incarnation) in [("a", 1), ("b", 2), ("c", 3)] {
        apply(&mut state, register(member, incarnation));
    }
    apply(&mut state, announce("a", 1, 3));
    apply(&mut state, announce("b", 2, 2));
    assert_eq!(state.level(), Level(1), "c has said nothing");
    apply(&mut state, announce("c", 3, 4));
    assert_eq!(state.level(), Level(2));
    // Another process may be of another version. What was raised stays.
    apply(&mut state, register("b", 5));
    assert_eq!(state.level(), Level(2));
    assert_eq!(
        apply(&mut state, announce("b", 2, 9)),
        Outcome::Refused(Refusal::Superseded("b".into()))
    );
    // Who holds the others back is not waited for any more when it is removed.
    apply(
        &mut state,
        Command::RemoveMember {
            member: "b".into(),
            incarnation: 5,
        },
    );
    assert_eq!(state.level(), Level(3));
}

#[test]
fn a_state_of_a_later_level_is_refused_with_words() {
    let mut state = State::new();
    apply(&mut state, register("a", 1));
    apply(&mut state, announce("a", 1, Level::LATEST.0 + 1));
    let error = State::from_snapshot(&state.to_snapshot()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&state.level().to_string()) && text.contains("knows up to"),
        "{text}"
    );
}
