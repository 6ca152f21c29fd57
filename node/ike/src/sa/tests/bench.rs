//! Two ends and the wire between them.

use crate::{
    config::{
        ChildConfig, Childless, Connection, EnableTcp, FRAGMENT_SIZE, Fragmentation, HeaderCopy,
        HwOffload, IkeVolume, Marks, Mode, Policy, SharedSecret, StartAction, Unique, Volume,
    },
    env::{Entropy, UnixMillis},
    identity::{IdPattern, Identity},
    record::{Child, GatewayId, Path, Phase, Record, SaId, TcpEnd, Transport},
    sa::{
        Change, Command, CookieSecrets, Effect, Env, Event, IkeSa, InitAnswer, Input, IvCounter,
        Question, SpiSource, answer_init, initiate,
    },
    secret::Secret,
    wire::{ExchangeType, Header, Message},
};
use rcgen::{KeyPair, SigningKey};
use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

pub(super) struct TestRng(pub(super) u64);

impl Entropy for TestRng {
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

/// One end: what a member is to its SAs.
pub(super) struct End {
    pub(super) address: SocketAddr,
    pub(super) policy: Policy,
    pub(super) sas: BTreeMap<SaId, IkeSa>,
    pub(super) committed: BTreeMap<SaId, Record>,
    /// Whether harmless exchanges are replicated in time.
    pub(super) lazy: bool,
    /// Outer addresses that it has besides `address`.
    pub(super) addresses: Vec<IpAddr>,
    /// The source that others see instead of ours: a NAT.
    pub(super) nat: Option<SocketAddr>,
    /// From where to where each message was sent.
    paths: BTreeMap<Vec<u8>, (SocketAddr, SocketAddr, Transport)>,
    /// The data plane: Child SAs by our SPI.
    pub(super) plane: BTreeMap<u32, Child>,
    /// Their outer addresses.
    pub(super) plane_paths: BTreeMap<u32, Path>,
    /// How long Child SAs that were removed go on receiving.
    pub(super) graces: BTreeMap<u32, Duration>,
    /// It was asked for other ways to the peer.
    pub(super) ways_wanted: u32,
    pub(super) events: Vec<Event>,
    rng: TestRng,
    epoch: u32,
    ivs: IvCounter,
    /// It is under attack, or thinks so.
    pub(super) demands_cookies: bool,
    /// Messages that this end sends are lost, because it is not there.
    pub(super) dead: bool,
    /// Its private keys, by their names.
    pub(super) keys: BTreeMap<String, KeyPair>,
    /// Whether questions about certificates and signatures are answered at once; otherwise they wait here.
    pub(super) answers: bool,
    pub(super) questions: Vec<(SaId, Question)>,
}

impl End {
    fn new(address: &str, policy: Policy, seed: u64) -> Self {
        Self {
            address: address.parse().unwrap(),
            policy,
            sas: BTreeMap::new(),
            committed: BTreeMap::new(),
            lazy: true,
            addresses: Vec::new(),
            nat: None,
            paths: BTreeMap::new(),
            plane: BTreeMap::new(),
            plane_paths: BTreeMap::new(),
            graces: BTreeMap::new(),
            ways_wanted: 0,
            events: Vec::new(),
            rng: TestRng(seed),
            epoch: 1,
            ivs: IvCounter::new(1),
            demands_cookies: false,
            dead: false,
            keys: BTreeMap::new(),
            answers: true,
            questions: Vec::new(),
        }
    }

    /// The one established SA that is not replaced.
    pub(super) fn established(&self) -> &Record {
        let mut found = self
            .sas
            .values()
            .map(IkeSa::record)
            .filter(|r| matches!(&r.phase, Phase::Established(e) if e.replaced_by.is_none()));
        let first = found.next().expect("no established SA");
        assert!(found.next().is_none(), "two established SAs");
        first
    }

    pub(super) fn children(&self) -> &[Child] {
        self.established().children()
    }

    /// Another process goes on from what is committed.
    pub(super) fn take_over(&mut self, now: UnixMillis) {
        self.epoch += 1;
        self.ivs = IvCounter::new(self.epoch);
        self.plane.clear();
        self.sas.clear();
        for record in self.committed.values() {
            for child in record.children() {
                self.plane.insert(child.spi_in, child.clone());
                self.plane_paths
                    .insert(child.spi_in, record.children_path());
            }
            self.sas
                .insert(record.id, IkeSa::resume(record.clone(), now));
        }
        self.dead = false;
    }
}

/// A message under way.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) to_b: bool,
    pub(super) bytes: Vec<u8>,
}

