//! Each exchange once, from either side, with loss.

use super::bench::{End, Packet, Pair};
use crate::{
    config::Childless,
    record::{CloseReason, Fate, Phase},
    sa::{Command, Event, Failure, pursue::OVERLAP},
    secret::Secret,
    wire::{ExchangeType, Message, NotifyType, Payload, emit},
};
use std::time::Duration;

#[test]
fn two_ends_connect() {
    Pair::new().connect();
}

#[test]
fn a_group_that_the_responder_does_not_want_costs_a_round_trip() {
    let mut pair = Pair::with(
        |a| a.proposals = vec!["aes256gcm16-prfsha256-modp2048-x25519".parse().unwrap()],
        |b| b.proposals = vec!["aes256gcm16-prfsha256-x25519".parse().unwrap()],
    );
    pair.connect();
    assert_eq!(
        pair.sent
            .iter()
            .filter(|p| p.exchange() == ExchangeType::IKE_SA_INIT)
            .count(),
        4
    );
}

#[test]
fn every_message_may_be_lost_once() {
    let mut clean = Pair::new();
    clean.connect();
    for lost in 0..clean.sent.len() {
        let mut pair = Pair::new();
        pair.start();
        let mut n = 0;
        pair.settle_if(|_| {
            n += 1;
            n - 1 != lost
        });
        pair.pass(Duration::from_secs(5));
        pair.check_agreement();
    }
}

#[test]
fn a_wrong_key_is_refused_and_nothing_remains() {
    let mut pair = Pair::new();
    pair.b.policy.secrets[0].secret = Secret::new(b"another".to_vec());
    pair.start();
    pair.settle();
    assert!(pair.a.events.contains(&Event::Failed {
        what: Failure::PeerRefused(NotifyType::AUTHENTICATION_FAILED)
    }));
    assert!(pair.b.events.iter().any(|e| matches!(
        e,
        Event::Failed {
            what: Failure::BadAuth(_)
        }
    )));
    assert!(
        pair.b
            .sas
            .values()
            .all(|s| matches!(s.record().phase, Phase::Closed(_)))
    );
    assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
}

#[test]
fn a_responder_with_a_wrong_key_is_told() {
    // The initiator's key is right at the responder, the responder's own is not what the initiator expects.
    let mut pair = Pair::new();
    pair.start();
    pair.settle_if(|p| !(p.exchange() == ExchangeType::IKE_AUTH && p.is_response()));
    pair.a.policy.secrets[0].secret = Secret::new(b"another".to_vec());
    pair.pass(Duration::from_secs(5));
    assert!(
        pair.a.events.iter().any(|e| matches!(
            e,
            Event::Failed {
                what: Failure::BadAuth(_)
            }
        )),
        "{:?}",
        pair.a.events
    );
    assert!(
        pair.b.events.contains(&Event::IkeClosed {
            reason: CloseReason::SetupFailed
        }),
        "{:?}",
        pair.b.events
    );
    assert!(pair.b.plane.is_empty());
}

#[test]
fn no_common_traffic_leaves_an_ike_sa_without_a_child() {
    let mut pair = Pair::with(
        |a| a.children[0].remote_ts = vec!["10.9.0.0/16".parse().unwrap()],
        |_| {},
    );
    pair.start();
    pair.settle();
    assert!(pair.a.children().is_empty() && pair.b.children().is_empty());
    assert!(pair.a.events.contains(&Event::Failed {
        what: Failure::PeerRefused(NotifyType::TS_UNACCEPTABLE)
    }));
}

#[test]
fn no_common_proposal_is_said_without_keeping_anything() {
    let mut pair = Pair::with(
        |a| a.proposals = vec!["chacha20poly1305-prfsha256-x25519".parse().unwrap()],
        |_| {},
    );
    pair.start();
    pair.settle();
    assert!(pair.a.events.contains(&Event::Failed {
        what: Failure::PeerRefused(NotifyType::NO_PROPOSAL_CHOSEN)
    }));
    assert!(pair.b.sas.is_empty());
}

#[test]
fn either_end_rekeys_the_child() {
    for b in [false, true] {
        let mut pair = Pair::new();
        pair.connect();
        let old = pair.end(b).children()[0].spi_in;
        pair.command(b, Command::RekeyChild(old));
        pair.settle();
        let there: Vec<u32> = pair.end(b).children().iter().map(|c| c.spi_in).collect();
        assert_eq!(
            (there.len(), there[0]),
            (2, old),
            "what is under way on it arrives"
        );
        pair.pass(OVERLAP);
        pair.check_agreement();
        assert_ne!(pair.end(b).children()[0].spi_in, old);
        assert!(
            pair.a
                .children()
                .iter()
                .chain(pair.b.children())
                .all(|c| c.fate == Fate::Live)
        );
    }
}

