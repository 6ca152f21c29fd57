//! The log of a member: its end in memory to be read, all of it in a store to be durable.
//!
//! What is read is nearly always the end: it is applied, and sent to the others. Who lags behind gets what is older from the store.

use super::{
    meta::{log_id, log_id_parts, vote, vote_parts},
    types::{Entry, LogId, Membership, NodeId, TypeConfig, Vote},
    writer::{Append, Done, Op, Writer},
};
use crate::{
    Generation,
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
    ops::{Bound, Range, RangeBounds},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};
use tokio::sync::oneshot;

/// Bytes of entries that are sent to another member at once, unless a single one is bigger.
const MAX_READ: usize = 1 << 20;

/// Bytes of entries that are kept in memory, the newest: a whole message to another member.
const RESIDENT: usize = 1 << 20;

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

/// An entry of the log.
enum Slot {
    Here(Box<Entry>),
    /// In the store alone: which one, and how big.
    Away(LogId, usize),
}

impl Slot {
    fn log_id(&self) -> LogId {
        match self {
            Self::Here(entry) => entry.log_id(),
            Self::Away(id, _) => *id,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Here(entry) => size(entry),
            Self::Away(_, size) => *size,
        }
    }
}

#[derive(Default)]
struct InMemory {
    entries: BTreeMap<u64, Slot>,
    /// Bytes of the proposals that are here.
    resident: usize,
    /// No proposal before this one is here.
    resident_from: u64,
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
    /// The generation of the cluster; of no meaning if this one is pristine.
    pub(crate) generation: Generation,
    /// A later generation that has begun.
    pub(crate) superseded: Option<Generation>,
}

/// What [`LogStore::open`] opened.
pub(crate) struct OpenedLog {
    pub(crate) log: LogStore,
    pub(crate) identity: Identity,
    pub(crate) end: LogEnd,
    pub(crate) snapshots: Arc<dyn Snapshots>,
}

impl InMemory {
    fn insert(&mut self, entry: Entry) {
        if matches!(entry.payload, EntryPayload::Normal(_)) {
            self.resident += size(&entry);
        }
        self.last = Some(entry.log_id());
        self.entries
            .insert(entry.index(), Slot::Here(Box::new(entry)));
    }

    /// Lets go of the oldest proposals. Whoever wants one asks the writer for it, who was told to write it before.
    fn shed(&mut self) {
        while self.resident > RESIDENT
            && let Some((&index, slot)) = self.entries.range_mut(self.resident_from..).next()
        {
            self.resident_from = index + 1;
            if let Slot::Here(entry) = slot
                && matches!(entry.payload, EntryPayload::Normal(_))
            {
                let size = size(entry);
                self.resident -= size;
                *slot = Slot::Away(entry.log_id(), size);
            }
        }
    }

    /// The latest membership in the log, if it has one.
    fn membership(&self) -> Option<Membership> {
        self.entries.values().rev().find_map(|slot| match slot {
            Slot::Here(entry) => match &entry.payload {
                EntryPayload::Membership(m) => {
                    Some(StoredMembership::new(Some(entry.log_id()), m.clone()))
                }
                _ => None,
            },
            Slot::Away(..) => None,
        })
    }

    /// Forgets entries that are in the log no more.
    fn gone(&mut self, gone: BTreeMap<u64, Slot>) {
        let proposal = |slot: &Slot| match slot {
            Slot::Here(entry) if matches!(entry.payload, EntryPayload::Normal(_)) => size(entry),
            _ => 0,
        };
        self.resident -= gone.values().map(proposal).sum::<usize>();
    }

