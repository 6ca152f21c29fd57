//! The side of leases of every process, that of the leader included.

use super::{BootTime, Grant, Request, Timing};
use evergate_ike::record::GatewayId;
use evergate_state::Owner;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Requests that may still be answered: more than fit into a lease.
const OUTSTANDING: usize = 16;

/// What a process may do.
#[derive(Debug)]
pub struct Holder {
    timing: Timing,
    me: Owner,
    next: u64,
    /// When requests were sent, the latest last.
    sent: VecDeque<(u64, BootTime)>,
    /// When the latest that was answered was sent; at first, when the first was.
    heard: Option<BootTime>,
    leases: BTreeMap<GatewayId, Held>,
    /// The latest term in which something was granted, and its leader.
    grantor: Option<(u64, Owner)>,
    /// What it is as a leader: the end of its own leases.
    leading: Option<BootTime>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: u32,
    until: BootTime,
}

impl Holder {
    /// A process that has no lease.
    pub fn new(timing: Timing, me: Owner) -> Self {
        Self {
            timing,
            me,
            next: 1,
            sent: VecDeque::new(),
            heard: None,
            leases: BTreeMap::new(),
            grantor: None,
            leading: None,
        }
    }

    /// A request that is sent *after* `now`, for the gateways that the applied state says are this process's own.
    pub fn request(&mut self, now: BootTime, gateways: Vec<(GatewayId, u32)>) -> Request {
        let id = self.next;
        self.next += 1;
        if self.sent.len() >= OUTSTANDING {
            self.sent.pop_front();
        }
        self.sent.push_back((id, now));
        Request {
            id,
            owner: self.me.clone(),
            gateways,
            unheard: self.heard.get_or_insert(now).until(now),
        }
    }

    /// Takes an answer. It counts from when its request was sent; one that comes late, twice or out of order is no harm.
    pub fn granted(&mut self, grant: &Grant) {
        let Some(&(_, sent)) = self.sent.iter().find(|(id, _)| *id == grant.id) else {
            return;
        };
        self.heard = self.heard.max(Some(sent));
        if self.grantor.as_ref().is_none_or(|(t, _)| *t <= grant.term) {
            self.grantor = Some((grant.term, grant.leader.clone()));
        }
        let mut until = sent.after(self.timing.grant);
        if let Some(end) = self.leading {
            until = until.min(end);
        }
        for &(gateway, epoch) in &grant.gateways {
            let held = self.leases.entry(gateway).or_insert(Held { epoch, until });
            if held.epoch < epoch {
                *held = Held { epoch, until };
            } else if held.epoch == epoch {
                held.until = held.until.max(until);
            }
        }
    }

    /// Whether the process may act for a gateway in an epoch.
    pub fn may_act(&self, gateway: GatewayId, epoch: u32, now: BootTime) -> bool {
        !self.remaining(gateway, epoch, now).is_zero()
    }

    /// For how long it may: zero if not at all. The dead-man switch gets this.
    pub fn remaining(&self, gateway: GatewayId, epoch: u32, now: BootTime) -> Duration {
        let held = self.leases.get(&gateway).filter(|h| h.epoch == epoch);
        held.map_or(Duration::ZERO, |h| now.until(h.until))
    }

    /// Acts for a gateway no more: it was given up or lost. Answers that are under way do not bring it back.
    pub fn drop_gateway(&mut self, gateway: GatewayId) {
        self.leases.remove(&gateway);
        self.sent.clear();
    }

    /// This process leads, and its quorum lease ends at `quorum_until`. All leases that it has and gets end no later than
    /// [`Timing::overlap`] after that, so that its successor need not wait longer. Called with every new end, and first of all before it
    /// grants anything to others; the leader's own requests go through its [`Grantor`](super::Grantor) like all others.
    pub fn lead(&mut self, quorum_until: BootTime) {
        let end = self.timing.own_until(quorum_until);
        self.leading = Some(end);
        for held in self.leases.values_mut() {
            held.until = held.until.min(end);
        }
    }

    /// This process does not lead any more. What it had as a leader still ends when it would have.
    pub fn follow(&mut self) {
        if self.leading.take().is_some() {
            // An answer to itself that is under way would count in full.
            self.sent.clear();
        }
    }

    /// The leader of `term`, if this process knows that it had bounded its own leases: it had, if it granted something. `term` is that of the
    /// last log entry before the first one of this process's own term: nobody can have granted anything after that.
    pub fn former_leader(&self, term: u64) -> Option<Owner> {
        let (granted, leader) = self.grantor.as_ref()?;
        (*granted == term).then(|| leader.clone())
    }
}
