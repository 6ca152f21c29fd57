//! The replicated state as a server sees it.

use crate::{
    keyring::KeyRing,
    latency::{Histogram, Latencies},
    level,
    queue::{Proposal, ProposeError, Queue},
    raft::{self, Cluster, JoinError, Life, RaftConfig, Sealed},
};
use evergate_ike::env::UnixMillis;
use evergate_state::{Command, KeyId, Level, Outcome, State};
use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot, watch};

/// How a replica works.
pub struct Config {
    /// Seal what is stored.
    pub keys: KeyRing,
    /// The time that entries get.
    pub clock: Box<dyn Fn() -> UnixMillis + Send>,
    /// Proposals that may wait; further ones wait for their place. As many lazy ones may wait besides.
    pub queue: usize,
    /// How long a lazy proposal waits for others to go along with.
    pub tick: Duration,
    /// A snapshot is made when the log has so many bytes, and half as many as the snapshot before.
    pub snapshot_bytes: u64,
    /// A snapshot is made when the log has so many entries.
    pub snapshot_entries: u64,
    /// Up to which level this process understands the replicated format: the latest, unless it plays an older version of the program.
    pub level: Level,
}

impl Config {
    /// The usual values.
    pub fn new(keys: impl Into<KeyRing>, clock: impl Fn() -> UnixMillis + Send + 'static) -> Self {
        Self {
            keys: keys.into(),
            clock: Box::new(clock),
            // More than the handshakes of a second at full load; a few MB.
            queue: 8192,
            tick: Duration::from_millis(50),
            snapshot_bytes: 4 << 20,
            snapshot_entries: 100_000,
            level: level::understood(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("queue", &self.queue)
            .field("tick", &self.tick)
            .field("snapshot_bytes", &self.snapshot_bytes)
            .field("snapshot_entries", &self.snapshot_entries)
            .finish_non_exhaustive()
    }
}

/// A member's copy of the replicated state. Clones are the same replica; when the last is dropped, what waits is committed and
/// the log is closed ([`Replica::close`] waits for that).
#[derive(Clone)]
pub struct Replica(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    lazy: Arc<Semaphore>,
    cluster: Cluster,
    #[cfg_attr(
        not(any(test, feature = "drills")),
        expect(dead_code, reason = "only tests kill members")
    )]
    life: Life,
}

/// What the handles and the parts of a member share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) state: RwLock<State>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) failed: Failed,
    pub(crate) ended: watch::Sender<bool>,
    pub(crate) commits: AtomicU64,
    pub(crate) snapshots: AtomicU64,
    latencies: Histogram,
    /// Up to which level the replicated format is understood here.
    pub(crate) level: Level,
    pub(crate) ring: KeyRing,
    pub(crate) sealed: Sealed,
    /// Places for proposals that somebody waits for.
    eager: Arc<Semaphore>,
    /// How long a proposal waits for others at most.
    tick: Duration,
}

impl Shared {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            eager: places(config),
            tick: config.tick,
            queue: Queue::new(),
            state: RwLock::new(State::new()),
            applied: watch::Sender::new(0),
            failed: Failed::default(),
            ended: watch::Sender::new(false),
            commits: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
            latencies: Histogram::default(),
            level: config.level,
            ring: config.keys.clone(),
            sealed: Sealed::default(),
        }
    }

    /// See [`Replica::propose`].
    pub(crate) async fn propose(
        &self,
        commands: Vec<Command>,
    ) -> Result<Vec<Outcome>, ProposeError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        self.check_level(&commands)?;
        let began = Instant::now();
        let permit = Arc::clone(&self.eager)
            .acquire_owned()
            .await
            .map_err(|_| ProposeError::Closed)?;
        let (answer, outcome) = oneshot::channel();
        let proposal = Proposal::new(commands, Some(answer), permit)?;
        self.queue.push(proposal, self.tick)?;
        // No proposal is dropped without an answer; should that change, not to know is the safe reading.
        let outcome = outcome.await;
        if matches!(outcome, Ok(Ok(_))) {
            self.latencies.count(began.elapsed());
        }
        outcome.unwrap_or_else(|_| Err(ProposeError::Failed("the member ended".into())))
    }

    /// What is newer than the level that is written, an older member could not read.
    fn check_level(&self, commands: &[Command]) -> Result<(), ProposeError> {
        let needed = commands.iter().map(Command::level).max();
        let needed = needed.filter(|level| *level > Level::FIRST);
        match needed {
            Some(level) if level > self.read(State::level) => Err(ProposeError::NotYet(level)),
            _ => Ok(()),
        }
    }

    /// See [`Replica::read`].
    pub(crate) fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn places(config: &Config) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(
        config.queue.clamp(1, Semaphore::MAX_PERMITS),
    ))
}

