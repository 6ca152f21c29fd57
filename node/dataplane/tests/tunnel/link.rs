//! Plain ESP by packet sockets.

use crate::{
    gateways::{Case, Gateway, Pair, eventually, exchange, protected},
    hosts::{Host, privileged},
    sizes::{arrives, discover, send_until_refused},
};
use evergate_dataplane::{ChildSa, DataPlane, DropReason, HeaderPolicy, PlaneConfig, PlaneEvent};
use std::process::Command;

fn config(devices: &[&str]) -> PlaneConfig {
    PlaneConfig {
        link_devices: devices.iter().map(|d| (*d).to_owned()).collect(),
        ..PlaneConfig::default()
    }
}

/// Drops plain ESP wherever IP has it: only packet sockets still get it through.
fn close_ip(host: &Host) {
    nft(
        host,
        "add table inet closed; \
         add chain inet closed in { type filter hook input priority 0; }; \
         add chain inet closed out { type filter hook output priority 0; }; \
         add rule inet closed in meta l4proto esp drop; \
         add rule inet closed out meta l4proto esp drop",
    );
}

fn open_ip(host: &Host) {
    nft(host, "delete table inet closed");
}

fn nft(host: &Host, command: &'static str) {
    host.run(move || {
        let output = Command::new("nft").arg(command).output();
        let output = output.expect("nftables is installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {command}: {error}");
    });
}

/// The next hops are known: IP looked for the neighbours, and what is sent from now on needs it no more.
fn acquaint(pair: &Pair) {
    let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
    exchange(&from, &to, 1);
    exchange(&to, &from, 1);
    close_ip(&pair.a.host);
    close_ip(&pair.b.host);
    // What is lost until a way is looked for again is that of the test, and so it is waited for.
    to.set_nonblocking(true).unwrap();
    from.set_nonblocking(true).unwrap();
    for (near, far) in [(&from, &to), (&to, &from)] {
        eventually("a packet without IP", || {
            near.send_to(b"?", far.local_addr().unwrap()).unwrap();
            far.recv(&mut [0; 16]).is_ok()
        });
    }
}

#[test]
fn packets_pass_both_ways_and_ip_does_not_see_them() {
    privileged(
        "link::packets_pass_both_ways_and_ip_does_not_see_them",
        || {
            for outer_v6 in [false, true] {
                for workers in [1, 3] {
                    let pair = Pair::with(PlaneConfig {
                        workers,
                        ..config(&["wire"])
                    });
                    pair.connect(
                        0x1000,
                        Case {
                            outer_v6,
                            ..Case::PLAIN
                        },
                    );
                    acquaint(&pair);
                    let drops = || (pair.a.stats(0x1000).drops, pair.b.stats(0x1001).drops);
                    let before = drops();
                    for (near, far) in
                        [("10.1.0.1:0", "10.2.0.1:0"), ("[fd01::1]:0", "[fd02::1]:0")]
                    {
                        let (near, far) = (pair.a.host.udp(near), pair.b.host.udp(far));
                        exchange(&near, &far, 100);
                        exchange(&far, &near, 100);
                    }
                    assert_eq!(drops(), before);
                }
            }
        },
    );
}

#[test]
fn more_than_the_ring_holds_goes_through_it() {
    privileged("link::more_than_the_ring_holds_goes_through_it", || {
        let pair = Pair::with(config(&["wire"]));
        pair.connect(0x1000, Case::PLAIN);
        acquaint(&pair);
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        exchange(&from, &to, 5000);
        exchange(&to, &from, 5000);
    });
}

#[test]
fn packets_of_an_mtu_that_was_raised_come_too() {
    privileged("link::packets_of_an_mtu_that_was_raised_come_too", || {
        let pair = Pair::with(PlaneConfig {
            tun_mtu: 3500,
            ..config(&["wire"])
        });
        for gateway in [&pair.a, &pair.b] {
            gateway.host.ip("link set wire mtu 4000");
        }
        pair.connect(0x1000, Case::PLAIN);
        acquaint(&pair);
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        for _ in 0..100 {
            arrives(&from, &to, 3000).unwrap();
            arrives(&from, &to, 100).unwrap();
            arrives(&to, &from, 3000).unwrap();
        }
        assert_eq!(pair.b.plane.totals().drops.total(), 0);
    });
}

