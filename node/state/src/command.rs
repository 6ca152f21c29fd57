//! What may be asked of the replicated state, and what becomes of it.

use crate::abilities::Abilities;
use crate::carried::Carried;
use crate::document;
use crate::enrolment::{Enrolment, Place};
use crate::keys::MemberKeys;
use crate::level::Level;
use evergate_ike::{
    config::Policy,
    env::UnixMillis,
    identity::Identity,
    record::{GatewayId, Record, SaId},
    sa::CookieSecrets,
};
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, ops::Range, sync::Arc};

/// One batch of commands, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The proposer's time; apply clamps it to be monotonic.
    pub at: UnixMillis,
    /// What should change, in order. Each is applied or refused on its own.
    pub commands: Vec<Command>,
}

/// A change of the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A process of a member says that it is the one now. What an earlier process of the member has or does is refused from then on.
    /// Its gateways stay marked as its own until they are assigned again: its lease may still run.
    RegisterMember {
        /// The member's name.
        member: String,
        /// A random number of the process, made when it starts.
        incarnation: u128,
    },
    /// Forgets a member, if it has no virtual gateway.
    RemoveMember {
        /// The member's name.
        member: String,
        /// Its process that is known to be over.
        incarnation: u128,
    },
    /// Whether a member should have no virtual gateways, because it is about to go.
    SetDraining {
        /// The member's name.
        member: String,
        /// Whether.
        draining: bool,
    },
    /// A process incarnation gets a virtual gateway: a new epoch, and in the same apply the next disjoint reservation
    /// for each of its Child SAs.
    AssignGateway {
        /// Which.
        gateway: GatewayId,
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// The epoch that the proposer saw; 0 if the gateway was never assigned.
        expected_epoch: u32,
    },
    /// The owner of a virtual gateway gives it up. It has stopped using the addresses and sends nothing more under the epoch when it
    /// proposes this, so that the next owner need not wait for a lease to end.
    ReleaseGateway {
        /// Which.
        gateway: GatewayId,
        /// The epoch in which it had it.
        epoch: u32,
    },
    /// New records of SAs, all or none. Each must have the revision after the one that is there (1 if none is).
    PutSas {
        /// The epoch of the gateway under which they were made.
        epoch: u32,
        /// The records.
        records: Vec<Arc<Record>>,
    },
    /// Message IDs of SAs that had harmless exchanges since their last record (coalesced, advisory).
    Counters {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway under which they were counted.
        epoch: u32,
        /// What was counted.
        counters: Vec<Counters>,
    },
    /// How far the packets of peers have come: the right edges of replay windows (coalesced, advisory). A successor refuses what lies at
    /// or below them; what an attacker can replay after a takeover is bounded by the last report.
    ReportReceived {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway.
        epoch: u32,
        /// Our inbound SPI of the Child SA, and the highest sequence number that was received on it.
        edges: Vec<(u32, u64)>,
    },
    /// How much Child SAs have carried, in all epochs (coalesced, advisory): what a successor counts on from.
    ReportCarried {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway.
        epoch: u32,
        /// Our inbound SPI of the Child SA, and how much.
        carried: Vec<(u32, Carried)>,
    },
    /// Forgets SAs: tombstones and half-open SAs whose time is over.
    RemoveSas {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway.
        epoch: u32,
        /// Which.
        sas: Vec<SaId>,
    },
    /// More outbound sequence numbers for Child SAs.
    ExtendReservations {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway.
        epoch: u32,
        /// Our inbound SPI of the Child SA (its name), and how many numbers more.
        children: Vec<(u32, u64)>,
    },
    /// A virtual address for a peer.
    LeaseAddresses {
        /// The epoch of the gateway.
        epoch: u32,
        /// The SA that asks. It holds the lease until its record has the address, or a minute has passed.
        sa: SaId,
        /// The gateway.
        gateway: GatewayId,
        /// Who it is for.
        identity: Identity,
        /// Names of pools, in order.
        pools: Vec<String>,
        /// Whether an IPv4 address is wanted, and which (unspecified: any).
        v4: Option<IpAddr>,
        /// Whether an IPv6 address is wanted, and which (unspecified: any).
        v6: Option<IpAddr>,
        /// Whether the SA will displace those of the same peer, so that it may have an address that they hold.
        takes_over: bool,
    },
    /// A new policy document.
    SetPolicy {
        /// The version that it replaces.
        expected: u64,
        /// The document.
        #[serde(with = "document")]
        policy: Arc<Policy>,
    },
    /// New cookie secrets.
    SetCookieSecrets(CookieSecrets),
    /// How much the Child SAs of IKE SAs have carried together, since both ends were authenticated (coalesced, advisory).
    ReportCarriedTogether {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch of the gateway.
        epoch: u32,
        /// The IKE SA, and how much.
        carried: Vec<(SaId, Carried)>,
    },
    /// What the data plane of a member's process can do.
    DescribePlane {
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// What it can.
        abilities: Abilities,
    },
    /// The leader of a term assigns a virtual gateway as with [`Command::AssignGateway`], because no lease of the former owner runs as far as it knows. That means
    /// nothing to a later leader, which may have granted one since: so this counts only if it was logged in that term.
    AssignInTerm {
        /// The leader's term.
        term: u64,
        /// Which.
        gateway: GatewayId,
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// The epoch that the leader saw; 0 if the gateway was never assigned.
        expected_epoch: u32,
    },
    /// Up to which level a member's process understands the replicated format.
    AnnounceLevel {
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// The level.
        level: Level,
    },
    /// Which cluster keys a member has.
    AnnounceKeys {
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// The keys.
        keys: MemberKeys,
    },
    /// An operator lets a member come that bears a token.
    Invite {
        /// The member's name.
        member: String,
        /// How it comes; it must be invited.
        enrolment: Enrolment,
    },
    /// Uses a token up: its bearer may come as a node of Raft. Again for the same node it changes nothing.
    Admit {
        /// The member's name.
        member: String,
        /// SHA-256 of the token.
        digest: [u8; 32],
        /// The node.
        node: u64,
    },
    /// A member of the cluster comes as another node, because it lost what it had; or its role changes.
    Enrol {
        /// The member's name.
        member: String,
        /// How it comes.
        enrolment: Enrolment,
    },
    /// An enrolment is over: the member is there, or its token is withdrawn.
    EndEnrolment {
        /// The member's name.
        member: String,
        /// The node as which it was admitted; `None` if there is but a token.
        node: Option<u64>,
    },
    /// A node of Raft is to go, and its member is forgotten.
    Dismiss {
        /// The member's name.
        member: String,
        /// The node.
        node: u64,
    },
    /// Where a member's process stands, for the placement of virtual gateways.
    PlaceMember {
        /// The member's name.
        member: String,
        /// Its process, which must be the one that is registered.
        incarnation: u128,
        /// Where.
        place: Place,
    },
}

