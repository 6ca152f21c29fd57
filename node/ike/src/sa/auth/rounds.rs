//! Several rounds of authentication (RFC 4739): one for each IKE_AUTH, in which either end authenticates that has not finished. What the first
//! request asks for besides is granted with the last response.
//!
//! Each round is committed before it is answered, like any other exchange, so that a successor goes on with the next one.

use super::{Identified, Peer, Request, accepts, octets_of_initiator, verification};
use crate::{
    config::Connection,
    identity::Identity,
    record::{HalfOpen, Negotiated, Phase, Rounds},
    sa::{
        Failure,
        turn::{Refused, Turn, at_most_one, find_notify, notify, only},
    },
    wire::{
        self, Auth, AuthMethod, ExchangeType, Message, NotifyType, Payload, PayloadType,
        emit_chain, parse_chain,
    },
};

impl Rounds {
    /// The number of the round that is under way.
    pub(in crate::sa) fn current(&self) -> usize {
        self.done as usize
    }

    /// Whether we authenticate in the round that is under way.
    pub(in crate::sa) fn ours(&self) -> bool {
        self.done == 0 || self.ours_follow
    }

    /// Whether the peer does.
    pub(in crate::sa) fn theirs(&self) -> bool {
        self.done == 0 || self.theirs_follow
    }

    /// The Message ID of the IKE_AUTH that is under way.
    pub(in crate::sa) fn message_id(&self, negotiated: &Negotiated) -> u32 {
        negotiated.auth_id() + self.done
    }

    /// What the first request asks for.
    fn first_request(&self) -> Vec<Payload> {
        let (kind, chain) = &self.request;
        parse_chain(PayloadType(*kind), chain).unwrap_or_default()
    }
}

/// Whether an IKE_SA_INIT response says that its sender takes several rounds.
pub(in crate::sa) fn announced(init: &[u8]) -> bool {
    Message::parse(init).is_ok_and(|m| supported(&m.payloads))
}

/// Whether a message says so (RFC 4739 §3.1).
pub(in crate::sa) fn supported(payloads: &[Payload]) -> bool {
    find_notify(payloads, NotifyType::MULTIPLE_AUTH_SUPPORTED).is_some()
}

/// Whether the sender of a message authenticates again (RFC 4739 §3.2).
pub(in crate::sa) fn follows(payloads: &[Payload]) -> bool {
    find_notify(payloads, NotifyType::ANOTHER_AUTH_FOLLOWS).is_some()
}

/// Whether another round of a peer has to follow this one.
pub(in crate::sa) fn wants_another(connection: &Connection, round: usize) -> bool {
    round + 1 < connection.rounds().1
}

/// Says that we authenticate again.
pub(in crate::sa) fn another() -> Payload {
    notify(NotifyType::ANOTHER_AUTH_FOLLOWS, Vec::new())
}

impl Request {
    /// What the first request asks for: this one, unless there were others before.
    pub(super) fn first(&self) -> &[Payload] {
        self.first.as_deref().unwrap_or(&self.payloads)
    }

    /// Whether we authenticate once more after this.
    fn we_follow(&self, connection: &Connection) -> bool {
        self.rounds.ours()
            && self.rounds.current() + 1 < connection.rounds().0
            && supported(self.first())
    }

    /// Whether nobody authenticates after this.
    pub(super) fn is_last(&self, connection: &Connection) -> bool {
        let they_follow = self.rounds.theirs() && follows(&self.payloads);
        !(self.we_follow(connection) || they_follow)
    }
}

