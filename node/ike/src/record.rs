//! The record of an IKE SA: all that another member needs to go on with it.
//!
//! A record is plain data. It changes only by steps ([`crate::sa`]), and a change counts only once it is
//! committed. What a successor does not need (retransmission counts, when the peer was last heard,
//! how many messages were sealed) is in the SA's session instead and never here.

mod mobike;
mod outbound;
mod succession;
mod window;

pub use mobike::{Mobike, MobikePurpose, MobikeRequest};
pub use outbound::{MAX_UNDER_WAY, OutboundWindow, Scope};
pub use succession::Succession;
pub use window::{Answered, InboundWindow};

use crate::{
    crypto::{EspSuite, IkeKeys, IkeSuite, KeyPair},
    env::UnixMillis,
    identity::Identity,
    secret::Secret,
    wire::TrafficSelector,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// An IKE SA, named by the SPI that we chose for it: unique in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SaId(pub u64);

impl fmt::Debug for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A virtual gateway.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct GatewayId(pub u32);

/// Which end of the IKE SA we are: fixes the direction of keys and the I flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// We sent its first message.
    Initiator,
    /// The peer did.
    Responder,
}

/// What carries the messages of an IKE SA and the packets of its Child SAs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Transport {
    /// IKE in UDP; ESP in UDP, or right on IP.
    #[default]
    Udp,
    /// Both in one TCP connection (RFC 9329), of which we are this end. It is not part of the state: who takes an SA over has none, and its
    /// originator makes another.
    Tcp(TcpEnd),
}

/// An end of a TCP connection. Rekeys do not change it (RFC 9329 §1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TcpEnd {
    /// It makes the connection, and makes it again when it breaks. Its port in the record is the one that it would like to have: it may get another.
    Originator,
    /// It waits for connections.
    Responder,
}

impl Transport {
    /// Whether it is TCP.
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// Where messages go, and what is known of NATs between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// By what.
    pub transport: Transport,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// A NAT is in front of us.
    pub nat_local: bool,
    /// A NAT is in front of the peer.
    pub nat_remote: bool,
}

impl Path {
    /// Whether ESP is encapsulated in UDP (RFC 7296 §2.23).
    pub fn encapsulated(&self) -> bool {
        self.transport == Transport::Udp && (self.nat_local || self.nat_remote)
    }

    /// Whether a mapping of a NAT in front of us has to be kept open by keepalives; those of TCP last longer (RFC 9329 §6.6).
    pub fn wants_keepalives(&self) -> bool {
        self.transport == Transport::Udp && self.nat_local
    }
}

/// The replicated state of one IKE SA with its Child SAs. There may be a hundred thousand: what few of them have stands in boxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name, and our SPI.
    pub id: SaId,
    /// The virtual gateway that it belongs to.
    pub gateway: GatewayId,
    /// Grows by one with every committed change.
    pub revision: u64,
    /// Which end we are.
    pub role: Role,
    /// The peer's SPI; zero while not known.
    pub remote_spi: u64,
    /// Name of the connection; a guess by addresses until the peer has authenticated.
    pub connection: String,
    /// Addresses.
    pub path: Path,
    /// Whether both ends take messages in fragments (RFC 7383).
    pub fragmentation: bool,
    /// When it was created.
    pub created: UnixMillis,
    /// The peer's requests.
    pub inbound: InboundWindow,
    /// Our requests.
    pub outbound: OutboundWindow,
    /// The IKE SA whose place this one takes by a new authentication, until that is done.
    pub succeeds: Option<Box<Succession>>,
    /// How far it is.
    pub phase: Phase,
}

/// A message of ours as it was sent: one datagram, or its fragments in their order (RFC 7383). Repeating it is sending all of them again.
pub type Datagrams = Vec<Vec<u8>>;

/// A request of our own, as it was first sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRequest {
    /// Its Message ID.
    pub id: u32,
    /// The whole message; a successor sends the same bytes.
    pub datagrams: Datagrams,
    /// What it is for.
    pub task: Task,
    /// Child SAs, by the peer's SPIs, that the peer has deleted since and that we do not know: the response, which may still be on its way, may tell of
    /// one of them.
    pub deleted: Vec<u32>,
}

