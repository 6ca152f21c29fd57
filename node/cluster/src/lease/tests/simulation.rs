//! Three processes with clocks that drift, messages that are late, lost and reordered, leaders that come and go, assignments
//! whose commit takes its time: never do two processes have a lease for one gateway. Each planted bug is found.

use super::*;
use proptest::{prelude::*, test_runner::TestRunner};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

const MEMBERS: usize = 3;
const GATEWAYS: u32 = 4;

/// A bound that is wide enough for its loss to show, and half of it each way: relative to each other the clocks differ by the bound.
const DRIFT_PPM: u32 = 50_000;
const SLOW_FAST: [f64; 3] = [0.976, 1.0, 1.024];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    CountedFromReceipt,
    NoWaitAfterElection,
    NoQuorumLease,
    ClocksTakenAsEqual,
    GrantedWhileReassigned,
    FormerLeaderUnbounded,
    GoesOnAfterRelease,
}

#[derive(Clone, Debug)]
enum Event {
    /// A process asks (and asks again later).
    Renew(usize),
    /// A request arrives at a process that may be the leader.
    Asked(usize, Request),
    /// An answer arrives.
    Answered(usize, Grant),
    /// The leader looks for silent owners.
    Place,
    /// An assignment is committed.
    Commit {
        term: u64,
        gateway: u32,
        epoch: u32,
        to: usize,
    },
    /// A process sees what was committed by then.
    Learn(usize, Vec<(usize, u32)>),
    /// The quorum hears the leader.
    Heartbeat,
    /// The leader is cut off from the quorum (and maybe does not know).
    Cut,
    /// Somebody is elected.
    Elect,
    /// A process does nothing for a while.
    Pause(usize, u64),
    /// A process gives a gateway up.
    Release(usize, u32),
}

/// An event at a real time in microseconds; ties in the order of making.
struct At(u64, u64, Event);
impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// A small generator of its own, so that a failure is replayed by its seed alone.
struct Random(u64);
impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

struct Process {
    holder: Holder,
    rate: f64,
    offset: f64,
    paused_until: u64,
    /// Owner and epoch of each gateway, as far as it has applied.
    view: Vec<(usize, u32)>,
}

struct World {
    bug: Bug,
    now: u64,
    made: u64,
    queue: BinaryHeap<At>,
    random: Random,
    processes: Vec<Process>,
    /// What is committed: owner (MEMBERS: nobody) and epoch.
    committed: Vec<(usize, u32)>,
    term: u64,
    /// The latest term that granted something; what the log would say.
    granting_term: u64,
    leader: usize,
    grantor: Option<Grantor>,
    cut: bool,
    acked: u64,
    /// Leaders that do not know that they were replaced.
    stale: BTreeMap<usize, (Grantor, u64)>,
    takeovers: u32,
    early: u32,
}

fn name(n: usize) -> Owner {
    owner(&n.to_string())
}

fn number(owner: &Owner) -> usize {
    owner.member.parse().unwrap()
}

fn timing(bug: Bug) -> Timing {
    Timing {
        drift_ppm: if bug == Bug::ClocksTakenAsEqual {
            0
        } else {
            DRIFT_PPM
        },
        margin: ms(1),
        ..Timing::default()
    }
}

impl World {
    fn new(seed: u64, bug: Bug) -> Self {
        let mut random = Random(seed);
        let processes = (0..MEMBERS)
            .map(|n| Process {
                holder: Holder::new(timing(bug), name(n)),
                rate: SLOW_FAST[usize::try_from(random.below(3)).unwrap()],
                offset: 1e6 * f64::from(u32::try_from(random.below(1000)).unwrap()),
                paused_until: 0,
                view: vec![(MEMBERS, 0); GATEWAYS as usize],
            })
            .collect();
        let mut world = Self {
            bug,
            now: 0,
            made: 0,
            queue: BinaryHeap::new(),
            random,
            processes,
            committed: vec![(MEMBERS, 0); GATEWAYS as usize],
            term: 0,
            granting_term: 0,
            leader: 0,
            grantor: None,
            cut: true,
            acked: 0,
            stale: BTreeMap::new(),
            takeovers: 0,
            early: 0,
        };
        for n in 0..MEMBERS {
            world.later(n as u64 * 1000, Event::Renew(n));
        }
        world.later(0, Event::Elect);
        world.later(10, Event::Heartbeat);
        world.later(1000, Event::Place);
        world
    }