impl<'e> Turn<'_, 'e> {
    /// What a request in a round after the first says of the peer.
    pub(super) fn identify_again(
        &self,
        half: &HalfOpen,
        payloads: &[Payload],
        auth: Option<&Auth>,
    ) -> Result<Identified, Refused> {
        let denied = |failure| Refused::new(NotifyType::AUTHENTICATION_FAILED, failure);
        let (rounds, negotiated) = (&half.rounds, &half.negotiated);
        let connection = self.connection_named(&self.record.connection)?;
        let (round, local) = (rounds.current(), self.record.path.local.ip());
        let local_id = connection.own_identity(round, local);
        let peer = |remote_id: Identity| Peer {
            connection: connection.name.clone(),
            local_id: local_id.clone(),
            remote_id,
        };
        if let (false, Some(id)) = (rounds.theirs(), &rounds.remote_id) {
            return Ok(Identified::Peer(peer(id.clone())));
        }
        let id_i = only!(payloads, IdI).map_err(Refused::syntax)?;
        let remote_id = Identity::from_wire(id_i);
        let wanted = at_most_one!(payloads, IdR).map_err(Refused::syntax)?;
        let ours = wanted.is_none_or(|id| Identity::from_wire(id).means(&local_id));
        if !connection.remote_id_in(round).matches(&remote_id) || (rounds.ours() && !ours) {
            let remote = self.record.path.remote.ip();
            return Err(denied(Failure::UnknownIdentity {
                remote,
                id: remote_id,
            }));
        }
        if follows(payloads) != wants_another(connection, round) {
            return Err(denied(Failure::Rounds));
        }
        let Some(auth) = auth.filter(|a| accepts(connection.remote_auth(round), a.method)) else {
            return Err(denied(Failure::BadAuthMethod(remote_id)));
        };
        let octets = octets_of_initiator(negotiated, id_i);
        if auth.method == AuthMethod::PSK {
            self.verify_psk(negotiated, (&local_id, &remote_id), &octets, auth)
                .map_err(denied)?;
            return Ok(Identified::Peer(peer(remote_id)));
        }
        let only = vec![connection.name.clone()];
        verification(&remote_id, auth, octets, payloads, (only, round))
            .map(Identified::Question)
            .map_err(denied)
    }

    /// The payloads of our AUTH, if this is not the last round: it is answered, and waits for the next.
    pub(super) fn next_round(
        &mut self,
        connection: &Connection,
        request: &Request,
        negotiated: Negotiated,
        peer: &Peer,
        own: Vec<Payload>,
    ) {
        let ours_follow = request.we_follow(connection);
        let theirs_follow = request.rounds.theirs() && follows(&request.payloads);
        let mut answer = Vec::new();
        if !own.is_empty() {
            answer.push(Payload::IdR(peer.local_id.to_wire()));
            answer.extend(own);
        }
        if ours_follow {
            answer.push(another());
        }
        self.record.connection.clone_from(&peer.connection);
        if let Phase::HalfOpen(half) = &mut self.record.phase {
            half.negotiated = negotiated;
            half.rounds.done += 1;
            half.rounds.ours_follow = ours_follow;
            half.rounds.theirs_follow = theirs_follow;
            half.rounds.remote_id = Some(peer.remote_id.clone());
            if request.rounds.done == 0 {
                half.rounds.request = wishes(&request.payloads);
            }
        }
        if request.mixed.used && request.rounds.done == 0 {
            answer.push(notify(NotifyType::PPK_IDENTITY, Vec::new()));
        }
        self.respond(ExchangeType::IKE_AUTH, request.id, &answer);
    }

    pub(super) fn connection_named(&self, name: &str) -> Result<&'e Connection, Refused> {
        let policy = self.env.policy;
        policy.connection(name).ok_or_else(|| {
            let gone = Failure::Unconfigured(name.to_owned());
            Refused::new(NotifyType::AUTHENTICATION_FAILED, gone)
        })
    }
}

/// What a request asks for besides authentication, as it is kept for the last round.
fn wishes(payloads: &[Payload]) -> (u8, Vec<u8>) {
    let kept = payloads.iter().filter(|p| {
        matches!(
            p,
            Payload::Sa(_)
                | Payload::TsI(_)
                | Payload::TsR(_)
                | Payload::Cp(_)
                | Payload::Notify(_)
                | Payload::CertReq { .. }
        )
    });
    let kept: Vec<Payload> = kept.cloned().collect();
    let (kind, chain) = emit_chain(&kept);
    (kind.0, chain)
}

/// Rounds for a request that has just come.
pub(super) fn of_request(half: &HalfOpen) -> (Rounds, Option<Vec<Payload>>) {
    let rounds = half.rounds.clone();
    let first = (rounds.done > 0).then(|| rounds.first_request());
    (rounds, first)
}
