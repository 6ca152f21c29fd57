//! IKE messages, keepalives, moves, strays.

use crate::{
    gateways::{Case, Pair, eventually, exchange},
    hosts::privileged,
};
use evergate_dataplane::{
    DataPlane, DropReason, Encapsulation, Outer, PlaneConfig, PlaneEvent, Transport,
};
use std::{net::SocketAddr, time::Instant};

#[test]
fn ike_arrives_with_both_addresses_in_fragments_too() {
    privileged(
        "control::ike_arrives_with_both_addresses_in_fragments_too",
        || {
            let mut pair = Pair::new();
            pair.b.host.address("192.0.2.22/24", "wire");
            let ends = [
                ("192.0.2.1", "192.0.2.22"),
                ("[2001:db8::1]", "[2001:db8::2]"),
            ];
            for (from, to) in ends {
                for (port, len) in [
                    (500, 28),
                    (500, 4000),
                    (4500, 28),
                    (4500, 600),
                    (4500, 4000),
                ] {
                    let local: SocketAddr = format!("{from}:{port}").parse().unwrap();
                    let remote: SocketAddr = format!("{to}:{port}").parse().unwrap();
                    let message = vec![7; len];
                    pair.a
                        .plane
                        .send_ike(local, remote, Transport::Udp, &message)
                        .unwrap();
                    let expected = PlaneEvent::Ike {
                        local: remote,
                        remote: local,
                        transport: Transport::Udp,
                        bytes: message,
                    };
                    let is_ike = |e: &PlaneEvent| matches!(e, PlaneEvent::Ike { .. });
                    assert_eq!(pair.b.event(is_ike), expected, "{local} {len}");
                }
            }
            assert_eq!(pair.a.plane.totals().ike_out, 10);
            // Counted behind the event.
            eventually("ten are counted", || pair.b.plane.totals().ike_in == 10);

            let local: SocketAddr = "192.0.2.1:4500".parse().unwrap();
            let remote: SocketAddr = "192.0.2.2:4500".parse().unwrap();
            pair.a.plane.keepalive(local, remote).unwrap();
            eventually("a keepalive", || pair.b.plane.totals().keepalives_in == 1);
            pair.a
                .plane
                .send_ike(local, remote, Transport::Udp, &[0; 27])
                .unwrap();
            let malformed = || pair.b.plane.totals().drops.get(DropReason::IkeMalformed);
            eventually("a drop", || malformed() == 1);
            let elsewhere = "192.0.2.1:4501".parse().unwrap();
            assert!(
                pair.a
                    .plane
                    .send_ike(elsewhere, remote, Transport::Udp, &[0; 28])
                    .is_err()
            );
        },
    );
}

#[test]
fn a_full_queue_drops_ike_and_counts() {
    privileged("control::a_full_queue_drops_ike_and_counts", || {
        let mut pair = Pair::with(PlaneConfig {
            event_queue: 4,
            ..PlaneConfig::default()
        });
        // Neighbour discovery of the fresh namespaces may have left something.
        pair.b.events_now();
        let local: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let remote: SocketAddr = "192.0.2.2:500".parse().unwrap();
        for _ in 0..10 {
            pair.a
                .plane
                .send_ike(local, remote, Transport::Udp, &[1; 28])
                .unwrap();
        }
        let totals = || pair.b.plane.totals();
        eventually("ten datagrams", || {
            totals().ike_in + totals().drops.get(DropReason::IkeQueueFull) == 10
        });
        assert_eq!(totals().ike_in, 4);
        assert_eq!(pair.b.events_now().len(), 4);
    });
}

#[test]
fn a_moved_peer_is_told_and_followed_when_so_decided() {
    privileged(
        "control::a_moved_peer_is_told_and_followed_when_so_decided",
        || {
            let mut pair = Pair::new();
            pair.a.host.address("192.0.2.11/24", "wire");
            pair.connect(0x1000, Case::IN_UDP);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            exchange(&from, &to, 5);
            let elsewhere: SocketAddr = "192.0.2.11:4500".parse().unwrap();
            let moved = |local, remote| Outer {
                local,
                remote,
                encapsulation: Encapsulation::Udp,
            };
            let b = Case::IN_UDP.outer_address(2);
            pair.a
                .plane
                .move_child(0x1000, moved(elsewhere, b))
                .unwrap();
            exchange(&from, &to, 5);
            let expected = PlaneEvent::PeerMoved {
                spi_in: 0x1001,
                remote: elsewhere,
                transport: Transport::Udp,
            };
            let is_move = |e: &PlaneEvent| matches!(e, PlaneEvent::PeerMoved { .. });
            assert_eq!(pair.b.event(is_move), expected);
            assert!(!pair.b.events_now().iter().any(is_move), "told once");
            assert_eq!(pair.b.stats(0x1001).seen_remote, Some(elsewhere));

            let wire = pair.b.host.capture("wire");
            let sent_to = |address: [u8; 4]| {
                move |p: &[u8]| p[9] == 17 && p[12..16] == [192, 0, 2, 2] && p[16..20] == address
            };
            exchange(&to, &from, 1);
            wire.first(sent_to([192, 0, 2, 1]));
            pair.b
                .plane
                .move_child(0x1001, moved(b, elsewhere))
                .unwrap();
            exchange(&to, &from, 1);
            wire.first(sent_to([192, 0, 2, 11]));
        },
    );
}

#[test]
fn strays_are_counted_and_told_sparingly() {
    privileged("control::strays_are_counted_and_told_sparingly", || {
        let mut pair = Pair::new();
        // Only `a` has the Child SA.
        pair.a.plane.install(Case::IN_UDP.end(1, 0x1000)).unwrap();
        let from = pair.a.host.udp("10.1.0.1:0");
        let start = Instant::now();
        for _ in 0..20 {
            from.send_to(b"stray", "10.2.0.1:9").unwrap();
        }
        let unknown = || pair.b.plane.totals().drops.get(DropReason::UnknownSpi);
        eventually("20 drops", || unknown() == 20);
        let events = pair.b.events_now();
        let strays: Vec<_> = events
            .iter()
            .filter(|e| matches!(e, PlaneEvent::UnknownSpi { spi: 0x1001, .. }))
            .collect();
        assert!((1..=sparing(start)).contains(&strays.len()), "{strays:?}");

        let to = pair.b.host.udp("10.2.0.1:0");
        let start = Instant::now();
        for _ in 0..20 {
            to.send_to(b"no way", "10.1.0.1:9").unwrap();
        }
        let no_child = || pair.b.plane.totals().drops.get(DropReason::NoChild);
        eventually("20 drops", || no_child() >= 20);
        let expected = PlaneEvent::NoChild {
            src: "10.2.0.1".parse().unwrap(),
            dst: "10.1.0.1".parse().unwrap(),
            protocol: 17,
            ports: Some((to.local_addr().unwrap().port(), 9)),
        };
        let told = pair.b.events_now();
        let told = told.iter().filter(|e| **e == expected).count();
        assert!((1..=sparing(start)).contains(&told), "{told}");
    });
}

/// How often something is told since then at most: once a second, however long that took here.
fn sparing(start: Instant) -> usize {
    2 + usize::try_from(start.elapsed().as_secs()).unwrap()
}
