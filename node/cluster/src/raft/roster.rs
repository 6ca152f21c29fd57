//! Who may talk to this member: the members of the cluster, as Raft has them; before there is a cluster here, those that it was told of.

use super::types::{Membership, Node, Raft};
use openraft::async_runtime::WatchReceiver as _;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Members as one of them knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roster {
    /// The index of the log entry that made them members; `None` if none did.
    at: Option<u64>,
    /// All of them.
    pub(crate) nodes: Vec<Node>,
}

impl Roster {
    /// Those that a membership has.
    pub(crate) fn of(membership: &Membership) -> Self {
        Self {
            at: membership.log_id().as_ref().map(|id| id.index),
            nodes: membership.nodes().map(|(_, node)| node.clone()).collect(),
        }
    }
}

/// The latest that is known. Clones are the same.
#[derive(Clone)]
pub(crate) struct Known {
    told: Arc<Mutex<Roster>>,
    raft: watch::Receiver<Option<Raft>>,
}

impl Known {
    /// At first those of the configuration, or those that are stored.
    pub(crate) fn new(configured: Vec<Node>, raft: watch::Receiver<Option<Raft>>) -> Self {
        let told = Roster {
            at: None,
            nodes: configured,
        };
        Self {
            told: Arc::new(Mutex::new(told)),
            raft,
        }
    }

    fn told(&self) -> MutexGuard<'_, Roster> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what another member, which proved to be one, says. Who lags behind hears so of members that are to elect a leader with it.
    pub(crate) fn tell(&self, roster: Roster) {
        let mut told = self.told();
        if !roster.nodes.is_empty() && roster.at >= told.at {
            *told = roster;
        }
    }

    /// Raft, once it runs.
    pub(crate) fn raft(&self) -> Option<Raft> {
        self.raft.borrow().clone()
    }

    /// The membership of this member's Raft, if there is one.
    pub(crate) fn membership(&self) -> Option<Arc<Membership>> {
        let raft = self.raft()?;
        let membership = Arc::clone(&raft.server_metrics().borrow_watched().membership_config);
        let any = membership.nodes().next().is_some();
        any.then_some(membership)
    }

    /// The members: those of Raft, unless another member told of later ones.
    pub(crate) fn latest(&self) -> Roster {
        let own = self.membership().map(|m| Roster::of(&m));
        let told = self.told();
        match own {
            Some(own) if own.at >= told.at => own,
            _ => told.clone(),
        }
    }
}
