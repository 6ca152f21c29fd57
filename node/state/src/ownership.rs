//! Members, and which of them has a virtual gateway.

use crate::{
    abilities::Abilities,
    command::{Outcome, Refusal},
    level::Level,
    limits::{MAX_EPOCH, MAX_FORMER_INCARNATIONS, MAX_GATEWAYS, MAX_MEMBERS},
    state::{Gateway, Member, Owner, State},
};
use evergate_ike::record::GatewayId;

impl State {
    pub(crate) fn register(&mut self, name: &str, incarnation: u128) -> Result<Outcome, Refusal> {
        let full = self.body.members.len() >= MAX_MEMBERS;
        let Some(member) = self.body.members.get_mut(name) else {
            if full {
                return Err(Refusal::Limit("members"));
            }
            let member = Member {
                incarnation,
                former: Vec::new(),
                draining: false,
                abilities: Abilities::ALL,
                level: Level::FIRST,
            };
            self.body.members.insert(name.to_owned(), member);
            return Ok(Outcome::Applied);
        };
        if member.incarnation == incarnation {
            return Ok(Outcome::Applied);
        }
        if member.former.contains(&incarnation) {
            return Err(Refusal::Superseded(name.to_owned()));
        }
        if member.former.len() >= MAX_FORMER_INCARNATIONS {
            member.former.remove(0);
        }
        member.former.push(member.incarnation);
        member.incarnation = incarnation;
        // Another version of the program may run now.
        member.level = Level::FIRST;
        Ok(Outcome::Applied)
    }

    pub(crate) fn remove_member(
        &mut self,
        name: &str,
        incarnation: u128,
    ) -> Result<Outcome, Refusal> {
        self.current(name, incarnation)?;
        let has = |g: &Gateway| g.owner.as_ref().is_some_and(|o| o.member == name);
        if self.body.gateways.values().any(has) {
            return Err(Refusal::HasGateways(name.to_owned()));
        }
        self.body.members.remove(name);
        self.second.keys.forget(name);
        self.raise_level();
        self.choose_key();
        Ok(Outcome::Applied)
    }

    pub(crate) fn set_draining(&mut self, name: &str, draining: bool) -> Result<Outcome, Refusal> {
        self.known(name)?.draining = draining;
        Ok(Outcome::Applied)
    }

    pub(crate) fn assign(
        &mut self,
        gateway: GatewayId,
        member: &str,
        incarnation: u128,
        expected: u32,
    ) -> Result<Outcome, Refusal> {
        self.current(member, incarnation)?;
        let current = self.epoch(gateway);
        if current != expected {
            return Err(Refusal::StaleEpoch {
                gateway,
                given: expected,
                current,
            });
        }
        if current >= MAX_EPOCH {
            return Err(Refusal::Limit("epochs of a gateway"));
        }
        if current == 0 && self.body.gateways.len() >= MAX_GATEWAYS {
            return Err(Refusal::Limit("gateways"));
        }
        let epoch = current + 1;
        let owner = Some(Owner {
            member: member.to_owned(),
            incarnation,
        });
        self.body.gateways.insert(gateway, Gateway { epoch, owner });
        let reservations = self.body.reservations.values_mut();
        for reservation in reservations.filter(|r| r.gateway() == gateway) {
            reservation.take(epoch);
        }
        Ok(Outcome::Epoch { epoch })
    }

    pub(crate) fn release(&mut self, gateway: GatewayId, epoch: u32) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        if let Some(gateway) = self.body.gateways.get_mut(&gateway) {
            gateway.owner = None;
        }
        Ok(Outcome::Applied)
    }

    /// A member, if this is its registered process.
    pub(crate) fn current(
        &mut self,
        name: &str,
        incarnation: u128,
    ) -> Result<&mut Member, Refusal> {
        let member = self.known(name)?;
        if member.incarnation == incarnation {
            return Ok(member);
        }
        Err(Refusal::Superseded(name.to_owned()))
    }

    fn known(&mut self, name: &str) -> Result<&mut Member, Refusal> {
        self.body
            .members
            .get_mut(name)
            .ok_or_else(|| Refusal::UnknownMember(name.to_owned()))
    }
}
