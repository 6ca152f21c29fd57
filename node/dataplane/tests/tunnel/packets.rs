//! Packets through the tunnel.

use crate::{
    gateways::{Case, Pair, assert_silent, eventually, exchange, range, uninterrupted},
    hosts::privileged,
};
use evergate_dataplane::{
    ChildSa, Cipher, DataPlane, DropReason, Encryption, HeaderPolicy, Integrity, PlaneEvent,
};
use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const ESP: u8 = 50;
const UDP: u8 = 17;

#[test]
fn every_kind_of_child_carries_both_families_both_ways() {
    privileged(
        "packets::every_kind_of_child_carries_both_families_both_ways",
        || {
            let pair = Pair::new();
            let (a4, b4) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            let (a6, b6) = (
                pair.a.host.udp("[fd01::1]:0"),
                pair.b.host.udp("[fd02::1]:0"),
            );
            let mut spi = 0x1000;
            for case in cases() {
                pair.connect(spi, case);
                for (from, to) in [(&a4, &b4), (&b4, &a4), (&a6, &b6), (&b6, &a6)] {
                    exchange(from, to, 40);
                }
                for (gateway, spi) in [(&pair.a, spi), (&pair.b, spi + 1)] {
                    // Counted when the kernel has it: the application may be faster. Bytes are counted last.
                    eventually("the count", || {
                        let stats = gateway.stats(spi);
                        let packets = stats.packets_in.min(stats.packets_out);
                        packets >= 80 && stats.bytes_in == stats.bytes_out
                    });
                    let stats = gateway.stats(spi);
                    let counts = (stats.packets_in, stats.packets_out);
                    assert_eq!(counts, (80, 80), "{case:?}");
                    assert_eq!(stats.drops.total(), 0, "{case:?}: {:?}", stats.drops);
                    assert_eq!(stats.replay_edge, case.first + 79, "{case:?}");
                    assert_eq!(stats.next_sequence, Some(case.first + 80), "{case:?}");
                    assert_eq!(stats.bytes_in, stats.bytes_out);
                    assert!(stats.last_inbound.is_some() && stats.last_outbound.is_some());
                    gateway.plane.remove(spi, Duration::ZERO).unwrap();
                    assert!(gateway.plane.stats(spi).is_none());
                }
                spi += 2;
            }
            // What the plane counts comes behind what its Child SAs count.
            eventually("the count of all", || {
                pair.a.plane.totals().packets_in >= 80 * 40
            });
            assert_eq!(pair.a.plane.totals().packets_in, 80 * 40);
        },
    );
}

fn cases() -> impl Iterator<Item = Case> {
    let ciphers = [
        Encryption::AesGcm16 { key_bits: 128 }.into(),
        Encryption::AesGcm16 { key_bits: 256 }.into(),
        Encryption::ChaCha20Poly1305.into(),
        Encryption::AesGcm16Iiv { key_bits: 256 }.into(),
        Cipher {
            encryption: Encryption::AesCbc { key_bits: 256 },
            integrity: Some(Integrity::HmacSha512),
        },
    ];
    (0..40).map(move |i| Case {
        outer_v6: i & 1 != 0,
        encapsulated: i & 2 != 0,
        esn: i & 4 != 0,
        cipher: ciphers[i / 8],
        // With ESN also across the 32-bit border.
        first: if i & 4 != 0 { (1 << 32) - 40 } else { 1 },
    })
}

/// An outer packet from `a` to `b`.
fn outer(packet: &[u8], protocol: u8) -> bool {
    packet.len() > 20
        && packet[0] == 0x45
        && packet[9] == protocol
        && packet[12..16] == [192, 0, 2, 1]
}

#[test]
fn nothing_but_esp_is_on_the_wire() {
    privileged("packets::nothing_but_esp_is_on_the_wire", || {
        for (case, protocol) in [(Case::PLAIN, ESP), (Case::IN_UDP, UDP)] {
            let pair = Pair::new();
            pair.connect(0x1000, case);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            let wire = pair.a.host.capture("wire");
            from.send_to(b"the text in the clear", to.local_addr().unwrap())
                .unwrap();
            let packet = wire.first(|p| outer(p, protocol));
            assert!(!packet.windows(4).any(|w| w == b"text"));
            assert_ne!(packet[6] & 0x40, 0, "DF is set");
            if protocol == UDP {
                assert_eq!(packet[20..24], [0x11, 0x94, 0x11, 0x94], "ports 4500");
                assert_eq!(packet[28..32], 0x1001_u32.to_be_bytes());
                assert_eq!(packet[32..36], 1_u32.to_be_bytes());
            } else {
                assert_eq!(packet[20..24], 0x1001_u32.to_be_bytes());
            }
        }
    });
}

