//! Virtual addresses, and peers whose requests overlap.

use evergate_cluster_tests::capture::Capture;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{
    Family::{self, V4, V6},
    Lab, PROTECTED,
};
use evergate_cluster_tests::member::{Member, Pool};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::{Result, millis, secs};
use std::collections::BTreeSet;

/// One pool of each family.
pub(crate) fn pools(v4: &str, v6: &str) -> Vec<Pool> {
    let pool = |name: &str, addrs: &str, dns: &str| Pool {
        name: name.into(),
        addrs: addrs.into(),
        dns: vec![dns.into()],
    };
    vec![
        pool("v4", v4, "10.10.2.53"),
        pool("v6", v6, "fd00:10:2::53"),
    ]
}

/// Peer `n` asks for these addresses instead of having its own.
pub(crate) fn roaming(n: u8, asked: &[&str]) -> (Connection, Connection) {
    let mut peer = Connection::peer(n, V4);
    peer.local_ts.clear();
    let mut gateway = peer.mirrored();
    peer.vips = asked.iter().map(|&a| a.to_owned()).collect();
    gateway.pools = vec!["v4".into(), "v6".into()];
    (peer, gateway)
}

fn traffic_from(lab: &Lab, host: &str, address: &str) -> Result<Flow> {
    let family = usize::from(address.contains(':'));
    Flow::start(
        lab,
        (host, address),
        ("host", PROTECTED[family]),
        millis(5),
        200,
    )
}

#[test]
fn virtual_addresses_of_both_families_and_dns() -> Result<()> {
    let mut setup = Setup::new(V4);
    (setup.peer, setup.gateway) = roaming(1, &["0.0.0.0", "::"]);
    setup.pools = pools("10.99.0.0/24", "fd00:99::/112");
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let got = duo.peer.virtual_addresses()?;
    assert_eq!(got.len(), 2, "{got:?}");
    for address in &got {
        assert!(
            address.starts_with("10.99.0.") || address.starts_with("fd00:99::"),
            "{got:?}"
        );
        let flow = traffic_from(&duo.lab, "peer1", address)?;
        flow.runs(50, secs(10))?;
        flow.stop().is_lossless()?;
    }
    assert!(duo.peer.logged("INTERNAL_IP4_DNS")? > 0 && duo.peer.logged("INTERNAL_IP6_DNS")? > 0);
    duo.finish()?;
    Ok(())
}

/// Several peers at one member.
pub(crate) struct Crowd {
    pub(crate) peers: Vec<StrongSwan>,
    pub(crate) member: Member,
    pub(crate) capture: Capture,
    pub(crate) lab: Lab,
}

impl Crowd {
    /// Peers 1, 3, 4, ... with these connections (peer's view, gateway's view).
    pub(crate) fn start(connections: &[(Connection, Connection)], pools: &[Pool]) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        let mut hosts = Vec::new();
        for (peer, _) in connections {
            let n = peer.name.trim_start_matches('c').parse()?;
            hosts.push(lab.add_peer(n)?);
        }
        let capture = Capture::start(&lab)?;
        let gateway: Vec<Connection> = connections.iter().map(|(_, g)| g.clone()).collect();
        let member = Member::start(&lab, "gw", &gateway, pools)?;
        let mut peers = Vec::new();
        for (host, (peer, _)) in hosts.iter().zip(connections) {
            peers.push(StrongSwan::start(
                &lab,
                host,
                Esp::InUdp,
                std::slice::from_ref(peer),
            )?);
        }
        Ok(Self {
            peers,
            member,
            capture,
            lab,
        })
    }

    /// Ends all and judges the wire.
    pub(crate) fn finish(self) -> Result<()> {
        let Self {
            peers,
            member,
            capture,
            mut lab,
        } = self;
        drop((peers, member));
        capture.check(&[])?.verdict()?;
        lab.passed();
        Ok(())
    }
}

#[test]
fn peers_that_ask_for_the_same_address_get_different_ones() -> Result<()> {
    let asked = ["10.99.0.7", "fd00:99::7"];
    let connections = [roaming(1, &asked), roaming(3, &asked)];
    let crowd = Crowd::start(&connections, &pools("10.99.0.0/24", "fd00:99::/112"))?;
    let mut all = BTreeSet::new();
    let mut flows = Vec::new();
    for (peer, host) in crowd.peers.iter().zip(["peer1", "peer3"]) {
        let name = host.replace("peer", "c");
        peer.initiate(&name, &name)?;
        for address in peer.virtual_addresses()? {
            assert!(all.insert(address.clone()), "{address} given twice");
            flows.push(traffic_from(&crowd.lab, host, &address)?);
        }
    }
    assert_eq!(all.len(), 4, "{all:?}");
    for flow in flows {
        flow.runs(50, secs(10))?;
        flow.stop().is_lossless()?;
    }
    crowd.finish()
}

#[test]
fn overlapping_selectors_take_nothing_from_the_narrower_peer() -> Result<()> {
    let one = Connection::peer(1, V4);
    let mut three = Connection::peer(3, V4);
    three.local_ts = vec!["10.10.0.0/16".into()];
    three.remote_ts = vec!["10.10.2.0/24".into()];
    let connections = [
        (one.clone(), one.mirrored()),
        (three.clone(), three.mirrored()),
    ];
    let crowd = Crowd::start(&connections, &[])?;
    crowd.peers[0].initiate("c1", "c1")?;
    let first = flow_of(&crowd.lab, 1, V4)?;
    first.runs(50, secs(10))?;
    crowd.peers[1].initiate("c3", "c3")?;
    let second = flow_of(&crowd.lab, 3, V4)?;
    second.runs(200, secs(10))?;
    second.stop().is_lossless()?;
    first.stop().is_lossless()?;
    crowd.finish()
}

/// Traffic between peer `n`'s own address and the protected host.
pub(crate) fn flow_of(lab: &Lab, n: u8, inner: Family) -> Result<Flow> {
    let index = usize::from(inner == V6);
    let (host, address) = (
        format!("peer{n}"),
        &evergate_cluster_tests::lab::inside(n)[index],
    );
    Flow::start(
        lab,
        (&host, address),
        ("host", PROTECTED[index]),
        millis(5),
        200,
    )
}
