//! Additional key exchanges before IKE_AUTH: one IKE_INTERMEDIATE for each (RFC 9242, RFC 9370 §2.2.2).
//!
//! Both ends know from IKE_SA_INIT how many there will be, so no peer can make us do more. Each is committed with its keys before it is
//! answered, so a successor goes on with the next.

use super::{
    Failure,
    turn::{Refused, Turn, find_error, header, only},
};
use crate::{
    config::Connection,
    crypto::{self, Exchanged, Group, KeyPair},
    record::{Intent, Intermediate, Negotiated, Phase, Task},
    secret::Secret,
    wire::{self, ExchangeType, KeyExchange, Message, ParseError, Payload},
};
use std::net::SocketAddr;

/// The payloads of an authentic message, if they are well-formed.
type Opened = Result<Vec<Payload>, ParseError>;

/// What AUTH will cover of both messages of an exchange.
struct Octets {
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Negotiated {
    /// The method of the next additional key exchange, while there is one to come.
    pub(super) fn next_exchange(&self) -> Option<Group> {
        let done = usize::try_from(self.intermediates.done).ok()?;
        self.suite.additional.methods().nth(done)
    }

    /// The Message ID of the first IKE_AUTH (RFC 9242 §3.2).
    pub(super) fn auth_id(&self) -> u32 {
        1 + self.intermediates.done
    }

    /// What IKE_INTERMEDIATE adds to what AUTH covers (RFC 9242 §3.3.2); nothing if there was none.
    pub(super) fn int_auth(&self) -> Vec<u8> {
        let done = &self.intermediates;
        if done.done == 0 {
            return Vec::new();
        }
        let (i, r) = (done.auth_i.expose(), done.auth_r.expose());
        [i, r, &self.auth_id().to_be_bytes()].concat()
    }

    /// An exchange is done: both messages are accounted for under the keys that protected them, and new keys take their place.
    fn advance(&mut self, octets: &Octets, shared: &Secret, (spi_i, spi_r): (u64, u64)) {
        let prf = self.suite.prf;
        let done = &mut self.intermediates;
        let chain = |key: &Secret, before: &Secret, octets: &[u8]| {
            prf.compute(key.expose(), &[before.expose(), octets])
        };
        done.auth_i = chain(&self.keys.pi, &done.auth_i, &octets.request);
        done.auth_r = chain(&self.keys.pr, &done.auth_r, &octets.response);
        done.done += 1;
        let exchanged = Exchanged {
            nonce_i: &self.nonce_i,
            nonce_r: &self.nonce_r,
            spi_i,
            spi_r,
        };
        let keys = self.keys.updated(self.suite, shared, exchanged);
        done.previous = Some(std::mem::replace(&mut self.keys, keys));
    }
}

/// The KE payload of an additional key exchange.
fn ke(group: Group, data: Vec<u8>) -> Payload {
    Payload::Ke(KeyExchange {
        group: group.id(),
        data,
    })
}

impl Turn<'_, '_> {
    /// What AUTH covers of a message of ours.
    fn own_octets(&self, is_response: bool, id: u32, payloads: &[Payload]) -> Vec<u8> {
        let header = header(
            &self.record,
            ExchangeType::IKE_INTERMEDIATE,
            is_response,
            id,
        );
        let (first, chain) = wire::emit_chain(payloads);
        crypto::intermediate_octets(&crypto::associated_data(&header, first), &chain)
    }

    /// What AUTH covers of a message of the peer, and its payloads.
    fn open_intermediate(&mut self, message: &Message<'_>) -> Option<(Vec<u8>, Opened)> {
        let (first, content) = self.open_whole(message)?;
        let payloads = crypto::parse_content(first, &content);
        let octets = match &message.protected {
            Some(p) if p.fragment.is_none() => crypto::intermediate_octets(p.associated, &content),
            // As if it had come in one piece (RFC 9242 §3.3.2).
            _ => {
                let associated = crypto::associated_data(&message.header, first);
                crypto::intermediate_octets(&associated, &content)
            }
        };
        Some((octets, payloads))
    }

    fn spis(&self) -> (u64, u64) {
        let h = header(&self.record, ExchangeType::IKE_INTERMEDIATE, false, 0);
        (h.initiator_spi, h.responder_spi)
    }

    // ---- as responder ----