/// Why nothing can be committed here any more. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failed(watch::Sender<Option<Arc<str>>>);

impl Failed {
    /// The first reason stays: what comes after it follows from it.
    pub(crate) fn set(&self, why: &str) {
        self.0.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert_with(|| why.into());
            first
        });
    }

    pub(crate) fn get(&self) -> Option<Arc<str>> {
        self.0.borrow().clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.subscribe()
    }
}

/// What a replica did since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Entries that were committed.
    pub commits: u64,
    /// Snapshots that were written.
    pub snapshots: u64,
    /// The index of the last entry that was applied.
    pub applied: u64,
}

impl Replica {
    /// Starts a member. One that is alone returns when its state is as it was after the last entry that became durable. One of several
    /// has the state as of the last entry that is known to be committed; what follows becomes visible as soon as there is a leader, and if
    /// its log is empty it waits here until it could ask all others.
    ///
    /// # Errors
    /// If the log cannot be opened, is damaged, is shorter than it was, or is sealed with another key; or if the configuration or the
    /// credentials cannot be used.
    pub async fn join(config: RaftConfig) -> Result<Self, JoinError> {
        let lazy = places(&config.replica);
        let (shared, cluster, life) = raft::start(config).await?;
        Ok(Self(Arc::new(Handle {
            shared,
            lazy,
            cluster,
            life,
        })))
    }

    /// The cluster that this replica is part of; it may be the only one.
    pub fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    /// Becomes true when the log is closed.
    #[cfg(test)]
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.0.shared.ended.subscribe()
    }

    /// Ends the member at once, as if by `kill -9`.
    #[cfg(any(test, feature = "drills"))]
    pub fn abort(&self) {
        self.0.life.abort();
    }

    /// Proposes commands and waits until they are durable and applied here; one outcome for each, in order. They stand together in one
    /// entry. Proposals are committed in the order in which their futures are first polled. There is no time-out, and a
    /// future that is dropped after its first poll withdraws nothing: the commands may still be committed.
    ///
    /// # Errors
    /// If the commands do not fit into an entry, or not all members understand them yet: then nothing was proposed. Or if the member is stopping or
    /// failed; then it is unknown whether they are durable.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, ProposeError> {
        self.0.shared.propose(commands).await
    }

    /// Proposes commands that nobody waits for. They keep their order among all proposals, go along with the next batch, and
    /// wait for one no longer than a tick. Refusals are only logged.
    ///
    /// # Errors
    /// If too many wait already: then nothing was proposed. Or as for [`Replica::propose`].
    pub fn propose_lazy(&self, commands: Vec<Command>) -> Result<(), ProposeError> {
        if commands.is_empty() {
            return Ok(());
        }
        self.0.shared.check_level(&commands)?;
        let permit = Arc::clone(&self.0.lazy)
            .try_acquire_owned()
            .map_err(|_| ProposeError::Busy)?;
        self.0
            .shared
            .queue
            .push(Proposal::new(commands, None, permit)?, self.0.shared.tick)
    }

    /// The cluster keys of this member, and those without which something that it has could not be opened.
    pub fn keys(&self) -> (KeyRing, Vec<KeyId>) {
        let shared = &self.0.shared;
        (shared.ring.clone(), self.0.cluster.keys_needed(shared))
    }

    /// Up to which level this process understands the replicated format.
    pub fn level(&self) -> Level {
        self.0.shared.level
    }

    /// Reads the state as of the last entry that was applied here. Nothing is applied meanwhile: be brief.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        self.0.shared.read(read)
    }

    /// Becomes the reason when storage has failed. The member must stop serving then: nothing that it would have to commit can be.
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.shared.failed.subscribe()
    }

    /// The index of the last entry that was applied here.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.shared.applied.subscribe()
    }

    /// What it did since it was opened.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        Stats {
            commits: shared.commits.load(Ordering::Relaxed),
            snapshots: shared.snapshots.load(Ordering::Relaxed),
            applied: *shared.applied.borrow(),
        }
    }

    /// How long each proposal that somebody waited for took since it was opened: from when it was made until it was durable and applied here.
    pub fn latencies(&self) -> Latencies {
        self.0.shared.latencies.read()
    }

    /// Accepts nothing more, commits what waits, and returns when the log is closed.
    pub async fn close(&self) {
        self.0.shared.queue.end(ProposeError::Closed);
        // Fails only if the sender is gone, and it is in `shared`.
        let _ = self
            .0
            .shared
            .ended
            .subscribe()
            .wait_for(|ended| *ended)
            .await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.end(ProposeError::Closed);
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replica").field(&self.stats()).finish()
    }
}
