//! The state itself, as it is read.

use crate::{
    abilities::Abilities,
    carried::{Carried, CarriedTogether},
    command::Refusal,
    document,
    enrolment::Enrolments,
    keys::Keys,
    lease::{Lease, Leases},
    level::Level,
    peers::Peers,
    reservation::Reservation,
};
use evergate_ike::{
    config::Policy,
    env::UnixMillis,
    record::{GatewayId, Record, SaId},
    sa::{CookieSecrets, Displaced},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, net::IpAddr, ops::Range, sync::Arc};

/// Who has a virtual gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// Grows by one with every assignment; the first is 1.
    pub epoch: u32,
    /// The process to which it was assigned last, unless it gave it up.
    pub owner: Option<Owner>,
}

/// One process of one member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The member's name.
    pub member: String,
    /// Its process.
    pub incarnation: u128,
}

/// What is known of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its latest process.
    pub incarnation: u128,
    /// Processes before, the latest last: a late repetition of their registration must not bring them back.
    pub(crate) former: Vec<u128>,
    /// Whether it should have no virtual gateways.
    pub draining: bool,
    /// What its data plane can do.
    pub abilities: Abilities,
    /// Up to which level its process understands the replicated format.
    pub level: Level,
}

/// The replicated state. Members that applied the same entries have equal states, and equal snapshots byte by byte.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) body: Body,
    pub(crate) second: Second,
    /// What a snapshot holds besides from level 3 on.
    pub(crate) enrolments: Enrolments,
    /// Which SA has an SPI of ours, as a Child SA or as an offer under way. Follows from the records.
    pub(crate) spis: BTreeMap<u32, SaId>,
    /// The established SAs between two identities. Follows from the records.
    pub(crate) peers: Peers,
}

/// What a snapshot holds.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) clock: UnixMillis,
    pub(crate) members: BTreeMap<String, Member>,
    pub(crate) gateways: BTreeMap<GatewayId, Gateway>,
    pub(crate) sas: BTreeMap<SaId, Arc<Record>>,
    pub(crate) reservations: BTreeMap<u32, Reservation>,
    /// The highest sequence numbers that were received, by our inbound SPIs; for Child SAs that have a reservation.
    pub(crate) received: BTreeMap<u32, u64>,
    /// How much was carried, likewise.
    pub(crate) carried: BTreeMap<u32, Carried>,
    /// How much was carried by what IKE SAs have and had; of those that are established and not replaced.
    pub(crate) carried_together: BTreeMap<SaId, CarriedTogether>,
    /// SAs that are to go, because their peer has authenticated anew; and how.
    pub(crate) displaced: BTreeMap<SaId, Displaced>,
    pub(crate) leases: Leases,
    #[serde(with = "document")]
    pub(crate) policy: Arc<Policy>,
    pub(crate) policy_version: u64,
    pub(crate) cookie_secrets: Option<CookieSecrets>,
    pub(crate) level: Level,
}

/// What a snapshot holds besides from level 2 on.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Second {
    pub(crate) keys: Keys,
}

impl State {
    /// The state before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The time of the latest entry; it never goes back.
    pub fn clock(&self) -> UnixMillis {
        self.body.clock
    }

