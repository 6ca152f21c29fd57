//! Which virtual gateway should be with which member. Pure and deterministic: the leader asks again whenever something changed.

#[cfg(test)]
mod tests;

use evergate_ike::record::GatewayId;
use evergate_state::{Owner, Place};
use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

/// A configured virtual gateway, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which.
    pub gateway: GatewayId,
    /// Its epoch; 0 if it was never assigned.
    pub epoch: u32,
    /// Who has it.
    pub holding: Holding,
}

/// Whether somebody has a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nobody, or somebody whose lease is surely over.
    Free,
    /// A process that does not answer, but whose lease may still run: nothing can be done but wait.
    Uncertain,
    /// A live process.
    Held(Owner),
}

/// A live process of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub owner: Owner,
    /// It should have no gateways.
    pub draining: bool,
    /// What fails together with it, and its share.
    pub place: Place,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Assign a free gateway.
    Assign {
        /// Which.
        gateway: GatewayId,
        /// The epoch that ends.
        epoch: u32,
        /// Who gets it.
        to: Owner,
    },
    /// Ask the holder of a gateway to hand it over.
    Move {
        /// Which.
        gateway: GatewayId,
        /// The epoch that ends.
        epoch: u32,
        /// Who has it.
        from: Owner,
        /// Who should get it.
        to: Owner,
    },
}

/// What should be done now. `moving` says of handovers that were asked for who should get the gateway; such a gateway counts as being there
/// already, and goes there once it is free. With `balance`, gateways are moved as long as that makes the greatest share smaller: with equal weights, until no
/// member has two more than another. The same is then done between zones, where no member has more than its share for that.
///
/// Free gateways go to the member that then has the smallest share for its weight; among such members to the one whose zone has, then the lowest name. Members
/// that drain get something only if there is nobody else.
pub fn plan(
    seats: &[Seat],
    candidates: &[Candidate],
    moving: &BTreeMap<GatewayId, Owner>,
    balance: bool,
) -> Vec<Action> {
    Plan::new(seats, candidates, moving).run(balance)
}

/// Gateways for a weight. Shares are compared exactly: as fractions.
#[derive(Clone, Copy, Debug)]
struct Share {
    count: u64,
    weight: u64,
}

impl Share {
    fn with_one_more(self) -> Self {
        let count = self.count + 1;
        Self { count, ..self }
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.count * other.weight).cmp(&(other.count * self.weight))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share {}

/// Who should have some gateways, and what it will have.
struct Load<'a> {
    zone: &'a str,
    share: Share,
}

struct Plan<'a> {
    seats: Vec<&'a Seat>,
    moving: BTreeMap<GatewayId, &'a Owner>,
    load: BTreeMap<&'a Owner, Load<'a>>,
    actions: Vec<Action>,
}

impl<'a> Plan<'a> {
    fn new(
        seats: &'a [Seat],
        candidates: &'a [Candidate],
        moving: &'a BTreeMap<GatewayId, Owner>,
    ) -> Self {
        let draining = candidates.iter().all(|c| c.draining);
        let wanted = candidates.iter().filter(|c| draining || !c.draining);
        let mut load: BTreeMap<&Owner, Load<'_>> = wanted
            .map(|c| {
                let weight = u64::from(c.place.weight.max(1));
                let share = Share { count: 0, weight };
                let zone = c.place.zone.as_str();
                (&c.owner, Load { zone, share })
            })
            .collect();
        // Who is gone, or should have nothing, does not count as a destination.
        let moving: BTreeMap<GatewayId, &Owner> = moving
            .iter()
            .map(|(gateway, to)| (*gateway, to))
            .filter(|(_, to)| load.contains_key(to))
            .collect();
        let mut seats: Vec<&Seat> = seats.iter().collect();
        seats.sort_by_key(|s| s.gateway);
        for seat in &seats {
            let with = moving.get(&seat.gateway).copied().or(match &seat.holding {
                Holding::Held(owner) => Some(owner),
                Holding::Free | Holding::Uncertain => None,
            });
            if let Some(load) = with.and_then(|owner| load.get_mut(owner)) {
                load.share.count += 1;
            }
        }
        Self {
            seats,
            moving,
            load,
            actions: Vec::new(),
        }
    }

    fn run(mut self, balance: bool) -> Vec<Action> {
        self.fill();
        self.drain();
        if balance {
            self.balance();
        }
        self.actions
    }

