//! The workers: each owns a set of IKE SAs and does everything that happens to them, one thing after another.
//!
//! An input goes to the SA's state machine. If the step changes the record, the change is proposed and the SA's effects
//! and further inputs wait until it is applied; other SAs of the worker go on meanwhile. Nothing here waits inline.

mod commit;
mod early;
mod effects;
mod init;
mod limits;
mod report;
mod roam;
mod slot;
mod spis;
#[cfg(test)]
mod tests;
mod timers;

pub(crate) use limits::{HalfOpenLimits, RateLimit};
pub(crate) use report::reason_name;
pub(crate) use slot::{Notice, Watcher};
pub(crate) use spis::worker_of;

use crate::{children, clock::SystemEntropy, counters::IkeDrop, drills, shared::Shared, transport};
use commit::Done;
use early::Early;
use evergate_ike::{
    record::{Phase, Record, Role, SaId, Transport},
    sa::{self, Change, Env, Failure, IkeSa, Input, Timer},
    wire::Header,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use slot::{Queued, Slot};
use spis::Spis;
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use timers::Timers;
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Room in the queue of a worker.
pub(crate) const QUEUE: usize = 1024;

/// Message IDs of harmless exchanges are proposed this often.
const TICK: Duration = Duration::from_millis(20);

/// So many timers are served before other things get their turn.
const TIMERS_AT_ONCE: usize = 64;

/// A stopping worker waits this long for what it has proposed.
const DRAIN: Duration = Duration::from_secs(3);

/// What a worker is told.
pub(crate) enum Message {
    /// A message for an SA of its own.
    Datagram {
        /// The SA.
        sa: SaId,
        /// The message.
        bytes: Vec<u8>,
        /// Where it arrived.
        local: SocketAddr,
        /// Where it came from.
        remote: SocketAddr,
        /// By what.
        transport: Transport,
    },
    /// The first message of an IKE SA.
    Init {
        /// The message.
        bytes: Vec<u8>,
        /// Its header.
        header: Header,
        /// Where it arrived.
        local: SocketAddr,
        /// Where it came from.
        remote: SocketAddr,
        /// By what.
        transport: Transport,
    },
    /// Set up an IKE SA with a Child SA.
    Initiate {
        /// The connection.
        connection: String,
        /// The child.
        child: String,
        /// Addresses of ours and of the peer, in the order in which they are tried.
        pairs: Vec<(IpAddr, IpAddr)>,
        /// Who wants to know what happens to it.
        watcher: Option<Watcher>,
        /// Gets its name once its first message is committed.
        reply: oneshot::Sender<Result<SaId, Failure>>,
    },
    /// An operator wants something of an SA.
    Command {
        /// The SA.
        sa: SaId,
        /// What.
        command: sa::Command,
        /// Who wants to know what happens to it.
        watcher: Option<Watcher>,
        /// Whether there is such an SA.
        reply: Option<oneshot::Sender<bool>>,
    },
    /// An SA that another worker's step created.
    Admit(Box<Record>),
    /// The policy is another: timers may be as well.
    PolicyChanged,
    /// Addresses or routes of this host are others.
    NetworkChanged,
    /// The newest authentic ESP packet of an SA's peer came from elsewhere.
    EspFrom {
        /// The SA.
        sa: SaId,
        /// Where it came from.
        remote: SocketAddr,
        /// By what.
        transport: Transport,
    },
    /// A TCP connection of our own is there (again).
    Connected {
        /// Our end.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
    },
}

/// One worker.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    // In boxes: the table is moved when it grows.
    slots: HashMap<SaId, Box<Slot>>,
    /// The SAs that first messages made, so that a repeated one gets the same answer.
    inits: HashMap<(SocketAddr, u64), SaId>,
    timers: Timers,
    /// SAs whose Message IDs moved by harmless exchanges.
    dirty: BTreeSet<SaId>,
    /// SAs whose records are to be removed.
    forgotten: Vec<SaId>,
    pending: FuturesUnordered<BoxFuture<'static, Done>>,
    spis: Spis,
    early: Early,
    rng: SystemEntropy,
    index: usize,
}

impl Worker {
    /// A worker that serves the SAs of these records from now on; their Child SAs are installed.
    pub(crate) fn resume(shared: Arc<Shared>, index: usize, records: Vec<Arc<Record>>) -> Self {
        let spis = Spis::new(Arc::clone(&shared), index);
        let mut worker = Self {
            shared,
            slots: HashMap::new(),
            inits: HashMap::new(),
            timers: Timers::default(),
            dirty: BTreeSet::new(),
            forgotten: Vec::new(),
            pending: FuturesUnordered::new(),
            spis,
            early: Early::default(),
            rng: SystemEntropy,
            index,
        };
        let now = worker.shared.clock.now();
        for record in records {
            worker.install_all(&record);
            for coming in record.coming() {
                worker.spis.take(coming.0);
            }
            let id = record.id;
            let sa = IkeSa::resume(record, now);
            worker.insert(id, Slot::new(sa));
        }
        worker
    }

