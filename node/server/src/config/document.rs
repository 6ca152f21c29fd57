//! The document as it is written: every key that there is, and its default.

use super::headers::CopyDscp;
use super::marks::{FirewallMark, SetMark};
use super::values::{
    Auth, CrlUri, DpdAction, Named, OcspUri, Outer, PoolRange, Proposals, Remote, Rounds, Text,
};
use evergate_dataplane::PlaneConfig;
use evergate_ike::{
    config::{
        Childless, EnableTcp, Fragmentation, HwOffload, Mark, Mode, RevocationPolicy, SendCert,
        StartAction, Unique,
    },
    identity::{IdPattern, Identity},
    proposal::{EspProposal, IkeProposal},
    secret::Secret,
    selector::SelectorTemplate,
};
use ipnet::IpNet;
use serde::Deserialize;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};
use toml::Spanned;

/// A configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) member: Option<Spanned<Member>>,
    pub(super) cluster: Option<Spanned<Cluster>>,
    pub(super) dataplane: Option<Spanned<Dataplane>>,
    pub(super) limits: Option<Spanned<Limits>>,
    pub(super) retransmit: Option<Spanned<Retransmit>>,
    #[serde(default)]
    pub(super) gateways: Named<Spanned<Gateway>>,
    #[serde(default)]
    pub(super) connections: Named<Spanned<Connection>>,
    #[serde(default)]
    pub(super) secrets: Named<Spanned<SharedSecret>>,
    #[serde(default)]
    pub(super) ppks: Named<Spanned<Ppk>>,
    #[serde(default)]
    pub(super) authorities: Named<Spanned<Authority>>,
    #[serde(default)]
    pub(super) pools: Named<Pool>,
}

/// `[member]`: who this member is and where it keeps its things.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    /// Its name, unique in the cluster.
    pub(crate) name: String,
    /// Directory of its durable state.
    #[serde(default = "state_dir")]
    pub(crate) state_dir: PathBuf,
    /// The cluster key, made by `evergate keygen`.
    #[serde(default = "key_file")]
    pub(crate) key_file: PathBuf,
    /// The socket of the administration API.
    #[serde(default = "admin_socket")]
    pub(crate) admin_socket: PathBuf,
    /// UDP port of IKE.
    #[serde(default = "ike_port")]
    pub(crate) ike_port: u16,
    /// UDP port of IKE and ESP behind NATs.
    #[serde(default = "nat_port")]
    pub(crate) nat_port: u16,
    /// Whether peers are listened for by TCP (RFC 9329).
    #[serde(default)]
    pub(crate) listen_tcp: bool,
    /// On which port.
    #[serde(default = "nat_port")]
    pub(crate) tcp_port: u16,
    /// Workers that serve IKE SAs; one for each core unless given.
    pub(crate) workers: Option<usize>,
    /// Interface of the outer addresses of virtual gateways; the one whose network they are in unless given.
    pub(crate) outer_interface: Option<String>,
    /// Interface of their inner addresses; the one whose network they are in unless given.
    pub(crate) inner_interface: Option<String>,
    /// What fails together with it: gateways are spread over zones.
    #[serde(default)]
    pub(crate) zone: String,
    /// Its share of the virtual gateways, in proportion to that of others.
    #[serde(default = "weight")]
    pub(crate) weight: u32,
}

fn weight() -> u32 {
    evergate_state::Place::USUAL_WEIGHT
}

/// `[cluster]`: the other members, and how they are talked to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    /// Where other members are listened for.
    pub(super) listen: Text<SocketAddr>,
    /// The certificate of the members' authority.
    pub(super) ca: PathBuf,
    /// This member's certificate.
    pub(super) cert: PathBuf,
    /// Its private key.
    pub(super) key: PathBuf,
    /// The members that form the cluster, this one included; the same on each.
    #[serde(default)]
    pub(super) members: Vec<ClusterMember>,
    /// Members of the cluster that this one joins: hosts and ports.
    #[serde(default)]
    pub(super) join: Vec<String>,
    /// The file with the token that it joins with.
    pub(super) join_token_file: Option<PathBuf>,
    /// How long a lease lasts.
    pub(super) lease: Option<Text<Duration>>,
    /// How often it is renewed.
    pub(super) renew: Option<Text<Duration>>,
    /// How often the leader says that it is there.
    pub(super) heartbeat: Option<Text<Duration>>,
    /// The shortest time after which a leader that is not heard is replaced.
    pub(super) election_min: Option<Text<Duration>>,
    /// The longest.
    pub(super) election_max: Option<Text<Duration>>,
}

/// `[[cluster.members]]`: a member of the cluster.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClusterMember {
    /// Its name.
    pub(super) name: String,
    /// Where other members reach it: host and port.
    pub(super) address: String,
}

