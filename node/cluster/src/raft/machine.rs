//! The state machine: applies what is committed, tells proposers, makes and takes snapshots.

use super::{
    JoinError,
    types::{Batch, Incarnation, LogId, Membership, NodeId, Snapshot, SnapshotMeta, TypeConfig},
    window::Window,
};
use crate::{
    Plant, entry,
    replica::Shared,
    seal::{Kind, Sealer},
    store::{self, StoreError},
};
use bytes::Bytes;
use evergate_ike::identity::Identity;
use evergate_state::{Command, Entry, KeyId, Level, SnapshotError, State};
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder, StoredMembership,
    storage::{EntryResponder, RaftStateMachine},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;
use zeroize::{Zeroize, Zeroizing};

/// What a snapshot begins with, before it is sealed.
const FORMAT: u8 = 1;

/// How far the batches of a member are applied. Its batches are applied in the order of their numbers, each once: a batch that is
/// not the next one is ignored, and its proposer sends it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    incarnation: Incarnation,
    last: u64,
}

/// What a snapshot holds besides the state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Head {
    applied: Option<LogId>,
    membership: Membership,
    proposers: BTreeMap<NodeId, Progress>,
}

/// The state machine of a member.
pub(crate) struct Machine {
    shared: Arc<Shared>,
    head: Head,
    snapshots: Arc<Snapshots>,
    /// Opens batches.
    opener: Sealer,
    own: Own,
    /// Bytes of batches since the last snapshot, and who is told when they are many.
    bytes: u64,
    snapshot_bytes: u64,
    full: Arc<Notify>,
}

/// The proposals of this process.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) member: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) window: Arc<Window>,
}

/// The snapshots of a member.
pub(crate) struct Snapshots {
    store: Arc<dyn store::Snapshots>,
    current: Mutex<Current>,
    /// Bytes of the latest one. Beside the lock, which is held while one is written.
    size: AtomicU64,
    shared: Arc<Shared>,
}

struct Current {
    sealer: Sealer,
    meta: Option<SnapshotMeta>,
}

impl Snapshots {
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a snapshot, unless a newer one is there.
    fn write(&self, meta: &SnapshotMeta, bytes: &[u8]) -> Result<(), StoreError> {
        let mut current = self.lock();
        if current
            .meta
            .as_ref()
            .is_some_and(|c| c.last_log_id >= meta.last_log_id)
        {
            return Ok(());
        }
        let place = place(meta);
        self.store.write(place, bytes)?;
        tracing::debug!(place, bytes = bytes.len(), "snapshot written");
        self.shared.sealed.snapshot(bytes, &self.shared.ring);
        current.meta = Some(meta.clone());
        self.size.store(bytes.len() as u64, Ordering::Relaxed);
        self.shared.snapshots.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read(&self) -> Result<Option<Snapshot>, StoreError> {
        let current = self.lock();
        let Some(meta) = current.meta.clone() else {
            return Ok(None);
        };
        let snapshot = Bytes::from(self.store.read(place(&meta))?);
        Ok(Some(Snapshot { meta, snapshot }))
    }

    fn seal(&self, head: &Head, state: &State) -> io::Result<(SnapshotMeta, Bytes)> {
        let meta = SnapshotMeta {
            last_log_id: head.applied,
            last_membership: head.membership.clone(),
        };
        let first = postcard::to_stdvec(&(FORMAT, head)).map_err(io::Error::other)?;
        let plain = Zeroizing::new(state.to_snapshot());
        let blob = self
            .lock()
            .sealer
            .seal(Kind::Snapshot, place(&meta), |out| {
                out.reserve(first.len() + plain.len() + 64);
                out.extend(&first);
                out.extend(plain.iter());
            })
            .map_err(io::Error::other)?;
        Ok((meta, blob.into()))
    }

    fn open(&self, number: u64, mut blob: Vec<u8>) -> Result<(Head, State), JoinError> {
        let mut current = self.lock();
        let plain = current
            .sealer
            .open(Kind::Snapshot, number, &mut blob)
            .map_err(|source| JoinError::Snapshot { number, source })?;
        let opened = parse(plain);
        self.shared.sealed.snapshot(&blob, &self.shared.ring);
        blob.zeroize();
        let opened = opened.and_then(|(head, state)| match state.level() {
            level if level > self.shared.level => Err(SnapshotError::UnknownLevel(level)),
            _ => Ok((head, state)),
        });
        opened.map_err(|source| JoinError::SnapshotContent { number, source })
    }
}

fn parse(plain: &[u8]) -> Result<(Head, State), SnapshotError> {
    let ((format, head), state): ((u8, Head), &[u8]) =
        postcard::take_from_bytes(plain).map_err(|_| SnapshotError::NotASnapshot)?;
    if format != FORMAT {
        return Err(SnapshotError::UnknownVersion(format.into()));
    }
    Ok((head, State::from_snapshot(state)?))
}

/// The name of a snapshot, and what is authenticated with it. Raft counts entries from zero, the file's names from one.
fn place(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.as_ref().map_or(0, |id| id.index + 1)
}

impl Machine {
    /// The state as of the latest snapshot. The log goes on after `purged`, so there must be one that reaches so far.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn open(
        stored: Arc<dyn store::Snapshots>,
        shared: Arc<Shared>,
        sealers: (Sealer, Sealer),
        own: Own,
        purged: Option<u64>,
        snapshot_bytes: u64,
    ) -> Result<(Self, Arc<Notify>), JoinError> {
        let (opener, sealer) = sealers;
        let snapshots = Arc::new(Snapshots {
            store: Arc::clone(&stored),
            current: Mutex::new(Current { sealer, meta: None }),
            size: AtomicU64::new(0),
            shared: Arc::clone(&shared),
        });
        let full = Arc::new(Notify::new());
        let mut machine = Self {
            shared,
            head: Head::default(),
            snapshots,
            opener,
            own,
            bytes: 0,
            snapshot_bytes,
            full: Arc::clone(&full),
        };
        let least = purged.map_or(0, |index| index + 1);
        let mut failure = None;
        let numbers = stored.list()?.into_iter().rev();
        for number in numbers.filter(|number| *number >= least) {
            let opened = stored
                .read(number)
                .map_err(JoinError::from)
                .and_then(|blob| {
                    let size = blob.len() as u64;
                    Ok((size, machine.snapshots.open(number, blob)?))
                });
            match opened {
                Ok((size, (head, state))) => {
                    machine.snapshots.lock().meta = Some(SnapshotMeta {
                        last_log_id: head.applied,
                        last_membership: head.membership.clone(),
                    });
                    machine.snapshots.size.store(size, Ordering::Relaxed);
                    machine.take(head, state);
                    return Ok((machine, full));
                }
                Err(e) => failure = Some(e),
            }
        }
        match failure {
            // What follows is in the log from its beginning.
            _ if least == 0 => Ok((machine, full)),
            Some(error) => Err(error),
            None => Err(StoreError::Damaged {
                path: stored.place(),
                what: format!("the snapshot of the first {least} entries is missing"),
            }
            .into()),
        }
    }

