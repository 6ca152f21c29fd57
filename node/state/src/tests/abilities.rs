//! What members say of their data planes.

use super::*;
use crate::{Abilities, Refusal};

fn describe(member: &str, incarnation: u128, abilities: Abilities) -> Command {
    Command::DescribePlane {
        member: member.into(),
        incarnation,
        abilities,
    }
}

#[test]
fn only_what_all_members_can_do_counts() {
    let no_tcp = Abilities::ALL.without(Abilities::TCP);
    let mut state = State::new();
    assert_eq!(state.abilities(), Abilities::ALL);
    for (member, incarnation) in [("a", 1), ("b", 2)] {
        apply(&mut state, register(member, incarnation));
    }
    assert_eq!(
        apply(&mut state, describe("b", 2, no_tcp)),
        Outcome::Applied
    );
    assert_eq!(state.abilities(), no_tcp);
    let kept = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(kept.abilities(), no_tcp);
    // Who is no member's process any more says nothing.
    apply(&mut state, register("b", 3));
    assert_eq!(
        apply(&mut state, describe("b", 2, Abilities::ALL)),
        Outcome::Refused(Refusal::Superseded("b".into()))
    );
    assert_eq!(state.abilities(), no_tcp);
    assert!(matches!(
        apply(&mut state, describe("c", 1, no_tcp)),
        Outcome::Refused(Refusal::UnknownMember(_))
    ));
    // And who is removed does not count.
    apply(
        &mut state,
        Command::RemoveMember {
            member: "b".into(),
            incarnation: 3,
        },
    );
    assert_eq!(state.abilities(), Abilities::ALL);
}

#[test]
fn what_only_a_newer_program_can_name_is_kept() {
    let mut state = State::new();
    apply(&mut state, register("a", 1));
    let unknown: Abilities =
        postcard::from_bytes(&postcard::to_stdvec(&(1u32 << 30 | 4)).unwrap()).unwrap();
    apply(&mut state, describe("a", 1, unknown));
    let kept = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(kept.abilities(), unknown);
    assert!(unknown.has(Abilities::TCP) && !unknown.has(Abilities::IMPLICIT_IV));
}
