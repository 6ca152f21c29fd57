//! What all parts of a running member share.

use crate::{
    clock::Clock,
    config::Limits,
    counters::{IkeDrop, IkeDrops},
    protection::Protection,
    worker::{HalfOpenLimits, Message, RateLimit},
};
use arc_swap::ArcSwap;
use evergate_cluster::Replica;
use evergate_dataplane::DataPlane;
use evergate_ike::{
    config::Policy,
    record::{GatewayId, SaId},
    sa::{self, CookieSecrets, IvCounter},
};
use evergate_state::{Command, Outcome, State};
use futures::{FutureExt, future::BoxFuture};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// Answers a second to messages that belong to no SA.
const STRAY_ANSWERS: u32 = 5;

/// Log lines a second about what anyone on the network can cause.
const STRANGER_LINES: u32 = 20;

/// What all parts of a running member share.
pub(crate) struct Shared {
    /// The member's name.
    pub(crate) member: String,
    /// The virtual gateway that this process serves.
    pub(crate) gateway: GatewayId,
    /// The epoch under which it does.
    pub(crate) epoch: u32,
    /// The IVs of that epoch.
    pub(crate) ivs: IvCounter,
    /// The replicated state.
    pub(crate) replica: Replica,
    /// What carries packets.
    pub(crate) plane: Arc<dyn DataPlane>,
    /// Which prefixes the plane protects.
    pub(crate) protection: Protection,
    /// The policy that is in force.
    pub(crate) policy: ArcSwap<Policy>,
    /// The secrets of stateless cookies.
    pub(crate) cookies: ArcSwap<CookieSecrets>,
    /// Bounds of half-open SAs.
    pub(crate) half_open: Arc<HalfOpenLimits>,
    /// Time.
    pub(crate) clock: Arc<Clock>,
    /// Our UDP ports.
    pub(crate) ports: Ports,
    /// What was dropped.
    pub(crate) drops: IkeDrops,
    /// Bounds log lines that strangers can cause.
    pub(crate) stranger_lines: RateLimit,
    /// Bounds answers to messages that belong to no SA.
    pub(crate) stray_answers: RateLimit,
    /// Number of workers.
    pub(crate) worker_count: usize,
    /// Their queues, once they run.
    pub(crate) workers: OnceLock<Vec<mpsc::Sender<Message>>>,
    /// Another process has the gateway, or the log failed: nothing may be sent any more.
    pub(crate) passive: CancellationToken,
}

/// What a running member is made of.
pub(crate) struct Setup {
    /// The member's name.
    pub(crate) member: String,
    /// The virtual gateway that it serves.
    pub(crate) gateway: GatewayId,
    /// The epoch that it took it with.
    pub(crate) epoch: u32,
    /// The replicated state; its policy is the one in force.
    pub(crate) replica: Replica,
    /// What carries packets.
    pub(crate) plane: Arc<dyn DataPlane>,
    /// The secrets of cookies.
    pub(crate) cookies: CookieSecrets,
    /// Time.
    pub(crate) clock: Arc<Clock>,
    /// Our UDP ports.
    pub(crate) ports: Ports,
    /// Bounds of half-open SAs.
    pub(crate) limits: Limits,
    /// Number of workers.
    pub(crate) workers: usize,
}

/// UDP ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// Of IKE.
    pub(crate) ike: u16,
    /// Of IKE and ESP behind NATs.
    pub(crate) nat: u16,
}

/// The log does not answer: what was proposed may or may not be committed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the log failed: {0}")]
pub(crate) struct LogFailed(String);

impl Shared {
    /// What the parts of a member share, before any of them runs.
    pub(crate) fn new(setup: Setup) -> Arc<Self> {
        Arc::new(Self {
            member: setup.member,
            gateway: setup.gateway,
            epoch: setup.epoch,
            ivs: IvCounter::new(setup.epoch),
            policy: ArcSwap::new(setup.replica.read(|s| Arc::clone(s.policy()))),
            cookies: ArcSwap::from_pointee(setup.cookies),
            replica: setup.replica,
            plane: setup.plane,
            protection: Protection::default(),
            half_open: HalfOpenLimits::new(setup.limits),
            clock: setup.clock,
            ports: setup.ports,
            drops: IkeDrops::default(),
            stranger_lines: RateLimit::new(STRANGER_LINES),
            stray_answers: RateLimit::new(STRAY_ANSWERS),
            worker_count: setup.workers,
            workers: OnceLock::new(),
            passive: CancellationToken::new(),
        })
    }

    /// Proposes a command. The future says what became of it, once it was applied here.
    pub(crate) fn propose(
        &self,
        command: Command,
    ) -> BoxFuture<'static, Result<Outcome, LogFailed>> {
        let replica = self.replica.clone();
        let proposal = async move {
            let outcomes = replica
                .propose(vec![command])
                .await
                .map_err(|e| LogFailed(e.to_string()))?;
            let none = || LogFailed("a command has no outcome".to_owned());
            outcomes.into_iter().next().ok_or_else(none)
        };
        proposal.boxed()
    }

    /// Tells the sender of a request that belongs to no SA (RFC 7296 §2.21.4), a few times a second. Only a process that holds the gateway's epoch
    /// may say so, and this one has had all SAs of the gateway since it took it.
    pub(crate) fn answer_stray(&self, bytes: &[u8], local: SocketAddr, remote: SocketAddr) {
        if self.passive.is_cancelled() || self.stray_answers.pass(Instant::now()).is_none() {
            return;
        }
        if let Some(answer) = sa::answer_stray(bytes) {
            let _ = self.plane.send_ike(local, remote, &answer);
        }
    }

    /// Looks at the replicated state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.replica.read(look)
    }

    /// The worker that serves an SA; `None` before there are workers.
    pub(crate) fn worker(&self, sa: SaId) -> Option<&mpsc::Sender<Message>> {
        self.workers
            .get()?
            .get(crate::worker::worker_of(sa, self.worker_count))
    }

    /// Stops serving the gateway, for good: somebody else may have it.
    pub(crate) fn go_passive(&self, why: &dyn std::fmt::Display) {
        if !self.passive.is_cancelled() {
            error!(
                event = "passive",
                gateway = self.gateway.0,
                epoch = self.epoch,
                "no longer serving: {why}"
            );
            self.passive.cancel();
        }
    }

    /// Counts a message that was dropped, and says so unless it was said too often just now.
    pub(crate) fn dropped(
        &self,
        reason: IkeDrop,
        local: SocketAddr,
        remote: SocketAddr,
        why: &dyn std::fmt::Display,
    ) {
        self.drops.count(reason);
        if let Some(suppressed) = self.stranger_lines.pass(Instant::now()) {
            debug!(event = "ike-dropped", reason = reason.label(), %local, peer = %remote, suppressed, "dropped a message: {why}");
        }
    }
}
