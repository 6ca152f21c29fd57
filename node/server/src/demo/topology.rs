//! Which hosts there are, and what they are called. Pure.
//!
//! ```text
//! office 10.1.0.10 ── lan ── members ── internet 192.0.2.0/24 ── p1 192.0.2.101 ── 10.2.1.10
//!                                                            └── p2 192.0.2.102 ── 10.2.2.10
//! ```

use std::{fmt::Write, net::Ipv4Addr, path::Path};

/// The outer address of the router that every gateway has as its default route. A packet that leaves unprotected goes there, and is seen.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
/// Prefix length of the internet segment.
pub(super) const INTERNET_PREFIX: u8 = 24;
/// The protected host behind the members.
pub(super) const OFFICE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// Prefix length of the network behind the members.
pub(super) const OFFICE_PREFIX: u8 = 16;
/// Prefix length of the network behind a peer.
pub(super) const PEER_PREFIX: u8 = 24;
/// Everything that must never be seen on the internet segment lies in here.
pub(super) const INNER: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 0, 0, 0), 8);
/// What addresses and processor time allow.
pub(super) const MAX_PEERS: u8 = 32;

/// Outer address of the virtual gateway, and the next hop of the office.
const GATEWAY: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 1, 0, 1));

/// All hosts.
#[derive(Clone, Debug)]
pub(super) struct Topology {
    /// The members of the cluster.
    pub(super) members: Vec<Site>,
    /// Its peers.
    pub(super) peers: Vec<Site>,
}

/// A gateway between a protected network and the internet segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Its name.
    pub(super) name: String,
    /// Its address on the internet segment.
    pub(super) outer: Ipv4Addr,
    /// Its address in the protected network, the next hop of the host there.
    pub(super) inner: Ipv4Addr,
    /// The host that it protects.
    pub(super) host: Ipv4Addr,
    /// Prefix length of the protected network.
    pub(super) prefix: u8,
}

/// What both ends of a connection are configured with.
#[derive(Clone, Debug)]
pub(super) struct Agreement {
    /// UDP encapsulation, although there is no NAT.
    pub(super) encap: bool,
    /// The pre-shared key of each peer, as hexadecimal digits.
    pub(super) secrets: Vec<String>,
}

impl Topology {
    /// One member and so many peers.
    pub(super) fn new(peers: u8) -> Self {
        let member = Site {
            name: "m1".to_owned(),
            outer: GATEWAY.0,
            inner: GATEWAY.1,
            host: OFFICE,
            prefix: OFFICE_PREFIX,
        };
        let peer = |n: u8| Site {
            name: format!("p{n}"),
            outer: Ipv4Addr::new(192, 0, 2, 100 + n),
            inner: Ipv4Addr::new(10, 2, n, 1),
            host: Ipv4Addr::new(10, 2, n, 10),
            prefix: PEER_PREFIX,
        };
        Self {
            members: vec![member],
            peers: (1..=peers.min(MAX_PEERS)).map(peer).collect(),
        }
    }

    /// The configuration file of a member that keeps its things in `dir`.
    pub(super) fn member_config(&self, member: &Site, agreement: &Agreement, dir: &Path) -> String {
        let mut text = local_part(&member.name, dir);
        for (peer, secret) in self.peers.iter().zip(&agreement.secrets) {
            let connection = Connection {
                name: &peer.name,
                local: (GATEWAY.0, "gateway.demo", &network(OFFICE, OFFICE_PREFIX)),
                remote: (peer.outer, &id(peer), &network(peer.host, peer.prefix)),
                start: false,
            };
            connection.write(&mut text, agreement.encap, secret);
        }
        text
    }

    /// The configuration file of a peer that keeps its things in `dir`; it initiates.
    pub(super) fn peer_config(&self, index: usize, agreement: &Agreement, dir: &Path) -> String {
        let peer = &self.peers[index];
        let mut text = local_part(&peer.name, dir);
        let connection = Connection {
            name: "cluster",
            local: (peer.outer, &id(peer), &network(peer.host, peer.prefix)),
            remote: (GATEWAY.0, "gateway.demo", &network(OFFICE, OFFICE_PREFIX)),
            start: true,
        };
        connection.write(&mut text, agreement.encap, &agreement.secrets[index]);
        text
    }
}

/// One end: address, identity, protected network.
type End<'a> = (Ipv4Addr, &'a str, &'a str);

struct Connection<'a> {
    name: &'a str,
    local: End<'a>,
    remote: End<'a>,
    start: bool,
}

impl Connection<'_> {
    fn write(&self, text: &mut String, encap: bool, secret: &str) {
        let Self { name, .. } = self;
        let (local, local_id, local_ts) = self.local;
        let (remote, remote_id, remote_ts) = self.remote;
        let action = if self.start { "start" } else { "none" };
        let _ = write!(
            text,
            r#"
[connections.{name}]
local_addrs = ["{local}"]
remote_addrs = ["{remote}"]
encap = {encap}
local = {{ auth = "psk", id = "{local_id}" }}
remote = {{ auth = "psk", id = "{remote_id}" }}
[connections.{name}.children.net]
local_ts = ["{local_ts}"]
remote_ts = ["{remote_ts}"]
start_action = "{action}"
[secrets.{name}]
ids = ["{local_id}", "{remote_id}"]
secret = "0x{secret}"
"#
        );
    }
}

fn local_part(name: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[member]\nname = \"{name}\"\nstate_dir = \"{dir}/state\"\nkey_file = \"{dir}/cluster.key\"\nadmin_socket = \"{dir}/admin.sock\"\nworkers = 1\n"
    )
}

fn id(peer: &Site) -> String {
    format!("{}.demo", peer.name)
}

fn network(host: Ipv4Addr, prefix: u8) -> String {
    let net = ipnet::Ipv4Net::new_assert(host, prefix);
    net.trunc().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::collections::HashSet;

    fn agreement(peers: u8) -> Agreement {
        Agreement {
            encap: true,
            secrets: (0..peers).map(|n| format!("{n:064x}")).collect(),
        }
    }

    #[test]
    fn what_is_written_is_a_good_configuration() {
        let (topology, agreement) = (Topology::new(2), agreement(2));
        let dir = Path::new("/run/x");
        let member = topology.member_config(&topology.members[0], &agreement, dir);
        let member = config::parse(&member, dir).unwrap();
        assert!(member.warnings.is_empty(), "{:?}", member.warnings);
        assert_eq!(member.policy.connections.len(), 2);
        assert!(member.policy.connections.iter().all(|c| c.encap));
        let peer = config::parse(&topology.peer_config(1, &agreement, dir), dir).unwrap();
        assert!(peer.warnings.is_empty(), "{:?}", peer.warnings);
        let theirs = &peer.policy.connections[0];
        let ours = &member.policy.connections[1];
        assert_eq!(theirs.children[0].local_ts, ours.children[0].remote_ts);
        assert_eq!(theirs.children[0].remote_ts, ours.children[0].local_ts);
        assert_ne!(
            theirs.children[0].start_action,
            ours.children[0].start_action
        );
    }

    #[test]
    fn no_address_is_given_twice() {
        let all = Topology::new(MAX_PEERS);
        let mut seen = HashSet::from([ROUTER]);
        for site in all.members.iter().chain(&all.peers) {
            for address in [site.outer, site.inner, site.host] {
                assert!(seen.insert(address), "{address}");
            }
        }
        assert_eq!(all.peers.len(), usize::from(MAX_PEERS));
    }
}
