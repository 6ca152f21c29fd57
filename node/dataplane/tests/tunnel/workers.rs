//! Several workers: packets are spread over them, and none overtakes another of its flow.

use crate::{
    gateways::{Case, Gateway, Pair, eventually, exchange, range, uninterrupted},
    hosts::privileged,
};
use evergate_dataplane::{ChildSa, DataPlane, DropReason, PlaneConfig};
use std::{collections::HashMap, net::UdpSocket, path::PathBuf, thread};

const WORKERS: usize = 4;
const FLOWS: u16 = 16;
/// Of each flow.
const BURSTS: u32 = 30;
const BURST: u32 = 16;

fn several() -> Pair {
    Pair::with(PlaneConfig {
        workers: WORKERS,
        ..PlaneConfig::default()
    })
}

/// The network namespace of a gateway, and of its plane's threads.
fn namespace(gateway: &Gateway) -> PathBuf {
    let ours = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    gateway.host.run(ours)
}

/// For how many nanoseconds threads of these gateways whose name begins so had a processor. Tests beside this one have planes, too, which come and go.
fn worked(pair: &Pair, name: &str) -> HashMap<String, u64> {
    let namespaces = [namespace(&pair.a), namespace(&pair.b)];
    let is_ours = |namespace| namespaces.contains(&namespace);
    let mut worked = HashMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        if !std::fs::read_link(task.path().join("ns/net")).is_ok_and(is_ours) {
            continue;
        }
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (comm, stat) = (read("comm"), read("schedstat"));
        let time = stat.split_whitespace().next().and_then(|n| n.parse().ok());
        if comm.starts_with(name) {
            let all: &mut u64 = worked.entry(comm.trim().to_owned()).or_default();
            *all += time.unwrap_or(0);
        }
    }
    worked
}

/// The same before there is work: each worker has begun, and so has its name.
fn worked_before(pair: &Pair, name: &str) -> HashMap<String, u64> {
    eventually("the workers begin", || worked(pair, name).len() == WORKERS);
    worked(pair, name)
}

/// How many workers had work: more than it takes to begin.
fn busy(before: &HashMap<String, u64>, after: &HashMap<String, u64>) -> usize {
    let grew = |(name, worked): &(&String, &u64)| **worked > before[*name] + 300_000;
    after.iter().filter(grew).count()
}

/// Sends numbers in bursts that every queue on the way takes; each comes back by the same flow.
fn talk(near: &UdpSocket, far: &UdpSocket) {
    for burst in 0..BURSTS {
        let numbers = burst * BURST..(burst + 1) * BURST;
        for n in numbers.clone() {
            near.send(&n.to_be_bytes()).unwrap();
        }
        for n in numbers.clone() {
            assert_eq!(next(far), n);
            far.send(&n.to_be_bytes()).unwrap();
        }
        for n in numbers {
            assert_eq!(next(near), n);
        }
    }
}

fn next(socket: &UdpSocket) -> u32 {
    let mut buffer = [0; 4];
    let received = uninterrupted(|| socket.recv(&mut buffer));
    assert_eq!(received.expect("nothing is lost"), 4);
    u32::from_be_bytes(buffer)
}

#[test]
fn peers_are_spread_over_packet_sockets() {
    privileged("workers::peers_are_spread_over_packet_sockets", || {
        let pair = Pair::with(PlaneConfig {
            workers: WORKERS,
            link_devices: vec!["wire".into()],
            ..PlaneConfig::default()
        });
        // One peer after the other, each with an address of its own inside and outside.
        let peers = 101..=132;
        for (i, n) in peers.clone().enumerate() {
            let (inside, outside) = (format!("10.1.0.{n}"), format!("192.0.2.{n}"));
            pair.a.host.address(&format!("{inside}/32"), "lo");
            pair.a.host.address(&format!("{outside}/24"), "wire");
            let spi = 0x1000 + 2 * u32::try_from(i).unwrap();
            let peer = vec![range(&inside, &inside)];
            let mut near = Case::PLAIN.end(1, spi);
            near.outer.local.set_ip(outside.parse().unwrap());
            near.local_ts.clone_from(&peer);
            pair.a.plane.install(near).unwrap();
            let mut far = Case::PLAIN.end(2, spi);
            far.outer.remote.set_ip(outside.parse().unwrap());
            far.remote_ts = peer;
            pair.b.plane.install(far).unwrap();
        }
        let before = worked_before(&pair, "evergate-in");
        for n in peers {
            let near = pair.a.host.udp(&format!("10.1.0.{n}:0"));
            exchange(&near, &pair.b.host.udp("10.2.0.1:0"), 100);
        }
        assert!(busy(&before, &worked(&pair, "evergate-in")) >= 2);
    });
}

#[test]
fn flows_are_spread_and_none_is_reordered() {
    privileged("workers::flows_are_spread_and_none_is_reordered", || {
        for case in [Case::PLAIN, Case::IN_UDP] {
            let pair = several();
            // All flows in one Child SA, of which the smallest window sees every packet that was overtaken by 64 others.
            for (gateway, n) in [(&pair.a, 1), (&pair.b, 2)] {
                let end = ChildSa {
                    replay_window: 64,
                    reservation: 1..1_000_000,
                    ..case.end(n, 0x1000)
                };
                gateway.plane.install(end).unwrap();
            }
            let before = worked_before(&pair, "evergate-out");
            thread::scope(|scope| {
                for flow in 0..FLOWS {
                    let near = pair.a.host.udp(&format!("10.1.0.1:{}", 5000 + flow));
                    let far = pair.b.host.udp(&format!("10.2.0.1:{}", 6000 + flow));
                    near.connect(far.local_addr().unwrap()).unwrap();
                    far.connect(near.local_addr().unwrap()).unwrap();
                    scope.spawn(move || talk(&near, &far));
                }
            });
            assert!(busy(&before, &worked(&pair, "evergate-out")) >= 2);
            for gateway in [&pair.a, &pair.b] {
                let drops = gateway.plane.totals().drops;
                assert_eq!(drops.get(DropReason::Replay), 0, "{case:?}");
            }
        }
    });
}