    fn later(&mut self, us: u64, event: Event) {
        self.made += 1;
        self.queue.push(At(self.now + us, self.made, event));
    }

    /// The clock of a process at a real time.
    fn clock_at(&self, n: usize, real: u64) -> BootTime {
        let p = &self.processes[n];
        #[expect(clippy::cast_precision_loss, reason = "minutes in microseconds")]
        let micros = p.offset + real as f64 * p.rate;
        BootTime(Duration::from_secs_f64(micros / 1e6))
    }

    fn clock(&self, n: usize) -> BootTime {
        self.clock_at(n, self.now)
    }

    fn timing(&self) -> Timing {
        timing(self.bug)
    }

    fn quorum_until(&self, n: usize, acked: u64) -> BootTime {
        if self.bug == Bug::NoQuorumLease {
            return BootTime::FOREVER;
        }
        self.timing().quorum_until(self.clock_at(n, acked))
    }

    /// How long a message takes; `None` if it is lost.
    fn delay(&mut self) -> Option<u64> {
        match self.random.below(20) {
            0..3 => None,
            3..6 => Some(self.random.below(250_000)),
            _ => Some(200 + self.random.below(3000)),
        }
    }

    fn run(&mut self, micros: u64) -> Result<(), String> {
        while let Some(At(at, _, event)) = self.queue.pop() {
            if at > micros {
                return Ok(());
            }
            self.now = at;
            let text = format!("{event:?}");
            self.happen(event);
            self.check()
                .map_err(|e| format!("at {at} us after {text}: {e}"))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        for gateway in 0..GATEWAYS {
            let active: BTreeSet<usize> = (0..MEMBERS)
                .filter(|n| {
                    let p = &self.processes[*n];
                    let (with, epoch) = p.view[gateway as usize];
                    with == *n && p.holder.may_act(GatewayId(gateway), epoch, self.clock(*n))
                })
                .collect();
            if active.len() > 1 {
                return Err(format!("gateway {gateway} is used by {active:?}"));
            }
        }
        Ok(())
    }

    /// A paused process does what it has to do when it goes on.
    fn paused(&mut self, n: usize, event: &Event) -> bool {
        let until = self.processes[n].paused_until;
        if until > self.now {
            self.later(until - self.now, event.clone());
        }
        until > self.now
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Renew(n) => {
                if !self.paused(n, &Event::Renew(n)) {
                    self.renew(n);
                }
            }
            Event::Asked(n, ref request) => {
                if !self.paused(n, &event) {
                    self.asked(n, request);
                }
            }
            Event::Answered(n, ref grant) => {
                if !self.paused(n, &event) {
                    self.answered(n, grant);
                }
            }
            Event::Place => self.place(),
            Event::Commit {
                term,
                gateway,
                epoch,
                to,
            } => self.commit(term, gateway, epoch, to),
            Event::Learn(n, view) => self.learn(n, view),
            Event::Heartbeat => self.heartbeat(),
            Event::Cut => self.cut = true,
            Event::Elect => self.elect(),
            Event::Pause(n, long) => {
                let p = &mut self.processes[n];
                p.paused_until = p.paused_until.max(self.now + long);
            }
            Event::Release(n, gateway) => self.release(n, gateway),
        }
    }

    fn learn(&mut self, n: usize, view: Vec<(usize, u32)>) {
        let mut got = false;
        let own = &mut self.processes[n].view;
        for (old, new) in own.iter_mut().zip(view) {
            if old.1 <= new.1 {
                got |= new.0 == n && *old != new;
                *old = new;
            }
        }
        // Who gets a gateway asks for its lease at once.
        if got && self.processes[n].paused_until <= self.now {
            self.ask(n);
        }
    }

    fn renew(&mut self, n: usize) {
        self.later(40_000, Event::Renew(n));
        self.ask(n);
    }

    fn ask(&mut self, n: usize) {
        let now = self.clock(n);
        let p = &mut self.processes[n];
        let own = (0..GATEWAYS).filter(|g| p.view[*g as usize].0 == n);
        let own = own.map(|g| (GatewayId(g), p.view[g as usize].1)).collect();
        let request = p.holder.request(now, own);
        // A pause may come between a look at the clock and what follows.
        let stopped = if self.random.below(30) == 0 {
            self.random.below(200_000)
        } else {
            0
        };
        for target in 0..MEMBERS {
            // It asks whoever it takes for the leader; asking all is the worst case.
            let Some(delay) = (if target == n { Some(1) } else { self.delay() }) else {
                continue;
            };
            self.later(stopped + delay, Event::Asked(target, request.clone()));
            if self.random.below(10) == 0 {
                self.later(
                    stopped + delay + 50_000,
                    Event::Asked(target, request.clone()),
                );
            }
        }
    }

