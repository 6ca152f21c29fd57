//! When SAs want to be woken.

use evergate_ike::{env::UnixMillis, record::SaId};
use std::collections::{BTreeSet, HashMap};

/// One deadline for each SA at most.
#[derive(Debug, Default)]
pub(super) struct Timers {
    order: BTreeSet<(UnixMillis, SaId)>,
    deadlines: HashMap<SaId, UnixMillis>,
}

impl Timers {
    /// Sets or takes away the deadline of an SA.
    pub(super) fn set(&mut self, sa: SaId, at: Option<UnixMillis>) {
        let before = match at {
            Some(at) => self.deadlines.insert(sa, at),
            None => self.deadlines.remove(&sa),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.order.remove(&(before, sa));
        }
        if let Some(at) = at {
            self.order.insert((at, sa));
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<UnixMillis> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes away the earliest deadline if it has come.
    pub(super) fn pop(&mut self, now: UnixMillis) -> Option<SaId> {
        let (at, sa) = *self.order.first().filter(|(at, _)| *at <= now)?;
        self.order.remove(&(at, sa));
        self.deadlines.remove(&sa);
        Some(sa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_each_sa_has_one_deadline() {
        let mut timers = Timers::default();
        timers.set(SaId(1), Some(UnixMillis(30)));
        timers.set(SaId(2), Some(UnixMillis(20)));
        timers.set(SaId(1), Some(UnixMillis(10)));
        assert_eq!(timers.next(), Some(UnixMillis(10)));
        assert_eq!(timers.pop(UnixMillis(9)), None);
        assert_eq!(timers.pop(UnixMillis(25)), Some(SaId(1)));
        timers.set(SaId(2), None);
        timers.set(SaId(2), None);
        assert_eq!(timers.pop(UnixMillis(25)), None);
        assert_eq!(timers.next(), None);
        timers.set(SaId(1), Some(UnixMillis(30)));
        assert_eq!(timers.next(), Some(UnixMillis(30)));
    }
}
