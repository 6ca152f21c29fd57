//! One end: what a member is to its SAs.

use super::{
    checks::{plane_agrees, survives_serialisation},
    plant::Plant,
};
use evergate_ike::{
    config::Policy,
    env::{Entropy, UnixMillis},
    record::{GatewayId, Phase, Record, SaId, Transport},
    sa::{
        Change, CookieSecrets, Effect, Env, IkeSa, InitAnswer, Input, IvCounter, NoAddress,
        Question, SpiSource, Step, answer_init, initiate,
    },
    secret::Secret,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) to_b: bool,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// When the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Before what it wants to commit is committed.
    BeforeCommit,
    /// After that, before it acts on it.
    BeforeEffects,
}

#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Entropy for Random {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = self.0.to_be_bytes()[3];
        }
    }
}

struct Spis;

impl SpiSource for Spis {
    fn ike(&mut self, rng: &mut dyn Entropy) -> SaId {
        SaId(rng.next_u64() | 1)
    }

    fn child(&mut self, rng: &mut dyn Entropy) -> u32 {
        rng.next_u32() | 0x100
    }
}

/// What a step did, for who looks at it.
pub(crate) struct Done {
    pub(crate) changed: bool,
    pub(crate) acted: bool,
    pub(crate) sent: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

/// One end: what a member is to its SAs.
pub(crate) struct End {
    pub(crate) address: SocketAddr,
    pub(crate) policy: &'static Policy,
    pub(crate) sas: BTreeMap<SaId, IkeSa>,
    pub(crate) committed: BTreeMap<SaId, Record>,
    /// Harmless exchanges that are not replicated yet.
    lagging: BTreeMap<SaId, Record>,
    /// The source that others see instead of ours: a NAT.
    pub(crate) nat: Option<SocketAddr>,
    /// Outer addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Child SAs in the data plane, by our SPI.
    pub(crate) plane: BTreeSet<u32>,
    /// The process dies with its next commit.
    pub(crate) crash: Option<Crash>,
    random: Random,
    epoch: u32,
    ivs: IvCounter,
}

impl End {
    pub(crate) fn new(address: &str, others: &[&str], policy: &'static Policy, seed: u64) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        let others = others.iter().map(|a| a.parse().expect("an address"));
        Self {
            address,
            policy,
            sas: BTreeMap::new(),
            committed: BTreeMap::new(),
            lagging: BTreeMap::new(),
            nat: None,
            addresses: std::iter::once(address.ip()).chain(others).collect(),
            plane: BTreeSet::new(),
            crash: None,
            random: Random(seed),
            epoch: 1,
            ivs: IvCounter::new(1),
        }
    }

    /// One like this in an epoch of its own, which has the same SAs.
    pub(crate) fn like(&self, now: UnixMillis) -> Self {
        let mut end = Self {
            address: self.address,
            policy: self.policy,
            sas: BTreeMap::new(),
            committed: self.committed.clone(),
            lagging: BTreeMap::new(),
            nat: self.nat,
            addresses: self.addresses.clone(),
            plane: self.plane.clone(),
            crash: None,
            random: self.random.clone(),
            epoch: self.epoch + 1,
            ivs: IvCounter::new(self.epoch + 1),
        };
        for (id, sa) in &self.sas {
            let record = sa.record().clone();
            end.committed.insert(*id, record.clone());
            end.sas.insert(*id, IkeSa::created(record, now));
        }
        end
    }

    /// Another process goes on from what is committed.
    pub(crate) fn take_over(&mut self, now: UnixMillis) {
        trace!("  {}: taken over", self.address);
        if !Plant::Epoch.is_there() {
            self.epoch += 1;
        }
        self.ivs = IvCounter::new(self.epoch);
        self.crash = None;
        self.lagging.clear();
        self.sas.clear();
        self.plane.clear();
        for (id, record) in &self.committed {
            self.plane
                .extend(record.children().iter().map(|c| c.spi_in));
            let mut record = record.clone();
            if Plant::Forgetful.is_there()
                && let Some(last) = record.inbound.answered.pop()
            {
                record.inbound.next = record.inbound.next.min(last.id);
            }
            let sa = IkeSa::resume(record, now);
            self.sas.insert(*id, sa);
        }
    }

