//! Which hosts there are, and what they are called. Pure.
//!
//! ```text
//!                        ┌ m1 ┐
//! office 10.1.0.10 ─ lan ┼ m2 ┼ internet 192.0.2.0/24 ┬ p1 192.0.2.101 ─ 10.2.1.10
//!                        └ m3 ┘                       └ p2 192.0.2.102 ─ 10.2.2.10
//! ```
//!
//! The members are connected to each other by a network of their own, too. 192.0.2.1 and 10.1.0.1 are the addresses of the virtual gateway;
//! a member that is alone has them for good.

use super::network::{INNER_DEVICE, OUTER_DEVICE};
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
/// More than that show nothing more.
pub(super) const MAX_MEMBERS: u8 = 7;
/// Prefix length of the network between members.
pub(super) const CLUSTER_PREFIX: u8 = 24;
/// In the directory of all files, where those are that all members have.
pub(super) const CLUSTER_DIR: &str = "cluster";
/// The cluster key.
pub(super) const KEY_FILE: &str = "cluster.key";
/// The name of a gateway's state directory in its own.
pub(super) const STATE_DIR: &str = "state";

/// Where members listen for each other.
const CLUSTER_PORT: u16 = 4510;

/// Outer address of the virtual gateway, and the next hop of the office.
pub(super) const GATEWAY: (Ipv4Addr, Ipv4Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 1, 0, 1));

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
    /// Its address in the network between members, if there are others.
    pub(super) cluster: Option<Ipv4Addr>,
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
    /// So many members and peers.
    pub(super) fn new(members: u8, peers: u8) -> Self {
        let alone = members == 1;
        let member = |n: u8| Site {
            name: format!("m{n}"),
            outer: if alone {
                GATEWAY.0
            } else {
                Ipv4Addr::new(192, 0, 2, 10 + n)
            },
            inner: if alone {
                GATEWAY.1
            } else {
                Ipv4Addr::new(10, 1, 1, n)
            },
            host: OFFICE,
            prefix: OFFICE_PREFIX,
            cluster: (!alone).then(|| Ipv4Addr::new(198, 51, 100, n)),
        };
        let peer = |n: u8| Site {
            name: format!("p{n}"),
            outer: Ipv4Addr::new(192, 0, 2, 100 + n),
            inner: Ipv4Addr::new(10, 2, n, 1),
            host: Ipv4Addr::new(10, 2, n, 10),
            prefix: PEER_PREFIX,
            cluster: None,
        };
        Self {
            members: (1..=members.min(MAX_MEMBERS)).map(member).collect(),
            peers: (1..=peers.min(MAX_PEERS)).map(peer).collect(),
        }
    }

    /// Whether there is a cluster of several members.
    pub(super) fn is_cluster(&self) -> bool {
        self.members.len() > 1
    }

    /// The configuration file of a member. All files are in `root`.
    pub(super) fn member_config(
        &self,
        member: &Site,
        agreement: &Agreement,
        root: &Path,
    ) -> String {
        let shared = root.join(CLUSTER_DIR);
        let mut text = local_part(&member.name, root, &shared);
        if self.is_cluster() {
            self.write_cluster(&mut text, member, &shared);
        }
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

    /// What only members of a cluster have. It follows the table of the member.
    fn write_cluster(&self, text: &mut String, member: &Site, shared: &Path) {
        let endpoint = |site: &Site| {
            let address = site.cluster.unwrap_or(Ipv4Addr::UNSPECIFIED);
            format!("{address}:{CLUSTER_PORT}")
        };
        let others = self.members.iter();
        let members: Vec<String> = others
            .map(|m| format!("{{ name = \"{}\", address = \"{}\" }}", m.name, endpoint(m)))
            .collect();
        let _ = write!(
            text,
            r#"outer_interface = "{OUTER_DEVICE}"
inner_interface = "{INNER_DEVICE}"

[cluster]
listen = "{listen}"
ca = "{shared}/ca.pem"
cert = "{shared}/{name}.pem"
key = "{shared}/{name}.key"
members = [{members}]

[gateways.gateway]
outer = ["{outer}/{INTERNET_PREFIX}"]
inner = ["{inner}/{OFFICE_PREFIX}"]
"#,
            listen = endpoint(member),
            shared = shared.display(),
            name = member.name,
            members = members.join(", "),
            outer = GATEWAY.0,
            inner = GATEWAY.1,
        );
    }

    /// The configuration file of a peer, which initiates. All files are in `root`.
    pub(super) fn peer_config(&self, index: usize, agreement: &Agreement, root: &Path) -> String {
        let peer = &self.peers[index];
        let mut text = local_part(&peer.name, root, &root.join(&peer.name));
        let connection = Connection {
            name: "cluster",
            local: (peer.outer, &id(peer), &network(peer.host, peer.prefix)),
            remote: (GATEWAY.0, "gateway.demo", &network(OFFICE, OFFICE_PREFIX)),
            start: true,
        };
        connection.write(&mut text, agreement.encap, &agreement.secrets[index]);
        text
    }

    /// The same for strongSwan: its swanctl.conf. The algorithms are AEADs, whose IVs the checker finds on the wire.
    pub(super) fn swanctl_config(&self, index: usize, agreement: &Agreement) -> String {
        let peer = &self.peers[index];
        format!(
            r"connections {{
  cluster {{
    version = 2
    mobike = no
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes256gcm16-prfsha384-x25519
    encap = yes
    keyingtries = 0
    rekey_time = 0s
    local {{
      auth = psk
      id = {id}
    }}
    remote {{
      auth = psk
      id = gateway.demo
    }}
    children {{
      net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = aes256gcm16
        rekey_time = 0s
        start_action = start
      }}
    }}
  }}
}}
secrets {{
  ike-cluster {{
    id-1 = {id}
    id-2 = gateway.demo
    secret = 0x{secret}
  }}
}}
",
            local = peer.outer,
            remote = GATEWAY.0,
            id = id(peer),
            local_ts = network(peer.host, peer.prefix),
            remote_ts = network(OFFICE, OFFICE_PREFIX),
            secret = agreement.secrets[index],
        )
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

