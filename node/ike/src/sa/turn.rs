//! One step in the making: the next version of the record, and what goes with it.

use super::{Change, Effect, Env, Event, Failure, IvCounter, Step, session::Session};
use crate::{
    crypto::{self, IkeKeys, IkeSuite},
    env::UnixMillis,
    record::{
        CloseReason, Closed, Established, PendingRequest, Phase, Record, Role, Task, Transport,
    },
    secret::Secret,
    wire::{ExchangeType, Header, Notify, NotifyType, Payload, Protocol},
};
use std::{net::SocketAddr, time::Duration};

/// How long a tombstone answers retransmissions: longer than any peer goes on repeating one request.
const TOMBSTONE: Duration = Duration::from_secs(180);

/// How long packets of a Child SA that was deleted are still accepted: what was under way when the peer agreed.
pub(super) const INBOUND_GRACE: Duration = Duration::from_secs(5);

/// What must happen before the effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Durability {
    Nothing,
    Lazy,
    Barrier,
}

/// One step in the making. Handlers change `record`, a copy; nothing counts until it is committed.
pub(super) struct Turn<'t, 'e> {
    pub(super) session: &'t mut Session,
    pub(super) env: &'t mut Env<'e>,
    pub(super) record: Record,
    pub(super) effects: Vec<Effect>,
    /// Records of other SAs that this step creates.
    pub(super) created: Vec<Record>,
    /// A request could not be made because the window is full.
    pub(super) crowded: bool,
    /// Where the request that is being answered arrived and came from: there its response goes (RFC 7296 §2.11).
    pub(super) arrived: Option<(SocketAddr, SocketAddr)>,
    /// By what the message came that is worked on, or, if it is something else, what the SA uses.
    pub(super) transport: Transport,
    durability: Durability,
    revision: u64,
}

impl<'t, 'e> Turn<'t, 'e> {
    pub(super) fn new(session: &'t mut Session, record: &Record, env: &'t mut Env<'e>) -> Self {
        Self {
            session,
            env,
            record: record.clone(),
            effects: Vec::new(),
            created: Vec::new(),
            crowded: false,
            arrived: None,
            transport: record.path.transport,
            durability: Durability::Nothing,
            revision: record.revision,
        }
    }

    pub(super) fn finish(mut self) -> Step {
        let change = match self.durability {
            Durability::Nothing => Change::None,
            Durability::Lazy => Change::Lazy(Box::new(self.record)),
            Durability::Barrier => {
                self.record.revision = self.revision + 1;
                let mut records = vec![self.record];
                records.append(&mut self.created);
                Change::Barrier(records)
            }
        };
        Step {
            change,
            effects: self.effects,
        }
    }

    /// The change must be committed before the effects.
    pub(super) fn commit(&mut self) {
        self.durability = Durability::Barrier;
    }

    /// The change may be replicated later.
    pub(super) fn commit_lazily(&mut self) {
        self.durability = self.durability.max(Durability::Lazy);
    }

    pub(super) fn now(&self) -> UnixMillis {
        self.env.now
    }

    pub(super) fn report(&mut self, event: Event) {
        self.effects.push(Effect::Report(event));
    }

    pub(super) fn fail(&mut self, what: Failure) {
        self.report(Event::Failed { what });
    }

    pub(super) fn ignore(&mut self, what: Failure) {
        self.report(Event::Ignored { what });
    }

    /// The established SA. Only handlers that were chosen because the SA is established may ask.
    pub(super) fn established(&mut self) -> &mut Established {
        match &mut self.record.phase {
            Phase::Established(e) => e,
            other => unreachable!(
                "asked for an established SA in {:?}",
                std::mem::discriminant(other)
            ),
        }
    }

    /// Suite and keys, once there are any.
    pub(super) fn protection(&self) -> Option<(IkeSuite, &IkeKeys)> {
        match &self.record.phase {
            Phase::InitSent(_) => None,
            Phase::HalfOpen(h) => Some((h.negotiated.suite, &h.negotiated.keys)),
            Phase::Intermediate(i) => Some((i.negotiated.suite, &i.negotiated.keys)),
            Phase::AuthSent(a) => Some((a.negotiated.suite, &a.negotiated.keys)),
            Phase::Established(e) => Some((e.suite, &e.keys)),
            Phase::Closed(c) => c.protection.as_ref().map(|(s, k)| (*s, k)),
        }
    }

