//! The replicated state as a server sees it.

use crate::{
    key::ClusterKey,
    pipeline::Pipeline,
    queue::{Proposal, ProposeError, Queue},
    raft::{self, Cluster, JoinError, Life, RaftConfig},
    recovery::{OpenError, replay},
    seal::Sealer,
    store::{Recovered, SledStore, Store},
};
use evergate_ike::env::UnixMillis;
use evergate_state::{Command, Outcome, State};
use std::{
    fmt,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::{Semaphore, oneshot, watch};

/// How a replica works.
pub struct Config {
    /// Seals what is stored.
    pub key: ClusterKey,
    /// The time that entries get.
    pub clock: Box<dyn Fn() -> UnixMillis + Send>,
    /// Proposals that may wait; further ones wait for their place. As many lazy ones may wait besides.
    pub queue: usize,
    /// How long a lazy proposal waits for others to go along with.
    pub tick: Duration,
    /// A snapshot is made when the log has so many bytes.
    pub snapshot_bytes: u64,
    /// A snapshot is made when the log has so many entries.
    pub snapshot_entries: u64,
}

impl Config {
    /// The usual values.
    pub fn new(key: ClusterKey, clock: impl Fn() -> UnixMillis + Send + 'static) -> Self {
        Self {
            key,
            clock: Box::new(clock),
            // More than the handshakes of a second at full load; a few MB.
            queue: 8192,
            tick: Duration::from_millis(50),
            snapshot_bytes: 16 << 20,
            snapshot_entries: 100_000,
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
    eager: Arc<Semaphore>,
    lazy: Arc<Semaphore>,
    tick: Duration,
    /// The cluster that it belongs to.
    cluster: Option<(Cluster, Life)>,
}

/// What the handles and the pipeline share.
pub(crate) struct Shared {
    pub(crate) queue: Queue,
    pub(crate) state: RwLock<State>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) failed: watch::Sender<Option<Arc<str>>>,
    pub(crate) ended: watch::Sender<bool>,
    pub(crate) commits: AtomicU64,
    pub(crate) snapshots: AtomicU64,
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
    /// Opens the replica whose log is in a directory, and starts its pipeline. The state is as it was after the last entry that became
    /// durable. Reads files: on a runtime, call it where blocking is allowed.
    ///
    /// # Errors
    /// If the log cannot be opened, is damaged, is shorter than it was, or is sealed with another key.
    pub fn open(config: Config, dir: &Path) -> Result<Self, OpenError> {
        let (store, recovered) = SledStore::open(dir)?;
        Self::with_store(config, Box::new(store), recovered)
    }

    /// The same on another store.
    ///
    /// # Errors
    /// If what was recovered cannot be opened with the key, or understood.
    pub fn with_store(
        config: Config,
        store: Box<dyn Store>,
        recovered: Recovered,
    ) -> Result<Self, OpenError> {
        let mut sealer = Sealer::new(config.key)?;
        let applied = recovered.last_index();
        let bytes = recovered.entries.iter().map(|(_, e)| e.len() as u64).sum();
        let entries = recovered.entries.len() as u64;
        let state = replay(recovered, &mut sealer)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(),
            state: RwLock::new(state),
            applied: watch::Sender::new(applied),
            failed: watch::Sender::new(None),
            ended: watch::Sender::new(false),
            commits: AtomicU64::new(0),
            snapshots: AtomicU64::new(0),
        });
        let pipeline = Pipeline {
            shared: Arc::clone(&shared),
            store,
            sealer,
            clock: config.clock,
            snapshot_bytes: config.snapshot_bytes,
            snapshot_entries: config.snapshot_entries,
            in_flight: Vec::new(),
            bytes,
            entries,
        };
        thread::Builder::new()
            .name("commit".into())
            .spawn(move || pipeline.run())
            .map_err(OpenError::Thread)?;
        Ok(Self::new(shared, config.queue, config.tick, None))
    }

    /// Starts a member of a cluster. The state is as it was after the last entry that is known to be committed; what follows it becomes
    /// visible as soon as there is a leader. A member whose log is empty waits here until it could ask all others.
    ///
    /// # Errors
    /// If the log cannot be opened, is damaged, is shorter than it was, or is sealed with another key; or if the configuration or the
    /// credentials cannot be used.
    pub async fn join(config: RaftConfig) -> Result<Self, JoinError> {
        let (queue, tick) = (config.replica.queue, config.replica.tick);
        let (shared, cluster, life) = raft::start(config).await?;
        Ok(Self::new(shared, queue, tick, Some((cluster, life))))
    }

    fn new(
        shared: Arc<Shared>,
        queue: usize,
        tick: Duration,
        cluster: Option<(Cluster, Life)>,
    ) -> Self {
        let places = || Arc::new(Semaphore::new(queue.clamp(1, Semaphore::MAX_PERMITS)));
        Self(Arc::new(Handle {
            shared,
            eager: places(),
            lazy: places(),
            tick,
            cluster,
        }))
    }

    /// The cluster that this replica is part of, if it was started with [`Replica::join`].
    pub fn cluster(&self) -> Option<&Cluster> {
        self.0.cluster.as_ref().map(|(cluster, _)| cluster)
    }

    /// Becomes true when the log is closed.
    #[cfg(test)]
    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.0.shared.ended.subscribe()
    }

    /// Ends the member at once, as if by `kill -9`.
    #[cfg(any(test, feature = "drills"))]
    pub fn abort(&self) {
        if let Some((_, life)) = &self.0.cluster {
            life.abort();
        }
    }

    /// Proposes commands and waits until they are durable and applied here; one outcome for each, in order. They stand together in one
    /// entry. Proposals are committed in the order in which their futures are first polled. There is no time-out, and a
    /// future that is dropped after its first poll withdraws nothing: the commands may still be committed.
    ///
    /// # Errors
    /// If the commands do not fit into an entry, or if the member is stopping or failed; then it is unknown whether they are durable.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Outcome>, ProposeError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let permit = Arc::clone(&self.0.eager)
            .acquire_owned()
            .await
            .map_err(|_| ProposeError::Closed)?;
        let (answer, outcome) = oneshot::channel();
        self.0
            .shared
            .queue
            .push(Proposal::new(commands, Some(answer), permit)?, self.0.tick)?;
        // No proposal is dropped without an answer; should that change, not to know is the safe reading.
        outcome
            .await
            .unwrap_or_else(|_| Err(ProposeError::Failed("the commit pipeline ended".into())))
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
        let permit = Arc::clone(&self.0.lazy)
            .try_acquire_owned()
            .map_err(|_| ProposeError::Busy)?;
        self.0
            .shared
            .queue
            .push(Proposal::new(commands, None, permit)?, self.0.tick)
    }

    /// Reads the state as of the last entry that was applied here. Nothing is applied meanwhile: be brief.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(
            &self
                .0
                .shared
                .state
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
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
