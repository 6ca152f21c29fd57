//! A host and the process on it: the real member, on a machine of the simulation.

use crate::{
    checks::violated,
    conductor::{self, MICRO, Pid},
    config::TOKEN,
    network::HostId,
    plane::Plane,
    script::Act,
    trace::{self, say},
    wire::{Door, Wires},
    world::{Deadly, Event, World, world},
};
use evergate_cluster::{
    ClusterKey,
    raft::{Credentials, LinkSource},
    store::{Disk, Moment, Storage},
};
use evergate_dataplane::PlaneError;
use evergate_ike::{config::Policy, record::GatewayId};
use evergate_server::{
    machine::{self, Front, Fronts, Machine, Switch},
    member::{self, Member},
};
use std::{
    collections::BTreeSet, io::Write, net::IpAddr, os::unix::fs::OpenOptionsExt, path::PathBuf,
    sync::Arc, time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Whether a host belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Not yet: it is not started.
    Absent,
    /// It does, or is a peer.
    In,
    /// It is being removed, or replaced.
    Leaving,
    /// No more.
    Gone,
}

/// What a process is asked to do.
pub(crate) enum Order {
    /// To end in good order.
    Stop,
    /// To have a gateway moved to a member.
    Move(GatewayId, String),
    /// To have a host let in, perhaps in the place of another.
    Add(HostId, Option<HostId>),
    /// To have a host removed.
    Remove(HostId),
}

/// A host, and the process on it.
pub(crate) struct Host {
    pub(crate) name: String,
    /// It is one of the cluster's, else a peer.
    pub(crate) is_member: bool,
    /// Its address, if it is a peer.
    pub(crate) address: Option<IpAddr>,
    /// Where it listens for other members; empty if it does not.
    pub(crate) listens: String,
    pub(crate) text: String,
    pub(crate) directory: PathBuf,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) disk: Disk,
    /// How fast its clocks go.
    pub(crate) ppm: i64,
    pub(crate) part: Part,
    /// When somebody was last asked to remove it; zero if nobody was.
    pub(crate) asked: u64,
    pub(crate) process: Option<Pid>,
    pub(crate) plane: Option<Arc<Plane>>,
    pub(crate) door: Option<Arc<Door>>,
    /// The member, once it has started.
    pub(crate) member: Option<Arc<Member>>,
    pub(crate) orders: Option<mpsc::UnboundedSender<Order>>,
    /// Processes that ended with their machine.
    pub(crate) off: BTreeSet<Pid>,
    /// Addresses that speak only while they are allowed to.
    pub(crate) guarded: BTreeSet<IpAddr>,
    pub(crate) deadly_send: Option<Deadly>,
    pub(crate) deadly_append: Option<Deadly>,
    /// Its disk has lost something, which the next start must notice.
    pub(crate) damaged: bool,
    /// How long its disk takes, in nanoseconds.
    pub(crate) disk_delay: u64,
}

impl Host {
    /// Starts a process on a host, unless there is one.
    pub(crate) fn start(world: &World, host: HostId) {
        let mut scene = world.scene();
        let this = &mut scene.hosts[host];
        if this.process.is_some() || matches!(this.part, Part::Absent | Part::Gone) {
            return;
        }
        let process = conductor::new_process();
        conductor::drift(process, this.ppm);
        this.process = Some(process);
        this.door = Some(Arc::default());
        this.disk.mend();
        let (orders, received) = mpsc::unbounded_channel();
        this.orders = Some(orders);
        let machine = SimulatedMachine {
            host,
            process,
            door: this.door.clone().unwrap_or_default(),
            disk: this.disk.clone(),
            credentials: this.credentials.clone(),
            address: this.address,
        };
        let (text, directory, name) =
            (this.text.clone(), this.directory.clone(), this.name.clone());
        drop(scene);
        trace::name(process, &name);
        say!("{name} starts");
        conductor::spawn(process, name, move || {
            live(&machine, &text, &directory, received)
        });
    }

