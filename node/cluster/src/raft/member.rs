//! A member from its start to its end.

use super::{
    Cluster, JoinError, Leader, RaftConfig,
    admission::Admission,
    cluster::Inner,
    config::LinkSource,
    forming::{Role, ask_to_join, decide, go_on, nobody_greets, random},
    liveness,
    log::{Identity, LogStore, OpenedLog},
    machine::{Machine, Own},
    proposer::{Forwarder, gather},
    roster::{Known, Roster},
    sealed, steward,
    succession::{self, Succession},
    transport::{Handler, Links, Peers, Services, Tcp, Tls, serve},
    types::{NodeId, Raft},
    window::Window,
};
use crate::{Generation, KeyRing, queue::ProposeError, replica::Shared, seal::Sealer, store};
use openraft::async_runtime::WatchReceiver as _;
use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot, watch},
    task::JoinSet,
    time,
};

/// Threads that Raft has for itself, so that nothing that a gateway computes delays a heartbeat.
const THREADS: usize = 2;

/// When a member stops, it waits until what it proposed is committed, but no longer than this; and than that if nothing at all
/// is committed: without a majority nothing ever is.
const FAREWELL: Duration = Duration::from_secs(5);
const NO_PROGRESS: Duration = Duration::from_millis(500);

/// How often to look meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What keeps a member alive.
pub(crate) struct Life {
    /// Ends it at once, as if by `kill -9`.
    #[cfg_attr(
        not(any(test, feature = "drills")),
        expect(dead_code, reason = "only tests kill members")
    )]
    abort: Arc<Notify>,
}

impl Life {
    #[cfg(any(test, feature = "drills"))]
    pub(crate) fn abort(&self) {
        self.abort.notify_one();
    }
}

/// Starts a member.
pub(crate) async fn start(config: RaftConfig) -> Result<(Arc<Shared>, Cluster, Life), JoinError> {
    config.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("raft")
        .enable_all()
        .build()
        .map_err(|e| JoinError::System("no runtime for raft", e))?;
    let (ready, started) = oneshot::channel();
    let abort = Arc::new(Notify::new());
    let aborted = Arc::clone(&abort);
    // The runtime cannot be dropped on a thread of another one, so it has a thread that does.
    thread::Builder::new()
        .name("raft-member".into())
        .spawn(move || live(runtime, config, ready, &aborted))
        .map_err(|e| JoinError::System("no thread for raft", e))?;
    let (shared, cluster) = started
        .await
        .map_err(|_| JoinError::Raft("it ended while it started".into()))??;
    Ok((shared, cluster, Life { abort }))
}

type Ready = oneshot::Sender<Result<(Arc<Shared>, Cluster), JoinError>>;

/// The whole life of a member.
fn live(runtime: Runtime, config: RaftConfig, ready: Ready, abort: &Notify) {
    let shared = Arc::new(Shared::new(&config.replica));
    let OpenedLog {
        log,
        identity,
        end,
        snapshots,
    } = match LogStore::open(&config.storage, shared.failed.clone()) {
        Ok(opened) => opened,
        Err(e) => return drop(ready.send(Err(e.into()))),
    };
    let window = Arc::new(Window::default());
    let refused = runtime.block_on(async {
        let member = async {
            let mut ready = ready;
            let begun = tokio::select! {
                begun = begin(config, log, identity, snapshots, &shared, &window) => begun,
                // Nobody waits for it any more.
                () = ready.closed() => return None,
            };
            match begun {
                Ok((member, cluster)) => {
                    if ready.send(Ok((Arc::clone(&shared), cluster))).is_ok() {
                        member.run().await;
                    }
                }
                Err(e) => return Some((ready, e)),
            }
            None
        };
        tokio::select! {
            refused = member => refused,
            () = abort.notified() => None,
        }
    });
    // Nobody is left waiting, whatever happened.
    let why = shared
        .failed
        .get()
        .map_or(ProposeError::Closed, ProposeError::Failed);
    shared.queue.fail(&why);
    window.end(&why);
    runtime.shutdown_timeout(Duration::from_secs(1));
    end.close();
    shared.ended.send_replace(true);
    if let Some((ready, why)) = refused {
        // Whoever hears of it can open the log again.
        drop(ready.send(Err(why)));
    }
}

/// A member that runs.
struct Member {
    raft: Raft,
    shared: Arc<Shared>,
    own: Own,
    cluster: Cluster,
    tasks: JoinSet<()>,
    gathered: oneshot::Receiver<()>,
}

