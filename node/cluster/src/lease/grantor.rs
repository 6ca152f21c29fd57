//! The leader's side of leases.

use super::{BootTime, Grant, Request, Timing};
use evergate_ike::record::GatewayId;
use evergate_state::Owner;
use std::collections::{BTreeMap, BTreeSet};

/// Why nothing was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The leader has not heard from a quorum for too long: there may be another leader.
    #[error("the leader may no longer be one")]
    NoQuorum,
    /// It is about to hand leadership over.
    #[error("leadership is being transferred")]
    Stopped,
}

/// What the leader of one term knows of leases.
///
/// Made when the leader has applied an entry of its own term, so that what it reads of the state includes every assignment of its
/// predecessors; dropped when it is no leader any more.
#[derive(Debug)]
pub struct Grantor {
    timing: Timing,
    term: u64,
    me: Owner,
    /// Until then, leases of former leaders may run.
    inherited: BootTime,
    /// The leader before, and until when its own leases may run, which is known.
    former: Option<(Owner, BootTime)>,
    /// Until when processes that asked in this term may act.
    until: BTreeMap<Owner, BootTime>,
    /// Gateways that are being assigned to somebody else, with the epoch that ends.
    ending: BTreeSet<(GatewayId, u32)>,
    stopped: bool,
}

impl Grantor {
    /// A leader that was elected before `now`. `former` comes from [`Holder::former_leader`](super::Holder::former_leader).
    pub fn new(timing: Timing, term: u64, me: Owner, former: Option<Owner>, now: BootTime) -> Self {
        Self {
            inherited: now.after(timing.surely(timing.grant)),
            former: former
                .filter(|f| *f != me)
                .map(|f| (f, now.after(timing.surely(timing.overlap())))),
            timing,
            term,
            me,
            until: BTreeMap::new(),
            ending: BTreeSet::new(),
            stopped: false,
        }
    }

    /// Answers a request that was received before `now`. `quorum_until` is the end of the leader's own lease
    /// ([`Timing::quorum_until`]); `epoch_of` says in which epoch the asking process has a gateway in the leader's state
    /// ([`State::epoch_of`](evergate_state::State::epoch_of)).
    ///
    /// # Errors
    /// If nothing may be granted at the moment. The process may ask again.
    pub fn grant(
        &mut self,
        request: &Request,
        now: BootTime,
        quorum_until: BootTime,
        epoch_of: impl Fn(GatewayId) -> Option<u32>,
    ) -> Result<Grant, Denied> {
        if self.stopped {
            return Err(Denied::Stopped);
        }
        if now >= quorum_until {
            return Err(Denied::NoQuorum);
        }
        let answer = |gateways| Grant {
            id: request.id,
            term: self.term,
            leader: self.me.clone(),
            gateways,
        };
        if request.unheard > self.timing.unheard() {
            // It is heard but hears nothing, so it has no lease, and others should get what it has. If it does hear this, its next
            // request says so.
            return Ok(answer(Vec::new()));
        }
        let mut gateways = request.gateways.clone();
        gateways.retain(|(gateway, epoch)| {
            epoch_of(*gateway) == Some(*epoch) && !self.ending.contains(&(*gateway, *epoch))
        });
        let until = now.after(self.timing.surely(self.timing.grant));
        let known = self.until.entry(request.owner.clone()).or_insert(until);
        *known = until.max(*known);
        Ok(answer(gateways))
    }

    /// Grants nothing more: leadership is about to be transferred, and the votes for that ask for no lease. The leader hands its own
    /// gateways over before.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// When a process may no longer act, if it does not ask again. Its gateways may be reassigned from then on.
    pub fn silent_from(&self, owner: &Owner) -> BootTime {
        match self.until.get(owner) {
            // What it got in this term lasts longer than anything it got before.
            Some(until) => *until,
            None => match &self.former {
                Some((former, until)) if former == owner => self.inherited.min(*until),
                _ => self.inherited,
            },
        }
    }

    /// Whether a process asked in this term and its lease runs.
    pub fn is_live(&self, owner: &Owner, now: BootTime) -> bool {
        self.until.get(owner).is_some_and(|until| now < *until)
    }

    /// Processes whose leases run, in the order of their names.
    pub fn live(&self, now: BootTime) -> impl Iterator<Item = &Owner> {
        let running = self.until.iter().filter(move |(_, until)| now < **until);
        running.map(|(owner, _)| owner)
    }

    /// When the next of the leases that run is over, if nobody asks meanwhile.
    pub fn next_end(&self, now: BootTime) -> Option<BootTime> {
        let running = self.until.values().filter(|until| now < **until);
        running.min().copied()
    }

    /// Starts to take a gateway away from a silent owner (`None`: nobody has it). From here on the owner gets no lease under this epoch any
    /// more, also if it asks again before the assignment is committed. Returns false, and does nothing, while a lease of it may run.
    ///
    /// Whether the assignment was committed or refused: [`Grantor::settled`]. If that is not known (a time-out), it is not
    /// settled, and may be proposed again.
    #[must_use]
    pub fn reassign(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        owner: Option<&Owner>,
        now: BootTime,
    ) -> bool {
        let free = !self.stopped && owner.is_none_or(|o| now >= self.silent_from(o));
        if free {
            self.ending.insert((gateway, epoch));
        }
        free
    }

    /// The assignment that would end this epoch was applied or refused.
    pub fn settled(&mut self, gateway: GatewayId, epoch: u32) {
        self.ending.remove(&(gateway, epoch));
    }

    /// Forgets processes whose leases are over and that have nothing, so that restarts do not add up.
    pub fn forget(&mut self, now: BootTime, keep: impl Fn(&Owner) -> bool) {
        let inherited = now < self.inherited;
        self.until
            .retain(|owner, until| inherited || now < *until || keep(owner));
    }
}