    /// What is known of a member, if a process of it ever registered.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.body.members.get(name)
    }

    /// All members that ever registered, in the order of their names.
    pub fn members(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.body.members.iter().map(|(n, m)| (n.as_str(), m))
    }

    /// The epoch of a virtual gateway, as [`Command::AssignGateway`](crate::Command::AssignGateway) expects it: 0 if it was never assigned.
    pub fn epoch(&self, id: GatewayId) -> u32 {
        self.gateway(id).map_or(0, |g| g.epoch)
    }

    /// The epoch in which a process has a virtual gateway; `None` if it does not have it.
    pub fn epoch_of(&self, id: GatewayId, owner: &Owner) -> Option<u32> {
        let gateway = self.gateway(id)?;
        (gateway.owner.as_ref() == Some(owner) && self.is_current(owner)).then_some(gateway.epoch)
    }

    /// Whether a process is the registered one of its member.
    pub fn is_current(&self, owner: &Owner) -> bool {
        self.member(&owner.member)
            .is_some_and(|m| m.incarnation == owner.incarnation)
    }

    /// A virtual gateway, if it was ever assigned.
    pub fn gateway(&self, id: GatewayId) -> Option<&Gateway> {
        self.body.gateways.get(&id)
    }

    /// All virtual gateways that were ever assigned.
    pub fn gateways(&self) -> impl Iterator<Item = (GatewayId, &Gateway)> {
        self.body.gateways.iter().map(|(id, g)| (*id, g))
    }

    /// The record of an IKE SA.
    pub fn sa(&self, id: SaId) -> Option<&Arc<Record>> {
        self.body.sas.get(&id)
    }

    /// All records, in the order of their names.
    pub fn sas(&self) -> impl ExactSizeIterator<Item = &Arc<Record>> {
        self.body.sas.values()
    }

    /// The outbound sequence numbers of a Child SA (named by our inbound SPI) that the current epoch may use. Whoever may have lost
    /// the gateway meanwhile asks [`State::reservation_in`] instead.
    pub fn reservation(&self, spi_in: u32) -> Option<Range<u64>> {
        self.body.reservations.get(&spi_in).map(Reservation::range)
    }

    /// The outbound sequence numbers of a Child SA that this epoch may use; `None` if another epoch has the gateway: its numbers are
    /// not the asker's.
    pub fn reservation_in(&self, spi_in: u32, epoch: u32) -> Option<Range<u64>> {
        let reservation = self.body.reservations.get(&spi_in)?;
        (reservation.epoch() == epoch).then(|| reservation.range())
    }

    /// How much a Child SA is known to have carried.
    pub fn carried(&self, spi_in: u32) -> Carried {
        self.body.carried.get(&spi_in).copied().unwrap_or_default()
    }

    /// How much the Child SAs of an IKE SA are known to have carried together.
    pub fn carried_together(&self, sa: SaId) -> CarriedTogether {
        let known = self.body.carried_together.get(&sa);
        known.copied().unwrap_or_default()
    }

    /// The highest sequence number that is known to have been received on a Child SA.
    pub fn received(&self, spi_in: u32) -> Option<u64> {
        self.body.received.get(&spi_in).copied()
    }

    /// All reservations, by our inbound SPIs.
    pub fn reservations(&self) -> impl Iterator<Item = (u32, &Reservation)> {
        self.body.reservations.iter().map(|(spi, r)| (*spi, r))
    }

    /// Whether an SA is to go because its peer has authenticated anew; and how.
    pub fn displaced(&self, id: SaId) -> Option<Displaced> {
        self.body.displaced.get(&id).copied()
    }

    /// The policy document.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.body.policy
    }

    /// How often the policy was set.
    pub fn policy_version(&self) -> u64 {
        self.body.policy_version
    }

    /// The secrets of stateless cookies, once somebody has set them.
    pub fn cookie_secrets(&self) -> Option<&CookieSecrets> {
        self.body.cookie_secrets.as_ref()
    }

    /// All leased addresses, in order, those that no record holds yet included.
    pub fn leases(&self) -> impl Iterator<Item = (IpAddr, &Lease)> {
        self.body.leases.iter()
    }

    /// Whether an SPI of ours belongs to a Child SA or to an offer under way.
    pub fn spi_in_use(&self, spi: u32) -> bool {
        self.spis.contains_key(&spi)
    }

    /// The IKE SA that has this SPI of ours, as a Child SA or as an offer under way.
    pub fn spi_owner(&self, spi: u32) -> Option<SaId> {
        self.spis.get(&spi).copied()
    }

    /// Refuses an epoch that is not the gateway's current one, or whose owner is no more.
    pub(crate) fn check_epoch(&self, gateway: GatewayId, given: u32) -> Result<(), Refusal> {
        let current = self.epoch(gateway);
        if current != given || current == 0 {
            return Err(Refusal::StaleEpoch {
                gateway,
                given,
                current,
            });
        }
        let owner = self.gateway(gateway).and_then(|g| g.owner.as_ref());
        if owner.is_some_and(|o| self.is_current(o)) {
            return Ok(());
        }
        Err(Refusal::NotOwned {
            gateway,
            epoch: given,
        })
    }
}

impl fmt::Debug for State {
    /// Counts only: the records are many, and some of what they hold is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("clock", &self.body.clock)
            .field("members", &self.body.members)
            .field("gateways", &self.body.gateways)
            .field("sas", &self.body.sas.len())
            .field("reservations", &self.body.reservations.len())
            .field("policy_version", &self.body.policy_version)
            .finish_non_exhaustive()
    }
}
