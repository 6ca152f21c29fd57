//! Cluster keys, and when a new one is used.

use super::*;
use crate::{KeyId, Level, MAX_KEYS, MemberKeys, Refusal};

const OLD: KeyId = KeyId([1; 8]);
const NEW: KeyId = KeyId([2; 8]);

fn announce(member: &str, incarnation: u128, keys: &[KeyId]) -> Command {
    Command::AnnounceKeys {
        member: member.into(),
        incarnation,
        keys: MemberKeys {
            has: keys.to_vec(),
            needs: vec![OLD],
        },
    }
}

/// Members `a` and `b`, both with the old key, at level 2.
fn two() -> State {
    let mut state = State::new();
    for member in ["a", "b"] {
        apply(&mut state, register(member, 1));
        apply(
            &mut state,
            Command::AnnounceLevel {
                member: member.into(),
                incarnation: 1,
                level: Level(2),
            },
        );
        apply(&mut state, announce(member, 1, &[OLD]));
    }
    assert_eq!(state.sealing_key(), Some(OLD));
    state
}

#[test]
fn a_key_is_used_when_all_members_would_use_it() {
    let mut state = two();
    apply(&mut state, announce("a", 1, &[NEW, OLD]));
    assert_eq!(state.sealing_key(), Some(OLD), "b does not have it");
    apply(&mut state, announce("b", 1, &[OLD, NEW]));
    assert_eq!(state.sealing_key(), Some(OLD), "b would not use it");
    apply(&mut state, announce("b", 1, &[NEW, OLD]));
    assert_eq!(state.sealing_key(), Some(NEW));
    // Who comes and has said nothing changes nothing, nor does a member that has lost the former one.
    apply(&mut state, register("c", 1));
    apply(&mut state, announce("a", 1, &[NEW]));
    assert_eq!(state.sealing_key(), Some(NEW));
    assert_eq!(State::from_snapshot(&state.to_snapshot()), Ok(state));
}

#[test]
fn a_member_that_goes_holds_nothing_back() {
    let mut state = two();
    apply(&mut state, announce("a", 1, &[NEW, OLD]));
    apply(
        &mut state,
        Command::RemoveMember {
            member: "b".into(),
            incarnation: 1,
        },
    );
    assert_eq!(state.sealing_key(), Some(NEW));
    assert_eq!(state.keys_of("b"), None);
    assert_eq!(state.keys_of("a").unwrap().needs, [OLD]);
}

#[test]
fn only_the_registered_process_says_which_keys_it_has() {
    let mut state = two();
    let before = state.clone();
    for (command, why) in [
        (announce("a", 2, &[NEW]), Refusal::Superseded("a".into())),
        (announce("x", 1, &[NEW]), Refusal::UnknownMember("x".into())),
        (
            announce("a", 1, &[NEW; MAX_KEYS + 1]),
            Refusal::Limit("cluster keys"),
        ),
    ] {
        assert_eq!(apply(&mut state, command), Outcome::Refused(why));
    }
    assert!(state == before);
}