#[test]
fn either_end_rekeys_the_ike_sa() {
    for b in [false, true] {
        let mut pair = Pair::new();
        pair.connect();
        let (old, child) = (pair.a.established().id, pair.a.children()[0].spi_in);
        pair.command(b, Command::RekeyIke);
        pair.settle();
        pair.check_agreement();
        assert_ne!(pair.a.established().id, old);
        assert_eq!(pair.a.children()[0].spi_in, child);
        pair.command(!b, Command::RekeyIke);
        pair.settle();
        pair.check_agreement();
        // Tombstones are forgotten in the end.
        pair.pass(Duration::from_secs(600));
        assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (1, 1));
        assert_eq!((pair.a.committed.len(), pair.b.committed.len()), (1, 1));
    }
}

#[test]
fn either_end_deletes() {
    for b in [false, true] {
        let mut pair = Pair::new();
        pair.connect();
        let child = pair.end(b).children()[0].spi_in;
        pair.command(b, Command::DeleteChild(child));
        pair.settle();
        assert!(pair.a.children().is_empty() && pair.b.children().is_empty());
        // It is gone already, as it should be.
        pair.command(b, Command::DeleteChild(child));
        let failed = |e: &Event| matches!(e, Event::Failed { .. });
        assert!(!pair.end(b).events.iter().any(failed));
        pair.command(!b, Command::CreateChild("net".into()));
        pair.settle();
        pair.check_agreement();
        assert_eq!(pair.a.children().len(), 1);
        pair.command(b, Command::Delete);
        pair.settle();
        assert!(pair.a.plane.is_empty() && pair.b.plane.is_empty());
        pair.pass(Duration::from_secs(600));
        assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
    }
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut pair = Pair::with(|a| a.dpd_delay = Duration::from_secs(30), |_| {});
    pair.connect();
    pair.pass(Duration::from_secs(300));
    pair.check_agreement();
    pair.b.dead = true;
    pair.pass(Duration::from_secs(600));
    assert!(pair.a.events.contains(&Event::IkeClosed {
        reason: CloseReason::PeerSilent
    }));
    assert!(pair.a.plane.is_empty());
}

#[test]
fn timers_rekey_everything_for_hours() {
    let often = |c: &mut crate::config::Connection| {
        c.rekey_time = Duration::from_secs(170);
        c.rand_time = Duration::from_secs(20);
        c.children[0].rekey_time = Duration::from_secs(60);
        c.children[0].rand_time = Duration::from_secs(10);
        c.children[0].life_time = Duration::from_secs(90);
    };
    let mut pair = Pair::with(often, often);
    pair.connect();
    let first = pair.a.established().id;
    for _ in 0..200 {
        pair.pass(Duration::from_secs(37));
        assert!(
            pair.a.children().iter().any(|c| c.fate == Fate::Live),
            "{:?}",
            pair.a.events
        );
        assert!(pair.a.sas.len() < 6 && pair.b.sas.len() < 6);
    }
    assert_ne!(pair.a.established().id, first);
    pair.check_agreement();
    assert!(!pair.a.events.iter().any(|e| matches!(
        e,
        Event::IkeClosed {
            reason: CloseReason::Expired | CloseReason::PeerSilent
        }
    )));
}

#[test]
fn a_repeated_request_gets_the_same_bytes() {
    let mut pair = Pair::new();
    pair.connect();
    let old = pair.a.children()[0].spi_in;
    pair.command(false, Command::RekeyChild(old));
    let request = pair.wire.pop_front().unwrap();
    pair.deliver(&request);
    let response = pair.wire.pop_front().unwrap();
    pair.deliver(&request);
    assert_eq!(pair.wire.pop_front().unwrap().bytes, response.bytes);
}

#[test]
fn what_is_not_sealed_with_the_keys_changes_nothing() {
    let mut pair = Pair::new();
    pair.connect();
    let before = (pair.a.established().clone(), pair.b.established().clone());
    for packet in pair.sent.clone() {
        for at in [0, 8, 17, 20, 30, packet.bytes.len() - 1] {
            let mut forged = packet.clone();
            if let Some(byte) = forged.bytes.get_mut(at) {
                *byte ^= 1;
            }
            if crate::wire::Header::parse(&forged.bytes).is_ok() {
                pair.deliver(&forged);
            }
        }
    }
    assert_eq!(
        before,
        (pair.a.established().clone(), pair.b.established().clone())
    );
}

#[test]
fn an_unknown_critical_payload_costs_only_the_exchange() {
    let mut pair = Pair::new();
    pair.start();
    let request = pair.wire.pop_front().unwrap();
    let message = Message::parse(&request.bytes).unwrap();
    let mut payloads = message.payloads;
    payloads.push(Payload::Unknown {
        kind: crate::wire::PayloadType(200),
        data: vec![1],
    });
    let mut bytes = emit(&message.header, &payloads);
    let at = bytes.len() - 4;
    bytes[at] |= 0x80;
    pair.deliver(&Packet { to_b: true, bytes });
    let answer = pair.wire.pop_front().unwrap();
    let answer = Message::parse(&answer.bytes).unwrap();
    let [Payload::Notify(n)] = &answer.payloads[..] else {
        panic!("{answer:?}")
    };
    assert_eq!(
        (n.kind, &n.data[..]),
        (NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, &[200][..])
    );
    assert!(pair.b.sas.is_empty());
}

