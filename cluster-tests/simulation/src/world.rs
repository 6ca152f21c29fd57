//! The world around the processes: hosts, the network between them, and who looks on.

use crate::{
    checks::{self, Checks},
    conductor::{self, MICRO, Pid, Random},
    config::Peer,
    host::{Host, Part},
    network::{Cuts, HostId, Weather},
    plane::Esp,
    script::Act,
    trace::say,
    wire::{Connection, Door},
};
use evergate_server::member::Member;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

/// A datagram on its way: `local` is where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Who sent it.
    pub(crate) host: HostId,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// What it is, unless it is an IKE message.
    pub(crate) esp: Option<Esp>,
    pub(crate) bytes: Vec<u8>,
}

/// What happens at a time.
pub(crate) enum Event {
    /// Bytes of a connection between members arrive, of the end with this number.
    Part(Arc<Connection>, usize),
    /// A datagram arrives.
    Arrival(Datagram),
    /// A datagram that had been let through before its process was stopped.
    Late(Datagram),
    /// Something that the script wants.
    Act(Act),
}

/// When a host dies of what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadly {
    /// At the how-manieth time from now.
    pub(crate) left: u32,
    /// Before it is done, or after that.
    pub(crate) before: bool,
}

/// What is known of the world.
pub(crate) struct Scene {
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    pub(crate) random: Random,
    pub(crate) hosts: Vec<Host>,
    /// Where neighbours believe that an address of a gateway is.
    pub(crate) taken: BTreeMap<IpAddr, HostId>,
    pub(crate) cuts: Cuts,
    pub(crate) weather: Weather,
    pub(crate) checks: Checks,
    connections: Vec<Arc<Connection>>,
    /// When something was last delivered, by the flow.
    pub(crate) delivered: BTreeMap<u32, u64>,
    pub(crate) assigned: BTreeMap<HostId, IpAddr>,
    pub(crate) silenced: u64,
    /// How often what happened.
    pub(crate) happened: BTreeMap<&'static str, u64>,
    /// How many of the hosts are members; the others are peers, in their order.
    pub(crate) members: usize,
    ids: u32,
}

impl Scene {
    /// Whether the kernel of its sender lets a datagram through.
    fn lets_through(&self, datagram: &Datagram) -> bool {
        let from = datagram.local.ip();
        let guarded = self.hosts[datagram.host].guarded.contains(&from);
        !guarded || self.checks.is_open(from, datagram.host)
    }
}

/// The world.
pub(crate) struct World {
    scene: Mutex<Scene>,
    peers: Vec<Peer>,
}

static WORLD: OnceLock<World> = OnceLock::new();

/// The world of this simulation.
pub(crate) fn world() -> &'static World {
    WORLD.get().expect("the world is there")
}