async fn begin(
    mut config: RaftConfig,
    log: LogStore,
    identity: Identity,
    snapshots: Arc<dyn store::Snapshots>,
    shared: &Arc<Shared>,
    window: &Arc<Window>,
) -> Result<(Member, Cluster), JoinError> {
    let ring = shared.ring.clone();
    let sealer = || Sealer::new(ring.clone());
    let mut tasks = JoinSet::new();
    let credentials = config.credentials.as_ref();
    let tls = credentials.map(|c| c.tls(&config.name)).transpose()?;
    let links = config.links.take().map(open_links).transpose()?;
    let secured = tls.zip(links);
    let succession = Succession::new(&identity, log.clone(), shared.failed.clone())?;
    let peers = secured
        .clone()
        .map(|(tls, links)| Peers::new(tls, links, succession.own.clone()));
    let (running, is_running) = watch::channel(None);
    let services = Services::default();
    let known = Known::new(config.members.clone(), is_running);
    let greeted = watch::Sender::new(false);
    let handler = Handler {
        known: known.clone(),
        admission: Admission::new(known.clone(), Arc::clone(shared)),
        opener: Arc::new(Mutex::new(sealer()?)),
        level: shared.level,
        services: services.clone(),
        succession: succession.clone(),
        members: config.members.clone(),
        ring: ring.clone(),
        pristine: identity.pristine,
        greeted: greeted.clone(),
    };
    if let Some((tls, links)) = secured {
        listen(&mut tasks, links, tls, handler);
    }

    if config.founds_alone() && identity.pristine {
        nobody_greets(&config, &greeted).await?;
    }
    let stores = (&log, &*snapshots);
    let role = decide(&config, identity, peers.as_ref(), &ring, stores, &known).await?;
    belong(&role, &log, &succession).await?;
    let own = own(role.node, identity, window)?;
    let (machine, full) = Machine::open(
        snapshots,
        Arc::clone(shared),
        (sealer()?, sealer()?),
        own.clone(),
        identity.purged,
        config.replica.snapshot_bytes,
    )?;
    let stored = log.membership();
    let roster = Roster::of(stored.as_ref().unwrap_or(machine.membership()));
    if let Some(peers) = &peers
        && !identity.pristine
    {
        let others = succession::others(&config.members, &roster, &config.name);
        succession.ask(others, role.node, &ring, peers).await?;
    }
    known.tell(roster);
    let raft = go_on(&config, &role, &log, machine, peers.clone(), shared).await?;
    running.send_replace(Some(raft.clone()));
    // Kept alive as long as the tasks are.
    tasks.spawn(async move { running.closed().await });
    ask_to_join(&mut tasks, &config, &role, &ring, peers.clone(), &known);

    let (leader_sender, leader) = watch::channel(None);
    tasks.spawn(observe(raft.clone(), leader_sender, Arc::clone(shared)));
    tasks.spawn(make_snapshots(raft.clone(), full));
    tasks.spawn(sealed::reseal(raft.clone(), Arc::clone(shared)));
    let patience = config.timing.election_max * 4;
    tasks.spawn(forwarder(&raft, &own, peers.as_ref(), &leader, patience).run());
    let gathered = start_gathering(shared, &own, sealer()?, config.replica.clock)?;
    let cluster = Cluster(Arc::new(Inner {
        raft: raft.clone(),
        id: role.node,
        name: config.name,
        leader,
        peers,
        services,
        timing: config.timing,
        generation: role.generation,
        log,
        runtime: tokio::runtime::Handle::current(),
    }));
    look_after(&mut tasks, &cluster, ring, known, shared, succession);
    let member = Member {
        raft,
        shared: Arc::clone(shared),
        own,
        cluster: cluster.clone(),
        tasks,
        gathered,
    };
    Ok((member, cluster))
}

fn forwarder(
    raft: &Raft,
    own: &Own,
    peers: Option<&Peers>,
    leader: &watch::Receiver<Option<Leader>>,
    patience: Duration,
) -> Forwarder {
    Forwarder {
        raft: raft.clone(),
        own: own.clone(),
        peers: peers.cloned(),
        leader: leader.clone(),
        patience,
    }
}

/// Which node this is, and of which generation, durably.
async fn belong(role: &Role, log: &LogStore, succession: &Succession) -> Result<(), JoinError> {
    let named = async {
        log.name(role.node).await?;
        log.belong(role.generation).await
    };
    named.await.map_err(|e| JoinError::System("log", e))?;
    succession.own.set(role.generation);
    if role.generation != Generation::FIRST {
        tracing::info!(
            event = "generation",
            generation = role.generation.number,
            "this is generation {} of the cluster",
            role.generation.number
        );
    }
    Ok(())
}

/// Who this process is among the proposers.
fn own(member: NodeId, identity: Identity, window: &Arc<Window>) -> Result<Own, JoinError> {
    Ok(Own {
        member,
        incarnation: u128::from(identity.starts) << 64 | u128::from(random()?),
        window: Arc::clone(window),
    })
}

