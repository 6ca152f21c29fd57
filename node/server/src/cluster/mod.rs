//! This process as one of several: which virtual gateways are its own, and until when it may act for them.
//!
//! - `lease`: asks the leader for leases, all the time, on a thread of its own; opens gates and keeps the dead-man switch alive.
//! - `leader`: what the leader does besides: it grants leases, and assigns virtual gateways that nobody has.
//! - `follow`: starts and stops to serve virtual gateways as the replicated state says.
//! - `front`: the addresses of virtual gateways.
//! - `quorum`: whether most members answer.
//! - `linger`, `relay`: what comes for a gateway that was handed over, and its way to the successor.

mod follow;
mod front;
mod leader;
mod lease;
mod linger;
mod message;
mod quorum;
mod relay;

use crate::{
    clock::Clock,
    config::{ClusterConfig, Member},
    machine::Machine,
    node::Node,
};
use evergate_cluster::{
    KeyRing, Replica,
    lease::{BootTime, Holder, Timing},
    raft::{Cluster, Entrance, JoinToken, RaftConfig, TokenError},
};
use evergate_dataplane::boot_time;
use evergate_ike::record::GatewayId;
use evergate_state::{Owner, State};
use leader::Leading;
use message::{Ask, HandOver, encode};
pub(crate) use quorum::ADVICE;
use quorum::Quorum;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info};

pub(crate) use front::open as open_front;

/// What an operator wants of the leader is answered within this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Addresses are silenced within this time; else they are taken away.
const SILENCE: Duration = Duration::from_millis(100);