#[test]
fn copies_are_dropped() {
    privileged("packets::copies_are_dropped", || {
        for (case, protocol) in [(Case::PLAIN, ESP), (Case::IN_UDP, UDP)] {
            let pair = Pair::new();
            pair.connect(0x1000, case);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            let wire = pair.a.host.capture("wire");
            exchange(&from, &to, 1);
            let mut packet = wire.first(|p| outer(p, protocol));
            if protocol == UDP {
                // Without a checksum, as RFC 3948 has it: it was left to the device, and damage is for ESP to notice.
                packet[26..28].fill(0);
            }
            let mut damaged = packet.clone();
            *damaged.last_mut().unwrap() ^= 1;
            // A number that was not received yet.
            let number = if protocol == UDP { 35 } else { 27 };
            damaged[number] += 1;
            pair.a.host.inject(&packet);
            pair.a.host.inject(&packet);
            pair.a.host.inject(&damaged);
            let drops = || pair.b.stats(0x1001).drops;
            eventually("three drops", || drops().total() == 3);
            assert_eq!(drops().get(DropReason::Replay), 2);
            assert_eq!(drops().get(DropReason::NotAuthentic), 1);
            assert_silent(&to);
            exchange(&from, &to, 1);

            // A successor that knows the right edge refuses the same packet; one that knows nothing would not.
            pair.b.plane.remove(0x1001, Duration::ZERO).unwrap();
            let successor = ChildSa {
                replay_edge: Some(2),
                ..case.end(2, 0x1000)
            };
            pair.b.plane.install(successor).unwrap();
            pair.a.host.inject(&packet);
            eventually("a drop", || drops().get(DropReason::Replay) == 1);
            pair.b.plane.remove(0x1001, Duration::ZERO).unwrap();
            pair.b.plane.install(case.end(2, 0x1000)).unwrap();
            pair.a.host.inject(&packet);
            let received = uninterrupted(|| to.recv(&mut [0; 100]));
            assert_eq!(received.unwrap(), 4);
        }
    });
}

#[test]
fn traffic_class_crosses_the_tunnel() {
    privileged("packets::traffic_class_crosses_the_tunnel", || {
        let pair = Pair::new();
        pair.connect(0x1000, Case::PLAIN);
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        set_tos(&from, 0xba);
        let wire = pair.a.host.capture("wire");
        exchange(&from, &to, 1);
        let mut packet = wire.first(|p| outer(p, ESP));
        assert_eq!(packet[1], 0xba, "DSCP EF and ECT(0) are copied");

        // A router marks congestion; the plane has not seen the packet yet.
        packet[1] |= 3;
        pair.b.plane.remove(0x1001, Duration::ZERO).unwrap();
        let hidden = |n| ChildSa {
            headers: HeaderPolicy {
                dscp_out: false,
                ..HeaderPolicy::default()
            },
            ..Case::PLAIN.end(n, 0x1000)
        };
        pair.b.plane.install(hidden(2)).unwrap();
        let inside = pair.b.host.capture("evergate0");
        pair.a.host.inject(&packet);
        let inner = inside.first(|p| p[12..16] == [10, 1, 0, 1]);
        assert_eq!(inner[1], 0xbb, "congestion experienced");
        let received = uninterrupted(|| to.recv(&mut [0; 100]));
        assert_eq!(received.unwrap(), 4);

        pair.a.plane.remove(0x1000, Duration::ZERO).unwrap();
        let mut end = hidden(1);
        end.reservation = 100..200;
        pair.a.plane.install(end).unwrap();
        exchange(&from, &to, 1);
        let packet = wire.until(|all| all.last().is_some_and(|p| outer(p, ESP) && p[27] == 100));
        assert_eq!(
            packet.last().unwrap()[1],
            0x02,
            "DSCP is hidden, ECN is not"
        );
    });
}

fn set_tos(socket: &UdpSocket, tos: u32) {
    socket2::SockRef::from(&socket).set_tos_v4(tos).unwrap();
}

#[test]
fn what_is_not_within_the_selectors_is_dropped() {
    privileged(
        "packets::what_is_not_within_the_selectors_is_dropped",
        || {
            let pair = Pair::new();
            pair.a.plane.install(Case::IN_UDP.end(1, 0x1000)).unwrap();
            let narrow = ChildSa {
                remote_ts: vec![range("10.1.0.1", "10.1.0.1")],
                ..Case::IN_UDP.end(2, 0x1000)
            };
            pair.b.plane.install(narrow).unwrap();
            pair.a.host.address("10.1.0.9/32", "lo");
            let to = pair.b.host.udp("10.2.0.1:0");
            let stranger = pair.a.host.udp("10.1.0.9:0");
            stranger.send_to(b"in", to.local_addr().unwrap()).unwrap();
            let drops = || pair.b.stats(0x1001).drops;
            eventually("a drop", || drops().get(DropReason::SelectorMismatch) == 1);
            exchange(&pair.a.host.udp("10.1.0.1:0"), &to, 5);
            assert_eq!(drops().total(), 1);
        },
    );
}