/// Where a gateway keeps its things. It has the cluster key that is in `key_dir`.
fn local_part(name: &str, root: &Path, key_dir: &Path) -> String {
    let (dir, key_dir) = (root.join(name), key_dir.display());
    let dir = dir.display();
    format!(
        "[member]\nname = \"{name}\"\nstate_dir = \"{dir}/{STATE_DIR}\"\nkey_file = \"{key_dir}/{KEY_FILE}\"\nadmin_socket = \"{dir}/admin.sock\"\nworkers = 1\n"
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
        let root = Path::new("/run/x");
        let agreement = agreement(2);
        for members in [1, 3] {
            let topology = Topology::new(members, 2);
            let member = topology.member_config(&topology.members[0], &agreement, root);
            let member = config::parse(&member, root).unwrap();
            assert!(member.warnings.is_empty(), "{:?}", member.warnings);
            assert_eq!(member.policy.connections.len(), 2);
            assert!(member.policy.connections.iter().all(|c| c.encap));
            let gateways = usize::from(members > 1);
            assert_eq!(member.policy.gateways.len(), gateways);
            let peer = config::parse(&topology.peer_config(1, &agreement, root), root).unwrap();
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
    }

    #[test]
    fn members_differ_only_in_what_is_their_own() {
        let topology = Topology::new(3, 1);
        let config = |member| {
            let root = Path::new("/run/x");
            let text = topology.member_config(member, &agreement(1), root);
            config::parse(&text, root).unwrap()
        };
        let all: Vec<_> = topology.members.iter().map(config).collect();
        for pair in all.windows(2) {
            assert_eq!(pair[0].policy, pair[1].policy);
            let [a, b] = [&pair[0], &pair[1]].map(|c| c.member.as_ref().unwrap());
            assert_eq!(a.key_file, b.key_file);
            assert_ne!(a.state_dir, b.state_dir);
        }
    }

    #[test]
    fn no_address_is_given_twice() {
        for members in [1, MAX_MEMBERS] {
            let all = Topology::new(members, MAX_PEERS);
            let mut seen = HashSet::from([ROUTER, OFFICE]);
            if all.is_cluster() {
                seen.extend([GATEWAY.0, GATEWAY.1]);
            }
            for site in all.members.iter().chain(&all.peers) {
                for address in [site.outer, site.inner].into_iter().chain(site.cluster) {
                    assert!(seen.insert(address), "{address}");
                }
            }
            for peer in &all.peers {
                assert!(seen.insert(peer.host));
            }
            assert_eq!(all.members.len(), usize::from(members));
            assert_eq!(all.peers.len(), usize::from(MAX_PEERS));
        }
    }
}