    /// Serves until told to stop, or until somebody else serves the gateway.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Message>, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        // A former process may have died before it told them.
        let all: Vec<SaId> = self.slots.keys().copied().collect();
        self.displace(&all);
        for slot in self.slots.values() {
            shared.hooks.taken_over(&shared, slot.sa.record());
        }
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Since its predecessor looked, this host may have got other addresses; or it is another host.
        self.roam_all();
        loop {
            let wake = self.timers.next().map(|at| shared.clock.instant_of(at));
            tokio::select! {
                () = shared.passive.cancelled() => return self.abandon(),
                () = stop.cancelled() => break,
                Some(done) = self.pending.next(), if !self.pending.is_empty() => self.done(done),
                _ = tick.tick(), if self.has_changes() => self.propose_changes(),
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => self.fire(),
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => break,
                },
            }
        }
        self.drain().await;
        // What comes later finds the queue closed.
        inbox.close();
        while let Ok(message) = inbox.try_recv() {
            shared.pass_on(message);
        }
    }

    /// Lets what was proposed come to its end, and tells the log what it does not know yet.
    async fn drain(&mut self) {
        self.propose_changes();
        let all = async {
            while let Some(done) = self.pending.next().await {
                if self.shared.passive.is_cancelled() {
                    return;
                }
                self.done(done);
                self.propose_changes();
            }
        };
        if timeout(DRAIN, all).await.is_err() {
            tracing::warn!(
                event = "drain-incomplete",
                worker = self.index,
                "the log did not answer in time"
            );
        }
    }

    /// Somebody else may serve the SAs now: the data plane lets go of them, nothing is sent any more.
    fn abandon(self) {
        for mut slot in self.slots.into_values() {
            let record = slot.sa.record();
            self.shared.plane.disclaim(record.id.0);
            for child in record.children() {
                let _ = children::remove(&self.shared, child.spi_in, Duration::ZERO);
            }
            if let Phase::Established(established) = &record.phase {
                for address in &established.our_vips {
                    let _ = self.shared.plane.release_address(*address);
                }
            }
            slot.tell(None);
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Datagram {
                sa,
                bytes,
                local,
                remote,
                transport,
            } => self.datagram(sa, bytes, (local, remote, transport)),
            Message::Init {
                bytes,
                header,
                local,
                remote,
                transport,
            } => self.init(&bytes, &header, (local, remote, transport)),
            Message::Initiate {
                connection,
                child,
                pairs,
                watcher,
                reply,
            } => self.initiate(&connection, &child, &pairs, watcher, reply),
            Message::Command {
                sa,
                command,
                watcher,
                reply,
            } => {
                let known = match (self.slots.get_mut(&sa), watcher) {
                    (Some(slot), Some(watcher)) => slot.watch(watcher),
                    (slot, _) => slot.is_some(),
                };
                if let Some(reply) = reply {
                    let _ = reply.send(known);
                }
                if known {
                    self.feed(sa, Queued::Command(command));
                }
            }
            Message::Admit(record) => self.admit(*record),
            Message::PolicyChanged => {
                let all: Vec<SaId> = self.slots.keys().copied().collect();
                for sa in all {
                    self.reschedule(sa);
                }
                self.roam_all();
            }
            Message::NetworkChanged => self.roam_all(),
            Message::EspFrom {
                sa,
                remote,
                transport,
            } => self.feed(sa, Queued::EspFrom(remote, transport)),
            Message::Connected { local, remote } => self.connected(local, remote),
        }
    }

    /// The SA whose TCP connection it is has one again.
    fn connected(&mut self, local: SocketAddr, remote: SocketAddr) {
        let has = |slot: &Slot| {
            let path = slot.sa.record().path;
            path.transport.is_tcp() && (path.local, path.remote) == (local, remote)
        };
        let ids = self.slots.iter().filter(|(_, slot)| has(slot));
        for id in ids.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.feed(id, Queued::Connected(local, remote));
        }
    }

    fn datagram(
        &mut self,
        sa: SaId,
        bytes: Vec<u8>,
        (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    ) {
        if !self.slots.contains_key(&sa) {
            return self.stranger(sa, bytes, (local, remote, transport));
        }
        if let Ok(header) = Header::parse(&bytes)
            && !header.is_response
        {
            drills::pass("request-arrived", Some(header.exchange));
        }
        self.feed(
            sa,
            Queued::Datagram {
                bytes,
                local,
                remote,
                transport,
            },
        );
    }

    /// A message for an IKE SA that is not there, or not yet.
    fn stranger(
        &mut self,
        sa: SaId,
        bytes: Vec<u8>,
        (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    ) {
        if self.spis.is_coming(sa) {
            let message = Queued::Datagram {
                bytes,
                local,
                remote,
                transport,
            };
            if self.early.put(sa, message) {
                self.shared.drops.count(IkeDrop::SaBusy);
            }
            return;
        }
        self.shared.answer_stray(&bytes, local, remote, transport);
        self.shared.dropped(
            IkeDrop::UnknownSpi,
            local,
            remote,
            &format_args!("no IKE SA has the SPI {sa}"),
        );
    }

    /// Gives an SA an input, now or when its commit is done.
    fn feed(&mut self, id: SaId, input: Queued) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.committing.is_none() {
            self.step(id, input.as_input());
        } else if !slot.enqueue(input) {
            self.shared.drops.count(IkeDrop::SaBusy);
        }
    }

    fn step(&mut self, id: SaId, input: Input<'_>) {
        let shared = Arc::clone(&self.shared);
        let policy = shared.policy.load_full();
        let addresses = shared.outer_addresses(&policy);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let mut env = Env {
            now: shared.clock.now(),
            ivs: &shared.ivs,
            policy: &policy,
            rng: &mut self.rng,
            spis: &mut self.spis,
            nat_port: shared.ports.nat,
            addresses: &addresses,
        };
        let step = slot.sa.step(input, &mut env);
        match step.change {
            Change::None => self.perform(id, commit::answer_anew(step.effects)),
            Change::Lazy(record) => {
                slot.sa.adopt(*record);
                self.dirty.insert(id);
                self.perform(id, step.effects);
            }
            Change::Barrier(records) => self.commit(id, records, step.effects),
        }
        self.reschedule(id);
    }

    /// Serves timers that are due.
    fn fire(&mut self) {
        for _ in 0..TIMERS_AT_ONCE {
            let now = self.shared.clock.now();
            let Some(id) = self.timers.pop(now) else {
                return;
            };
            let policy = self.shared.policy.load();
            let Some(slot) = self.slots.get_mut(&id).filter(|s| s.committing.is_none()) else {
                continue;
            };
            if let Some((_, Timer::Liveness)) = slot.sa.next_timeout(&policy)
                && let Some(at) = self.shared.last_inbound(slot.sa.record())
            {
                slot.sa.heard(at);
            }
            let due = slot
                .sa
                .next_timeout(&policy)
                .is_some_and(|(at, _)| at <= now);
            drop(policy);
            if due {
                self.step(id, Input::Timeout);
            } else {
                self.reschedule(id);
            }
        }
    }

    /// Makes the timer of an SA what the SA wants.
    fn reschedule(&mut self, id: SaId) {
        let policy = self.shared.policy.load();
        let at = self
            .slots
            .get(&id)
            .filter(|s| s.committing.is_none())
            .and_then(|slot| {
                let (at, _) = slot.sa.next_timeout(&policy)?;
                Some(at.max(slot.not_before))
            });
        self.timers.set(id, at);
    }

    /// An SA that a step has created.
    fn admit(&mut self, record: Record) {
        let id = record.id;
        let own = worker_of(id, self.shared.worker_count) == self.index;
        if !own {
            // It was named when there was another number of workers.
            if let Some(worker) = self.shared.worker(id) {
                let worker = worker.clone();
                tokio::spawn(async move { worker.send(Message::Admit(Box::new(record))).await });
            }
            return;
        }
        let now = self.shared.clock.now();
        self.insert(id, Slot::new(IkeSa::created(record, now)));
        for message in self.early.take(id) {
            self.feed(id, message);
        }
    }

    fn insert(&mut self, id: SaId, mut slot: Slot) {
        let record = slot.sa.record();
        transport::claim(&*self.shared.plane, record);
        if slot.is_half_open() {
            slot.permit = Some(self.shared.half_open.permit(record.path.remote.ip()));
        }
        if record.role == Role::Responder && slot.init_key.is_none() && slot.is_half_open() {
            let key = (record.path.remote, record.remote_spi);
            slot.init_key = Some(key);
            self.inits.insert(key, id);
        }
        self.slots.insert(id, Box::new(slot));
        self.log_keys(id);
        self.reschedule(id);
    }

    /// Forgets an SA.
    fn remove(&mut self, id: SaId) {
        self.timers.set(id, None);
        self.dirty.remove(&id);
        self.spis.gone(id);
        self.shared.plane.disclaim(id.0);
        if let Some(mut slot) = self.slots.remove(&id) {
            slot.tell(None);
            if let Some(key) = slot.init_key
                && self.inits.get(&key) == Some(&id)
            {
                self.inits.remove(&key);
            }
        }
    }
}
