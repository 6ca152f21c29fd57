//! IKE_AUTH with certificates.

use super::bench::{Packet, Pair};
use crate::{
    certificate::{
        CertificateError,
        testing::{Issued, named_keys, pubkey, root, signing},
    },
    config::{LocalAuth, RemoteAuth, SendCert, Shown},
    identity::{IdPattern, Identity},
    proposal::parse_ike,
    sa::{Event, Failure},
    signature::KeyKind,
    wire::{ExchangeType, Message, NotifyType, Payload},
};
use std::time::Duration;

/// Two ends with certificates of these kinds, each through an intermediate of the same root.
fn pair(a: KeyKind, b: KeyKind) -> Pair {
    let root = root("root");
    let mut pair = Pair::new();
    for (at_b, kind, name) in [(false, a, "a.test"), (true, b, "b.test")] {
        let between = root.intermediate("between", |_| {});
        let own = between.issue(kind, &[name]);
        equip(&mut pair, at_b, own, &[&between]);
        pair.end(at_b).policy.authorities = vec![root.authority()];
    }
    pair
}

/// Gives an end a certificate and its key.
fn equip(pair: &mut Pair, at_b: bool, own: Issued, chain: &[&Issued]) {
    let end = pair.end(at_b);
    end.policy.connections[0].auth = signing(own.credential("key", chain));
    end.policy.private_keys = vec![own.private_key("key")];
    end.keys.insert("key".to_owned(), own.key);
}

fn failures(events: &[Event]) -> Vec<&Failure> {
    let failed = events.iter().filter_map(|e| match e {
        Event::Failed { what } => Some(what),
        _ => None,
    });
    failed.collect()
}

/// How many fragments the first of these packets is one of.
fn fragments(packets: &[&Packet]) -> usize {
    let message = Message::parse(&packets[0].bytes).unwrap();
    let fragment = message.protected.and_then(|p| p.fragment);
    fragment.map_or(1, |(_, total)| usize::from(total))
}

/// The same with small fragments, and more key exchanges before IKE_AUTH.
fn fragmented_pair() -> Pair {
    let mut pair = pair(KeyKind::Rsa, KeyKind::P256);
    for at_b in [false, true] {
        let connection = &mut pair.end(at_b).policy.connections[0];
        connection.fragment_size = 576;
        let suite = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke3_x448";
        connection.proposals = parse_ike(suite).unwrap();
    }
    pair
}

/// Two ends with raw public keys (RFC 7670), each of which names the other's.
fn raw_pair() -> Pair {
    let mut pair = Pair::new();
    let root = root("nobody's");
    let keys = ["a.test", "b.test"].map(|name| root.issue(KeyKind::P256, &[name]));
    let remotes = [named_keys(&[&keys[1]]), named_keys(&[&keys[0]])];
    for ((at_b, own), remote) in [false, true].into_iter().zip(keys).zip(remotes) {
        let end = pair.end(at_b);
        let auth = &mut end.policy.connections[0].auth;
        *auth = signing(own.raw_key("key"));
        auth.remote = remote;
        end.policy.private_keys = vec![own.private_key("key")];
        end.keys.insert("key".to_owned(), own.key);
    }
    pair
}

/// Pairs in which messages are in one piece, or not, and either end as the one that something happens to.
fn every_pair() -> [(fn() -> Pair, bool); 6] {
    let plain: fn() -> Pair = || pair(KeyKind::P256, KeyKind::P256);
    [
        (plain, false),
        (plain, true),
        (raw_pair, false),
        (raw_pair, true),
        (fragmented_pair, false),
        (fragmented_pair, true),
    ]
}

/// The pair does not connect: why, at each end.
fn refused(mut pair: Pair) -> (Vec<Failure>, Vec<Failure>) {
    pair.start();
    pair.settle();
    pair.pass(Duration::from_secs(1));
    let established = |events: &[Event]| {
        events
            .iter()
            .any(|e| matches!(e, Event::ChildEstablished { .. }))
    };
    assert!(!established(&pair.a.events), "a: {:?}", pair.a.events);
    let of = |events| failures(events).into_iter().cloned().collect();
    (of(&pair.a.events), of(&pair.b.events))
}

