//! Members, assignment and release.

use super::{rules::refused, *};
use crate::{MAX_FORMER_INCARNATIONS, Owner, Refusal};

fn owner(member: &str, incarnation: u128) -> Owner {
    Owner {
        member: member.into(),
        incarnation,
    }
}

/// Members `a` and `b`, each with process 1; [`GW`] is with `a` in epoch 1.
fn two() -> State {
    let mut state = taken();
    assert_eq!(apply(&mut state, register("b", 1)), Outcome::Applied);
    state
}

#[test]
fn an_assignment_compares_and_sets() {
    let mut state = two();
    let stale = |given, current| Refusal::StaleEpoch {
        gateway: GW,
        given,
        current,
    };
    assert_eq!(refused(&mut state, assign(GW, "b", 1, 0)), stale(0, 1));
    assert_eq!(refused(&mut state, assign(GW, "b", 1, 2)), stale(2, 1));
    assert_eq!(
        apply(&mut state, assign(GW, "b", 1, 1)),
        Outcome::Epoch { epoch: 2 }
    );
    assert_eq!(state.epoch_of(GW, &owner("b", 1)), Some(2));
    assert_eq!(state.epoch_of(GW, &owner("a", 1)), None);
    // A second leader with the same plan comes too late.
    assert_eq!(refused(&mut state, assign(GW, "b", 1, 1)), stale(1, 2));
}

#[test]
fn what_a_leader_decides_counts_in_its_term_only() {
    let mut state = two();
    let entry = Entry {
        at: UnixMillis(1),
        commands: vec![Command::AssignInTerm {
            term: 3,
            gateway: GW,
            member: "b".into(),
            incarnation: 1,
            expected_epoch: 1,
        }],
    };
    // It was sent again to a later leader, which may have granted the owner of epoch 1 another lease.
    let stale = [Outcome::Refused(Refusal::StaleTerm { given: 3 })];
    assert_eq!(state.apply_in_term(&entry, Some(4)), stale);
    assert_eq!(state.apply(&entry), stale);
    assert_eq!(state.epoch(GW), 1);
    let done = [Outcome::Epoch { epoch: 2 }];
    assert_eq!(state.apply_in_term(&entry, Some(3)), done);
}

#[test]
fn only_the_registered_process_gets_a_gateway() {
    let mut state = two();
    assert_eq!(
        refused(&mut state, assign(GW, "c", 1, 1)),
        Refusal::UnknownMember("c".into())
    );
    apply(&mut state, register("b", 2));
    let superseded = Refusal::Superseded("b".into());
    assert_eq!(refused(&mut state, assign(GW, "b", 1, 1)), superseded);
    // Its registration comes again, late.
    assert_eq!(refused(&mut state, register("b", 1)), superseded);
    assert_eq!(apply(&mut state, register("b", 2)), Outcome::Applied);
    assert_eq!(
        apply(&mut state, assign(GW, "b", 2, 1)),
        Outcome::Epoch { epoch: 2 }
    );
}

#[test]
fn a_process_that_was_superseded_changes_nothing_more() {
    let mut state = two();
    apply(&mut state, register("a", 2));
    let lost = Refusal::NotOwned {
        gateway: GW,
        epoch: 1,
    };
    assert_eq!(refused(&mut state, put(1, vec![closed(1, 1)])), lost);
    assert_eq!(
        refused(
            &mut state,
            Command::ReleaseGateway {
                gateway: GW,
                epoch: 1
            }
        ),
        lost
    );
    assert!(lost.is_loss());
    // Its lease may still run, so it is still seen to be the owner.
    assert_eq!(state.gateway(GW).unwrap().owner, Some(owner("a", 1)));
    assert_eq!(state.epoch_of(GW, &owner("a", 1)), None);
    assert_eq!(
        apply(&mut state, assign(GW, "a", 2, 1)),
        Outcome::Epoch { epoch: 2 }
    );
    assert_eq!(
        apply(&mut state, put(2, vec![closed(1, 1)])),
        Outcome::Applied
    );
}

#[test]
fn what_was_given_up_is_nobodys_until_it_is_assigned() {
    let mut state = two();
    let children = vec![child(1000, false)];
    apply(
        &mut state,
        put(1, vec![established(1, 1, "p", children, vec![])]),
    );
    let release = |epoch| Command::ReleaseGateway { gateway: GW, epoch };
    assert!(matches!(
        refused(&mut state, release(2)),
        Refusal::StaleEpoch { .. }
    ));
    assert_eq!(apply(&mut state, release(1)), Outcome::Applied);
    assert_eq!(state.gateway(GW).unwrap().owner, None);
    let lost = Refusal::NotOwned {
        gateway: GW,
        epoch: 1,
    };
    assert_eq!(refused(&mut state, put(1, vec![closed(1, 2)])), lost);
    assert_eq!(refused(&mut state, release(1)), lost);
    let kept = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(kept, state);
    // Back to the same process: still new numbers.
    assert_eq!(
        apply(&mut state, assign(GW, "a", 1, 1)),
        Outcome::Epoch { epoch: 2 }
    );
    assert_eq!(state.reservation(1000), Some((1 << 16) + 1..(2 << 16) + 1));
}

#[test]
fn members_are_marked_and_removed() {
    let mut state = two();
    let drain = |member: &str, draining| Command::SetDraining {
        member: member.into(),
        draining,
    };
    let remove = |member: &str, incarnation| Command::RemoveMember {
        member: member.into(),
        incarnation,
    };
    assert_eq!(apply(&mut state, drain("a", true)), Outcome::Applied);
    assert!(state.member("a").unwrap().draining);
    // A restart does not end the draining.
    apply(&mut state, register("a", 2));
    assert!(state.member("a").unwrap().draining);
    assert_eq!(apply(&mut state, drain("a", false)), Outcome::Applied);
    assert!(!state.member("a").unwrap().draining);
    let unknown = Refusal::UnknownMember("c".into());
    assert_eq!(refused(&mut state, drain("c", true)), unknown);
    assert_eq!(refused(&mut state, remove("c", 1)), unknown);
    assert_eq!(
        refused(&mut state, remove("a", 2)),
        Refusal::HasGateways("a".into())
    );
    assert_eq!(
        refused(&mut state, remove("b", 2)),
        Refusal::Superseded("b".into())
    );
    assert_eq!(apply(&mut state, remove("b", 1)), Outcome::Applied);
    assert_eq!(state.members().count(), 1);
}

#[test]
fn members_and_their_processes_are_bounded() {
    let mut state = State::new();
    for n in 0..crate::MAX_MEMBERS {
        assert_eq!(
            apply(&mut state, register(&format!("m{n}"), 1)),
            Outcome::Applied
        );
    }
    assert_eq!(
        refused(&mut state, register("more", 1)),
        Refusal::Limit("members")
    );
    for n in 2..100 {
        apply(&mut state, register("m0", n));
    }
    let member = state.member("m0").unwrap();
    assert_eq!(member.incarnation, 99);
    assert_eq!(member.former.len(), MAX_FORMER_INCARNATIONS);
    assert_eq!(member.former.last(), Some(&98));
}