/// What a request of ours is for, with all that is needed to use the response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// IKE_SA_INIT or IKE_AUTH: the phase has the rest.
    Connect,
    /// An empty INFORMATIONAL: liveness, or the probe after a takeover.
    Liveness,
    /// CREATE_CHILD_SA for a new Child SA, or one that replaces another.
    CreateChild(ChildOffer),
    /// CREATE_CHILD_SA for a new IKE SA that replaces this one.
    RekeyIke(IkeOffer),
    /// IKE_FOLLOWUP_KE: a CREATE_CHILD_SA goes on with an additional key exchange, for which this is our key pair.
    FollowUp(Box<FollowUp>, KeyPair),
    /// Deletes Child SAs, named by our inbound SPIs.
    DeleteChildren(Vec<u32>),
    /// Deletes this IKE SA.
    DeleteIke,
    /// Tells or asks something about addresses (RFC 4555).
    Mobike(MobikeRequest),
    /// Asks who began this IKE SA to authenticate again (RFC 4478 §2).
    AskToReauthenticate,
}

/// What we offered for a Child SA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildOffer {
    /// Name in the configuration.
    pub name: String,
    /// Our inbound SPI.
    pub spi_in: u32,
    /// Our nonce; in IKE_AUTH that of IKE_SA_INIT.
    pub nonce: Vec<u8>,
    /// Our key pair, if a key exchange is offered.
    pub key: Option<KeyPair>,
    /// Our side's traffic, as offered.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side's traffic, as offered.
    pub remote_ts: Vec<TrafficSelector>,
    /// Whether transport mode was asked for.
    pub transport: bool,
    /// Our inbound SPI of the Child SA that is to be replaced.
    pub replaces: Option<u32>,
}

/// What we offered for a new IKE SA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeOffer {
    /// The new SA's name, and our SPI.
    pub id: SaId,
    /// Our nonce.
    pub nonce: Vec<u8>,
    /// Our key pair.
    pub key: KeyPair,
}

/// How far an IKE SA is. Each variant has just what is valid there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// We sent IKE_SA_INIT.
    InitSent(Box<InitSent>),
    /// We answered IKE_SA_INIT and wait for IKE_AUTH.
    HalfOpen(Box<HalfOpen>),
    /// We sent IKE_INTERMEDIATE.
    Intermediate(Box<Intermediate>),
    /// We sent IKE_AUTH.
    AuthSent(Box<AuthSent>),
    /// Both ends are authenticated.
    Established(Box<Established>),
    /// Gone, but its last response may be asked for again.
    Closed(Box<Closed>),
}

/// We sent IKE_SA_INIT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitSent {
    /// The child to set up with the SA, by name.
    pub child: String,
    /// Where else the peer may be, if it does not answer: from which address of ours to which of its own.
    pub others: Vec<(IpAddr, IpAddr)>,
    /// Where it did not answer: there it is tried by TCP, if the connection is for that (RFC 9329 §5.1).
    pub silent: Vec<(IpAddr, IpAddr)>,
    /// Our key pair.
    pub key: KeyPair,
    /// Our nonce.
    pub nonce: Vec<u8>,
    /// We have no other IKE SA with this peer, and will say so (RFC 7296 §2.4).
    pub initial_contact: bool,
    /// The cookie that the responder asked us to return.
    pub cookie: Option<Vec<u8>>,
    /// How often the request was made anew (cookie or other group); bounded.
    pub restarts: u8,
}

/// What IKE_SA_INIT yielded, until both ends are authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The suite.
    pub suite: IkeSuite,
    /// The keys.
    pub keys: IkeKeys,
    /// The initiator's nonce.
    pub nonce_i: Vec<u8>,
    /// The responder's nonce.
    pub nonce_r: Vec<u8>,
    /// The IKE_SA_INIT request, whole: AUTH covers it.
    pub init_request: Vec<u8>,
    /// The IKE_SA_INIT response, whole: AUTH covers it.
    pub init_response: Vec<u8>,
    /// The additional key exchanges so far.
    pub intermediates: Intermediates,
}

/// The IKE_INTERMEDIATE exchanges so far, one for each additional key exchange (RFC 9242, RFC 9370).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediates {
    /// How many are done.
    pub done: u32,
    /// What AUTH will cover of the initiator's messages (IntAuth_i, RFC 9242 §3.3.2).
    pub auth_i: Secret,
    /// What AUTH will cover of the responder's messages (IntAuth_r).
    pub auth_r: Secret,
    /// The keys before the last one: its request is protected with them when it is repeated.
    pub previous: Option<IkeKeys>,
}

/// We sent IKE_INTERMEDIATE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediate {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What IKE_AUTH will ask for.
    pub intent: Intent,
    /// Our key pair.
    pub key: KeyPair,
}

/// What IKE_AUTH will ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The child to set up with the SA, by name.
    pub child: String,
    /// Whether to say that this is our only IKE SA with the peer (INITIAL_CONTACT).
    pub alone: bool,
    /// Whether to do without a Child SA (RFC 6023).
    pub childless: bool,
}

