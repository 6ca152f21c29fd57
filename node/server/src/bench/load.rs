//! One thread of the load: clients that connect, as many at a time as may be, on a few sockets.

use super::{
    clients::{CHILD, CONNECTION, Clients, Common, Spis},
    ivs::IkeIvs,
    links::{Ends, Link},
    report::{Tally, reason},
};
use crate::{
    clock::{Clock, SystemEntropy},
    credentials::KeyStore,
};
use anyhow::Context;
use evergate_ike::{
    env::UnixMillis,
    record::{Child, CloseReason, GatewayId, Phase, Record, SaId, Transport},
    sa::{Change, Command, Effect, Env, Event, IkeSa, Input, IvCounter, Question, Step, initiate},
    wire::Header,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// New clients per turn: making their keys must not keep answers waiting.
const STARTS_PER_TURN: usize = 4;
/// Messages read per turn and pair of sockets.
const MESSAGES_PER_TURN: usize = 64;
/// Timers served per turn.
const TIMERS_PER_TURN: usize = 64;
/// Nobody sleeps longer, so that the deadline is kept.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);
/// No message is larger.
const BUFFER: usize = 65_536;

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    /// The number of the next client.
    pub(super) next: AtomicU32,
    /// The number after the last client.
    pub(super) end: u32,
}

impl Shared {
    fn take_number(&self) -> Option<u32> {
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < self.end).then_some(n + 1)
            })
            .ok()
    }
}

/// What one thread is to do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) thread: u8,
    /// Where the SPIs of Child SAs begin, the same for all threads.
    pub(super) first_spi: u32,
    pub(super) common: Common,
    /// Pairs of sockets.
    pub(super) links: usize,
    pub(super) ends: Ends,
    /// Handshakes (and then deletions) under way at a time.
    pub(super) concurrency: usize,
}

/// A client: its IKE SA, and how far it is.
struct Client {
    number: u32,
    link: usize,
    sa: IkeSa,
    stage: Stage,
    /// When its first message was sent.
    started: Instant,
    /// The wake-up that is in the queue.
    armed: Option<UnixMillis>,
    /// What was last said to go wrong.
    failure: Option<String>,
    /// Messages of the handshake that were sent because of a timer, the first included.
    timed_sends: u64,
    /// When it asked whether the other end is there, and is not answered yet.
    asked: Option<Instant>,
}

/// Liveness checks.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) begun: u64,
    /// Messages that were sent again.
    pub(super) retransmits: u64,
    /// From the request to the answer, for those that were answered.
    pub(super) latencies: Vec<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connecting,
    Up,
    Deleting,
}

/// What is left of a step.
#[derive(Default)]
struct Done {
    /// The SA is to be forgotten.
    forget: bool,
    questions: Vec<Question>,
}

impl Checks {
    /// Looks at what a step made of a client whose only requests are checks.
    fn see(&mut self, client: &mut Client, timed: bool) {
        if client.stage != Stage::Up {
            return;
        }
        let waits = !client.sa.record().outbound.pending.is_empty();
        match client.asked {
            None if waits => {
                self.begun += 1;
                client.asked = Some(Instant::now());
            }
            Some(_) if waits => self.retransmits += u64::from(timed),
            Some(asked) => {
                self.latencies.push(asked.elapsed());
                client.asked = None;
            }
            None => {}
        }
    }
}

/// One thread of the load.
pub(super) struct Load<'s> {
    shared: &'s Shared,
    clients: Clients,
    links: Vec<Link>,
    ivs: IvCounter,
    spis: Spis,
    local: IpAddr,
    concurrency: usize,
    /// Private keys that were used before.
    keys: KeyStore,
    sas: HashMap<SaId, Client>,
    timers: BinaryHeap<Reverse<(UnixMillis, SaId)>>,
    /// Handshakes, or deletions, under way.
    busy: usize,
    buffer: Vec<u8>,
    tally: Tally,
    /// Clients beyond those that were asked for.
    more: u32,
    checks: Checks,
    /// The IVs of the messages that came, if somebody wants to know.
    ivs_seen: Option<IkeIvs>,
}

