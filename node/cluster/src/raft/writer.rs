//! The thread that writes the log: it takes everything that waits, makes it one record, syncs once, and then calls all who wait.

use super::types::{NodeId, TypeConfig};
use crate::{
    Generation, failpoint,
    replica::Failed,
    store::{Meta, Store, StoreError},
};
use openraft::storage::IOFlushed;
use std::{
    io,
    ops::Range,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// What is written at once at most; a group commit gains nothing beyond.
const MAX_GROUP: usize = 8 << 20;

/// How far the log reaches is durable so long after the entries are: a power cut may take it back. That costs nothing but the certainty to
/// notice it if the disk also lost entries that it had acknowledged in this time, and saves every commit a second sync.
const SETTLE: Duration = Duration::from_millis(50);

/// What can be asked of the writer.
pub(super) enum Op {
    Append(Append),
    /// Term, node, and whether the node leads.
    Vote((u64, NodeId, bool), Done),
    /// Nothing from this index on remains.
    Truncate(u64, Done),
    /// Everything up to this one, by term and index, is in a snapshot.
    Purge((u64, u64), Done),
    Name(NodeId, Done),
    /// The generation of the cluster.
    Belong(Generation, Done),
    /// A later generation has begun.
    Supersede(Generation, Done),
    /// Entries of this range, of those that were appended before.
    Read(Range<u64>, oneshot::Sender<io::Result<Entries>>),
    End,
}

/// Entries to append.
pub(super) struct Append {
    pub(super) first: u64,
    pub(super) entries: Vec<Vec<u8>>,
    /// What is known to be committed: term and index.
    pub(super) committed: Option<(u64, u64)>,
    /// There are proposals among them.
    pub(super) proposals: bool,
    /// Who is told when they are durable.
    pub(super) done: Vec<IOFlushed<TypeConfig>>,
}

/// Entries as they are stored, by their indices.
pub(super) type Entries = Vec<(u64, Vec<u8>)>;

/// Where it is said that something is durable, or why it is not.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// Writes.
pub(super) struct Writer {
    pub(super) store: Box<dyn Store>,
    /// Who is told when nothing can be written any more.
    pub(super) failed: Failed,
    /// Why nothing is written any more: what the disk holds is unknown.
    pub(super) broken: Option<String>,
    /// When the end of the log is to be made durable, if it is not.
    pub(super) settle_at: Option<Instant>,
}

impl Writer {
    /// Writes until it is told to end, or nobody is left.
    pub(super) fn run(mut self, ops: &mpsc::Receiver<Op>) {
        let mut held: Option<Op> = None;
        while let Some(op) = held.take().or_else(|| self.next(ops)) {
            let (result, answer) = match op {
                Op::End => break,
                Op::Append(mut append) => {
                    held = append.gather(ops);
                    let result = self.guarded(|store| write(store, &append));
                    self.settle_at
                        .get_or_insert_with(|| Instant::now() + SETTLE);
                    for done in append.done {
                        done.io_completed(result.clone().map_err(io::Error::other));
                    }
                    continue;
                }
                Op::Read(range, done) => {
                    let mut entries = Vec::new();
                    let result = self.guarded(|store| {
                        entries = store.read(range)?;
                        Ok(())
                    });
                    // Whoever asked may be gone.
                    let _ = done.send(result.map(|()| entries).map_err(io::Error::other));
                    continue;
                }
                Op::Vote(vote, done) => (self.set(|m| m.vote = Some(vote)), done),
                Op::Name(node, done) => (self.set(|m| m.node = node), done),
                Op::Belong(to, done) => (self.set(|m| m.generation = to), done),
                Op::Supersede(by, done) => (self.set(|m| m.superseded = Some(by)), done),
                Op::Truncate(from, done) => (self.guarded(|s| s.truncate(from)), done),
                Op::Purge(upto, done) => (self.guarded(|s| s.purge(upto)), done),
            };
            // Whoever asked may be gone.
            let _ = answer.send(result.map_err(io::Error::other));
        }
        // What fails is known to who was to be told.
        let _ = self.guarded(|store| store.settle());
    }

    /// Waits for what is to be done next. Meanwhile the end of the log becomes durable.
    fn next(&mut self, ops: &mpsc::Receiver<Op>) -> Option<Op> {
        while let Some(at) = self.settle_at {
            let left = at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                match ops.recv_timeout(left) {
                    Ok(op) => return Some(op),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            self.settle_at = None;
            // If it fails, the next append does, too.
            let _ = self.guarded(|store| store.settle());
        }
        ops.recv().ok()
    }

    fn set(&mut self, change: impl FnOnce(&mut Meta)) -> Result<(), String> {
        self.guarded(|store| {
            let before = store.meta();
            let mut meta = before;
            change(&mut meta);
            // What is as it was is durable already, as everything is that is set here.
            if meta == before {
                return Ok(());
            }
            store.set_meta(meta)
        })
    }

    /// After a failure nothing is written any more.
    fn guarded(
        &mut self,
        work: impl FnOnce(&mut dyn Store) -> Result<(), StoreError>,
    ) -> Result<(), String> {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        work(self.store.as_mut()).map_err(|e| {
            let why = e.to_string();
            tracing::error!(%why, "the log cannot be used");
            self.failed.set(&why);
            self.broken.insert(why).clone()
        })
    }
}

/// The failure points count appends that have proposals among them.
fn write(store: &mut dyn Store, append: &Append) -> Result<(), StoreError> {
    if append.proposals {
        failpoint::hit("before-append");
    }
    store.append(append.first, &append.entries, append.committed)?;
    if append.proposals {
        failpoint::hit("after-append");
    }
    Ok(())
}

impl Append {
    fn bytes(&self) -> usize {
        self.entries.iter().map(Vec::len).sum()
    }

    /// Takes along what waits and follows: it becomes one record. Returns what waits and does not follow.
    fn gather(&mut self, ops: &mpsc::Receiver<Op>) -> Option<Op> {
        let mut bytes = self.bytes();
        while bytes < MAX_GROUP {
            match ops.try_recv().ok()? {
                Op::Append(next) if next.first == self.first + self.entries.len() as u64 => {
                    bytes += next.bytes();
                    self.entries.extend(next.entries);
                    self.committed = next.committed;
                    self.proposals |= next.proposals;
                    self.done.extend(next.done);
                }
                other => return Some(other),
            }
        }
        None
    }
}
