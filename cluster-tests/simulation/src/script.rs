//! What happens to a cluster: drawn from the seed before it begins.

use crate::{
    checks,
    conductor::{self, MILLI, Random, SECOND},
    config::{PROTECTED, Peer},
    host::{Host, Order, Part},
    network::{HostId, Weather},
    trace::say,
    world::{Deadly, Event, World},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// A process begins, if there is none.
    Start(HostId),
    /// A process ends at once, or its whole machine.
    Kill { host: HostId, machine: bool },
    /// A process stands still for so long.
    Pause { host: HostId, span: u64 },
    /// A process ends in good order.
    Stop(HostId),
    /// Hosts do not hear others, or do again.
    Cut {
        ways: Vec<(HostId, HostId)>,
        cut: bool,
    },
    /// The network changes.
    Weather(Weather),
    /// The wall clock of a host moves.
    Jump { host: HostId, by: i64 },
    /// The disk of a host takes so much longer.
    SlowDisk { host: HostId, delay: u64 },
    /// The next append fails after so many entries.
    TornAppend { host: HostId, written: usize },
    /// The disk of a host is full.
    FullDisk(HostId),
    /// A process dies of a datagram that it sends.
    DeadlySend { host: HostId, deadly: Deadly },
    /// A process or its machine dies of something that it writes.
    DeadlyAppend { host: HostId, deadly: Deadly },
    /// A gateway is to be handed over.
    Move { gateway: IpAddr, to: HostId },
    /// The disk of a host loses something, while its process is dead.
    BadDisk { host: HostId, loss: Loss },
    /// A host is to become a member, perhaps in the place of another.
    Join {
        host: HostId,
        replaces: Option<HostId>,
    },
    /// A host is to be a member no more.
    Remove(HostId),
    /// Packets between a peer and the protected network.
    Traffic(usize),
    /// What is looked at from time to time.
    Look,
}

/// What a disk loses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// All.
    Everything,
    /// A bit of something flips.
    Bit(u64),
    /// The last entries.
    Tail(u64),
}

/// How often a peer's traffic has its turn, in milliseconds.
const TRAFFIC: (u64, u64) = (30, 90);

impl Act {
    /// It happens.
    pub(crate) fn perform(self, world: &World) {
        match &self {
            Self::Traffic(_) | Self::Look => {}
            act => {
                say!("{}", act.describe(world));
                if let Some(kind) = act.kind() {
                    world.count(kind);
                }
            }
        }
        match self {
            Self::Start(host) => Host::start(world, host),
            Self::Kill { host, machine } => {
                if world.scene().hosts[host].process.is_some() {
                    let again = world.scene().random.range(200, 3000) * MILLI;
                    world.schedule(conductor::now() + again, Event::Act(Self::Start(host)));
                    Host::kill(world, host, machine);
                }
            }
            Self::Pause { host, span } => {
                let process = world.scene().hosts[host].process;
                if let Some(process) = process {
                    late_packets(world, host, span);
                    conductor::pause(process, conductor::now() + span);
                }
            }
            Self::Stop(host) => order(world, host, Order::Stop),
            Self::Cut { ways, cut } => {
                let cuts = &mut world.scene().cuts;
                for (from, to) in ways {
                    cuts.set(from, to, cut);
                }
            }
            Self::Weather(weather) => world.scene().weather = weather,
            Self::Jump { host, by } => {
                let process = world.scene().hosts[host].process;
                if let Some(process) = process {
                    conductor::jump(process, by);
                }
            }
            Self::SlowDisk { host, delay } => world.scene().hosts[host].disk_delay = delay,
            Self::TornAppend { host, written } => {
                world.scene().hosts[host].disk.tear_next_append(written);
            }
            Self::FullDisk(host) => world.scene().hosts[host].disk.set_full(true),
            Self::DeadlySend { host, deadly } => {
                world.scene().hosts[host].deadly_send = Some(deadly);
            }
            Self::DeadlyAppend { host, deadly } => {
                world.scene().hosts[host].deadly_append = Some(deadly);
            }
            Self::BadDisk { host, loss } => bad_disk(world, host, loss),
            Self::Join { host, replaces } => {
                let absent = world.scene().hosts[host].part == Part::Absent;
                if absent && !ask_any(world, || Order::Add(host, replaces)) {
                    let again = Event::Act(Self::Join { host, replaces });
                    world.schedule(conductor::now() + SECOND, again);
                }
            }
            Self::Remove(host) => {
                if world.scene().hosts[host].part != Part::In {
                    return;
                }
                let this = &mut world.scene().hosts[host];
                (this.part, this.asked) = (Part::Leaving, 0);
            }
            Self::Move { gateway, to } => move_gateway(world, gateway, to),
            Self::Traffic(peer) => traffic(world, peer),
            Self::Look => look(world),
        }
    }