/// A CREATE_CHILD_SA with additional key exchanges that is not finished (RFC 9370 §2.2.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowUp {
    /// What names it on the wire, chosen by the responder; empty at the initiator.
    pub link: Vec<u8>,
    /// What it will make.
    pub goal: Goal,
    /// The secrets of the exchanges that are done, in their order; never empty.
    pub secrets: Vec<Secret>,
    /// When a responder forgets it.
    pub expires_at: UnixMillis,
}

/// What a CREATE_CHILD_SA agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// A Child SA.
    Child(ChildGoal),
    /// An IKE SA that replaces the one that it belongs to.
    Ike(IkeGoal),
}

/// A Child SA that both ends agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildGoal {
    /// Name in the configuration.
    pub name: String,
    /// The suite.
    pub suite: EspSuite,
    /// Our SPI.
    pub spi_in: u32,
    /// The peer's SPI.
    pub spi_out: u32,
    /// How it will carry packets.
    pub mode: Mode,
    /// Our side's traffic.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side's traffic.
    pub remote_ts: Vec<TrafficSelector>,
    /// The nonce of the exchange's initiator.
    pub nonce_i: Vec<u8>,
    /// The nonce of its responder.
    pub nonce_r: Vec<u8>,
    /// Our inbound SPI of the Child SA that is to be replaced.
    pub replaces: Option<u32>,
}

/// An IKE SA that both ends agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeGoal {
    /// Its name, and our SPI.
    pub id: SaId,
    /// The peer's SPI.
    pub remote_spi: u64,
    /// The suite.
    pub suite: IkeSuite,
    /// The nonce of the exchange's initiator.
    pub nonce_i: Vec<u8>,
    /// The nonce of its responder.
    pub nonce_r: Vec<u8>,
}

/// We answered IKE_SA_INIT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfOpen {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What the peer has shown so far, and we.
    pub rounds: Rounds,
    /// When to forget it.
    pub expires_at: UnixMillis,
}

/// How far authentication is that has several rounds (RFC 4739): one for each IKE_AUTH, in which each end authenticates that has not finished.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// Exchanges that are done.
    pub done: u32,
    /// Whether we have said that we authenticate again.
    pub ours_follow: bool,
    /// Whether the peer has said so.
    pub theirs_follow: bool,
    /// What the peer called itself last; none before the first exchange.
    pub remote_id: Option<Identity>,
    /// At a responder: what the first request asks for, which is granted after the last; type of the first payload, and the chain.
    pub request: (u8, Vec<u8>),
}

/// We sent IKE_AUTH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthSent {
    /// What was negotiated.
    pub negotiated: Negotiated,
    /// What we called ourselves.
    pub local_id: Identity,
    /// What we have shown so far, and the peer.
    pub rounds: Rounds,
    /// We have no other IKE SA with this peer, and say so.
    pub initial_contact: bool,
    /// The child is asked for once the IKE SA is there (RFC 6023), not with it.
    pub childless: bool,
    /// The child that we asked for with it.
    pub child: ChildOffer,
}

/// An IKE SA that both ends have authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Established {
    /// The suite.
    pub suite: IkeSuite,
    /// The keys.
    pub keys: IkeKeys,
    /// What we called ourselves.
    pub local_id: Identity,
    /// What the peer called itself.
    pub remote_id: Identity,
    /// The peer said, when it authenticated, that it has no other IKE SA with us (RFC 7296 §2.4).
    pub initial_contact: bool,
    /// When both ends were authenticated; an IKE rekey does not change it.
    pub authenticated: UnixMillis,
    /// Whether we began the first IKE SA of this series: then authenticating again is ours to begin (RFC 4478 §2). A rekey does not change it.
    pub initiated: bool,
    /// When to authenticate again, if ever and if that is ours to begin; else, once the peer was asked to, when it may be asked again.
    pub reauth_at: Option<UnixMillis>,
    /// The IKE SA of ours that is to take the place of this one once it is authenticated ([`Record::succeeds`] is its side of it).
    pub successor: Option<SaId>,
    /// When to rekey it, if ever.
    pub rekey_at: Option<UnixMillis>,
    /// When to delete it, if ever.
    pub expires_at: Option<UnixMillis>,
    /// Virtual addresses that the peer has from our pools.
    pub peer_vips: Vec<IpAddr>,
    /// Virtual addresses and DNS servers that we have from the peer.
    pub our_vips: Vec<IpAddr>,
    /// Whether both ends support Message ID synchronisation (RFC 6311).
    pub message_id_sync: bool,
    /// Our synchronisation request that is not answered yet.
    pub sync_request: Option<Box<SyncRequest>>,
    /// The last synchronisation request of the peer, a cluster, and our answer.
    pub sync_answer: Option<Box<SyncAnswer>>,
    /// Addresses that may change, if both ends support MOBIKE (RFC 4555).
    pub mobike: Option<Box<Mobike>>,
    /// Its Child SAs.
    pub children: Vec<Child>,
    /// Each CREATE_CHILD_SA of the peer that waits for IKE_FOLLOWUP_KE: the newest, and no more than the peer may have requests under way.
    pub follow_ups: Vec<FollowUp>,
    /// The IKE SA that the peer made by a rekey while one of our own was under way (RFC 7296 §2.8.2): it waits here, complete, until it is
    /// clear which of the two remains.
    pub rival: Option<Box<Rival>>,
    /// The IKE SA that replaced this one. Only deletion is left to do then.
    pub replaced_by: Option<SaId>,
}