    /// The sealed snapshot that a generation begins with, in which `at` is the last entry.
    pub(super) fn first_snapshot(
        &self,
        at: LogId,
        membership: Membership,
        state: &State,
    ) -> io::Result<Bytes> {
        let head = Head {
            applied: Some(at),
            membership,
            proposers: BTreeMap::new(),
        };
        let (_, sealed) = self.snapshots.seal(&head, state)?;
        Ok(sealed)
    }

    /// Who is a member, as of the last entry that is applied.
    pub(super) fn membership(&self) -> &Membership {
        &self.head.membership
    }

    /// How many batches were carried out.
    #[cfg(test)]
    pub(super) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    fn take(&mut self, head: Head, state: State) {
        *self
            .shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner) = state;
        self.shared.ring.agree(self.shared.read(State::sealing_key));
        self.head = head;
        self.bytes = 0;
        self.announce();
    }

    fn announce(&self) {
        let next = self.head.applied.as_ref().map_or(0, |id| id.index + 1);
        self.shared.applied.send_replace(next);
    }

    /// Whether a batch is the next one of its proposer. All members decide alike.
    fn is_next(&mut self, batch: &Batch) -> bool {
        if self
            .head
            .membership
            .membership()
            .get_node(&batch.member)
            .is_none()
        {
            return false;
        }
        let progress = self.head.proposers.entry(batch.member).or_default();
        if batch.incarnation > progress.incarnation && batch.number == 1 {
            // What an earlier process left behind is no longer wanted.
            *progress = Progress {
                incarnation: batch.incarnation,
                last: 0,
            };
        }
        if batch.incarnation != progress.incarnation || batch.number != progress.last + 1 {
            return false;
        }
        progress.last = batch.number;
        true
    }

    fn apply_batch(&mut self, batch: &Batch, at: &LogId) -> io::Result<()> {
        if !self.is_next(batch) {
            tracing::debug!(%batch, "not the next one, ignored");
            return Ok(());
        }
        self.bytes += batch.sealed.len() as u64;
        let own = batch.member == self.own.member && batch.incarnation == self.own.incarnation;
        // What this process proposed it has at hand.
        let entry = own.then(|| self.own.window.entry(batch.number)).flatten();
        let mut entry = match entry {
            Some(entry) => entry,
            None => self.open_batch(batch)?,
        };
        self.shared
            .sealed
            .entry(at.index, &batch.sealed, &self.shared.ring);
        if Plant::Apply.is_there() && own {
            entry.at.0 += 1;
        }
        if Plant::Address.is_there() {
            same_for_all(&mut entry);
        }
        let (outcomes, before) = {
            let mut state = self
                .shared
                .state
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let before = (state.level(), state.sealing_key());
            let term = at.leader_id.term;
            (state.apply_in_term(&entry, Some(term)), before)
        };
        self.follow_format(before)?;
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        if own {
            self.own.window.applied(batch.number, outcomes);
        }
        Ok(())
    }

    /// How things are written may be another matter from now on.
    fn follow_format(&self, before: (Level, Option<KeyId>)) -> io::Result<()> {
        let (level, key) = self.shared.read(|s| (s.level(), s.sealing_key()));
        if level != before.0 {
            tracing::info!(event = "format-raised", %level, "the replicated format is at {level}");
        }
        if level > self.shared.level {
            // It is no member, or was taken for another version of the program.
            return Err(io::Error::other(SnapshotError::UnknownLevel(level)));
        }
        if let Some(id) = key
            && key != before.1
        {
            tracing::info!(event = "cluster-key-used", key = %id, "all members seal with cluster key {id}");
            self.shared.ring.agree(key);
        }
        Ok(())
    }

    fn open_batch(&mut self, batch: &Batch) -> io::Result<Entry> {
        let mut blob = batch.sealed.to_vec();
        let plain = self
            .opener
            .open(Kind::Entry, batch.place(), &mut blob)
            .map_err(|e| io::Error::other(format!("{batch}: {e}")))?;
        let entry = entry::decode(plain, self.shared.level);
        blob.zeroize();
        // The leader looked at it before it was logged: another version of the program is the leader, or wrote this log.
        entry.ok_or_else(|| {
            io::Error::other(format!(
                "{batch} cannot be understood; another version of the program wrote it"
            ))
        })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.head.applied, self.head.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(batch) => {
                    if let Err(error) = self.apply_batch(&batch, &entry.log_id) {
                        let why = format!("log entry {}: {error}", entry.log_id.index);
                        self.shared.failed.set(&why);
                        return Err(error);
                    }
                }
                EntryPayload::Membership(membership) => {
                    self.head
                        .proposers
                        .retain(|id, _| membership.get_node(id).is_some());
                    self.head.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            self.head.applied = Some(entry.log_id);
            self.announce();
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        // In proportion to the latest snapshot: so what snapshots cost does not grow with the state, for each byte of the log. Half, because sled holds the
        // log in memory, and each byte of it is one that the SAs take.
        let size = self.snapshots.size.load(Ordering::Relaxed);
        if self.bytes >= self.snapshot_bytes.max(size / 2) {
            self.bytes = 0;
            self.full.notify_one();
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.bytes = 0;
        // Shallow: records are shared.
        let state = self
            .shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Builder {
            head: self.head.clone(),
            state,
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Bytes,
    ) -> Result<(), io::Error> {
        let snapshots = Arc::clone(&self.snapshots);
        let described = meta.clone();
        let (head, state) = blocking(move || {
            let (head, state) = snapshots
                .open(place(&described), snapshot.to_vec())
                .map_err(io::Error::other)?;
            if head.applied != described.last_log_id || head.membership != described.last_membership
            {
                return Err(io::Error::other("a snapshot is not what it is said to be"));
            }
            snapshots
                .write(&described, &snapshot)
                .map_err(io::Error::other)?;
            Ok((head, state))
        })
        .await?;
        let own = head
            .proposers
            .get(&self.own.member)
            .filter(|p| p.incarnation == self.own.incarnation);
        let skipped = own.map_or(0, |p| p.last);
        self.take(head, state);
        self.own.window.skipped(skipped);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let snapshots = Arc::clone(&self.snapshots);
        blocking(move || snapshots.read().map_err(io::Error::other)).await
    }
}

/// Makes a snapshot of the state as it was.
pub(crate) struct Builder {
    head: Head,
    state: State,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (head, state) = (self.head.clone(), std::mem::take(&mut self.state));
        let snapshots = Arc::clone(&self.snapshots);
        blocking(move || {
            let (meta, snapshot) = snapshots.seal(&head, &state)?;
            snapshots
                .write(&meta, &snapshot)
                .map_err(io::Error::other)?;
            Ok(Snapshot { meta, snapshot })
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// A planted bug: all peers look like one, which may have what it has already.
fn same_for_all(entry: &mut Entry) {
    for command in &mut entry.commands {
        if let Command::LeaseAddresses {
            identity,
            takes_over,
            ..
        } = command
        {
            *identity = Identity::Fqdn("anybody".to_owned());
            *takes_over = true;
        }
    }
}
