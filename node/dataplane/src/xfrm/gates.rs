//! Which virtual gateways the kernel may send for, as far as it was told.
//!
//! In user space each packet looks at its gate. The kernel cannot, so policies say it, a little later: what must not leave in between, and what a process
//! that was stopped cannot say, the dead-man switch holds back. So this is what keeps numbers from being spent, packets from another gateway's
//! wider selectors, and the lease in force should somebody remove the switch.

use crate::Gate;
use std::{collections::HashMap, sync::Arc, time::Duration};

/// A lease that comes back so soon changes no policy: there may be as many as there are Child SAs.
const PATIENCE: Duration = Duration::from_millis(500);

/// The gates of all Child SAs.
#[derive(Default)]
pub(super) struct Gates(HashMap<usize, Entry>);

struct Entry {
    gate: Arc<Gate>,
    /// How many Child SAs have it.
    users: usize,
    /// What the kernel was told, or is about to be.
    open: bool,
    /// When it was first seen closed, on the boot-time clock.
    closed: Option<Duration>,
}

fn name(gate: &Arc<Gate>) -> usize {
    Arc::as_ptr(gate).addr()
}

impl Gates {
    /// A Child SA has this gate.
    pub(super) fn enter(&mut self, gate: &Arc<Gate>, now: Duration) {
        let entry = self.0.entry(name(gate)).or_insert_with(|| Entry {
            gate: Arc::clone(gate),
            users: 0,
            open: gate.is_open(now),
            closed: None,
        });
        entry.users += 1;
    }

    /// It is gone.
    pub(super) fn leave(&mut self, gate: &Arc<Gate>) {
        if let Some(entry) = self.0.get_mut(&name(gate)) {
            entry.users -= 1;
            if entry.users == 0 {
                self.0.remove(&name(gate));
            }
        }
    }

    /// Whether the kernel may send for Child SAs with this gate.
    pub(super) fn is_open(&self, gate: &Arc<Gate>) -> bool {
        self.0.get(&name(gate)).is_some_and(|e| e.open)
    }

    /// Looks at all gates at this time on the boot-time clock, and yields those of which the kernel is to be told something else. Of one that is shut it
    /// is not: its Child SAs are about to go, and a handover should not wait for this.
    pub(super) fn look(&mut self, now: Duration) -> Vec<Arc<Gate>> {
        let mut changed = Vec::new();
        for entry in self.0.values_mut().filter(|e| !e.gate.is_shut()) {
            let open = entry.gate.is_open(now);
            entry.closed = (!open).then(|| entry.closed.unwrap_or(now));
            let waits = entry
                .closed
                .is_some_and(|t| now.saturating_sub(t) < PATIENCE);
            if open != entry.open && !waits {
                entry.open = open;
                changed.push(Arc::clone(&entry.gate));
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_kernel_is_told_of_leases_that_are_there_at_once_and_of_lost_ones_after_a_while() {
        let (mut gates, gate) = (Gates::default(), Arc::new(Gate::closed()));
        gates.enter(&gate, at(0));
        assert!(!gates.is_open(&gate), "no lease yet");
        assert!(gates.look(at(1)).is_empty());
        gate.open_until(at(1000));
        assert_eq!(gates.look(at(2)).len(), 1);
        assert!(gates.is_open(&gate));
        assert!(gates.look(at(1000)).is_empty(), "it may come back");
        gate.open_until(at(1600));
        assert!(gates.look(at(1499)).is_empty());
        assert!(gates.look(at(1600)).is_empty(), "counted anew");
        assert_eq!(gates.look(at(2100)).len(), 1);
        assert!(!gates.is_open(&gate));
        gate.open_until(at(3000));
        assert_eq!(gates.look(at(2200)).len(), 1);
        gate.shut();
        assert!(gates.look(at(9000)).is_empty(), "its Child SAs are to go");
    }

    #[test]
    fn gateways_have_their_own_gates_and_are_forgotten_with_their_last_child() {
        let mut gates = Gates::default();
        let (one, other) = (Arc::<Gate>::default(), Arc::new(Gate::closed()));
        for gate in [&one, &one, &other] {
            gates.enter(gate, at(0));
        }
        assert!(gates.is_open(&one) && !gates.is_open(&other));
        gates.leave(&one);
        assert!(gates.is_open(&one));
        gates.leave(&one);
        gates.leave(&other);
        assert!(gates.0.is_empty());
    }
}
