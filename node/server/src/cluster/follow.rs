//! Serves virtual gateways as the replicated state and the leases say.
//!
//! A gateway that was assigned to this process is *prepared*: its SAs go into the data plane, from which nothing is sent yet. When the
//! lease is there it is *served*: the addresses are taken and announced, and workers run. When the assignment is over, everything
//! stops at once. While only the lease is over, the gate is closed, and nothing else changes.
//!
//! A gateway that is handed over *lingers*: what still comes for it is relayed to its successor.

use super::{
    Membership,
    linger::{Held, Linger, records, remove_children},
    message::{Ask, HandOver},
    now,
    relay::Relay,
};
use crate::{
    gateway::{Prepared, prepare},
    machine::Front,
    node::Node,
    shared::Shared,
};
use evergate_dataplane::Gate;
use evergate_ike::record::GatewayId;
use evergate_state::{Abilities, Command, Outcome};
use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

/// How often to look, besides when something has changed.
const PERIOD: Duration = Duration::from_millis(50);

/// A gateway that is given up in good order takes no longer than this.
const FAREWELL: Duration = Duration::from_secs(3);

/// When a lease has been over for so long, there is no majority to wait for.
const HOPELESS: Duration = Duration::from_millis(200);

/// A process that is about to end waits so long for others to take its gateways.
const LEAVING: Duration = Duration::from_secs(1);

/// How often it asks meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// How far a gateway is.
enum Stage {
    Prepared(Prepared),
    Served,
    /// It ends; its SAs are being taken out of the data plane.
    Ending,
}

/// A gateway that is, or was, this process's own.
struct Post {
    shared: Arc<Shared>,
    stage: Stage,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What came for it before it is served.
    held: Held,
}

/// Serves gateways.
struct Follower {
    node: Arc<Node>,
    membership: Arc<Membership>,
    front: Box<dyn Front>,
    posts: BTreeMap<GatewayId, Post>,
    /// Gateways that others have now, whose packets still come here.
    lingering: BTreeMap<GatewayId, Linger>,
    /// The last epoch of each gateway that this process has begun.
    begun: BTreeMap<GatewayId, u32>,
    /// The last epoch of each gateway that it gave back.
    given_back: BTreeMap<GatewayId, u32>,
    /// A post has ended.
    ended: Arc<Notify>,
    /// Nothing new is taken: the process is about to end.
    leaving: bool,
    /// When there was a lease while something was given up.
    leased: Option<Instant>,
    /// The version of the policy that is in force, and what all members can do of it.
    policy: (u64, Abilities),
}

/// Serves whatever this process gets, until told to stop; then it gives everything up.
pub(super) async fn run(
    node: Arc<Node>,
    membership: Arc<Membership>,
    front: Box<dyn Front>,
    stop: CancellationToken,
) {
    let mut applied = node.replica.applied();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let policy = node.read(|s| (s.policy_version(), s.abilities()));
    let mut follower = Follower {
        node,
        membership: Arc::clone(&membership),
        front,
        posts: BTreeMap::new(),
        lingering: BTreeMap::new(),
        begun: BTreeMap::new(),
        given_back: BTreeMap::new(),
        ended: Arc::new(Notify::new()),
        leaving: false,
        leased: None,
        policy,
    };
    let ended = Arc::clone(&follower.ended);
    loop {
        tokio::select! {
            () = stop.cancelled() => return follower.give_up().await,
            _ = period.tick() => {}
            changed = applied.changed() => if changed.is_err() { return follower.give_up().await },
            () = membership.changed.notified() => {}
            () = ended.notified() => {}
        }
        follower.look().await;
    }
}

impl Follower {
    fn serves_any(&self) -> bool {
        let served = |post: &Post| matches!(post.stage, Stage::Served);
        self.posts.values().any(served)
    }

