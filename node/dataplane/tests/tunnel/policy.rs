//! Protection: routes, and what stays closed.

use crate::{
    gateways::{Case, Gateway, Pair, eventually, exchange, protected, range, uninterrupted},
    hosts::privileged,
};
use evergate_dataplane::{ChildSa, DataPlane, PlaneConfig, Protected, local_address_within};
use std::net::IpAddr;

/// Whether a datagram to this address leaves in the clear.
fn leaks(gateway: &Gateway, from: &str, to: &str) -> bool {
    let wire = gateway.host.capture("wire");
    let socket = gateway.host.udp(&format!("{from}:0"));
    let _ = socket.send_to(b"in the clear", format!("{to}:9"));
    // The link serves in order: what comes later proves that the former is not to come.
    let marker = gateway.host.udp("192.0.2.1:0");
    marker.send_to(b"the marker", "192.0.2.2:9").unwrap();
    let contains = |p: &Vec<u8>, text: &[u8]| p.windows(text.len()).any(|w| w == text);
    let seen = wire.until(|all| all.iter().any(|p| contains(p, b"the marker")));
    assert!(seen.iter().any(|p| contains(p, b"the marker")));
    seen.iter().any(|p| contains(p, b"in the clear"))
}

#[test]
fn a_dead_process_leaves_everything_closed() {
    privileged("policy::a_dead_process_leaves_everything_closed", || {
        let Pair { a, b, .. } = Pair::new();
        a.host.ip("route add default via 192.0.2.2");
        a.host.ip("-6 route add default via 2001:db8::2");
        let protected_ways = [("10.1.0.1", "10.2.0.1"), ("[fd01::1]", "[fd02::1]")];
        let host = a.end();
        for (from, to) in protected_ways {
            let (from, to) = (from.to_owned(), to.to_owned());
            let refused = host.run(move || {
                let socket = std::net::UdpSocket::bind(format!("{from}:0")).unwrap();
                socket.send_to(b"in the clear", format!("{to}:9")).is_err()
            });
            assert!(refused, "without a process");
        }
        let a = Gateway::start(host, PlaneConfig::default());
        let refused = a.host.run(|| {
            let socket = std::net::UdpSocket::bind("10.1.0.1:0").unwrap();
            socket.send_to(b"in the clear", "10.2.0.1:9").is_err()
        });
        assert!(refused, "before the new process has its policy");
        a.plane.protect(protected(&["10.2.0.0/16"])).unwrap();
        assert!(!leaks(&a, "10.1.0.1", "10.2.0.1"));
        a.plane.protect(Vec::new()).unwrap();
        assert!(leaks(&a, "10.1.0.1", "10.2.0.1"), "nothing is protected");
        assert_eq!(a.host.ip_output("route show table 220").trim(), "");
        assert_eq!(a.host.ip_output("-6 route show table 220").trim(), "");
        drop(b);
    });
}

#[test]
fn without_a_child_nothing_leaves() {
    privileged("policy::without_a_child_nothing_leaves", || {
        let pair = Pair::new();
        let a = &pair.a;
        a.host.ip("route add default via 192.0.2.2");
        assert!(!leaks(a, "10.1.0.1", "10.2.0.1"));
        assert!(leaks(a, "10.1.0.1", "10.3.0.1"), "is not protected");
        let bypass = Protected {
            prefix: "10.2.3.0/24".parse().unwrap(),
            source: None,
            bypass: true,
        };
        let mut policy = protected(&["10.0.0.0/8"]);
        policy.push(bypass);
        a.plane.protect(policy).unwrap();
        assert!(!leaks(a, "10.1.0.1", "10.3.0.1"));
        assert!(leaks(a, "10.1.0.1", "10.2.3.1"), "is excepted");
    });
}

#[test]
fn outer_packets_do_not_loop_when_the_peer_is_protected_itself() {
    privileged(
        "policy::outer_packets_do_not_loop_when_the_peer_is_protected_itself",
        || {
            let pair = Pair::new();
            for (case, spi) in [(Case::PLAIN, 0x1000), (Case::IN_UDP, 0x2000)] {
                for (gateway, n) in [(&pair.a, 1), (&pair.b, 2)] {
                    let host = |n| vec![range(&format!("192.0.2.{n}"), &format!("192.0.2.{n}"))];
                    let end = ChildSa {
                        local_ts: host(n),
                        remote_ts: host(3 - n),
                        source_hint: None,
                        ..case.end(n, spi)
                    };
                    gateway.plane.install(end).unwrap();
                    gateway.plane.protect(protected(&["0.0.0.0/0"])).unwrap();
                }
                let (a, b) = (
                    pair.a.host.udp("192.0.2.1:0"),
                    pair.b.host.udp("192.0.2.2:0"),
                );
                exchange(&a, &b, 10);
                exchange(&b, &a, 10);
                let spi_b = spi + 1;
                eventually("the count", || pair.a.stats(spi).packets_in == 10);
                eventually("the count", || pair.b.stats(spi_b).packets_in == 10);
            }
        },
    );
}

