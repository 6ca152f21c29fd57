//! Plain ESP by packet sockets, on interfaces of several kinds. The firewalls of both ends let no ESP through, neither out nor in: what arrives went past IP.

use anyhow::{Context, ensure};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{
    Family, Family::V4, Family::V6, GATEWAY, Lab, PROTECTED, inside,
};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::{Result, millis, secs, until};

/// What is on top of the interface to the wire.
#[derive(Clone, Copy)]
enum Kind {
    Nothing,
    Bridge,
    Macvlan,
    Vlan,
    Bond,
}

/// Gives host number `n` such an interface, `out0`, with its outer addresses.
fn put_on_top(lab: &Lab, host: &str, n: u8, kind: Kind) -> Result<()> {
    let steps: &[&str] = match kind {
        Kind::Nothing => &["link set up0 down", "link set up0 name out0"],
        Kind::Bridge => &[
            "link add out0 type bridge mcast_snooping 0",
            "link set up0 master out0",
        ],
        Kind::Macvlan => &["link add link up0 name out0 type macvlan mode bridge"],
        Kind::Vlan => &["link add link up0 name out0 type vlan id 7"],
        Kind::Bond => &[
            "link add out0 type bond mode active-backup miimon 100",
            "link set up0 down",
            "link set up0 master out0",
            "link set up0 up",
        ],
    };
    lab.ip(host, "addr flush dev up0")?;
    for step in steps {
        lab.ip(host, step)?;
    }
    lab.ip(host, "link set out0 gso_max_segs 1 up")?;
    lab.ip(host, &format!("addr add {}/24 dev out0", V4.outer(n)))?;
    lab.ip(host, &format!("addr add {}/64 dev out0 nodad", V6.outer(n)))
}

/// From now on IP neither takes nor sends ESP there.
fn refuse_esp(lab: &Lab, host: &str) -> Result<()> {
    lab.exec(host, &["nft", "add table inet none"])?;
    for hook in ["input", "output"] {
        let chain =
            format!("add chain inet none {hook} {{ type filter hook {hook} priority 0 ; }}");
        lab.exec(host, &["nft", &chain])?;
        let rule = format!("add rule inet none {hook} meta l4proto esp counter drop");
        lab.exec(host, &["nft", &rule])?;
    }
    Ok(())
}

/// How many packets of ESP have come to IP there.
fn come_to_ip(lab: &Lab, host: &str) -> Result<u64> {
    let text = lab.exec(host, &["nft", "list chain inet none input"])?;
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets").context("a counter")?;
    Ok(words.next().context("its value")?.parse()?)
}

/// Two members with traffic between them, in the order in which they end.
struct Ends {
    members: [Member; 2],
    lab: Lab,
}

impl Ends {
    fn start(outer: Family, kind: Kind, link_devices: &'static str) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        for (host, n) in [("peer1", 1), ("gw", GATEWAY)] {
            put_on_top(&lab, host, n, kind)?;
            refuse_esp(&lab, host)?;
        }
        let mut connection = Connection::peer(1, outer);
        connection.encap = false;
        connection.dataplane = link_devices;
        let gateway = connection.mirrored();
        let member = Member::start(&lab, "gw", &[gateway], &[])?;
        let peer = Member::start(&lab, "peer1", &[connection], &[])?;
        peer.initiate(C1, C1)?;
        let members = [member, peer];
        until(secs(30), "both ends agree on their SAs", || {
            let [member, peer] = [members[0].sas()?, members[1].sas()?].map(|sas| Spis::of(&sas));
            Ok(member == peer.mirrored() && member.child.len() == 1)
        })?;
        Ok(Self { members, lab })
    }

    fn traffic(&self, inner: Family) -> Result<Flow> {
        let index = usize::from(inner == V6);
        let address = &inside(1)[index];
        let ends = (("peer1", address.as_str()), ("host", PROTECTED[index]));
        Flow::start(&self.lab, ends.0, ends.1, millis(5), 1000)
    }

    fn come_to_ip(&self) -> Result<[u64; 2]> {
        let at = |host| come_to_ip(&self.lab, host);
        Ok([at("peer1")?, at("gw")?])
    }

    fn finish(mut self) {
        drop(self.members);
        self.lab.passed();
    }
}

fn carry(outer: Family, kind: Kind) -> Result<()> {
    let ends = Ends::start(outer, kind, "link_devices = [\"out0\"]\n")?;
    for inner in [V4, V6] {
        let flow = ends.traffic(inner)?;
        // Until both know their neighbours, and all ways, packets go by IP.
        flow.runs(20, secs(30))?;
        let begun = flow.elapsed();
        let before = ends.come_to_ip()?;
        flow.runs(200, secs(60))?;
        ensure!(before == ends.come_to_ip()?, "IP is given packets, too");
        let report = flow.stop();
        report.has_no_duplicate()?;
        for way in [&report.forth, &report.back] {
            let later = way.lost_at.iter().filter(|at| **at > begun).count();
            ensure!(later as u64 <= way.dropped_at_ends, "{report:?}");
        }
    }
    ends.finish();
    Ok(())
}

macro_rules! rows {
    ($($(#[$attribute:meta])* $name:ident: $outer:expr, $kind:expr;)*) => {
        $(#[test]
        $(#[$attribute])*
        fn $name() -> Result<()> {
            carry($outer, $kind)
        })*
    };
}

rows! {
    an_interface_of_its_own: V4, Kind::Nothing;
    a_bridge: V4, Kind::Bridge;
    a_bridge_with_ipv6: V6, Kind::Bridge;
    a_macvlan: V6, Kind::Macvlan;
    #[ignore = "needs a kernel with VLANs: runs in cluster-tests/guest"]
    a_vlan: V6, Kind::Vlan;
    #[ignore = "needs a kernel with bonds: runs in cluster-tests/guest"]
    a_bond: V4, Kind::Bond;
}

/// Without packet sockets nothing gets through these firewalls: who sees traffic above has seen packet sockets.
#[test]
fn without_packet_sockets_the_firewalls_refuse_all() -> Result<()> {
    let ends = Ends::start(V4, Kind::Nothing, "")?;
    let flow = ends.traffic(V4)?;
    assert!(flow.runs(1, secs(3)).is_err(), "ESP passes the firewalls");
    for host in ["peer1", "gw"] {
        ends.lab.exec(host, &["nft", "delete table inet none"])?;
    }
    flow.runs(20, secs(20))?;
    drop(flow);
    ends.finish();
    Ok(())
}