    async fn look(&mut self) {
        self.adopt().await;
        let id = self.membership.cluster.id();
        if self.node.read(|state| state.dismissed(id).is_some()) {
            self.node
                .fail(&"this member was removed from the cluster by an operator");
        }
        let own: BTreeMap<GatewayId, u32> = self
            .node
            .read(|state| self.membership.own(state))
            .into_iter()
            .collect();
        self.lose(&own);
        self.clear();
        drop(self.linger_no_longer());
        let failed = self.node.failed.is_cancelled();
        for (gateway, epoch) in own {
            if failed || self.leaving || self.posts.contains_key(&gateway) {
                continue;
            }
            // An epoch is begun once: counters of IVs and reservations would begin anew.
            if self.begun.get(&gateway).is_some_and(|e| epoch <= *e) {
                self.ask_for_another(gateway, epoch);
            } else {
                self.prepare(gateway, epoch);
            }
        }
        self.serve();
        let wanted = std::mem::take(
            &mut *self
                .membership
                .hand_over
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for wanted in wanted {
            self.hand_over(wanted).await;
        }
    }

    /// Follows what is replicated besides: the policy, and cookie secrets.
    async fn adopt(&mut self) {
        let (known, policy, cookies) = self.node.read(|state| {
            let known = (state.policy_version(), state.abilities());
            let news = known != self.policy;
            let policy = news.then(|| Arc::clone(state.policy()));
            (known, policy, state.cookie_secrets().cloned())
        });
        if let Some(policy) = policy {
            self.policy = known;
            self.node.adopt_policy(&policy).await;
            // Addresses may be others.
            for (gateway, post) in &self.posts {
                if matches!(post.stage, Stage::Served) {
                    self.front.take(&policy, *gateway, &post.shared.passive);
                }
            }
        }
        if let Some(cookies) = cookies.filter(|c| *c != **self.node.cookies.load()) {
            self.node.cookies.store(Arc::new(cookies));
        }
    }

    /// Stops what is somebody else's, or was assigned anew.
    fn lose(&mut self, own: &BTreeMap<GatewayId, u32>) {
        let lost: Vec<GatewayId> = self
            .posts
            .iter()
            .filter(|(gateway, post)| {
                let stays = own.get(gateway) == Some(&post.shared.epoch)
                    && !post.shared.passive.is_cancelled();
                !stays && !matches!(post.stage, Stage::Ending)
            })
            .map(|(gateway, _)| *gateway)
            .collect();
        for gateway in lost {
            if let Some(post) = self.posts.get(&gateway) {
                info!(
                    event = "gateway-lost",
                    gateway = gateway.0,
                    epoch = post.shared.epoch,
                    "no longer serving gateway {} in epoch {}",
                    gateway.0,
                    post.shared.epoch
                );
            }
            self.end(gateway);
        }
    }

    /// Stops at once: first sending, then the addresses, then the rest.
    fn end(&mut self, gateway: GatewayId) {
        let Some(post) = self.posts.get_mut(&gateway) else {
            return;
        };
        post.shared.stop_sending();
        post.held.give_up(&post.shared);
        self.membership.holder().drop_gateway(gateway);
        self.front.leave(&self.node.policy.load(), gateway);
        self.node.dismiss(gateway);
        // The keeper of leases silences what is not served.
        self.membership.renew.notify_one();
        if let Stage::Prepared(prepared) = std::mem::replace(&mut post.stage, Stage::Ending) {
            // They take their SAs out of the data plane.
            prepared.run(&post.stop, &post.tasks);
        }
        post.tasks.close();
        let (tasks, ended) = (post.tasks.clone(), Arc::clone(&self.ended));
        tokio::spawn(async move {
            tasks.wait().await;
            ended.notify_one();
        });
    }

    /// Forgets what has ended.
    fn clear(&mut self) {
        self.posts
            .retain(|_, post| !matches!(post.stage, Stage::Ending) || !post.tasks.is_empty());
    }

    /// Gives a gateway back whose epoch has ended here though the state says that it is ours, so that somebody gets it in a new one.
    fn ask_for_another(&mut self, gateway: GatewayId, epoch: u32) {
        if self.given_back.insert(gateway, epoch) == Some(epoch) {
            return;
        }
        let release = Command::ReleaseGateway { gateway, epoch };
        let done = self.node.propose(release);
        tokio::spawn(async move {
            if let Err(e) = done.await {
                warn!(
                    event = "handover-failed",
                    gateway = gateway.0,
                    "gateway {} was not given back: {e}",
                    gateway.0
                );
            }
        });
    }

    fn prepare(&mut self, gateway: GatewayId, epoch: u32) {
        self.begun.insert(gateway, epoch);
        let started = Instant::now();
        let shared = Shared::new(&self.node, gateway, epoch, Gate::closed());
        // What comes before the lease is there waits.
        let held = Held::new(&shared);
        held.ike(&shared);
        held.packets(&shared);
        if let Some(linger) = self.lingering.remove(&gateway) {
            linger.turn_back(&held);
        }
        let prepared = prepare(&shared);
        info!(
            event = "gateway-prepared",
            gateway = gateway.0,
            epoch,
            took_us = micros(started),
            "gateway {} is ours in epoch {epoch}",
            gateway.0
        );
        let post = Post {
            shared,
            stage: Stage::Prepared(prepared),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            held,
        };
        self.posts.insert(gateway, post);
        self.membership.renew.notify_one();
    }

    /// Serves what is prepared and may act.
    fn serve(&mut self) {
        let policy = self.node.policy.load_full();
        for (gateway, post) in &mut self.posts {
            let ready = matches!(&post.stage, Stage::Prepared(p) if p.shared().may_send());
            if !ready {
                continue;
            }
            let Stage::Prepared(prepared) = std::mem::replace(&mut post.stage, Stage::Served)
            else {
                continue;
            };
            let started = Instant::now();
            self.front.take(&policy, *gateway, &post.shared.passive);
            prepared.run(&post.stop, &post.tasks);
            post.held.resume(&post.shared);
            let epoch = post.shared.epoch;
            info!(
                event = "gateway-taken",
                gateway = gateway.0,
                epoch,
                took_us = micros(started),
                "serving gateway {} in epoch {epoch}",
                gateway.0
            );
        }
    }

    /// Gives a gateway to another process, or to nobody in particular.
    async fn hand_over(&mut self, wanted: HandOver) {
        let HandOver { gateway, epoch, to } = wanted;
        let serves = self
            .posts
            .get(&gateway)
            .is_some_and(|post| post.shared.epoch == epoch && matches!(post.stage, Stage::Served));
        if serves {
            let relay = Relay::open(&self.membership, &to.member, gateway, epoch + 1).await;
            let relay = relay.inspect_err(|e| {
                warn!(
                    event = "relay-failed",
                    gateway = gateway.0,
                    epoch,
                    "what comes for gateway {} meanwhile is lost: {e}",
                    gateway.0
                );
            });
            let command = Command::AssignGateway {
                gateway,
                member: to.member.clone(),
                incarnation: to.incarnation,
                expected_epoch: epoch,
            };
            info!(
                event = "handing-over",
                gateway = gateway.0,
                epoch,
                to = to.member,
                "handing gateway {} over to {}",
                gateway.0,
                to.member
            );
            self.leave(gateway, command, relay.ok()).await;
        }
    }

    /// Gives a gateway up in good order: what its workers have under way is committed, then nothing is sent any more, and how far peers' packets
    /// have come is said in the same entry as the end. What comes from then on is held back for the successor.
    async fn leave(&mut self, gateway: GatewayId, last: Command, relay: Option<Relay>) {
        let Some(post) = self.posts.get_mut(&gateway) else {
            return;
        };
        let shared = Arc::clone(&post.shared);
        let held = Held::new(&shared);
        held.ike(&shared);
        post.stop.cancel();
        post.tasks.close();
        let tasks = post.tasks.clone();
        if self.while_leased(&shared, tasks.wait()).await.is_none() {
            warn!(
                event = "drain-incomplete",
                gateway = gateway.0,
                "the workers did not end in time"
            );
        }
        let started = Instant::now();
        held.packets(&shared);
        shared.stop_sending();
        // Addresses that may speak for as long as the lease runs must not stay.
        let silent = self.membership.silenced().await;
        let relay = relay.filter(|_| silent);
        if relay.is_none() {
            held.hold.close();
            self.front.leave(&self.node.policy.load(), gateway);
        }
        let records = records(&shared);
        let done = self.while_leased(&shared, commit_end(&shared, last)).await;
        if done.is_none() {
            warn!(
                event = "handover-failed",
                gateway = gateway.0,
                "the end of gateway {} was not committed in time: most members do not answer",
                gateway.0
            );
        }
        self.membership.holder().drop_gateway(gateway);
        self.node.dismiss(gateway);
        self.membership.renew.notify_one();
        self.posts.remove(&gateway);
        match relay.filter(|_| done == Some(true)) {
            Some(relay) => {
                info!(
                    event = "handed-over",
                    gateway = gateway.0,
                    epoch = shared.epoch,
                    took_us = micros(started),
                    "gateway {} is another member's",
                    gateway.0
                );
                let linger = Linger::start(shared, held, records, relay);
                self.lingering.insert(gateway, linger);
            }
            None => {
                held.give_up(&shared);
                self.front.leave(&self.node.policy.load(), gateway);
                remove_children(&shared, &records);
            }
        }
    }

    /// Ends what has lingered long enough. What this yields ends when successors have all that came.
    fn linger_no_longer(&mut self) -> Vec<JoinHandle<()>> {
        let now = Instant::now();
        let over = self
            .lingering
            .extract_if(.., |_, linger| linger.until <= now);
        let over: Vec<(GatewayId, Linger)> = over.collect();
        let policy = self.node.policy.load();
        let end = |(gateway, linger): (GatewayId, Linger)| {
            self.front.leave(&policy, gateway);
            linger.end()
        };
        over.into_iter().map(end).collect()
    }

    /// Waits for what needs a majority, but no longer than is worth it.
    async fn while_leased<T>(
        &mut self,
        shared: &Shared,
        done: impl Future<Output = T>,
    ) -> Option<T> {
        let mut done = pin!(done);
        let until = Instant::now() + FAREWELL;
        loop {
            if let Ok(done) = timeout(ASK_AGAIN, &mut done).await {
                return Some(done);
            }
            let (gateway, epoch) = (shared.gateway, shared.epoch);
            let leased = self.membership.holder().may_act(gateway, epoch, now());
            if leased || self.leased.is_none() {
                self.leased = Some(Instant::now());
            }
            let hopeless = self.leased.is_some_and(|at| at.elapsed() > HOPELESS);
            if hopeless || Instant::now() >= until {
                return None;
            }
        }
    }

    /// Gives everything up, so that others need not wait for leases to end: to others by handover if there are any, else to nobody.
    async fn give_up(mut self) {
        self.leaving = true;
        let wanted = Ask::Leave(self.membership.me.clone());
        let until = Instant::now() + LEAVING;
        if self.serves_any()
            && !self.node.failed.is_cancelled()
            && matches!(
                timeout(LEAVING, self.membership.ask(&wanted)).await,
                Ok(Ok(()))
            )
            && !self.membership.is_alone()
        {
            while self.serves_any() && Instant::now() < until {
                self.membership.renew.notify_one();
                let _ = timeout(ASK_AGAIN, self.membership.changed.notified()).await;
                self.look().await;
            }
        }
        let all: Vec<(GatewayId, u32)> = self
            .posts
            .iter()
            .filter(|(_, post)| matches!(post.stage, Stage::Served))
            .map(|(gateway, post)| (*gateway, post.shared.epoch))
            .collect();
        for (gateway, epoch) in all {
            let last = Command::ReleaseGateway { gateway, epoch };
            if self.node.failed.is_cancelled() {
                self.end(gateway);
            } else {
                self.leave(gateway, last, None).await;
            }
        }
        while let Some(until) = self.lingering.values().map(|l| l.until).max() {
            sleep_until(until.into()).await;
            for relayed in self.linger_no_longer() {
                let _ = relayed.await;
            }
        }
        // What was prepared, and never served, says nothing either: the dead-man switch may go now.
        for post in self.posts.values() {
            post.shared.stop_sending();
        }
    }
}

/// Commits how far peers' packets have come, together with the end of this epoch. Whether it was done.
async fn commit_end(shared: &Shared, last: Command) -> bool {
    let gateway = shared.gateway;
    let mut edges = shared.plane.replay_edges();
    shared.read(|state| {
        edges.retain(|(spi, _)| {
            let owner = state.spi_owner(*spi).and_then(|sa| state.sa(sa));
            owner.is_some_and(|record| record.gateway == gateway)
        });
    });
    let report = Command::ReportReceived {
        gateway,
        epoch: shared.epoch,
        edges,
    };
    let done = timeout(FAREWELL, shared.replica.propose(vec![report, last])).await;
    let failed = |why: &dyn std::fmt::Display| {
        warn!(
            event = "handover-failed",
            gateway = gateway.0,
            "the end of gateway {} was not committed: {why}",
            gateway.0
        );
        false
    };
    match done {
        Ok(Ok(outcomes)) => match outcomes.last() {
            Some(Outcome::Refused(refusal)) => failed(refusal),
            _ => true,
        },
        Ok(Err(e)) => failed(&e),
        Err(e) => failed(&e),
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
