//! What must survive besides the log, and what the log must hold.

use super::types::{LogId, NodeId, Vote};
use crate::store::meta::Content;
use openraft::vote::{RaftCommittedLeaderId, RaftLeaderId};

/// The numbers in the file `meta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RaftMeta {
    /// This node; zero until it is decided.
    pub(super) node: NodeId,
    /// How often it started.
    pub(super) starts: u64,
    /// Every entry up to this one is in the log, unless purged. Raft counts from zero, so this is the next index.
    pub(super) durable_next: u64,
    pub(super) vote: Option<(u64, NodeId, bool)>,
    pub(super) purged: Option<(u64, u64)>,
    /// A lower bound of what is committed.
    pub(super) committed: Option<(u64, u64)>,
}

impl Content for RaftMeta {
    const MAGIC: [u8; 8] = *b"EVGMETA2";
    const COUNT: usize = 13;

    fn numbers(&self) -> Vec<u64> {
        let (term, node, committed) = self.vote.unwrap_or_default();
        let mut out = vec![
            self.node,
            self.starts,
            self.durable_next,
            self.vote.is_some().into(),
            term,
            node,
            committed.into(),
        ];
        for id in [self.purged, self.committed] {
            let (term, index) = id.unwrap_or_default();
            out.extend([id.is_some().into(), term, index]);
        }
        out
    }

    fn from_numbers(numbers: &[u64]) -> Option<Self> {
        let &[
            node,
            starts,
            durable_next,
            voted,
            vote_term,
            vote_node,
            vote_committed,
            has_purged,
            purged_term,
            purged_index,
            has_committed,
            committed_term,
            committed_index,
        ] = numbers
        else {
            return None;
        };
        Some(Self {
            node,
            starts,
            durable_next,
            vote: (voted != 0).then_some((vote_term, vote_node, vote_committed != 0)),
            purged: (has_purged != 0).then_some((purged_term, purged_index)),
            committed: (has_committed != 0).then_some((committed_term, committed_index)),
        })
    }
}

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

pub(super) fn vote((term, node, committed): (u64, NodeId, bool)) -> Vote {
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
