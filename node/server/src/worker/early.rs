//! Messages for IKE SAs that are not there yet.
//!
//! The peer knows the new IKE SA of a rekey before its record is committed here, and may ask for something on it at once (RFC 7296 §2.8). It would be told that
//! there is no such SA, or have to ask again.

use super::slot::Queued;
use evergate_ike::record::SaId;
use std::collections::VecDeque;

/// Messages that wait, of all SAs. They are done within a commit; what waits in vain is pushed out.
const MAX_EARLY: usize = 64;

/// What came too early, in the order of its arrival.
#[derive(Debug, Default)]
pub(super) struct Early(VecDeque<(SaId, Queued)>);

impl Early {
    /// Lets a message wait for its SA. Of too many the oldest is lost: yields whether one was.
    pub(super) fn put(&mut self, sa: SaId, message: Queued) -> bool {
        let full = self.0.len() == MAX_EARLY;
        if full {
            self.0.pop_front();
        }
        self.0.push_back((sa, message));
        full
    }

    /// What waits for an SA that is there now.
    pub(super) fn take(&mut self, sa: SaId) -> Vec<Queued> {
        let (its, others) = self.0.drain(..).partition(|(id, _)| *id == sa);
        self.0 = others;
        let its: VecDeque<_> = its;
        its.into_iter().map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(early: &mut Early, sa: u64) -> Vec<bool> {
        let taken = early.take(SaId(sa));
        taken
            .iter()
            .map(|m| matches!(m, Queued::Exists(true)))
            .collect()
    }

    #[test]
    fn each_sa_gets_its_own_in_order() {
        let mut early = Early::default();
        for (sa, first) in [(1, true), (2, true), (1, false)] {
            assert!(!early.put(SaId(sa), Queued::Exists(first)));
        }
        assert_eq!(waiting(&mut early, 1), [true, false]);
        assert_eq!(waiting(&mut early, 1), [false; 0]);
        assert_eq!(waiting(&mut early, 2), [true]);
    }

    #[test]
    fn the_oldest_of_too_many_is_lost() {
        let mut early = Early::default();
        assert!(!early.put(SaId(1), Queued::Exists(true)));
        let lost = (0..MAX_EARLY).filter(|_| early.put(SaId(2), Queued::Exists(true)));
        assert_eq!(lost.count(), 1);
        assert_eq!(waiting(&mut early, 1), [false; 0]);
        assert_eq!(waiting(&mut early, 2).len(), MAX_EARLY);
    }
}
