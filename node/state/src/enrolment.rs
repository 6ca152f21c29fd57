//! How members come into the cluster and leave it, and where they stand in it. Who votes is Raft's to know; here is what is intended, so that whoever leads
//! goes on with it.

use crate::{
    command::{Outcome, Refusal},
    limits::{MAX_DISMISSED, MAX_INVITATIONS, MAX_NAME, MAX_WEIGHT},
    state::State,
};
use evergate_ike::env::UnixMillis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A member on its way into the cluster. It is forgotten when the member is there as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Where other members reach it: `host:port`.
    pub address: String,
    /// It is to learn only; else it votes once it has nearly all.
    pub learner: bool,
    /// The member that goes when it is there.
    pub replaces: Option<String>,
    /// How far it is.
    pub stage: Stage,
}

/// How far an enrolment is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// There is a token for it.
    Invited {
        /// SHA-256 of the token.
        digest: [u8; 32],
        /// When the token expires, by the clock of the log.
        until: UnixMillis,
    },
    /// It may come as this node of Raft.
    Admitted {
        /// The node.
        node: u64,
    },
}

/// Where a member stands, for the placement of virtual gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// What fails together; empty if nothing is said of it.
    pub zone: String,
    /// Its share of the gateways, in proportion to that of others.
    pub weight: u32,
}

impl Place {
    /// The weight of a member that says nothing.
    pub const USUAL_WEIGHT: u32 = 100;
}

impl Default for Place {
    fn default() -> Self {
        Self {
            zone: String::new(),
            weight: Self::USUAL_WEIGHT,
        }
    }
}

/// What a snapshot holds of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrolments {
    under_way: BTreeMap<String, Enrolment>,
    /// Nodes that were removed, with the names of their members, the latest last.
    dismissed: Vec<(u64, String)>,
    places: BTreeMap<String, Place>,
}

impl State {
    /// Members on their way into the cluster, in the order of their names.
    pub fn enrolments(&self) -> impl Iterator<Item = (&str, &Enrolment)> {
        let all = self.enrolments.under_way.iter();
        all.map(|(name, e)| (name.as_str(), e))
    }

    /// How far a member is on its way into the cluster.
    pub fn enrolment(&self, name: &str) -> Option<&Enrolment> {
        self.enrolments.under_way.get(name)
    }

    /// The member that a node of Raft was, if it was removed.
    pub fn dismissed(&self, node: u64) -> Option<&str> {
        let mut all = self.enrolments.dismissed.iter();
        all.find(|(n, _)| *n == node).map(|(_, name)| name.as_str())
    }

    /// Where a member stands.
    pub fn place(&self, name: &str) -> Place {
        let known = self.enrolments.places.get(name);
        known.cloned().unwrap_or_default()
    }

    /// How many virtual gateways a member has, whatever process of it.
    pub fn gateways_of(&self, name: &str) -> usize {
        let owners = self.gateways().filter_map(|(_, g)| g.owner.as_ref());
        owners.filter(|o| o.member == name).count()
    }

    /// What a token is good for.
    ///
    /// # Errors
    /// Why it is good for nothing.
    pub fn check_token(
        &self,
        name: &str,
        digest: &[u8; 32],
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let enrolment = self.enrolment(name);
        match enrolment.map(|e| &e.stage) {
            Some(Stage::Invited {
                digest: right,
                until,
            }) => {
                if !equal(right, digest) {
                    return Err(Refusal::WrongToken(name.to_owned()));
                }
                if now >= *until {
                    return Err(Refusal::TokenExpired(name.to_owned()));
                }
                Ok(())
            }
            Some(Stage::Admitted { .. }) => Err(Refusal::TokenUsed(name.to_owned())),
            None => Err(Refusal::NotInvited(name.to_owned())),
        }
    }