#[test]
fn every_kind_of_key_authenticates_either_end() {
    let kinds = [
        KeyKind::Rsa,
        KeyKind::P256,
        KeyKind::P384,
        KeyKind::P521,
        KeyKind::Ed25519,
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let other = kinds[(i + 1) % kinds.len()];
        let mut pair = pair(kind, other);
        pair.connect();
        assert!(failures(&pair.a.events).is_empty() && failures(&pair.b.events).is_empty());
    }
}

/// Encodings of the certificates that IKE_SA_INIT asks for.
fn encodings(pair: &Pair) -> Vec<u8> {
    let init = pair
        .sent
        .iter()
        .filter(|p| p.exchange() == ExchangeType::IKE_SA_INIT);
    let payloads = init.flat_map(|p| Message::parse(&p.bytes).unwrap().payloads);
    let asked = payloads.filter_map(|p| match p {
        Payload::CertReq { encoding, data } => {
            assert!(encoding != 15 || data.is_empty());
            Some(encoding)
        }
        _ => None,
    });
    asked.collect()
}

#[test]
fn raw_public_keys_authenticate_both_ends() {
    for send in [SendCert::IfAsked, SendCert::Always, SendCert::Never] {
        let mut pair = raw_pair();
        for at_b in [false, true] {
            pair.end(at_b).policy.connections[0].auth.send_cert = send;
        }
        pair.connect();
        assert_eq!(encodings(&pair), [15], "{send:?}");
    }
}

/// An initiator with both shows what it is asked for, whichever it prefers.
#[test]
fn who_has_both_shows_what_is_asked_for() {
    for (make, at_first) in every_pair() {
        let mut pair = make();
        let auth = &mut pair.a.policy.connections[0].auth;
        let LocalAuth::Pubkey { credentials, .. } = &mut auth.local else {
            panic!("{auth:?}");
        };
        let other = root("other").issue(KeyKind::P256, &["a.test"]);
        let other = match credentials[0].shown {
            Shown::Chain(_) => other.raw_key("other"),
            Shown::RawKey(_) => other.credential("other", &[]),
        };
        credentials.insert(usize::from(at_first), other);
        pair.connect();
    }
}

#[test]
fn another_raw_public_key_is_refused_by_either_end() {
    for at_b in [false, true] {
        let mut pair = raw_pair();
        let stranger = root("stranger").issue(KeyKind::P256, &["x.test"]);
        pair.end(at_b).policy.connections[0].auth.local = signing(stranger.raw_key("key")).local;
        pair.end(at_b).keys.insert("key".to_owned(), stranger.key);
        let name = if at_b { "b.test" } else { "a.test" };
        let (a, b) = refused(pair);
        let judge = if at_b { &a } else { &b };
        let error = Box::new(CertificateError::NotNamedKey);
        let id = Identity::Fqdn(name.to_owned());
        assert_eq!(*judge, [Failure::Certificate { id, error }], "{a:?} {b:?}");
    }
}

#[test]
fn one_end_may_have_a_key_and_the_other_a_certificate() {
    for at_b in [false, true] {
        let mut pair = pair(KeyKind::P256, KeyKind::P256);
        pair.end(at_b).policy.connections[0].auth.local = LocalAuth::Psk;
        pair.end(!at_b).policy.connections[0].auth.remote = RemoteAuth::Psk;
        pair.connect();
    }
}