    /// The peer's part of the next additional key exchange.
    pub(super) fn intermediate_request(
        &mut self,
        message: &Message<'_>,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let id = message.header.message_id;
        let Some((octets, payloads)) = self.open_intermediate(message) else {
            return;
        };
        self.session.heard = self.now();
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => {
                return self.malformed_request(ExchangeType::IKE_INTERMEDIATE, id, error);
            }
        };
        self.record.path.local = local;
        self.record.path.remote = remote;
        if let Err(refused) = self.answer_intermediate(id, &octets, &payloads) {
            self.refuse(ExchangeType::IKE_INTERMEDIATE, id, refused);
        }
    }

    fn answer_intermediate(
        &mut self,
        id: u32,
        request: &[u8],
        payloads: &[Payload],
    ) -> Result<(), Refused> {
        let Phase::HalfOpen(half) = &self.record.phase else {
            return Err(Refused::syntax("IKE_INTERMEDIATE after IKE_AUTH"));
        };
        let mut negotiated = half.negotiated.clone();
        let group = negotiated
            .next_exchange()
            .ok_or_else(|| Refused::syntax("a key exchange that was not agreed on"))?;
        let theirs = only!(payloads, Ke).map_err(Refused::syntax)?;
        if theirs.group != group.id() {
            return Err(Refused::syntax("a key exchange by another method"));
        }
        let (public, shared) = group
            .answer(&theirs.data, self.env.rng)
            .map_err(|e| Refused::syntax_because(e.into()))?;
        let answer = [ke(group, public)];
        let octets = Octets {
            request: request.to_vec(),
            response: self.own_octets(true, id, &answer),
        };
        negotiated.advance(&octets, &shared, self.spis());
        self.commit();
        // Still under the keys that protected the request.
        self.respond(ExchangeType::IKE_INTERMEDIATE, id, &answer);
        if let Phase::HalfOpen(half) = &mut self.record.phase {
            half.negotiated = negotiated;
        }
        Ok(())
    }

    // ---- as initiator ----

    /// Goes on with the next additional key exchange, or with IKE_AUTH.
    pub(super) fn proceed_to_auth(
        &mut self,
        config: &Connection,
        negotiated: Negotiated,
        intent: Intent,
    ) {
        let Some(group) = negotiated.next_exchange() else {
            self.prepare_auth(negotiated, &intent.child, intent.alone, intent.childless);
            return self.auth_start(config);
        };
        let key = KeyPair::generate(group, self.env.rng);
        let payloads = [ke(group, key.public().to_vec())];
        self.session.forget_requests();
        self.record.outbound.restart(negotiated.auth_id());
        self.record.phase = Phase::Intermediate(Box::new(Intermediate {
            negotiated,
            intent,
            key,
        }));
        self.request(ExchangeType::IKE_INTERMEDIATE, &payloads, Task::Connect);
        self.commit();
    }

    /// The response to our IKE_INTERMEDIATE.
    pub(super) fn intermediate_response(&mut self, message: &Message<'_>) {
        let Phase::Intermediate(state) = &self.record.phase else {
            return;
        };
        let state = (**state).clone();
        let Some((octets, payloads)) = self.open_intermediate(message) else {
            return;
        };
        self.session.heard = self.now();
        let Some(pending) = self.complete(message.header.message_id) else {
            return;
        };
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => return self.give_up(Failure::Malformed(error)),
        };
        match self.complete_intermediate(pending.id, &state, octets, &payloads) {
            Ok(negotiated) => self.proceed_to_auth(config, negotiated, state.intent),
            Err(failure) => self.give_up(failure),
        }
    }

    fn complete_intermediate(
        &self,
        id: u32,
        state: &Intermediate,
        response: Vec<u8>,
        payloads: &[Payload],
    ) -> Result<Negotiated, Failure> {
        if let Some(error) = find_error(payloads) {
            return Err(Failure::PeerRefused(error.kind));
        }
        let theirs = only!(payloads, Ke).map_err(Failure::Invalid)?;
        let group = state.key.group();
        if theirs.group != group.id() {
            return Err(Failure::Invalid("a key exchange by another method"));
        }
        let shared = state.key.agree(&theirs.data)?;
        let ours = [ke(group, state.key.public().to_vec())];
        let octets = Octets {
            request: self.own_octets(false, id, &ours),
            response,
        };
        let mut negotiated = state.negotiated.clone();
        negotiated.advance(&octets, &shared, self.spis());
        Ok(negotiated)
    }
}