    /// What is here of these entries, and the range of those that are not, which are the first ones.
    fn read(&self, range: impl RangeBounds<u64>) -> (Option<Range<u64>>, Vec<Entry>) {
        let mut away: Option<Range<u64>> = None;
        let mut here = Vec::new();
        let mut entries = self.entries.range(range).peekable();
        let start = entries.peek().map_or(0, |(index, _)| **index);
        for (&index, slot) in entries {
            match slot {
                // The few that are kept between those that are not are read once more.
                Slot::Away(..) => {
                    here.clear();
                    away = Some(start..index + 1);
                }
                Slot::Here(entry) => here.push((**entry).clone()),
            }
        }
        (away, here)
    }
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
        let terms = log.entries.values().rev().map(Slot::log_id);
        terms
            .chain(log.purged)
            .map(|id| log_id_parts(&id).0)
            .find(|t| *t < term)
    }

    /// The latest membership in the log, if it has one.
    pub(crate) fn membership(&self) -> Option<Membership> {
        self.shared.lock().membership()
    }

    /// Whoever led does not lead on in its term after a restart: entries may have reached others that never became durable here, and it would give their
    /// indices to other ones. With its vote as it was before it won, it has to stand for election, in a later term. For a member that has others.
    pub(crate) fn lead_no_more(&self, own: NodeId) {
        let mut log = self.shared.lock();
        if let Some((term, voted, _)) = log.vote.map(|v| vote_parts(&v))
            && voted == own
        {
            log.vote = Some(vote((term, own, false)));
        }
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
            generation: meta.generation,
            superseded: meta.superseded,
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

    /// Bytes of proposals that are in memory.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        self.shared.lock().resident
    }

    /// Decides which node this is, durably.
    pub(crate) async fn name(&self, node: NodeId) -> io::Result<()> {
        self.ask(|done| Op::Name(node, done)).await
    }

    /// Decides of which generation of the cluster it is, durably.
    pub(crate) async fn belong(&self, to: Generation) -> io::Result<()> {
        self.ask(|done| Op::Belong(to, done)).await
    }

    /// A later generation has begun, and this log is good for nothing any more.
    pub(crate) async fn supersede(&self, by: Generation) -> io::Result<()> {
        self.ask(|done| Op::Supersede(by, done)).await
    }

    /// Entries that may not be in memory.
    async fn read(&self, range: impl RangeBounds<u64>) -> io::Result<Vec<Entry>> {
        let (away, here) = self.shared.lock().read(range);
        let Some(away) = away else { return Ok(here) };
        let (done, answer) = oneshot::channel();
        let op = Op::Read(away.clone(), done);
        self.writer.send(op).map_err(|_| ended())?;
        let stored = answer.await.map_err(|_| ended())??;
        // What was purged meanwhile nobody needs.
        let purged = self.shared.lock().purged;
        let start = away.start.max(next(purged.as_ref()));
        let mut expected = start..away.end;
        let mut entries = Vec::new();
        for (index, bytes) in stored.into_iter().filter(|(index, _)| *index >= start) {
            let entry = decode(index, &bytes).filter(|_| expected.next() == Some(index));
            entries.push(entry.ok_or_else(|| damaged(index))?);
        }
        if let Some(missing) = expected.next() {
            return Err(damaged(missing));
        }
        entries.extend(here);
        Ok(entries)
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

fn damaged(index: u64) -> io::Error {
    io::Error::other(format!("entry {index} of the log is not as it was written"))
}

/// An entry out of the store, if it is the one.
pub(super) fn decode(index: u64, bytes: &[u8]) -> Option<Entry> {
    let entry: Entry = postcard::from_bytes(bytes).ok()?;
    (entry.index() == index).then_some(entry)
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
        memory.insert(entry);
        memory.shed();
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
        self.read((start, end)).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut bytes = 0;
        let end = {
            let memory = self.shared.lock();
            let fit = memory
                .entries
                .range(start..end.max(start))
                .take_while(|(index, slot)| {
                    bytes += slot.size();
                    **index == start || bytes <= MAX_READ
                });
            fit.last().map_or(start, |(index, _)| index + 1)
        };
        self.read(start..end).await
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
        let mut memory = self.shared.lock();
        let mut first = None;
        for entry in entries {
            first.get_or_insert(entry.index());
            proposals |= matches!(entry.payload, EntryPayload::Normal(_));
            encoded.push(encode(&entry)?);
            memory.insert(entry);
        }
        let Some(first) = first else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        // The log that is read at the next start must reach so far.
        let known = memory.committed.filter(|id| id.index < first);
        let committed = known.as_ref().map(log_id_parts);
        let op = Op::Append(Append {
            first,
            entries: encoded,
            committed,
            proposals,
            done: vec![callback],
        });
        // Before anybody can ask the writer for what is let go of.
        self.writer.send(op).map_err(|_| ended())?;
        memory.shed();
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = next(last.as_ref());
        self.ask(|done| Op::Truncate(from, done)).await?;
        let mut memory = self.shared.lock();
        let gone = memory.entries.split_off(&from);
        memory.gone(gone);
        memory.resident_from = memory.resident_from.min(from);
        memory.last = memory
            .entries
            .last_key_value()
            .map(|(_, slot)| slot.log_id())
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
            let rest = memory.entries.split_off(&(upto.index + 1));
            let gone = std::mem::replace(&mut memory.entries, rest);
            memory.gone(gone);
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