    /// Harmless exchanges are replicated.
    pub(crate) fn replicate(&mut self) {
        for (id, record) in std::mem::take(&mut self.lagging) {
            if let Some(committed) = self.committed.get_mut(&id) {
                committed.inbound.skip_to(record.inbound.next);
                committed.outbound.skip_to(record.outbound.accounted());
            }
            if let Some(sa) = self.sas.get_mut(&id) {
                sa.outbound_committed(record.outbound.accounted());
            }
        }
    }

    fn with_env<R>(&mut self, now: UnixMillis, f: impl FnOnce(&mut Env<'_>) -> R) -> R {
        let mut env = Env {
            now,
            ivs: &self.ivs,
            policy: self.policy,
            rng: &mut self.random,
            spis: &mut Spis,
            nat_port: 4500,
            addresses: &self.addresses,
        };
        f(&mut env)
    }

    /// Starts an IKE SA.
    pub(crate) fn initiate(
        &mut self,
        pairs: &[(IpAddr, IpAddr)],
        now: UnixMillis,
    ) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        let alone = self.sas.is_empty();
        let record = self.with_env(now, |env| {
            initiate("c", "net", pairs, 500, GatewayId(0), alone, env)
        });
        let Ok(record) = record else { return vec![] };
        survives_serialisation(&record);
        self.committed.insert(record.id, record.clone());
        let pending = record.outbound.pending.first().expect("a request");
        let path = record.path;
        let send = |datagram: &Vec<u8>| (path.local, path.remote, datagram.clone());
        let out = pending.datagrams.iter().map(send).collect();
        self.sas.insert(record.id, IkeSa::created(record, now));
        out
    }

    /// Answers what belongs to no SA.
    pub(crate) fn answer_init(
        &mut self,
        bytes: &[u8],
        path: (SocketAddr, SocketAddr),
        demand_cookie: bool,
        now: UnixMillis,
    ) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        let cookies = CookieSecrets {
            current: Secret::new(vec![1; 32]),
            previous: Secret::new(vec![2; 32]),
        };
        let patience = Duration::from_secs(30);
        let answer = self.with_env(now, |env| {
            answer_init(
                bytes,
                (path.0, path.1, Transport::Udp),
                GatewayId(0),
                demand_cookie,
                patience,
                &cookies,
                env,
            )
        });
        let datagrams = match answer {
            InitAnswer::Stateless { datagram, .. } => vec![datagram],
            InitAnswer::Silent(_) => vec![],
            InitAnswer::HalfOpen(record) => {
                survives_serialisation(&record);
                let response = record.inbound.response(0).cloned().expect("a response");
                self.committed.insert(record.id, (*record).clone());
                self.sas.insert(record.id, IkeSa::created(*record, now));
                response
            }
        };
        let send = |datagram| (path.0, path.1, datagram);
        datagrams.into_iter().map(send).collect()
    }

    /// One step, committed at once, unless the process dies first.
    pub(crate) fn step(&mut self, id: SaId, input: Input<'_>, now: UnixMillis) -> Done {
        let mut done = Done {
            changed: false,
            acted: false,
            sent: vec![],
        };
        let Some(mut sa) = self.sas.remove(&id) else {
            return done;
        };
        let Step { change, effects } = self.with_env(now, |env| sa.step(input, env));
        let crash = match change {
            Change::None => None,
            Change::Lazy(record) => {
                done.changed = true;
                survives_serialisation(&record);
                self.lagging.insert(id, (*record).clone());
                sa.adopt(*record);
                None
            }
            Change::Barrier(records) => {
                done.changed = true;
                self.barrier(sa.record().revision, records, &mut sa, now)
            }
        };
        self.sas.insert(id, sa);
        if let Some(crash) = crash {
            if Plant::Early.is_there() && crash == Crash::BeforeCommit {
                let sent = effects
                    .into_iter()
                    .filter(|e| matches!(e, Effect::Send { .. }));
                self.carry_out(id, sent.collect(), now, &mut done);
            }
            self.take_over(now);
            return done;
        }
        self.carry_out(id, effects, now, &mut done);
        done
    }