    /// The key that opens the peer's messages.
    pub(super) fn opening_key<'k>(&self, keys: &'k IkeKeys) -> &'k Secret {
        match self.record.role {
            Role::Initiator => &keys.er,
            Role::Responder => &keys.ei,
        }
    }

    /// Seals a message of ours in one piece. `None` if there are no keys, or no IVs left: then nothing may be sent.
    pub(super) fn seal_whole(
        &mut self,
        exchange: ExchangeType,
        is_response: bool,
        message_id: u32,
        payloads: &[Payload],
    ) -> Option<Vec<u8>> {
        let header = header(&self.record, exchange, is_response, message_id);
        let (suite, keys) = self.protection()?;
        let key = match self.record.role {
            Role::Initiator => &keys.ei,
            Role::Responder => &keys.er,
        };
        let iv = match (exchange, payloads) {
            (ExchangeType::INFORMATIONAL, []) => IvCounter::of_empty(message_id, is_response),
            _ => self.env.ivs.next()?,
        };
        Some(crypto::seal(suite.cipher(), key, iv, &header, payloads))
    }

    /// Queues a message to the peer for sending.
    pub(super) fn send(&mut self, datagrams: &[Vec<u8>]) {
        let path = self.record.path;
        self.send_to(datagrams, path.local, path.remote, path.transport);
    }

    /// Queues a message for sending between these addresses.
    pub(super) fn send_to(
        &mut self,
        datagrams: &[Vec<u8>],
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
    ) {
        let each = datagrams.iter().map(|datagram| Effect::Send {
            datagram: datagram.clone(),
            local,
            remote,
            transport,
        });
        self.effects.extend(each);
    }

    /// Answers the peer's request `id`: the response is kept for retransmissions.
    pub(super) fn respond(&mut self, exchange: ExchangeType, id: u32, payloads: &[Payload]) {
        let Some(datagrams) = self.seal(exchange, true, id, payloads) else {
            return;
        };
        let path = self.record.path;
        let (local, remote) = self.arrived.unwrap_or((path.local, path.remote));
        self.send_to(&datagrams, local, remote, self.transport);
        self.record.inbound.answer(id, datagrams);
    }

    /// Sends a request of ours: committed whole before it is first sent (the caller commits).
    pub(super) fn request(&mut self, exchange: ExchangeType, payloads: &[Payload], task: Task) {
        if !self.record.outbound.has_room_without(None) {
            self.crowded = true;
            return;
        }
        let id = self.record.outbound.next;
        let Some(datagrams) = self.seal(exchange, false, id, payloads) else {
            return;
        };
        self.send(&datagrams);
        self.session.speak = false;
        self.record.outbound.push(PendingRequest {
            id,
            datagrams,
            task,
            deleted: Vec::new(),
        });
        self.repeat_from_now();
    }

    /// The last request is being sent for the first time, or its answer is being worked on: wait from now.
    pub(super) fn repeat_from_now(&mut self) {
        let id = self.record.outbound.last_id();
        let wait = self.env.policy.retransmit.wait(1).unwrap_or_default();
        let repeat = super::session::Repeat {
            sent: 1,
            at: self.env.now + wait,
        };
        self.session.repeats.insert(id, repeat);
    }

    /// Takes a pending request off: it was answered.
    pub(super) fn complete(&mut self, id: u32) -> Option<PendingRequest> {
        self.session.repeats.remove(&id);
        self.record.outbound.take(id)
    }

    /// Ends the SA: a tombstone stays, the data plane is told.
    pub(super) fn close(&mut self, reason: CloseReason) {
        if let Phase::Established(e) = &self.record.phase {
            let gone: Vec<_> = e
                .children
                .iter()
                .map(|c| (c.spi_in, c.name.clone()))
                .collect();
            let vips = e.our_vips.clone();
            // What the peer sent before it went over to another IKE SA, or before it deleted this one, may come after its request.
            let grace = match reason {
                CloseReason::DeletedByPeer | CloseReason::Reauthenticated => INBOUND_GRACE,
                _ => Duration::ZERO,
            };
            for (spi_in, name) in gone {
                self.effects.push(Effect::RemoveChild { spi_in, grace });
                self.report(Event::ChildClosed {
                    name,
                    spi_in,
                    reason,
                });
            }
            if !vips.is_empty() {
                self.effects
                    .push(Effect::ReleaseAddresses { addresses: vips });
            }
        }
        let protection = self.protection().map(|(suite, keys)| (suite, keys.clone()));
        self.record.outbound.pending.clear();
        self.session.forget_requests();
        self.session.parked = None;
        self.session.keepalive_at = None;
        self.record.phase = Phase::Closed(Box::new(Closed {
            protection,
            reason,
            expires_at: self.env.now + TOMBSTONE,
        }));
        self.report(Event::IkeClosed { reason });
        self.commit();
    }
}

