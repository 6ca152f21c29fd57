//! What waits to be committed: one queue, in the order of arrival, bounded.

use evergate_state::{Command, Level, Outcome};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use zeroize::Zeroizing;

/// Bytes of commands that one entry holds at most, so that an entry neither stalls those behind it nor needs endless memory.
/// A proposal must fit.
pub(crate) const MAX_ENTRY: usize = 4 << 20;

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The member's storage failed, and it must stop serving. Whether this proposal is durable is not known until the next start.
    #[error("this member's storage failed: {0}")]
    Failed(Arc<str>),
    /// The member is stopping.
    #[error("this member is stopping")]
    Closed,
    /// Too many lazy proposals wait.
    #[error("too many proposals wait to be committed")]
    Busy,
    /// The proposal does not fit into an entry.
    #[error("the proposal has {0} bytes, more than an entry can hold")]
    TooBig(usize),
    /// The proposal was committed, but this member was so far behind that it took it over with a snapshot, which does not say what
    /// became of it.
    #[error("the proposal was committed, but its outcome is not known here")]
    OutcomeUnknown,
    /// Some member does not understand it.
    #[error(
        "not all members have a version of the program that knows this ({0} of the replicated format): upgrade them first"
    )]
    NotYet(Level),
    /// The proposal cannot be encoded.
    #[error("the proposal cannot be encoded")]
    Unencodable,
}

/// Where the outcomes of a proposal go.
pub(crate) type Answer = oneshot::Sender<Result<Vec<Outcome>, ProposeError>>;

/// A proposal that waits.
pub(crate) struct Proposal {
    pub(crate) commands: Vec<Command>,
    /// The commands one after the other as they will stand in the log, encoded by who proposes, not by the one thread that writes.
    pub(crate) encoded: Zeroizing<Vec<u8>>,
    /// Nobody waits for a lazy proposal.
    pub(crate) answer: Option<Answer>,
    /// Its place in the queue.
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Proposal {
    pub(crate) fn new(
        commands: Vec<Command>,
        answer: Option<Answer>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, ProposeError> {
        let encoded = commands
            .iter()
            .try_fold(Vec::with_capacity(1024), |out, command| {
                postcard::to_extend(command, out)
            });
        let encoded = Zeroizing::new(encoded.map_err(|_| ProposeError::Unencodable)?);
        if encoded.len() > MAX_ENTRY {
            return Err(ProposeError::TooBig(encoded.len()));
        }
        Ok(Self {
            commands,
            encoded,
            answer,
            _permit: permit,
        })
    }

    /// Tells the outcomes to who waits, if anybody still does.
    pub(crate) fn finish(self, result: Result<Vec<Outcome>, ProposeError>) {
        if let Some(answer) = self.answer {
            let _ = answer.send(result);
        }
    }
}

/// The queue.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Proposal>,
    /// When the lazy proposals that wait must go at the latest, if nobody else takes them along.
    due: Option<Instant>,
    /// Somebody waits for an answer.
    eager: bool,
    /// Why nothing more is accepted.
    ended: Option<ProposeError>,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a proposal. A lazy one waits up to `tick` for others to go along with.
    pub(crate) fn push(&self, proposal: Proposal, tick: Duration) -> Result<(), ProposeError> {
        let mut inner = self.lock();
        if let Some(why) = &inner.ended {
            return Err(why.clone());
        }
        if proposal.answer.is_some() {
            inner.eager = true;
        } else if inner.due.is_none() {
            inner.due = Some(Instant::now() + tick);
        }
        inner.waiting.push_back(proposal);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits until something has to be committed, and takes as much as fits into an entry. `None` when the queue has ended and is empty.
    pub(crate) fn take(&self) -> Option<Vec<Proposal>> {
        let mut inner = self.lock();
        loop {
            let now = Instant::now();
            let ripe =
                inner.eager || inner.due.is_some_and(|due| due <= now) || inner.ended.is_some();
            if ripe && !inner.waiting.is_empty() {
                return Some(inner.drain());
            }
            if inner.ended.is_some() {
                return None;
            }
            inner = match inner.due {
                Some(due) => self
                    .changed
                    .wait_timeout(inner, due.saturating_duration_since(now))
                    .map(|(i, _)| i)
                    .unwrap_or_else(|e| e.into_inner().0),
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Accepts nothing more. What waits is still taken.
    pub(crate) fn end(&self, why: ProposeError) {
        let mut inner = self.lock();
        inner.ended.get_or_insert(why);
        self.changed.notify_one();
    }

    /// Accepts nothing more and refuses what waits.
    pub(crate) fn fail(&self, why: &ProposeError) {
        let mut inner = self.lock();
        inner.ended = Some(why.clone());
        let waiting = std::mem::take(&mut inner.waiting);
        drop(inner);
        for proposal in waiting {
            proposal.finish(Err(why.clone()));
        }
    }
}

impl Inner {
    fn drain(&mut self) -> Vec<Proposal> {
        let mut bytes = 0;
        let fits = self
            .waiting
            .iter()
            .take_while(|p| {
                bytes += p.encoded.len();
                bytes <= MAX_ENTRY
            })
            .count();
        let taken: Vec<_> = self.waiting.drain(..fits).collect();
        self.eager = self.waiting.iter().any(|p| p.answer.is_some());
        if self.waiting.is_empty() {
            self.due = None;
        }
        taken
    }
}