impl<'s> Load<'s> {
    /// Opens the sockets.
    pub(super) fn new(plan: &Plan, shared: &'s Shared) -> anyhow::Result<Self> {
        let links = (0..plan.links)
            .map(|_| Link::open(plan.ends))
            .collect::<Result<_, _>>()
            .context("cannot open the sockets")?;
        Ok(Self {
            shared,
            clients: Clients::new(plan.common.clone())?,
            links,
            ivs: IvCounter::new(1),
            spis: Spis::new(plan.first_spi, plan.thread),
            local: plan.common.local,
            concurrency: plan.concurrency,
            keys: KeyStore::default(),
            sas: HashMap::new(),
            timers: BinaryHeap::new(),
            busy: 0,
            buffer: vec![0; BUFFER],
            tally: Tally::default(),
            more: 0,
            checks: Checks::default(),
            ivs_seen: None,
        })
    }

    /// Connects clients until none is left or the time is over.
    pub(super) fn connect_all(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            let mut started = 0;
            while self.busy < self.concurrency && started < STARTS_PER_TURN {
                let Some(number) = self.shared.take_number() else {
                    break;
                };
                self.start(number)?;
                started += 1;
            }
            if self.busy == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.abandon();
                return Ok(());
            }
            self.turn(started > 0, deadline)?;
        }
    }

    /// Deletes what is up until nothing is left or the time is over.
    pub(super) fn delete_all(&mut self, deadline: Instant) -> anyhow::Result<()> {
        let up = |c: &Client| c.stage == Stage::Up;
        let mut left: Vec<SaId> = self
            .sas
            .iter()
            .filter(|(_, c)| up(c))
            .map(|(id, _)| *id)
            .collect();
        loop {
            let mut started = 0;
            while self.busy < self.concurrency && started < STARTS_PER_TURN {
                let Some(id) = left.pop() else { break };
                if let Some(client) = self.sas.get_mut(&id).filter(|c| up(c)) {
                    client.stage = Stage::Deleting;
                    self.busy += 1;
                    self.step(id, Input::Command(Command::Delete))?;
                }
                started += 1;
            }
            if self.busy == 0 && left.is_empty() || Instant::now() >= deadline {
                return Ok(());
            }
            self.turn(started > 0, deadline)?;
        }
    }

    /// Begins so many handshakes beyond those that were asked for.
    pub(super) fn begin_more(&mut self, count: u32) -> anyhow::Result<()> {
        for _ in 0..count {
            self.start(self.next_number())?;
            self.more += 1;
        }
        Ok(())
    }

    /// The number of the next of them.
    pub(super) fn next_number(&self) -> u32 {
        self.shared.end.saturating_add(self.more)
    }

    /// Begins to delete all that have this number or a higher one.
    pub(super) fn delete_from(&mut self, number: u32) -> anyhow::Result<()> {
        let is_one = |c: &Client| c.number >= number && c.stage == Stage::Up;
        let these = self.sas.iter().filter(|(_, c)| is_one(c));
        let these: Vec<SaId> = these.map(|(id, _)| *id).collect();
        for id in these {
            if let Some(client) = self.sas.get_mut(&id) {
                client.stage = Stage::Deleting;
                self.busy += 1;
                self.step(id, Input::Command(Command::Delete))?;
            }
        }
        Ok(())
    }

    /// From now on all check whether the other end is there so long after they heard something, the first time one after the other; or nobody does.
    pub(super) fn check_every(&mut self, delay: Option<Duration>) {
        self.clients.check_every(delay.unwrap_or_default());
        let Some(delay) = delay else { return };
        self.checks = Checks::default();
        let now = self.shared.clock.now();
        let all = u32::try_from(self.sas.len()).unwrap_or(u32::MAX).max(1);
        for (n, (id, client)) in (0_u32..).zip(&mut self.sas) {
            let at = now + delay / all * n;
            client.armed = Some(at);
            self.timers.push(Reverse((at, *id)));
        }
    }

    /// The checks since [`Load::check_every`].
    pub(super) fn checks(&self) -> &Checks {
        &self.checks
    }

    /// What was counted up to now.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// IKE SAs that there are, up or not.
    pub(super) fn held(&self) -> usize {
        self.sas.len()
    }

    /// Handshakes, or deletions, that are under way.
    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    /// Looks at the IVs of all messages that come from now on.
    pub(super) fn watch_ivs(&mut self) {
        self.ivs_seen = Some(IkeIvs::default());
    }

    /// What they were.
    pub(super) fn ivs_seen(&self) -> Option<&IkeIvs> {
        self.ivs_seen.as_ref()
    }

    /// The Child SAs of those that are connected, and by which pair of sockets each goes.
    pub(super) fn children(&self) -> impl Iterator<Item = (usize, &Child)> {
        let up = self.sas.values().filter(|c| c.stage == Stage::Up);
        up.flat_map(|c| c.sa.record().children().iter().map(|child| (c.link, child)))
    }

    /// Sends ESP in UDP. What cannot be sent is lost, as anything may be.
    pub(super) fn send_esp(&mut self, link: usize, packet: &[u8]) {
        if self.links[link].send_esp(packet).is_err() {
            self.tally.send_errors += 1;
        }
    }

    /// Serves the SAs for a moment, and shows the ESP packets that come meanwhile.
    pub(super) fn serve(&mut self, esp: &mut dyn FnMut(&mut [u8])) -> anyhow::Result<()> {
        let soon = Instant::now();
        self.turn_with(false, soon, esp)
    }

    /// What was counted.
    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    fn start(&mut self, number: u32) -> anyhow::Result<()> {
        let link = number as usize % self.links.len();
        let now = self.shared.clock.now();
        let policy = self.clients.policy_of(number)?;
        let remotes = policy.connections.iter().flat_map(|c| c.remote_hosts());
        let pairs: Vec<_> = remotes.map(|remote| (self.local, remote)).collect();
        let mut env = Env {
            now,
            ivs: &self.ivs,
            policy,
            rng: &mut SystemEntropy,
            spis: &mut self.spis,
            nat_port: self.links[link].nat_port(),
            addresses: &[],
        };
        let port = self.links[link].ike_port();
        let record = initiate(
            CONNECTION,
            CHILD,
            &pairs,
            port,
            GatewayId(0),
            false,
            &mut env,
        )?;
        let id = record.id;
        self.insert(record, number, link, Stage::Connecting);
        self.busy += 1;
        self.tally.started += 1;
        self.step(id, Input::Timeout) // the first message is due at once
    }

    fn insert(&mut self, record: Record, number: u32, link: usize, stage: Stage) {
        let id = record.id;
        let client = Client {
            number,
            link,
            sa: IkeSa::created(record, self.shared.clock.now()),
            stage,
            started: Instant::now(),
            armed: None,
            failure: None,
            timed_sends: 0,
            asked: None,
        };
        self.sas.insert(id, client);
    }

    /// Handshakes that did not end in time.
    fn abandon(&mut self) {
        for client in self.sas.values().filter(|c| c.stage == Stage::Connecting) {
            self.tally.retransmits += client.timed_sends.saturating_sub(1);
            self.tally.fail("timeout");
        }
        self.sas.retain(|_, c| c.stage != Stage::Connecting);
        self.busy = 0;
    }

    /// Reads what has come, serves what is due, and sleeps if there was nothing to do.
    pub(super) fn turn(&mut self, worked: bool, deadline: Instant) -> anyhow::Result<()> {
        self.turn_with(worked, deadline, &mut |_| {})
    }

    fn turn_with(
        &mut self,
        mut worked: bool,
        deadline: Instant,
        esp: &mut dyn FnMut(&mut [u8]),
    ) -> anyhow::Result<()> {
        for link in 0..self.links.len() {
            for _ in 0..MESSAGES_PER_TURN {
                if !self.receive(link, esp)? {
                    break;
                }
                worked = true;
            }
        }
        worked |= self.serve_timers()?;
        if !worked {
            self.sleep(deadline)?;
        }
        Ok(())
    }

    fn receive(&mut self, link: usize, esp: &mut dyn FnMut(&mut [u8])) -> anyhow::Result<bool> {
        let Some(got) = self.links[link].receive_with(&mut self.buffer, esp) else {
            return Ok(false);
        };
        let bytes = self.buffer[got.start..got.end].to_vec();
        if let Some(seen) = &mut self.ivs_seen {
            seen.see(&bytes);
        }
        if let Ok(header) = Header::parse(&bytes) {
            let ours = match header.from_initiator {
                true => header.responder_spi, // the responder rekeyed the IKE SA: it is the initiator now
                false => header.initiator_spi,
            };
            let input = Input::Datagram {
                bytes: &bytes,
                local: got.local,
                remote: got.remote,
                transport: Transport::Udp,
            };
            self.step(SaId(ours), input)?;
        }
        Ok(true)
    }

    fn serve_timers(&mut self) -> anyhow::Result<bool> {
        let now = self.shared.clock.now();
        for served in 0..TIMERS_PER_TURN {
            let Some(Reverse((at, id))) = self.timers.peek().copied().filter(|t| t.0.0 <= now)
            else {
                return Ok(served > 0);
            };
            self.timers.pop();
            let Some(client) = self.sas.get_mut(&id).filter(|c| c.armed == Some(at)) else {
                continue;
            };
            client.armed = None;
            let next = client.sa.next_timeout(self.clients.policy());
            match next {
                Some((at, _)) if at <= now => self.step(id, Input::Timeout)?,
                Some((at, _)) => {
                    client.armed = Some(at);
                    self.timers.push(Reverse((at, id)));
                }
                None => {}
            }
        }
        Ok(true)
    }

    fn sleep(&self, deadline: Instant) -> anyhow::Result<()> {
        let mut time = LONGEST_SLEEP.min(deadline.saturating_duration_since(Instant::now()));
        if let Some(Reverse((at, _))) = self.timers.peek() {
            time = time.min(at.since(self.shared.clock.now()));
        }
        let mut fds: Vec<PollFd<'_>> = self
            .links
            .iter()
            .flat_map(Link::sockets)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let time = time.max(Duration::from_millis(1)); // or else it would spin through the rest of a millisecond
        match poll(
            &mut fds,
            PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO),
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e).context("poll"),
        }
    }

    /// Gives a client's SA an input, and does what comes of it. There is nothing to commit to: what a step changes is adopted at once.
    fn step(&mut self, id: SaId, input: Input<'_>) -> anyhow::Result<()> {
        let Some(mut client) = self.sas.remove(&id) else {
            return Ok(()); // late, or none of ours
        };
        let timed = matches!(input, Input::Timeout);
        let was_first = matches!(client.sa.record().phase, Phase::InitSent(_));
        let mut env = Env {
            now: self.shared.clock.now(),
            ivs: &self.ivs,
            policy: self.clients.policy_of(client.number)?,
            rng: &mut SystemEntropy,
            spis: &mut self.spis,
            nat_port: self.links[client.link].nat_port(),
            addresses: &[],
        };
        let Step { change, effects } = client.sa.step(input, &mut env);
        match change {
            Change::None => {}
            Change::Lazy(record) => {
                client.sa.outbound_committed(record.outbound.accounted());
                client.sa.adopt(*record);
            }
            Change::Barrier(records) => {
                let mut records = records.into_iter();
                if let Some(own) = records.next() {
                    client.sa.adopt(own);
                }
                for record in records {
                    self.insert(record, client.number, client.link, Stage::Up);
                }
            }
        }
        self.checks.see(&mut client, timed);
        let Done { forget, questions } = self.carry_out(&mut client, effects, timed, was_first);
        if !self.ends(&mut client, forget) {
            let next = client
                .sa
                .next_timeout(self.clients.policy())
                .map(|(at, _)| at);
            if let Some(at) = next.filter(|at| client.armed.is_none_or(|armed| *at < armed)) {
                client.armed = Some(at);
                self.timers.push(Reverse((at, id)));
            }
            self.sas.insert(id, client);
        }
        for question in questions {
            if let Some(answer) = self.answer(question)? {
                self.step(id, answer)?;
            }
        }
        Ok(())
    }

    /// What an SA asks the outside.
    fn answer(&self, question: Question) -> anyhow::Result<Option<Input<'static>>> {
        let policy = self.clients.policy();
        match question {
            Question::Verify(what) => {
                let verified = what.run(policy, self.shared.clock.now(), None);
                Ok(Some(Input::Verified(verified.map(Box::new))))
            }
            Question::Sign {
                key,
                scheme,
                octets,
            } => {
                let signed = self.keys.sign_by_name(policy, &key, scheme, &octets);
                Ok(Some(Input::Signed(Some(signed?))))
            }
            // Only responders have pools, and nobody here authenticates again.
            Question::Addresses { .. } | Question::Exists(_) => Ok(None),
        }
    }

    /// Does what a step wants done outside.
    fn carry_out(
        &mut self,
        client: &mut Client,
        effects: Vec<Effect>,
        timed: bool,
        was_first: bool,
    ) -> Done {
        let link = &self.links[client.link];
        let is_first = matches!(client.sa.record().phase, Phase::InitSent(_));
        let mut done = Done::default();
        for effect in effects {
            let sent = match effect {
                Effect::Send {
                    datagram, local, ..
                } => {
                    if timed && client.stage == Stage::Connecting {
                        client.timed_sends += 1;
                    } else if was_first && is_first {
                        self.tally.restarts += 1;
                    }
                    link.send(local.port(), &datagram)
                }
                Effect::Keepalive { .. } => link.send_keepalive(),
                Effect::Report(Event::Failed { what }) => {
                    client.failure = Some(reason(&what));
                    Ok(())
                }
                Effect::Forget => {
                    done.forget = true;
                    Ok(())
                }
                Effect::Ask(question) => {
                    done.questions.push(question);
                    Ok(())
                }
                _ => Ok(()), // there is no data plane
            };
            if sent.is_err() {
                self.tally.send_errors += 1;
            }
        }
        done
    }

    /// Counts what came to an end with a step: a handshake, or the SA. True if the SA is not needed any more.
    fn ends(&mut self, client: &mut Client, forget: bool) -> bool {
        let record = client.sa.record();
        let closed = match &record.phase {
            Phase::Closed(c) => Some(c.reason),
            _ if forget => Some(CloseReason::SetupFailed),
            _ => None,
        };
        let up = matches!(record.phase, Phase::Established(_));
        match client.stage {
            Stage::Connecting if up || closed.is_some() => {
                self.busy -= 1;
                self.tally.retransmits += client.timed_sends.saturating_sub(1);
                if up && !record.children().is_empty() {
                    self.tally
                        .succeed(client.started, record.path.encapsulated());
                } else {
                    self.tally
                        .fail(client.failure.as_deref().unwrap_or("no_child_sa"));
                }
                client.stage = Stage::Up;
            }
            Stage::Up if closed.is_some_and(|r| r != CloseReason::Rekeyed) => self.tally.lost += 1,
            Stage::Deleting if closed.is_some() => {
                self.busy -= 1;
                self.tally.deleted += u64::from(closed == Some(CloseReason::DeletedByUs));
            }
            _ => {}
        }
        closed.is_some()
    }
}