impl Packet {
    pub(super) fn exchange(&self) -> ExchangeType {
        Header::parse(&self.bytes).unwrap().exchange
    }
    pub(super) fn message_id(&self) -> u32 {
        Header::parse(&self.bytes).unwrap().message_id
    }
    pub(super) fn is_response(&self) -> bool {
        Header::parse(&self.bytes).unwrap().is_response
    }
}

/// Both ends and the wire.
pub(super) struct Pair {
    pub(super) a: End,
    pub(super) b: End,
    pub(super) now: UnixMillis,
    pub(super) wire: VecDeque<Packet>,
    /// Everything that was ever sealed: key, IV and bytes.
    sealed: BTreeMap<(u64, u64, bool, Vec<u8>), Vec<u8>>,
    pub(super) sent: Vec<Packet>,
    /// UDP does not get through.
    pub(super) no_udp: bool,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(|_| {}, |_| {})
    }

    /// Two ends whose policies were changed.
    pub(super) fn with(a: impl FnOnce(&mut Connection), b: impl FnOnce(&mut Connection)) -> Self {
        let (mut at_a, mut at_b) = (policy("a.test", "b.test", 1), policy("b.test", "a.test", 2));
        a(&mut at_a.connections[0]);
        b(&mut at_b.connections[0]);
        Self {
            a: End::new("192.0.2.1:500", at_a, 0x1234_5678_9abc_def1),
            b: End::new("192.0.2.2:500", at_b, 0x0fed_cba9_8765_4321),
            now: UnixMillis(1_000_000),
            wire: VecDeque::new(),
            sealed: BTreeMap::new(),
            sent: Vec::new(),
            no_udp: false,
        }
    }

    pub(super) fn end(&mut self, b: bool) -> &mut End {
        if b { &mut self.b } else { &mut self.a }
    }

    /// `a` initiates, and everything is delivered.
    pub(super) fn connect(&mut self) {
        self.start();
        self.settle();
        assert_eq!(self.a.children().len(), 1, "a: {:?}", self.a.events);
        assert_eq!(self.b.children().len(), 1, "b: {:?}", self.b.events);
        self.check_agreement();
    }

    /// `a` initiates.
    pub(super) fn start(&mut self) {
        self.start_at("192.0.2.1".parse().unwrap());
    }

    /// `a` initiates from this address.
    pub(super) fn start_from(&mut self, local: &str) {
        self.start_at(local.parse().unwrap());
    }

    fn start_at(&mut self, local: IpAddr) {
        let pairs = [(local, self.b.address.ip())];
        self.start_with(&pairs);
    }

    /// `a` initiates, and tries these pairs of addresses.
    pub(super) fn start_with(&mut self, pairs: &[(IpAddr, IpAddr)]) {
        let now = self.now;
        let record = self
            .a
            .with_env(now, |env| {
                initiate("c", "net", pairs, 500, GatewayId(0), true, env)
            })
            .unwrap();
        self.a.committed.insert(record.id, record.clone());
        let datagrams = record.outbound.pending[0].datagrams.clone();
        let path = record.path;
        self.a.sas.insert(record.id, IkeSa::created(record, now));
        for datagram in datagrams {
            if path.transport.is_tcp() {
                let way = (path.local, path.remote, path.transport);
                self.a.paths.insert(datagram.clone(), way);
            }
            self.transmit(false, datagram);
        }
    }

    pub(super) fn transmit(&mut self, from_b: bool, bytes: Vec<u8>) {
        if self.end(from_b).dead {
            return;
        }
        let message = Message::parse(&bytes).expect("we send what parses");
        if let Some(p) = message.protected {
            let h = message.header;
            let key = (
                h.initiator_spi,
                h.responder_spi,
                h.from_initiator,
                p.body[..8].to_vec(),
            );
            let before = self.sealed.insert(key, bytes.clone());
            assert!(before.is_none_or(|b| b == bytes), "an IV was used twice");
        }
        let packet = Packet {
            to_b: !from_b,
            bytes,
        };
        self.sent.push(packet.clone());
        self.wire.push_back(packet);
    }

    /// Delivers one message and lets the receiver act on it.
    pub(super) fn deliver(&mut self, packet: &Packet) {
        let now = self.now;
        let sender = self.end(!packet.to_b);
        let (mut from, to, transport) = match sender.paths.get(&packet.bytes) {
            Some(path) => *path,
            None => (
                sender.address,
                self.end(packet.to_b).address,
                Transport::Udp,
            ),
        };
        if transport == Transport::Udp && self.no_udp {
            return;
        }
        let transport = other_end(transport);
        from = self.end(!packet.to_b).nat.unwrap_or(from);
        let end = self.end(packet.to_b);
        let to = match end.nat {
            Some(nat) if nat == to => end.address,
            Some(_) => return, // no such mapping
            None => to,
        };
        let here = to.ip() == end.address.ip() || end.addresses.contains(&to.ip());
        if end.dead || !here {
            return;
        }
        let h = Header::parse(&packet.bytes).unwrap();
        let spi = if h.from_initiator {
            h.responder_spi
        } else {
            h.initiator_spi
        };
        let out = if spi == 0 {
            let out = end.answer_init(&packet.bytes, (to, from, transport), now);
            for bytes in &out {
                end.paths.insert(bytes.clone(), (to, from, transport));
            }
            out
        } else {
            let input = Input::Datagram {
                bytes: &packet.bytes,
                local: to,
                remote: from,
                transport,
            };
            end.step(SaId(spi), input, now)
        };
        for bytes in out {
            self.transmit(packet.to_b, bytes);
        }
    }

    /// Delivers everything, and what comes of it.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(packet) = self.wire.pop_front() else {
                return;
            };
            self.deliver(&packet);
        }
        panic!("the two ends never stop talking");
    }

    /// Delivers everything that `pass` lets through; the rest is lost.
    pub(super) fn settle_if(&mut self, mut pass: impl FnMut(&Packet) -> bool) {
        for _ in 0..1000 {
            let Some(packet) = self.wire.pop_front() else {
                return;
            };
            if pass(&packet) {
                self.deliver(&packet);
            }
        }
        panic!("the two ends never stop talking");
    }

    /// An operator's command at one end, on its established SA; nothing is delivered.
    pub(super) fn command(&mut self, b: bool, command: Command) {
        let now = self.now;
        let end = self.end(b);
        let id = end.established().id;
        for bytes in end.step(id, Input::Command(command), now) {
            self.transmit(b, bytes);
        }
    }

    /// An input to one end's established SA; nothing is delivered.
    pub(super) fn input(&mut self, b: bool, input: Input<'_>) {
        let now = self.now;
        let end = self.end(b);
        let id = end.established().id;
        for bytes in end.step(id, input, now) {
            self.transmit(b, bytes);
        }
    }

    /// Wakes both ends if they want to be woken by then; nothing is delivered.
    pub(super) fn wake(&mut self, until: UnixMillis) {
        for b in [false, true] {
            while let Some((at, id)) = self.end(b).next_timeout().filter(|(at, _)| *at <= until) {
                let now = self.now.max(at);
                for bytes in self.end(b).step(id, Input::Timeout, now) {
                    self.transmit(b, bytes);
                }
            }
        }
    }

    /// How many messages of `a` went to an address.
    pub(super) fn sent_to(&self, address: IpAddr) -> usize {
        let to = |p: &&Packet| {
            let path = self.a.paths.get(&p.bytes);
            path.is_some_and(|(_, remote, _)| remote.ip() == address)
        };
        self.sent.iter().filter(|p| p.to_b).filter(to).count()
    }

    /// Lets time pass, waking both ends when they want to be woken, delivering everything at once.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..10_000 {
            let next = [false, true]
                .into_iter()
                .filter_map(|b| self.end(b).next_timeout().map(|(at, id)| (at, b, id)))
                .min();
            let Some((at, b, id)) = next.filter(|(at, ..)| *at <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(at);
            let now = self.now;
            for bytes in self.end(b).step(id, Input::Timeout, now) {
                self.transmit(b, bytes);
            }
            self.settle();
        }
        panic!("the two ends are woken for ever");
    }

    /// Both ends have the same Child SAs with the same keys, on the same IKE SA.
    pub(super) fn check_agreement(&self) {
        let (a, b) = (self.a.established(), self.b.established());
        assert_eq!((a.id.0, a.remote_spi), (b.remote_spi, b.id.0));
        let mut ours: Vec<_> = a
            .children()
            .iter()
            .map(|c| {
                (
                    c.spi_in,
                    c.spi_out,
                    &c.key_in,
                    &c.key_out,
                    &c.local_ts,
                    &c.remote_ts,
                )
            })
            .collect();
        let mut theirs: Vec<_> = b
            .children()
            .iter()
            .map(|c| {
                (
                    c.spi_out,
                    c.spi_in,
                    &c.key_out,
                    &c.key_in,
                    &c.remote_ts,
                    &c.local_ts,
                )
            })
            .collect();
        ours.sort_by_key(|c| c.0);
        theirs.sort_by_key(|c| c.0);
        assert_eq!(ours, theirs);
        for end in [&self.a, &self.b] {
            let spis: Vec<_> = end.plane.keys().copied().collect();
            let mut recorded: Vec<_> = end.children().iter().map(|c| c.spi_in).collect();
            recorded.sort_unstable();
            assert_eq!(spis, recorded, "data plane and record differ");
        }
    }
}

