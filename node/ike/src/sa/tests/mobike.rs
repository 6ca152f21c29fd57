//! Addresses change under an IKE SA (RFC 4555).

use super::{
    bench::{Packet, Pair},
    window::forget_request,
};
use crate::{
    config::Connection,
    record::{Mobike, Path, Phase, Transport},
    sa::{Command, Event, Failure, Input, Ways, tests::bench::End},
    wire::ExchangeType,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const NEW: &str = "198.51.100.7";

fn mobile(c: &mut Connection) {
    c.mobike = true;
    c.local_addrs.clear();
    c.remote_addrs.push("0.0.0.0/0".parse().unwrap());
}

/// Two ends that support MOBIKE, connected; `a` has initiated.
fn pair() -> Pair {
    with(|_| {})
}

fn with(change: impl Fn(&mut Connection)) -> Pair {
    let both = |c: &mut Connection| {
        mobile(c);
        change(c);
    };
    let mut pair = Pair::with(both, both);
    pair.b.policy.connections[0].remote_addrs = vec!["0.0.0.0/0".parse().unwrap()];
    pair.a.policy.connections[0].local_addrs = vec!["0.0.0.0/0".parse().unwrap()];
    pair.start_from("192.0.2.1");
    pair.settle();
    pair.check_agreement();
    pair
}

fn mobike(end: &End) -> &Mobike {
    match &end.established().phase {
        Phase::Established(e) => e.mobike.as_ref().expect("no MOBIKE"),
        _ => unreachable!(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `a` is at another address from now on, and knows it.
fn roam(pair: &mut Pair, to: &str) {
    let remote = pair.a.established().path.remote.ip();
    pair.a.address = SocketAddr::new(ip(to), 4500);
    let ways = Ways {
        own: vec![ip(to)],
        pairs: vec![(ip(to), remote)],
    };
    pair.input(false, Input::Roam(ways));
    let now = pair.now;
    pair.wake(now);
}

fn paths(end: &End) -> Vec<Path> {
    end.plane_paths
        .iter()
        .filter(|(spi, _)| end.plane.contains_key(spi))
        .map(|(_, path)| *path)
        .collect()
}

fn moved(pair: &Pair, to: &str) {
    for path in [vec![pair.b.established().path], paths(&pair.b)].concat() {
        assert_eq!(path.remote.ip(), ip(to));
    }
    for path in [vec![pair.a.established().path], paths(&pair.a)].concat() {
        assert_eq!(path.local.ip(), ip(to));
    }
    assert!(!mobike(&pair.a).pending_update);
    assert_eq!(mobike(&pair.b).children_path, None);
}

#[test]
fn both_ends_go_to_port_4500_without_a_nat() {
    let pair = pair();
    for end in [&pair.a, &pair.b] {
        let path = end.established().path;
        assert_eq!((path.local.port(), path.remote.port()), (4500, 4500));
        assert!(!path.encapsulated());
    }
    assert!(mobike(&pair.a).initiator && !mobike(&pair.b).initiator);
}

#[test]
fn one_end_alone_does_not_have_it() {
    for without_b in [false, true] {
        let mut pair = Pair::with(|c| c.mobike = without_b, |c| c.mobike = !without_b);
        pair.connect();
        for end in [&pair.a, &pair.b] {
            let Phase::Established(e) = &end.established().phase else {
                unreachable!()
            };
            assert_eq!(e.mobike, None);
        }
    }
}

#[test]
fn the_initiator_roams_and_the_same_sas_go_on() {
    let mut pair = pair();
    let spis: Vec<u32> = pair.b.plane.keys().copied().collect();
    for to in [NEW, "203.0.113.9", "192.0.2.1"] {
        roam(&mut pair, to);
        pair.settle();
        pair.pass(Duration::from_secs(1));
        moved(&pair, to);
        pair.check_agreement();
        assert_eq!(pair.b.plane.keys().copied().collect::<Vec<_>>(), spis);
    }
    // And either end can go on as ever.
    pair.command(true, Command::RekeyIke);
    pair.settle();
    pair.command(false, Command::RekeyIke);
    pair.settle();
    assert!(mobike(&pair.a).initiator && !mobike(&pair.b).initiator);
    roam(&mut pair, NEW);
    pair.settle();
    pair.pass(Duration::from_secs(1));
    moved(&pair, NEW);
}

#[test]
fn traffic_goes_to_the_new_address_after_the_peer_has_answered_from_there() {
    let mut pair = pair();
    roam(&mut pair, NEW);
    // The update arrives, what should prove the new address does not.
    let update = pair.wire.pop_front().unwrap();
    pair.deliver(&update);
    assert_eq!(pair.b.established().path.remote.ip(), ip(NEW));
    assert_eq!(paths(&pair.b)[0].remote.ip(), ip("192.0.2.1"));
    assert!(mobike(&pair.b).children_path.is_some());
    // Whoever takes over then goes on with the check, and with the old address until then.
    let now = pair.now;
    pair.b.take_over(now);
    assert_eq!(paths(&pair.b)[0].remote.ip(), ip("192.0.2.1"));
    pair.settle();
    pair.pass(Duration::from_secs(10));
    moved(&pair, NEW);

    let mut trusting = with(|c| c.return_routability = false);
    roam(&mut trusting, NEW);
    let update = trusting.wire.pop_front().unwrap();
    trusting.deliver(&update);
    assert_eq!(paths(&trusting.b)[0].remote.ip(), ip(NEW));
}

#[test]
fn a_check_that_went_to_several_addresses_is_made_again() {
    let mut pair = pair();
    roam(&mut pair, NEW);
    let update = pair.wire.pop_front().unwrap();
    pair.deliver(&update);
    // Response and check are under way; the peer moves on before it gets them.
    roam(&mut pair, "203.0.113.9");
    pair.settle();
    pair.pass(Duration::from_secs(10));
    moved(&pair, "203.0.113.9");
    pair.check_agreement();
}

#[test]
fn messages_that_are_late_do_not_revert_addresses() {
    let mut pair = pair();
    roam(&mut pair, NEW);
    let late = pair.wire.front().cloned().unwrap();
    pair.settle();
    pair.pass(Duration::from_secs(1));
    roam(&mut pair, "203.0.113.9");
    pair.settle();
    pair.pass(Duration::from_secs(1));
    pair.deliver(&late);
    pair.settle();
    moved(&pair, "203.0.113.9");
    // Nor with a successor.
    let now = pair.now;
    pair.b.take_over(now);
    pair.deliver(&late);
    pair.settle();
    moved(&pair, "203.0.113.9");
}

#[test]
fn addresses_that_the_connection_is_not_for_are_refused() {
    let mut pair = pair();
    pair.b.policy.connections[0].remote_addrs = vec!["192.0.2.0/24".parse().unwrap()];
    roam(&mut pair, NEW);
    pair.settle();
    assert_eq!(pair.b.established().path.remote.ip(), ip("192.0.2.1"));
    let refused = |e: &Event| {
        matches!(
            e,
            Event::Failed {
                what: Failure::UnacceptableAddresses { .. }
            }
        )
    };
    assert!(pair.b.events.iter().any(refused));
    assert_eq!(pair.a.ways_wanted, 1, "it looks for another way");
    roam(&mut pair, "192.0.2.77");
    pair.settle();
    pair.pass(Duration::from_secs(1));
    moved(&pair, "192.0.2.77");
}

#[test]
fn a_kill_at_any_moment_of_a_move_leaves_both_ends_agreed() {
    for victim_is_b in [false, true] {
        for after in 0..6 {
            for sent in [false, true] {
                let mut pair = pair();
                roam(&mut pair, NEW);
                let mut n = 0;
                while let Some(packet) = pair.wire.pop_front() {
                    let from_victim = packet.to_b != victim_is_b;
                    n += usize::from(from_victim);
                    if from_victim && n > after {
                        pair.wire.retain(|p| p.to_b == victim_is_b);
                        if sent {
                            pair.deliver(&packet);
                        }
                        let now = pair.now;
                        pair.end(victim_is_b).take_over(now);
                        break;
                    }
                    pair.deliver(&packet);
                }
                pair.settle();
                pair.pass(Duration::from_secs(60));
                moved(&pair, NEW);
                pair.check_agreement();
            }
        }
    }
}

/// `a` moves and says so, and counts the request as answered.
fn update(pair: &mut Pair, to: &str) -> Packet {
    roam(pair, to);
    let packet = pair.wire.pop_back().unwrap();
    pair.wire.clear();
    forget_request(&mut pair.a);
    packet
}

#[test]
fn an_update_that_comes_after_a_newer_one_moves_nothing() {
    let mut pair = with(|c| c.window_size = 4);
    let late = update(&mut pair, "192.0.2.77");
    let newer = update(&mut pair, NEW);
    for taken_over in [false, true] {
        pair.deliver(if taken_over { &late } else { &newer });
        assert_eq!(pair.b.established().path.remote.ip(), ip(NEW));
        if !taken_over {
            let now = pair.now;
            pair.b.take_over(now);
        }
    }
    let answered = |p: &Packet| p.is_response() && p.message_id() == late.message_id();
    assert!(
        pair.wire.iter().any(answered),
        "it is answered all the same"
    );
}

#[test]
fn an_exchange_under_way_goes_on_at_the_new_address() {
    let mut pair = pair();
    pair.command(true, Command::RekeyIke);
    pair.wire.clear(); // the peer is at its old address no more
    roam(&mut pair, NEW);
    pair.settle();
    pair.pass(Duration::from_secs(5));
    moved(&pair, NEW);
    pair.check_agreement();
    let by = |e: &Event| matches!(e, Event::IkeRekeyed { .. });
    assert!(pair.b.events.iter().any(by));
}

#[test]
fn liveness_checks_from_elsewhere_are_answered_there_and_move_nothing() {
    let mut pair = with(|c| c.dpd_delay = Duration::from_secs(30));
    pair.a.nat = Some("198.51.100.1:7777".parse().unwrap());
    let before = pair.b.established().path;
    pair.pass(Duration::from_secs(40));
    assert_eq!(pair.b.established().path, before);
    let pending = |end: &End| !end.established().outbound.pending.is_empty();
    assert!(!pending(&pair.a), "it was answered");
}

#[test]
fn a_nat_that_was_rebooted_is_noticed_by_the_initiator() {
    let mut pair = Pair::with(
        |c| {
            mobile(c);
            c.dpd_delay = Duration::from_secs(30);
        },
        mobile,
    );
    pair.b.policy.connections[0].remote_addrs.clear();
    pair.a.policy.connections[0].local_addrs = vec!["0.0.0.0/0".parse().unwrap()];
    pair.a.nat = Some("198.51.100.1:7777".parse().unwrap());
    pair.start_from("192.0.2.1");
    pair.settle();
    assert!(pair.a.established().path.nat_local && pair.b.established().path.nat_remote);
    pair.pass(Duration::from_secs(70));
    let other: SocketAddr = "198.51.100.1:9999".parse().unwrap();
    pair.a.nat = Some(other);
    pair.pass(Duration::from_secs(70));
    assert_eq!(pair.b.established().path.remote, other);
    assert_eq!(paths(&pair.b)[0].remote, other);
    pair.check_agreement();
}

#[test]
fn esp_from_elsewhere_is_followed_behind_a_nat_only_and_not_too_often() {
    let elsewhere: SocketAddr = "198.51.100.1:1111".parse().unwrap();
    let mut pair = pair();
    let before = pair.b.established().path;
    pair.input(true, Input::EspFrom(elsewhere, Transport::Udp));
    assert_eq!(pair.b.established().path, before, "there is no NAT");

    for mobike in [false, true] {
        let mut pair = Pair::with(
            |c| {
                mobile(c);
                c.mobike = mobike;
            },
            mobile,
        );
        pair.b.policy.connections[0].remote_addrs.clear();
        pair.a.policy.connections[0].local_addrs = vec!["0.0.0.0/0".parse().unwrap()];
        pair.a.nat = Some("198.51.100.1:7777".parse().unwrap());
        pair.start_from("192.0.2.1");
        pair.settle();
        pair.pass(Duration::from_secs(2));
        pair.a.nat = Some(elsewhere);
        pair.input(true, Input::EspFrom(elsewhere, Transport::Udp));
        pair.settle();
        assert_eq!(pair.b.established().path.remote, elsewhere);
        assert_eq!(paths(&pair.b)[0].remote, elsewhere);
        // What comes from many places within a second is followed once.
        let revision = pair.b.established().revision;
        for port in 1112..1115 {
            pair.input(
                true,
                Input::EspFrom(SocketAddr::new(elsewhere.ip(), port), Transport::Udp),
            );
        }
        assert_eq!(pair.b.established().revision, revision);
        let last: SocketAddr = "198.51.100.1:1114".parse().unwrap();
        pair.a.nat = Some(last);
        pair.pass(Duration::from_secs(2));
        assert_eq!(pair.b.established().path.remote, last);
        assert_eq!(paths(&pair.b)[0].remote, last);
    }
}

#[test]
fn esp_that_was_late_does_not_revert_addresses() {
    let mut pair = Pair::with(mobile, mobile);
    pair.b.policy.connections[0].remote_addrs.clear();
    pair.a.policy.connections[0].local_addrs = vec!["0.0.0.0/0".parse().unwrap()];
    let at = |port: u16| SocketAddr::new(ip("198.51.100.1"), port);
    pair.a.nat = Some(at(7777));
    pair.start_from("192.0.2.1");
    pair.settle();
    pair.pass(Duration::from_secs(2));
    pair.a.nat = Some(at(1111));
    pair.input(true, Input::EspFrom(at(1111), Transport::Udp));
    pair.settle();
    // This one has to wait, and meanwhile the peer says that it is elsewhere.
    pair.input(true, Input::EspFrom(at(1112), Transport::Udp));
    let elsewhere: SocketAddr = "203.0.113.1:5555".parse().unwrap();
    pair.a.nat = Some(elsewhere);
    roam(&mut pair, NEW);
    pair.settle();
    assert_eq!(pair.b.established().path.remote, elsewhere);
    // Nor does what was still under way from there.
    pair.pass(Duration::from_secs(2));
    pair.input(true, Input::EspFrom(at(1111), Transport::Udp));
    pair.pass(Duration::from_secs(2));
    assert_eq!(pair.b.established().path.remote, elsewhere);
    assert_eq!(paths(&pair.b)[0].remote, elsewhere);
}

#[test]
fn the_responder_says_which_addresses_it_has_and_the_initiator_goes_there() {
    let mut pair = pair();
    let other = "192.0.2.22";
    // One more address: the peer is told.
    let ways = Ways {
        own: vec![ip("192.0.2.2"), ip(other)],
        pairs: vec![],
    };
    pair.input(true, Input::Roam(ways));
    pair.settle();
    assert_eq!(mobike(&pair.a).peer_addresses, [ip(other)]);
    // The first one goes: the responder uses the other, and the initiator follows.
    pair.b.address = SocketAddr::new(ip(other), 4500);
    let ways = Ways {
        own: vec![ip(other)],
        pairs: vec![(ip(other), ip("192.0.2.1"))],
    };
    pair.input(true, Input::Roam(ways));
    pair.settle();
    pair.pass(Duration::from_secs(5));
    for end in [&pair.a, &pair.b] {
        let all = [vec![end.established().path], paths(end)].concat();
        let at = |p: &Path| [p.local.ip(), p.remote.ip()].contains(&ip(other));
        assert!(all.iter().all(at), "{all:?}");
    }
    assert_eq!(mobike(&pair.a).peer_addresses, [] as [IpAddr; 0]);
    pair.check_agreement();
}

#[test]
fn a_silent_way_is_left_for_another_that_the_peer_named() {
    let mut pair = pair();
    let other = "192.0.2.22";
    let own = vec![ip("192.0.2.2"), ip(other)];
    pair.b.addresses = vec![ip(other)];
    pair.input(true, Input::Roam(Ways { own, pairs: vec![] }));
    pair.settle();
    // What goes to the first address is lost from now on.
    pair.b.address = SocketAddr::new(ip(other), 4500);
    pair.b.addresses.clear();
    pair.command(false, Command::RekeyIke);
    pair.settle();
    for _ in 0..100 {
        if pair.a.ways_wanted > 0 {
            break;
        }
        pair.pass(Duration::from_secs(1));
    }
    let ours = ip("192.0.2.1");
    let ways = Ways {
        own: vec![ours],
        pairs: vec![(ours, ip("192.0.2.2")), (ours, ip(other))],
    };
    pair.input(false, Input::Roam(ways));
    pair.pass(Duration::from_secs(30));
    assert_eq!(pair.a.established().path.remote.ip(), ip(other));
    assert_eq!(paths(&pair.a)[0].remote.ip(), ip(other));
    assert_eq!(paths(&pair.b)[0].local.ip(), ip(other));
    pair.check_agreement();
}

#[test]
fn cookie2_comes_back_as_it_is_and_must() {
    use crate::wire::{Notify, NotifyType, Payload, Protocol};
    let cookie = |len: usize| {
        Payload::Notify(Notify {
            protocol: Protocol::NONE,
            spi: Vec::new(),
            kind: NotifyType::COOKIE2,
            data: vec![7; len],
        })
    };
    let harmless = super::super::mobike::harmless;
    assert_eq!(harmless(&[]), Some(vec![]));
    for len in [8, 64] {
        assert_eq!(harmless(&[cookie(len)]), Some(vec![cookie(len)]));
    }
    for payloads in [
        vec![cookie(7)],
        vec![cookie(65)],
        vec![cookie(8), cookie(8)],
    ] {
        assert_eq!(harmless(&payloads), None);
    }
}

#[test]
fn no_nats_allowed_is_compared_with_the_addresses_of_the_message() {
    use crate::wire::{Notify, NotifyType, Payload, Protocol};
    let check = super::super::mobike::unexpected_nat;
    let (local, remote): (SocketAddr, SocketAddr) = (
        "192.0.2.2:4500".parse().unwrap(),
        "192.0.2.1:4500".parse().unwrap(),
    );
    let said = |data: Vec<u8>| {
        [Payload::Notify(Notify {
            protocol: Protocol::NONE,
            spi: Vec::new(),
            kind: NotifyType::NO_NATS_ALLOWED,
            data,
        })]
    };
    // RFC 4555 §4.2.6: source, destination, their ports.
    let right = [192, 0, 2, 1, 192, 0, 2, 2, 0x11, 0x94, 0x11, 0x94].to_vec();
    assert!(!check(&[], local, remote), "NATs are allowed");
    assert!(!check(&said(right.clone()), local, remote));
    assert!(check(
        &said(right),
        local,
        "192.0.2.9:4500".parse().unwrap()
    ));
    assert!(check(&said(Vec::new()), local, remote));
}

#[test]
fn nothing_but_informational_messages_is_needed() {
    let mut pair = pair();
    let before = pair.sent.len();
    roam(&mut pair, NEW);
    pair.settle();
    pair.pass(Duration::from_secs(1));
    let new = &pair.sent[before..];
    assert!(
        new.iter()
            .all(|p| p.exchange() == ExchangeType::INFORMATIONAL)
    );
    // Update, its response, check, its response.
    assert_eq!(new.len(), 4);
}