    /// Makes a token good. One that was there for the same member is good no more.
    pub(crate) fn invite(&mut self, name: &str, wanted: &Enrolment) -> Result<Outcome, Refusal> {
        let now = self.body.clock;
        let Stage::Invited { .. } = wanted.stage else {
            return Err(Refusal::NotInvited(name.to_owned()));
        };
        let long = [
            name,
            &wanted.address,
            wanted.replaces.as_deref().unwrap_or(""),
        ];
        if long.iter().any(|text| text.len() > MAX_NAME) {
            return Err(Refusal::Limit("length of a name"));
        }
        let all = &mut self.enrolments.under_way;
        // Tokens that expired make place.
        all.retain(|_, e| !matches!(e.stage, Stage::Invited { until, .. } if until <= now));
        match all.get(name) {
            Some(Enrolment {
                stage: Stage::Admitted { .. },
                ..
            }) => return Err(Refusal::ChangeUnderWay(name.to_owned())),
            None if all.len() >= MAX_INVITATIONS => return Err(Refusal::Limit("open tokens")),
            _ => {}
        }
        all.insert(name.to_owned(), wanted.clone());
        Ok(Outcome::Applied)
    }

    /// Uses a token up: its bearer may come as this node, and as no other.
    pub(crate) fn admit(
        &mut self,
        name: &str,
        digest: &[u8; 32],
        node: u64,
    ) -> Result<Outcome, Refusal> {
        if self.enrolment(name).map(|e| &e.stage) == Some(&Stage::Admitted { node }) {
            return Ok(Outcome::Applied);
        }
        self.check_token(name, digest, self.body.clock)?;
        self.check_no_other(name)?;
        if let Some(enrolment) = self.enrolments.under_way.get_mut(name) {
            enrolment.stage = Stage::Admitted { node };
        }
        Ok(Outcome::Applied)
    }

    /// A member of the cluster comes as another node, or in another role.
    pub(crate) fn enrol(&mut self, name: &str, wanted: &Enrolment) -> Result<Outcome, Refusal> {
        self.check_no_other(name)?;
        let all = &mut self.enrolments.under_way;
        all.insert(name.to_owned(), wanted.clone());
        Ok(Outcome::Applied)
    }

    /// An enrolment is over: done, or its token is withdrawn.
    pub(crate) fn end_enrolment(
        &mut self,
        name: &str,
        node: Option<u64>,
    ) -> Result<Outcome, Refusal> {
        let of = |e: &Enrolment| match e.stage {
            Stage::Invited { .. } => None,
            Stage::Admitted { node } => Some(node),
        };
        if self.enrolment(name).map(of) != Some(node) {
            return Err(Refusal::NotInvited(name.to_owned()));
        }
        self.enrolments.under_way.remove(name);
        Ok(Outcome::Applied)
    }

    /// A node is to go, and its member is forgotten with it. Gateways that it may still have are its process's no more, as that is not registered; whoever assigns
    /// them waits for its lease.
    pub(crate) fn dismiss(&mut self, name: &str, node: u64) -> Outcome {
        self.body.members.remove(name);
        self.second.keys.forget(name);
        self.raise_level();
        self.choose_key();
        let enrolments = &mut self.enrolments;
        enrolments.places.remove(name);
        enrolments.under_way.remove(name);
        if !enrolments.dismissed.iter().any(|(n, _)| *n == node) {
            if enrolments.dismissed.len() >= MAX_DISMISSED {
                enrolments.dismissed.remove(0);
            }
            enrolments.dismissed.push((node, name.to_owned()));
        }
        Outcome::Applied
    }

    pub(crate) fn put_in_place(
        &mut self,
        name: &str,
        incarnation: u128,
        place: &Place,
    ) -> Result<Outcome, Refusal> {
        self.current(name, incarnation)?;
        if place.zone.len() > MAX_NAME || !(1..=MAX_WEIGHT).contains(&place.weight) {
            return Err(Refusal::Limit("zone or weight"));
        }
        let places = &mut self.enrolments.places;
        places.insert(name.to_owned(), place.clone());
        Ok(Outcome::Applied)
    }

    /// One member comes at a time.
    fn check_no_other(&self, name: &str) -> Result<(), Refusal> {
        let other = self
            .enrolments()
            .find(|(other, e)| *other != name && matches!(e.stage, Stage::Admitted { .. }));
        match other {
            Some((other, _)) => Err(Refusal::ChangeUnderWay(other.to_owned())),
            None => Ok(()),
        }
    }
}

/// In constant time.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}
