//! A new authentication takes the place of an IKE SA while that goes on (RFC 7296 §2.8.3, RFC 4478).

use super::bench::{Packet, Pair};
use crate::{
    config::{Childless, Connection},
    record::{CloseReason, Phase, SaId},
    sa::{Command, Event, Failure, pursue::OVERLAP},
};
use std::time::Duration;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// How often `a` has authenticated.
fn ups(pair: &Pair) -> usize {
    let up = |e: &&Event| matches!(e, Event::IkeEstablished { .. });
    pair.a.events.iter().filter(up).count()
}

/// A second child, for other traffic, at both ends.
fn two_children(c: &mut Connection) {
    let mut second = c.children[0].clone();
    second.name = "more".into();
    for ts in [&mut second.local_ts, &mut second.remote_ts] {
        let text = format!("{:?}", ts[0]);
        let n = if text.contains("10.1.") { 3 } else { 4 };
        *ts = vec![format!("10.{n}.0.0/16").parse().unwrap()];
    }
    c.children.push(second);
}

fn names(pair: &Pair) -> Vec<String> {
    let mut names: Vec<_> = pair.b.children().iter().map(|c| c.name.clone()).collect();
    names.sort();
    names
}

/// Both ends can send and receive at any time.
fn check_ways(pair: &Pair) {
    for end in [&pair.a, &pair.b] {
        assert!(
            !end.plane.is_empty(),
            "there is a moment without a Child SA"
        );
    }
    let common = |(spi, child): (&u32, &crate::record::Child)| {
        pair.b
            .plane
            .get(&child.spi_out)
            .is_some_and(|c| c.spi_out == *spi)
    };
    assert!(pair.a.plane.iter().any(common), "no pair is at both ends");
}

fn settle_checked(pair: &mut Pair) {
    while let Some(packet) = pair.wire.pop_front() {
        pair.deliver(&packet);
        check_ways(pair);
    }
}

fn begin(pair: &mut Pair) {
    pair.command(false, Command::Reauthenticate);
    let now = pair.now;
    pair.wake(now);
}

#[test]
fn by_time_with_a_new_sa_before_the_old_one_goes() {
    let mut pair = Pair::with(|a| a.reauth_time = secs(100), |_| {});
    pair.connect();
    let (old, spi) = (pair.a.established().id, pair.a.children()[0].spi_in);
    pair.pass(secs(99));
    assert_eq!(pair.a.established().id, old);
    let now = pair.now + secs(1);
    pair.now = now;
    pair.wake(now);
    pair.wake(now);
    settle_checked(&mut pair);
    let closed = |pair: &Pair| {
        let is = |e: &&Event| matches!(e, Event::IkeClosed { .. });
        pair.a.events.iter().filter(is).count()
    };
    assert_eq!(
        (ups(&pair), closed(&pair)),
        (2, 0),
        "for a while there are two"
    );
    pair.pass(OVERLAP);
    assert_eq!(closed(&pair), 1);
    pair.pass(secs(10));
    pair.check_agreement();
    assert_eq!(ups(&pair), 2);
    assert_ne!(pair.a.established().id, old);
    assert_ne!(pair.a.children()[0].spi_in, spi);
    assert_eq!(pair.a.established().succeeds, None, "it is done");
    let closed = Event::IkeClosed {
        reason: CloseReason::Reauthenticated,
    };
    assert!(pair.a.events.contains(&closed));
    // And again, from then on.
    pair.pass(secs(100));
    pair.check_agreement();
    assert_eq!(ups(&pair), 3);
}

#[test]
fn all_child_sas_are_there_before() {
    for childless in [Childless::Allow, Childless::Force] {
        let change = |c: &mut Connection| {
            two_children(c);
            c.childless = childless;
        };
        let mut pair = Pair::with(change, change);
        pair.start();
        pair.settle();
        pair.command(false, Command::CreateChild("more".into()));
        pair.settle();
        assert_eq!(names(&pair), ["more", "net"]);
        let old = pair.a.established().id;
        begin(&mut pair);
        settle_checked(&mut pair);
        pair.pass(secs(10));
        pair.check_agreement();
        assert_ne!(pair.a.established().id, old);
        assert_eq!(names(&pair), ["more", "net"], "{childless:?}");
    }
}

#[test]
fn a_responder_says_for_how_long_and_the_initiator_follows() {
    let mut pair = Pair::with(|_| {}, |b| b.reauth_time = secs(1000));
    pair.connect();
    let old = pair.a.established().id;
    // A tenth, or over_time, is left for doing it.
    pair.pass(secs(930));
    assert_eq!(pair.a.established().id, old);
    pair.pass(secs(30));
    pair.check_agreement();
    assert_ne!(pair.a.established().id, old);
    assert_eq!(ups(&pair), 2);
}

#[test]
fn a_rekey_does_not_make_it_last_longer() {
    let mut pair = Pair::with(|a| a.rekey_time = secs(300), |b| b.reauth_time = secs(1000));
    pair.connect();
    pair.pass(secs(960));
    assert_eq!(ups(&pair), 2);
    pair.check_agreement();
}

