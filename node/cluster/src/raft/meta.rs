//! Raft's numbers as they are stored, and back.

use super::types::{LogId, NodeId, Vote};
use openraft::vote::{RaftCommittedLeaderId, RaftLeaderId};

pub(super) fn log_id((term, index): (u64, u64)) -> LogId {
    LogId::new(committed_leader(term), index)
}

pub(super) fn log_id_parts(id: &LogId) -> (u64, u64) {
    (id.leader_id.term, id.index)
}

fn committed_leader(term: u64) -> <LogId as HasLeader>::Leader {
    openraft::impls::leader_id_std::LeaderId::<u64, NodeId>::new(term, 0).to_committed()
}

/// Names the type of a committed leader, which the library does not export.
trait HasLeader {
    type Leader: RaftCommittedLeaderId;
}

impl<L: RaftCommittedLeaderId> HasLeader for openraft::LogId<L> {
    type Leader = L;
}

pub(in crate::raft) fn vote((term, node, committed): (u64, NodeId, bool)) -> Vote {
    if committed {
        Vote::new_committed(term, node)
    } else {
        Vote::new(term, node)
    }
}

pub(super) fn vote_parts(vote: &Vote) -> (u64, NodeId, bool) {
    (
        vote.leader_id.term,
        vote.leader_id.voted_for,
        vote.committed,
    )
}