#[test]
fn a_used_up_reservation_sends_nothing_until_it_is_extended() {
    privileged(
        "packets::a_used_up_reservation_sends_nothing_until_it_is_extended",
        || {
            let mut pair = Pair::new();
            pair.b.plane.install(Case::PLAIN.end(2, 0x1000)).unwrap();
            let short = ChildSa {
                reservation: 1..11,
                ..Case::PLAIN.end(1, 0x1000)
            };
            pair.a.plane.install(short).unwrap();
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            exchange(&from, &to, 10);
            for _ in 0..5 {
                from.send_to(b"too many", to.local_addr().unwrap()).unwrap();
            }
            let drops = |pair: &Pair| pair.a.stats(0x1000).drops.get(DropReason::Exhausted);
            eventually("five drops", || drops(&pair) == 5);
            assert_silent(&to);
            let stats = pair.a.stats(0x1000);
            assert_eq!((stats.next_sequence, stats.remaining), (None, 0));
            assert_eq!(low_reservations(&mut pair), 1);

            assert!(pair.a.plane.extend(0x1000, 10..20).is_err());
            pair.a.plane.extend(0x1000, 21..41).unwrap();
            exchange(&from, &to, 10);
            assert_eq!(pair.b.stats(0x1001).replay_edge, 30);
            assert_eq!(pair.a.stats(0x1000).next_sequence, Some(31));
            assert_eq!(drops(&pair), 5);
            exchange(&from, &to, 10);
            assert_eq!(low_reservations(&mut pair), 1);
        },
    );
}

fn low_reservations(pair: &mut Pair) -> usize {
    let low = |e: &PlaneEvent| matches!(e, PlaneEvent::LowReservation { spi_in: 0x1000, .. });
    let events = pair.a.events_now();
    events.iter().filter(|e| low(e)).count()
}

#[test]
fn a_rekey_loses_nothing() {
    privileged("packets::a_rekey_loses_nothing", || {
        let pair = Pair::new();
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        let grace = Duration::from_secs(10);
        pair.connect(0x1000, Case::IN_UDP);
        for round in 1..20_u32 {
            let (old, new) = (0x1000 + 2 * (round - 1), 0x1000 + 2 * round);
            let standby = ChildSa {
                outbound_active: false,
                ..Case::IN_UDP.end(2, new)
            };
            pair.b.plane.install(standby).unwrap();
            exchange(&to, &from, 8);
            pair.a.plane.install(Case::IN_UDP.end(1, new)).unwrap();
            exchange(&from, &to, 8);
            // `b` still uses the old one.
            exchange(&to, &from, 8);
            eventually("the count", || pair.a.stats(old).packets_in >= 16);
            eventually("the count", || pair.b.stats(new + 1).packets_in == 8);
            pair.b.plane.set_outbound(new + 1, true).unwrap();
            pair.a.plane.remove(old, grace).unwrap();
            pair.b.plane.remove(old + 1, grace).unwrap();
            exchange(&to, &from, 8);
            eventually("the count", || pair.a.stats(new).packets_in == 8);
        }
        assert_eq!(pair.a.plane.totals().drops.total(), 0);
        assert_eq!(pair.b.plane.totals().drops.total(), 0);
    });
}

/// What is under way when its Child SA is taken away goes by the next one.
#[test]
fn a_rekey_under_a_flood_loses_nothing() {
    privileged("packets::a_rekey_under_a_flood_loses_nothing", || {
        let pair = Pair::new();
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        let ample = |n, spi| ChildSa {
            // However long the next one is waited for.
            reservation: 1..1_000_000_000,
            ..Case::IN_UDP.end(n, spi)
        };
        let install = |spi| {
            pair.b.plane.install(ample(2, spi)).unwrap();
            pair.a.plane.install(ample(1, spi)).unwrap();
        };
        install(0x1000);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let to = to.local_addr().unwrap();
                while !over.load(Ordering::Relaxed) {
                    from.send_to(&[7; 64], to).unwrap();
                }
            });
            for spi in (0x1000..0x1400).step_by(2) {
                let before = pair.a.stats(spi).packets_out;
                eventually("it is used", || pair.a.stats(spi).packets_out > before + 3);
                install(spi + 2);
                let grace = Duration::from_secs(60);
                pair.a.plane.remove(spi, grace).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(pair.a.plane.totals().drops.total(), 0);
    });
}
