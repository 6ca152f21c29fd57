//! Two ends, and the wire between them.

use super::{
    checks::{Log, ends_agree},
    end::{End, Packet},
};
use evergate_ike::{
    config::Policy,
    crypto::{Associated, Key},
    env::UnixMillis,
    record::{Phase, Record, Role, SaId, Transport},
    sa::{Command, IkeSa, Input},
    wire::{ExchangeType, HEADER_LEN, Header, PayloadType, emit},
};
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

/// More messages than two ends exchange about anything.
const MAX_MESSAGES: usize = 2000;
/// How many may be on their way.
const MAX_WIRE: usize = 64;
/// Wakings in a row that change nothing.
const MAX_WAKINGS: usize = 20_000;

type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

/// Two ends, and the wire between them.
pub(crate) struct Pair {
    pub(crate) a: End,
    pub(crate) b: End,
    pub(crate) now: UnixMillis,
    pub(crate) wire: VecDeque<Packet>,
    log: Log,
    /// Somebody with the keys, or who could change the first messages, did what no end does.
    pub(crate) foul: bool,
    /// Messages that somebody with the keys said.
    said: u64,
    /// What was on the wire, for who collects it.
    pub(crate) heard: Vec<Vec<u8>>,
}

impl Pair {
    pub(crate) fn new(policies: &'static [Policy; 2]) -> Self {
        Self {
            a: End::new(
                "192.0.2.1:500",
                &["192.0.2.3"],
                &policies[0],
                0x1234_5678_9abc_def1,
            ),
            b: End::new(
                "192.0.2.2:500",
                &["192.0.2.4"],
                &policies[1],
                0x0fed_cba9_8765_4321,
            ),
            now: UnixMillis(1_000_000),
            wire: VecDeque::new(),
            log: Log::default(),
            foul: false,
            said: 0,
            heard: Vec::new(),
        }
    }

    /// Two ends that have nothing to do with each other.
    pub(crate) fn stranger() -> Self {
        Self::new(&super::policies()[0])
    }

    /// A pair with the same SAs as this one, in which nothing is on its way.
    pub(crate) fn like(&self) -> Self {
        Self {
            a: self.a.like(self.now),
            b: self.b.like(self.now),
            now: self.now,
            wire: VecDeque::new(),
            log: Log::default(),
            foul: false,
            said: 0,
            heard: Vec::new(),
        }
    }

    pub(crate) fn end(&mut self, b: bool) -> &mut End {
        if b { &mut self.b } else { &mut self.a }
    }

    /// A first message for `b`, from anybody.
    pub(crate) fn first_message(&mut self, bytes: &[u8], demand_cookie: bool) {
        let path = (self.b.address, self.a.address);
        let now = self.now;
        let out = self.b.answer_init(bytes, path, demand_cookie, now);
        self.send(true, out);
        self.wire.clear();
    }

    pub(crate) fn initiate(&mut self, b: bool, first: u8) {
        let now = self.now;
        let (ours, theirs) = if b {
            (&self.b, &self.a)
        } else {
            (&self.a, &self.b)
        };
        let mut pairs: Vec<_> = (ours.addresses.iter())
            .flat_map(|x| theirs.addresses.iter().map(|y| (*x, *y)))
            .collect();
        let len = pairs.len();
        pairs.rotate_left(usize::from(first) % len);
        let out = self.end(b).initiate(&pairs, now);
        self.send(b, out);
    }

    fn send(&mut self, from_b: bool, out: Vec<Datagram>) {
        for (from, to, bytes) in out {
            self.log.sent(!from_b, &bytes);
            trace!("{} sends {}", self.now.0, summary(&bytes));
            self.heard.push(bytes.clone());
            let from = self.end(from_b).nat.unwrap_or(from);
            let packet = Packet {
                to_b: !from_b,
                from,
                to,
                bytes,
            };
            if self.wire.len() < MAX_WIRE {
                self.wire.push_back(packet);
            }
        }
    }

