//! Transport mode: asked for, agreed to, declined, kept, and through NATs.

use super::{
    bench::{End, Pair},
    takeover::kill_everywhere_in,
};
use crate::{
    config::{self, Connection},
    record::{Child, Mode, Seen},
    sa::{Command, Failure, pursue::OVERLAP},
    wire::{NotifyType, TrafficSelector},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";
/// The outer side of a NAT in front of `a`.
const NAT: &str = "198.51.100.1:7777";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Traffic between the two ends, in transport mode.
fn transport(c: &mut Connection) {
    host_to_host(c);
    c.children[0].mode = config::Mode::Transport;
}

fn host_to_host(c: &mut Connection) {
    c.children[0].local_ts = vec!["dynamic".parse().unwrap()];
    c.children[0].remote_ts = vec!["dynamic".parse().unwrap()];
}

fn seen(local: &str, remote: &str) -> Mode {
    Mode::Transport(Seen {
        local: ip(local),
        remote: ip(remote),
    })
}

fn only(end: &End) -> &Child {
    match end.children() {
        [child] => child,
        other => panic!("{} Child SAs: {:?}", other.len(), end.events),
    }
}

/// Mode and addresses of the one Child SA of an end.
fn at(end: &End) -> (Mode, IpAddr, IpAddr) {
    let child = only(end);
    let address = |all: &[TrafficSelector]| {
        assert!(
            all.iter()
                .all(|ts| ts.start == ts.end && ts.start == all[0].start)
        );
        all[0].start
    };
    (
        child.mode,
        address(&child.local_ts),
        address(&child.remote_ts),
    )
}

#[test]
fn both_want_it() {
    let mut pair = Pair::with(transport, transport);
    pair.connect();
    assert_eq!(at(&pair.a), (seen(A, B), ip(A), ip(B)));
    assert_eq!(at(&pair.b), (seen(B, A), ip(B), ip(A)));
    assert_eq!(pair.b.plane[&only(&pair.b).spi_in].mode, seen(B, A));
}

#[test]
fn one_that_only_one_end_wants_is_a_tunnel() {
    for wanted_by_a in [true, false] {
        let mut pair = match wanted_by_a {
            true => Pair::with(transport, host_to_host),
            false => Pair::with(host_to_host, transport),
        };
        pair.connect();
        assert_eq!(at(&pair.a), (Mode::Tunnel, ip(A), ip(B)));
        assert_eq!(at(&pair.b), (Mode::Tunnel, ip(B), ip(A)));
    }
}

#[test]
fn what_is_not_between_the_two_ends_is_a_tunnel() {
    let networks = |c: &mut Connection| c.children[0].mode = config::Mode::Transport;
    let mut pair = Pair::with(networks, networks);
    pair.connect();
    assert_eq!(only(&pair.a).mode, Mode::Tunnel);
    assert_eq!(only(&pair.b).mode, Mode::Tunnel);
}

#[test]
fn a_responder_with_networks_around_the_ends_narrows_to_them() {
    let mut pair = Pair::with(transport, |c| {
        transport(c);
        c.children[0].remote_ts = vec!["192.0.2.0/24[udp/1701]".parse().unwrap()];
    });
    pair.connect();
    assert_eq!(at(&pair.a), (seen(A, B), ip(A), ip(B)));
    let ts = only(&pair.b).remote_ts[0];
    assert_eq!((ts.protocol, ts.start_port, ts.end_port), (17, 1701, 1701));
}

#[test]
fn it_stays_through_rekeys_by_either_end() {
    let mut pair = Pair::with(transport, transport);
    pair.connect();
    for by_b in [false, true, true, false] {
        let before = only(&pair.a).spi_in;
        let spi = only(pair.end(by_b)).spi_in;
        pair.command(by_b, Command::RekeyChild(spi));
        pair.settle();
        pair.pass(Duration::from_secs(5));
        pair.check_agreement();
        assert_ne!(only(&pair.a).spi_in, before);
        assert_eq!(at(&pair.a), (seen(A, B), ip(A), ip(B)));
        assert_eq!(at(&pair.b), (seen(B, A), ip(B), ip(A)));
    }
}

#[test]
fn a_tunnel_stays_one_when_it_is_rekeyed() {
    let mut pair = Pair::with(transport, host_to_host);
    pair.connect();
    pair.b.policy.connections[0].children[0].mode = config::Mode::Transport;
    let spi = only(&pair.a).spi_in;
    pair.command(false, Command::RekeyChild(spi));
    pair.settle();
    pair.pass(OVERLAP);
    assert_eq!(at(&pair.b).0, Mode::Tunnel);
}

#[test]
fn it_comes_with_create_child_sa_and_several_key_exchanges_too() {
    let both = |c: &mut Connection| {
        transport(c);
        c.childless = config::Childless::Prefer;
        c.children[0].esp_proposals = vec!["aes256gcm16-x25519-ke1_mlkem768".parse().unwrap()];
    };
    let mut pair = Pair::with(both, both);
    pair.connect();
    assert_eq!(at(&pair.a), (seen(A, B), ip(A), ip(B)));
    assert_eq!(at(&pair.b), (seen(B, A), ip(B), ip(A)));
}

#[test]
fn whoever_takes_over_goes_on_with_it() {
    let make = || Pair::with(transport, transport);
    kill_everywhere_in(
        make,
        |pair| {
            let spi = only(&pair.a).spi_in;
            pair.command(false, Command::RekeyChild(spi));
        },
        1,
    );
    let mut pair = make();
    pair.connect();
    let now = pair.now;
    pair.b.take_over(now);
    assert_eq!(pair.b.plane[&only(&pair.b).spi_in].mode, seen(B, A));
}

/// A pair with a NAT in front of `a`.
fn behind_nat() -> Pair {
    let mut pair = Pair::with(transport, transport);
    pair.b.policy.connections[0].remote_addrs.clear();
    pair.a.nat = Some(NAT.parse().unwrap());
    pair.start();
    pair.settle();
    pair
}

/// Each end has its own view, and knows the other's (RFC 7296 §2.23.1).
fn both_views(pair: &Pair, nat: &str) {
    assert!(pair.a.established().path.nat_local && pair.b.established().path.nat_remote);
    assert_eq!(at(&pair.a), (seen(nat, B), ip(A), ip(B)));
    assert_eq!(at(&pair.b), (seen(B, A), ip(B), ip(nat)));
}

#[test]
fn a_nat_gives_each_end_its_own_view() {
    both_views(&behind_nat(), "198.51.100.1");
}

#[test]
fn rekeys_by_either_end_go_through_a_nat() {
    let mut pair = behind_nat();
    for by_b in [false, true, true, false] {
        let before = only(&pair.a).spi_in;
        let spi = only(pair.end(by_b)).spi_in;
        pair.command(by_b, Command::RekeyChild(spi));
        pair.settle();
        pair.pass(Duration::from_secs(5));
        assert_ne!(only(&pair.a).spi_in, before);
        both_views(&pair, "198.51.100.1");
    }
}

#[test]
fn after_a_nat_has_changed_its_address_a_rekey_is_between_the_new_ones() {
    let mut pair = behind_nat();
    let other: SocketAddr = "203.0.113.9:5555".parse().unwrap();
    pair.a.nat = Some(other);
    // The peer's own request shows where it is now.
    pair.a.policy.connections[0].dpd_delay = Duration::from_secs(30);
    pair.pass(Duration::from_secs(65));
    let spi = only(&pair.a).spi_in;
    pair.command(false, Command::RekeyChild(spi));
    pair.settle();
    pair.pass(Duration::from_secs(5));
    let remote = pair.b.established().path.remote.ip();
    assert_eq!(remote, other.ip(), "it was noticed");
    let (mode, local, far) = at(&pair.b);
    assert_eq!((local, far), (ip(B), remote));
    assert_ne!(mode, Mode::Tunnel);
}

#[test]
fn behind_a_nat_without_transport_mode_the_selectors_are_those_of_the_peer() {
    let mut pair = Pair::with(transport, |c| {
        host_to_host(c);
        c.children[0].remote_ts = vec!["192.0.2.0/24".parse().unwrap()];
    });
    pair.b.policy.connections[0].remote_addrs.clear();
    pair.a.nat = Some(NAT.parse().unwrap());
    pair.start();
    pair.settle();
    assert_eq!(at(&pair.a), (Mode::Tunnel, ip(A), ip(B)));
    assert_eq!(at(&pair.b), (Mode::Tunnel, ip(B), ip(A)));
}

#[test]
fn without_a_nat_nobody_gets_away_with_another_address() {
    // `a` says that it is somebody else.
    let mut pair = Pair::with(transport, transport);
    pair.a.policy.connections[0].children[0].local_ts = vec!["10.9.9.9".parse().unwrap()];
    pair.start();
    pair.settle();
    assert!(pair.a.children().is_empty() && pair.b.children().is_empty());
    let refused = Failure::PeerRefused(NotifyType::TS_UNACCEPTABLE);
    let said =
        |e: &crate::sa::Event| matches!(e, crate::sa::Event::Failed { what } if *what == refused);
    assert!(pair.a.events.iter().any(said), "{:?}", pair.a.events);
}
