//! IKE_AUTH with pre-shared keys, as responder (RFC 7296 §1.2, §2.15, §2.21.2), and what both ends share.

use super::{
    Effect, Event, Failure, NoAddress, Question,
    child::ChildRequest,
    configuration,
    turn::{Refused, Turn, at_most_one, find_notify, notify, only},
};
use crate::{
    config::Connection,
    crypto::{self, IkeSuite},
    env::{Entropy, UnixMillis},
    identity::Identity,
    proposal::IkeProposal,
    record::{Established, Negotiated, Phase},
    secret::Secret,
    wire::{
        self, Auth, AuthMethod, CfgAttrType, CfgType, ExchangeType, Identification, NotifyType,
        Payload,
    },
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use subtle::ConstantTimeEq;

/// A peer whose AUTH payload verified.
struct Authenticated<'p> {
    connection: &'p Connection,
    local_id: Identity,
    remote_id: Identity,
    /// Our own AUTH data.
    auth: Secret,
}

/// The body of an ID payload, which AUTH covers.
fn id_body(id: &Identification) -> Vec<u8> {
    let mut body = vec![id.kind.0];
    body.extend(id.reserved);
    body.extend(&id.data);
    body
}

/// What both ends sign, each its own (RFC 7296 §2.15).
pub(super) fn auth_of_initiator(n: &Negotiated, psk: &Secret, id: &Identification) -> Secret {
    crypto::psk_auth(
        n.suite.prf,
        psk,
        &n.init_request,
        &n.nonce_r,
        &n.keys.pi,
        &id_body(id),
        &n.int_auth(),
    )
}

pub(super) fn auth_of_responder(n: &Negotiated, psk: &Secret, id: &Identification) -> Secret {
    crypto::psk_auth(
        n.suite.prf,
        psk,
        &n.init_response,
        &n.nonce_i,
        &n.keys.pr,
        &id_body(id),
        &n.int_auth(),
    )
}

