//! Policy: what connections, children and secrets there are, in the vocabulary of swanctl.conf.
//!
//! These are plain values. Reading them from text, with errors that say where, is the server's part; the
//! whole [`Policy`] is replicated as one versioned document.

mod authentication;
mod kernel;
mod rounds;

pub use authentication::*;
pub use kernel::*;
pub use rounds::*;

use crate::{
    identity::{IdPattern, Identity},
    proposal::{EspProposal, IkeProposal},
    record::GatewayId,
    secret::Secret,
    selector::SelectorTemplate,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Everything that is configured about peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Connections, in the order in which they are tried.
    pub connections: Vec<Connection>,
    /// Pre-shared keys.
    pub secrets: Vec<SharedSecret>,
    /// Post-quantum pre-shared keys.
    pub ppks: Vec<Ppk>,
    /// Private keys.
    pub private_keys: Vec<PrivateKey>,
    /// Certification authorities.
    pub authorities: Vec<Authority>,
    /// Pools of virtual addresses.
    pub pools: Vec<Pool>,
    /// How requests are repeated.
    pub retransmit: Retransmit,
    /// Virtual gateways. When there is none, number 0 exists, with whatever addresses its member has.
    pub gateways: Vec<GatewayConfig>,
}

/// A virtual gateway: what one member at a time serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayConfig {
    /// Its number, which SAs are marked with: another number is another gateway.
    pub id: GatewayId,
    /// Its name.
    pub name: String,
    /// Addresses that peers connect to, with the lengths of their prefixes on the link.
    pub outer: Vec<IpNet>,
    /// Addresses that the protected network routes to, with the lengths of their prefixes on the link.
    pub inner: Vec<IpNet>,
}

impl Policy {
    /// The numbers of the virtual gateways that there are.
    pub fn gateway_ids(&self) -> Vec<GatewayId> {
        if self.gateways.is_empty() {
            return vec![GatewayId(0)];
        }
        self.gateways.iter().map(|g| g.id).collect()
    }
}

/// How a request of ours is repeated while it is not answered (RFC 7296 §2.1, §2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retransmit {
    /// Wait this long before the first repetition.
    pub timeout: Duration,
    /// Each wait is this many hundredths of the one before.
    pub growth_percent: u32,
    /// Give the peer up after this many repetitions.
    pub tries: u32,
}

impl Default for Retransmit {
    /// Waits of 2, 3.6, 6.5, 12, 21, 38 and 68 seconds: 151 s in all.
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            growth_percent: 180,
            tries: 6,
        }
    }
}

impl Retransmit {
    /// How long to wait after the request was sent `sent` times (from 1); `None` if it is time to give up.
    pub fn wait(&self, sent: u32) -> Option<Duration> {
        if sent > self.tries + 1 {
            return None;
        }
        let mut wait = self.timeout;
        for _ in 1..sent {
            wait = wait * self.growth_percent / 100;
        }
        Some(wait)
    }

    /// How long a request is repeated until the peer is given up.
    pub fn total(&self) -> Duration {
        (1..).map_while(|sent| self.wait(sent)).sum()
    }
}

/// The longest IP packet that an IKE message makes before it is sent in fragments, unless configured otherwise: what every IPv6 link carries.
pub const FRAGMENT_SIZE: u16 = 1280;

