//! Several rounds of authentication (RFC 4739).

use super::bench::{Packet, Pair};
use crate::{
    certificate::testing::{named_keys, root, signing},
    config::{LocalAuth, LocalRound, Ppk, PpkUse, RemoteAuth, RemoteRound, SharedSecret},
    identity::{IdPattern, Identity},
    sa::{Event, Failure},
    secret::Secret,
    signature::KeyKind,
    wire::{ExchangeType, NotifyType},
};
use std::time::Duration;

/// In which rounds each end authenticates, and how: with a key of its own, or with the pre-shared one.
type Plan<'p> = (&'p [Way], &'p [Way]);

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Key,
    Psk,
}
use Way::{Key, Psk};

fn name(at_b: bool, round: usize) -> Identity {
    let end = if at_b { "b" } else { "a" };
    match round {
        0 => Identity::Fqdn(format!("{end}.test")),
        round => Identity::Fqdn(format!("{end}{round}.test")),
    }
}

/// Two ends that authenticate so.
fn pair((a, b): Plan<'_>) -> Pair {
    let mut pair = Pair::new();
    let root = root("nobody's");
    let keys = [false, true].map(|at_b| root.issue(KeyKind::P256, &[&name(at_b, 0).to_string()]));
    for (at_b, ours, theirs) in [(false, a, b), (true, b, a)] {
        let (own, other) = (&keys[usize::from(at_b)], &keys[usize::from(!at_b)]);
        let local = |way: &Way| match way {
            Key => signing(own.raw_key("key")).local,
            Psk => LocalAuth::Psk,
        };
        let remote = |way: &Way| match way {
            Key => named_keys(&[other]),
            Psk => RemoteAuth::Psk,
        };
        let end = pair.end(at_b);
        let connection = &mut end.policy.connections[0];
        connection.local_id = Some(name(at_b, 0));
        connection.remote_id = IdPattern::Exact(name(!at_b, 0));
        connection.auth.local = local(&ours[0]);
        connection.auth.remote = remote(&theirs[0]);
        let more = (1..).zip(&ours[1..]).map(|(round, way)| LocalRound {
            id: Some(name(at_b, round)),
            auth: local(way),
        });
        connection.auth.more_local = more.collect();
        let more = (1..).zip(&theirs[1..]).map(|(round, way)| RemoteRound {
            id: IdPattern::Exact(name(!at_b, round)),
            auth: remote(way),
        });
        connection.auth.more_remote = more.collect();
        end.policy.private_keys = vec![own.private_key("key")];
        // The secret is for whom it is, and for nobody else.
        end.policy.secrets = (0..4)
            .flat_map(|i| (0..4).map(move |j| (i, j)))
            .map(|(i, j)| SharedSecret {
                name: format!("{i} {j}"),
                ids: [name(false, i), name(true, j)]
                    .map(IdPattern::Exact)
                    .to_vec(),
                secret: Secret::new(format!("secret {i} {j}").into_bytes()),
            })
            .collect();
    }
    let [a, b] = keys;
    pair.a.keys.insert("key".to_owned(), a.key);
    pair.b.keys.insert("key".to_owned(), b.key);
    pair
}

/// Plans of which each has something of its own.
const PLANS: [Plan<'static>; 7] = [
    (&[Key, Psk], &[Key]),
    (&[Psk, Key], &[Psk]),
    (&[Key], &[Key, Psk]),
    (&[Psk], &[Psk, Key]),
    (&[Key, Psk], &[Key, Psk]),
    (&[Psk, Psk, Key, Psk], &[Key, Psk]),
    (&[Key], &[Psk, Key, Psk]),
];

fn exchanges(pair: &Pair) -> usize {
    let auth = |p: &&Packet| p.exchange() == ExchangeType::IKE_AUTH && !p.is_response();
    pair.sent.iter().filter(auth).count()
}

fn failures(events: &[Event]) -> Vec<Failure> {
    let failed = events.iter().filter_map(|e| match e {
        Event::Failed { what } => Some(what.clone()),
        _ => None,
    });
    failed.collect()
}

