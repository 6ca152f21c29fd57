//! The record of an IKE SA: all that another member needs to go on with it.
//!
//! A record is plain data. It changes only by steps ([`crate::sa`]), and a change counts only once it is
//! committed. What a successor does not need (retransmission counts, when the peer was last heard,
//! how many messages were sealed) is in the SA's session instead and never here.

mod child;
mod established;
mod mobike;
mod outbound;
mod path;
mod request;
mod setup;
mod succession;
mod window;

pub use child::{Child, Fate, Mode, Seen};
pub use established::{Established, Rival, SyncAnswer, SyncRequest};
pub use mobike::{Mobike, MobikePurpose, MobikeRequest};
pub use outbound::{MAX_UNDER_WAY, OutboundWindow, Scope};
pub use path::{Path, TcpEnd, Transport};
pub use request::{
    ChildGoal, ChildOffer, Datagrams, FollowUp, Goal, IkeGoal, IkeOffer, PendingRequest, Task,
};
pub use setup::{
    AuthSent, HalfOpen, InitSent, Intent, Intermediate, Intermediates, Negotiated, Rounds,
};
pub use succession::Succession;
pub use window::{Answered, InboundWindow};

use crate::{
    crypto::{IkeKeys, IkeSuite},
    env::UnixMillis,
    identity::Identity,
};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

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