#[test]
fn strays_are_answered_only_where_the_rfc_says_so() {
    let mut pair = Pair::new();
    pair.connect();
    let kinds = |bytes: &[u8]| {
        let answer = crate::sa::answer_stray(bytes)?;
        let message = Message::parse(&answer).unwrap();
        assert!(message.header.is_response);
        match &message.payloads[..] {
            [Payload::Notify(n)] => Some(n.kind),
            other => panic!("{other:?}"),
        }
    };
    let request = pair
        .sent
        .iter()
        .find(|p| p.exchange() == ExchangeType::IKE_AUTH && !p.is_response())
        .unwrap();
    assert_eq!(kinds(&request.bytes), Some(NotifyType::INVALID_IKE_SPI));
    let response = pair
        .sent
        .iter()
        .find(|p| p.exchange() == ExchangeType::IKE_AUTH && p.is_response())
        .unwrap();
    assert_eq!(kinds(&response.bytes), None);
    let mut version_3 = pair.sent[0].bytes.clone();
    version_3[17] = 0x30;
    assert_eq!(kinds(&version_3), Some(NotifyType::INVALID_MAJOR_VERSION));
    assert_eq!(
        kinds(&pair.sent[0].bytes),
        None,
        "a first message is no stray"
    );
    assert_eq!(kinds(&[0; 27]), None);
}

#[test]
fn a_child_may_come_after_the_ike_sa() {
    for way in [Childless::Prefer, Childless::Force] {
        let mut pair = Pair::with(|a| a.childless = way, |_| {});
        pair.connect();
        let exchanges: Vec<_> = pair.sent.iter().map(|p| p.exchange()).collect();
        assert_eq!(
            exchanges[4..],
            [ExchangeType::CREATE_CHILD_SA, ExchangeType::CREATE_CHILD_SA]
        );
    }
}

/// Whoever dies between IKE_AUTH and CREATE_CHILD_SA, the child comes.
#[test]
fn a_child_after_the_ike_sa_survives_a_takeover() {
    for b in [false, true] {
        for after in 3..6 {
            let mut pair = Pair::with(|a| a.childless = Childless::Force, |_| {});
            pair.start();
            for _ in 0..after {
                let packet = pair.wire.pop_front().unwrap();
                pair.deliver(&packet);
            }
            let now = pair.now;
            pair.wire.clear();
            pair.end(b).take_over(now);
            pair.pass(Duration::from_secs(60));
            pair.check_agreement();
            assert_eq!(pair.a.children().len(), 1, "{b} {after}");
        }
    }
}

#[test]
fn who_never_wants_it_is_not_asked_without_a_child() {
    let mut pair = Pair::with(
        |a| a.childless = Childless::Prefer,
        |b| b.childless = Childless::Never,
    );
    pair.connect();
    assert_eq!(pair.sent.len(), 4);
    // And who insists does not go on.
    let mut pair = Pair::with(
        |a| a.childless = Childless::Force,
        |b| b.childless = Childless::Never,
    );
    pair.start();
    pair.settle();
    let ignored = Event::Ignored {
        what: Failure::NoChildless,
    };
    assert!(pair.a.events.contains(&ignored), "{:?}", pair.a.events);
    // Who is asked with one and insists on none refuses the child.
    let mut pair = Pair::with(|_| {}, |b| b.childless = Childless::Force);
    pair.start();
    pair.settle();
    assert!(pair.a.children().is_empty() && pair.b.children().is_empty());
}

/// What the peer has sent before its request may come after it; who deletes it wants nothing more.
#[test]
fn what_was_under_way_when_the_peer_deleted_the_ike_sa_is_taken() {
    let mut pair = Pair::new();
    pair.connect();
    pair.command(false, Command::Delete);
    pair.settle();
    let graces = |end: &End| end.graces.values().copied().collect::<Vec<_>>();
    assert_eq!(graces(&pair.a), [Duration::ZERO]);
    assert_eq!(graces(&pair.b), [Duration::from_secs(5)]);
}

/// The cookie that was returned is good for the message with another group, too (RFC 7296 §2.6.1).
#[test]
fn a_cookie_and_another_group_cost_a_round_trip_each() {
    let mut pair = Pair::with(
        |_| {},
        |b| b.proposals = vec!["aes256gcm16-prfsha384-ecp256".parse().unwrap()],
    );
    pair.b.demands_cookies = true;
    pair.connect();
    let first = |p: &&Packet| p.to_b && p.exchange() == ExchangeType::IKE_SA_INIT;
    assert_eq!(pair.sent.iter().filter(first).count(), 3);
}