fn refused(mut pair: Pair) -> (Vec<Failure>, Vec<Failure>) {
    pair.start();
    pair.settle();
    pair.pass(Duration::from_secs(1));
    assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
    (failures(&pair.a.events), failures(&pair.b.events))
}

#[test]
fn each_end_authenticates_in_all_of_its_rounds() {
    for (n, plan) in PLANS.into_iter().enumerate() {
        let mut pair = pair(plan);
        pair.connect();
        assert_eq!(exchanges(&pair), plan.0.len().max(plan.1.len()), "plan {n}");
        // Each is to the other who it said it was last.
        let (a, b) = (name(false, plan.0.len() - 1), name(true, plan.1.len() - 1));
        let (ours, theirs) = pair.a.established().identities().unwrap();
        assert_eq!((ours, theirs), (&a, &b), "plan {n}");
        let (ours, theirs) = pair.b.established().identities().unwrap();
        assert_eq!((ours, theirs), (&b, &a), "plan {n}");
    }
}

#[test]
fn a_wrong_answer_in_any_round_ends_it() {
    for (n, plan) in PLANS.into_iter().enumerate() {
        for at_b in [false, true] {
            let ways = if at_b { plan.1 } else { plan.0 };
            for (round, way) in ways.iter().enumerate() {
                let mut pair = pair(plan);
                let end = pair.end(at_b);
                match way {
                    // The key of somebody else.
                    Key => {
                        let stranger = root("x").issue(KeyKind::P256, &["x.test"]);
                        end.keys.insert("key".to_owned(), stranger.key);
                    }
                    Psk => {
                        for secret in &mut end.policy.secrets {
                            let of = |id| secret.ids.contains(&IdPattern::Exact(id));
                            if of(name(at_b, round)) {
                                secret.secret = Secret::new(b"another".to_vec());
                            }
                        }
                    }
                }
                let (a, b) = refused(pair);
                assert!(
                    !a.is_empty() && (at_b || !b.is_empty()),
                    "plan {n}: {a:?} {b:?}"
                );
            }
        }
    }
}

#[test]
fn somebody_else_in_a_later_round_is_refused() {
    for at_b in [false, true] {
        let plan: Plan<'_> = if at_b {
            (&[Key], &[Key, Psk])
        } else {
            (&[Key, Psk], &[Key])
        };
        let mut pair = pair(plan);
        pair.end(at_b).policy.connections[0].auth.more_local[0].id = Some(name(at_b, 3));
        let (a, b) = refused(pair);
        let judge = if at_b { &a } else { &b };
        assert!(
            matches!(&judge[..], [Failure::UnknownIdentity { id, .. }] if *id == name(at_b, 3)),
            "{a:?} {b:?}"
        );
    }
}

/// Fewer rounds than are wanted do not do, and more neither.
#[test]
fn the_number_of_rounds_has_to_be_that_of_the_connection() {
    let more = |at_b: bool, more: bool| {
        let plan: Plan<'_> = match (at_b, more) {
            (false, false) => (&[Key, Psk], &[Key]),
            (false, true) => (&[Key, Psk, Psk], &[Key]),
            (true, false) => (&[Key], &[Key, Psk]),
            (true, true) => (&[Key], &[Key, Psk, Psk]),
        };
        let mut pair = pair(plan);
        let auth = &mut pair.end(at_b).policy.connections[0].auth;
        if !more {
            auth.more_local.clear();
        }
        let judge = &mut pair.end(!at_b).policy.connections[0].auth;
        judge.more_remote.truncate(1);
        let (a, b) = refused(pair);
        let said = if at_b { a } else { b };
        assert_eq!(said, [Failure::Rounds], "{at_b} {more}");
    };
    for at_b in [false, true] {
        for too_many in [false, true] {
            more(at_b, too_many);
        }
    }
    // Nor does one who authenticates twice where once is wanted.
    let mut pair = pair((&[Key, Psk], &[Key, Psk]));
    pair.b.policy.connections[0].auth.more_remote.clear();
    assert_eq!(refused(pair).1, [Failure::Rounds]);
}

