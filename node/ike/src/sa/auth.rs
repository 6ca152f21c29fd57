//! IKE_AUTH, both ends, with pre-shared keys (RFC 7296 §1.2, §2.15, §2.19).

use super::{
    Effect, Event, Failure, NoAddress, Question,
    child::{ChildRequest, offered_selectors},
    turn::{Refused, Turn, at_most_one, find_error, find_notify, notify, only},
};
use crate::{
    config::Connection,
    crypto::{self, IkeSuite},
    identity::{IdPattern, Identity},
    proposal::{self, IkeProposal},
    record::{AuthSent, ChildOffer, Established, Negotiated, Phase, Task},
    secret::Secret,
    wire::{
        self, Auth, AuthMethod, CfgAttrType, CfgAttribute, CfgType, Configuration, ExchangeType,
        Identification, NotifyType, Payload,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use subtle::ConstantTimeEq;

/// The Message ID of IKE_AUTH (without EAP there is one such exchange).
const AUTH_ID: u32 = 1;

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
fn auth_of_initiator(n: &Negotiated, psk: &Secret, id: &Identification) -> Secret {
    crypto::psk_auth(
        n.suite.prf,
        psk,
        &n.init_request,
        &n.nonce_r,
        &n.keys.pi,
        &id_body(id),
    )
}

fn auth_of_responder(n: &Negotiated, psk: &Secret, id: &Identification) -> Secret {
    crypto::psk_auth(
        n.suite.prf,
        psk,
        &n.init_response,
        &n.nonce_i,
        &n.keys.pr,
        &id_body(id),
    )
}

impl<'e> Turn<'_, 'e> {
    // ---- as responder ----

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
        self.record.path.local = local;
        self.record.path.remote = remote;
        let peer = match self.authenticate_initiator(&negotiated, payloads) {
            Ok(peer) => peer,
            Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, AUTH_ID, refused),
        };
        let leased = match self.session.leased.take() {
            Some(answer) => Some(answer),
            None => match self.ask_for_addresses(&peer, payloads) {
                Ok(true) => {
                    self.session.parked = Some((bytes.to_vec(), local, remote));
                    return;
                }
                Ok(false) => None,
                Err(refused) => return self.refuse(ExchangeType::IKE_AUTH, AUTH_ID, refused),
            },
        };
        self.commit();
        let answer = self.establish_as_responder(negotiated, peer, payloads, leased);
        self.respond(ExchangeType::IKE_AUTH, AUTH_ID, &answer);
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
        let v4 = wished(request, CfgAttrType::INTERNAL_IP4_ADDRESS).filter(|_| has_pool(true));
        let v6 = wished(request, CfgAttrType::INTERNAL_IP6_ADDRESS).filter(|_| has_pool(false));
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
            .any(|p| matches!(p, Payload::Cp(c) if c.kind == CfgType::REQUEST && wants_address(c)));
        let addresses = match leased {
            Some(Ok(addresses)) => Ok(addresses),
            None if !asked && connection.pools.is_empty() => Ok(Vec::new()),
            None if !asked => Err(NotifyType::FAILED_CP_REQUIRED),
            _ => Err(NotifyType::INTERNAL_ADDRESS_FAILURE),
        };
        let outcome = match addresses {
            Ok(addresses) => {
                if !addresses.is_empty() {
                    answer.push(Payload::Cp(self.configuration(connection, &addresses)));
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
        if sync {
            answer.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        answer
    }

    /// The configuration for a peer: its addresses, and the DNS servers of the pools that they are from.
    fn configuration(&self, connection: &Connection, addresses: &[IpAddr]) -> Configuration {
        let mut attributes = Vec::new();
        for address in addresses {
            attributes.push(match address {
                IpAddr::V4(a) => attribute(CfgAttrType::INTERNAL_IP4_ADDRESS, &a.octets()),
                IpAddr::V6(a) => attribute(
                    CfgAttrType::INTERNAL_IP6_ADDRESS,
                    &[&a.octets()[..], &[128]].concat(),
                ),
            });
        }
        let pools = self
            .env
            .policy
            .pools
            .iter()
            .filter(|p| connection.pools.contains(&p.name));
        for pool in pools.filter(|p| addresses.iter().any(|a| p.first.is_ipv4() == a.is_ipv4())) {
            attributes.extend(pool.dns.iter().map(|dns| match dns {
                IpAddr::V4(a) => attribute(CfgAttrType::INTERNAL_IP4_DNS, &a.octets()),
                IpAddr::V6(a) => attribute(CfgAttrType::INTERNAL_IP6_DNS, &a.octets()),
            }));
        }
        Configuration {
            kind: CfgType::REPLY,
            attributes,
        }
    }

    /// Both ends are authenticated.
    fn establish(
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
            children: Vec::new(),
            rival: None,
            replaced_by: None,
        }));
        self.report(Event::IkeEstablished {
            connection: connection.name.clone(),
            remote_id,
        });
    }

    // ---- as initiator ----

    /// IKE_SA_INIT is done: what we will ask for in IKE_AUTH.
    pub(super) fn prepare_auth(&mut self, negotiated: Negotiated, child: &str) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return;
        };
        let path = self.record.path;
        let (local_ts, remote_ts) = match config.child(child) {
            Some(c) => (
                offered_selectors(&c.local_ts, &config.vips, path.local.ip()),
                offered_selectors(&c.remote_ts, &[], path.remote.ip()),
            ),
            None => (Vec::new(), Vec::new()),
        };
        let child = ChildOffer {
            name: child.to_owned(),
            spi_in: self.env.spis.child(self.env.rng),
            nonce: negotiated.nonce_i.clone(),
            key: None,
            local_ts,
            remote_ts,
            replaces: None,
        };
        let local_id = own_identity(config, path.local.ip());
        self.record.phase = Phase::AuthSent(Box::new(AuthSent {
            negotiated,
            local_id,
            child,
        }));
    }

    /// Sends IKE_AUTH.
    pub(super) fn auth_start(&mut self, config: &Connection) {
        let Phase::AuthSent(state) = &self.record.phase else {
            return;
        };
        let remote = self.record.path.remote.ip();
        let expected = expected_identity(config, remote);
        let Some(psk) = self.env.policy.secret(&state.local_id, &expected) else {
            let failure = Failure::NoSecret {
                local: state.local_id.clone(),
                remote: expected,
            };
            return self.give_up(failure);
        };
        let Some(child) = config.child(&state.child.name) else {
            return self.give_up(Failure::Command("the connection has no such child"));
        };
        let id = state.local_id.to_wire();
        let auth = auth_of_initiator(&state.negotiated, psk, &id);
        let mut payloads = vec![Payload::IdI(id)];
        if let IdPattern::Exact(id) = &config.remote_id {
            payloads.push(Payload::IdR(id.to_wire()));
        }
        payloads.push(Payload::Auth(Auth {
            method: AuthMethod::PSK,
            data: auth.expose().to_vec(),
        }));
        if !config.vips.is_empty() {
            payloads.push(Payload::Cp(address_request(&config.vips)));
        }
        payloads.push(Payload::Sa(proposal::offer_esp(
            &child.esp_proposals,
            state.child.spi_in,
            false,
        )));
        payloads.push(Payload::TsI(state.child.local_ts.clone()));
        payloads.push(Payload::TsR(state.child.remote_ts.clone()));
        if config.message_id_sync {
            payloads.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        self.record.outbound.next = AUTH_ID;
        self.request(ExchangeType::IKE_AUTH, &payloads, Task::Connect);
        self.commit();
    }

    /// The response to our IKE_AUTH.
    pub(super) fn auth_response(&mut self, payloads: &[Payload]) {
        let Phase::AuthSent(state) = &self.record.phase else {
            return;
        };
        let state = (**state).clone();
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        match self.authenticate_responder(config, &state, payloads) {
            Ok(remote_id) => self.establish_as_initiator(config, state, remote_id, payloads),
            Err(failure @ Failure::PeerRefused(_)) => self.give_up(failure),
            Err(failure) => {
                // The peer believes that all is well: it has to be told (RFC 7296 §2.21.2).
                let told = [notify(NotifyType::AUTHENTICATION_FAILED, Vec::new())];
                self.request(ExchangeType::INFORMATIONAL, &told, Task::DeleteIke);
                self.give_up(failure);
            }
        }
    }

    fn authenticate_responder(
        &self,
        config: &Connection,
        state: &AuthSent,
        payloads: &[Payload],
    ) -> Result<Identity, Failure> {
        let auth = at_most_one!(payloads, Auth).map_err(Failure::Invalid)?;
        let Some(auth) = auth else {
            return Err(
                find_error(payloads).map_or(Failure::Invalid("no AUTH payload"), |n| {
                    Failure::PeerRefused(n.kind)
                }),
            );
        };
        let id_r = only!(payloads, IdR).map_err(Failure::Invalid)?;
        let remote_id = Identity::from_wire(id_r);
        if !config.remote_id.matches(&remote_id) {
            return Err(Failure::UnknownIdentity {
                remote: self.record.path.remote.ip(),
                id: remote_id,
            });
        }
        if auth.method != AuthMethod::PSK {
            return Err(Failure::BadAuthMethod(remote_id));
        }
        let Some(psk) = self.env.policy.secret(&state.local_id, &remote_id) else {
            return Err(Failure::NoSecret {
                local: state.local_id.clone(),
                remote: remote_id,
            });
        };
        let expected = auth_of_responder(&state.negotiated, psk, id_r);
        if !bool::from(expected.expose().ct_eq(&auth.data)) {
            return Err(Failure::BadAuth(remote_id));
        }
        Ok(remote_id)
    }

    fn establish_as_initiator(
        &mut self,
        config: &Connection,
        state: AuthSent,
        remote_id: Identity,
        payloads: &[Payload],
    ) {
        let AuthSent {
            negotiated,
            local_id,
            child,
        } = state;
        let nonce_r = negotiated.nonce_r.clone();
        let sync = config.message_id_sync
            && find_notify(payloads, NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED).is_some();
        self.establish(config, negotiated, local_id, remote_id, sync);
        self.commit();
        if let Ok(Some(cp)) = at_most_one!(payloads, Cp) {
            let (addresses, dns) = assigned(cp);
            if !addresses.is_empty() {
                self.established().our_vips = addresses.clone();
                self.effects
                    .push(Effect::AssignAddresses { addresses, dns });
            }
        }
        let spi_in = child.spi_in;
        if let Err(failure) = self.complete_child(child, payloads, &nonce_r, true) {
            let refused = matches!(failure, Failure::PeerRefused(_));
            self.fail(failure);
            if !refused {
                self.delete_children(vec![spi_in]); // the peer has a Child SA now that we cannot have
            }
        }
    }

    /// When an IKE SA that is made now should be rekeyed, and when deleted.
    pub(super) fn ike_times(
        &mut self,
        c: &Connection,
    ) -> (
        Option<crate::env::UnixMillis>,
        Option<crate::env::UnixMillis>,
    ) {
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
pub(super) fn randomised(
    time: Duration,
    spread: Duration,
    rng: &mut dyn crate::env::Entropy,
) -> Duration {
    let spread = spread.min(time / 2);
    let part = f64::from(rng.next_u32()) / f64::from(u32::MAX);
    time - spread.mul_f64(part)
}

/// Whether the suite that was chosen when only addresses were known is one of this connection's too.
fn allows(connection: &Connection, suite: IkeSuite) -> bool {
    let fits = |p: &IkeProposal| {
        p.encryption.contains(&suite.encryption)
            && p.prf.contains(&suite.prf)
            && p.groups.contains(&suite.group)
    };
    connection.proposals.iter().any(fits)
}

/// What we call ourselves in a connection.
fn own_identity(connection: &Connection, local: IpAddr) -> Identity {
    connection
        .local_id
        .clone()
        .unwrap_or(Identity::Address(local))
}

/// Who we expect to reach, as far as it is known before the peer says.
fn expected_identity(connection: &Connection, remote: IpAddr) -> Identity {
    match &connection.remote_id {
        IdPattern::Exact(id) => id.clone(),
        _ => Identity::Address(remote),
    }
}

fn attribute(kind: CfgAttrType, value: &[u8]) -> CfgAttribute {
    CfgAttribute {
        kind,
        value: value.to_vec(),
    }
}

fn wants_address(request: &Configuration) -> bool {
    let kinds = [
        CfgAttrType::INTERNAL_IP4_ADDRESS,
        CfgAttrType::INTERNAL_IP6_ADDRESS,
    ];
    request.attributes.iter().any(|a| kinds.contains(&a.kind))
}

/// The address that a request names, the unspecified one if it names none; `None` if it asks for none of this kind.
fn wished(request: &Configuration, kind: CfgAttrType) -> Option<IpAddr> {
    request.attributes.iter().find(|a| a.kind == kind).map(|a| {
        address(a).unwrap_or(match kind {
            CfgAttrType::INTERNAL_IP4_ADDRESS => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        })
    })
}

/// The address in an attribute.
fn address(a: &CfgAttribute) -> Option<IpAddr> {
    match a.kind {
        CfgAttrType::INTERNAL_IP4_ADDRESS | CfgAttrType::INTERNAL_IP4_DNS => {
            <[u8; 4]>::try_from(&a.value[..]).ok().map(IpAddr::from)
        }
        CfgAttrType::INTERNAL_IP6_ADDRESS | CfgAttrType::INTERNAL_IP6_DNS => a
            .value
            .get(..16)
            .and_then(|v| <[u8; 16]>::try_from(v).ok())
            .map(IpAddr::from),
        _ => None,
    }
}

/// Addresses and DNS servers that a reply gives us.
fn assigned(reply: &Configuration) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let of = |kinds: [CfgAttrType; 2]| {
        reply
            .attributes
            .iter()
            .filter(|a| kinds.contains(&a.kind))
            .filter_map(address)
            .collect()
    };
    (
        of([
            CfgAttrType::INTERNAL_IP4_ADDRESS,
            CfgAttrType::INTERNAL_IP6_ADDRESS,
        ]),
        of([CfgAttrType::INTERNAL_IP4_DNS, CfgAttrType::INTERNAL_IP6_DNS]),
    )
}

/// Asks for these virtual addresses.
fn address_request(vips: &[IpAddr]) -> Configuration {
    let mut attributes = Vec::new();
    for vip in vips {
        let (kind, dns) = match vip {
            IpAddr::V4(_) => (
                CfgAttrType::INTERNAL_IP4_ADDRESS,
                CfgAttrType::INTERNAL_IP4_DNS,
            ),
            IpAddr::V6(_) => (
                CfgAttrType::INTERNAL_IP6_ADDRESS,
                CfgAttrType::INTERNAL_IP6_DNS,
            ),
        };
        let value = match vip {
            any if any.is_unspecified() => Vec::new(),
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => [&a.octets()[..], &[128]].concat(),
        };
        attributes.push(CfgAttribute { kind, value });
        attributes.push(CfgAttribute {
            kind: dns,
            value: Vec::new(),
        });
    }
    Configuration {
        kind: CfgType::REQUEST,
        attributes,
    }
}