#[test]
fn own_packets_have_the_hinted_source() {
    privileged("policy::own_packets_have_the_hinted_source", || {
        let pair = Pair::new();
        pair.connect(0x1000, Case::PLAIN);
        let ping = |expected: &str| {
            let any = pair.a.host.udp("0.0.0.0:0");
            let to = pair.b.host.udp("10.2.0.1:0");
            any.send_to(b"who am I", to.local_addr().unwrap()).unwrap();
            let (_, source) = uninterrupted(|| to.recv_from(&mut [0; 100])).unwrap();
            assert_eq!(source.ip(), expected.parse::<IpAddr>().unwrap());
        };
        ping("10.1.0.1");
        // A virtual address wins when policy names it, and its end is survived.
        let virtual_address: IpAddr = "10.1.0.77".parse().unwrap();
        let protect = |source| {
            let mut prefixes = protected(&["10.2.0.0/16"]);
            prefixes[0].source = source;
            pair.a.plane.protect(prefixes).unwrap();
        };
        protect(Some(virtual_address));
        pair.a.plane.assign_address(virtual_address).unwrap();
        pair.a.plane.assign_address(virtual_address).unwrap();
        ping("10.1.0.77");
        pair.a.plane.release_address(virtual_address).unwrap();
        pair.a.plane.release_address(virtual_address).unwrap();
        protect(None);
        ping("10.1.0.1");
        let v6: IpAddr = "fd01::77".parse().unwrap();
        pair.a.plane.assign_address(v6).unwrap();
        let found = pair.a.host.run(move || {
            let within = [range("fd01::70", "fd01::7f"), range("10.1.0.0", "10.1.0.9")];
            (
                local_address_within(&within, true),
                local_address_within(&within, false),
                local_address_within(&within[..1], false),
            )
        });
        assert_eq!(found, (Some(v6), Some("10.1.0.1".parse().unwrap()), None));
        pair.a.plane.release_address(v6).unwrap();
    });
}

/// What is said of a datagram that came to nothing with this time to live.
fn said_of(from: &std::net::UdpSocket, to: &str, ttl: u32) -> Option<nix::errno::Errno> {
    use nix::sys::socket::{setsockopt, sockopt::Ipv4RecvErr};
    setsockopt(from, Ipv4RecvErr, &true).unwrap();
    from.set_ttl(ttl).unwrap();
    from.connect(to).unwrap();
    for _ in 0..200 {
        // It is said with the next call.
        if let Err(error) = from.send(b"how far") {
            return error.raw_os_error().map(nix::errno::Errno::from_raw);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    None
}

#[test]
fn errors_of_routers_come_back_by_narrow_selectors() {
    let name = "policy::errors_of_routers_come_back_by_narrow_selectors";
    privileged(name, || {
        use nix::errno::Errno;
        let pair = Pair::new();
        let udp_only = |n: u8| {
            let mut end = Case::IN_UDP.end(n, 0x1000);
            for selector in end.local_ts.iter_mut().chain(&mut end.remote_ts) {
                selector.protocol = 17;
            }
            end
        };
        pair.a.plane.install(udp_only(1)).unwrap();
        pair.b.plane.install(udp_only(2)).unwrap();
        // Behind b there is a way to go on, and one that is none.
        pair.b.host.sysctl("ipv4/conf/all/forwarding", "1");
        pair.b.host.ip("route add unreachable 10.2.7.0/24");
        pair.b.host.ip("route add 10.2.8.0/24 dev wire");
        let unreachable = pair.a.host.udp("10.1.0.1:0");
        assert_eq!(
            said_of(&unreachable, "10.2.7.1:9", 64),
            Some(Errno::EHOSTUNREACH)
        );
        let too_far = pair.a.host.udp("10.1.0.1:0");
        assert_eq!(
            said_of(&too_far, "10.2.8.1:9", 1),
            Some(Errno::EHOSTUNREACH)
        );
        // What is told arrives before it is counted.
        eventually("errors by the Child SA for UDP", || {
            pair.b.stats(0x1001).packets_out >= 2
        });
        for drops in [pair.a.stats(0x1000).drops, pair.b.stats(0x1001).drops] {
            assert_eq!(drops.total(), 0, "{drops:?}");
        }
    });
}
