//! Who follows this member, by the answers to its heartbeats.
//!
//! Raft gives up waiting for the answer to a heartbeat when the next one is due, and then does not count it. On a busy machine that
//! would cost leases although everybody follows: so answers are counted here however late they come. They count from when the
//! heartbeat was sent, so a late one proves no more than it should.

use super::types::{NodeId, Vote};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// The latest heartbeat that each member has answered. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Acks(Arc<Mutex<BTreeMap<NodeId, (Vote, Instant)>>>);

impl Acks {
    /// A member follows: it has answered a heartbeat of the leader with this vote that was sent then.
    pub(crate) fn answered(&self, member: NodeId, vote: &Vote, sent: Instant) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        latest
            .entry(member)
            .and_modify(|(of, at)| {
                // Answers come in any order; the vote is one leader's, which has one after the other.
                if of == vote {
                    *at = sent.max(*at);
                } else if sent > *at {
                    (*of, *at) = (*vote, sent);
                }
            })
            .or_insert_with(|| (*vote, sent));
    }

    /// When the latest heartbeat was sent that most members of each set (`own` among them) have answered under this vote.
    pub(crate) fn quorum(
        &self,
        vote: &Vote,
        own: NodeId,
        sets: &[BTreeSet<NodeId>],
        now: Instant,
    ) -> Option<Instant> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |member: &NodeId| {
            if *member == own {
                return Some(now);
            }
            let (of, at) = latest.get(member)?;
            (of == vote).then_some(*at)
        };
        let acked = |set: &BTreeSet<NodeId>| {
            let mut times: Vec<Option<Instant>> = set.iter().map(of).collect();
            times.sort_unstable();
            // The latest that a majority has reached.
            *times.get(times.len().checked_sub(1)? / 2)?
        };
        sets.iter().map(acked).min()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::vote::RaftVote as _;
    use std::time::Duration;

    fn vote(term: u64) -> Vote {
        let leader = openraft::impls::leader_id_std::LeaderId { term, voted_for: 1 };
        Vote::from_leader_id(leader, true)
    }

    #[test]
    fn a_majority_of_each_set_counts_and_answers_under_other_votes_do_not() {
        let acks = Acks::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let three = [BTreeSet::from([1, 2, 3])];
        let quorum = |sets: &[BTreeSet<NodeId>], term| acks.quorum(&vote(term), 1, sets, at(1000));
        assert_eq!(quorum(&three, 5), None, "nobody answered");
        acks.answered(2, &vote(5), at(10));
        assert_eq!(quorum(&three, 5), Some(at(10)), "itself and one of two");
        acks.answered(3, &vote(5), at(30));
        assert_eq!(quorum(&three, 5), Some(at(30)));
        acks.answered(3, &vote(5), at(20));
        assert_eq!(
            quorum(&three, 5),
            Some(at(30)),
            "a late answer takes nothing away"
        );
        assert_eq!(quorum(&three, 6), None, "another term");
        let five = [BTreeSet::from([1, 2, 3, 4, 5])];
        assert_eq!(quorum(&five, 5), Some(at(10)), "itself and two of four");
        let joint = [BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        assert_eq!(quorum(&joint, 5), None, "nobody of the other set answered");
        let without = [BTreeSet::from([2, 3, 4])];
        assert_eq!(
            quorum(&without, 5),
            Some(at(10)),
            "a leader that is no voter"
        );
        assert_eq!(quorum(&[BTreeSet::from([1])], 5), Some(at(1000)), "alone");
        acks.answered(2, &vote(6), at(40));
        acks.answered(2, &vote(5), at(35));
        assert_eq!(
            quorum(&three, 6),
            Some(at(40)),
            "of the vote before, and late"
        );
    }
}