/// `[gateways.NAME]`: a virtual gateway; replicated with the policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    /// Addresses that peers connect to, with the lengths of their prefixes on the link.
    pub(super) outer: Vec<Text<IpNet>>,
    /// Addresses that the protected network routes to, with the lengths of their prefixes on the link.
    #[serde(default)]
    pub(super) inner: Vec<Text<IpNet>>,
}

/// `[dataplane]`: how packets go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dataplane {
    /// What carries the packets.
    pub(crate) kind: PlaneKind,
    /// Name of the device that protected prefixes are routed to.
    pub(crate) tun: String,
    /// Its MTU in bytes.
    pub(crate) mtu: u16,
    /// Threads in each direction that packets are spread over.
    pub(crate) workers: usize,
    /// Interfaces on which plain ESP goes by packet sockets.
    pub(crate) link_devices: Vec<String>,
    /// Mark of outer packets: those do not take the routes into the tunnel.
    pub(crate) mark: FirewallMark,
    /// Routing table for protected prefixes, and priority of the rule that leads to it.
    pub(crate) route_table: u32,
    /// Whether protected prefixes stay closed when the member stops in an orderly way. They always do when it is killed.
    pub(crate) keep_closed: bool,
}

/// What carries the packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PlaneKind {
    /// This process, between a TUN device and sockets.
    #[default]
    Userspace,
    /// The kernel's IPsec.
    Xfrm,
}

/// `[limits]`: what bounds the load that strangers can cause. Zero switches one of the first three off.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// From so many half-open IKE SAs on, cookies are demanded (RFC 7296 §2.6).
    pub(crate) cookie_threshold: usize,
    /// From so many half-open IKE SAs of one address on, cookies are demanded of it.
    pub(crate) cookie_threshold_ip: usize,
    /// So many half-open IKE SAs may one address have.
    pub(crate) block_threshold: usize,
    /// So many half-open IKE SAs there may be in all.
    pub(crate) half_open: usize,
    /// So long one waits for IKE_AUTH.
    pub(crate) half_open_timeout: Text<Duration>,
    /// So many TCP connections there may be.
    pub(crate) tcp_connections: usize,
    /// So many may one address have.
    pub(crate) tcp_connections_per_address: usize,
}

/// `[retransmit]`: how requests are repeated; replicated with the policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retransmit {
    /// Wait this long before the first repetition.
    pub(super) timeout: Option<Text<Duration>>,
    /// Each wait is so many times the one before.
    pub(super) base: Option<f64>,
    /// Give up after so many repetitions.
    pub(super) tries: Option<u32>,
}

impl Default for Dataplane {
    fn default() -> Self {
        Self {
            kind: PlaneKind::Userspace,
            tun: "evergate0".to_owned(),
            mtu: 1400,
            workers: PlaneConfig::default().workers,
            link_devices: Vec::new(),
            mark: FirewallMark(Mark {
                value: 0xe6,
                mask: u32::MAX,
            }),
            route_table: 220,
            keep_closed: true,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cookie_threshold: 30,
            cookie_threshold_ip: 3,
            block_threshold: 10,
            half_open: 10_000,
            half_open_timeout: Text(Duration::from_secs(30)),
            tcp_connections: 4096,
            tcp_connections_per_address: 64,
        }
    }
}

/// `[connections.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connection {
    #[serde(default)]
    pub(super) local_addrs: Vec<Text<Outer>>,
    #[serde(default)]
    pub(super) remote_addrs: Vec<Text<Remote>>,
    pub(super) remote_port: Option<u16>,
    pub(super) proposals: Option<Spanned<Vec<Text<Proposals<IkeProposal>>>>>,
    #[serde(default)]
    pub(super) encap: bool,
    #[serde(default)]
    pub(super) vips: Vec<Text<IpAddr>>,
    #[serde(default)]
    pub(super) pools: Vec<Spanned<String>>,
    pub(super) rekey_time: Option<Text<Duration>>,
    pub(super) reauth_time: Option<Text<Duration>>,
    pub(super) over_time: Option<Text<Duration>>,
    pub(super) rand_time: Option<Spanned<Text<Duration>>>,
    pub(super) rekey_bytes: Option<u64>,
    pub(super) reauth_bytes: Option<u64>,
    pub(super) over_bytes: Option<u64>,
    pub(super) rand_bytes: Option<Spanned<u64>>,
    pub(super) rekey_packets: Option<u64>,
    pub(super) reauth_packets: Option<u64>,
    pub(super) over_packets: Option<u64>,
    pub(super) rand_packets: Option<Spanned<u64>>,
    pub(super) dpd_delay: Option<Text<Duration>>,
    #[serde(default = "yes")]
    pub(super) message_id_sync: bool,
    pub(super) window_size: Option<Spanned<u8>>,
    pub(super) childless: Option<Text<Childless>>,
    pub(super) unique: Option<Text<Unique>>,
    pub(super) fragmentation: Option<Text<Fragmentation>>,
    pub(super) fragment_size: Option<Spanned<u16>>,
    pub(super) send_cert: Option<Text<SendCert>>,
    #[serde(default = "yes")]
    pub(super) send_certreq: bool,
    pub(super) ppk_id: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) ppk_required: bool,
    #[serde(default)]
    pub(super) keyingtries: u32,
    pub(super) enable_tcp: Option<Text<EnableTcp>>,
    pub(super) tcp_remote_port: Option<Spanned<u16>>,
    #[serde(default = "yes")]
    pub(super) mobike: bool,
    #[serde(default = "yes")]
    pub(super) return_routability: bool,
    #[serde(default)]
    pub(super) local: Rounds<Local>,
    #[serde(default)]
    pub(super) remote: Rounds<RemoteEnd>,
    #[serde(default)]
    pub(super) children: Named<Child>,
}