    /// What kind of a fault it is; `None`: none, or the end of one.
    fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::Kill { machine: false, .. } => "kill",
            Self::Kill { machine: true, .. } => "machine off",
            Self::Pause { .. } => "pause",
            Self::Stop(_) => "stop",
            Self::Cut { cut: true, .. } => "cut",
            Self::Weather(Weather { loss, late, .. }) if loss + late > 0 => "bad weather",
            Self::Jump { .. } => "clock jump",
            Self::SlowDisk { delay: 1.., .. } => "slow disk",
            Self::TornAppend { .. } => "torn append",
            Self::FullDisk(_) => "full disk",
            Self::BadDisk {
                loss: Loss::Everything,
                ..
            } => "lost disk",
            Self::BadDisk {
                loss: Loss::Bit(_), ..
            } => "bit rot",
            Self::BadDisk { .. } => "lost tail",
            Self::Move { .. } => "handover",
            _ => return None,
        })
    }

    fn describe(&self, world: &World) -> String {
        let name = |host: &HostId| world.scene().hosts[*host].name.clone();
        match self {
            Self::Start(host) => format!("start {}", name(host)),
            Self::Kill { host, machine } => {
                let what = if *machine { "machine off" } else { "kill" };
                format!("{what}: {}", name(host))
            }
            Self::Pause { host, span } => format!("pause {} for {} ms", name(host), span / MILLI),
            Self::Stop(host) => format!("stop {}", name(host)),
            Self::Cut { ways, cut } => {
                let ways: Vec<_> = ways
                    .iter()
                    .map(|(a, b)| format!("{}>{}", name(a), name(b)))
                    .collect();
                format!("{} {}", if *cut { "cut" } else { "join" }, ways.join(" "))
            }
            Self::Move { gateway, to } => format!("move {gateway} to {}", name(to)),
            other => format!("{other:?}"),
        }
    }
}

fn order(world: &World, host: HostId, order: Order) {
    let orders = world.scene().hosts[host].orders.clone();
    if let Some(orders) = orders {
        let _ = orders.send(order);
        std::mem::forget(orders);
    }
}

/// A machine goes off, and its disk is not what it was when it comes back. One host in a cluster may have that: with more, what was committed is lost.
fn bad_disk(world: &World, host: HostId, loss: Loss) {
    let running = world.scene().hosts[host].process.is_some();
    if !running {
        return;
    }
    Act::Kill {
        host,
        machine: true,
    }
    .perform(world);
    let mut scene = world.scene();
    let this = &mut scene.hosts[host];
    match loss {
        Loss::Everything => this.disk.wipe(),
        Loss::Bit(pick) => this.damaged = this.disk.rot(pick),
        Loss::Tail(count) => this.damaged = this.disk.lose_tail(count),
    }
}

/// Gives an order to any member that runs; whether there is one.
fn ask_any(world: &World, order_of: impl Fn() -> Order) -> bool {
    let hosts: Vec<HostId> = {
        let scene = world.scene();
        let runs = |h: &Host| h.is_member && h.member.is_some() && h.part == Part::In;
        let all = scene.hosts.iter().enumerate();
        all.filter(|(_, h)| runs(h)).map(|(at, _)| at).collect()
    };
    let awake = |host: &HostId| {
        let process = world.scene().hosts[*host].process;
        process.is_some_and(|p| conductor::paused_until(p).is_none())
    };
    let hosts: Vec<HostId> = hosts.into_iter().filter(awake).collect();
    if hosts.is_empty() {
        return false;
    }
    let host = *world.scene().random.pick(&hosts);
    order(world, host, order_of());
    true
}

/// Packets that had passed the gate when a process was stopped leave when it goes on.
fn late_packets(world: &World, host: HostId, span: u64) {
    let (plane, mut random) = {
        let scene = world.scene();
        let random = Random::new(scene.random.clone().next());
        (scene.hosts[host].plane.clone(), random)
    };
    let Some(plane) = plane else { return };
    for n in 1..=u8::try_from(world.peers().len()).unwrap_or(u8::MAX) {
        let peer = world.peers()[usize::from(n) - 1].clone();
        let Some(inner) = inner_address(world, usize::from(n) - 1, &peer) else {
            continue;
        };
        let id = world.next_id(u32::from(n) * 2 + 1);
        if let Some(datagram) = plane.outbound((PROTECTED, inner), id, &mut random) {
            world.schedule(conductor::now() + span, Event::Late(datagram));
        }
    }
    std::mem::forget(plane);
}

fn inner_address(world: &World, at: usize, peer: &Peer) -> Option<std::net::Ipv4Addr> {
    peer.inner.or_else(|| {
        let scene = world.scene();
        let host = scene.members + at;
        match scene.assigned.get(&host)? {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        }
    })
}