    fn asked(&mut self, n: usize, request: &Request) {
        let now = self.clock(n);
        let from = number(&request.owner);
        let stale = self.stale.contains_key(&n);
        let acked = if stale { self.stale[&n].1 } else { self.acked };
        let quorum = self.quorum_until(n, acked);
        let view = if stale {
            self.processes[n].view.clone()
        } else {
            self.committed.clone()
        };
        let leads = stale || (n == self.leader && self.grantor.is_some());
        if !leads {
            return;
        }
        if self.bug != Bug::FormerLeaderUnbounded {
            self.processes[n].holder.lead(quorum);
        }
        let grantor = match self.stale.get_mut(&n) {
            Some((grantor, _)) => grantor,
            None => self.grantor.as_mut().expect("leads"),
        };
        let epoch_of = |g: GatewayId| {
            let (with, epoch) = view[g.0 as usize];
            (with == from).then_some(epoch)
        };
        if let Ok(grant) = grantor.grant(request, now, quorum, epoch_of) {
            self.granting_term = self.granting_term.max(grant.term);
            let delay = if from == n { Some(1) } else { self.delay() };
            if let Some(delay) = delay {
                self.later(delay, Event::Answered(from, grant));
            }
        }
    }

    fn answered(&mut self, n: usize, grant: &Grant) {
        let now = self.clock(n);
        let p = &mut self.processes[n];
        if self.bug == Bug::CountedFromReceipt {
            let id = p.holder.request(now, vec![]).id;
            p.holder.granted(&Grant {
                id,
                ..grant.clone()
            });
        } else {
            p.holder.granted(grant);
        }
    }

    fn place(&mut self) {
        self.later(2000, Event::Place);
        let now = self.clock(self.leader);
        let Some(grantor) = self.grantor.as_mut() else {
            return;
        };
        if self.processes[self.leader].paused_until > self.now || self.cut {
            return;
        }
        let live: Vec<usize> = grantor.live(now).map(number).collect();
        for gateway in 0..GATEWAYS {
            let (with, epoch) = self.committed[gateway as usize];
            let holder = (with < MEMBERS).then(|| name(with));
            if holder.as_ref().is_some_and(|o| grantor.is_live(o, now)) {
                continue;
            }
            if live.is_empty() || !grantor.reassign(GatewayId(gateway), epoch, holder.as_ref(), now)
            {
                continue;
            }
            if self.bug == Bug::GrantedWhileReassigned {
                grantor.settled(GatewayId(gateway), epoch);
            }
            // Sooner than one of whom nothing is known.
            let unknown = grantor.silent_from(&name(MEMBERS));
            self.early += u32::from(holder.is_some_and(|o| grantor.silent_from(&o) < unknown));
            let to = live[usize::try_from(self.random.below(live.len() as u64)).unwrap()];
            let commit = Event::Commit {
                term: self.term,
                gateway,
                epoch: epoch + 1,
                to,
            };
            let most = if self.random.below(4) == 0 {
                60_000
            } else {
                1000
            };
            let takes = 200 + self.random.below(most);
            self.made += 1;
            self.queue.push(At(self.now + takes, self.made, commit));
        }
    }

    fn commit(&mut self, term: u64, gateway: u32, epoch: u32, to: usize) {
        // What a leader before did not get committed is gone, and a comparison that fails changes nothing.
        if term != self.term || self.cut || self.committed[gateway as usize].1 + 1 != epoch {
            return;
        }
        self.takeovers += u32::from(epoch > 1);
        self.committed[gateway as usize] = (to, epoch);
        self.spread();
    }

    /// Everybody hears of what is committed, sooner or later.
    fn spread(&mut self) {
        for n in 0..MEMBERS {
            let late = match self.random.below(5) {
                0 => self.random.below(400_000),
                _ => self.random.below(1000),
            };
            let view = self.committed.clone();
            self.later(late, Event::Learn(n, view));
        }
    }