    fn barrier(
        &mut self,
        revision: u64,
        records: Vec<Record>,
        sa: &mut IkeSa,
        now: UnixMillis,
    ) -> Option<Crash> {
        let crash = self.crash.take();
        if crash == Some(Crash::BeforeCommit) {
            return crash;
        }
        records.iter().for_each(survives_serialisation);
        let id = sa.record().id;
        let mut records = records.into_iter();
        let own = records.next().expect("its own record");
        assert_eq!(
            (own.id, own.revision),
            (id, revision + 1),
            "the next revision"
        );
        self.lagging.remove(&id);
        self.committed.insert(id, own.clone());
        sa.adopt(own);
        for record in records {
            let before = self.committed.insert(record.id, record.clone());
            assert!(before.is_none(), "a new SA is new");
            self.sas.insert(record.id, IkeSa::created(record, now));
        }
        crash
    }

    fn carry_out(&mut self, id: SaId, effects: Vec<Effect>, now: UnixMillis, done: &mut Done) {
        for effect in effects {
            if let Effect::Report(event) = &effect {
                trace!("  {} {id}: {event:?}", self.address);
            }
            done.acted |= !matches!(effect, Effect::Report(_));
            match effect {
                Effect::Send {
                    datagram,
                    local,
                    remote,
                    ..
                } => {
                    done.sent.push((local, remote, datagram));
                }
                Effect::InstallChild { child, .. } => {
                    self.plane.insert(child.spi_in);
                }
                Effect::RemoveChild { .. } if Plant::Plane.is_there() => {}
                Effect::RemoveChild { spi_in, .. } => {
                    self.plane.remove(&spi_in);
                }
                Effect::Forget => {
                    self.sas.remove(&id);
                    self.committed.remove(&id);
                    self.lagging.remove(&id);
                }
                Effect::Ask(question) => {
                    let input = match question {
                        Question::Exists(other) => Input::Exists(self.is_open(other)),
                        other => answer(&other),
                    };
                    let more = self.step(id, input, now);
                    done.changed |= more.changed;
                    done.sent.extend(more.sent);
                }
                Effect::Tell { sa, command } => {
                    let more = self.step(sa, Input::Command(command), now);
                    done.changed |= more.changed;
                    done.sent.extend(more.sent);
                }
                _ => {}
            }
        }
    }

    /// Whether there is an IKE SA, and it is not closed.
    fn is_open(&self, id: SaId) -> bool {
        let record = self.committed.get(&id);
        record.is_some_and(|r| !matches!(r.phase, Phase::Closed(_)))
    }

    pub(crate) fn next_timeout(&self) -> Option<(UnixMillis, SaId)> {
        let next =
            |(id, sa): (&SaId, &IkeSa)| sa.next_timeout(self.policy).map(|(at, _)| (at, *id));
        self.sas.iter().filter_map(next).min()
    }

    /// The SA that commands are for: an established one that nothing has replaced, or any.
    pub(crate) fn chosen(&self) -> Option<SaId> {
        let mut all = self.sas.values().map(IkeSa::record);
        let established =
            |r: &&Record| matches!(&r.phase, Phase::Established(e) if e.replaced_by.is_none());
        all.clone()
            .find(established)
            .or_else(|| all.next())
            .map(|r| r.id)
    }

    /// What must hold at any time.
    pub(crate) fn check(&self) {
        plane_agrees(&self.plane, self.sas.values().map(IkeSa::record));
    }
}

/// What the outside says to the questions of an SA.
fn answer(question: &Question) -> Input<'static> {
    match question {
        Question::Verify(_) => {
            Input::Verified(Err(evergate_ike::certificate::CertificateError::Missing))
        }
        Question::Sign { .. } => Input::Signed(None),
        Question::Exists(_) => Input::Exists(false),
        Question::Addresses { v4, v6, .. } => {
            let v4 = v4.map(|_| IpAddr::from([10, 99, 0, 1]));
            let v6 = v6.map(|_| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]));
            let all: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
            Input::Addresses(if all.is_empty() {
                Err(NoAddress)
            } else {
                Ok(all)
            })
        }
    }
}