/// What harmless exchanges moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The SA.
    pub sa: SaId,
    /// `inbound.next`.
    pub inbound_next: u32,
    /// `outbound.accounted()`.
    pub outbound_next: u32,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Applied,
    /// Records were written, and with that these SAs are displaced: their peer has authenticated anew.
    Displaced(Vec<SaId>),
    /// The gateway was assigned.
    Epoch {
        /// The new epoch.
        epoch: u32,
    },
    /// Sequence numbers were reserved: our inbound SPI and the range that may be used besides what was there.
    Reserved(Vec<(u32, Range<u64>)>),
    /// Addresses were leased.
    Leased(Vec<IpAddr>),
    /// It was refused and changed nothing.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The epoch is not the current one: somebody else has the gateway.
    #[error("epoch {given} of gateway {gateway:?} is over, it is {current} now")]
    StaleEpoch {
        /// The gateway.
        gateway: GatewayId,
        /// What the command said.
        given: u32,
        /// What it is.
        current: u32,
    },
    /// The epoch is the last one, but its owner gave the gateway up, or a newer process of the same member runs.
    #[error("epoch {epoch} of gateway {gateway:?} has no owner any more")]
    NotOwned {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch.
        epoch: u32,
    },
    /// Another process of the member is the registered one.
    #[error("this process of member {0} is not the registered one")]
    Superseded(String),
    /// No process of the member ever registered.
    #[error("member {0} is not known")]
    UnknownMember(String),
    /// The member has virtual gateways.
    #[error("member {0} has virtual gateways")]
    HasGateways(String),
    /// The record's revision does not follow the one that is there.
    #[error("revision {given} of SA {sa} does not follow {current}")]
    StaleRevision {
        /// The SA.
        sa: SaId,
        /// What the command said.
        given: u64,
        /// What is there.
        current: u64,
    },
    /// The peer has another SA, and its connection keeps that ([`Unique::Keep`](evergate_ike::config::Unique)).
    #[error("SA {0} is of the same peer, and kept")]
    NotUnique(SaId),
    /// An SPI is in use by another SA.
    #[error("SPI {0:08x} is in use")]
    SpiInUse(u32),
    /// The policy version is another.
    #[error("policy is at version {current}, not {given}")]
    StalePolicy {
        /// What the command said.
        given: u64,
        /// What it is.
        current: u64,
    },
    /// No address is left (or none is configured) in the pools.
    #[error("no address is left in pools {0:?}")]
    NoAddress(Vec<String>),
    /// A record (or a lease) names an address that another SA has.
    #[error("address {0} is leased to another SA")]
    AddressInUse(IpAddr),
    /// An SA belongs to another gateway than the command says.
    #[error("SA {sa} is not of gateway {given:?}")]
    WrongGateway {
        /// The SA.
        sa: SaId,
        /// What the command said.
        given: GatewayId,
    },
    /// A limit was reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// A leader decided it that led no more when it was logged.
    #[error("it was decided in term {given}, and logged in another")]
    StaleTerm {
        /// The term of the leader that decided it.
        given: u64,
    },
    /// There is no token for a member.
    #[error("there is no token for member {0}: it was never made, was used, or was withdrawn")]
    NotInvited(String),
    /// The token is another one.
    #[error("the token for member {0} is another one")]
    WrongToken(String),
    /// The token has expired.
    #[error("the token for member {0} has expired")]
    TokenExpired(String),
    /// The token was used.
    #[error("the token for member {0} was used already")]
    TokenUsed(String),
    /// Another member is on its way into the cluster.
    #[error("another change of the cluster is under way: {0} joins it, or changes its role")]
    ChangeUnderWay(String),
}

impl Refusal {
    /// Whether it means that the asker has lost its virtual gateway (or never had it), and must act for it no more.
    pub fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::StaleEpoch { .. } | Self::NotOwned { .. } | Self::Superseded(_)
        )
    }
}