/// A Message ID synchronisation that we asked for (RFC 6311 §5.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// Its nonce, which the answer returns.
    pub nonce: [u8; 4],
    /// The Message ID that it announced; the next one must announce a higher one.
    pub send: u32,
    /// The whole message.
    pub datagram: Vec<u8>,
}

/// A Message ID synchronisation that the peer asked for, and our answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncAnswer {
    /// Its nonce.
    pub nonce: [u8; 4],
    /// The Message ID that it announced.
    pub send: u32,
    /// Our answer, whole.
    pub datagram: Vec<u8>,
}

/// See [`Established::rival`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// The peer's new IKE SA, without Child SAs.
    pub record: Record,
    /// The lower one of its two nonces.
    pub lowest_nonce: Vec<u8>,
}

/// A Child SA: a pair of ESP SAs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Name in the configuration.
    pub name: String,
    /// Our SPI: of packets to us. Unique in the cluster.
    pub spi_in: u32,
    /// The peer's SPI: of packets to the peer.
    pub spi_out: u32,
    /// The suite.
    pub suite: EspSuite,
    /// Key and salt for packets to us.
    pub key_in: Secret,
    /// Key and salt for packets to the peer.
    pub key_out: Secret,
    /// How it carries packets.
    pub mode: Mode,
    /// Our side's traffic.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side's traffic.
    pub remote_ts: Vec<TrafficSelector>,
    /// When it was made.
    pub created: UnixMillis,
    /// When to rekey it, if ever.
    pub rekey_at: Option<UnixMillis>,
    /// When to delete it, if ever.
    pub expires_at: Option<UnixMillis>,
    /// Whether we initiated the exchange that made it.
    pub initiated: bool,
    /// The lower one of the two nonces that made it (RFC 7296 §2.8.1), if it was made to replace another: nothing else can have a rival.
    pub lowest_nonce: Vec<u8>,
    /// Our inbound SPI of the Child SA that it replaces, while that one exists.
    pub replaces: Option<u32>,
    /// How far it is.
    pub fate: Fate,
}

/// How a Child SA carries packets (RFC 4303 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Whole, with an IP header of their own.
    Tunnel,
    /// Without their IP header. The selectors of either side have one address, that of the end as we have it.
    Transport(Seen),
}

/// The addresses of both ends as the peer has them, which are others behind a NAT (RFC 7296 §2.23.1). Checksums of the peer are made with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Ours.
    pub local: IpAddr,
    /// The peer's own.
    pub remote: IpAddr,
}

/// How far a Child SA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Receives; does not send yet, because the peer, who made it to replace another, has not deleted that yet (RFC 7296 §2.8).
    Standby,
    /// Sends and receives.
    Live,
    /// Was replaced: receives, no longer sends, will be deleted.
    Replaced,
}

/// Why an IKE SA ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloseReason {
    /// The peer deleted it.
    DeletedByPeer,
    /// We deleted it.
    DeletedByUs,
    /// The peer did not answer.
    PeerSilent,
    /// Another IKE SA took its place.
    Rekeyed,
    /// The peer authenticated anew, and has no use for this one.
    Displaced,
    /// We authenticated anew, and another IKE SA took its place.
    Reauthenticated,
    /// Its lifetime ended.
    Expired,
    /// Setting it up failed.
    SetupFailed,
}

/// A tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// What protected it: retransmitted requests are still verified before they are answered.
    pub protection: Option<(IkeSuite, IkeKeys)>,
    /// Why it ended.
    pub reason: CloseReason,
    /// When to forget it.
    pub expires_at: UnixMillis,
}

