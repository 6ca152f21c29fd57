//! A hundred peers on six virtual gateways, and one of three members dies, first
//! one that does not lead and then the one that leads: the gateways of the others
//! see nothing of it, and its own are spread over both.

use anyhow::{Context, ensure};
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, millis, secs, until};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const GATEWAYS: usize = 6;
const PEERS: usize = 100;
/// No gap may be as long as this, stalls of the machine not counted.
const LONGEST: Duration = secs(1);
/// Peers whose traffic runs all the time: two of each gateway.
const WATCHED: usize = 2 * GATEWAYS;

/// The first is the usual one.
fn gateway(n: usize) -> Gateway {
    if n == 0 {
        return Gateway::usual();
    }
    Gateway {
        name: format!("g{}", n + 1),
        outer: vec![format!("{}/24", outer(n))],
        inner: vec![format!("{}/24", inner(n))],
    }
}

fn outer(gateway: usize) -> String {
    match gateway {
        0 => V4.outer(2),
        n => format!("192.0.2.{}", 240 + n),
    }
}

fn inner(gateway: usize) -> String {
    match gateway {
        0 => "10.10.2.1".to_owned(),
        n => format!("10.10.2.{}", 240 + n),
    }
}

/// The gateway of a peer.
fn gateway_of(peer: usize) -> usize {
    peer % GATEWAYS
}

/// What a peer protects, and what is protected for it behind the gateways.
fn protects(peer: usize) -> (String, String) {
    let of = gateway_of(peer);
    (format!("10.20.{of}.{peer}"), format!("10.30.0.{peer}"))
}

/// Every peer has an address, an identity and networks of its own.
fn connection(peer: usize) -> Connection {
    let (near, far) = protects(peer);
    Connection {
        name: format!("p{peer}"),
        local: format!("192.0.2.{}", 101 + peer),
        remote: outer(gateway_of(peer)),
        local_id: format!("p{peer}.test"),
        remote_id: format!("g{}.test", gateway_of(peer) + 1),
        local_ts: vec![format!("{near}/32")],
        remote_ts: vec![format!("{far}/32")],
        ..Connection::peer(1, V4)
    }
}

/// Addresses and routes of the hundred.
fn network(trio: &Trio) -> Result<()> {
    for peer in 0..PEERS {
        let (near, far) = protects(peer);
        let local = connection(peer).local;
        trio.lab
            .ip("peer1", &format!("addr add {local}/24 dev up0"))?;
        trio.lab
            .ip("peer1", &format!("addr add {near}/32 dev lo"))?;
        trio.lab.ip("host", &format!("addr add {far}/32 dev lo"))?;
    }
    for n in 0..GATEWAYS {
        let route = format!("route add 10.20.{n}.0/24 via {}", inner(n));
        trio.lab.ip("host", &route)?;
    }
    for n in 0..MEMBERS {
        let host = evergate_cluster_tests::cluster::host(n);
        trio.lab
            .ip(&host, "route add 10.30.0.0/24 via 10.10.2.10")?;
    }
    Ok(())
}

/// Three members that serve six gateways for a hundred peers, all of them established from one charon.
fn hundred() -> Result<Trio> {
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(gateway).collect();
    let mut trio = Trio::start(Pace::Usual, Esp::InUdp, &gateways, |_| {})?;
    network(&trio)?;
    let connections: Vec<Connection> = (0..PEERS).map(connection).collect();
    let more: String = connections.iter().map(|c| c.mirrored().toml()).collect();
    // The members are to have the hundred from their start on.
    for member in &mut trio.members {
        member.kill9()?;
        let path = member.dir().join("evergate.toml");
        let text = std::fs::read_to_string(&path)? + &more;
        std::fs::write(path, text)?;
    }
    for member in &mut trio.members {
        member.spawn(&[])?;
    }
    trio.all_serve()?;
    trio.peer.load(&connections)?;
    spread(&mut trio, &[2, 2, 2])?;
    let peer = &trio.peer;
    std::thread::scope(|scope| -> Result<()> {
        let part = |from: usize| {
            move || -> Result<()> {
                for n in (from..PEERS).step_by(4) {
                    let name = format!("p{n}");
                    peer.initiate(&name, &name).context(name)?;
                }
                Ok(())
            }
        };
        let parts: Vec<_> = (0..4).map(|n| scope.spawn(part(n))).collect();
        for part in parts {
            part.join().map_err(|_| anyhow::anyhow!("a thread"))??;
        }
        Ok(())
    })?;
    Ok(trio)
}