    fn heartbeat(&mut self) {
        self.later(20_000, Event::Heartbeat);
        if !self.cut && self.processes[self.leader].paused_until <= self.now {
            self.acked = self.now;
        }
        if self.grantor.is_some() && !self.cut && self.random.below(30) == 0 {
            // Followers vote for another once their clocks have counted the time-out since the last heartbeat.
            let fastest = self.processes.iter().map(|p| p.rate).fold(0.0, f64::max);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "about 100,000"
            )]
            let refuse =
                (self.timing().election_timeout_max.as_secs_f64() * 1e6 / fastest).ceil() as u64;
            let wait = (self.acked + refuse).saturating_sub(self.now) + self.random.below(40_000);
            self.later(0, Event::Cut);
            self.later(wait, Event::Elect);
        }
        let n = usize::try_from(self.random.below(MEMBERS as u64)).unwrap();
        match self.random.below(60) {
            0 => {
                let long = self.random.below(500_000);
                self.later(0, Event::Pause(n, long));
            }
            1 => {
                let gateway = u32::try_from(self.random.below(GATEWAYS.into())).unwrap();
                self.later(0, Event::Release(n, gateway));
            }
            _ => {}
        }
    }

    fn elect(&mut self) {
        let before = self.leader;
        if let Some(grantor) = self.grantor.take() {
            // It goes on in the belief that it leads, until it hears of the new one.
            self.stale.insert(before, (grantor, self.acked));
        }
        let next = (before + 1 + usize::try_from(self.random.below(2)).unwrap()) % MEMBERS;
        let next = if self.term == 0 { 0 } else { next };
        // Those that were replaced earlier have heard of it.
        for n in 0..MEMBERS {
            if n != before || n == next {
                self.stale.remove(&n);
                self.processes[n].holder.follow();
            }
        }
        self.term += 1;
        self.leader = next;
        self.cut = false;
        self.acked = self.now;
        let mut now = self.clock(next);
        if self.bug == Bug::NoWaitAfterElection {
            now = BootTime(now.0.saturating_sub(ms(200)));
        }
        let quorum = self.quorum_until(next, self.acked);
        let p = &mut self.processes[next];
        p.view = self.committed.clone();
        let former = p.holder.former_leader(self.granting_term);
        if self.bug != Bug::FormerLeaderUnbounded {
            p.holder.lead(quorum);
        }
        self.grantor = Some(Grantor::new(
            self.timing(),
            self.term,
            name(next),
            former,
            now,
        ));
    }

    fn release(&mut self, n: usize, gateway: u32) {
        let (with, epoch) = self.committed[gateway as usize];
        if with != n || self.cut || self.processes[n].view[gateway as usize] != (n, epoch) {
            return;
        }
        if self.bug == Bug::GoesOnAfterRelease {
            // It says that it gave the gateway up, and goes on.
        } else {
            self.processes[n].holder.drop_gateway(GatewayId(gateway));
        }
        self.committed[gateway as usize].0 = MEMBERS;
        self.processes[n].view[gateway as usize].0 = if self.bug == Bug::GoesOnAfterRelease {
            n
        } else {
            MEMBERS
        };
    }
}

fn simulate(seed: u64, bug: Bug) -> Result<(u32, u32), String> {
    let mut world = World::new(seed, bug);
    world.run(20_000_000)?;
    Ok((world.takeovers, world.early))
}

#[test]
fn never_two_active_members() {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let (mut takeovers, mut early) = (0, 0);
    let mut runner = TestRunner::new(config);
    let seeds = any::<u64>().no_shrink();
    let counted = std::cell::RefCell::new((&mut takeovers, &mut early));
    runner
        .run(&seeds, |seed| {
            let (t, e) = simulate(seed, Bug::None)
                .map_err(|e| TestCaseError::fail(format!("seed {seed}: {e}")))?;
            let mut counted = counted.borrow_mut();
            *counted.0 += t;
            *counted.1 += e;
            Ok(())
        })
        .unwrap();
    // The histories are worth something.
    assert!(takeovers > 10 * cases, "{takeovers} takeovers");
    assert!(early > cases / 10, "{early} without waiting");
}

#[test]
fn each_planted_bug_is_found() {
    for bug in [
        Bug::CountedFromReceipt,
        Bug::NoWaitAfterElection,
        Bug::NoQuorumLease,
        Bug::ClocksTakenAsEqual,
        Bug::GrantedWhileReassigned,
        Bug::FormerLeaderUnbounded,
        Bug::GoesOnAfterRelease,
    ] {
        let found = (0..400).find(|seed| simulate(*seed, bug).is_err());
        assert!(found.is_some(), "{bug:?} goes unnoticed");
    }
}
