//! Leases of this process: asked for all the time, and what follows from them.
//!
//! All this runs on a thread of its own, so that nothing which workers do delays a renewal.

use super::{
    Membership, leader,
    message::{Answer, Ask, decode, encode},
    now,
};
use crate::{machine::Switch, node::Node, shared::Shared};
use anyhow::Context;
use evergate_cluster::Plant;
use evergate_ike::record::GatewayId;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    runtime,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// So many requests may be unanswered: those of a whole lease, and some that were made for another reason.
const OUTSTANDING: usize = 12;

/// What was refused is asked for again so soon, and then after twice as long each time: a new leader does not grant anything until it
/// knows all that was committed before.
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// Starts to ask for leases, and to lead whenever this member is the leader. It is told to stop once everything is given up; `ended` says when
/// the dead-man switch is dealt with.
///
/// # Errors
/// If the system gives no thread.
pub(super) fn spawn(
    node: &Arc<Node>,
    membership: &Arc<Membership>,
    switch: Option<Box<dyn Switch>>,
    stop: &CancellationToken,
    ended: &CancellationToken,
) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for leases")?;
    let keeper = Keeper {
        node: Arc::clone(node),
        membership: Arc::clone(membership),
        switch,
        guarded: BTreeSet::new(),
        live: BTreeMap::new(),
        silent: BTreeSet::new(),
        again: None,
        patience: ASK_AGAIN,
    };
    let (node, membership, stop) = (Arc::clone(node), Arc::clone(membership), stop.clone());
    let ended = ended.clone().drop_guard();
    thread::Builder::new()
        .name("leases".into())
        .spawn(move || {
            runtime.block_on(async {
                let leading = leader::run(node, membership, stop.clone());
                let keeping = async {
                    let _ended = ended;
                    keeper.run(stop).await;
                };
                tokio::join!(keeping, leading);
            });
        })
        .context("no thread for leases")?;
    Ok(())
}

/// At a time, or never.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => futures::future::pending().await,
    }
}

/// Renews leases.
struct Keeper {
    node: Arc<Node>,
    membership: Arc<Membership>,
    /// Without one there is no address to silence.
    switch: Option<Box<dyn Switch>>,
    /// The addresses that the switch guards.
    guarded: BTreeSet<IpAddr>,
    /// The gateways whose addresses the switch lets speak, and which addresses those are.
    live: BTreeMap<GatewayId, Vec<IpAddr>>,
    /// The gateways of which it was said that their lease is over.
    silent: BTreeSet<GatewayId>,
    /// When to ask again because not everything was granted, and how long the wait for that is.
    again: Option<Instant>,
    patience: Duration,
}

/// An answer, and for how many gateways it was asked.
type Asked = BoxFuture<'static, (usize, Result<Answer, String>)>;