/// `[connections.NAME.local]`: how we authenticate; several in an array are rounds (RFC 4739).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Local {
    pub(super) auth: Option<Text<Auth>>,
    pub(super) id: Option<Text<Identity>>,
    #[serde(default)]
    pub(super) certs: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) pubkeys: Vec<Spanned<PathBuf>>,
}

/// `[connections.NAME.remote]`: how the peer authenticates, likewise.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoteEnd {
    pub(super) auth: Option<Text<Auth>>,
    pub(super) id: Option<Text<IdPattern>>,
    #[serde(default)]
    pub(super) certs: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) cacerts: Vec<Spanned<PathBuf>>,
    #[serde(default)]
    pub(super) pubkeys: Vec<Spanned<PathBuf>>,
    pub(super) revocation: Option<Text<RevocationPolicy>>,
}

/// `[connections.NAME.children.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Child {
    pub(super) local_ts: Option<Spanned<Vec<Text<SelectorTemplate>>>>,
    pub(super) remote_ts: Option<Spanned<Vec<Text<SelectorTemplate>>>>,
    pub(super) mode: Option<Text<Mode>>,
    pub(super) esp_proposals: Option<Spanned<Vec<Text<Proposals<EspProposal>>>>>,
    pub(super) rekey_time: Option<Text<Duration>>,
    pub(super) life_time: Option<Spanned<Text<Duration>>>,
    pub(super) rand_time: Option<Spanned<Text<Duration>>>,
    pub(super) rekey_bytes: Option<Spanned<u64>>,
    pub(super) life_bytes: Option<Spanned<u64>>,
    pub(super) rand_bytes: Option<Spanned<u64>>,
    pub(super) rekey_packets: Option<Spanned<u64>>,
    pub(super) life_packets: Option<Spanned<u64>>,
    pub(super) rand_packets: Option<Spanned<u64>>,
    pub(super) start_action: Option<Spanned<Text<StartAction>>>,
    pub(super) close_action: Option<Spanned<Text<StartAction>>>,
    pub(super) dpd_action: Option<Spanned<Text<DpdAction>>>,
    pub(super) replay_window: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) copy_dscp: CopyDscp,
    #[serde(default = "yes")]
    pub(super) copy_ecn: bool,
    #[serde(default = "yes")]
    pub(super) copy_df: bool,
    pub(super) mark_in: Option<Spanned<FirewallMark>>,
    pub(super) mark_out: Option<Spanned<FirewallMark>>,
    pub(super) set_mark_in: Option<Spanned<SetMark>>,
    pub(super) set_mark_out: Option<Spanned<SetMark>>,
    pub(super) hw_offload: Option<Spanned<Text<HwOffload>>>,
    pub(super) updown: Option<Spanned<String>>,
}

/// `[secrets.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedSecret {
    #[serde(default)]
    pub(super) ids: Vec<Text<IdPattern>>,
    pub(super) secret: Option<Text<Secret>>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
    pub(super) file: Option<Spanned<PathBuf>>,
}

/// `[ppks.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ppk {
    pub(super) ids: Vec<String>,
    pub(super) secret: Option<Text<Secret>>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
}

/// `[authorities.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Authority {
    pub(super) cacert: Spanned<PathBuf>,
    #[serde(default)]
    pub(super) crl_uris: Vec<Text<CrlUri>>,
    #[serde(default)]
    pub(super) ocsp_uris: Vec<Text<OcspUri>>,
}

/// `[pools.NAME]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    pub(super) addrs: Spanned<Text<PoolRange>>,
    #[serde(default)]
    pub(super) dns: Vec<Text<IpAddr>>,
}

fn state_dir() -> PathBuf {
    "/var/lib/evergate".into()
}

fn key_file() -> PathBuf {
    "/etc/evergate/cluster.key".into()
}

fn admin_socket() -> PathBuf {
    "/run/evergate/admin.sock".into()
}

fn ike_port() -> u16 {
    500
}

fn nat_port() -> u16 {
    4500
}

fn yes() -> bool {
    true
}
