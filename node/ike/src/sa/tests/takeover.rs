//! A successor goes on from what is committed, whatever was under way.

use super::bench::{Packet, Pair};
use crate::{
    record::CloseReason,
    sa::{Command, Event},
    wire::Header,
};
use std::time::Duration;

/// Runs `scenario` with the end `b` killed after each of its messages was (or was not) sent, then taken over.
fn kill_everywhere(scenario: impl Fn(&mut Pair), expect_children: usize) {
    kill_everywhere_in(Pair::new, scenario, expect_children);
}

/// The same between two ends that `make` makes.
pub(super) fn kill_everywhere_in(
    make: impl Fn() -> Pair,
    scenario: impl Fn(&mut Pair),
    expect_children: usize,
) {
    for victim_is_b in [false, true] {
        for after in 0..10 {
            for sent in [false, true] {
                let mut pair = make();
                pair.connect();
                let spi = pair.a.children()[0].spi_in;
                scenario(&mut pair);
                let mut n = 0;
                while let Some(packet) = pair.wire.pop_front() {
                    let from_victim = packet.to_b != victim_is_b;
                    if from_victim {
                        n += 1;
                        if n > after {
                            // Killed: this message went out as the last one, or was lost with the process.
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
                assert_eq!(
                    pair.a.children().len(),
                    expect_children,
                    "killed after {after}, sent {sent}"
                );
                let ups = pair
                    .a
                    .events
                    .iter()
                    .filter(|e| matches!(e, Event::IkeEstablished { .. }))
                    .count();
                assert_eq!(ups, 1, "nobody authenticated again");
                let _ = spi;
            }
        }
    }
}

#[test]
fn during_a_child_rekey_from_either_side() {
    for b in [false, true] {
        kill_everywhere(
            |p| {
                let spi = p.end(b).children()[0].spi_in;
                p.command(b, Command::RekeyChild(spi));
            },
            1,
        );
    }
}

#[test]
fn during_an_ike_rekey_from_either_side() {
    for b in [false, true] {
        kill_everywhere(|p| p.command(b, Command::RekeyIke), 1);
    }
}

#[test]
fn during_a_deletion_from_either_side() {
    for b in [false, true] {
        kill_everywhere(
            |p| {
                let spi = p.end(b).children()[0].spi_in;
                p.command(b, Command::DeleteChild(spi));
            },
            0,
        );
    }
}

#[test]
fn during_both_at_once() {
    kill_everywhere(
        |p| {
            for b in [false, true] {
                let spi = p.end(b).children()[0].spi_in;
                p.command(b, Command::RekeyChild(spi));
            }
        },
        1,
    );
    kill_everywhere(
        |p| {
            for b in [false, true] {
                p.command(b, Command::RekeyIke);
            }
        },
        1,
    );
}

/// Liveness checks of both ends that were never replicated do not bring the SA down.
#[test]
fn after_liveness_checks_that_nobody_knows_of() {
    for checks in 1..8 {
        let mut pair = Pair::with(
            |a| a.dpd_delay = Duration::from_secs(10),
            |b| b.dpd_delay = Duration::from_secs(15),
        );
        pair.connect();
        pair.b.lazy = false;
        pair.pass(Duration::from_secs(10 * checks));
        let now = pair.now;
        pair.b.take_over(now);
        pair.b.lazy = true;
        pair.pass(Duration::from_secs(300));
        pair.check_agreement();
        pair.command(true, Command::RekeyIke);
        pair.settle();
        let spi = pair.a.children()[0].spi_in;
        pair.command(false, Command::RekeyChild(spi));
        pair.settle();
        pair.check_agreement();
        let ups = pair
            .a
            .events
            .iter()
            .filter(|e| matches!(e, Event::IkeEstablished { .. }))
            .count();
        assert_eq!(ups, 1);
    }
}

/// What is replicated of a liveness check is its Message ID, and the member that answered it keeps no more: if it is repeated, it is
/// answered again, in the same words.
#[test]
fn answers_to_liveness_checks_are_not_kept() {
    let mut pair = Pair::with(|a| a.dpd_delay = Duration::from_secs(10), |_| {});
    pair.connect();
    let before = pair.sent.len();
    pair.pass(Duration::from_secs(15));
    let [request, response] = &pair.sent[before..] else {
        panic!("one liveness check");
    };
    let (request, response) = (request.clone(), response.clone());
    assert!(response.is_response());
    let b = pair.b.established();
    assert_eq!(b.inbound.answered, []);
    assert_eq!(*b, pair.b.committed[&b.id]);
    pair.deliver(&request);
    let again = pair.sent.last().unwrap();
    assert!(again.is_response() && again.bytes == response.bytes);
}

/// The peer may be ahead by what harmless exchanges explain, and no further.
#[test]
fn the_peer_cannot_run_ahead_for_ever() {
    let mut pair = Pair::with(|a| a.dpd_delay = Duration::from_secs(10), |_| {});
    pair.connect();
    pair.b.lazy = false;
    pair.pass(Duration::from_secs(400));
    let now = pair.now;
    pair.b.take_over(now);
    pair.pass(Duration::from_secs(600));
    assert!(
        pair.a
            .events
            .iter()
            .any(|e| matches!(e, Event::IkeClosed { .. })),
        "a gave up, since b could not know its Message IDs"
    );
}

/// A half-open SA that was replicated is continued.
#[test]
fn between_init_and_auth() {
    for b in [false, true] {
        let mut pair = Pair::new();
        pair.start();
        let request = pair.wire.pop_front().unwrap();
        pair.deliver(&request);
        if b {
            let now = pair.now;
            pair.b.take_over(now);
        } else {
            let response = pair.wire.pop_front().unwrap();
            pair.deliver(&response);
            let now = pair.now;
            pair.wire.clear();
            pair.a.take_over(now);
        }
        pair.settle();
        pair.pass(Duration::from_secs(10));
        pair.check_agreement();
    }
}

/// With Message ID synchronisation (RFC 6311) even that is survived, whoever finds out.
#[test]
fn ends_that_are_far_apart_synchronise() {
    for at_b in [false, true] {
        let sync = |delay: u64| {
            move |c: &mut crate::config::Connection| {
                c.dpd_delay = Duration::from_secs(delay);
                c.message_id_sync = true;
            }
        };
        // Either the peer is ahead with its requests, or what is committed of ours is older than it ever should be.
        let mut pair = if at_b {
            Pair::with(sync(1000), sync(10))
        } else {
            Pair::with(sync(10), sync(1000))
        };
        pair.connect();
        pair.b.lazy = at_b;
        pair.pass(Duration::from_secs(400));
        let now = pair.now;
        if at_b {
            let id = pair.b.established().id;
            pair.b.committed.get_mut(&id).unwrap().outbound.next -= 5;
        }
        pair.b.take_over(now);
        pair.b.lazy = true;
        pair.pass(Duration::from_secs(900));
        pair.check_agreement();
        let spi = pair.a.children()[0].spi_in;
        pair.command(false, Command::RekeyChild(spi));
        pair.settle();
        pair.command(true, Command::RekeyIke);
        pair.settle();
        pair.check_agreement();
        assert_eq!(established(&pair), 1, "at_b {at_b}");
    }
}

/// A synchronisation that was recorded and is played again later does nothing.
#[test]
fn a_replayed_synchronisation_is_ignored() {
    let sync = |c: &mut crate::config::Connection| {
        c.dpd_delay = Duration::from_secs(10);
        c.message_id_sync = true;
    };
    let mut pair = Pair::with(sync, |b| b.message_id_sync = true);
    pair.connect();
    pair.b.lazy = false;
    pair.pass(Duration::from_secs(400));
    let now = pair.now;
    pair.b.take_over(now);
    pair.b.lazy = true;
    let before = pair.sent.len();
    pair.pass(Duration::from_secs(100));
    let requests: Vec<_> = pair.sent[before..]
        .iter()
        .filter(|p| !p.to_b && !p.is_response() && Header::parse(&p.bytes).unwrap().message_id == 0)
        .cloned()
        .collect();
    assert!(!requests.is_empty(), "there was a synchronisation");
    let state = pair.a.established().clone();
    for request in requests {
        pair.deliver(&request);
    }
    assert_eq!(state.inbound, pair.a.established().inbound);
    assert_eq!(state.outbound.next, pair.a.established().outbound.next);
}

/// How often the two ends authenticated.
fn established(pair: &Pair) -> usize {
    pair.a
        .events
        .iter()
        .filter(|e| matches!(e, Event::IkeEstablished { .. }))
        .count()
}

/// What a predecessor said in harmless exchanges comes out of its successor the same, byte for byte, without having been replicated.
#[test]
fn harmless_messages_are_the_same_from_anyone() {
    let dpd = |seconds| {
        move |c: &mut crate::config::Connection| c.dpd_delay = Duration::from_secs(seconds)
    };
    let mut pair = Pair::with(dpd(10), dpd(9));
    pair.connect();
    pair.b.lazy = false;
    let before = pair.sent.len();
    pair.pass(Duration::from_secs(25));
    let said: Vec<_> = pair.sent[before..].to_vec();
    let (request, response) = (
        said.iter().find(|p| !p.to_b && !p.is_response()),
        said.iter().find(|p| !p.to_b && p.is_response()),
    );
    let (request, response) = (
        request.expect("b asked").clone(),
        response.expect("b answered").clone(),
    );
    let asked = said
        .iter()
        .find(|p| p.to_b && !p.is_response())
        .expect("a asked")
        .clone();
    let now = pair.now;
    pair.b.take_over(now);
    let before = pair.sent.len();
    pair.deliver(&asked);
    pair.pass(Duration::from_secs(15));
    let again: Vec<_> = pair.sent[before..].iter().map(|p| &p.bytes).collect();
    assert!(again.contains(&&response.bytes), "the response");
    assert!(again.contains(&&request.bytes), "the request");
}

fn checks_often(c: &mut crate::config::Connection) {
    c.dpd_delay = Duration::from_secs(5);
    c.message_id_sync = true;
}

/// For so long that a successor's probe counts as not understood.
fn nothing_passes(pair: &mut Pair) {
    for _ in 0..40 {
        pair.wire.clear();
        pair.now = pair.now + Duration::from_millis(500);
        let until = pair.now;
        pair.wake(until);
    }
}

/// A synchronisation makes the peer abandon its request. That must not be one that was carried out already.
#[test]
fn nothing_is_synchronised_while_the_peer_may_wait_for_an_answer() {
    let mut pair = Pair::with(checks_often, checks_often);
    pair.connect();
    pair.command(false, Command::CreateChild("net".into()));
    let request = pair.wire.pop_front().unwrap();
    pair.deliver(&request);
    let now = pair.now;
    pair.b.take_over(now);
    // For so long nothing passes that the successor's probe counts as not understood.
    nothing_passes(&mut pair);
    pair.pass(Duration::from_secs(120));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 2, "{:?}", pair.a.events);
}

#[test]
fn nothing_is_made_while_message_ids_are_synchronised() {
    let mut pair = Pair::with(checks_often, checks_often);
    pair.connect();
    pair.pass(Duration::from_secs(60));
    pair.command(false, Command::CreateChild("net".into()));
    let request = pair.wire.pop_front().unwrap();
    let now = pair.now;
    pair.b.take_over(now);
    // For so long nothing passes that the successor asks for new Message IDs. The peer's request, which it would abandon then, comes before it hears of that.
    nothing_passes(&mut pair);
    let asks = |p: &&Packet| {
        !p.to_b && !p.is_response() && Header::parse(&p.bytes).unwrap().message_id == 0
    };
    let synchronisation = pair.sent.iter().rfind(asks);
    let synchronisation = synchronisation.expect("it asks for new ones").clone();
    pair.deliver(&request);
    pair.wire.clear();
    pair.deliver(&synchronisation);
    pair.pass(Duration::from_secs(120));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 2, "{:?}", pair.a.events);
}

/// Why the IKE SA of `a` ended that an operator deleted there, when its process lives on, or dies once the request has left.
fn end_of_deletion(dies: bool) -> Vec<CloseReason> {
    let mut pair = Pair::new();
    pair.connect();
    pair.command(false, Command::Delete);
    if dies {
        let now = pair.now;
        pair.end(false).take_over(now);
    }
    pair.settle();
    pair.pass(Duration::from_secs(5));
    let ends = pair.a.events.iter().filter_map(|e| match e {
        Event::IkeClosed { reason } => Some(*reason),
        _ => None,
    });
    ends.collect()
}

#[test]
fn a_deletion_that_a_predecessor_began_is_not_ours() {
    assert_eq!(end_of_deletion(false), [CloseReason::DeletedByUs]);
    // It may have expired by the other's clock: what should be up comes up again.
    assert_eq!(end_of_deletion(true), [CloseReason::Expired]);
}