impl Established {
    /// Whether a new authentication is under way: one of ours, or one that the peer was asked for a short while ago.
    pub fn reauthenticates(&self, now: UnixMillis) -> bool {
        let asked = !self.initiated && self.reauth_at.is_some_and(|at| at > now);
        asked || self.successor.is_some()
    }
}

impl FollowUp {
    /// Our SPI of the Child SA that it will make, if it is to make one.
    pub fn child_spi(&self) -> Option<u32> {
        match &self.goal {
            Goal::Child(goal) => Some(goal.spi_in),
            Goal::Ike(_) => None,
        }
    }
}

impl Task {
    /// Our SPI of the Child SA that it asks for, if it asks for one.
    pub fn child_spi(&self) -> Option<u32> {
        match self {
            Self::CreateChild(offer) => Some(offer.spi_in),
            Self::FollowUp(follow_up, _) => follow_up.child_spi(),
            _ => None,
        }
    }

    /// The IKE SA that it asks for, if it asks for one.
    fn ike_spi(&self) -> Option<SaId> {
        match self {
            Self::RekeyIke(offer) => Some(offer.id),
            Self::FollowUp(follow_up, _) => match &follow_up.goal {
                Goal::Ike(goal) => Some(goal.id),
                Goal::Child(_) => None,
            },
            _ => None,
        }
    }

    /// Whether its response may tell of a Child SA that the peer has made already.
    pub fn makes_child(&self) -> bool {
        self.child_spi().is_some()
    }

    /// Whether it is to replace the IKE SA.
    pub fn is_ike_rekey(&self) -> bool {
        match self {
            Self::RekeyIke(_) => true,
            Self::FollowUp(f, _) => matches!(f.goal, Goal::Ike(_)),
            _ => false,
        }
    }

    /// Whether the peer cannot replace the IKE SA meanwhile (RFC 7296 §2.25.2).
    pub fn forbids_ike_rekey(&self) -> bool {
        match self {
            Self::CreateChild(_) | Self::DeleteChildren(_) | Self::DeleteIke => true,
            Self::FollowUp(f, _) => matches!(f.goal, Goal::Child(_)),
            Self::Connect
            | Self::Liveness
            | Self::Mobike(_)
            | Self::RekeyIke(_)
            | Self::AskToReauthenticate => false,
        }
    }
}

impl Record {
    /// The outer addresses of its Child SAs: those of the IKE SA, unless the peer's new address is still to be checked.
    pub fn children_path(&self) -> Path {
        match &self.phase {
            Phase::Established(e) => e.mobike.as_ref().and_then(|m| m.children_path),
            _ => None,
        }
        .unwrap_or(self.path)
    }

    /// The identities of both ends, ours first, while the SA is established and nothing has replaced it.
    pub fn identities(&self) -> Option<(&Identity, &Identity)> {
        match &self.phase {
            Phase::Established(e) if e.replaced_by.is_none() => Some((&e.local_id, &e.remote_id)),
            _ => None,
        }
    }

    /// The IKE SA that has replaced this one by a rekey.
    pub fn replaced_by(&self) -> Option<SaId> {
        match &self.phase {
            Phase::Established(e) => e.replaced_by,
            _ => None,
        }
    }

    /// The Child SAs; none unless established.
    pub fn children(&self) -> &[Child] {
        match &self.phase {
            Phase::Established(e) => &e.children,
            _ => &[],
        }
    }

    /// Our inbound SPIs of the Child SAs that requests of ours under way ask for: the peer may use one before we know that it agrees.
    pub fn offered_children(&self) -> impl Iterator<Item = u32> {
        let in_auth = match &self.phase {
            Phase::AuthSent(sent) => Some(sent.child.spi_in),
            _ => None,
        };
        in_auth
            .into_iter()
            .chain(self.outbound.tasks().filter_map(Task::child_spi))
    }

    /// IKE SAs that may take its place, and that the peer may know already: those we have asked for, and one of the peer's that waits for the end of a collision.
    pub fn coming(&self) -> impl Iterator<Item = SaId> {
        let rival = match &self.phase {
            Phase::Established(e) => e.rival.as_ref().map(|rival| rival.record.id),
            _ => None,
        };
        let asked = self.outbound.tasks().filter_map(Task::ike_spi);
        rival.into_iter().chain(asked)
    }

    /// Inner addresses that its peer holds from our pools.
    pub fn peer_vips(&self) -> &[IpAddr] {
        match &self.phase {
            Phase::Established(e) => &e.peer_vips,
            _ => &[],
        }
    }
}