#[test]
fn certificates_are_sent_when_they_are_asked_for() {
    for (send, asks, connects) in [
        (SendCert::IfAsked, true, true),
        (SendCert::IfAsked, false, false),
        (SendCert::Always, false, true),
        (SendCert::Never, true, false),
    ] {
        let mut pair = pair(KeyKind::P256, KeyKind::P256);
        pair.a.policy.connections[0].auth.send_cert = send;
        pair.b.policy.connections[0].auth.send_certreq = asks;
        if connects {
            pair.connect();
            continue;
        }
        let (a, b) = refused(pair);
        assert_eq!(a, [Failure::PeerRefused(NotifyType::AUTHENTICATION_FAILED)]);
        let id = Identity::Fqdn("a.test".to_owned());
        let error = Box::new(CertificateError::Missing);
        assert_eq!(b, [Failure::Certificate { id, error }]);
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused_by_either_end() {
    for at_b in [false, true] {
        let mut pair = pair(KeyKind::P256, KeyKind::P256);
        let stranger = root("stranger");
        let name = if at_b { "b.test" } else { "a.test" };
        equip(&mut pair, at_b, stranger.issue(KeyKind::P256, &[name]), &[]);
        let (a, b) = refused(pair);
        let judge = if at_b { &a } else { &b };
        let error = Box::new(CertificateError::UnknownIssuer);
        let id = Identity::Fqdn(name.to_owned());
        assert_eq!(*judge, [Failure::Certificate { id, error }], "{a:?} {b:?}");
        if !at_b {
            assert_eq!(a, [Failure::PeerRefused(NotifyType::AUTHENTICATION_FAILED)]);
        }
    }
}

#[test]
fn who_names_somebody_else_is_refused() {
    let mut pair = pair(KeyKind::P256, KeyKind::P256);
    let root = root("other");
    equip(
        &mut pair,
        false,
        root.issue(KeyKind::P256, &["mallory.test"]),
        &[],
    );
    pair.b.policy.authorities = vec![root.authority()];
    let id = Identity::Fqdn("a.test".to_owned());
    let error = Box::new(CertificateError::Identity(id.clone()));
    assert_eq!(refused(pair).1, [Failure::Certificate { id, error }]);
}

#[test]
fn without_a_configured_identity_it_is_the_subject() {
    let mut pair = pair(KeyKind::P256, KeyKind::P256);
    pair.a.policy.connections[0].local_id = None;
    pair.b.policy.connections[0].remote_id = "O=Test, CN=*".parse::<IdPattern>().unwrap();
    pair.connect();
    let established = pair.b.events.iter().find_map(|e| match e {
        Event::IkeEstablished { remote_id, .. } => Some(remote_id.to_string()),
        _ => None,
    });
    assert!(established.is_some_and(|id| id.starts_with("dn:") || id.contains("CN=a.test")));
}

#[test]
fn a_connection_whose_authority_it_is_takes_the_peer() {
    let mut pair = pair(KeyKind::P256, KeyKind::P256);
    let other = root("other");
    // The first connection that fits by addresses and identity trusts another authority.
    let mut first = pair.b.policy.connections[0].clone();
    first.name = "first".to_owned();
    if let RemoteAuth::Pubkey { authorities, .. } = &mut first.auth.remote {
        authorities.push(other.authority());
    }
    pair.b.policy.connections.insert(0, first);
    pair.connect();
    assert_eq!(pair.b.established().connection, "c");
}

#[test]
fn what_the_connection_does_not_accept_is_refused() {
    let mut pair = pair(KeyKind::P256, KeyKind::P256);
    pair.b.policy.connections[0].auth.remote = RemoteAuth::Psk;
    let id = Identity::Fqdn("a.test".to_owned());
    assert_eq!(refused(pair).1, [Failure::BadAuthMethod(id)]);
}

#[test]
fn a_key_that_does_not_sign_ends_the_attempt() {
    for at_b in [false, true] {
        let mut pair = pair(KeyKind::P256, KeyKind::P256);
        pair.end(at_b).keys.clear();
        let (a, b) = refused(pair);
        let own = if at_b { b } else { a };
        assert_eq!(own, [Failure::Signing]);
    }
}

#[test]
fn hashes_are_announced_and_authorities_asked_for_only_where_somebody_signs() {
    let announced = |pair: &mut Pair| {
        pair.start();
        pair.settle();
        let init = pair
            .sent
            .iter()
            .filter(|p| p.exchange() == ExchangeType::IKE_SA_INIT);
        let names: Vec<String> = init
            .flat_map(|p| Message::parse(&p.bytes).unwrap().payloads)
            .map(|p| format!("{p:?}"))
            .collect();
        let count = |what: &str| names.iter().filter(|n| n.contains(what)).count();
        (count("SIGNATURE_HASH_ALGORITHMS"), count("CertReq"))
    };
    assert_eq!(announced(&mut Pair::new()), (0, 0));
    assert_eq!(announced(&mut pair(KeyKind::P256, KeyKind::P256)), (2, 1));
}

#[test]
fn certificates_go_in_fragments() {
    let mut pair = fragmented_pair();
    pair.connect();
    for is_response in [false, true] {
        let auth =
            |p: &&Packet| p.exchange() == ExchangeType::IKE_AUTH && p.is_response() == is_response;
        let sent: Vec<&Packet> = pair.sent.iter().filter(auth).collect();
        assert!(sent.len() > 1, "{is_response}");
        assert_eq!(sent.len(), fragments(&sent));
    }
}

/// What waits for an answer is not repeated, and a late answer is one.
#[test]
fn while_a_question_is_open_repetitions_change_nothing() {
    for (make, at_b) in every_pair() {
        let mut pair = make();
        pair.end(at_b).answers = false;
        pair.start();
        for _ in 0..6 {
            pair.settle();
            pair.pass(Duration::from_secs(3));
            let now = pair.now;
            let questions = std::mem::take(&mut pair.end(at_b).questions);
            assert!(questions.len() <= 1, "{questions:?}");
            for (id, question) in questions {
                for bytes in pair.end(at_b).answer(id, &question, now) {
                    pair.transmit(at_b, bytes);
                }
            }
        }
        pair.settle();
        pair.check_agreement();
    }
}

/// Whoever takes over while certificates are being verified, or signatures made, goes on with what the peer sends again.
#[test]
fn a_successor_goes_on_wherever_the_question_was_left() {
    for (make, at_b) in every_pair() {
        for answered in 0..2 {
            let mut pair = make();
            pair.end(at_b).answers = false;
            pair.start();
            pair.settle();
            for _ in 0..answered {
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
            pair.pass(Duration::from_secs(20));
            pair.check_agreement();
            let ups = |events: &[Event]| {
                let up = |e: &&Event| matches!(e, Event::IkeEstablished { .. });
                events.iter().filter(up).count()
            };
            assert_eq!(
                (ups(&pair.a.events), ups(&pair.b.events)),
                (1, 1),
                "{at_b} {answered}"
            );
        }
    }
}

/// The answer is committed with the signature in it: it comes out the same however often it is asked for.
#[test]
fn the_response_is_the_same_after_a_takeover() {
    let mut pair = pair(KeyKind::P256, KeyKind::P256);
    pair.start();
    pair.settle_if(|p| !(p.exchange() == ExchangeType::IKE_AUTH && p.is_response()));
    let now = pair.now;
    pair.b.take_over(now);
    pair.pass(Duration::from_secs(5));
    let responses: Vec<&Packet> = pair
        .sent
        .iter()
        .filter(|p| p.exchange() == ExchangeType::IKE_AUTH && p.is_response())
        .collect();
    let (first, again) = responses.split_at(fragments(&responses));
    assert!(!again.is_empty());
    for (n, packet) in again.iter().enumerate() {
        assert_eq!(packet.bytes, first[n % first.len()].bytes);
    }
    pair.check_agreement();
}

#[test]
fn the_default_is_a_pre_shared_key() {
    assert_ne!(pubkey(), RemoteAuth::default());
    Pair::new().connect();
}