impl End {
    fn with_env<R>(&mut self, now: UnixMillis, f: impl FnOnce(&mut Env<'_>) -> R) -> R {
        let mut env = Env {
            now,
            ivs: &self.ivs,
            policy: &self.policy,
            rng: &mut self.rng,
            spis: &mut Spis,
            nat_port: 4500,
            addresses: &self.addresses,
        };
        f(&mut env)
    }

    fn answer_init(
        &mut self,
        bytes: &[u8],
        path: (SocketAddr, SocketAddr, Transport),
        now: UnixMillis,
    ) -> Vec<Vec<u8>> {
        let demand_cookie = self.demands_cookies;
        let cookies = CookieSecrets {
            current: Secret::new(vec![1; 32]),
            previous: Secret::new(vec![2; 32]),
        };
        match self.with_env(now, |env| {
            answer_init(
                bytes,
                path,
                GatewayId(0),
                demand_cookie,
                Duration::from_secs(30),
                &cookies,
                env,
            )
        }) {
            InitAnswer::Stateless { datagram, .. } => vec![datagram],
            InitAnswer::HalfOpen(record) => {
                let response = record.inbound.response(0).cloned().unwrap();
                self.committed.insert(record.id, (*record).clone());
                self.sas.insert(record.id, IkeSa::created(*record, now));
                response
            }
            InitAnswer::Silent(_) => vec![],
        }
    }

    /// One step, committed at once. Returns what is to be sent.
    pub(super) fn step(&mut self, id: SaId, input: Input<'_>, now: UnixMillis) -> Vec<Vec<u8>> {
        let Some(mut sa) = self.sas.remove(&id) else {
            return vec![];
        };
        let step = self.with_env(now, |env| sa.step(input, env));
        match step.change {
            Change::None => {}
            Change::Lazy(record) => {
                sa.adopt(*record);
                if self.lazy {
                    let record = sa.record();
                    let committed = self.committed.get_mut(&id).unwrap();
                    committed.inbound.skip_to(record.inbound.next);
                    committed.outbound.skip_to(record.outbound.accounted());
                    sa.outbound_committed(committed.outbound.accounted());
                    sa.share(&Arc::new(committed.clone()));
                }
            }
            Change::Barrier(records) => {
                let mut records = records.into_iter();
                let own = records.next().unwrap();
                assert_eq!(own.revision, sa.record().revision + 1);
                self.committed.insert(id, own.clone());
                sa.adopt(own);
                for record in records {
                    self.committed.insert(record.id, record.clone());
                    self.sas.insert(record.id, IkeSa::created(record, now));
                }
            }
        }
        self.sas.insert(id, sa);
        self.carry_out(id, step.effects, now)
    }

    /// Answers a question about a certificate, or for a signature.
    pub(super) fn answer(
        &mut self,
        id: SaId,
        question: &Question,
        now: UnixMillis,
    ) -> Vec<Vec<u8>> {
        let input = match question {
            Question::Verify(question) => {
                let answer = question.run(&self.policy, now, None);
                Input::Verified(answer.map(Box::new))
            }
            Question::Sign { key, octets, .. } => {
                let signed = self.keys.get(key).map(|k| k.sign(octets).unwrap());
                Input::Signed(signed)
            }
            Question::Exists(other) => {
                let other = self.committed.get(other);
                Input::Exists(other.is_some_and(|r| !matches!(r.phase, Phase::Closed(_))))
            }
            Question::Addresses { .. } => return vec![],
        };
        self.step(id, input, now)
    }

    fn carry_out(&mut self, id: SaId, effects: Vec<Effect>, now: UnixMillis) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send {
                    datagram,
                    local,
                    remote,
                    transport,
                } => {
                    self.paths
                        .insert(datagram.clone(), (local, remote, transport));
                    out.push(datagram);
                }
                Effect::InstallChild { child, path, .. } => {
                    self.plane_paths.insert(child.spi_in, path);
                    self.plane.insert(child.spi_in, *child);
                }
                Effect::MoveChildren { spis_in, path } => {
                    for spi in spis_in {
                        self.plane_paths.insert(spi, path);
                    }
                }
                Effect::Tell { sa, command } => {
                    out.extend(self.step(sa, Input::Command(command), now));
                }
                Effect::FindWays => self.ways_wanted += 1,
                Effect::RemoveChild { spi_in, grace } => {
                    self.plane.remove(&spi_in);
                    self.graces.insert(spi_in, grace);
                }
                Effect::Report(event) => self.events.push(event),
                Effect::Forget => {
                    self.sas.remove(&id);
                    self.committed.remove(&id);
                }
                Effect::Ask(question) if self.answers => {
                    out.extend(self.answer(id, &question, now))
                }
                Effect::Ask(question) => self.questions.push((id, question)),
                _ => {}
            }
        }
        out
    }

    fn next_timeout(&self) -> Option<(UnixMillis, SaId)> {
        if self.dead {
            return None;
        }
        self.sas
            .iter()
            .filter_map(|(id, sa)| sa.next_timeout(&self.policy).map(|(at, _)| (at, *id)))
            .min()
    }
}