/// Who serves each gateway, once every one is served and members have so many (in ascending order).
fn spread(trio: &mut Trio, expected: &[usize]) -> Result<Vec<usize>> {
    let mut served = Vec::new();
    until(secs(60), "gateways are spread", || {
        served.clear();
        for n in 0..GATEWAYS {
            served.push(trio.active(&gateway(n).name)?);
        }
        let mut counts = BTreeMap::<usize, usize>::new();
        for member in &served {
            *counts.entry(*member).or_default() += 1;
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable();
        if counts != expected {
            // Asking is what keeps a small machine busy.
            std::thread::sleep(millis(500));
            anyhow::bail!("{served:?}");
        }
        Ok(true)
    })?;
    Ok(served)
}

/// Waits until the members together name the same SAs as the peer, each SA one member only, and returns them.
fn agree(trio: &Trio, running: &BTreeSet<usize>) -> Result<Spis> {
    let mut agreed = Spis::default();
    until(secs(30), "all agree on the SAs", || {
        agreed = Spis::of(&trio.members[*running.first().context("nobody runs")?].sas()?);
        let peer = Spis::of(&trio.peer.sas()?).mirrored();
        let (have, of) = (agreed.child.len(), peer.child.len());
        ensure!(agreed == peer && have == PEERS, "{have} beside {of}");
        Ok(true)
    })?;
    Ok(agreed)
}

fn traffic(trio: &Trio, peer: usize, interval: u64) -> Result<Flow> {
    let (near, far) = protects(peer);
    let ends = (("peer1", near.as_str()), ("host", far.as_str()));
    Flow::start(&trio.lab, ends.0, ends.1, millis(interval), 200)
}

/// The address of a gateway that this frame announces: an ARP message about itself.
fn announced(frame: &[u8]) -> Option<Ipv4Addr> {
    let arp = frame.get(12..14)? == [0x08, 0x06];
    let sender: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    (arp && frame.get(38..42)? == sender).then(|| sender.into())
}

/// Waits until announcements of who has the gateways now are over: they are repeated, the last time 3.5 seconds after the one before.
fn all_announced(trio: &Trio) -> Result<()> {
    const QUIET: u64 = 6_000_000;
    until(secs(60), "the announcements are over", || {
        let frames = trio.capture.so_far()?;
        let mut last = frames.iter().rev();
        let last = last.find(|(_, frame)| announced(frame).is_some());
        Ok(last.is_none_or(|(at, _)| now() > at + QUIET))
    })
}

/// What happened when a member died.
struct Death {
    /// When, and until when nothing else was done (microseconds of Unix time).
    during: std::ops::Range<u64>,
    /// Which gateways it had.
    moved: BTreeSet<usize>,
    /// Which addresses were announced.
    announced: BTreeSet<Ipv4Addr>,
}

/// Kills the member that leads, or another one, under the traffic of some peers of every gateway.
fn one_dies(trio: &mut Trio, leads: bool, spis: &Spis) -> Result<Death> {
    let served = spread(trio, &[2, 2, 2])?;
    all_announced(trio)?;
    let flows = (0..WATCHED)
        .map(|peer| traffic(trio, peer, 20))
        .collect::<Result<Vec<_>>>()?;
    for flow in &flows {
        flow.runs(25, secs(20))?;
    }
    let leader = trio.leader()?;
    let dead = if leads {
        leader
    } else {
        (leader + 1) % MEMBERS
    };
    let killed = now();
    trio.members[dead].kill9()?;
    let after = spread(trio, &[3, 3])?;
    for flow in &flows {
        flow.runs(50, secs(20))?;
    }
    let moved: BTreeSet<usize> = (0..GATEWAYS).filter(|n| served[*n] == dead).collect();
    let (mut longest, mut still) = (Duration::ZERO, Duration::ZERO);
    for (peer, flow) in flows.into_iter().enumerate() {
        let report = flow.stop();
        let gap = report.forth.longest_outage.max(report.back.longest_outage);
        report.has_no_duplicate()?;
        if moved.contains(&gateway_of(peer)) {
            longest = longest.max(gap);
        } else {
            still = still.max(gap);
            report
                .is_lossless()
                .with_context(|| format!("m{} died (leader: {leads}), peer {peer}", dead + 1))?;
        }
    }
    eprintln!(
        "m{} died (leader: {leads}): moved gateways rested for {longest:?}, others for {still:?}",
        dead + 1
    );
    assert!(longest < LONGEST, "{longest:?}");
    for n in (0..GATEWAYS).filter(|n| !moved.contains(n)) {
        assert_eq!(after[n], served[n], "gateway {} moved", n + 1);
    }
    let survivors = (0..MEMBERS).filter(|n| *n != dead).collect();
    assert_eq!(agree(trio, &survivors)?, *spis, "other SAs");
    let during = killed..now();
    let frames = trio.capture.so_far()?;
    let announced = frames
        .iter()
        .filter(|(at, _)| during.contains(at))
        .filter_map(|(_, frame)| announced(frame))
        .collect();
    trio.start_again(dead)?;
    Ok(Death {
        during,
        moved,
        announced,
    })
}

#[test]
fn only_the_dead_members_gateways_move_and_they_are_spread() -> Result<()> {
    let mut trio = hundred()?;
    let all: BTreeSet<usize> = (0..MEMBERS).collect();
    let (spis, established) = (agree(&trio, &all)?, now());
    let mut deaths = Vec::new();
    for leads in [false, true] {
        deaths.push(one_dies(&mut trio, leads, &spis)?);
    }
    spread(&mut trio, &[2, 2, 2])?;
    assert_eq!(agree(&trio, &all)?, spis, "other SAs");
    everyone_has_traffic(&trio)?;
    let found = trio.finish()?;
    assert_eq!(found.authentications_after(established), 0);
    for death in deaths {
        for n in 0..GATEWAYS {
            let address: IpAddr = outer(n).parse()?;
            let IpAddr::V4(v4) = address else { continue };
            let moved = death.moved.contains(&n);
            assert_eq!(death.announced.contains(&v4), moved, "announced: {address}");
            if !moved {
                let anew: Vec<_> = found
                    .times
                    .iter()
                    .filter(|t| death.during.contains(&t.0) && t.1 == address)
                    .collect();
                assert!(anew.is_empty(), "{address} said {anew:?}");
            }
        }
    }
    Ok(())
}

/// Some packets of every peer, both ways.
fn everyone_has_traffic(trio: &Trio) -> Result<()> {
    let peers: Vec<usize> = (0..PEERS).collect();
    for some in peers.chunks(20) {
        let flows = some
            .iter()
            .map(|peer| traffic(trio, *peer, 50))
            .collect::<Result<Vec<_>>>()?;
        for (peer, flow) in some.iter().zip(&flows) {
            flow.runs(5, secs(20))
                .with_context(|| format!("peer {peer}"))?;
        }
    }
    Ok(())
}