impl<'e> Turn<'_, 'e> {
    pub(super) fn auth_request(
        &mut self,
        payloads: &[Payload],
        bytes: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let Phase::HalfOpen(half) = &self.record.phase else {
            return;
        };
        let negotiated = half.negotiated.clone();
        let id = negotiated.auth_id();
        if negotiated.next_exchange().is_some() {
            let early = Refused::syntax("IKE_AUTH before the additional key exchanges");
            return self.refuse(ExchangeType::IKE_AUTH, id, early);
        }
        self.record.path.local = local;
        self.record.path.remote = remote;
        let peer = self
            .unexpected_nat(payloads)
            .and_then(|()| self.authenticate_initiator(&negotiated, payloads));
        let peer = match peer {
            Ok(peer) => peer,
            Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, id, refused),
        };
        let leased = match self.session.leased.take() {
            Some(answer) => Some(answer),
            None => match self.ask_for_addresses(&peer, payloads) {
                Ok(true) => {
                    self.session.parked = Some((bytes.to_vec(), local, remote));
                    return;
                }
                Ok(false) => None,
                Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, id, refused),
            },
        };
        self.commit();
        let answer = self.establish_as_responder(negotiated, peer, payloads, leased);
        self.respond(ExchangeType::IKE_AUTH, id, &answer);
    }

    /// The answer to our question for addresses: the request that waits for it goes on.
    pub(super) fn addresses(&mut self, answer: Result<Vec<IpAddr>, NoAddress>) {
        if let Some((bytes, local, remote)) = self.session.parked.take() {
            self.session.leased = Some(answer);
            self.datagram(&bytes, local, remote);
            self.session.leased = None;
        }
    }

    /// Finds the connection that this peer is for, and verifies that it is who it says.
    fn authenticate_initiator(
        &self,
        negotiated: &Negotiated,
        payloads: &[Payload],
    ) -> Result<Authenticated<'e>, Refused> {
        let denied = |failure| Refused::new(NotifyType::AUTHENTICATION_FAILED, failure);
        let id_i = only!(payloads, IdI).map_err(Refused::syntax)?;
        let id_r = at_most_one!(payloads, IdR).map_err(Refused::syntax)?;
        let auth = at_most_one!(payloads, Auth).map_err(Refused::syntax)?;
        let remote_id = Identity::from_wire(id_i);
        let path = self.record.path;
        let wanted = id_r.map(Identity::from_wire);
        let connection = self
            .env
            .policy
            .candidates(path.local, path.remote)
            .find(|c| {
                c.remote_id.matches(&remote_id)
                    && wanted
                        .as_ref()
                        .is_none_or(|w| *w == own_identity(c, path.local.ip()))
                    && allows(c, negotiated.suite)
            })
            .ok_or_else(|| {
                denied(Failure::UnknownIdentity {
                    remote: path.remote.ip(),
                    id: remote_id.clone(),
                })
            })?;
        let local_id = own_identity(connection, path.local.ip());
        // Without AUTH the peer wants EAP (RFC 7296 §2.16), which no connection accepts yet.
        let Some(auth) = auth.filter(|a| a.method == AuthMethod::PSK) else {
            return Err(denied(Failure::BadAuthMethod(remote_id)));
        };
        let Some(psk) = self.env.policy.secret(&local_id, &remote_id) else {
            return Err(denied(Failure::NoSecret {
                local: local_id,
                remote: remote_id,
            }));
        };
        let expected = auth_of_initiator(negotiated, psk, id_i);
        if !bool::from(expected.expose().ct_eq(&auth.data)) {
            return Err(denied(Failure::BadAuth(remote_id)));
        }
        let auth = auth_of_responder(negotiated, psk, &local_id.to_wire());
        Ok(Authenticated {
            connection,
            local_id,
            remote_id,
            auth,
        })
    }

    /// Whether the peer asks for virtual addresses that a pool could give: then they are asked for, and the exchange waits.
    fn ask_for_addresses(
        &mut self,
        peer: &Authenticated<'_>,
        payloads: &[Payload],
    ) -> Result<bool, Refused> {
        let request = at_most_one!(payloads, Cp).map_err(Refused::syntax)?;
        let Some(request) = request.filter(|c| c.kind == CfgType::REQUEST) else {
            return Ok(false);
        };
        let has_pool = |v4: bool| {
            let pools = self.env.policy.pools.iter();
            pools
                .filter(|p| peer.connection.pools.contains(&p.name))
                .any(|p| p.first.is_ipv4() == v4)
        };
        let v4 = configuration::wished(request, CfgAttrType::INTERNAL_IP4_ADDRESS)
            .filter(|_| has_pool(true));
        let v6 = configuration::wished(request, CfgAttrType::INTERNAL_IP6_ADDRESS)
            .filter(|_| has_pool(false));
        if v4.is_none() && v6.is_none() {
            return Ok(false);
        }
        let (pools, identity) = (peer.connection.pools.clone(), peer.remote_id.clone());
        self.effects.push(Effect::Ask(Question::Addresses {
            pools,
            identity,
            v4,
            v6,
        }));
        Ok(true)
    }

    fn establish_as_responder(
        &mut self,
        negotiated: Negotiated,
        peer: Authenticated<'e>,
        payloads: &[Payload],
        leased: Option<Result<Vec<IpAddr>, NoAddress>>,
    ) -> Vec<Payload> {
        let Authenticated {
            connection,
            local_id,
            remote_id,
            auth,
        } = peer;
        let mut answer = vec![
            Payload::IdR(local_id.to_wire()),
            Payload::Auth(Auth {
                method: AuthMethod::PSK,
                data: auth.expose().to_vec(),
            }),
        ];
        let sync = connection.message_id_sync
            && find_notify(payloads, NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED).is_some();
        let (nonce_i, nonce_r) = (negotiated.nonce_i.clone(), negotiated.nonce_r.clone());
        self.establish(connection, negotiated, local_id, remote_id.clone(), sync);
        let asked = payloads
            .iter()
            .any(|p| matches!(p, Payload::Cp(c) if c.kind == CfgType::REQUEST && configuration::wants_address(c)));
        let addresses = match leased {
            Some(Ok(addresses)) => Ok(addresses),
            None if !asked && connection.pools.is_empty() => Ok(Vec::new()),
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
                self.accept_child(&request, connection.children.iter())
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
        if sync {
            answer.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        answer
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
        let (rekey_at, expires_at) = self.ike_times(connection);
        self.record.connection = connection.name.clone();
        self.record.phase = Phase::Established(Box::new(Established {
            suite: negotiated.suite,
            keys: negotiated.keys,
            local_id,
            remote_id: remote_id.clone(),
            authenticated: self.env.now,
            rekey_at,
            expires_at,
            peer_vips: Vec::new(),
            our_vips: Vec::new(),
            message_id_sync,
            sync_request: None,
            sync_answer: None,
            mobike: None,
            children: Vec::new(),
            follow_up: None,
            rival: None,
            replaced_by: None,
        }));
        self.report(Event::IkeEstablished {
            connection: connection.name.clone(),
            remote_id,
        });
    }

    /// When an IKE SA that is made now should be rekeyed, and when deleted.
    pub(super) fn ike_times(&mut self, c: &Connection) -> (Option<UnixMillis>, Option<UnixMillis>) {
        if c.rekey_time.is_zero() {
            return (None, None);
        }
        let rekey_in = randomised(c.rekey_time, c.rand_time, self.env.rng);
        (
            Some(self.env.now + rekey_in),
            Some(self.env.now + c.rekey_time + c.over_time),
        )
    }
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

/// What we call ourselves in a connection.
pub(super) fn own_identity(connection: &Connection, local: IpAddr) -> Identity {
    connection
        .local_id
        .clone()
        .unwrap_or(Identity::Address(local))
}
