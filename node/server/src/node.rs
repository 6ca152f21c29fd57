//! What there is once in a process, whichever virtual gateways it serves.

use crate::{
    abilities,
    clock::Clock,
    cluster::Membership,
    config::Limits,
    counters::{IkeDrop, IkeDrops},
    credentials::Credentials,
    handovers::Handovers,
    hooks::Hooks,
    protection::Protection,
    shared::Shared,
    worker::{HalfOpenLimits, Message, RateLimit},
};
use arc_swap::ArcSwap;
use evergate_cluster::Replica;
use evergate_dataplane::DataPlane;
use evergate_ike::{
    config::{Connection, Policy},
    record::GatewayId,
    sa::CookieSecrets,
};
use evergate_state::{Command, Outcome, State};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// Answers a second to messages that belong to no SA.
const STRAY_ANSWERS: u32 = 5;

/// Log lines a second about what anyone on the network can cause.
const STRANGER_LINES: u32 = 20;

/// What there is once in a process, whichever virtual gateways it serves.
pub(crate) struct Node {
    /// The member's name.
    pub(crate) member: String,
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
    /// Signs, and finds out who peers are.
    pub(crate) credentials: Credentials,
    /// Time.
    pub(crate) clock: Arc<Clock>,
    /// Our UDP ports.
    pub(crate) ports: Ports,
    /// Addresses of this host that a peer could use.
    pub(crate) addresses: ArcSwap<Vec<IpAddr>>,
    /// What was dropped.
    pub(crate) drops: IkeDrops,
    /// Bounds log lines that strangers can cause.
    pub(crate) stranger_lines: RateLimit,
    /// Bounds answers to messages that belong to no SA.
    pub(crate) stray_answers: RateLimit,
    /// Number of workers of each virtual gateway.
    pub(crate) worker_count: usize,
    /// Its part in the cluster, which may be of one.
    pub(crate) membership: Arc<Membership>,
    /// Where its log is.
    pub(crate) state_dir: PathBuf,
    /// What is held back for gateways that come or go.
    pub(crate) handovers: Handovers,
    /// Programs that are run when Child SAs come and go.
    pub(crate) hooks: Hooks,
    /// The log or the data plane failed: nothing may be sent any more.
    pub(crate) failed: CancellationToken,
    services: RwLock<BTreeMap<GatewayId, Arc<Shared>>>,
}

/// What a running process is made of.
pub(crate) struct Setup {
    /// The member's name.
    pub(crate) member: String,
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
    /// Addresses of this host that a peer could use.
    pub(crate) addresses: Vec<IpAddr>,
    /// Bounds of half-open SAs.
    pub(crate) limits: Limits,
    /// Number of workers of each virtual gateway.
    pub(crate) workers: usize,
    /// Its part in the cluster, which may be of one.
    pub(crate) membership: Arc<Membership>,
    /// Where its log is.
    pub(crate) state_dir: PathBuf,
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

impl Node {
    /// A process that serves nothing yet.
    pub(crate) fn new(setup: Setup) -> Arc<Self> {
        Arc::new(Self {
            member: setup.member,
            policy: ArcSwap::new(
                setup
                    .replica
                    .read(|s| abilities::narrowed(s.policy(), s.abilities())),
            ),
            cookies: ArcSwap::from_pointee(setup.cookies),
            replica: setup.replica,
            plane: setup.plane,
            protection: Protection::default(),
            half_open: HalfOpenLimits::new(setup.limits),
            credentials: Credentials::new(),
            clock: setup.clock,
            ports: setup.ports,
            addresses: ArcSwap::from_pointee(setup.addresses),
            drops: IkeDrops::default(),
            stranger_lines: RateLimit::new(STRANGER_LINES),
            stray_answers: RateLimit::new(STRAY_ANSWERS),
            worker_count: setup.workers,
            membership: setup.membership,
            state_dir: setup.state_dir,
            handovers: Handovers::default(),
            hooks: Hooks::default(),
            failed: CancellationToken::new(),
            services: RwLock::default(),
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

    /// Looks at the replicated state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.replica.read(look)
    }

    /// Messages for a gateway go to this service from now on.
    pub(crate) fn enlist(&self, service: &Arc<Shared>) {
        let mut services = self
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        services.insert(service.gateway, Arc::clone(service));
    }

    /// Messages for a gateway go nowhere any more.
    pub(crate) fn dismiss(&self, gateway: GatewayId) {
        let mut services = self
            .services
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        services.remove(&gateway);
        drop(services);
        self.hooks.released(gateway);
    }

    /// What serves a gateway here.
    pub(crate) fn service(&self, gateway: GatewayId) -> Option<Arc<Shared>> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(&gateway).cloned()
    }

    /// All that is served here.
    pub(crate) fn services(&self) -> Vec<Arc<Shared>> {
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        services.values().cloned().collect()
    }

    /// The gateway that has an outer address of ours. Without configured gateways there is one, with all addresses.
    pub(crate) fn gateway_at(&self, local: IpAddr) -> Option<GatewayId> {
        let policy = self.policy.load();
        match policy.gateways.as_slice() {
            [] => Some(GatewayId(0)),
            all => {
                let has = |nets: &[ipnet::IpNet]| nets.iter().any(|n| n.addr() == local);
                Some(all.iter().find(|g| has(&g.outer))?.id)
            }
        }
    }

    /// What serves a Child SA.
    pub(crate) fn service_of_child(&self, spi_in: u32) -> Option<Arc<Shared>> {
        let gateway = self.read(|state| Some(state.sa(state.spi_owner(spi_in)?)?.gateway))?;
        self.service(gateway)
    }

    /// Nothing is served any more: the process cannot know what it may do.
    pub(crate) fn fail(&self, why: &dyn std::fmt::Display) {
        if !self.failed.is_cancelled() {
            error!(event = "passive", "no longer serving: {why}");
            self.failed.cancel();
        }
    }

    /// Makes a policy the one in force, as far as all members can carry it out: routes and timers follow.
    pub(crate) async fn adopt_policy(&self, policy: &Arc<Policy>) {
        let policy = abilities::narrowed(policy, self.read(State::abilities));
        self.policy.store(Arc::clone(&policy));
        self.protection.set_policy(&self.plane, &policy);
        for service in self.services() {
            for worker in service.workers.get().into_iter().flatten() {
                let _ = worker.send(Message::PolicyChanged).await;
            }
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

/// The gateway whose SAs a connection's are when we initiate them: the one that has an address which the connection names as ours, else the
/// first.
pub(crate) fn gateway_of(policy: &Policy, connection: &Connection) -> GatewayId {
    let names = |net: &ipnet::IpNet| {
        connection
            .local_addrs
            .iter()
            .any(|l| l.contains(&net.addr()))
    };
    let named = policy.gateways.iter().find(|g| g.outer.iter().any(names));
    named
        .or(policy.gateways.first())
        .map_or(GatewayId(0), |g| g.id)
}
