//! The log of a member: in memory to be read, in a store to be durable.
//!
//! What the log holds between two snapshots is bounded, so all of it is kept in memory and the store is only read at the start.

use super::{
    meta::{log_id, log_id_parts, vote, vote_parts},
    types::{Entry, LogId, Membership, NodeId, TypeConfig, Vote},
    writer::{Append, Done, Op, Writer},
};
use crate::{
    replica::Failed,
    store::{Meta, Snapshots, Storage, StoreError},
};
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader, StoredMembership,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};
use tokio::sync::oneshot;

/// Bytes of entries that are sent to another member at once, unless a single one is bigger.
const MAX_READ: usize = 1 << 20;

/// The log, for Raft. Clones read and write the same one.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Op>,
}

/// Ends the writer, and waits for it.
pub(crate) struct LogEnd {
    writer: mpsc::Sender<Op>,
    thread: thread::JoinHandle<()>,
}

#[derive(Default)]
struct Shared(Mutex<InMemory>);

#[derive(Default)]
struct InMemory {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    last: Option<LogId>,
}

/// Who this process is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    /// The node; `None` before it was decided.
    pub(crate) node: Option<NodeId>,
    /// How often it was opened, this time included.
    pub(crate) starts: u64,
    /// Nothing was ever logged, and nobody voted for.
    pub(crate) pristine: bool,
    /// The last entry that was purged: a snapshot must reach at least so far.
    pub(crate) purged: Option<u64>,
}

/// What [`LogStore::open`] opened.
pub(crate) struct OpenedLog {
    pub(crate) log: LogStore,
    pub(crate) identity: Identity,
    pub(crate) end: LogEnd,
    pub(crate) snapshots: Arc<dyn Snapshots>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, InMemory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogStore {
    /// The term of the last entry before the first one of this term, if it is still there.
    pub(crate) fn term_before(&self, term: u64) -> Option<u64> {
        let log = self.shared.lock();
        let terms = log.entries.values().rev().map(|entry| entry.log_id());
        terms
            .chain(log.purged)
            .map(|id| log_id_parts(&id).0)
            .find(|t| *t < term)
    }

    /// The latest membership in the log, if it has one.
    pub(crate) fn membership(&self) -> Option<Membership> {
        let log = self.shared.lock();
        log.entries.values().rev().find_map(|e| match &e.payload {
            EntryPayload::Membership(m) => Some(StoredMembership::new(Some(e.log_id()), m.clone())),
            _ => None,
        })
    }

    /// Opens the log. If it can no longer be written, `failed` says why.
    ///
    /// # Errors
    /// If it is in use, cannot be used, is damaged, or is shorter than it was.
    pub(crate) fn open(storage: &Storage, failed: Failed) -> Result<OpenedLog, StoreError> {
        let mut opened = storage.open()?;
        let mut meta = opened.store.meta();
        meta.starts += 1;
        opened.store.set_meta(meta)?;
        let memory = load(storage, meta, opened.entries)?;
        let identity = Identity {
            node: Some(meta.node).filter(|n| *n != 0),
            starts: meta.starts,
            pristine: memory.last.is_none() && memory.vote.is_none(),
            purged: memory.purged.map(|id| id.index),
        };
        let (writer, ops) = mpsc::channel();
        let work = Writer {
            store: opened.store,
            failed,
            broken: None,
            settle_at: None,
        };
        let thread = thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || work.run(&ops))
            .map_err(|source| StoreError::Io {
                path: PathBuf::from(storage.to_string()),
                source,
            })?;
        let log = Self {
            shared: Arc::new(Shared(Mutex::new(memory))),
            writer: writer.clone(),
        };
        Ok(OpenedLog {
            log,
            identity,
            end: LogEnd { writer, thread },
            snapshots: opened.snapshots,
        })
    }

    /// Decides which node this is, durably.
    pub(crate) async fn name(&self, node: NodeId) -> io::Result<()> {
        self.ask(|done| Op::Name(node, done)).await
    }

