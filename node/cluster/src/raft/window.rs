//! The batches of this process that are under way: sealed and numbered, not yet applied.

use super::types::Batch;
use crate::queue::{Proposal, ProposeError};
use evergate_ike::env::UnixMillis;
use evergate_state::{Entry, Outcome};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// How many batches are under way at once. More than one, so that a proposal need not wait until the batch before it is
/// committed; few, so that proposals gather to batches under load.
pub(crate) const WIDTH: usize = 4;

/// The batches under way.
#[derive(Default)]
pub(crate) struct Window {
    inner: Mutex<Inner>,
    room: Condvar,
    /// Something was added or applied.
    pub(crate) changed: Notify,
}

#[derive(Default)]
struct Inner {
    under_way: VecDeque<Pending>,
    /// Why nothing more is taken.
    ended: Option<ProposeError>,
}

struct Pending {
    batch: Batch,
    at: UnixMillis,
    proposals: Vec<Proposal>,
    counts: Vec<usize>,
}

impl Window {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another batch may be under way; false if none ever may.
    pub(crate) fn wait_for_room(&self) -> bool {
        let mut inner = self.lock();
        while inner.under_way.len() >= WIDTH && inner.ended.is_none() {
            inner = self
                .room
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        inner.ended.is_none()
    }

    /// Adds a batch of these proposals, made at that time.
    pub(crate) fn push(&self, batch: Batch, at: UnixMillis, proposals: Vec<Proposal>) {
        let mut inner = self.lock();
        if let Some(why) = inner.ended.clone() {
            drop(inner);
            refuse(proposals, &why);
            return;
        }
        let counts = proposals.iter().map(|p| p.commands.len()).collect();
        inner.under_way.push_back(Pending {
            batch,
            at,
            proposals,
            counts,
        });
        self.changed.notify_one();
    }

    /// The batches from this number on.
    pub(crate) fn from(&self, number: u64) -> Vec<Batch> {
        self.lock()
            .under_way
            .iter()
            .map(|p| &p.batch)
            .filter(|b| b.number >= number)
            .cloned()
            .collect()
    }

    /// The number of the first batch that is not applied.
    pub(crate) fn first(&self) -> Option<u64> {
        self.lock().under_way.front().map(|p| p.batch.number)
    }

    /// What a batch holds, to be applied; nobody can have it twice.
    pub(crate) fn entry(&self, number: u64) -> Option<Entry> {
        let mut inner = self.lock();
        let pending = inner
            .under_way
            .iter_mut()
            .find(|p| p.batch.number == number)?;
        let commands = pending
            .proposals
            .iter_mut()
            .flat_map(|p| std::mem::take(&mut p.commands))
            .collect();
        Some(Entry {
            at: pending.at,
            commands,
        })
    }

    /// How many batches, and commands in them, are not applied.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let inner = self.lock();
        let commands = inner.under_way.iter().flat_map(|p| &p.counts).sum();
        (inner.under_way.len(), commands)
    }

    /// A batch was applied with these outcomes.
    pub(crate) fn applied(&self, number: u64, outcomes: Vec<Outcome>) {
        self.skipped(number - 1);
        let Some(pending) = self.take(number) else {
            return;
        };
        let mut outcomes = outcomes.into_iter();
        for (proposal, count) in pending.proposals.into_iter().zip(pending.counts) {
            let own: Vec<Outcome> = outcomes.by_ref().take(count).collect();
            if proposal.answer.is_none() {
                own.iter()
                    .filter(|o| matches!(o, Outcome::Refused(_)))
                    .for_each(|refused| {
                        tracing::debug!(?refused, "lazy proposal was refused");
                    });
            }
            proposal.finish(Ok(own));
        }
    }

    /// All up to this one were applied, but not here: a snapshot holds what became of them, and not their outcomes.
    pub(crate) fn skipped(&self, number: u64) {
        while let Some(pending) = self.take(number) {
            refuse(pending.proposals, &ProposeError::OutcomeUnknown);
        }
    }

    /// The first batch, if it is this one or an earlier one.
    fn take(&self, number: u64) -> Option<Pending> {
        let mut inner = self.lock();
        let pending = inner.under_way.pop_front_if(|p| p.batch.number <= number)?;
        drop(inner);
        self.room.notify_one();
        self.changed.notify_one();
        Some(pending)
    }

    /// Takes nothing more, and gives up what is under way.
    pub(crate) fn end(&self, why: &ProposeError) {
        let mut inner = self.lock();
        inner.ended = Some(why.clone());
        let under_way = std::mem::take(&mut inner.under_way);
        drop(inner);
        self.room.notify_all();
        self.changed.notify_one();
        for pending in under_way {
            refuse(pending.proposals, why);
        }
    }
}

fn refuse(proposals: Vec<Proposal>, why: &ProposeError) {
    for proposal in proposals {
        proposal.finish(Err(why.clone()));
    }
}