/// What the other end calls it.
pub(super) fn other_end(transport: Transport) -> Transport {
    match transport {
        Transport::Udp => Transport::Udp,
        Transport::Tcp(TcpEnd::Originator) => Transport::Tcp(TcpEnd::Responder),
        Transport::Tcp(TcpEnd::Responder) => Transport::Tcp(TcpEnd::Originator),
    }
}

pub(super) fn policy(local: &str, remote: &str, n: u8) -> Policy {
    let other = 3 - n;
    let ts = |n: u8| vec![format!("10.{n}.0.0/16").parse().unwrap()];
    Policy {
        connections: vec![Connection {
            name: "c".into(),
            local_addrs: vec![format!("192.0.2.{n}/32").parse().unwrap()],
            remote_addrs: vec![format!("192.0.2.{other}/32").parse().unwrap()],
            remote_names: vec![],
            remote_port: 500,
            proposals: vec!["aes256gcm16-prfsha384-x25519-ecp256".parse().unwrap()],
            local_id: Some(local.parse::<Identity>().unwrap()),
            remote_id: IdPattern::Exact(remote.parse().unwrap()),
            auth: crate::config::Authentication::default(),
            encap: false,
            vips: vec![],
            pools: vec![],
            rekey_time: Duration::ZERO,
            reauth_time: Duration::ZERO,
            over_time: Duration::from_secs(60),
            rand_time: Duration::ZERO,
            bytes: IkeVolume::default(),
            packets: IkeVolume::default(),
            dpd_delay: Duration::ZERO,
            message_id_sync: false,
            window_size: 1,
            keyingtries: 0,
            enable_tcp: EnableTcp::No,
            tcp_remote_port: 4500,
            mobike: false,
            return_routability: true,
            childless: Childless::Allow,
            unique: Unique::No,
            fragmentation: Fragmentation::Yes,
            fragment_size: FRAGMENT_SIZE,
            children: vec![ChildConfig {
                name: "net".into(),
                local_ts: ts(n),
                remote_ts: ts(other),
                mode: Mode::Tunnel,
                esp_proposals: vec!["aes256gcm16-x25519".parse().unwrap()],
                rekey_time: Duration::ZERO,
                life_time: Duration::ZERO,
                rand_time: Duration::ZERO,
                bytes: Volume::default(),
                packets: Volume::default(),
                start_action: StartAction::None,
                close_action: StartAction::None,
                dpd_action: StartAction::None,
                replay_window: 1024,
                headers: HeaderCopy::default(),
                marks: Marks::default(),
                hw_offload: HwOffload::No,
                updown: None,
            }],
        }],
        secrets: vec![SharedSecret {
            name: "s".into(),
            ids: vec![],
            secret: Secret::new(b"test".to_vec()),
        }],
        ..Policy::default()
    }
}
