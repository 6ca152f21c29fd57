//! A member from start to stop.
//!
//! The order of the start matters: nothing is sealed or sent before the gateway's epoch is this process's own, and nothing is received
//! before the SAs that others may ask for are there.

use crate::{
    abilities, admin,
    clock::{Clock, SystemEntropy},
    cluster,
    config::Config,
    dispatch::Dispatcher,
    keys,
    machine::{Kernel, Machine},
    network,
    node::{Node, Ports, Setup},
    policy, received,
    reload::{self, Files},
    shared::Shared,
    starter, volume,
    worker::{self, Message, Worker, worker_of},
};
use anyhow::{Context, bail};
use evergate_cluster::{KeyRing, Plant, Replica, lease::Timing};
use evergate_dataplane::{DataPlane, PlaneEvent};
use evergate_ike::{
    env::Entropy,
    record::{GatewayId, Record},
    sa::CookieSecrets,
    secret::Secret,
};
use evergate_state::{Command, Outcome, Owner, Place};
use std::{sync::Arc, thread, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::interval,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

/// The only virtual gateway of a member that is alone.
pub(crate) const GATEWAY: GatewayId = GatewayId(0);

/// Cookie secrets are changed this often (RFC 7296 §2.6).
const COOKIE_LIFE: Duration = Duration::from_secs(600);

/// Where a member stands is told again so soon, when not all members understood it.
const PLACE_AGAIN: Duration = Duration::from_secs(5);

/// Length of a cookie secret in bytes.
const COOKIE_SECRET: usize = 32;

/// A running member.
pub(crate) struct Running {
    node: Arc<Node>,
    stop: CancellationToken,
    tasks: TaskTracker,
    keep_closed: bool,
}

/// Starts a member on this machine. Files that may change while it runs are looked at when `now` is notified, and by themselves now and then.
///
/// # Errors
/// If its state cannot be opened, or device, ports or socket cannot be had.
pub(crate) async fn start(
    config: Config,
    keys: KeyRing,
    now: Arc<Notify>,
) -> anyhow::Result<Running> {
    let Some(member) = &config.member else {
        bail!("the configuration has no [member] table");
    };
    let kernel = Kernel::new(&config, member);
    let running = start_on(&config, keys, &kernel).await?;
    let (node, stop, tasks) = (&running.node, &running.stop, &running.tasks);
    let tun = config.dataplane.tun.clone();
    tasks.spawn(network::watch(Arc::clone(node), tun, stop.clone()));
    let files = Files::new(member, config.cluster.as_ref());
    tasks.spawn(reload::watch(Arc::clone(node), files, now, stop.clone()));
    admin::serve(Arc::clone(node), &member.admin_socket, stop.clone(), tasks).await?;
    info!(event = "started", member = member.name, "serving");
    Ok(running)
}

/// Starts a member on a machine, without what watches this host and without the administration API.
///
/// # Errors
/// If its state cannot be opened, or the machine refuses something.
pub(crate) async fn start_on(
    config: &Config,
    keys: KeyRing,
    machine: &dyn Machine,
) -> anyhow::Result<Running> {
    let Some(member) = config.member.clone() else {
        bail!("the configuration has no [member] table");
    };
    let clock = Arc::new(Clock::new());
    let raft = cluster::raft_config(&member, config.cluster.as_ref(), keys, &clock, machine)?;
    let replica = Replica::join(raft).await.with_context(|| {
        let directory = member.state_dir.display();
        format!("cannot go on with the state in {directory}")
    })?;
    let (me, timing) = match &config.cluster {
        Some(cluster) => (register(&replica, &member.name).await?, cluster.lease),
        None => (take_all(&replica, &member.name).await?, Timing::ALONE),
    };
    let membership = Arc::new(cluster::Membership::new(&replica, me.clone(), timing));
    policy::apply_file(&replica, &config.policy, &member).await?;
    let cookies = cookies(&replica).await?;

    let (plane, events) = machine.plane().context("cannot start the data plane")?;
    describe(&replica, &me, plane.as_ref()).await?;
    let workers = member
        .workers
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let node = Node::new(Setup {
        member: member.name.clone(),
        replica,
        plane,
        cookies,
        clock,
        ports: Ports {
            ike: member.ike_port,
            nat: member.nat_port,
        },
        addresses: machine.addresses(),
        limits: config.limits.clone(),
        workers,
        membership,
        state_dir: member.state_dir.clone(),
    });
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let policy = node.policy.load_full();
    node.protection.set_policy(&node.plane, &policy);
    let over = cluster::serve(&node, machine, &stop, &tasks)?;
    serve_process(&node, events, &stop, &over, &tasks);
    let place = Place {
        zone: member.zone.clone(),
        weight: member.weight,
    };
    tasks.spawn(put_in_place(Arc::clone(&node), place, stop.clone()));
    admin::answer_others(&node);
    Ok(Running {
        node,
        stop,
        tasks,
        keep_closed: config.dataplane.keep_closed,
    })
}

/// Proposes a command that must not be refused.
///
/// # Errors
/// If it is, or the log fails.
pub(crate) async fn commit(replica: &Replica, command: Command) -> anyhow::Result<Outcome> {
    let outcome = commit_all(replica, vec![command]).await?.into_iter().next();
    outcome.context("a command has no outcome")
}

/// Proposes commands, of which none must be refused.
async fn commit_all(replica: &Replica, commands: Vec<Command>) -> anyhow::Result<Vec<Outcome>> {
    let outcomes = replica.propose(commands).await?;
    for outcome in &outcomes {
        if let Outcome::Refused(refusal) = outcome {
            return Err(refusal.clone().into());
        }
    }
    Ok(outcomes)
}

/// Makes this process the one of its member.
///
/// # Errors
/// If the log fails.
pub(crate) async fn register(replica: &Replica, member: &str) -> anyhow::Result<Owner> {
    let me = new_process(member);
    let registered = commit_all(replica, registration(replica, &me).into()).await;
    registered.context("cannot register this process")?;
    Ok(me)
}

/// Makes this process the one of its member, and the only gateway of a member that is alone its own, in a new epoch: there is nobody else to be
/// asked, and nobody who could still have it.
///
/// # Errors
/// If the log fails.
pub(crate) async fn take_all(replica: &Replica, member: &str) -> anyhow::Result<Owner> {
    let me = new_process(member);
    let mut commands = Vec::from(registration(replica, &me));
    commands.push(Command::AssignGateway {
        gateway: GATEWAY,
        member: me.member.clone(),
        incarnation: me.incarnation,
        expected_epoch: replica.read(|state| state.epoch(GATEWAY)),
    });
    let taken = commit_all(replica, commands).await;
    taken.context("cannot take the gateway")?;
    Ok(me)
}

/// Tells all members what this one's data plane can do, if that is not known. Nothing is negotiated before.
async fn describe(replica: &Replica, me: &Owner, plane: &dyn DataPlane) -> anyhow::Result<()> {
    let abilities = abilities::of(&plane.capabilities());
    let known = replica.read(|s| s.member(&me.member).map(|m| m.abilities));
    if known == Some(abilities) {
        return Ok(());
    }
    let described = Command::DescribePlane {
        member: me.member.clone(),
        incarnation: me.incarnation,
        abilities,
    };
    let committed = commit(replica, described).await;
    committed.context("cannot tell what the data plane can do")?;
    Ok(())
}

/// Who this process is, and which format it understands.
fn registration(replica: &Replica, me: &Owner) -> [Command; 2] {
    let (member, incarnation) = (&me.member, me.incarnation);
    [
        Command::RegisterMember {
            member: member.clone(),
            incarnation,
        },
        Command::AnnounceLevel {
            member: member.clone(),
            incarnation,
            level: replica.level(),
        },
    ]
}

fn new_process(member: &str) -> Owner {
    let mut bytes = [0; 16];
    SystemEntropy.fill(&mut bytes);
    Owner {
        member: member.to_owned(),
        incarnation: u128::from_be_bytes(bytes),
    }
}

/// The cookie secrets at the start: those that are there, as peers may have cookies, else fresh ones.
async fn cookies(replica: &Replica) -> anyhow::Result<CookieSecrets> {
    if let Some(there) = replica.read(|s| s.cookie_secrets().cloned()) {
        return Ok(there);
    }
    let fresh = fresh_cookies(None);
    commit(replica, Command::SetCookieSecrets(fresh.clone())).await?;
    Ok(fresh)
}

/// New cookie secrets; what was issued under the ones before stays good for a while.
pub(crate) fn fresh_cookies(before: Option<&CookieSecrets>) -> CookieSecrets {
    let fresh = || {
        let mut bytes = vec![0; COOKIE_SECRET];
        SystemEntropy.fill(&mut bytes);
        Secret::new(bytes)
    };
    CookieSecrets {
        current: fresh(),
        previous: before.map_or_else(fresh, |b| b.current.clone()),
    }
}

/// For so many SAs threads are worth their while: each SA takes some ten microseconds.
const MANY: usize = 1024;

/// A virtual gateway whose Child SAs are installed, but which is not served yet.
pub(crate) struct Prepared {
    shared: Arc<Shared>,
    workers: Vec<(Worker, mpsc::Receiver<Message>)>,
}

/// Takes the SAs of the gateway over: what is committed of them goes into the data plane. Messages for the gateway are dropped until it is
/// served.
pub(crate) fn prepare(shared: &Arc<Shared>) -> Prepared {
    let records: Vec<Arc<Record>> = shared.read(|state| {
        let own = state.sas().filter(|r| r.gateway == shared.gateway);
        own.cloned().collect()
    });
    let records = match Plant::Amnesia.is_there() {
        true => Vec::new(),
        false => records,
    };
    let sas = records.len();
    let children: usize = records.iter().map(|r| r.children().len()).sum();
    let mut shares: Vec<Vec<Arc<Record>>> = vec![Vec::new(); shared.worker_count];
    for record in records {
        shares[worker_of(record.id, shared.worker_count)].push(record);
    }
    let channels = shares.iter().map(|_| mpsc::channel(worker::QUEUE));
    let (queues, inboxes): (Vec<_>, Vec<_>) = channels.unzip();
    let workers = resume(shared, shares).into_iter().zip(inboxes).collect();
    // Set once, here.
    let _ = shared.workers.set(queues);
    shared.node().enlist(shared);
    if sas != 0 {
        info!(
            event = "resumed",
            gateway = shared.gateway.0,
            sas,
            children,
            "resumed {sas} IKE SAs with {children} Child SAs"
        );
    }
    Prepared {
        shared: Arc::clone(shared),
        workers,
    }
}

/// The workers with what each has. Many SAs are taken over by all processors at once: until that is done, none of them passes traffic.
fn resume(shared: &Arc<Shared>, shares: Vec<Vec<Arc<Record>>>) -> Vec<Worker> {
    let many = shares.iter().map(Vec::len).sum::<usize>() >= MANY;
    let shares = shares.into_iter().enumerate();
    if !many {
        let worker = |(index, records)| Worker::resume(Arc::clone(shared), index, records);
        return shares.map(worker).collect();
    }
    let runtime = Handle::try_current();
    thread::scope(|scope| {
        let threads: Vec<_> = shares
            .map(|(index, records)| {
                let (shared, runtime) = (Arc::clone(shared), &runtime);
                scope.spawn(move || {
                    let _entered = runtime.as_ref().map(Handle::enter);
                    Worker::resume(shared, index, records)
                })
            })
            .collect();
        let workers = threads.into_iter().map(|thread| match thread.join() {
            Ok(worker) => worker,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        workers.collect()
    })
}

impl Prepared {
    /// What it is.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Serves the gateway from now on.
    pub(crate) fn run(self, stop: &CancellationToken, tasks: &TaskTracker) {
        for (worker, inbox) in self.workers {
            tasks.spawn(worker.run(inbox, stop.clone()));
        }
        tasks.spawn(starter::run(Arc::clone(&self.shared), stop.clone()));
        tasks.spawn(volume::run(Arc::clone(&self.shared), stop.clone()));
        tasks.spawn(received::run(self.shared, stop.clone()));
    }
}

/// Starts what a process has once, whatever it serves. Messages are received until `over`: gateways may have to be handed over after `stop`.
pub(crate) fn serve_process(
    node: &Arc<Node>,
    events: mpsc::Receiver<PlaneEvent>,
    stop: &CancellationToken,
    over: &CancellationToken,
    tasks: &TaskTracker,
) {
    tasks.spawn(Dispatcher::new(Arc::clone(node)).run(events, over.clone()));
    tasks.spawn(change_cookies(Arc::clone(node), stop.clone()));
    tasks.spawn(watch_log(Arc::clone(node), stop.clone()));
    tasks.spawn(keys::announce(Arc::clone(node), stop.clone()));
}

impl Running {
    /// The replicated state.
    pub(crate) fn replica(&self) -> &Replica {
        &self.node.replica
    }

    /// Asks the leader to move a gateway to a member.
    ///
    /// # Errors
    /// Why that cannot be, as a sentence.
    pub(crate) async fn move_gateway(
        &self,
        gateway: GatewayId,
        member: &str,
    ) -> Result<(), String> {
        self.node.membership.ask_to_move(gateway, member).await
    }

    /// This process.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Returns when the member serves nothing any more, because the log or the data plane failed.
    pub(crate) async fn passive(&self) {
        self.node.failed.cancelled().await;
    }

    /// Stops in an orderly way. Peers are told nothing: their SAs wait in the log for the next start, or another member serves them.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait())
            .await
            .is_err()
        {
            warn!(event = "stop-incomplete", "some tasks did not end in time");
        }
        self.node.hooks.finish().await;
        if !self.keep_closed
            && let Err(e) = self.node.plane.open_up()
        {
            error!(
                event = "protect-failed",
                "cannot remove routes and rules: {e}"
            );
        }
        let plane = Arc::clone(&self.node.plane);
        let _ = tokio::task::spawn_blocking(move || plane.shutdown()).await;
        self.node.replica.close().await;
        info!(
            event = "stopped",
            "stopped; tunnels go on with the next start"
        );
    }
}

/// Tells all members where this one stands, as soon as all of them understand it.
async fn put_in_place(node: Arc<Node>, place: Place, stop: CancellationToken) {
    let me = node.membership.me.clone();
    while node.read(|s| s.place(&me.member) != place) && !node.failed.is_cancelled() {
        let told = node.propose(Command::PlaceMember {
            member: me.member.clone(),
            incarnation: me.incarnation,
            place: place.clone(),
        });
        match stop.run_until_cancelled(told).await {
            Some(Ok(Outcome::Refused(refusal))) => {
                warn!(event = "place-refused", "zone and weight: {refusal}");
                return;
            }
            Some(Err(why)) => debug!(event = "place-waits", "zone and weight: {why}"),
            Some(Ok(_)) => continue,
            None => return,
        }
        let wait = tokio::time::sleep(PLACE_AGAIN);
        if stop.run_until_cancelled(wait).await.is_none() {
            return;
        }
    }
}

/// Changes the cookie secrets from time to time; of several members the leader does.
async fn change_cookies(node: Arc<Node>, stop: CancellationToken) {
    let mut period = interval(COOKIE_LIFE);
    period.tick().await; // the first comes at once, and the secrets are new
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = node.failed.cancelled() => return,
            _ = period.tick() => {}
        }
        if !node.membership.leads() {
            continue;
        }
        let fresh = fresh_cookies(Some(&node.cookies.load()));
        let proposed = node.propose(Command::SetCookieSecrets(fresh.clone()));
        // Without a majority it would hold up the end.
        let Some(proposed) = stop.run_until_cancelled(proposed).await else {
            return;
        };
        match proposed {
            Ok(_) => node.cookies.store(Arc::new(fresh)),
            Err(e) => return node.fail(&e),
        }
    }
}

/// A member whose log fails stops serving at once.
async fn watch_log(node: Arc<Node>, stop: CancellationToken) {
    let mut failed = node.replica.failed();
    tokio::select! {
        () = stop.cancelled() => {}
        reason = failed.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|r| r.clone());
            node.fail(&reason.as_deref().unwrap_or("the log ended"));
        }
    }
}
