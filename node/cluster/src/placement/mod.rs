//! Which virtual gateway should be with which member. Pure and deterministic: the leader asks again whenever something changed.

#[cfg(test)]
mod tests;

use evergate_ike::record::GatewayId;
use evergate_state::Owner;
use std::collections::BTreeMap;

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

/// A difference below this is not worth a handover.
const WORTH_MOVING: usize = 2;

/// What should be done now. `moving` says of handovers that were asked for who should get the gateway; such a gateway counts as being there
/// already, and goes there once it is free. With `balance`, gateways are moved until no member has two more than another.
///
/// Free gateways go to the member that has least, the lowest name first. Members that drain get something only if there is nobody else.
pub fn plan(
    seats: &[Seat],
    candidates: &[Candidate],
    moving: &BTreeMap<GatewayId, Owner>,
    balance: bool,
) -> Vec<Action> {
    Plan::new(seats, candidates, moving).run(balance)
}

struct Plan<'a> {
    seats: Vec<&'a Seat>,
    moving: BTreeMap<GatewayId, &'a Owner>,
    /// How many gateways those that should have some will have.
    load: BTreeMap<&'a Owner, usize>,
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
        let mut load: BTreeMap<&Owner, usize> = wanted.map(|c| (&c.owner, 0)).collect();
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
            if let Some(count) = with.and_then(|owner| load.get_mut(owner)) {
                *count += 1;
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

    /// Whoever has least.
    fn least(&self) -> Option<&'a Owner> {
        let least = self.load.iter().min_by_key(|(owner, n)| (**n, **owner));
        least.map(|(owner, _)| *owner)
    }

    fn add(&mut self, owner: &'a Owner) {
        *self.load.entry(owner).or_default() += 1;
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
        // Each round makes the difference smaller, so this ends.
        while let Some(to) = self.least() {
            let most = self
                .load
                .iter()
                .map(|(owner, n)| (*n, *owner))
                .filter(|(_, owner)| movable.iter().any(|(_, from)| from == owner))
                .max();
            let Some((most, from)) = most else { return };
            if most < self.load[to] + WORTH_MOVING {
                return;
            }
            let Some(at) = movable.iter().rposition(|(_, owner)| *owner == from) else {
                return;
            };
            let (seat, _) = movable.remove(at);
            *self.load.entry(from).or_default() -= 1;
            self.move_seat(seat, from, to);
        }
    }
}