/// One packet in each direction, and the next time.
fn traffic(world: &World, at: usize) {
    let peer = world.peers()[at].clone();
    let (next, mut random) = {
        let mut scene = world.scene();
        let next = scene.random.range(TRAFFIC.0, TRAFFIC.1) * MILLI;
        (next, Random::new(scene.random.next()))
    };
    world.schedule(conductor::now() + next, Event::Act(Act::Traffic(at)));
    let Some(inner) = inner_address(world, at, &peer) else {
        return;
    };
    let gateway = IpAddr::from(peer.gateway);
    let flow = 2 * (u32::try_from(at).unwrap_or_default() + 1);
    let (here, there) = {
        let scene = world.scene();
        (scene.taken.get(&gateway).copied(), scene.members + at)
    };
    let ways = [
        (Some(there), (inner, PROTECTED), flow),
        (here, (PROTECTED, inner), flow + 1),
    ];
    for (host, way, flow) in ways {
        let Some(host) = host else { continue };
        let (plane, process) = {
            let scene = world.scene();
            (scene.hosts[host].plane.clone(), scene.hosts[host].process)
        };
        let (Some(plane), Some(process)) = (plane, process) else {
            continue;
        };
        if conductor::paused_until(process).is_none() {
            let id = world.next_id(flow);
            if let Some(datagram) = plane.outbound(way, id, &mut random) {
                world.leave(datagram, false);
            }
        }
        std::mem::forget(plane);
    }
}

fn move_gateway(world: &World, gateway: IpAddr, to: HostId) {
    let (name, asked, member) = {
        let scene = world.scene();
        let asked = scene
            .hosts
            .iter()
            .position(|h| h.is_member && h.member.is_some());
        let member = asked.and_then(|a| scene.hosts[a].member.clone());
        (scene.hosts[to].name.clone(), asked, member)
    };
    let (Some(asked), Some(member)) = (asked, member) else {
        return;
    };
    let process = world.scene().hosts[asked].process;
    if process.is_none_or(|p| conductor::paused_until(p).is_some()) {
        std::mem::forget(member);
        return;
    }
    let id = member.replica().read(|state| {
        let all = &state.policy().gateways;
        let has = |nets: &[ipnet::IpNet]| nets.iter().any(|n| n.addr() == gateway);
        all.iter().find(|g| has(&g.outer)).map(|g| g.id)
    });
    std::mem::forget(member);
    if let Some(id) = id {
        order(world, asked, Order::Move(id, name));
    }
}

/// Looks at the state of all members.
fn look(world: &World) {
    world.schedule(conductor::now() + 150 * MILLI, Event::Act(Act::Look));
    let mut there: BTreeSet<String> = BTreeSet::new();
    let mut looked = 0;
    for (member, process) in world.running() {
        if conductor::paused_until(process).is_none() {
            member.replica().read(checks::addresses);
        }
        let all = member.replica().cluster().members();
        looked += usize::from(all.len() > 1);
        there.extend(all.into_iter().map(|m| m.name));
        std::mem::forget(member);
    }
    // One alone could believe what is not committed.
    if looked > 1 {
        world.gone(&there);
    }
    for host in world.to_remove() {
        ask_any(world, || Order::Remove(host));
    }
}