    /// Delivers a message, which may be forged.
    pub(crate) fn deliver(&mut self, packet: &Packet) {
        let Packet {
            to_b,
            from,
            mut to,
            ref bytes,
        } = *packet;
        let now = self.now;
        let end = self.end(to_b);
        match end.nat {
            Some(nat) if nat == to => to = end.address,
            Some(_) => return, // no such mapping
            None => {}
        }
        if !end.addresses.contains(&to.ip()) {
            return;
        }
        let Ok(h) = Header::parse(bytes) else { return };
        trace!("{} arrives {}", now.0, summary(bytes));
        let spi = if h.from_initiator {
            h.responder_spi
        } else {
            h.initiator_spi
        };
        if spi == 0 {
            let genuine = self.log.is_genuine(to_b, bytes);
            let out = self.end(to_b).answer_init(bytes, (to, from), false, now);
            self.foul |= !genuine && !out.is_empty();
            return self.send(to_b, out);
        }
        // What is due is not the message's doing.
        self.wake(to_b, now);
        // Whoever can change the first messages can have an end talk to itself, with the same keys in both roles.
        let genuine =
            self.log.is_genuine(to_b, bytes) || (self.foul && self.log.is_genuine(!to_b, bytes));
        let id = SaId(spi);
        let end = self.end(to_b);
        let policy = end.policy;
        let Some(sa) = end.sas.get(&id) else {
            return;
        };
        let unprotected = matches!(sa.record().phase, Phase::InitSent(_));
        let guarded = matches!(sa.record().phase, Phase::Established(_) | Phase::Closed(_));
        let before = (!genuine).then(|| sa.next_timeout(policy)).flatten();
        let input = Input::Datagram {
            bytes,
            local: to,
            remote: from,
            transport: Transport::Udp,
        };
        let done = end.step(id, input, now);
        if !genuine && unprotected {
            // Nothing protects the response to the first message.
            self.foul = true;
        } else if !genuine {
            assert!(
                !done.changed,
                "an unauthenticated message changed the state"
            );
            let after = end.sas.get(&id).and_then(|sa| sa.next_timeout(policy));
            assert_eq!(before, after, "an unauthenticated message changed a timer");
            if guarded {
                assert!(!done.acted, "an unauthenticated message had an effect");
            }
        }
        self.send(to_b, done.sent);
    }

    /// Delivers everything, and what comes of it.
    pub(crate) fn settle(&mut self) {
        for _ in 0..MAX_MESSAGES {
            let Some(packet) = self.wire.pop_front() else {
                return;
            };
            self.deliver(&packet);
        }
        panic!("the two ends never stop talking");
    }

    /// An input to the SA that commands are for.
    pub(crate) fn input(&mut self, b: bool, input: Input<'_>) {
        let now = self.now;
        let end = self.end(b);
        if let Some(id) = end.chosen() {
            let done = end.step(id, input, now);
            self.send(b, done.sent);
        }
    }

    pub(crate) fn command(&mut self, b: bool, command: Command) {
        self.input(b, Input::Command(command));
    }

    /// Wakes an end until nothing is due any more.
    pub(crate) fn wake(&mut self, b: bool, until: UnixMillis) {
        for _ in 0..MAX_WAKINGS {
            let Some((at, id)) = self.end(b).next_timeout().filter(|(at, _)| *at <= until) else {
                return;
            };
            let now = self.now.max(at);
            let done = self.end(b).step(id, Input::Timeout, now);
            self.send(b, done.sent);
        }
        panic!("an end is woken for ever");
    }

    /// Lets time pass; with `deliver` every message arrives at once, otherwise all that is sent is lost or waits.
    pub(crate) fn pass(&mut self, time: Duration, deliver: bool) {
        let until = self.now + time;
        let mut replicated = self.now;
        for _ in 0..MAX_WAKINGS {
            let next =
                [false, true].map(|b| self.end(b).next_timeout().map(|(at, id)| (at, b, id)));
            let next = next
                .into_iter()
                .flatten()
                .min()
                .filter(|(at, ..)| *at <= until);
            let at = next.map_or(until, |(at, ..)| at.max(self.now));
            // The next batch has what was harmless since the last one.
            if at.since(replicated) >= Duration::from_millis(20) {
                self.a.replicate();
                self.b.replicate();
                replicated = at;
            }
            self.now = at;
            let Some((_, b, id)) = next else { return };
            let done = self.end(b).step(id, Input::Timeout, at);
            self.send(b, done.sent);
            if deliver {
                self.settle();
            }
        }
        panic!("the ends are woken for ever");
    }

    /// Somebody with the keys of the other end says something to this end.
    pub(crate) fn say(
        &mut self,
        to_b: bool,
        exchange: u8,
        id: u8,
        first: PayloadType,
        content: &[u8],
    ) {
        let Some(sa) = self.end(to_b).chosen() else {
            return;
        };
        let record = self.end(to_b).sas[&sa].record().clone();
        self.said += 1;
        // Of an epoch that no end has.
        let iv = (0x00ff_0000 << 40) | self.said;
        let Some(bytes) = seal(&record, exchange, id, iv, first, content) else {
            return;
        };
        self.foul = true;
        self.log.vouch(to_b, &bytes);
        let path = record.path;
        let to = self.end(to_b).nat.unwrap_or(path.local);
        self.deliver(&Packet {
            to_b,
            from: path.remote,
            to,
            bytes,
        });
    }