    /// Ends the process of a host, or the whole machine. Does not return if it is the caller's own.
    pub(crate) fn kill(world: &World, host: HostId, machine: bool) {
        let mut scene = world.scene();
        let this = &mut scene.hosts[host];
        let Some(process) = this.process.take() else {
            return;
        };
        // What belongs to a dead process is never touched again: its locks may be held for ever.
        std::mem::forget((
            this.plane.take(),
            this.door.take(),
            this.member.take(),
            this.orders.take(),
        ));
        (this.deadly_send, this.deadly_append) = (None, None);
        if machine {
            this.off.insert(process);
            scene.checks.off(host);
            scene.taken.retain(|_, at| *at != host);
        }
        drop(scene);
        for connection in world.connections_of(process) {
            connection.died(process, !machine, world);
        }
        conductor::kill(process);
    }
}

/// The life of a process.
fn live(
    machine: &SimulatedMachine,
    text: &str,
    directory: &std::path::Path,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let key = ClusterKey::from_bytes([7; 32]);
        let member = match member::start(text, directory, key, machine).await {
            Ok(member) => Arc::new(member),
            Err(e) => {
                say!("does not start: {e:#}");
                return not_started(machine, &format!("{e:#}"));
            }
        };
        if world().scene().hosts[machine.host].damaged {
            violated("a damaged store is not gone on with", "it was");
        }
        world().scene().hosts[machine.host].member = Some(Arc::clone(&member));
        loop {
            tokio::select! {
                () = member.passive() => {
                    say!("serves nothing any more");
                    return;
                }
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Stop) => {
                        member.stop().await;
                        return;
                    }
                    Some(Order::Add(host, replaces)) => {
                        tokio::spawn(add(Arc::clone(&member), host, replaces));
                    }
                    Some(Order::Remove(host)) => {
                        tokio::spawn(remove(Arc::clone(&member), host));
                    }
                    Some(Order::Move(gateway, to)) => {
                        if let Err(e) = member.move_gateway(gateway, &to).await {
                            say!("cannot move gateway {}: {e}", gateway.0);
                        }
                    }
                },
            }
        }
    });
    // Whatever the reason, somebody starts it again.
    let again = world().scene().random.range(200, 1500) * conductor::MILLI;
    world().schedule(
        conductor::now() + again,
        Event::Act(Act::Start(machine.host)),
    );
    Host::kill(world(), machine.host, false);
}

/// A process has not started. An operator does what it says.
fn not_started(machine: &SimulatedMachine, why: &str) {
    let world = world();
    let mut scene = world.scene();
    let host = &mut scene.hosts[machine.host];
    if host.damaged {
        if !why.contains("move the directory away") {
            drop(scene);
            violated("a damaged store is not gone on with", why);
        }
        host.damaged = false;
        host.disk.wipe();
    } else if why.contains("token") {
        // Clocks that jump make tokens expire.
        host.part = Part::Absent;
        let again = Act::Join {
            host: machine.host,
            replaces: None,
        };
        drop(scene);
        world.schedule(conductor::now() + conductor::SECOND, Event::Act(again));
    }
}

/// Has a host let in, and starts it.
async fn add(member: Arc<Member>, host: HostId, replaces: Option<HostId>) {
    let (name, address, file, old) = {
        let scene = world().scene();
        let this = &scene.hosts[host];
        let old = replaces.map(|old| scene.hosts[old].name.clone());
        let file = this.directory.join(TOKEN);
        (this.name.clone(), this.listens.clone(), file, old)
    };
    let added = member.add_member(&name, &address, old.as_deref()).await;
    match added {
        Ok(token) => {
            let mut options = std::fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let written = options
                .open(&file)
                .and_then(|mut f| f.write_all(token.as_bytes()));
            written.expect("the file of a token");
        }
        // It was let in, and nobody was told.
        Err(e) if e.contains("member already") => {}
        Err(e) => {
            say!("{name} is not let in: {e}");
            let again = Act::Join { host, replaces };
            let at = conductor::now() + conductor::SECOND;
            return world().schedule(at, Event::Act(again));
        }
    }
    let mut scene = world().scene();
    if scene.hosts[host].part == Part::Absent {
        scene.hosts[host].part = Part::In;
        if let Some(old) = replaces {
            let old = &mut scene.hosts[old];
            (old.part, old.asked) = (Part::Leaving, conductor::now());
        }
        let what = replaces.map_or("member added", |_| "member replaced");
        *scene.happened.entry(what).or_default() += 1;
    }
    drop(scene);
    world().schedule(conductor::now(), Event::Act(Act::Start(host)));
}