/// Faults between two times.
pub(crate) struct Script {
    pub(crate) members: usize,
    /// So many of them form the cluster; one more may join.
    pub(crate) first: usize,
    pub(crate) hosts: usize,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Script {
    /// Draws what happens.
    pub(crate) fn draw(&self, random: &mut Random) -> Vec<(u64, Act)> {
        let mut acts = Vec::new();
        // Which kinds of faults there are: with all at once each would hide others.
        let kinds: Vec<u64> = (0..random.range(2, 6)).map(|_| random.below(13)).collect();
        self.rare(random, &mut acts);
        for _ in 0..random.range(4, 14) {
            let at = random.range(self.from, self.to);
            let kind = *random.pick(&kinds);
            self.fault(kind, at, random, &mut acts);
        }
        acts
    }

    /// What happens to a cluster at most once: a disk is lost, members come or go.
    fn rare(&self, random: &mut Random, acts: &mut Vec<(u64, Act)>) {
        let at = |random: &mut Random| random.range(self.from, self.to);
        let host = usize::try_from(random.below(self.first as u64)).unwrap_or_default();
        let loses_disk = random.one_in(4);
        if loses_disk {
            let loss = match random.below(3) {
                0 => Loss::Everything,
                1 => Loss::Bit(random.next()),
                _ => Loss::Tail(random.range(1, 40)),
            };
            acts.push((at(random), Act::BadDisk { host, loss }));
        }
        if !random.one_in(3) {
            return;
        }
        // Of two members no disk may be lost: there would be no majority for good.
        let may_shrink = !loses_disk || self.first > 3;
        let (at, host) = (at(random), (host + 1) % self.first);
        let replaces = random.one_in(2).then_some(host);
        if self.first == self.members {
            if may_shrink {
                acts.push((at, Act::Remove(host)));
            }
        } else {
            let newcomer = self.first;
            let joins = Act::Join {
                host: newcomer,
                replaces,
            };
            acts.push((at, joins));
            if replaces.is_none() && random.one_in(2) {
                let later = at + random.range(500, 4000) * MILLI;
                if may_shrink {
                    acts.push((later, Act::Remove(host)));
                }
            }
        }
    }

    fn member(&self, random: &mut Random) -> HostId {
        usize::try_from(random.below(self.members as u64)).unwrap_or_default()
    }

    fn any(&self, random: &mut Random) -> HostId {
        usize::try_from(random.below(self.hosts as u64)).unwrap_or_default()
    }

    fn deadly(random: &mut Random) -> Deadly {
        Deadly {
            left: u32::try_from(random.range(1, 25)).unwrap_or(1),
            before: random.one_in(2),
        }
    }

    fn fault(&self, kind: u64, at: u64, random: &mut Random, acts: &mut Vec<(u64, Act)>) {
        let host = self.member(random);
        match kind {
            0 => acts.push((
                at,
                Act::Kill {
                    host,
                    machine: random.one_in(3),
                },
            )),
            1 => {
                let span = random.range(20, 2500) * MILLI;
                acts.push((
                    at,
                    Act::Pause {
                        host: self.any(random),
                        span,
                    },
                ));
            }
            2 => acts.push((at, Act::Stop(host))),
            3 => self.cut(at, random, acts),
            4 => {
                let rate = |random: &mut Random| *random.pick(&[0, 3, 10, 30]);
                let weather = Weather {
                    loss: rate(random),
                    duplication: rate(random),
                    late: rate(random),
                    delay: random.range(1, 80) * MILLI,
                };
                acts.push((at, Act::Weather(weather)));
                let end = at + random.range(500, 4000) * MILLI;
                acts.push((end, Act::Weather(Weather::FINE)));
            }
            5 => {
                let span = i64::try_from(random.below(7200 * SECOND)).unwrap_or_default();
                let by = span - 3600 * 1_000_000_000;
                acts.push((at, Act::Jump { host, by }));
            }
            6 => {
                let delay = random.range(5, 400) * MILLI;
                acts.push((at, Act::SlowDisk { host, delay }));
                let end = at + random.range(300, 2500) * MILLI;
                acts.push((end, Act::SlowDisk { host, delay: 0 }));
            }
            7 => {
                let written = usize::try_from(random.below(3)).unwrap_or_default();
                acts.push((at, Act::TornAppend { host, written }));
            }
            8 => acts.push((at, Act::FullDisk(host))),
            9 => acts.push((
                at,
                Act::DeadlySend {
                    host,
                    deadly: Self::deadly(random),
                },
            )),
            10 => acts.push((
                at,
                Act::DeadlyAppend {
                    host,
                    deadly: Self::deadly(random),
                },
            )),
            11 => {
                let host = self.members
                    + usize::try_from(random.below((self.hosts - self.members) as u64))
                        .unwrap_or_default();
                acts.push((
                    at,
                    Act::Kill {
                        host,
                        machine: true,
                    },
                ));
            }
            _ => {
                let gateway = *random.pick(&self.gateways);
                acts.push((at, Act::Move { gateway, to: host }));
            }
        }
    }

    /// Some hosts do not hear others for a while, perhaps again and again.
    fn cut(&self, at: u64, random: &mut Random, acts: &mut Vec<(u64, Act)>) {
        let host = self.member(random);
        let others = match random.below(3) {
            // From everybody.
            0 => (0..self.hosts).collect::<Vec<_>>(),
            // From the other members.
            1 => (0..self.members).collect(),
            _ => vec![self.any(random)],
        };
        let both = random.below(3);
        let mut ways = Vec::new();
        for other in others.into_iter().filter(|o| *o != host) {
            if both != 0 {
                ways.push((host, other));
            }
            if both != 1 {
                ways.push((other, host));
            }
        }
        let mut at = at;
        for _ in 0..*random.pick(&[1, 1, 1, 4]) {
            let span = random.range(30, 2500) * MILLI;
            let ways = ways.clone();
            acts.push((
                at,
                Act::Cut {
                    ways: ways.clone(),
                    cut: true,
                },
            ));
            acts.push((at + span, Act::Cut { ways, cut: false }));
            at += span + random.range(20, 600) * MILLI;
        }
    }
}