    /// What must hold at any time.
    pub(crate) fn check(&self) {
        self.a.check();
        self.b.check();
    }

    /// What must hold once the network works and all has settled.
    pub(crate) fn check_agreement(&self) {
        let records = |end: &'_ End| -> Vec<Record> {
            end.sas.values().map(|sa| sa.record().clone()).collect()
        };
        let (a, b) = (records(&self.a), records(&self.b));
        ends_agree(a.iter(), b.iter());
    }

    /// The SA of `b` that commands are for.
    pub(crate) fn sa_of(&self, b: bool) -> Option<&IkeSa> {
        let end = if b { &self.b } else { &self.a };
        end.chosen().map(|id| &end.sas[&id])
    }
}

/// A message in a line.
fn summary(bytes: &[u8]) -> String {
    let Ok(h) = Header::parse(bytes) else {
        return "something".to_owned();
    };
    let who = if h.from_initiator {
        "initiator"
    } else {
        "responder"
    };
    let what = if h.is_response { "response" } else { "request" };
    format!(
        "{:x}/{:x} {what} {} of the {who}, exchange {}, {} bytes",
        h.initiator_spi,
        h.responder_spi,
        h.message_id,
        h.exchange.0,
        bytes.len()
    )
}

/// Exchange types that are tried: those that there are, and others.
fn exchange_of(choice: u8) -> ExchangeType {
    match choice % 8 {
        0 => ExchangeType::IKE_SA_INIT,
        1 => ExchangeType::IKE_AUTH,
        2 => ExchangeType::CREATE_CHILD_SA,
        3 => ExchangeType::INFORMATIONAL,
        4 => ExchangeType::IKE_INTERMEDIATE,
        5 => ExchangeType::IKE_FOLLOWUP_KE,
        _ => ExchangeType(choice),
    }
}

/// A message to the SA of this record, from its peer. The lower half of `id` says how far the Message ID is from the one that is expected, the highest
/// bit that it is a response.
fn seal(
    record: &Record,
    exchange: u8,
    id: u8,
    iv: u64,
    first: PayloadType,
    content: &[u8],
) -> Option<Vec<u8>> {
    let (suite, keys) = match &record.phase {
        Phase::InitSent(_) => return None,
        Phase::HalfOpen(h) => (h.negotiated.suite, &h.negotiated.keys),
        Phase::Intermediate(i) => (i.negotiated.suite, &i.negotiated.keys),
        Phase::AuthSent(s) => (s.negotiated.suite, &s.negotiated.keys),
        Phase::Established(e) => (e.suite, &e.keys),
        Phase::Closed(c) => c.protection.as_ref().map(|(suite, keys)| (*suite, keys))?,
    };
    let from_initiator = record.role == Role::Responder;
    let (material, initiator_spi, responder_spi) = if from_initiator {
        (&keys.ei, record.remote_spi, record.id.0)
    } else {
        (&keys.er, record.id.0, record.remote_spi)
    };
    let is_response = id & 0x80 != 0;
    let expected = if is_response {
        let pending = record.outbound.pending.first();
        pending.map_or(record.outbound.next, |p| p.id)
    } else {
        record.inbound.next
    };
    let distance = [0, 1, u32::MAX, 2, 16, 17, 0x7fff_ffff, u32::MAX - 1][usize::from(id % 8)];
    let header = Header {
        initiator_spi,
        responder_spi,
        minor_version: 0,
        exchange: exchange_of(exchange),
        from_initiator,
        is_response,
        higher_version: false,
        message_id: expected.wrapping_add(distance),
    };
    let cipher = suite.cipher();
    let key = Key::new(cipher, material.expose()).ok()?;
    // The setups have AEADs without blocks: no padding, and its length.
    let mut text = [content, &[0]].concat();
    let length = 4 + cipher.iv_len() + text.len() + cipher.icv_len();
    let mut head = emit(&header, &[]);
    head[16] = PayloadType::SK.0;
    head[24..28].copy_from_slice(&u32::try_from(HEADER_LEN + length).ok()?.to_be_bytes());
    head.extend([first.0, 0]);
    head.extend(u16::try_from(length).ok()?.to_be_bytes());
    let (mut explicit, mut icv) = (vec![0; cipher.iv_len()], vec![0; cipher.icv_len()]);
    let associated = Associated {
        aead: &head,
        before: &head,
        after: &[],
    };
    key.seal(iv, &associated, &mut explicit, &mut text, &mut icv);
    Some([head, explicit, text, icv].concat())
}
