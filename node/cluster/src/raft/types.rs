//! The types that Raft is instantiated with.

// The library renames its re-export of the runtime; this is the name that its own macro uses.
#![allow(deprecated)]

use crate::seal::Place;
use bytes::Bytes;
use openraft::alias;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Names a member to Raft. A member that lost its disk comes back under another one.
pub type NodeId = u64;

/// Who a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The member's name, which is in its certificate.
    pub name: String,
    /// Where other members reach it: `host:port`.
    pub address: String,
}

/// One incarnation of a member, ordered: how often it started, then random bits.
pub(crate) type Incarnation = u128;

/// What a log entry carries: proposals of one member, sealed by it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    /// The proposer.
    pub member: NodeId,
    /// Its incarnation: a later one is greater.
    pub incarnation: u128,
    /// Counts the batches of an incarnation from 1.
    pub number: u64,
    /// The sealed entry.
    pub sealed: Bytes,
}

impl Batch {
    pub(crate) fn place(&self) -> Place {
        Place::Batch {
            member: self.member,
            incarnation: self.incarnation,
            number: self.number,
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "batch {} of {:x}/{:x} ({} bytes)",
            self.number,
            self.member,
            self.incarnation >> 64,
            self.sealed.len()
        )
    }
}

openraft::declare_raft_types!(
    /// Raft, as it is used here.
    pub(crate) TypeConfig:
        D = Batch,
        R = (),
        NodeId = NodeId,
        Node = Node,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, super::machine::Machine>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Membership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, Bytes>;