    async fn ask(&self, op: impl FnOnce(Done) -> Op) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.writer.send(op(done)).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl LogEnd {
    /// Closes the log. What was not written by now is not.
    pub(crate) fn close(self) {
        // Fails only if the thread is gone already.
        let _ = self.writer.send(Op::End);
        let _ = self.thread.join();
    }
}

fn ended() -> io::Error {
    io::Error::other("the log is closed")
}

fn next(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

/// The log in memory, from what the store held.
fn load(
    storage: &Storage,
    meta: Meta,
    stored: Vec<(u64, Vec<u8>)>,
) -> Result<InMemory, StoreError> {
    let damaged = |what: String| StoreError::Damaged {
        path: PathBuf::from(storage.to_string()),
        what,
    };
    let purged = meta.purged.map(log_id);
    let mut memory = InMemory {
        vote: meta.vote.map(vote),
        committed: meta.committed.map(log_id),
        last: purged,
        purged,
        ..InMemory::default()
    };
    for (index, bytes) in stored {
        let entry: Entry = postcard::from_bytes(&bytes)
            .map_err(|_| damaged(format!("entry {index} cannot be understood")))?;
        if entry.index() != index {
            return Err(damaged(format!("entry {index} says that it is another")));
        }
        memory.last = Some(entry.log_id());
        memory.entries.insert(index, entry);
    }
    Ok(memory)
}

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(entry).map_err(io::Error::other)
}

/// The bytes of an entry in a message, about.
fn size(entry: &Entry) -> usize {
    64 + match &entry.payload {
        EntryPayload::Normal(batch) => batch.sealed.len(),
        EntryPayload::Blank => 0,
        EntryPayload::Membership(_) => 4096,
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = (range.start_bound().cloned(), range.end_bound().cloned());
        if let (Bound::Included(a), Bound::Excluded(b)) = (start, end)
            && a >= b
        {
            return Ok(Vec::new());
        }
        let memory = self.shared.lock();
        Ok(memory
            .entries
            .range((start, end))
            .map(|(_, e)| e.clone())
            .collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let memory = self.shared.lock();
        let mut bytes = 0;
        Ok(memory
            .entries
            .range(start..end.max(start))
            .take_while(|(index, entry)| {
                bytes += size(entry);
                **index == start || bytes <= MAX_READ
            })
            .map(|(_, e)| e.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.shared.lock();
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: memory.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.ask(|done| Op::Vote(vote_parts(vote), done)).await?;
        self.shared.lock().vote = Some(*vote);
        Ok(())
    }

    /// Becomes durable with the next append: it only has to be a lower bound.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut proposals = false;
        let (first, committed) = {
            let mut memory = self.shared.lock();
            let mut first = None;
            for entry in entries {
                first.get_or_insert(entry.index());
                proposals |= matches!(entry.payload, EntryPayload::Normal(_));
                encoded.push(encode(&entry)?);
                memory.last = Some(entry.log_id());
                memory.entries.insert(entry.index(), entry);
            }
            // The log that is read at the next start must reach so far.
            let known = memory.committed.filter(|id| Some(id.index) < first);
            (first, known.as_ref().map(log_id_parts))
        };
        let Some(first) = first else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let op = Op::Append(Append {
            first,
            entries: encoded,
            committed,
            proposals,
            done: vec![callback],
        });
        self.writer.send(op).map_err(|_| ended())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = next(last.as_ref());
        self.ask(|done| Op::Truncate(from, done)).await?;
        let mut memory = self.shared.lock();
        memory.entries.split_off(&from);
        memory.last = memory
            .entries
            .last_key_value()
            .map(|(_, e)| e.log_id())
            .or(memory.purged);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.shared.lock();
            if memory.purged.is_some_and(|p| p >= upto) {
                return Ok(());
            }
            memory.purged = Some(upto);
            memory.entries = memory.entries.split_off(&(upto.index + 1));
            if memory.entries.is_empty() {
                memory.last = memory.last.max(Some(upto));
                if memory.last.is_some_and(|l| l.index <= upto.index) {
                    memory.last = Some(upto);
                }
            }
        }
        self.ask(|done| Op::Purge(log_id_parts(&upto), done)).await
    }
}
