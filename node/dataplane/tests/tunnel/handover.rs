//! Packets that are held back, and go through later or elsewhere.

use crate::{
    gateways::{Case, Gateway, Pair, assert_silent, eventually, uninterrupted},
    hosts::privileged,
};
use evergate_dataplane::{
    ChildSa, DataPlane, Datagram, DatagramKind, DropReason, Hold, Packet, PlaneEvent, Transport,
};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

const OUTER: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
];

fn hold(gateway: &Gateway) -> Arc<Hold> {
    let hold = gateway.plane.queue();
    gateway.plane.hold(&OUTER, &hold);
    hold
}

fn send(from: &UdpSocket, to: SocketAddr, numbers: std::ops::Range<u8>) {
    for n in numbers {
        from.send_to(&[n], to).unwrap();
    }
}

fn arrive(at: &UdpSocket, numbers: std::ops::Range<u8>) {
    for n in numbers {
        let mut buffer = [0; 16];
        let len = uninterrupted(|| at.recv(&mut buffer)).unwrap();
        assert_eq!(buffer[..len], [n]);
    }
}

#[test]
fn what_is_held_back_goes_through_in_its_order_later() {
    privileged(
        "handover::what_is_held_back_goes_through_in_its_order_later",
        || {
            for (encapsulated, outer_v6) in [(true, false), (false, false), (false, true)] {
                let pair = Pair::new();
                let case = Case {
                    encapsulated,
                    outer_v6,
                    ..Case::PLAIN
                };
                pair.connect(0x1000, case);
                let (a, b) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
                let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
                send(&a, to_b, 0..1);
                arrive(&b, 0..1);
                let edge = pair.b.stats(0x1001).replay_edge;
                let hold = hold(&pair.b);
                send(&a, to_b, 1..40);
                send(&b, to_a, 1..40);
                eventually("all was sent", || pair.a.stats(0x1000).packets_out == 40);
                assert_silent(&b);
                assert_silent(&a);
                let stats = pair.b.stats(0x1001);
                assert_eq!(stats.replay_edge, edge, "nothing was opened");
                assert_eq!(stats.packets_out, 0, "nothing was sealed");
                pair.b.plane.resume(&OUTER, &hold);
                arrive(&b, 1..40);
                arrive(&a, 1..40);
                send(&a, to_b, 40..50);
                arrive(&b, 40..50);
                assert_eq!(pair.b.plane.totals().drops.total(), 0);
                // Counted when the kernel has it: the application may be faster.
                eventually("the count", || pair.b.stats(0x1001).packets_in == 50);
            }
        },
    );
}

#[test]
fn another_plane_goes_on_with_what_was_held_back() {
    privileged(
        "handover::another_plane_goes_on_with_what_was_held_back",
        || {
            let pair = Pair::new();
            let case = Case::IN_UDP;
            pair.connect(0x1000, case);
            let (a, b) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
            send(&a, to_b, 0..1);
            arrive(&b, 0..1);
            let hold = hold(&pair.b);
            send(&a, to_b, 1..20);
            send(&b, to_a, 1..20);
            let mut held = Vec::new();
            eventually("all is held back", || {
                std::thread::sleep(Duration::from_millis(1));
                pair.a.stats(0x1000).packets_out == 20
            });
            while held.len() < 38 {
                held.extend(hold.take(100));
                std::thread::yield_now();
            }
            // Another process with the same SAs: where the one before stopped, and with numbers of its own.
            let edge = pair.b.stats(0x1001).replay_edge;
            pair.b.plane.unhold(&OUTER, &hold);
            pair.b.plane.remove(0x1001, Duration::ZERO).unwrap();
            let successor = ChildSa {
                replay_edge: Some(edge),
                reservation: 1000..2000,
                ..case.end(2, 0x1000)
            };
            pair.b.plane.install(successor).unwrap();
            pair.b.plane.feed(held.clone());
            arrive(&b, 1..20);
            arrive(&a, 1..20);
            assert_eq!(pair.b.stats(0x1001).next_sequence, Some(1019));
            // Whoever sends a copy gets nothing through.
            let outer = |p: &Packet| matches!(p, Packet::Outer(_));
            held.retain(outer);
            pair.b.plane.feed(held);
            eventually("copies are dropped", || {
                pair.b.plane.totals().drops.get(DropReason::Replay) == 19
            });
            assert_silent(&b);
        },
    );
}

#[test]
fn ike_is_held_back_and_fed_too() {
    privileged("handover::ike_is_held_back_and_fed_too", || {
        let mut pair = Pair::new();
        let hold = hold(&pair.b);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let message = [7; 40];
        for port in [500, 4500] {
            let sent = pair.a.plane.send_ike(
                SocketAddr::new(at("192.0.2.1:0").ip(), port),
                SocketAddr::new(OUTER[0], port),
                Transport::Udp,
                &message,
            );
            sent.unwrap();
        }
        let mut held = Vec::new();
        while held.len() < 2 {
            held.extend(hold.take(usize::MAX));
            std::thread::yield_now();
        }
        assert!(pair.b.events_now().is_empty());
        let ike = |port| {
            Packet::Outer(Datagram {
                kind: DatagramKind::Ike,
                local: SocketAddr::new(OUTER[0], port),
                remote: SocketAddr::new(at("192.0.2.1:0").ip(), port),
                traffic_class: 0,
                bytes: message.to_vec(),
            })
        };
        held.sort_by_key(|p| *p != ike(500));
        assert_eq!(held, [ike(500), ike(4500)]);
        pair.b.plane.unhold(&OUTER, &hold);
        pair.b.plane.feed(held);
        for port in [500, 4500] {
            pair.b.event(|event| {
                matches!(event, PlaneEvent::Ike { local, bytes, .. }
                    if local.port() == port && *bytes == message)
            });
        }
    });
}
