//! Where the SAs of a worker can be reached, when addresses or routes of this host change (RFC 4555 §3.5).

use super::{Worker, slot::Queued};
use crate::{outer, shared::Shared};
use evergate_ike::{
    config::Policy,
    record::{Phase, Record, SaId},
    sa::{Ways, knows_our_addresses},
};

impl Worker {
    /// Looks at the ways of all SAs that can move.
    pub(super) fn roam_all(&mut self) {
        let policy = self.shared.policy.load_full();
        let own = self.shared.outer_addresses(&policy);
        let all: Vec<SaId> = self
            .slots
            .iter()
            .filter(|(_, slot)| !knows_our_addresses(slot.sa.record(), &own, &policy))
            .map(|(id, _)| *id)
            .collect();
        for id in all {
            self.roam(id);
        }
    }

    /// Tells an SA how it can be reached.
    pub(super) fn roam(&mut self, id: SaId) {
        let policy = self.shared.policy.load_full();
        let Some(slot) = self.slots.get(&id) else {
            return;
        };
        let ways = ways(&self.shared, &policy, slot.sa.record());
        self.feed(id, Queued::Roam(ways));
    }
}

/// How an SA can be reached: at the address that its peer has now, then at its others.
fn ways(shared: &Shared, policy: &Policy, record: &Record) -> Ways {
    let own = shared.outer_addresses(policy);
    let mobike = match &record.phase {
        Phase::Established(e) => e.mobike.as_ref(),
        _ => None,
    };
    let Some(mobike) = mobike else {
        return Ways {
            own,
            pairs: Vec::new(),
        };
    };
    let current = record.path.remote.ip();
    // Routes are asked for only where the answer counts.
    let stays = !mobike.initiator && own.contains(&record.path.local.ip());
    let connection = policy.connection(&record.connection);
    let mut pairs = Vec::new();
    if !stays {
        let others = mobike.peer_addresses.iter().filter(|a| **a != current);
        for remote in [&current].into_iter().chain(others) {
            let used = Some(record.path.local.ip());
            let locals = outer::sources(shared, policy, connection, used, *remote);
            pairs.extend(locals.into_iter().map(|local| (local, *remote)));
        }
    }
    Ways { own, pairs }
}
