//! Members that come and go.

use crate::{
    Command, Entry, Level, Outcome, Refusal, State,
    enrolment::{Enrolment, Place, Stage},
    limits::{MAX_DISMISSED, MAX_INVITATIONS},
};
use evergate_ike::{env::UnixMillis, record::GatewayId};

const DIGEST: [u8; 32] = [7; 32];

fn at(state: &mut State, at: u64, command: Command) -> Result<Outcome, Refusal> {
    let entry = Entry {
        at: UnixMillis(at),
        commands: vec![command],
    };
    match state.apply(&entry).remove(0) {
        Outcome::Refused(refusal) => Err(refusal),
        outcome => Ok(outcome),
    }
}

fn invite(member: &str, until: u64) -> Command {
    Command::Invite {
        member: member.into(),
        enrolment: Enrolment {
            address: "198.51.100.4:4510".into(),
            learner: false,
            replaces: None,
            stage: Stage::Invited {
                digest: DIGEST,
                until: UnixMillis(until),
            },
        },
    }
}

fn admit(member: &str, digest: [u8; 32], node: u64) -> Command {
    Command::Admit {
        member: member.into(),
        digest,
        node,
    }
}

#[test]
fn a_token_is_good_once_for_one_member_and_until_it_expires() {
    let mut state = State::new();
    let none = at(&mut state, 1, admit("m4", DIGEST, 9));
    assert_eq!(none, Err(Refusal::NotInvited("m4".into())));
    at(&mut state, 2, invite("m4", 100)).unwrap();
    let wrong = at(&mut state, 3, admit("m4", [8; 32], 9));
    assert_eq!(wrong, Err(Refusal::WrongToken("m4".into())));
    let foreign = at(&mut state, 4, admit("m5", DIGEST, 9));
    assert_eq!(foreign, Err(Refusal::NotInvited("m5".into())));
    let late = at(&mut state, 100, admit("m4", DIGEST, 9));
    assert_eq!(late, Err(Refusal::TokenExpired("m4".into())));

    at(&mut state, 101, invite("m4", 200)).unwrap();
    at(&mut state, 102, admit("m4", DIGEST, 9)).unwrap();
    // Its bearer may ask again, as long as it is the same node.
    at(&mut state, 500, admit("m4", DIGEST, 9)).unwrap();
    let used = at(&mut state, 103, admit("m4", DIGEST, 10));
    assert_eq!(used, Err(Refusal::TokenUsed("m4".into())));
    assert!(at(&mut state, 104, invite("m4", 300)).is_err());
    let done = Command::EndEnrolment {
        member: "m4".into(),
        node: Some(9),
    };
    at(&mut state, 105, done).unwrap();
    let used = at(&mut state, 106, admit("m4", DIGEST, 9));
    assert_eq!(used, Err(Refusal::NotInvited("m4".into())));
}

#[test]
fn one_member_comes_at_a_time_and_open_tokens_are_bounded() {
    let mut state = State::new();
    for n in 0..MAX_INVITATIONS {
        at(&mut state, 1, invite(&format!("m{n}"), 100)).unwrap();
    }
    let full = at(&mut state, 2, invite("more", 100));
    assert_eq!(full, Err(Refusal::Limit("open tokens")));
    at(&mut state, 3, invite("m0", 200)).unwrap();
    at(&mut state, 4, admit("m0", DIGEST, 1)).unwrap();
    let other = at(&mut state, 5, admit("m1", DIGEST, 2));
    assert_eq!(other, Err(Refusal::ChangeUnderWay("m0".into())));
    // What expired makes place, and what was admitted stays.
    at(&mut state, 100, invite("more", 200)).unwrap();
    let names: Vec<&str> = state.enrolments().map(|(name, _)| name).collect();
    assert_eq!(names, ["m0", "more"]);
}

#[test]
fn who_is_dismissed_is_forgotten_but_its_gateways_wait_for_its_lease() {
    let mut state = State::new();
    let register = |incarnation| Command::RegisterMember {
        member: "m1".into(),
        incarnation,
    };
    at(&mut state, 1, register(5)).unwrap();
    let place = Place {
        zone: "a".into(),
        weight: 50,
    };
    let placed = |incarnation| Command::PlaceMember {
        member: "m1".into(),
        incarnation,
        place: place.clone(),
    };
    assert!(at(&mut state, 2, placed(4)).is_err());
    at(&mut state, 2, placed(5)).unwrap();
    assert_eq!(state.place("m1"), place);
    let assigned = Command::AssignGateway {
        gateway: GatewayId(1),
        member: "m1".into(),
        incarnation: 5,
        expected_epoch: 0,
    };
    at(&mut state, 3, assigned).unwrap();
    let dismiss = |node| Command::Dismiss {
        member: "m1".into(),
        node,
    };
    at(&mut state, 4, dismiss(77)).unwrap();
    assert_eq!(state.dismissed(77), Some("m1"));
    assert!(state.member("m1").is_none());
    assert_eq!(state.place("m1"), Place::default());
    assert_eq!(state.gateways_of("m1"), 1, "nobody took it yet");
    let release = Command::ReleaseGateway {
        gateway: GatewayId(1),
        epoch: 1,
    };
    assert!(at(&mut state, 5, release).is_err(), "it is heard no more");
    for node in 100..100 + MAX_DISMISSED as u64 {
        at(&mut state, 6, dismiss(node)).unwrap();
    }
    assert_eq!(state.dismissed(77), None, "the oldest is forgotten");
    assert_eq!(state.level(), Level::FIRST);
    let first = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(
        first.dismissed(100),
        None,
        "the first level has nothing of it"
    );
    at(&mut state, 7, register(6)).unwrap();
    let announced = Command::AnnounceLevel {
        member: "m1".into(),
        incarnation: 6,
        level: Level::LATEST,
    };
    at(&mut state, 8, announced).unwrap();
    let copy = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert!(copy == state);
}