/// Nothing is granted, and no Child SA is there, before the last round.
#[test]
fn nothing_is_granted_before_the_last_round() {
    let mut pair = pair((&[Key, Psk], &[Key]));
    pair.start();
    let mut seen = 0;
    pair.settle_if(|p| {
        let auth = p.exchange() == ExchangeType::IKE_AUTH && !p.is_response();
        seen += usize::from(auth);
        seen < 2
    });
    assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
    for end in [&pair.a, &pair.b] {
        let up = |e: &&Event| matches!(e, Event::IkeEstablished { .. });
        assert_eq!(end.events.iter().filter(up).count(), 0);
    }
    // And it goes on from there.
    pair.pass(Duration::from_secs(10));
    pair.check_agreement();
}

#[test]
fn a_post_quantum_key_is_mixed_in_once() {
    for plan in PLANS {
        let mut pair = pair(plan);
        for at_b in [false, true] {
            let policy = &mut pair.end(at_b).policy;
            policy.ppks = vec![Ppk {
                name: "x".to_owned(),
                ids: vec![b"x".to_vec()],
                secret: Secret::new(vec![1; 32]),
            }];
            policy.connections[0].auth.ppk = Some(PpkUse {
                id: Some(b"x".to_vec()),
                required: true,
            });
        }
        pair.connect();
    }
}

/// Whichever end dies after (or with) whichever message, its successor goes on, and nobody has to begin anew.
#[test]
fn a_successor_goes_on_in_the_middle_of_any_round() {
    for plan in PLANS {
        for victim_is_b in [false, true] {
            for after in 0..5 {
                for sent in [false, true] {
                    killed(plan, victim_is_b, after, sent);
                }
            }
        }
    }
}

fn killed(plan: Plan<'_>, victim_is_b: bool, after: usize, sent: bool) {
    let mut pair = pair(plan);
    pair.start();
    let mut n = 0;
    while let Some(packet) = pair.wire.pop_front() {
        if packet.to_b != victim_is_b && packet.exchange() == ExchangeType::IKE_AUTH {
            n += 1;
            if n > after {
                // This message went out as the last one, or was lost with the process.
                pair.wire.retain(|p: &Packet| p.to_b == victim_is_b);
                if sent {
                    pair.deliver(&packet);
                }
                let now = pair.now;
                pair.end(victim_is_b).take_over(now);
                break;
            }
        }
        pair.deliver(&packet);
    }
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    for end in [&pair.a, &pair.b] {
        let up = |e: &&Event| matches!(e, Event::IkeEstablished { .. });
        let ups = end.events.iter().filter(up).count();
        assert_eq!(ups, 1, "{victim_is_b} {after} {sent}");
    }
}

/// A successor that takes over while a signature or a verification of a later round is asked for.
#[test]
fn a_successor_goes_on_wherever_the_question_was_left() {
    for plan in PLANS {
        for at_b in [false, true] {
            for answered in 0..4 {
                let mut pair = pair(plan);
                pair.end(at_b).answers = false;
                pair.start();
                pair.settle();
                for _ in 0..answered {
                    if pair.end(at_b).questions.is_empty() {
                        break;
                    }
                    let (id, question) = pair.end(at_b).questions.remove(0);
                    let now = pair.now;
                    for bytes in pair.end(at_b).answer(id, &question, now) {
                        pair.transmit(at_b, bytes);
                    }
                    pair.settle();
                }
                let now = pair.now;
                let end = pair.end(at_b);
                end.questions.clear();
                end.answers = true;
                end.take_over(now);
                pair.pass(Duration::from_secs(30));
                pair.check_agreement();
            }
        }
    }
}

#[test]
fn it_is_announced_only_where_it_is_wanted() {
    let announced = |pair: &mut Pair| {
        pair.connect();
        let init = pair
            .sent
            .iter()
            .filter(|p| p.exchange() == ExchangeType::IKE_SA_INIT);
        let notifies = init.flat_map(|p| crate::wire::Message::parse(&p.bytes).unwrap().payloads);
        let said = notifies.filter(|p| {
            matches!(p, crate::wire::Payload::Notify(n) if n.kind == NotifyType::MULTIPLE_AUTH_SUPPORTED)
        });
        said.count()
    };
    assert_eq!(announced(&mut Pair::new()), 0);
    assert_eq!(announced(&mut pair((&[Key, Psk], &[Key]))), 1);
}