/// A connection: which peers, how they authenticate, which Child SAs they may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Unique name.
    pub name: String,
    /// Our addresses; empty means any. When we initiate, the first single address of the peer's family is used.
    pub local_addrs: Vec<IpNet>,
    /// The peer's addresses; empty means any. When we initiate, single addresses are tried in turn.
    pub remote_addrs: Vec<IpNet>,
    /// Names of the peer, which stand for more addresses to initiate to. With any, peers may come from anywhere.
    pub remote_names: Vec<String>,
    /// The port to initiate to.
    pub remote_port: u16,
    /// Acceptable IKE proposals, in order of preference; never empty.
    pub proposals: Vec<IkeProposal>,
    /// What we call ourselves; our address if not given.
    pub local_id: Option<Identity>,
    /// What the peer may call itself.
    pub remote_id: IdPattern,
    /// How both ends authenticate.
    pub auth: Authentication,
    /// Force UDP encapsulation by pretending that there is a NAT.
    pub encap: bool,
    /// Virtual addresses that we ask for; the unspecified address asks for any.
    pub vips: Vec<IpAddr>,
    /// Names of the pools from which the peer gets virtual addresses.
    pub pools: Vec<String>,
    /// Rekey the IKE SA after this time; zero means never.
    pub rekey_time: Duration,
    /// Authenticate again after this time, with a new IKE SA and its Child SAs before the old ones go; zero means never. Where the peer began the
    /// connection it is told to do so (RFC 4478).
    pub reauth_time: Duration,
    /// Delete the IKE SA this long after it should have been rekeyed, or authenticated again.
    pub over_time: Duration,
    /// Subtract up to this much from these times, at random.
    pub rand_time: Duration,
    /// How many bytes its Child SAs may carry together.
    pub bytes: IkeVolume,
    /// How many packets they may carry together.
    pub packets: IkeVolume,
    /// Check that the peer lives after this much silence; zero means never.
    pub dpd_delay: Duration,
    /// Whether to announce and use Message ID synchronisation (RFC 6311).
    pub message_id_sync: bool,
    /// How many requests the peer may have under way at a time (RFC 7296 §2.3); at least one.
    pub window_size: u8,
    /// How often setting it up is tried in a row, each time at all addresses; zero means without end.
    pub keyingtries: u32,
    /// Whether we set up IKE SAs by TCP (RFC 9329). Peers may, whatever this is, if we listen for them.
    pub enable_tcp: EnableTcp,
    /// Port of the peer for TCP.
    pub tcp_remote_port: u16,
    /// Whether addresses may change during the life of an IKE SA, where the peer agrees (MOBIKE, RFC 4555).
    pub mobike: bool,
    /// Whether Child SAs go to a new address of the peer only after it has answered from there (RFC 4555 §3.7).
    pub return_routability: bool,
    /// Whether IKE SAs are set up without a Child SA.
    pub childless: Childless,
    /// How many IKE SAs a peer may have.
    pub unique: Unique,
    /// Whether long messages are sent in fragments, and taken (RFC 7383).
    pub fragmentation: Fragmentation,
    /// The longest IP packet that a message of ours may make before it is sent in fragments, in bytes.
    pub fragment_size: u16,
    /// The Child SAs that it may have.
    pub children: Vec<ChildConfig>,
}

/// A Child SA of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildConfig {
    /// Name, unique in its connection.
    pub name: String,
    /// Our side's traffic.
    pub local_ts: Vec<SelectorTemplate>,
    /// The peer's side's traffic.
    pub remote_ts: Vec<SelectorTemplate>,
    /// How it carries packets.
    pub mode: Mode,
    /// Acceptable ESP proposals; never empty.
    pub esp_proposals: Vec<EspProposal>,
    /// Rekey after this time; zero means never.
    pub rekey_time: Duration,
    /// Delete after this time; zero means never.
    pub life_time: Duration,
    /// Subtract up to this much from the rekey time, at random.
    pub rand_time: Duration,
    /// How many bytes it may carry in either direction.
    pub bytes: Volume,
    /// How many packets it may carry in either direction.
    pub packets: Volume,
    /// What to do when the configuration is loaded.
    pub start_action: StartAction,
    /// What to do when it was closed, but not by us.
    pub close_action: StartAction,
    /// What to do when its peer is silent.
    pub dpd_action: StartAction,
    /// Size of the anti-replay window in packets.
    pub replay_window: u32,
    /// What crosses between inner and outer headers.
    pub headers: HeaderCopy,
    /// Firewall marks of its packets.
    #[serde(default, skip_serializing_if = "Marks::is_none")]
    pub marks: Marks,
    /// Whether the network card encrypts and decrypts.
    #[serde(default, skip_serializing_if = "HwOffload::is_no")]
    pub hw_offload: HwOffload,
    /// The program that is run when it comes or goes, if any: an absolute path.
    pub updown: Option<String>,
}

/// What crosses between inner and outer headers of a tunnel (RFC 4301 §5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderCopy {
    /// The inner DSCP to the outer header (RFC 2983 §3).
    pub dscp_out: bool,
    /// The outer DSCP to the inner header (RFC 2983 §4).
    pub dscp_in: bool,
    /// ECN, both ways (RFC 6040).
    pub ecn: bool,
    /// DF to the outer header.
    pub df: bool,
}

impl Default for HeaderCopy {
    fn default() -> Self {
        Self {
            dscp_out: true,
            dscp_in: false,
            ecn: true,
            df: true,
        }
    }
}

/// How a Child SA carries packets (RFC 4303 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Whole, with an IP header of their own.
    #[default]
    Tunnel,
    /// Without their IP header, where it is between the two ends themselves and the peer agrees (RFC 7296 §1.3.1); else as a tunnel.
    Transport,
}

/// How much a Child SA may carry; zero means any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Rekey after so much.
    pub rekey: u64,
    /// Delete after so much.
    pub life: u64,
    /// Subtract up to so much from what it is rekeyed after, at random.
    pub rand: u64,
}

