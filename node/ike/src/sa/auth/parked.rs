//! IKE_AUTH while it waits for answers from outside. Only the session holds it: whoever takes over begins anew.

use super::{Own, Peer, ppk::Mixed, rounds};
use crate::{
    certificate::{CertificateError, Verified},
    record::{HalfOpen, Phase, Record, Rounds},
    sa::{
        Effect, Failure, NoAddress, Question,
        turn::{Refused, Turn},
    },
    wire::{ExchangeType, NotifyType, Payload},
};
use std::net::{IpAddr, SocketAddr};

/// An exchange that waits.
#[derive(Debug)]
pub(in crate::sa) enum Parked {
    /// The peer's request.
    Request(Box<Request>),
    /// Our request, which is not made yet: the record as it will be, and what is asked for.
    Unsent(Box<Record>, Own),
    /// The response to our request.
    Response(Vec<Payload>),
}

/// An answer that was asked for.
#[derive(Debug)]
pub(in crate::sa) enum Answer<T> {
    /// It has not come.
    Open,
    /// It has.
    Given(T),
}

impl<T> Answer<T> {
    pub(in crate::sa) fn given(self) -> Option<T> {
        match self {
            Self::Open => None,
            Self::Given(answer) => Some(answer),
        }
    }
}

/// A request of the peer that waits.
#[derive(Debug)]
pub(in crate::sa) struct Request {
    /// Its Message ID.
    pub(in crate::sa) id: u32,
    /// How far authentication was when it came.
    pub(in crate::sa) rounds: Rounds,
    /// What the first request asked for, if this is not the first.
    pub(in crate::sa) first: Option<Vec<Payload>>,
    pub(in crate::sa) payloads: Vec<Payload>,
    pub(in crate::sa) local: SocketAddr,
    pub(in crate::sa) remote: SocketAddr,
    /// The keys by which it is.
    pub(in crate::sa) mixed: Mixed,
    /// Who the peer is, once that is verified.
    pub(in crate::sa) peer: Option<Peer>,
    /// Our own AUTH payload.
    pub(in crate::sa) own: Option<Own>,
    /// Virtual addresses, if the peer wants any.
    pub(in crate::sa) addresses: Option<Answer<Result<Vec<IpAddr>, NoAddress>>>,
}

impl Request {
    pub(in crate::sa) fn new(
        payloads: Vec<Payload>,
        half: &HalfOpen,
        mixed: Mixed,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Box<Self> {
        let (rounds, first) = rounds::of_request(half);
        Box::new(Self {
            id: rounds.message_id(&half.negotiated),
            rounds,
            first,
            payloads,
            mixed,
            local,
            remote,
            peer: None,
            own: None,
            addresses: None,
        })
    }

    pub(in crate::sa) fn is_waiting(&self) -> bool {
        matches!(self.addresses, Some(Answer::Open))
            || self.own.as_ref().is_none_or(Own::is_waiting)
    }
}

impl Turn<'_, '_> {
    /// Asks the outside.
    pub(in crate::sa) fn ask(&mut self, question: Question) {
        self.effects.push(Effect::Ask(question));
    }

    /// Lets an exchange wait. What the step did to the record so far is not part of it: the exchange has not happened.
    pub(in crate::sa) fn park(&mut self, parked: Parked) {
        self.session.parked = Some(Box::new(parked));
    }

    /// The answer to our question for addresses.
    pub(in crate::sa) fn addresses(&mut self, answer: Result<Vec<IpAddr>, NoAddress>) {
        match self.session.parked.take().map(|parked| *parked) {
            Some(Parked::Request(mut request)) if request.addresses.is_some() => {
                self.arrived = Some((request.local, request.remote));
                request.addresses = Some(Answer::Given(answer));
                self.complete_request(request);
            }
            other => self.session.parked = other.map(Box::new),
        }
    }

    /// The answer to our question whether the peer is who it says.
    pub(in crate::sa) fn verified(&mut self, answer: Result<Box<Verified>, CertificateError>) {
        match self.session.parked.take().map(|parked| *parked) {
            Some(Parked::Request(request)) if request.peer.is_none() => {
                self.arrived = Some((request.local, request.remote));
                match self.verified_initiator(&request, answer) {
                    Ok(peer) => self.proceed(request, peer),
                    Err(refused) => {
                        self.refuse(ExchangeType::IKE_AUTH, request.id, refused);
                    }
                }
            }
            Some(Parked::Response(payloads)) => self.verified_responder(&payloads, answer),
            other => self.session.parked = other.map(Box::new),
        }
    }

    /// The answer to our question for a signature.
    pub(in crate::sa) fn signed(&mut self, answer: Option<Vec<u8>>) {
        match self.session.parked.take().map(|parked| *parked) {
            Some(Parked::Request(mut request)) => {
                self.arrived = Some((request.local, request.remote));
                if let Some(own) = &mut request.own {
                    own.signed(answer);
                }
                self.complete_request(request);
            }
            Some(Parked::Unsent(record, mut own)) => {
                own.signed(answer);
                if let Some(question) = own.further_question() {
                    self.ask(question);
                    return self.park(Parked::Unsent(record, own));
                }
                self.record = *record;
                self.auth_send(own);
            }
            other => self.session.parked = other.map(Box::new),
        }
    }

    fn verified_initiator(
        &self,
        request: &Request,
        answer: Result<Box<Verified>, CertificateError>,
    ) -> Result<Peer, Refused> {
        let denied = |failure| Refused::new(NotifyType::AUTHENTICATION_FAILED, failure);
        let claimed = super::peer::claimed(&request.payloads).map_err(Refused::syntax)?;
        let verified = answer.map_err(|error| {
            denied(Failure::Certificate {
                id: claimed.clone(),
                error: Box::new(error),
            })
        })?;
        let Phase::HalfOpen(_) = &self.record.phase else {
            return Err(Refused::syntax("not waiting for IKE_AUTH"));
        };
        let connection = self.connection_named(&verified.connection)?;
        let round = request.rounds.current();
        Ok(Peer {
            connection: verified.connection,
            local_id: connection.own_identity(round, request.local.ip()),
            remote_id: claimed,
        })
    }
}
