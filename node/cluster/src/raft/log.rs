//! The log of a member: in memory to be read, in sled to be durable.
//!
//! What the log holds between two snapshots is bounded, so all of it is kept in memory and the database is only read at the start.
//! A thread of its own writes: it takes everything that waits, makes it one record, syncs once, and then calls all who wait.

use super::{
    meta::{RaftMeta, log_id, log_id_parts, vote, vote_parts},
    types::{Entry, LogId, NodeId, TypeConfig, Vote},
};
use crate::{
    failpoint,
    store::{
        StoreError,
        database::{Batch as Stored, Database},
        make_dir,
        meta::MetaFile,
        snapshot_file,
    },
};
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage},
};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};
use tokio::sync::oneshot;

/// Bytes of entries that are sent to another member at once, unless a single one is bigger.
const MAX_READ: usize = 1 << 20;

/// What is written at once at most; a group commit gains nothing beyond.
const MAX_GROUP: usize = 8 << 20;

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

enum Op {
    Append {
        first: u64,
        entries: Vec<Vec<u8>>,
        done: IOFlushed<TypeConfig>,
    },
    Vote(Vote, Done),
    /// Nothing from this index on remains.
    Truncate(u64, Done),
    Purge(LogId, Done),
    Name(NodeId, Done),
    End,
}

type Done = oneshot::Sender<io::Result<()>>;

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

    /// Opens the log in a directory, which is made if it does not exist.
    ///
    /// # Errors
    /// If it is in use, cannot be used, is damaged, or is shorter than it was.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Identity, LogEnd), StoreError> {
        let log = dir.join("log");
        make_dir(dir)?;
        make_dir(&dir.join("snapshots"))?;
        let meta_path = dir.join("meta");
        let mut meta = match MetaFile::<RaftMeta>::open(&meta_path)? {
            Some(meta) => meta,
            None if log.exists() => {
                return Err(StoreError::Damaged {
                    path: dir.to_owned(),
                    what: "there is a log, but its file `meta` is missing".into(),
                });
            }
            None => {
                let meta = MetaFile::create(&meta_path)?;
                // Before the log exists: a log without `meta` is taken for damage.
                snapshot_file::sync_dir(dir).map_err(StoreError::io(dir))?;
                meta
            }
        };
        make_dir(&log)?;
        snapshot_file::sync_dir(dir).map_err(StoreError::io(dir))?;
        let (mut database, stored) = Database::open(&log)?;
        let (memory, batches) = load(dir, meta.get(), stored)?;
        // What a crash kept from being witnessed is witnessed now.
        database.sync()?;
        meta.write(RaftMeta {
            durable_next: next(memory.last.as_ref()),
            starts: meta.get().starts + 1,
            ..meta.get()
        })?;
        let identity = Identity {
            node: Some(meta.get().node).filter(|n| *n != 0),
            starts: meta.get().starts,
            pristine: memory.last.is_none() && memory.vote.is_none(),
            purged: memory.purged.map(|id| id.index),
        };
        let shared = Arc::new(Shared(Mutex::new(memory)));
        let (writer, ops) = mpsc::channel();
        let work = Writer {
            shared: Arc::clone(&shared),
            database,
            meta,
            batches,
        };
        let thread = thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || work.run(&ops))
            .map_err(StoreError::io(dir))?;
        let end = LogEnd {
            writer: writer.clone(),
            thread,
        };
        Ok((Self { shared, writer }, identity, end))
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

type Batches = Vec<(u64, u64)>;