/// How much the Child SAs of an IKE SA may carry together, those included that it had before, in both directions; zero means any amount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeVolume {
    /// Rekey the IKE SA after so much since it has its keys: that many bytes one key exchange protects, where those of Child SAs have none of their own.
    pub rekey: u64,
    /// Authenticate again after so much since the last time; a rekey does not prolong it.
    pub reauth: u64,
    /// Delete it so much after it should have been rekeyed, or authenticated again.
    pub over: u64,
    /// Subtract up to so much from these, at random.
    pub rand: u64,
}

/// Whether IKE_AUTH may be without a Child SA, which then comes with a CREATE_CHILD_SA (RFC 6023).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Childless {
    /// The peer may do so.
    #[default]
    Allow,
    /// The peer may, and we do where the peer supports it.
    Prefer,
    /// The peer must, and so do we.
    Force,
    /// Nobody may.
    Never,
}

/// What happens to the IKE SAs that a peer has when it authenticates anew: SAs between the same two identities, of the same virtual gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unique {
    /// They stay, unless the peer says that it has no other (INITIAL_CONTACT, RFC 7296 §2.4).
    #[default]
    No,
    /// They stay, and the new one is refused, unless the peer says that it has no other.
    Keep,
    /// They go.
    Replace,
    /// They stay, whatever the peer says.
    Never,
}

/// Whether we use TCP (RFC 9329 §5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnableTcp {
    /// Never.
    #[default]
    No,
    /// When the peer does not answer by UDP.
    Fallback,
    /// Always, and never UDP.
    Yes,
}

/// Whether IKE messages are fragmented (RFC 7383).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fragmentation {
    /// Long ones are sent in fragments if the peer takes them.
    #[default]
    Yes,
    /// Fragments are taken, but none are sent.
    Accept,
    /// Neither is announced, taken or sent.
    No,
}

/// What to do about a Child SA that is not up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartAction {
    /// Wait for the peer or a command.
    None,
    /// Initiate when there is traffic for it.
    Trap,
    /// Initiate.
    Start,
}

/// A pre-shared key and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedSecret {
    /// Unique name.
    pub name: String,
    /// The identities that it belongs to: with two or more, both ends must match; with one, the peer (or we) must; with none, it is for anyone.
    pub ids: Vec<IdPattern>,
    /// The key.
    pub secret: Secret,
}

/// A pool of virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Unique name.
    pub name: String,
    /// First address.
    pub first: IpAddr,
    /// Last address, of the same family.
    pub last: IpAddr,
    /// DNS servers for the peers.
    pub dns: Vec<IpAddr>,
}

impl Policy {
    /// The connection of this name.
    pub fn connection(&self, name: &str) -> Option<&Connection> {
        self.connections.iter().find(|c| c.name == name)
    }

    /// The connections that are meant for this pair of addresses, in order.
    pub fn candidates(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> impl Iterator<Item = &Connection> {
        self.connections
            .iter()
            .filter(move |c| c.covers(local.ip(), remote.ip()))
    }

    /// The pre-shared key between these identities: the most specific that fits.
    pub fn secret(&self, local: &Identity, remote: &Identity) -> Option<&Secret> {
        self.secrets
            .iter()
            .filter_map(|s| s.fit(local, remote).map(|score| (score, s)))
            .max_by(|(a, _), (b, _)| a.cmp(b))
            .map(|(_, s)| &s.secret)
    }
}

impl Connection {
    /// Whether this pair of outer addresses is one of this connection's.
    pub fn covers(&self, local: IpAddr, remote: IpAddr) -> bool {
        let any =
            |nets: &[IpNet], ip: &IpAddr| nets.is_empty() || nets.iter().any(|n| n.contains(ip));
        let named = !self.remote_names.is_empty();
        any(&self.local_addrs, &local) && (named || any(&self.remote_addrs, &remote))
    }

    /// The child of this name.
    pub fn child(&self, name: &str) -> Option<&ChildConfig> {
        self.children.iter().find(|c| c.name == name)
    }
}

impl SharedSecret {
    /// How well the secret fits a pair of identities: exact matches count more than patterns; `None` if it does not.
    fn fit(&self, local: &Identity, remote: &Identity) -> Option<u32> {
        let score = |id: &Identity| {
            self.ids
                .iter()
                .filter(|p| p.matches(id))
                .map(|p| match p {
                    IdPattern::Exact(_) => 3,
                    IdPattern::FqdnSuffix(_) | IdPattern::EmailDomain(_) | IdPattern::Dn(_) => 2,
                    IdPattern::Any => 1,
                })
                .max()
        };
        match self.ids.len() {
            0 => Some(0),
            1 => score(remote).map(|s| s * 2).or_else(|| score(local)),
            _ => Some(score(local)? + score(remote)? * 2),
        }
    }
}
