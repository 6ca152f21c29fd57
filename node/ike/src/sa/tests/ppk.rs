//! Post-quantum pre-shared keys (RFC 8784).

use super::bench::Pair;
use crate::{
    certificate::testing::{root, signing},
    config::{Ppk, PpkUse},
    sa::{Event, Failure},
    secret::Secret,
    signature::KeyKind,
    wire::NotifyType,
};

/// Two ends; `a` names the key "x", both may require one, and `b` may know it.
fn pair(a_requires: bool, b: Option<bool>, b_knows: bool) -> Pair {
    let mut pair = Pair::new();
    let key = |n: u8| Ppk {
        name: "x".to_owned(),
        ids: vec![b"x".to_vec()],
        secret: Secret::new(vec![n; 32]),
    };
    pair.a.policy.ppks = vec![key(1)];
    pair.a.policy.connections[0].auth.ppk = Some(PpkUse {
        id: Some(b"x".to_vec()),
        required: a_requires,
    });
    pair.b.policy.ppks = b_knows.then(|| key(1)).into_iter().collect();
    pair.b.policy.connections[0].auth.ppk = b.map(|required| PpkUse { id: None, required });
    pair
}

fn failures(events: &[Event]) -> Vec<&Failure> {
    let failed = events.iter().filter_map(|e| match e {
        Event::Failed { what } => Some(what),
        _ => None,
    });
    failed.collect()
}

/// The keys of Child SAs of two runs that are the same but for the pre-shared key differ, if one was used.
fn child_key(pair: &mut Pair) -> Secret {
    pair.connect();
    pair.a.children()[0].key_in.clone()
}

#[test]
fn it_is_mixed_in_where_both_ends_know_it() {
    let with = child_key(&mut pair(true, Some(true), true));
    let mut other = pair(true, Some(true), true);
    for end in [&mut other.a, &mut other.b] {
        end.policy.ppks[0].secret = Secret::new(vec![2; 32]);
    }
    assert_ne!(with, child_key(&mut other));
    assert_eq!(with, child_key(&mut pair(false, Some(false), true)));
}

#[test]
fn without_it_ends_that_do_not_require_it_go_on() {
    let plain = child_key(&mut pair(false, Some(false), false));
    assert_ne!(plain, child_key(&mut pair(false, Some(false), true)));
    // A responder that has never heard of it.
    pair(false, None, false).connect();
}

#[test]
fn who_requires_it_goes_without_it_nowhere() {
    for (a_requires, b, b_knows) in [
        (true, Some(false), false),
        (true, None, false),
        (false, Some(true), false),
    ] {
        let mut pair = pair(a_requires, b, b_knows);
        pair.start();
        pair.settle();
        let (a, b) = (failures(&pair.a.events), failures(&pair.b.events));
        assert!(
            a.contains(&&Failure::UnknownPpk) || b.contains(&&Failure::UnknownPpk),
            "{a:?} {b:?}"
        );
        assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
    }
    // Nor does a peer that does not name one.
    let mut pair = pair(false, Some(true), true);
    pair.a.policy.connections[0].auth.ppk = None;
    pair.start();
    pair.settle();
    assert_eq!(failures(&pair.b.events), [&Failure::UnknownPpk]);
}

#[test]
fn another_key_of_the_same_name_does_not_authenticate() {
    let mut pair = pair(true, Some(true), true);
    pair.b.policy.ppks[0].secret = Secret::new(vec![9; 32]);
    pair.start();
    pair.settle();
    assert_eq!(
        failures(&pair.a.events),
        [&Failure::PeerRefused(NotifyType::AUTHENTICATION_FAILED)]
    );
    assert!(matches!(
        failures(&pair.b.events)[..],
        [Failure::BadAuth(_)]
    ));
}

/// Both ends have certificates besides.
fn certified(mut pair: Pair) -> Pair {
    let root = root("root");
    for (at_b, name) in [(false, "a.test"), (true, "b.test")] {
        let own = root.issue(KeyKind::P256, &[name]);
        let end = pair.end(at_b);
        let auth = &mut end.policy.connections[0].auth;
        *auth = crate::config::Authentication {
            ppk: auth.ppk.clone(),
            ..signing(own.credential("key", &[]))
        };
        end.policy.authorities = vec![root.authority()];
        end.keys.insert("key".to_owned(), own.key);
    }
    pair
}

#[test]
fn it_goes_together_with_certificates() {
    certified(pair(true, Some(true), true)).connect();
}

/// Who signs does it twice where the peer may do without the key.
#[test]
fn without_it_ends_that_sign_go_on_where_it_is_not_required() {
    for b_knows in [false, true] {
        certified(pair(false, Some(false), b_knows)).connect();
    }
    let mut pair = certified(pair(true, Some(false), false));
    pair.start();
    pair.settle();
    assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
}

/// A successor begins anew with both signatures, wherever the questions for them were left.
#[test]
fn a_successor_signs_twice_again() {
    for answered in 0..3 {
        let mut pair = certified(pair(false, Some(false), false));
        pair.a.answers = false;
        pair.start();
        pair.settle();
        for _ in 0..answered {
            let (id, question) = pair.a.questions.remove(0);
            let now = pair.now;
            for bytes in pair.a.answer(id, &question, now) {
                pair.transmit(false, bytes);
            }
            pair.settle();
        }
        let now = pair.now;
        pair.a.questions.clear();
        pair.a.answers = true;
        pair.a.take_over(now);
        pair.pass(std::time::Duration::from_secs(20));
        pair.check_agreement();
    }
}
