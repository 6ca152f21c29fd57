//! IKE and ESP in TCP (RFC 9329).

use super::bench::{Pair, other_end};
use crate::{
    config::{Connection, EnableTcp},
    record::{Path, TcpEnd, Transport},
    sa::{Command, Event, Failure, Input, Ways, pursue::OVERLAP},
    wire::{ExchangeType, Message},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const ORIGINATOR: Transport = Transport::Tcp(TcpEnd::Originator);
const RESPONDER: Transport = Transport::Tcp(TcpEnd::Responder);

fn pair(mobike: bool, enable_tcp: EnableTcp) -> Pair {
    let both = |c: &mut Connection| {
        c.mobike = mobike;
        c.enable_tcp = enable_tcp;
        c.dpd_delay = Duration::from_secs(30);
    };
    let mut pair = Pair::with(both, both);
    pair.b.policy.connections[0].remote_addrs.clear();
    pair.a.policy.connections[0].local_addrs.clear();
    pair
}

fn path(pair: &mut Pair, b: bool) -> Path {
    pair.end(b).established().path
}

/// The originator of `a`'s connection has made another, from this port; the SA says something.
fn reconnect(pair: &mut Pair) {
    let Path { local, remote, .. } = path(pair, false);
    pair.input(false, Input::Connected { local, remote });
}

/// A peer comes from another port from now on, as after a NAT has forgotten the connection before.
fn behind_nat(pair: &mut Pair, port: u16) -> SocketAddr {
    let nat = SocketAddr::new("192.0.2.1".parse().unwrap(), port);
    pair.a.nat = Some(nat);
    nat
}

#[test]
fn an_sa_by_tcp_has_neither_udp_ports_nor_fragments_nor_keepalives() {
    let mut pair = pair(true, EnableTcp::Yes);
    for end in [&mut pair.a, &mut pair.b] {
        end.policy.connections[0].fragment_size = 576;
        end.policy.connections[0].encap = true;
    }
    pair.no_udp = true;
    pair.connect();
    let (a, b) = (path(&mut pair, false), path(&mut pair, true));
    assert_eq!((a.transport, b.transport), (ORIGINATOR, RESPONDER));
    assert_eq!((a.local, a.remote), (b.remote, b.local));
    assert_eq!(a.remote.port(), 4500);
    assert!(a.local.port() >= 49_152);
    assert!(
        !a.encapsulated() && !a.wants_keepalives(),
        "encap was asked for"
    );
    assert!(pair.a.established().fragmentation, "it may be needed later");
    let fragment = |bytes: &[u8]| Message::parse(bytes).unwrap().is_fragment();
    assert!(!pair.sent.iter().any(|p| fragment(&p.bytes)));
    let at_plane = pair
        .b
        .plane_paths
        .values()
        .all(|p| p.transport == RESPONDER);
    assert!(at_plane);
}

#[test]
fn udp_is_tried_first_then_another_sa_is_made_by_tcp() {
    let mut pair = pair(false, EnableTcp::Fallback);
    pair.no_udp = true;
    pair.start();
    let first = *pair.a.sas.keys().next().unwrap();
    pair.settle();
    pair.pass(Duration::from_secs(60));
    pair.check_agreement();
    assert_eq!(path(&mut pair, false).transport, ORIGINATOR);
    let id = pair.a.established().id;
    assert_ne!(id, first, "RFC 9329 §5.1 wants another SPI");
    assert!(pair.a.events.contains(&Event::OverTcp { by: id }));
    let by_udp = pair.sent.iter().filter(|p| p.to_b);
    let by_udp =
        by_udp.filter(|p| Message::parse(&p.bytes).unwrap().header.initiator_spi == first.0);
    assert!(
        by_udp.count() >= 3,
        "a first message is repeated before it is given up"
    );
    assert!(!pair.a.sas.contains_key(&first));
}

#[test]
fn all_addresses_are_tried_by_udp_before_any_is_by_tcp() {
    let mut pair = pair(false, EnableTcp::Fallback);
    pair.no_udp = true;
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let pairs = [
        (ip("192.0.2.1"), ip("192.0.2.9")),
        (ip("192.0.2.1"), ip("192.0.2.2")),
    ];
    pair.start_with(&pairs);
    pair.pass(Duration::from_secs(90));
    pair.check_agreement();
    assert_eq!(path(&mut pair, false).transport, ORIGINATOR);
    assert_eq!(
        path(&mut pair, false).remote,
        "192.0.2.2:4500".parse().unwrap()
    );
}

#[test]
fn without_leave_there_is_no_tcp() {
    let mut pair = pair(false, EnableTcp::No);
    pair.no_udp = true;
    pair.start();
    pair.pass(Duration::from_secs(300));
    assert!(pair.a.sas.is_empty());
    assert!(pair.a.events.contains(&Event::Failed {
        what: Failure::Silent
    }));
}

#[test]
fn another_connection_is_followed_when_something_authentic_comes_by_it() {
    for mobike in [false, true] {
        let mut pair = pair(mobike, EnableTcp::Yes);
        pair.connect();
        let nat = behind_nat(&mut pair, 1111);
        reconnect(&mut pair);
        pair.settle();
        let followed = path(&mut pair, true);
        assert_eq!(
            (followed.remote, followed.transport),
            (nat, RESPONDER),
            "mobike {mobike}"
        );
        assert!(pair.b.plane_paths.values().all(|p| p.remote == nat));
        let mut what = pair
            .sent
            .iter()
            .map(|p| Message::parse(&p.bytes).unwrap().header.exchange);
        assert_eq!(what.next_back(), Some(ExchangeType::INFORMATIONAL));
        pair.check_agreement();
    }
}

#[test]
fn esp_by_another_connection_is_followed_and_by_udp_is_not() {
    let mut pair = pair(false, EnableTcp::Yes);
    pair.connect();
    let before = path(&mut pair, true);
    let elsewhere = SocketAddr::new(before.remote.ip(), 1111);
    pair.input(true, Input::EspFrom(elsewhere, Transport::Udp));
    assert_eq!(path(&mut pair, true), before);
    pair.input(true, Input::EspFrom(elsewhere, RESPONDER));
    assert_eq!(path(&mut pair, true).remote, elsewhere);
    // The originator is not led by anybody.
    let before = path(&mut pair, false);
    pair.input(false, Input::EspFrom(elsewhere, ORIGINATOR));
    assert_eq!(path(&mut pair, false), before);
}

#[test]
fn a_request_that_was_lost_with_a_connection_goes_by_the_next() {
    let mut pair = pair(false, EnableTcp::Yes);
    pair.connect();
    let spi = pair.a.children()[0].spi_in;
    pair.command(false, Command::RekeyChild(spi));
    pair.wire.clear();
    behind_nat(&mut pair, 1111);
    reconnect(&mut pair);
    let resent = pair.wire.len();
    assert_eq!(resent, 1, "at once, and the same request only");
    pair.settle();
    pair.pass(OVERLAP);
    assert_ne!(pair.a.children()[0].spi_in, spi);
    pair.check_agreement();
}

#[test]
fn who_takes_an_sa_over_goes_on_by_another_connection() {
    for victim_is_b in [false, true] {
        for mobike in [false, true] {
            let mut pair = pair(mobike, EnableTcp::Yes);
            pair.connect();
            let spi = pair.a.established().id;
            let now = pair.now;
            pair.end(victim_is_b).take_over(now);
            let nat = behind_nat(&mut pair, 2222);
            reconnect(&mut pair);
            pair.settle();
            pair.pass(Duration::from_secs(1));
            assert_eq!(path(&mut pair, true).remote, nat);
            assert_eq!(pair.a.established().id, spi);
            pair.check_agreement();
        }
    }
}

#[test]
fn another_connection_than_ours_moves_nothing() {
    let mut pair = pair(false, EnableTcp::Yes);
    pair.connect();
    let Path { local, remote, .. } = path(&mut pair, false);
    let other = SocketAddr::new(local.ip(), local.port() ^ 1);
    pair.input(
        false,
        Input::Connected {
            local: other,
            remote,
        },
    );
    assert!(pair.wire.is_empty());
    // The responder has none of its own.
    let Path { local, remote, .. } = path(&mut pair, true);
    pair.input(true, Input::Connected { local, remote });
    assert!(pair.wire.is_empty());
}

#[test]
fn a_rekey_by_the_other_end_leaves_the_originator_what_it_was() {
    let mut pair = pair(false, EnableTcp::Yes);
    pair.connect();
    pair.command(true, Command::RekeyIke);
    pair.settle();
    pair.pass(Duration::from_secs(1));
    pair.check_agreement();
    let (a, b) = (path(&mut pair, false), path(&mut pair, true));
    assert_eq!((a.transport, b.transport), (ORIGINATOR, RESPONDER));
}

/// `a` has this one address.
fn roam(pair: &mut Pair, to: &str) {
    let remote = path(pair, false).remote.ip();
    let to: IpAddr = to.parse().unwrap();
    pair.a.address = SocketAddr::new(to, 4500);
    let ways = Ways {
        own: vec![to],
        pairs: vec![(to, remote)],
    };
    pair.input(false, Input::Roam(ways));
}

/// What the worker of `a` does when it is asked for other ways.
fn answer_for_ways(pair: &mut Pair, address: &str) {
    while pair.a.ways_wanted == 0 {
        pair.pass(Duration::from_secs(1));
    }
    pair.a.ways_wanted = 0;
    roam(pair, address);
    pair.settle();
}

#[test]
fn mobike_changes_to_tcp_where_udp_does_not_pass_and_back() {
    let mut pair = pair(true, EnableTcp::Fallback);
    pair.connect();
    assert_eq!(path(&mut pair, false).transport, Transport::Udp);
    let spi = pair.a.established().id;
    // Another network, without UDP.
    pair.no_udp = true;
    roam(&mut pair, "198.51.100.7");
    pair.settle();
    let asked = pair.sent.last().unwrap().bytes.clone();
    answer_for_ways(&mut pair, "198.51.100.7");
    pair.pass(Duration::from_secs(1));
    let (a, b) = (path(&mut pair, false), path(&mut pair, true));
    assert_eq!((a.transport, b.transport), (ORIGINATOR, RESPONDER));
    assert_eq!((a.local, a.remote), (b.remote, b.local));
    let again = pair.sent.iter().filter(|p| p.bytes == asked).count();
    assert!(
        again >= 2,
        "the same exchange goes on by TCP (RFC 9329 §7.1)"
    );
    assert!(
        !a.nat_local && !a.nat_remote,
        "asked again, with the right ports"
    );
    assert!(
        pair.b
            .plane_paths
            .values()
            .all(|p| p.transport == RESPONDER),
        "without a check of the address"
    );
    // Another one, where UDP passes.
    pair.no_udp = false;
    roam(&mut pair, "198.51.100.8");
    pair.settle();
    pair.pass(Duration::from_secs(1));
    let (a, b) = (path(&mut pair, false), path(&mut pair, true));
    assert_eq!((a.transport, b.transport), (Transport::Udp, Transport::Udp));
    assert_eq!((a.local.port(), a.remote.port()), (4500, 4500));
    assert_eq!(pair.a.established().id, spi);
    pair.check_agreement();
}

#[test]
fn no_cookie_is_demanded_of_who_comes_by_tcp() {
    for (enable_tcp, first_messages) in [(EnableTcp::No, 2), (EnableTcp::Yes, 1)] {
        let mut pair = pair(false, enable_tcp);
        pair.b.demands_cookies = true;
        pair.connect();
        let all = pair
            .sent
            .iter()
            .map(|p| Message::parse(&p.bytes).unwrap().header);
        let first = all.filter(|h| h.exchange == ExchangeType::IKE_SA_INIT && !h.is_response);
        assert_eq!(first.count(), first_messages);
    }
}

#[test]
fn both_ends_of_a_connection_are_told_apart() {
    assert_eq!(other_end(ORIGINATOR), RESPONDER);
    assert_eq!(other_end(other_end(ORIGINATOR)), ORIGINATOR);
}