/// The header of a message of ours.
pub(super) fn header(
    record: &Record,
    exchange: ExchangeType,
    is_response: bool,
    message_id: u32,
) -> Header {
    let (initiator_spi, responder_spi) = match record.role {
        Role::Initiator => (record.id.0, record.remote_spi),
        Role::Responder => (record.remote_spi, record.id.0),
    };
    Header {
        initiator_spi,
        responder_spi,
        minor_version: 0,
        exchange,
        from_initiator: record.role == Role::Initiator,
        is_response,
        higher_version: false,
        message_id,
    }
}

/// A notify about no particular SA.
pub(super) fn notify(kind: NotifyType, data: Vec<u8>) -> Payload {
    Payload::Notify(Notify {
        protocol: Protocol::NONE,
        spi: Vec::new(),
        kind,
        data,
    })
}

/// The first notify of this type.
pub(super) fn find_notify(payloads: &[Payload], kind: NotifyType) -> Option<&Notify> {
    payloads.iter().find_map(|p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    })
}

/// The first notify that reports an error.
pub(super) fn find_error(payloads: &[Payload]) -> Option<&Notify> {
    payloads.iter().find_map(|p| match p {
        Payload::Notify(n) if n.kind.is_error() => Some(n),
        _ => None,
    })
}

/// Why a request of the peer is refused: what it is told, and what the operator is.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) notify: Notify,
    pub(super) failure: Failure,
}

impl Refused {
    pub(super) fn new(kind: NotifyType, failure: Failure) -> Self {
        Self::with_data(kind, Vec::new(), failure)
    }

    pub(super) fn with_data(kind: NotifyType, data: Vec<u8>, failure: Failure) -> Self {
        let notify = Notify {
            protocol: Protocol::NONE,
            spi: Vec::new(),
            kind,
            data,
        };
        Self { notify, failure }
    }

    /// The request lacks a payload, has one too many, or one that does not belong there (RFC 7296 §2.21).
    pub(super) fn syntax(what: &'static str) -> Self {
        Self::syntax_because(Failure::Invalid(what))
    }

    /// The same for another reason.
    pub(super) fn syntax_because(failure: Failure) -> Self {
        Self::new(NotifyType::INVALID_SYNTAX, failure)
    }
}

/// Extracts the only payload of a kind; more than one, or none, is a syntax error.
macro_rules! only {
    ($payloads:expr, $variant:ident) => {{
        let mut found = $payloads.iter().filter_map(|p| match p {
            wire::Payload::$variant(x) => Some(x),
            _ => None,
        });
        match (found.next(), found.next()) {
            (Some(x), None) => Ok(x),
            (None, _) => Err(concat!("no ", stringify!($variant), " payload")),
            (Some(_), Some(_)) => Err(concat!("two ", stringify!($variant), " payloads")),
        }
    }};
}
pub(super) use only;

/// Extracts the payload of a kind that may be absent; more than one is a syntax error.
macro_rules! at_most_one {
    ($payloads:expr, $variant:ident) => {{
        let mut found = $payloads.iter().filter_map(|p| match p {
            wire::Payload::$variant(x) => Some(x),
            _ => None,
        });
        match (found.next(), found.next()) {
            (x, None) => Ok(x),
            (_, Some(_)) => Err(concat!("two ", stringify!($variant), " payloads")),
        }
    }};
}
pub(super) use at_most_one;