/// Has a host removed. Whether that was done is seen by who is a member.
async fn remove(member: Arc<Member>, host: HostId) {
    let name = world().scene().hosts[host].name.clone();
    if let Err(e) = member.remove_member(&name).await {
        say!("{name} is not removed: {e}");
    }
}

/// The machine of a process.
struct SimulatedMachine {
    host: HostId,
    process: Pid,
    door: Arc<Door>,
    disk: Disk,
    credentials: Option<Credentials>,
    address: Option<IpAddr>,
}

impl Machine for SimulatedMachine {
    fn storage(&self) -> Storage {
        let host = self.host;
        self.disk
            .watch(Arc::new(move |moment| disk_works(host, moment)));
        Storage::Memory(self.disk.clone())
    }

    fn links(&self) -> anyhow::Result<Option<(LinkSource, Credentials)>> {
        let wires = Wires {
            host: self.host,
            process: self.process,
            door: Arc::clone(&self.door),
        };
        let source = |credentials| (LinkSource::Other(Arc::new(wires)), credentials);
        Ok(self.credentials.clone().map(source))
    }

    fn plane(&self) -> Result<machine::Plane, PlaneError> {
        let (events, received) = mpsc::channel(4096);
        let plane = Arc::new(Plane::new(self.host, self.process, events));
        world().scene().hosts[self.host].plane = Some(Arc::clone(&plane));
        Ok((plane, received))
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.address.into_iter().collect()
    }

    fn front(&self, policy: &Policy, alone: bool) -> anyhow::Result<Fronts> {
        let switch = SimulatedSwitch(self.host);
        let all: Vec<IpAddr> = policy
            .gateways
            .iter()
            .flat_map(|g| outer(policy, g.id))
            .collect();
        // Leftovers of a former process go, and everything is silent.
        let silent: Vec<_> = all.iter().map(|a| (*a, Duration::ZERO)).collect();
        world().allow(self.host, &silent);
        let switch = (!alone).then(|| Box::new(switch) as Box<dyn Switch>);
        Ok((Box::new(SimulatedFront(self.host)), switch))
    }
}

/// The disk of a host is at work: it takes its time, and the host may die of it.
fn disk_works(host: HostId, moment: Moment) {
    let world = world();
    let mut scene = world.scene();
    let usual = scene.random.range(20 * MICRO, 300 * MICRO);
    let delay = usual + scene.hosts[host].disk_delay;
    let before = moment == Moment::Before;
    let deadly = &mut scene.hosts[host].deadly_append;
    let dies = match deadly {
        Some(d) if d.before == before => {
            d.left = d.left.saturating_sub(1);
            d.left == 0
        }
        _ => false,
    };
    drop(scene);
    conductor::sleep_until(conductor::now() + delay);
    if dies {
        let what = if before { "before" } else { "after" };
        world.count("death at a write");
        say!(
            "{} dies {what} it has written",
            world.scene().hosts[host].name
        );
        let again = world.scene().random.range(300, 2500) * conductor::MILLI;
        world.schedule(conductor::now() + again, Event::Act(Act::Start(host)));
        let machine = world.scene().random.one_in(2);
        Host::kill(world, host, machine);
    }
}

fn outer(policy: &Policy, gateway: GatewayId) -> Vec<IpAddr> {
    let config = policy.gateways.iter().find(|g| g.id == gateway);
    let all = config
        .into_iter()
        .flat_map(|g| g.outer.iter().chain(&g.inner));
    all.map(ipnet::IpNet::addr).collect()
}

struct SimulatedFront(HostId);

impl Front for SimulatedFront {
    fn take(&mut self, policy: &Policy, gateway: GatewayId, stop: &CancellationToken) {
        let addresses = outer(policy, gateway);
        let host = self.0;
        world().announce(host, &addresses);
        let again = async move {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(150)).await;
                world().announce(host, &addresses);
            }
        };
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(again).await });
    }

    fn leave(&mut self, _: &Policy, _: GatewayId) {}
}

struct SimulatedSwitch(HostId);

impl Switch for SimulatedSwitch {
    fn guard(&mut self, _: &[IpAddr]) -> Result<(), PlaneError> {
        Ok(())
    }

    fn refresh(&mut self, changes: &[(IpAddr, Duration)]) -> Result<(), PlaneError> {
        world().allow(self.0, changes);
        Ok(())
    }

    fn close(self: Box<Self>) {}
}