/// The part of a process in its cluster.
pub(crate) struct Membership {
    /// This process.
    pub(crate) me: Owner,
    /// Raft.
    pub(crate) cluster: Cluster,
    timing: Timing,
    holder: Mutex<Holder>,
    /// What it is as the leader.
    leading: Mutex<Option<Leading>>,
    /// What the leader asked to be handed over.
    hand_over: Mutex<Vec<HandOver>>,
    /// When the certificate of this member ends, in milliseconds of Unix time; zero if that is not known.
    pub(crate) certificate_ends: AtomicU64,
    /// Whether most members answer.
    pub(crate) quorum: Quorum,
    /// Leases are to be renewed at once.
    renew: Notify,
    /// Who waits until the addresses of what is not served any more are silent.
    silence: Mutex<Vec<oneshot::Sender<()>>>,
    /// Leases have changed, or there is something to hand over.
    changed: Notify,
    /// The leader should look again who should have what.
    plan: Notify,
    /// One change of the members is made at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Membership {
    /// A process that is part of a cluster now.
    pub(crate) fn new(replica: &Replica, me: Owner, timing: Timing) -> Self {
        if !replica.cluster().is_alone() {
            info!(event = "joined", member = me.member, "part of the cluster");
        }
        Self {
            holder: Mutex::new(Holder::new(timing, me.clone())),
            me,
            cluster: replica.cluster().clone(),
            timing,
            leading: Mutex::default(),
            hand_over: Mutex::default(),
            certificate_ends: AtomicU64::new(0),
            quorum: Quorum::default(),
            renew: Notify::new(),
            silence: Mutex::default(),
            changed: Notify::new(),
            plan: Notify::new(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Whether this member leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.cluster.is_leader()
    }

    /// Whether there is nobody else who could have a gateway.
    pub(crate) fn is_alone(&self) -> bool {
        self.cluster.is_alone()
    }

    /// Asks the leader to move a gateway to a member.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence.
    pub(crate) async fn ask_to_move(&self, gateway: GatewayId, member: &str) -> Result<(), String> {
        let member = member.to_owned();
        self.ask(&Ask::Move { gateway, member }).await
    }

    /// Asks the leader for something that is not a lease.
    async fn ask(&self, ask: &Ask) -> Result<(), String> {
        let leader = self.cluster.leader().borrow().clone();
        let leader = leader.ok_or("there is no leader at the moment")?;
        let ask = encode(ask)?;
        let asked = self.cluster.renew_leases(&leader, ask, PATIENCE).await;
        asked.map(drop).map_err(|e| e.to_string())
    }

    /// Whether this member leads, and most members have answered it just now.
    pub(crate) fn has_majority(&self) -> bool {
        self.leads() && self.quorum_until().is_some_and(|until| until > now())
    }

    /// How long a lease is, and what is left of the one that ends first, of the gateways that are served. A member that is alone has one for ever.
    pub(crate) fn headroom(&self, node: &Node) -> (Duration, Option<Duration>) {
        let own = node.services().into_iter().map(|s| (s.gateway, s.epoch));
        let (now, holder) = (now(), self.holder());
        let left = own.map(|(gateway, epoch)| holder.remaining(gateway, epoch, now));
        (self.timing.grant, left.min().filter(|_| !self.is_alone()))
    }

    /// Until when nobody else can be the leader, if this process is: the boot-time clock. `None` if it may not be any more.
    fn quorum_until(&self) -> Option<BootTime> {
        if self.is_alone() {
            return self.leads().then_some(BootTime::FOREVER);
        }
        let acked = self.cluster.last_quorum_acked()?;
        // Read after the other: what is told is rather too early than too late.
        let ago = Instant::now().saturating_duration_since(acked);
        let sent = boot_time().checked_sub(ago)?;
        Some(self.timing.quorum_until(BootTime(sent)))
    }

    /// Waits until the dead-man switch has silenced the addresses of gateways that this process has stopped to serve. False if it has not.
    async fn silenced(&self) -> bool {
        let (told, silent) = oneshot::channel();
        self.silence().push(told);
        self.renew.notify_one();
        matches!(timeout(SILENCE, silent).await, Ok(Ok(())))
    }

    fn silence(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.silence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holder(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leading(&self) -> MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gateways that the state says are this process's own, with their epochs.
    fn own(&self, state: &State) -> Vec<(GatewayId, u32)> {
        let configured = state.policy().gateway_ids();
        let own = configured.into_iter().filter_map(|id| {
            let epoch = state.epoch_of(id, &self.me)?;
            Some((id, epoch))
        });
        own.collect()
    }
}

fn now() -> BootTime {
    BootTime(boot_time())
}

/// How this member commits: with the others, or as the only voter.
///
/// # Errors
/// If credentials cannot be read, or the address cannot be listened on.
pub(crate) fn raft_config(
    member: &Member,
    config: Option<&ClusterConfig>,
    keys: KeyRing,
    clock: &Arc<Clock>,
    machine: &dyn Machine,
) -> anyhow::Result<RaftConfig> {
    let clock = Arc::clone(clock);
    let replica = evergate_cluster::Config::new(keys, move || clock.now());
    let storage = machine.storage();
    let (Some(config), Some((links, credentials))) = (config, machine.links()?) else {
        return Ok(RaftConfig::single(replica, storage, &member.name));
    };
    info!(
        event = "joining",
        member = member.name,
        members = config.members.len(),
        "joining the cluster"
    );
    Ok(RaftConfig {
        replica,
        storage,
        name: member.name.clone(),
        links: Some(links),
        members: config.members.clone(),
        entrance: entrance(config)?,
        credentials: Some(credentials),
        timing: config.pace,
    })
}

/// How a member comes into a cluster that is there. Its token may be gone once it is in.
fn entrance(config: &ClusterConfig) -> anyhow::Result<Option<Entrance>> {
    if config.join.is_empty() {
        return Ok(None);
    }
    let file = config.join_token_file.as_deref();
    let token = match file.map(JoinToken::from_file).transpose() {
        Err(TokenError::Io { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            debug!(event = "join-token", "there is no {}", path.display());
            None
        }
        read => read?,
    };
    Ok(Some(Entrance {
        addresses: config.join.clone(),
        token,
    }))
}

/// Serves whatever virtual gateways this process gets, until told to stop. What this yields is cancelled when everything is given up.
///
/// # Errors
/// If addresses cannot be moved, or there is no dead-man switch.
pub(crate) fn serve(
    node: &Arc<Node>,
    machine: &dyn Machine,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<CancellationToken> {
    let membership = Arc::clone(&node.membership);
    let (front, switch) = machine.front(&node.policy.load(), membership.is_alone())?;
    leader::answer(node, &membership);
    relay::answer(node, &membership);
    // Leases are renewed, and granted, until everything is given up.
    let over = CancellationToken::new();
    let ended = CancellationToken::new();
    lease::spawn(node, &membership, switch, &over, &ended)?;
    let followed = follow::run(Arc::clone(node), membership, front, stop.clone());
    let guard = over.clone().drop_guard();
    tasks.spawn(async move {
        followed.await;
        drop(guard);
        ended.cancelled().await;
    });
    Ok(over)
}