    /// What a zone will have. Members that say nothing of a zone are in one.
    fn zone(&self, zone: &str) -> Share {
        let members = self.load.values().filter(|l| l.zone == zone);
        members.fold(
            Share {
                count: 0,
                weight: 0,
            },
            |sum, l| Share {
                count: sum.count + l.share.count,
                weight: sum.weight + l.share.weight,
            },
        )
    }

    /// Whoever has least, with one more.
    fn least(&self) -> Option<&'a Owner> {
        let least = self.load.iter().min_by_key(|(owner, load)| {
            let zone = self.zone(load.zone).with_one_more();
            (load.share.with_one_more(), zone, **owner)
        });
        least.map(|(owner, _)| *owner)
    }

    fn add(&mut self, owner: &'a Owner) {
        if let Some(load) = self.load.get_mut(owner) {
            load.share.count += 1;
        }
    }

    fn take(&mut self, owner: &'a Owner) {
        if let Some(load) = self.load.get_mut(owner) {
            load.share.count = load.share.count.saturating_sub(1);
        }
    }

    fn fill(&mut self) {
        for seat in self.seats.clone() {
            if seat.holding != Holding::Free {
                continue;
            }
            let to = match self.moving.get(&seat.gateway) {
                Some(to) => *to,
                None => {
                    let Some(to) = self.least() else { return };
                    self.add(to);
                    to
                }
            };
            self.actions.push(Action::Assign {
                gateway: seat.gateway,
                epoch: seat.epoch,
                to: to.clone(),
            });
        }
    }

    /// Gateways that are held, and that nobody was asked to hand over.
    fn resting(&self) -> Vec<(&'a Seat, &'a Owner)> {
        let resting = self.seats.iter().filter_map(|seat| match &seat.holding {
            Holding::Held(owner) if !self.moving.contains_key(&seat.gateway) => {
                Some((*seat, owner))
            }
            _ => None,
        });
        resting.collect()
    }

    fn move_seat(&mut self, seat: &Seat, from: &Owner, to: &'a Owner) {
        self.add(to);
        self.actions.push(Action::Move {
            gateway: seat.gateway,
            epoch: seat.epoch,
            from: from.clone(),
            to: to.clone(),
        });
    }

    fn drain(&mut self) {
        for (seat, from) in self.resting() {
            if self.load.contains_key(from) {
                continue;
            }
            let Some(to) = self.least() else { return };
            self.move_seat(seat, from, to);
        }
    }

    fn balance(&mut self) {
        let mut movable = self.resting();
        // Each round makes the greater of two shares smaller, so this ends.
        while let Some((from, to)) = self
            .between_members(&movable)
            .or_else(|| self.between_zones(&movable))
        {
            let Some(at) = movable.iter().rposition(|(_, owner)| *owner == from) else {
                return;
            };
            let (seat, _) = movable.remove(at);
            self.take(from);
            self.move_seat(seat, from, to);
        }
    }

    /// Members that have something to give, and their loads.
    fn givers(
        &self,
        movable: &[(&'a Seat, &'a Owner)],
    ) -> impl Iterator<Item = (&'a Owner, &Load<'a>)> {
        let gives = |owner: &Owner| movable.iter().any(|(_, from)| *from == owner);
        let givers = self.load.iter().filter(move |(owner, _)| gives(owner));
        givers.map(|(owner, load)| (*owner, load))
    }

    /// From the member with the greatest share to the one that would have the smallest, if it has less then than the other now.
    fn between_members(&self, movable: &[(&'a Seat, &'a Owner)]) -> Option<(&'a Owner, &'a Owner)> {
        let to = self.least()?;
        let (from, most) = self
            .givers(movable)
            .max_by_key(|(owner, load)| (load.share, self.zone(load.zone), *owner))?;
        (most.share > self.load[to].share.with_one_more()).then_some((from, to))
    }

    /// From one zone to another that has less for the weight of its members, between members to whom it makes no difference.
    fn between_zones(&self, movable: &[(&'a Seat, &'a Owner)]) -> Option<(&'a Owner, &'a Owner)> {
        let better = |from: &Load<'_>, to: &Load<'_>| {
            from.zone != to.zone
                && from.share >= to.share.with_one_more()
                && self.zone(from.zone) > self.zone(to.zone).with_one_more()
        };
        let pairs = self.givers(movable).flat_map(|(from, load)| {
            let others = self.load.iter().filter(move |(_, to)| better(load, to));
            others.map(move |(to, _)| (from, *to))
        });
        pairs.max_by_key(|(from, to)| {
            let zones = [from, to].map(|owner| self.zone(self.load[*owner].zone));
            (zones[0], Reverse(zones[1]), *from, Reverse(*to))
        })
    }
}
