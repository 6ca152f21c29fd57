//! The network with plain routing instead of gateways: what the demo measures must be there, and what it must notice is noticed.

use super::{
    capture::Capture,
    network::Network,
    topology::{OFFICE, Topology},
    traffic::{Host, Traffic},
};
use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

/// Network namespaces of single threads need root; a user namespace cannot be had in a process with threads.
fn may_make_namespaces() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Waits until something is so, however busy the machine is.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn unprotected_traffic_is_carried_and_found_in_the_clear() {
    if !may_make_namespaces() {
        return;
    }
    let topology = Topology::new(1, 2);
    let network = Network::new(&topology).unwrap();
    let member = topology.members[0].outer;
    for (peer, ns) in topology.peers.iter().zip(&network.peers) {
        let [a, b, c, _] = peer.inner.octets();
        let behind = Ipv4Addr::new(a, b, c, 0);
        network.members[0].route((behind, 24), peer.outer).unwrap();
        ns.route((Ipv4Addr::new(10, 1, 0, 0), 16), member).unwrap();
    }
    let capture = Capture::start(&network.internet).unwrap();
    let office = Host {
        ns: network.office.clone(),
        address: OFFICE,
    };
    let hosts = topology.peers.iter().zip(&network.peer_hosts);
    let pairs: Vec<_> = hosts
        .map(|(peer, ns)| {
            let host = Host {
                ns: ns.clone(),
                address: peer.host,
            };
            (office.clone(), host)
        })
        .collect();
    let mut traffic = Traffic::start(&pairs).unwrap();
    eventually("traffic between the hosts", || traffic.flows(0, 50));
    eventually("undisturbed traffic", || {
        let cut = traffic.now();
        thread::sleep(Duration::from_millis(100));
        traffic.longest_gap(cut) < Duration::from_secs(1)
    });
    traffic.stop_sending().unwrap();
    eventually("silence", || {
        traffic.silence() >= Duration::from_millis(150)
    });
    let totals = traffic.finish().unwrap();
    assert_eq!((totals.duplicated, totals.damaged), (0, 0));
    let (found, missed) = capture.finish().unwrap();
    assert_eq!(missed, 0);
    let arrived = totals.sent - totals.lost;
    assert!(arrived >= 200, "{totals:?}");
    assert!(found.in_clear >= arrived, "{found:?} {totals:?}");
    assert!(found.unexplained >= arrived, "{found:?}");
    // Each frame once, not once for each device that it crosses.
    assert!(found.in_clear <= totals.sent + 50, "{found:?} {totals:?}");
    assert_eq!((found.esp, found.iv_reuse), (0, 0));
}

#[test]
fn without_a_tunnel_nothing_arrives_and_the_leak_is_seen() {
    if !may_make_namespaces() {
        return;
    }
    let topology = Topology::new(1, 1);
    let network = Network::new(&topology).unwrap();
    let capture = Capture::start(&network.internet).unwrap();
    let host = |ns: &super::network::NetNs, address| Host {
        ns: ns.clone(),
        address,
    };
    let pair = (
        host(&network.office, OFFICE),
        host(&network.peer_hosts[0], topology.peers[0].host),
    );
    let traffic = Traffic::start(&[pair]).unwrap();
    // A gateway that lets packets out unprotected sends them along its default route.
    eventually("a leak", || capture.findings().in_clear > 0);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(traffic.first_packets(0), None);
    let totals = traffic.finish().unwrap();
    assert_eq!(totals.lost, totals.sent);
    assert!(capture.finish().unwrap().0.in_clear > 0);
}