impl World {
    /// Makes it.
    pub(crate) fn create(
        seed: u64,
        hosts: Vec<Host>,
        members: usize,
        peers: Vec<Peer>,
    ) -> &'static Self {
        let scene = Scene {
            events: BTreeMap::new(),
            count: 0,
            random: Random::new(seed ^ 0x5eed),
            hosts,
            taken: BTreeMap::new(),
            cuts: Cuts::default(),
            weather: Weather::FINE,
            checks: Checks::default(),
            connections: Vec::new(),
            delivered: BTreeMap::new(),
            assigned: BTreeMap::new(),
            silenced: 0,
            happened: BTreeMap::new(),
            members,
            ids: 0,
        };
        WORLD.get_or_init(|| Self {
            scene: Mutex::new(scene),
            peers,
        })
    }

    /// All peers.
    pub(crate) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Names an inner packet of a flow.
    pub(crate) fn next_id(&self, flow: u32) -> u64 {
        let mut scene = self.scene();
        scene.ids += 1;
        u64::from(flow) << 32 | u64::from(scene.ids)
    }

    /// All members and peers that have started, with their processes.
    pub(crate) fn running(&self) -> Vec<(Arc<Member>, Pid)> {
        let scene = self.scene();
        let of = |h: &Host| Some((h.member.clone()?, h.process?));
        scene.hosts.iter().filter_map(of).collect()
    }

    /// What the script still wanted does not happen, but for what goes on for ever, and starts.
    pub(crate) fn cancel_faults(&self) {
        let mut scene = self.scene();
        scene.events.retain(|_, event| match event {
            Event::Act(act) => {
                matches!(
                    act,
                    Act::Start(_) | Act::Traffic(_) | Act::Look | Act::Join { .. } | Act::Remove(_)
                )
            }
            _ => true,
        });
    }

    /// Who was to leave, and is none of those that are members as any member sees it, is gone: it must not start again.
    pub(crate) fn gone(&self, there: &BTreeSet<String>) {
        let scene = &mut *self.scene();
        for host in &mut scene.hosts {
            let left = host.part == Part::Leaving && !there.contains(&host.name);
            if left {
                host.part = Part::Gone;
                *scene.happened.entry("member removed").or_default() += 1;
            }
        }
    }

    /// Who is to be removed, and was not asked for lately: whoever was asked may have died.
    pub(crate) fn to_remove(&self) -> Vec<HostId> {
        const AGAIN: u64 = 3 * conductor::SECOND;
        let now = conductor::now();
        let mut scene = self.scene();
        let hosts = scene.hosts.iter_mut().enumerate();
        let due = hosts
            .filter(|(_, h)| h.part == Part::Leaving && (h.asked == 0 || h.asked + AGAIN < now));
        due.map(|(at, host)| {
            host.asked = now;
            at
        })
        .collect()
    }

    /// What is known. Nothing may be woken, or wait, while it is held.
    pub(crate) fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happens at a time.
    pub(crate) fn schedule(&self, at: u64, event: Event) {
        let mut scene = self.scene();
        scene.count += 1;
        let place = (at, scene.count);
        scene.events.insert(place, event);
        drop(scene);
        conductor::wake_world(at);
    }

    /// Lets time pass until then.
    pub(crate) fn run_until(&self, until: u64) {
        loop {
            let now = conductor::now();
            let mut scene = self.scene();
            let next = scene.events.first_key_value().map(|(place, _)| place.0);
            if next.is_some_and(|at| at <= now) {
                let event = scene.events.pop_first().map(|(_, event)| event);
                drop(scene);
                if let Some(event) = event {
                    self.happen(event);
                }
                continue;
            }
            drop(scene);
            if now >= until {
                return;
            }
            conductor::sleep_until(next.unwrap_or(until).min(until));
        }
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Part(connection, side) => connection.arrive(side, self),
            Event::Arrival(datagram) => self.arrive(datagram),
            Event::Late(datagram) => self.leave(datagram, true),
            Event::Act(act) => act.perform(self),
        }
    }

    /// Whether a host does not hear another.
    pub(crate) fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.scene().cuts.is_cut(from, to)
    }

    /// Whether the machine of a process was switched off while it ran: nobody answers for it.
    pub(crate) fn is_off(&self, (host, process): (HostId, Pid)) -> bool {
        self.scene().hosts[host].off.contains(&process)
    }

    /// How long bytes take from member to member.
    pub(crate) fn member_delay(&self) -> u64 {
        let mut scene = self.scene();
        let usual = scene.random.range(80 * MICRO, 400 * MICRO);
        let late = scene.weather.late;
        if late != 0 && scene.random.one_in(late) {
            let longest = scene.weather.delay.max(MICRO);
            return usual + scene.random.below(longest);
        }
        usual
    }

    /// Who listens for other members there.
    pub(crate) fn door_at(&self, address: &str) -> Option<(HostId, Pid, Arc<Door>)> {
        let scene = self.scene();
        let at = scene.hosts.iter().position(|h| h.listens == address)?;
        let host = &scene.hosts[at];
        Some((at, host.process?, host.door.clone()?))
    }

    /// There is a new connection.
    pub(crate) fn connected(&self, connection: &Arc<Connection>) {
        let mut scene = self.scene();
        scene.connections.retain(|c| !c.is_over());
        scene.connections.push(Arc::clone(connection));
    }

    /// The connections of a process.
    pub(crate) fn connections_of(&self, process: Pid) -> Vec<Arc<Connection>> {
        let scene = self.scene();
        let own = scene.connections.iter().filter(|c| c.concerns(process));
        own.cloned().collect()
    }

    /// Something has happened once more.
    pub(crate) fn count(&self, what: &'static str) {
        *self.scene().happened.entry(what).or_default() += 1;
    }

    /// A datagram leaves a process.
    pub(crate) fn send(&self, datagram: Datagram) {
        let process = conductor::process();
        let mut scene = self.scene();
        let scene_ = &mut *scene;
        let host = &mut scene_.hosts[datagram.host];
        let dies = host.deadly_send.as_mut().is_some_and(|d| {
            d.left = d.left.saturating_sub(1);
            d.left == 0
        });
        let deadly = if dies { host.deadly_send.take() } else { None };
        let member = host.member.clone();
        drop(scene);
        if deadly.is_some_and(|d| d.before) {
            self.died_of(datagram.host, "before it sends");
        }
        if datagram.esp.is_none()
            && let Some(member) = &member
        {
            // Before anything else: what is wrong in more than one way is this, too.
            let known = {
                let mut scene = self.scene();
                if scene.lets_through(&datagram) {
                    scene.checks.ike(&datagram.bytes, datagram.remote.ip());
                }
                scene.checks.was_committed(&datagram.bytes)
            };
            if !known {
                let look = |state: &_| checks::committed(state, &datagram.bytes, process);
                member.replica().read(look);
                self.scene().checks.is_committed(&datagram.bytes);
            }
        }
        // Nothing of a member is dropped by somebody else.
        std::mem::forget(member);
        self.leave(datagram.clone(), false);
        if deadly.is_some() {
            self.died_of(datagram.host, "after it has sent");
        }
    }

    fn died_of(&self, host: HostId, what: &str) {
        say!("{} dies {what}", self.scene().hosts[host].name);
        self.count("death at a datagram");
        let again = self.scene().random.range(300, 2500) * conductor::MILLI;
        self.schedule(conductor::now() + again, Event::Act(Act::Start(host)));
        Host::kill(self, host, false);
    }

    /// A datagram passes the kernel of its sender, if that lets it, and sets out. It is `late` if its process had sent it before it was stopped.
    pub(crate) fn leave(&self, datagram: Datagram, late: bool) {
        let mut scene = self.scene();
        let scene_ = &mut *scene;
        let from = datagram.local.ip();
        if !scene_.lets_through(&datagram) {
            scene_.silenced += 1;
            if let (false, Some(process)) = (late, scene_.hosts[datagram.host].process) {
                scene_.checks.silenced(process, from);
            }
            return;
        }
        if let Some(esp) = &datagram.esp {
            scene_.checks.esp(esp, datagram.host);
        }
        let weather = scene_.weather;
        let arrivals = weather.arrivals(&mut scene_.random);
        drop(scene);
        for delay in arrivals {
            self.schedule(conductor::now() + delay, Event::Arrival(datagram.clone()));
        }
    }

    fn arrive(&self, datagram: Datagram) {
        let scene = self.scene();
        let to = datagram.remote.ip();
        let at = scene.taken.get(&to).copied();
        let at = at.or_else(|| scene.hosts.iter().position(|h| h.address == Some(to)));
        let Some(at) = at else { return };
        if scene.cuts.is_cut(datagram.host, at) {
            return;
        }
        let host = &scene.hosts[at];
        let (Some(plane), Some(process)) = (host.plane.clone(), host.process) else {
            return;
        };
        drop(scene);
        match conductor::paused_until(process) {
            // It waits in a buffer of the kernel.
            Some(until) => self.schedule(until, Event::Arrival(datagram)),
            None => plane.receive(datagram),
        }
        std::mem::forget(plane);
    }

    /// A data plane got sequence numbers.
    pub(crate) fn reserved(&self, host: HostId, key: u64, range: &Range<u64>) {
        self.scene().checks.reserved(host, key, range);
    }

    /// An inner packet was delivered.
    pub(crate) fn delivered(&self, _: HostId, esp: Esp) {
        let flow = u32::try_from(esp.id >> 32).unwrap_or_default();
        self.scene().delivered.insert(flow, conductor::now());
    }

    /// A host has a virtual address now, or has it no longer.
    pub(crate) fn assigned(&self, host: HostId, address: IpAddr, has: bool) {
        let mut scene = self.scene();
        if has {
            scene.assigned.insert(host, address);
        } else if scene.assigned.get(&host) == Some(&address) {
            scene.assigned.remove(&host);
        }
    }

    /// The address of a peer.
    pub(crate) fn address_of(&self, host: HostId) -> Option<IpAddr> {
        self.scene().hosts[host].address
    }

    /// The neighbours hear that a host has these addresses.
    pub(crate) fn announce(&self, host: HostId, addresses: &[IpAddr]) {
        let mut scene = self.scene();
        for address in addresses {
            // The switch stands in front of announcements, too.
            if scene.checks.is_open(*address, host) {
                scene.taken.insert(*address, host);
            }
        }
    }

    /// The kernel of a host lets addresses speak for so long.
    pub(crate) fn allow(&self, host: HostId, changes: &[(IpAddr, Duration)]) {
        let process = conductor::process();
        let mut scene = self.scene();
        for (address, left) in changes {
            let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
            let until = conductor::now().saturating_add(conductor::real_span(process, left));
            scene.hosts[host].guarded.insert(*address);
            scene.checks.opened(*address, host, until);
        }
    }
}