impl Keeper {
    async fn run(mut self, stop: CancellationToken) {
        let membership = Arc::clone(&self.membership);
        let mut period = interval(membership.timing.renew);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leader = membership.cluster.leader();
        let mut answers: FuturesUnordered<Asked> = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((asked, answer)) = answers.next(), if !answers.is_empty() => {
                    self.answered(asked, answer);
                    self.apply();
                    continue;
                }
                _ = period.tick() => {}
                () = membership.renew.notified() => {}
                () = at(self.again), if self.again.is_some() => {}
                changed = leader.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // Whoever led before has nothing more to say, and may be too dead to say so.
                    answers.clear();
                    self.patience = ASK_AGAIN;
                }
            }
            self.again = None;
            self.bound();
            membership.quorum.look(&membership);
            if answers.len() < OUTSTANDING {
                answers.extend(self.ask());
            }
            self.apply();
        }
        // Everything was given up. If this loop ended for another reason, the addresses may be here, and then the switch stays.
        if let Some(switch) = self.switch.take()
            && stop.is_cancelled()
        {
            switch.close();
        }
    }

    /// A leader's own leases end with its quorum lease.
    fn bound(&self) {
        let mut holder = self.membership.holder();
        if !self.membership.leads() {
            return holder.follow();
        }
        if let Some(until) = self.membership.quorum_until() {
            holder.lead(until);
        }
    }

    /// Asks the leader for what the state says is our own.
    fn ask(&self) -> Option<Asked> {
        let membership = &self.membership;
        let leader = membership.cluster.leader().borrow().clone()?;
        let own = self.node.read(|state| membership.own(state));
        let asked_for = own.len();
        let request = membership.holder().request(now(), own);
        let ask = encode(&Ask::Leases(request)).ok()?;
        let (cluster, deadline) = (membership.cluster.clone(), membership.timing.grant);
        let asked = async move {
            let answer = cluster.renew_leases(&leader, ask, deadline).await;
            let answer = answer.map_err(|e| e.to_string());
            (asked_for, answer.and_then(|a| decode(&a)))
        };
        Some(asked.boxed())
    }

    fn answered(&mut self, asked_for: usize, answer: Result<Answer, String>) {
        if answer
            .as_ref()
            .is_ok_and(|a| a.grant.gateways.len() >= asked_for)
        {
            self.patience = ASK_AGAIN;
        } else {
            self.again = Some(Instant::now() + self.patience);
            self.patience = (self.patience * 2).min(self.membership.timing.renew);
        }
        match answer {
            Ok(answer) => {
                self.membership.quorum.heard();
                self.membership.holder().granted(&answer.grant);
                if !answer.hand_over.is_empty() {
                    let wanted = &self.membership.hand_over;
                    *wanted
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner) = answer.hand_over;
                    self.membership.changed.notify_one();
                }
            }
            Err(e) => debug!(event = "lease-denied", "no lease: {e}"),
        }
    }

    /// Opens gates for as long as leases last, and lets the addresses speak.
    fn apply(&mut self) {
        let policy = self.node.policy.load_full();
        // Asked before the services are looked at: those that wait have stopped theirs before.
        let waiting = std::mem::take(&mut *self.membership.silence());
        let services = self.node.services();
        let mut live = BTreeMap::new();
        let mut changes: Vec<(IpAddr, Duration)> = Vec::new();
        {
            let holder = self.membership.holder();
            for service in &services {
                let at = now();
                let mut left = holder.remaining(service.gateway, service.epoch, at);
                if Plant::Lease.is_there() {
                    left = self.membership.timing.grant;
                }
                let stays_open = Plant::Gate.is_there();
                if left.is_zero() || service.passive.is_cancelled() {
                    if !stays_open {
                        service.gate.close();
                    }
                    continue;
                }
                let open = if stays_open {
                    Duration::MAX / 2
                } else {
                    at.after(left).0
                };
                service.gate.open_until(open);
                let config = policy.gateways.iter().find(|g| g.id == service.gateway);
                let addresses: Vec<IpAddr> = config
                    .map(|g| {
                        g.outer
                            .iter()
                            .chain(&g.inner)
                            .map(ipnet::IpNet::addr)
                            .collect()
                    })
                    .unwrap_or_default();
                changes.extend(addresses.iter().map(|a| (*a, left)));
                live.insert(service.gateway, addresses);
            }
        }
        self.say(&services, &live);
        let news = live.keys().any(|g| !self.live.contains_key(g));
        let speaking: BTreeSet<IpAddr> = changes.iter().map(|(a, _)| *a).collect();
        let silent = self
            .live
            .values()
            .flatten()
            .filter(|a| !speaking.contains(a));
        changes.extend(silent.map(|a| (*a, Duration::ZERO)));
        if self.switch(&policy, &changes) {
            for silent in waiting {
                let _ = silent.send(());
            }
        }
        self.live = live;
        if news {
            self.membership.changed.notify_one();
        }
    }

    /// Says which leases are over without the gateway being another's, and which of these there are again.
    fn say(&mut self, services: &[Arc<Shared>], live: &BTreeMap<GatewayId, Vec<IpAddr>>) {
        for service in services {
            let (gateway, epoch) = (service.gateway, service.epoch);
            let (was, is) = (
                self.live.contains_key(&gateway),
                live.contains_key(&gateway),
            );
            if was && !is && !service.passive.is_cancelled() {
                self.silent.insert(gateway);
                warn!(
                    event = "lease-over",
                    gateway = gateway.0,
                    epoch,
                    "the lease for gateway {} is over: nothing is sent for it until there is another",
                    gateway.0
                );
            } else if is && self.silent.remove(&gateway) {
                info!(
                    event = "lease-back",
                    gateway = gateway.0,
                    epoch,
                    "there is a lease for gateway {} again",
                    gateway.0
                );
            }
        }
    }

    /// Whether the switch does what is wanted.
    fn switch(
        &mut self,
        policy: &evergate_ike::config::Policy,
        changes: &[(IpAddr, Duration)],
    ) -> bool {
        let Some(switch) = &mut self.switch else {
            return true;
        };
        let all: BTreeSet<IpAddr> = super::front::addresses(policy).map(|n| n.addr()).collect();
        let more: Vec<IpAddr> = all.difference(&self.guarded).copied().collect();
        let done = switch.guard(&more).and_then(|()| switch.refresh(changes));
        match done {
            Ok(()) => self.guarded.extend(more),
            Err(e) => {
                warn!(event = "switch-failed", "the dead-man switch: {e}");
                return false;
            }
        }
        true
    }
}