#[test]
fn when_it_fails_the_old_one_goes_on_until_its_time_is_over() {
    let mut pair = Pair::with(|_| {}, |b| b.reauth_time = secs(1000));
    pair.connect();
    pair.b.policy.connections[0].proposals = vec!["aes128gcm16-prfsha256-ecp384".parse().unwrap()];
    pair.pass(secs(1050));
    let failed = Event::Failed {
        what: Failure::NotReauthenticated,
    };
    let tries = pair.a.events.iter().filter(|e| **e == failed).count();
    assert!((2..10).contains(&tries), "tried {tries} times");
    pair.check_agreement();
    pair.pass(secs(60));
    let open = |r: &&crate::record::Record| matches!(r.phase, Phase::Established(_));
    assert_eq!(pair.b.committed.values().filter(open).count(), 0);
    assert_eq!(pair.a.committed.values().filter(open).count(), 0);
}

/// Who did not begin the IKE SA asks the peer for a new authentication, as often as a rekey of it.
#[test]
fn a_responder_asks_for_it_and_does_not_begin_it() {
    let mut pair = Pair::new();
    pair.connect();
    for round in 1..=2 {
        let (old, of_b) = (pair.a.established().id, pair.b.established().id);
        pair.command(true, Command::Reauthenticate);
        pair.settle();
        assert_eq!(pair.b.established().id, of_b, "it begins nothing itself");
        // The peer takes its time, which is 2 s at least; and it is not asked twice.
        pair.command(true, Command::Reauthenticate);
        pair.settle();
        pair.pass(secs(1));
        assert_eq!(pair.a.established().id, old);
        pair.pass(secs(19));
        pair.check_agreement();
        assert_ne!(pair.a.established().id, old);
        assert_eq!(ups(&pair), 1 + round);
        let asked = |e: &&Event| matches!(e, Event::AskedToReauthenticate);
        assert_eq!(pair.b.events.iter().filter(asked).count(), round);
    }
}

/// A peer that does not do it, here because it cannot, is asked again, but not soon.
#[test]
fn a_peer_that_does_not_do_it_is_asked_again() {
    let mut pair = Pair::new();
    pair.connect();
    pair.b.policy.connections[0].proposals = vec!["aes128gcm16-prfsha256-ecp384".parse().unwrap()];
    for (after, times) in [(0, 1), (29, 1), (2, 2)] {
        pair.pass(secs(after));
        pair.command(true, Command::Reauthenticate);
        pair.settle();
        let asked = |e: &&Event| matches!(e, Event::AskedToReauthenticate);
        let asked = pair.b.events.iter().filter(asked).count();
        assert_eq!(asked, times, "after {after} s more");
    }
}

/// A rekey does not change whose it is, whoever asked for that.
#[test]
fn after_a_rekey_by_the_responder_it_is_still_up_to_the_initiator() {
    let mut pair = Pair::new();
    pair.connect();
    pair.command(true, Command::RekeyIke);
    pair.settle();
    let old = pair.a.established().id;
    begin(&mut pair);
    pair.settle();
    pair.pass(secs(20));
    assert_ne!(pair.a.established().id, old);
    assert_eq!(ups(&pair), 2);
    pair.check_agreement();
}

/// What it asked for is committed before it is sent, and a successor repeats it.
#[test]
fn a_request_for_it_outlasts_a_takeover() {
    let mut pair = Pair::new();
    pair.connect();
    let old = pair.a.established().id;
    pair.command(true, Command::Reauthenticate);
    assert!(!pair.wire.is_empty(), "it asks");
    pair.wire.clear();
    let now = pair.now;
    pair.b.take_over(now);
    pair.pass(secs(30));
    pair.check_agreement();
    assert_ne!(pair.a.established().id, old);
}

#[test]
fn what_the_peer_does_to_the_old_one_meanwhile_comes_to_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    pair.command(true, Command::RekeyIke);
    pair.command(false, Command::Reauthenticate);
    let now = pair.now;
    pair.wake(now);
    pair.settle();
    pair.pass(secs(20));
    pair.check_agreement();
    assert_eq!(ups(&pair), 2);
}

/// Whoever dies after whichever message: at the end there is one IKE SA, the new one, with its Child SA.
#[test]
fn whoever_dies_in_the_middle_of_it() {
    for victim_is_b in [false, true] {
        for after in 0..8 {
            for sent in [false, true] {
                let mut pair = Pair::new();
                pair.connect();
                let old: SaId = pair.a.established().id;
                begin(&mut pair);
                let mut n = 0;
                while let Some(packet) = pair.wire.pop_front() {
                    if packet.to_b != victim_is_b {
                        n += 1;
                        if n > after {
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
                pair.pass(secs(60));
                pair.check_agreement();
                assert_ne!(
                    pair.a.established().id,
                    old,
                    "b {victim_is_b}, after {after}"
                );
                assert_eq!(pair.a.children().len(), 1);
                assert_eq!(pair.a.established().succeeds, None);
            }
        }
    }
}

/// The process that began it dies before the first message of the new IKE SA was sent.
#[test]
fn a_successor_goes_on_with_what_was_only_committed() {
    let mut pair = Pair::new();
    pair.connect();
    let old = pair.a.established().id;
    pair.command(false, Command::Reauthenticate);
    let now = pair.now;
    pair.a.take_over(now);
    pair.pass(secs(30));
    pair.check_agreement();
    assert_ne!(pair.a.established().id, old);
}