#[test]
fn a_neighbour_with_another_address_is_followed() {
    privileged("link::a_neighbour_with_another_address_is_followed", || {
        let pair = Pair::with(config(&["wire"]));
        pair.connect(0x1000, Case::PLAIN);
        acquaint(&pair);
        pair.b.host.ip("link set wire address 02:00:00:00:00:77");
        pair.a
            .host
            .ip("neigh replace 192.0.2.2 lladdr 02:00:00:00:00:77 dev wire nud stale");
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        to.set_nonblocking(true).unwrap();
        eventually("a packet to the new address", || {
            from.send_to(b"?", to.local_addr().unwrap()).unwrap();
            to.recv(&mut [0; 16]).is_ok()
        });
        // Nothing else uses it, and still the kernel is to look whether it is there.
        eventually("the kernel's look at the neighbour", || {
            from.send_to(b"?", to.local_addr().unwrap()).unwrap();
            let neighbour = pair.a.host.ip_output("neigh show 192.0.2.2 dev wire");
            neighbour.contains("02:00:00:00:00:77") && !neighbour.contains("STALE")
        });
    });
}

#[test]
fn fragments_are_left_to_ip() {
    privileged("link::fragments_are_left_to_ip", || {
        let pair = Pair::with(config(&["wire"]));
        for (gateway, n) in [(&pair.a, 1), (&pair.b, 2)] {
            let end = ChildSa {
                headers: HeaderPolicy {
                    df: false,
                    ..HeaderPolicy::default()
                },
                ..Case::PLAIN.end(n, 0x1000)
            };
            gateway.plane.install(end).unwrap();
        }
        pair.a.host.ip("link set wire mtu 1300");
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        arrives(&from, &to, 100).unwrap();
        arrives(&from, &to, 1350).unwrap();
        arrives(&from, &to, 100).unwrap();
    });
}

#[test]
fn a_narrower_path_is_noticed() {
    privileged("link::a_narrower_path_is_noticed", || {
        for outer_v6 in [false, true] {
            let pair = Pair::routed_with(1300, config(&["wire"]));
            let case = Case {
                outer_v6,
                ..Case::PLAIN
            };
            pair.connect(0x1000, case);
            acquaint(&pair);
            let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
            discover(&from, true);
            arrives(&from, &to, 100).unwrap();
            // Lost on the way, which a router tells the host; then answered by the plane.
            let before = pair.a.stats(0x1000);
            assert_eq!(before.path_mtu, Some(1500));
            let sent = send_until_refused(&from, &to, 1330);
            let after = pair.a.stats(0x1000);
            assert_eq!(after.path_mtu, Some(1300));
            let lost = after.packets_out - before.packets_out;
            let told = after.drops.get(DropReason::TooBig);
            assert!(
                lost >= 1 && told >= 1 && sent < 10,
                "{lost} lost, {told} told of {sent}"
            );
            arrives(&from, &to, 1150).unwrap();
        }
    });
}

#[test]
fn esp_that_is_forwarded_is_not_taken() {
    privileged("link::esp_that_is_forwarded_is_not_taken", || {
        let pair = Pair::routed(1500);
        pair.connect(0x1000, Case::PLAIN);
        let router = pair.router.as_ref().unwrap();
        let (plane, mut events) =
            router.run(|| evergate_dataplane::Userspace::start(config(&["to1", "to2"])).unwrap());
        plane.protect(protected(&["10.9.0.0/16"])).unwrap();
        let (from, to) = (pair.a.host.udp("10.1.0.1:0"), pair.b.host.udp("10.2.0.1:0"));
        exchange(&from, &to, 50);
        exchange(&to, &from, 50);
        assert_eq!(plane.totals().drops.get(DropReason::UnknownSpi), 0);
        let told = std::iter::from_fn(|| events.try_recv().ok());
        assert!(
            !told
                .into_iter()
                .any(|e| matches!(e, PlaneEvent::UnknownSpi { .. }))
        );
        plane.shutdown();
    });
}

#[test]
fn when_the_plane_ends_ip_has_its_packets_again() {
    privileged("link::when_the_plane_ends_ip_has_its_packets_again", || {
        let Pair { a, b, .. } = {
            let pair = Pair::with(config(&["wire"]));
            pair.connect(0x1000, Case::PLAIN);
            acquaint(&pair);
            pair
        };
        open_ip(&a.host);
        open_ip(&b.host);
        let a = Gateway::start(a.end(), PlaneConfig::default());
        let b = Gateway::start(b.end(), PlaneConfig::default());
        a.plane.protect(protected(&["10.2.0.0/16"])).unwrap();
        b.plane.protect(protected(&["10.1.0.0/16"])).unwrap();
        a.plane.install(Case::PLAIN.end(1, 0x1000)).unwrap();
        b.plane.install(Case::PLAIN.end(2, 0x1000)).unwrap();
        let (from, to) = (a.host.udp("10.1.0.1:0"), b.host.udp("10.2.0.1:0"));
        exchange(&from, &to, 10);
        exchange(&to, &from, 10);
    });
}
