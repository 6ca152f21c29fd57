//! Messages of an SA: which are new, which are repeated, which are none of ours (RFC 7296 §2.1 to §2.3).

use super::{
    Effect, Failure,
    session::Repeat,
    turn::{Refused, Turn},
};
use crate::{
    crypto,
    record::{CloseReason, Phase, Role, Task},
    wire::{ExchangeType, Header, Message, NotifyType, ParseError, Payload},
};
use std::net::SocketAddr;

impl Turn<'_, '_> {
    /// A datagram came for this SA.
    pub(super) fn datagram(&mut self, bytes: &[u8], local: SocketAddr, remote: SocketAddr) {
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(error) => return self.ignore(Failure::Malformed(error)),
        };
        let header = message.header;
        if header.from_initiator != (self.record.role == Role::Responder) {
            return self.ignore(Failure::Invalid("the I flag is of the wrong end"));
        }
        if matches!(self.record.phase, Phase::InitSent(_)) {
            return self.init_response(&message, bytes, local, remote);
        }
        let ours = super::turn::header(&self.record, header.exchange, false, 0);
        if (header.initiator_spi, header.responder_spi) != (ours.initiator_spi, ours.responder_spi)
        {
            return self.ignore(Failure::Invalid("the peer's SPI is another"));
        }
        if header.is_response {
            self.response(&message);
        } else {
            self.arrived = Some((local, remote));
            self.request_from_peer(&message, local, remote);
        }
    }

    /// Whether this is the last IKE_INTERMEDIATE request again: it is protected with the keys of before.
    fn is_repeated_intermediate(&self, message: &Message<'_>) -> bool {
        let Phase::HalfOpen(half) = &self.record.phase else {
            return false;
        };
        let (Some(keys), Some(protected)) =
            (&half.negotiated.intermediates.previous, &message.protected)
        else {
            return false;
        };
        let cipher = half.negotiated.suite.cipher();
        message.header.exchange == ExchangeType::IKE_INTERMEDIATE
            && crypto::open_content(cipher, self.opening_key(keys), protected).is_ok()
    }

    fn response(&mut self, message: &Message<'_>) {
        let syncing =
            matches!(&self.record.phase, Phase::Established(e) if e.sync_request.is_some());
        if syncing && message.header.message_id == 0 {
            if let Some(Ok(payloads)) = self.open(message) {
                self.sync_response(&payloads);
            }
            return;
        }
        let id = message.header.message_id;
        if self.record.outbound.get(id).is_none() {
            return; // late or repeated: its request was completed
        }
        if matches!(self.record.phase, Phase::Intermediate(_)) {
            return self.intermediate_response(message);
        }
        let payloads = match self.open(message) {
            Some(Ok(payloads)) => payloads,
            // Authentic nonsense: there is no way to go on with such a peer (RFC 7296 §2.21.3).
            Some(Err(error)) => {
                self.fail(Failure::Malformed(error));
                return self.close(CloseReason::SetupFailed);
            }
            None => return,
        };
        self.session.heard = self.now();
        if self.session.parked.is_some() {
            return; // the same response again, while it is not known yet whether it is good
        }
        self.use_answer(id, message.header, payloads);
        while let Some(id) = self.next_waiting() {
            if let Some((header, payloads)) = self.session.waiting.remove(&id) {
                self.use_answer(id, header, payloads);
            }
        }
    }

    /// Uses the answer to the request `id`. If it leads to another request at once, for which there is no room in the window before an older one is answered, it
    /// waits, and it is as if it had not come yet: a successor repeats its request.
    fn use_answer(&mut self, id: u32, header: Header, payloads: Vec<Payload>) {
        if self.record.outbound.has_room_without(Some(id)) {
            return self.answered(id, &header, &payloads);
        }
        let before = (self.record.clone(), self.effects.len(), self.created.len());
        self.answered(id, &header, &payloads);
        if std::mem::take(&mut self.crowded) {
            self.record = before.0;
            self.effects.truncate(before.1);
            self.created.truncate(before.2);
            self.session.waiting.insert(id, (header, payloads));
        }
    }

    /// The request of an answer that has waited and need not wait any more.
    fn next_waiting(&self) -> Option<u32> {
        let mut waiting = self.session.waiting.keys().copied();
        waiting.find(|id| self.record.outbound.has_room_without(Some(*id)))
    }

    /// The request `id` was answered.
    fn answered(&mut self, id: u32, header: &Header, payloads: &[Payload]) {
        let Some(pending) = self.complete(id) else {
            return;
        };
        if !matches!(pending.task, Task::Mobike(_))
            && let Some(roaming) = &mut self.session.roaming
        {
            roaming.settled();
        }
        // What an empty exchange moves is replicated by its Message ID only.
        if matches!(self.record.phase, Phase::Established(_)) && pending.task != Task::Liveness {
            self.note_window_size(payloads);
        }
        let deleted = pending.deleted;
        match pending.task {
            Task::Connect => self.auth_response(payloads),
            Task::Liveness => {
                self.session.uncertain = false;
                self.commit_lazily();
            }
            Task::CreateChild(offer) => {
                self.commit();
                self.child_response(offer, payloads);
            }
            Task::RekeyIke(offer) => {
                self.commit();
                self.ike_rekey_response(offer, payloads);
            }
            Task::FollowUp(follow_up, key) => {
                self.commit();
                self.follow_up_response(follow_up, &key, payloads);
            }
            Task::DeleteChildren(spis) => {
                self.commit();
                self.children_deleted(&spis);
            }
            Task::AskToReauthenticate => self.commit(),
            Task::DeleteIke => {
                let reason = self.delete_reason();
                self.close(reason);
            }
            Task::Mobike(asked) => {
                self.commit();
                self.mobike_response(&asked, header, payloads);
            }
        }
        self.deleted_meanwhile(&deleted);
    }

    fn request_from_peer(&mut self, message: &Message<'_>, local: SocketAddr, remote: SocketAddr) {
        if self.sync_request(message) {
            return;
        }
        let id = message.header.message_id;
        let expected = self.record.inbound.next;
        if self.record.inbound.is_repeated(id) {
            return self.repeated_request(message, local, remote);
        }
        let ahead = self.record.inbound.ahead(id);
        let Some(ahead) = ahead.filter(|ahead| *ahead <= self.session.ahead) else {
            if !self.session.synced
                && ahead.is_some()
                && !message.is_fragment()
                && self.open(message).is_some_and(|opened| opened.is_ok())
            {
                self.start_sync();
            }
            return self.ignore(Failure::MessageId {
                given: id,
                expected,
            });
        };
        if message.header.exchange == ExchangeType::IKE_INTERMEDIATE
            && matches!(self.record.phase, Phase::HalfOpen(_))
        {
            return self.intermediate_request(message, local, remote);
        }
        if message.header.exchange != ExchangeType::INFORMATIONAL && self.is_synchronising() {
            return self.ignore(Failure::Invalid("Message IDs are being synchronised"));
        }
        let setting_up = matches!(self.record.phase, Phase::HalfOpen(_));
        if setting_up && self.transport != self.record.path.transport {
            // An SA stays with the transport that it began with until MOBIKE changes that (RFC 9329 §5).
            return self.ignore(Failure::Invalid("another transport than before"));
        }
        let payloads = match self.open(message) {
            Some(payloads) => payloads,
            None => return,
        };
        self.session.heard = self.now();
        self.session.ahead -= ahead;
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => return self.malformed_request(message.header.exchange, id, error),
        };
        match (&self.record.phase, message.header.exchange) {
            (Phase::HalfOpen(_), ExchangeType::IKE_AUTH) => {
                self.auth_request(payloads, local, remote)
            }
            (Phase::Established(_), ExchangeType::INFORMATIONAL) => {
                self.follow(id, local, remote);
                self.informational(id, &payloads);
            }
            (Phase::Established(_), ExchangeType::CREATE_CHILD_SA) => {
                self.follow(id, local, remote);
                self.create_child_request(id, &payloads);
            }
            (Phase::Established(_), ExchangeType::IKE_FOLLOWUP_KE) => {
                self.follow(id, local, remote);
                self.follow_up_request(id, &payloads);
            }
            _ => self.ignore(Failure::Invalid("this exchange has no place now")),
        }
    }

    /// The peer did not get our response, or repeats its request for other reasons: the same bytes again, from whoever serves it.
    fn repeated_request(&mut self, message: &Message<'_>, local: SocketAddr, remote: SocketAddr) {
        let id = message.header.message_id;
        if let (Phase::HalfOpen(_), ExchangeType::IKE_SA_INIT) =
            (&self.record.phase, message.header.exchange)
        {
            return self.repeat_response(id, local, remote);
        }
        let first = message
            .protected
            .and_then(|p| p.fragment)
            .is_none_or(|(number, _)| number == 1);
        if self.is_repeated_intermediate(message) {
            if first {
                self.repeat_response(id, local, remote);
            }
            return;
        }
        // Of a message in fragments the first one asks for the response, so that it goes out once (RFC 7383 §2.6.1).
        if let Some((number, _)) = message.protected.and_then(|p| p.fragment) {
            if number == 1 && message.protected.is_some_and(|p| self.is_authentic(&p)) {
                self.repeat_response(id, local, remote);
            }
            return;
        }
        let Some(opened) = self.open(message) else {
            return;
        };
        if self.record.inbound.response(id).is_some() {
            return self.repeat_response(id, local, remote);
        }
        // The response was to a harmless exchange of a former epoch: it means the same, and if it is empty, it is the same byte for byte.
        let harmless = match (message.header.exchange, opened) {
            (ExchangeType::INFORMATIONAL, Ok(payloads)) => super::mobike::harmless(&payloads),
            _ => None,
        };
        if let Some(answer) = harmless {
            self.session.heard = self.now();
            self.respond(ExchangeType::INFORMATIONAL, id, &answer);
            self.commit_lazily();
        }
    }

    fn repeat_response(&mut self, id: u32, local: SocketAddr, remote: SocketAddr) {
        if let Some(datagrams) = self.record.inbound.response(id).cloned() {
            self.send_to(&datagrams, local, remote, self.transport);
        }
    }

    /// An authentic request that cannot be parsed: an unknown critical payload costs only the exchange (RFC 7296 §2.5), anything else
    /// the SA (§2.21.2, §2.21.3).
    pub(super) fn malformed_request(&mut self, exchange: ExchangeType, id: u32, error: ParseError) {
        if matches!(self.record.phase, Phase::Closed(_)) {
            return;
        }
        let refused = match error {
            ParseError::UnknownCritical(kind) => Refused::with_data(
                NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
                vec![kind],
                Failure::Malformed(error),
            ),
            _ => Refused::new(NotifyType::INVALID_SYNTAX, Failure::Malformed(error)),
        };
        self.refuse(exchange, id, refused);
    }

    /// Answers a request with an error notify. Also a refusal is committed: a successor must not carry out what was refused.
    pub(super) fn refuse(&mut self, exchange: ExchangeType, id: u32, refused: Refused) {
        let fatal =
            refused.notify.kind == NotifyType::INVALID_SYNTAX || exchange == ExchangeType::IKE_AUTH;
        self.commit();
        self.fail(refused.failure);
        self.respond(exchange, id, &[Payload::Notify(refused.notify)]);
        if fatal {
            self.close(CloseReason::SetupFailed);
        }
    }

    /// Answers a request with what a handler makes of it. When it refuses, everything that it did is undone first.
    pub(super) fn answer(
        &mut self,
        exchange: ExchangeType,
        id: u32,
        handler: impl FnOnce(&mut Self) -> Result<Vec<Payload>, Refused>,
    ) {
        let before = (self.record.clone(), self.effects.len(), self.created.len());
        self.commit();
        match handler(self) {
            Ok(payloads) => self.respond(exchange, id, &payloads),
            Err(refused) => {
                self.record = before.0;
                self.effects.truncate(before.1);
                self.created.truncate(before.2);
                self.refuse(exchange, id, refused);
            }
        }
    }

    /// Repeats the requests whose time it is, or gives the peer up.
    pub(super) fn retransmit(&mut self) {
        let now = self.env.now;
        let due = self.session.repeats.iter().filter(|(_, r)| r.at <= now);
        let due: Vec<(u32, Repeat)> = due.map(|(id, r)| (*id, *r)).collect();
        if due.iter().any(|(_, r)| r.sent >= super::mobike::UNANSWERED) {
            self.find_ways();
        }
        for (id, repeat) in due {
            if !self.repeat_request(id, repeat) {
                return;
            }
        }
    }

    /// Repeats a request; `false` if the SA has ended instead, or goes another way.
    fn repeat_request(&mut self, id: u32, repeat: Repeat) -> bool {
        if repeat.sent >= super::next_address::SENDINGS
            && self.try_next_address(Failure::Silent).is_ok()
        {
            return false;
        }
        let Some(pending) = self.record.outbound.get(id) else {
            self.session.repeats.remove(&id);
            return true;
        };
        let datagrams = pending.datagrams.clone();
        let probe = pending.task == Task::Liveness;
        if probe && repeat.sent >= super::sync::UNANSWERED_PROBES && !self.is_unconfirmed() {
            self.start_sync();
        }
        let sent = repeat.sent + 1;
        let Some(wait) = self.env.policy.retransmit.wait(sent) else {
            let setting_up = !matches!(self.record.phase, Phase::Established(_));
            self.fail(Failure::Silent);
            self.close(CloseReason::PeerSilent);
            if setting_up {
                self.effects.push(Effect::Forget);
            }
            return false;
        };
        let at = self.env.now + wait;
        self.session.repeats.insert(id, Repeat { sent, at });
        self.send(&datagrams);
        true
    }
}
