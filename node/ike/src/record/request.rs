//! Requests of ours, with all that is needed to use what is answered.

use super::{MobikeRequest, Mode, SaId};
use crate::{
    crypto::{EspSuite, IkeSuite, KeyPair},
    env::UnixMillis,
    secret::Secret,
    wire::TrafficSelector,
};
use serde::{Deserialize, Serialize};

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
    pub(super) fn ike_spi(&self) -> Option<SaId> {
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
