//! The thread that commits: takes what waits, makes it one entry, makes that durable, applies it, answers.

use crate::{
    failpoint,
    queue::{Proposal, ProposeError},
    recovery::ENTRY_FORMAT,
    replica::Shared,
    seal::{Kind, Place, SealError, Sealer},
    store::{Store, StoreError},
};
use evergate_ike::env::UnixMillis;
use evergate_state::{Entry, Outcome};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering},
};
use zeroize::{Zeroize, Zeroizing};

/// What the thread owns.
pub(crate) struct Pipeline {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Box<dyn Store>,
    pub(crate) sealer: Sealer,
    pub(crate) clock: Box<dyn Fn() -> UnixMillis + Send>,
    pub(crate) snapshot_bytes: u64,
    pub(crate) snapshot_entries: u64,
    /// What is being committed: whoever waits for it is told also when that fails.
    pub(crate) in_flight: Vec<Proposal>,
    /// Since the last snapshot.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

/// Why the pipeline ends.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("sealing: {0}")]
    Seal(#[from] SealError),
}

impl Pipeline {
    /// Commits until the queue ends or storage fails. After a failure nothing is accepted any more: what the disk holds is unknown, and
    /// only a new start finds out.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let failure = match catch_unwind(AssertUnwindSafe(|| self.commit_all())) {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(_) => Some("the commit pipeline panicked".to_owned()),
        };
        if let Some(reason) = failure {
            tracing::error!(%reason, "storage failed: this member must stop serving");
            let reason: Arc<str> = reason.into();
            let error = ProposeError::Failed(Arc::clone(&reason));
            shared.failed.send_replace(Some(reason));
            shared.queue.fail(&error);
            for proposal in self.in_flight.drain(..) {
                proposal.finish(Err(error.clone()));
            }
        }
        // The log is closed before anybody learns that it is.
        drop(self);
        shared.ended.send_replace(true);
    }

    fn commit_all(&mut self) -> Result<(), Failure> {
        while let Some(batch) = self.shared.queue.take() {
            self.in_flight = batch;
            self.commit()?;
            if self.bytes >= self.snapshot_bytes || self.entries >= self.snapshot_entries {
                self.snapshot()?;
            }
        }
        Ok(())
    }

    /// Makes what is in flight one entry, durable, applied and answered, in this order.
    fn commit(&mut self) -> Result<(), Failure> {
        let batch = &mut self.in_flight;
        failpoint::hit("before-append");
        let index = self.store.last_index() + 1;
        let at = (self.clock)();
        let blob = seal_entry(&mut self.sealer, index, at, batch)?;
        self.bytes += blob.len() as u64;
        self.entries += 1;
        self.store.append(&[blob])?;
        failpoint::hit("after-append");

        let counts: Vec<usize> = batch.iter().map(|p| p.commands.len()).collect();
        let commands = batch
            .iter_mut()
            .flat_map(|p| std::mem::take(&mut p.commands))
            .collect();
        let entry = Entry { at, commands };
        let mut outcomes = self
            .shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(&entry)
            .into_iter();
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        for (proposal, count) in batch.drain(..).zip(counts) {
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
        self.shared.applied.send_replace(index);
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), Failure> {
        let index = self.store.last_index();
        let state = &self.shared.state;
        let mut plain = Zeroizing::new(
            state
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .to_snapshot(),
        );
        let blob = self.sealer.seal(Kind::Snapshot, index, |out| {
            out.reserve(plain.len() + 64);
            out.extend(plain.iter());
        })?;
        plain.zeroize();
        self.store.install_snapshot(&blob, index)?;
        tracing::debug!(index, bytes = blob.len(), "snapshot written");
        (self.bytes, self.entries) = (0, 0);
        self.shared.snapshots.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// An entry with these proposals, sealed.
pub(crate) fn seal_entry(
    sealer: &mut Sealer,
    place: impl Into<Place>,
    at: UnixMillis,
    batch: &[Proposal],
) -> Result<Vec<u8>, SealError> {
    let count = batch.iter().map(|p| p.commands.len()).sum::<usize>();
    let head = postcard::to_stdvec(&(ENTRY_FORMAT, at, count)).expect("plain numbers into memory");
    sealer.seal(Kind::Entry, place, |out| {
        out.reserve(head.len() + batch.iter().map(|p| p.encoded.len()).sum::<usize>() + 64);
        out.extend(&head);
        batch.iter().for_each(|p| out.extend(p.encoded.iter()));
    })
}
