//! IKE_AUTH as responder (RFC 7296 §1.2, §2.15, §2.21.2), and what both ends share.
//!
//! A request is answered in one step, or in several: whether a certificate and a signature are good, what our own signature is, and which virtual
//! addresses there are, is asked of the outside ([`super::Question`]), and the request waits for the answers in the session. Nothing is
//! committed meanwhile, so a successor starts with the request that the peer sends again.

mod own;
mod parked;
mod payloads;
mod peer;
pub(super) mod ppk;
pub(super) mod rounds;

pub(super) use own::{Own, announced_hashes};
pub(super) use parked::{Answer, Parked, Request};
pub(super) use payloads::{Requested, certificate_requests};
pub(super) use peer::{Identified, Peer, accepts, verification};

use super::{
    Event, Failure, NoAddress, Question,
    child::ChildRequest,
    configuration,
    turn::{Refused, Turn, at_most_one, find_notify, notify},
    window::window_size,
};
use crate::{
    config::{Childless, Connection, Unique},
    crypto::{self, IkeSuite},
    env::{Entropy, UnixMillis},
    identity::Identity,
    proposal::IkeProposal,
    record::{Established, Negotiated, Phase, Role},
    wire::{self, CfgAttrType, CfgType, ExchangeType, Identification, NotifyType, Payload},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The body of an ID payload, which AUTH covers.
fn id_body(id: &Identification) -> Vec<u8> {
    let mut body = vec![id.kind.0];
    body.extend(id.reserved);
    body.extend(&id.data);
    body
}

/// What the initiator signs (RFC 7296 §2.15).
pub(super) fn octets_of_initiator(n: &Negotiated, id: &Identification) -> Vec<u8> {
    let (message, nonce) = (&n.init_request, &n.nonce_r);
    crypto::signed_octets(
        n.suite.prf,
        message,
        nonce,
        &n.keys.pi,
        &id_body(id),
        &n.int_auth(),
    )
}

/// What the responder signs.
pub(super) fn octets_of_responder(n: &Negotiated, id: &Identification) -> Vec<u8> {
    let (message, nonce) = (&n.init_response, &n.nonce_i);
    crypto::signed_octets(
        n.suite.prf,
        message,
        nonce,
        &n.keys.pr,
        &id_body(id),
        &n.int_auth(),
    )
}

impl<'e> Turn<'_, 'e> {
    pub(super) fn auth_request(
        &mut self,
        payloads: Vec<Payload>,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        if self.session.parked.is_some() {
            return; // the same request again, while the answer to it waits for what only the outside knows
        }
        let Phase::HalfOpen(half) = &self.record.phase else {
            return;
        };
        let half = (**half).clone();
        let negotiated = half.negotiated.clone();
        let id = half.rounds.message_id(&negotiated);
        if negotiated.next_exchange().is_some() {
            let early = Refused::syntax("IKE_AUTH before the additional key exchanges");
            return self.refuse(ExchangeType::IKE_AUTH, id, early);
        }
        self.record.path.local = local;
        self.record.path.remote = remote;
        let auth = at_most_one!(payloads, Auth).map_err(Refused::syntax);
        let identified = self.unexpected_nat(&payloads).and_then(|()| {
            let auth = auth?;
            if half.rounds.done > 0 {
                // Keys were mixed in the first round.
                let identified = self.identify_again(&half, &payloads, auth)?;
                return Ok((identified, ppk::Mixed::plain(negotiated)));
            }
            let policy = self.env.policy;
            let (mixed, auth) = ppk::of_request(&negotiated, policy, &payloads, auth)?;
            Ok((self.identify(&mixed, &payloads, auth.as_ref())?, mixed))
        });
        let (identified, mixed) = match identified {
            Ok(identified) => identified,
            Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, id, refused),
        };
        let request = Request::new(payloads, &half, mixed, local, remote);
        match identified {
            Identified::Peer(peer) => self.proceed(request, peer),
            Identified::Question(verification) => {
                self.ask(Question::Verify(verification));
                self.park(Parked::Request(request));
            }
        }
    }

    /// Authenticated, but the peer has another IKE SA, which is kept.
    pub(super) fn not_unique(&mut self) {
        if matches!(self.record.phase, Phase::HalfOpen(_)) {
            // The record is that of before the request, which may have come by other addresses.
            self.arrived = self.session.answering.take().map(|ends| *ends);
            let refused = Refused::new(NotifyType::AUTHENTICATION_FAILED, Failure::NotUnique);
            self.refuse(ExchangeType::IKE_AUTH, self.record.inbound.next, refused);
        }
    }

    /// The peer is who it says: what is left to ask for is asked for, or the answer is given.
    fn proceed(&mut self, mut request: Box<Request>, peer: Peer) {
        let id = request.id;
        let outcome = self.ask_the_rest(&peer, &request);
        let (addresses, own) = match outcome {
            Ok(asked) => asked,
            Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, id, refused),
        };
        request.addresses = addresses.then_some(Answer::Open);
        request.own = Some(own);
        request.peer = Some(peer);
        self.complete_request(request);
    }

    /// Asks for addresses, if there are any to be asked for, and for our own signature, if we sign.
    fn ask_the_rest(&mut self, peer: &Peer, request: &Request) -> Result<(bool, Own), Refused> {
        let connection = self.connection_named(&peer.connection)?;
        let own = if request.rounds.ours() {
            self.own_auth_as_responder(connection, request, peer)?
        } else {
            Own::Nothing
        };
        let addresses = request.is_last(connection)
            && self.ask_for_addresses(connection, &peer.remote_id, request.first())?;
        Ok((addresses, own))
    }

    /// Answers the request once all that it waits for is there.
    pub(super) fn complete_request(&mut self, request: Box<Request>) {
        if request.is_waiting() {
            return self.park(Parked::Request(request));
        }
        let id = request.id;
        if let Err(refused) = self.answer_request(*request) {
            self.refuse(ExchangeType::IKE_AUTH, id, refused);
        }
    }

    fn answer_request(&mut self, mut request: Request) -> Result<(), Refused> {
        let (Phase::HalfOpen(_), Some(peer), Some(own)) =
            (&self.record.phase, request.peer.take(), request.own.take())
        else {
            return Err(Refused::syntax("not waiting for IKE_AUTH"));
        };
        let (id, used) = (request.id, request.mixed.used);
        let negotiated = request.mixed.negotiated.clone();
        let connection = self.connection_named(&peer.connection)?;
        let own = own
            .payloads()
            .ok_or_else(|| Refused::new(NotifyType::AUTHENTICATION_FAILED, Failure::Signing))?;
        self.record.path.local = request.local;
        self.record.path.remote = request.remote;
        self.session.answering = Some(Box::new((request.local, request.remote)));
        self.commit();
        if !request.is_last(connection) {
            self.next_round(connection, &request, negotiated, &peer, own);
            return Ok(());
        }
        let leased = request.addresses.take().and_then(Answer::given);
        let payloads = request.first();
        let mut answer =
            self.establish_as_responder(connection, negotiated, peer, own, payloads, leased);
        if used {
            answer.push(notify(NotifyType::PPK_IDENTITY, Vec::new()));
        }
        self.respond(ExchangeType::IKE_AUTH, id, &answer);
        Ok(())
    }

    /// Whether the peer asks for virtual addresses that a pool could give: then they are asked for, and the exchange waits.
    fn ask_for_addresses(
        &mut self,
        connection: &Connection,
        identity: &Identity,
        payloads: &[Payload],
    ) -> Result<bool, Refused> {
        let request = at_most_one!(payloads, Cp).map_err(Refused::syntax)?;
        let Some(request) = request.filter(|c| c.kind == CfgType::REQUEST) else {
            return Ok(false);
        };
        let has_pool = |v4: bool| {
            let pools = self.env.policy.pools.iter();
            pools
                .filter(|p| connection.pools.contains(&p.name))
                .any(|p| p.first.is_ipv4() == v4)
        };
        let v4 = configuration::wished(request, CfgAttrType::INTERNAL_IP4_ADDRESS)
            .filter(|_| has_pool(true));
        let v6 = configuration::wished(request, CfgAttrType::INTERNAL_IP6_ADDRESS)
            .filter(|_| has_pool(false));
        if v4.is_none() && v6.is_none() {
            return Ok(false);
        }
        let alone = find_notify(payloads, NotifyType::INITIAL_CONTACT).is_some();
        let takes_over = match connection.unique {
            Unique::Never => false,
            Unique::Replace => true,
            Unique::No | Unique::Keep => alone,
        };
        self.ask(Question::Addresses {
            pools: connection.pools.clone(),
            identity: identity.clone(),
            v4,
            v6,
            takes_over,
        });
        Ok(true)
    }

    fn establish_as_responder(
        &mut self,
        connection: &'e Connection,
        negotiated: Negotiated,
        peer: Peer,
        own: Vec<Payload>,
        payloads: &[Payload],
        leased: Option<Result<Vec<IpAddr>, NoAddress>>,
    ) -> Vec<Payload> {
        let Peer {
            local_id,
            remote_id,
            ..
        } = peer;
        let mut answer = Vec::new();
        if !own.is_empty() {
            answer.push(Payload::IdR(local_id.to_wire()));
            answer.extend(own);
        }
        let sync = connection.message_id_sync
            && find_notify(payloads, NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED).is_some();
        let (nonce_i, nonce_r) = (negotiated.nonce_i.clone(), negotiated.nonce_r.clone());
        self.establish(connection, negotiated, local_id, remote_id.clone(), sync);
        self.established().initial_contact =
            find_notify(payloads, NotifyType::INITIAL_CONTACT).is_some();
        let asked = payloads
            .iter()
            .any(|p| matches!(p, Payload::Cp(c) if c.kind == CfgType::REQUEST && configuration::wants_address(c)));
        let addresses = match leased {
            Some(Ok(addresses)) => Ok(addresses),
            None if !asked && (connection.pools.is_empty() || is_childless(payloads)) => {
                Ok(Vec::new())
            }
            None if !asked => Err(NotifyType::FAILED_CP_REQUIRED),
            _ => Err(NotifyType::INTERNAL_ADDRESS_FAILURE),
        };
        let outcome = match addresses {
            Ok(addresses) => {
                if !addresses.is_empty() {
                    answer.push(Payload::Cp(configuration::reply(
                        self.env.policy,
                        connection,
                        &addresses,
                    )));
                }
                self.established().peer_vips = addresses;
                let request = ChildRequest {
                    payloads,
                    nonce_i: &nonce_i,
                    nonce_r: &nonce_r,
                    in_auth: true,
                    replaces: None,
                };
                self.first_child(connection, &request)
            }
            Err(kind) => Err(Refused::new(kind, Failure::NoAddress(remote_id))),
        };
        // A Child SA that cannot be does not end the IKE SA (RFC 7296 §1.2, §2.21.2).
        match outcome {
            Ok(child) => answer.extend(child),
            Err(refused) => {
                self.fail(refused.failure);
                answer.push(Payload::Notify(refused.notify));
            }
        }
        answer.extend(self.accept_mobike(connection, payloads));
        self.note_window_size(payloads);
        answer.extend(self.authentication_lifetime(connection));
        answer.extend(window_size(connection));
        if sync {
            answer.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        answer
    }

    /// The Child SA that is asked for with IKE_AUTH, or none if none is (RFC 6023 §3).
    fn first_child(
        &mut self,
        connection: &'e Connection,
        request: &ChildRequest<'_>,
    ) -> Result<Vec<Payload>, Refused> {
        match (is_childless(request.payloads), connection.childless) {
            (true, Childless::Never) => Err(Refused::syntax("no SA payload")),
            (true, _) => Ok(Vec::new()),
            (false, Childless::Force) => {
                let failure = Failure::Invalid("it asks for a Child SA in IKE_AUTH");
                Err(Refused::new(NotifyType::NO_ADDITIONAL_SAS, failure))
            }
            (false, _) => self.accept_child(request, connection.children.iter()),
        }
    }

    /// Both ends are authenticated.
    pub(super) fn establish(
        &mut self,
        connection: &Connection,
        negotiated: Negotiated,
        local_id: Identity,
        remote_id: Identity,
        message_id_sync: bool,
    ) {
        let now = self.env.now;
        let (rekey_at, expires_at) = self.ike_times(connection, now);
        let initiated = self.record.role == Role::Initiator;
        let reauth_at = initiated
            .then(|| self.time_to_authenticate(connection))
            .flatten();
        self.record.connection = connection.name.clone();
        // Until here it is one (RFC 7296 §2.3), and what came before cannot be repeated any more.
        self.record.inbound.size = connection.window_size.max(1);
        self.record.inbound.answered.clear();
        self.record.phase = Phase::Established(Box::new(Established {
            suite: negotiated.suite,
            keys: negotiated.keys.of_established(),
            local_id,
            remote_id: remote_id.clone(),
            initial_contact: false,
            authenticated: now,
            initiated,
            reauth_at,
            successor: None,
            rekey_at,
            expires_at,
            peer_vips: Vec::new(),
            our_vips: Vec::new(),
            message_id_sync,
            sync_request: None,
            sync_answer: None,
            mobike: None,
            children: Vec::new(),
            follow_ups: Vec::new(),
            rival: None,
            replaced_by: None,
        }));
        self.report(Event::IkeEstablished {
            connection: connection.name.clone(),
            remote_id,
        });
    }

    /// When an IKE SA that is made now should be rekeyed, and when deleted, if its ends were authenticated at that time.
    pub(super) fn ike_times(
        &mut self,
        c: &Connection,
        authenticated: UnixMillis,
    ) -> (Option<UnixMillis>, Option<UnixMillis>) {
        let now = self.env.now;
        let rekeyed = !c.rekey_time.is_zero();
        let rekey_at = rekeyed.then(|| now + randomised(c.rekey_time, c.rand_time, self.env.rng));
        let unrekeyed = rekeyed.then(|| now + c.rekey_time + c.over_time);
        // A rekey does not make the authentication last longer (RFC 4478 §2).
        let stale = (!c.reauth_time.is_zero()).then(|| authenticated + c.reauth_time + c.over_time);
        let expires_at = unrekeyed.into_iter().chain(stale).min();
        (rekey_at, expires_at)
    }
}

/// Whether an IKE_AUTH request has nothing of a Child SA (RFC 6023 §5).
fn is_childless(payloads: &[Payload]) -> bool {
    let of_child = |p: &Payload| matches!(p, Payload::Sa(_) | Payload::TsI(_) | Payload::TsR(_));
    !payloads.iter().any(of_child)
}

/// `time` less a random part of up to `spread`, at most half of it: so that not all SAs are rekeyed at once.
pub(super) fn randomised(time: Duration, spread: Duration, rng: &mut dyn Entropy) -> Duration {
    let spread = spread.min(time / 2);
    let part = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    time - spread.mul_f64(part)
}

/// Whether the suite that was chosen when only addresses were known is one of this connection's too.
fn allows(connection: &Connection, suite: IkeSuite) -> bool {
    let fits = |p: &IkeProposal| {
        p.encryption.contains(&suite.encryption)
            && suite.integrity.is_none_or(|i| p.integrity.contains(&i))
            && p.prf.contains(&suite.prf)
            && p.groups.contains(&suite.group)
            && (p.additional.iter().zip(suite.additional.0)).all(|(menu, chosen)| {
                menu.contains(&chosen) || (menu.is_empty() && chosen.is_none())
            })
    };
    connection.proposals.iter().any(fits)
}