/// Starts what looks after other members.
fn look_after(
    tasks: &mut JoinSet<()>,
    cluster: &Cluster,
    ring: KeyRing,
    known: Known,
    shared: &Arc<Shared>,
    succession: Succession,
) {
    if cluster.has_links() {
        tasks.spawn(steward::run(cluster.clone(), Arc::clone(shared)));
    }
    let shared = Arc::clone(shared);
    liveness::spawn(tasks, cluster, ring, known, shared, succession);
}

fn open_links(source: LinkSource) -> Result<Arc<dyn Links>, JoinError> {
    match source {
        LinkSource::Tcp(listener) => {
            let tcp = Tcp::new(listener).map_err(|e| JoinError::System("member listener", e))?;
            Ok(Arc::new(tcp))
        }
        LinkSource::Other(links) => Ok(links),
    }
}

/// Answers other members.
fn listen(tasks: &mut JoinSet<()>, links: Arc<dyn Links>, tls: Tls, handler: Handler) {
    tasks.spawn(async move {
        if let Err(error) = serve(links, tls, handler).await {
            tracing::error!(%error, "members are no longer answered");
        }
    });
}

type Clock = Box<dyn Fn() -> evergate_ike::env::UnixMillis + Send>;

fn start_gathering(
    shared: &Arc<Shared>,
    own: &Own,
    sealer: Sealer,
    clock: Clock,
) -> Result<oneshot::Receiver<()>, JoinError> {
    let (done, gathered) = oneshot::channel();
    let (shared, own) = (Arc::clone(shared), own.clone());
    thread::Builder::new()
        .name("propose".into())
        .spawn(move || {
            if let Err(error) = gather(&shared, &own, sealer, &*clock) {
                shared.failed.set(&error.to_string());
            }
            // The member may be gone already.
            let _ = done.send(());
        })
        .map_err(|e| JoinError::System("no thread for proposals", e))?;
    Ok(gathered)
}

impl Member {
    /// Runs until the last handle is gone or Raft fails, and ends in good order.
    async fn run(mut self) {
        let mut failed = self.shared.failed.subscribe();
        tokio::select! {
            _ = &mut self.gathered => {}
            _ = failed.wait_for(Option::is_some) => {}
        }
        if self.shared.failed.get().is_none() {
            self.wait_for_commits().await;
            self.hand_over().await;
        }
        // First of all whoever watches Raft: that it stops now is no failure.
        self.tasks.shutdown().await;
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end well");
        }
    }

    /// Waits until all that was proposed is applied, as long as there is hope.
    async fn wait_for_commits(&self) {
        let (begun, mut first, mut progress) = (Instant::now(), None, Instant::now());
        while let Some(next) = self.own.window.first() {
            if first.replace(next) != Some(next) {
                progress = Instant::now();
            }
            if progress.elapsed() > NO_PROGRESS || begun.elapsed() > FAREWELL {
                let (batches, commands) = self.own.window.waiting();
                tracing::warn!(
                    batches,
                    commands,
                    "{commands} commands were proposed and not committed before the end: most members do not answer"
                );
                return;
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }

    /// A leader that goes in good order leaves no gap.
    async fn hand_over(&self) {
        let limit = self.cluster.timing().election_max * 2;
        let acked = self.cluster.last_quorum_acked();
        if !self.cluster.is_leader() || acked.is_none_or(|at| at.elapsed() > limit) {
            return;
        }
        let others = self
            .cluster
            .members()
            .into_iter()
            .filter(|m| m.voter && m.id != self.own.member && m.acknowledged.is_some());
        let Some(next) = others.max_by_key(|m| m.next_index) else {
            return;
        };
        if let Err(error) = self.cluster.transfer_leader(&next.name).await {
            tracing::debug!(%error, "leadership is not handed over");
        }
    }
}

/// Tells who leads, and whether Raft failed.
async fn observe(raft: Raft, leader: watch::Sender<Option<Leader>>, shared: Arc<Shared>) {
    let mut metrics = raft.metrics();
    loop {
        let (now, failed) = {
            let m = metrics.borrow_watched();
            let now = m.current_leader.and_then(|id| {
                let node = m.membership_config.get_node(&id)?;
                Some(Leader {
                    id,
                    name: node.name.clone(),
                    address: node.address.clone(),
                    term: m.current_term,
                })
            });
            (now, m.running_state.as_ref().err().map(ToString::to_string))
        };
        leader.send_if_modified(|current| {
            let changed = *current != now;
            *current = now;
            changed
        });
        if let Some(reason) = failed {
            tracing::error!(%reason, "raft failed: this member must stop serving");
            shared.failed.set(&reason);
            return;
        }
        if metrics.changed().await.is_err() {
            // Whoever ends it in good order has stopped this task before.
            tracing::error!("raft is gone: this member must stop serving");
            return shared
                .failed
                .set("raft ended by itself, which is a fault of the program");
        }
    }
}

/// Makes a snapshot when the log has grown by many bytes.
async fn make_snapshots(raft: Raft, full: Arc<Notify>) {
    loop {
        full.notified().await;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
    }
}