/// The log in memory, from what the database held.
fn load(
    dir: &Path,
    meta: RaftMeta,
    stored: Vec<Stored>,
) -> Result<(InMemory, Batches), StoreError> {
    let damaged = |what: String| StoreError::Damaged {
        path: dir.to_owned(),
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
    let mut batches = Vec::new();
    for batch in stored {
        batches.push((batch.first, batch.last()));
        for (index, bytes) in (batch.first..).zip(&batch.entries) {
            let expected = next(memory.last.as_ref());
            if index < expected && memory.entries.is_empty() {
                // Purged, but not yet removed.
                continue;
            }
            if index != expected {
                return Err(damaged(format!("entry {expected} is missing")));
            }
            let entry: Entry = postcard::from_bytes(bytes)
                .map_err(|_| damaged(format!("entry {index} cannot be understood")))?;
            if entry.index() != index {
                return Err(damaged(format!("entry {index} says that it is another")));
            }
            memory.last = Some(entry.log_id());
            memory.entries.insert(index, entry);
        }
    }
    let found = next(memory.last.as_ref());
    if found < meta.durable_next {
        return Err(StoreError::LostTail {
            path: dir.to_owned(),
            found: found.saturating_sub(1),
            expected: meta.durable_next - 1,
        });
    }
    Ok((memory, batches))
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    database: Database,
    meta: MetaFile<RaftMeta>,
    /// First and last index of the records that are in the database.
    batches: Batches,
}

impl Writer {
    fn run(mut self, ops: &mpsc::Receiver<Op>) {
        let mut broken: Option<String> = None;
        let mut held: Option<Op> = None;
        while let Some(op) = held.take().or_else(|| ops.recv().ok()) {
            let (result, answer) = match op {
                Op::End => return,
                Op::Append {
                    first,
                    entries,
                    done,
                } => {
                    let mut group = Group::new(first, entries, done);
                    held = group.gather(ops);
                    let Group { entries, done, .. } = group;
                    let result = self.guarded(&mut broken, |w| w.append(first, &entries));
                    for done in done {
                        done.io_completed(result.clone().map_err(io::Error::other));
                    }
                    continue;
                }
                Op::Vote(vote, done) => (self.guarded(&mut broken, |w| w.vote(vote)), done),
                Op::Truncate(from, done) => (self.guarded(&mut broken, |w| w.truncate(from)), done),
                Op::Purge(upto, done) => (self.guarded(&mut broken, |w| w.purge(&upto)), done),
                Op::Name(node, done) => (
                    self.guarded(&mut broken, |w| {
                        w.meta.write(RaftMeta {
                            node,
                            ..w.meta.get()
                        })
                    }),
                    done,
                ),
            };
            // Whoever asked may be gone.
            let _ = answer.send(result.map_err(io::Error::other));
        }
    }

    /// After a failure nothing is written any more: what the disk holds is unknown.
    fn guarded(
        &mut self,
        broken: &mut Option<String>,
        work: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), String> {
        if let Some(why) = broken {
            return Err(why.clone());
        }
        work(self).map_err(|e| {
            let why = e.to_string();
            tracing::error!(%why, "the log cannot be written");
            broken.insert(why).clone()
        })
    }

    fn append(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), StoreError> {
        failpoint::hit("before-append");
        let last = first + entries.len() as u64 - 1;
        self.database.insert(first, entries)?;
        self.meta.write(RaftMeta {
            durable_next: last + 1,
            committed: self.committed(last + 1),
            ..self.meta.get()
        })?;
        self.batches.push((first, last));
        failpoint::hit("after-append");
        Ok(())
    }

    /// What is known to be committed, as far as it is durable here: the log that is read at the next start must reach so far.
    fn committed(&self, durable_next: u64) -> Option<(u64, u64)> {
        self.shared
            .lock()
            .committed
            .as_ref()
            .filter(|id| id.index < durable_next)
            .map(log_id_parts)
            .or(self.meta.get().committed)
    }

    fn vote(&mut self, vote: Vote) -> Result<(), StoreError> {
        self.meta.write(RaftMeta {
            vote: Some(vote_parts(&vote)),
            ..self.meta.get()
        })?;
        self.shared.lock().vote = Some(vote);
        Ok(())
    }

    fn truncate(&mut self, from: u64) -> Result<(), StoreError> {
        let meta = self.meta.get();
        self.meta.write(RaftMeta {
            durable_next: meta.durable_next.min(from),
            ..meta
        })?;
        let (rest, old): (Batches, Batches) =
            self.batches.iter().partition(|(_, last)| *last < from);
        // What a record holds before the cut stays.
        let start = old.first().map_or(from, |(first, _)| *first);
        let kept: Vec<(u64, Vec<u8>)> = self
            .shared
            .lock()
            .entries
            .range(start..from.max(start))
            .map(|(index, entry)| Ok((*index, encode(entry)?)))
            .collect::<Result<_, StoreError>>()?;
        let first = kept.first().map_or(start, |(index, _)| *index);
        let entries: Vec<Vec<u8>> = kept.into_iter().map(|(_, bytes)| bytes).collect();
        self.database.replace(&old, first, &entries)?;
        self.batches = rest;
        if !entries.is_empty() {
            self.batches.push((first, first + entries.len() as u64 - 1));
        }
        Ok(())
    }

    fn purge(&mut self, upto: &LogId) -> Result<(), StoreError> {
        let meta = self.meta.get();
        self.meta.write(RaftMeta {
            purged: Some(log_id_parts(upto)),
            durable_next: meta.durable_next.max(upto.index + 1),
            committed: meta.committed.max(Some(log_id_parts(upto))),
            ..meta
        })?;
        let (old, rest): (Batches, Batches) = self
            .batches
            .iter()
            .partition(|(_, last)| *last <= upto.index);
        self.batches = rest;
        self.database.remove(&old)
    }
}

/// Appends that become one record.
struct Group {
    first: u64,
    entries: Vec<Vec<u8>>,
    done: Vec<IOFlushed<TypeConfig>>,
    bytes: usize,
}

impl Group {
    fn new(first: u64, entries: Vec<Vec<u8>>, done: IOFlushed<TypeConfig>) -> Self {
        Self {
            first,
            bytes: entries.iter().map(Vec::len).sum(),
            entries,
            done: vec![done],
        }
    }

    /// Takes what waits and follows, and returns what waits and does not.
    fn gather(&mut self, ops: &mpsc::Receiver<Op>) -> Option<Op> {
        while self.bytes < MAX_GROUP {
            match ops.try_recv().ok()? {
                Op::Append {
                    first,
                    entries,
                    done,
                } if first == self.first + self.entries.len() as u64 => {
                    self.bytes += entries.iter().map(Vec::len).sum::<usize>();
                    self.entries.extend(entries);
                    self.done.push(done);
                }
                other => return Some(other),
            }
        }
        None
    }
}

fn encode(entry: &Entry) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(entry).map_err(|e| StoreError::Database {
        path: PathBuf::new(),
        reason: format!("an entry cannot be encoded: {e}"),
    })
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
        self.ask(|done| Op::Vote(*vote, done)).await
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
        let first = {
            let mut memory = self.shared.lock();
            let mut first = None;
            for entry in entries {
                first.get_or_insert(entry.index());
                encoded.push(encode(&entry).map_err(io::Error::other)?);
                memory.last = Some(entry.log_id());
                memory.entries.insert(entry.index(), entry);
            }
            first
        };
        let Some(first) = first else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let op = Op::Append {
            first,
            entries: encoded,
            done: callback,
        };
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
        self.ask(|done| Op::Purge(upto, done)).await
    }
}
