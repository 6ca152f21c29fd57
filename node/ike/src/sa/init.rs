//! IKE_SA_INIT as responder (RFC 7296 §1.2, §2.6): nothing is kept of a request until its cookie came back, where one is demanded.

use super::{
    Env, Failure,
    auth::{certificate_requests, ppk},
    nat,
    turn::{find_notify, header, notify, only},
};
use crate::{
    config::{Childless, Connection, Fragmentation},
    crypto::{Exchanged, Group, IkeKeys, IkeSuite, Prf},
    env::{Entropy, UnixMillis},
    proposal::{self, Chosen},
    record::{
        GatewayId, HalfOpen, InboundWindow, Intermediates, Negotiated, OutboundWindow, Path, Phase,
        Record, Role, Rounds, Transport,
    },
    secret::Secret,
    signature::Hash,
    wire::{self, ExchangeType, Header, KeyExchange, Message, NotifyType, ParseError, Payload},
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};
use subtle::ConstantTimeEq;

/// Length of our nonces: enough for every PRF (RFC 7296 §2.10).
pub(super) const NONCE_LEN: usize = 32;

/// Answers to an IKE_SA_INIT request.
#[derive(Debug)]
pub enum InitAnswer {
    /// Send this and keep nothing: a cookie request or an error notify.
    Stateless {
        /// The message.
        datagram: Vec<u8>,
        /// What went wrong, unless it is a cookie request.
        failure: Option<Failure>,
    },
    /// A half-open SA: replicate the record lazily, send the response, which is in its `inbound`.
    HalfOpen(Box<Record>),
    /// Say nothing.
    Silent(Failure),
}

/// Cluster-wide secrets of stateless cookies (RFC 7296 §2.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieSecrets {
    /// The one that is issued.
    pub current: Secret,
    /// The one before, still accepted.
    pub previous: Secret,
}

impl CookieSecrets {
    fn cookie(secret: &Secret, remote: SocketAddr, spi_i: u64, nonce_i: &[u8]) -> Vec<u8> {
        let ip = remote.ip().to_string();
        Prf::HmacSha256
            .compute(
                secret.expose(),
                &[nonce_i, ip.as_bytes(), &spi_i.to_be_bytes()],
            )
            .expose()
            .to_vec()
    }

    fn accept(&self, cookie: &[u8], remote: SocketAddr, spi_i: u64, nonce_i: &[u8]) -> bool {
        [&self.current, &self.previous]
            .iter()
            .any(|s| Self::cookie(s, remote, spi_i, nonce_i).ct_eq(cookie).into())
    }
}

/// What an IKE_SA_INIT request asks for.
struct Request<'a> {
    header: Header,
    payloads: &'a [Payload],
    offered: &'a [wire::Proposal],
    ke: &'a KeyExchange,
    nonce_i: &'a [u8],
    local: SocketAddr,
    remote: SocketAddr,
    transport: Transport,
}

/// Answers an IKE_SA_INIT request (RFC 7296 §1.2). With `demand_cookie`, a request without a valid cookie only gets one.
/// A half-open SA waits for IKE_AUTH for `patience`.
pub fn answer_init(
    bytes: &[u8],
    (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    gateway: GatewayId,
    demand_cookie: bool,
    patience: Duration,
    cookies: &CookieSecrets,
    env: &mut Env<'_>,
) -> InitAnswer {
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(error) => return unparsable(bytes, error),
    };
    let request = match read(&message, (local, remote, transport)) {
        Ok(request) => request,
        Err(what) => return InitAnswer::Silent(Failure::Invalid(what)),
    };
    // Who sends by TCP has shown where it is, and the state that a cookie would save is there already (RFC 9329 §6.3).
    let demand_cookie = demand_cookie && !transport.is_tcp();
    if demand_cookie && !request.has_cookie(cookies) {
        let cookie = CookieSecrets::cookie(
            &cookies.current,
            remote,
            request.header.initiator_spi,
            request.nonce_i,
        );
        return InitAnswer::Stateless {
            datagram: request.reply(0, &[notify(NotifyType::COOKIE, cookie)]),
            failure: None,
        };
    }
    let (connection, chosen) = match request.choose(env) {
        Ok(found) => found,
        Err(failure) => {
            return request.refuse(NotifyType::NO_PROPOSAL_CHOSEN, Vec::new(), Some(failure));
        }
    };
    if chosen.suite.group.id() != request.ke.group {
        let wanted = chosen.suite.group.id().to_be_bytes().to_vec();
        return request.refuse(NotifyType::INVALID_KE_PAYLOAD, wanted, None);
    }
    let expires_at = env.now + patience;
    match half_open(
        &request, bytes, connection, &chosen, gateway, expires_at, env,
    ) {
        Ok(record) => InitAnswer::HalfOpen(Box::new(record)),
        Err(failure) => InitAnswer::Silent(failure),
    }
}

/// Answers a request that belongs to no SA (RFC 7296 §1.5, §2.5, §2.21.4): of another major version, or for an IKE SA that does not exist. It is not
/// protected, so a peer takes it as a hint only. Who sends it limits the rate, and knows that no member has the SA.
pub fn answer_stray(bytes: &[u8]) -> Option<Vec<u8>> {
    let (major, header) = Header::parse_any_version(bytes).ok()?;
    let kind = match major {
        0..=1 => return None,
        2 if header.responder_spi == 0 || header.initiator_spi == 0 => return None,
        2 => NotifyType::INVALID_IKE_SPI,
        _ => NotifyType::INVALID_MAJOR_VERSION,
    };
    if header.is_response {
        return None;
    }
    let answer = Header {
        from_initiator: !header.from_initiator,
        is_response: true,
        minor_version: 0,
        higher_version: false,
        ..header
    };
    Some(wire::emit(&answer, &[notify(kind, Vec::new())]))
}

/// Only one thing wrong with a first message is worth an answer: a critical payload that we do not know (RFC 7296 §2.5).
fn unparsable(bytes: &[u8], error: ParseError) -> InitAnswer {
    match (Header::parse(bytes), &error) {
        (Ok(h), ParseError::UnknownCritical(kind))
            if h.from_initiator && !h.is_response && h.message_id == 0 =>
        {
            let answer = Header {
                from_initiator: false,
                is_response: true,
                ..h
            };
            let datagram = wire::emit(
                &answer,
                &[notify(
                    NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
                    vec![*kind],
                )],
            );
            InitAnswer::Stateless {
                datagram,
                failure: Some(error.into()),
            }
        }
        _ => InitAnswer::Silent(error.into()),
    }
}

fn read<'a>(
    message: &'a Message<'_>,
    (local, remote, transport): (SocketAddr, SocketAddr, Transport),
) -> Result<Request<'a>, &'static str> {
    let header = message.header;
    if header.exchange != ExchangeType::IKE_SA_INIT || header.is_response || !header.from_initiator
    {
        return Err("not an IKE_SA_INIT request");
    }
    if header.responder_spi != 0
        || header.initiator_spi == 0
        || header.message_id != 0
        || message.protected.is_some()
    {
        return Err(
            "an IKE_SA_INIT request with SPIs, Message ID or protection that it cannot have",
        );
    }
    let payloads = &message.payloads[..];
    Ok(Request {
        header,
        payloads,
        offered: only!(payloads, Sa)?,
        ke: only!(payloads, Ke)?,
        nonce_i: only!(payloads, Nonce)?,
        local,
        remote,
        transport,
    })
}

impl Request<'_> {
    fn has_cookie(&self, cookies: &CookieSecrets) -> bool {
        find_notify(self.payloads, NotifyType::COOKIE).is_some_and(|n| {
            cookies.accept(
                &n.data,
                self.remote,
                self.header.initiator_spi,
                self.nonce_i,
            )
        })
    }

    /// Whether the peer can do IKE_INTERMEDIATE, without which there are no additional key exchanges (RFC 9370 §2.2.2).
    fn supports_intermediate(&self) -> bool {
        find_notify(self.payloads, NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED).is_some()
    }

    /// A first connection that fits, and what it accepts of the offer. Which connection it really is shows when the peer has authenticated.
    fn choose<'p>(&self, env: &Env<'p>) -> Result<(&'p Connection, Chosen<IkeSuite>), Failure> {
        let mut any = false;
        for connection in env.policy.candidates(self.local, self.remote) {
            any = true;
            let chosen = proposal::choose_ike(
                &connection.proposals,
                self.offered,
                self.ke.group,
                self.supports_intermediate(),
            );
            if let Some(chosen) = chosen {
                return Ok((connection, chosen));
            }
        }
        Err(if any {
            Failure::NoIkeProposal
        } else {
            Failure::NoConnection {
                local: self.local.ip(),
                remote: self.remote.ip(),
            }
        })
    }

    fn reply(&self, responder_spi: u64, payloads: &[Payload]) -> Vec<u8> {
        let header = Header {
            responder_spi,
            from_initiator: false,
            is_response: true,
            minor_version: 0,
            higher_version: false,
            ..self.header
        };
        wire::emit(&header, payloads)
    }

    fn refuse(&self, kind: NotifyType, data: Vec<u8>, failure: Option<Failure>) -> InitAnswer {
        InitAnswer::Stateless {
            datagram: self.reply(0, &[notify(kind, data)]),
            failure,
        }
    }
}

fn half_open(
    request: &Request<'_>,
    bytes: &[u8],
    connection: &Connection,
    chosen: &Chosen<IkeSuite>,
    gateway: GatewayId,
    expires_at: UnixMillis,
    env: &mut Env<'_>,
) -> Result<Record, Failure> {
    let suite = chosen.suite;
    let (public, shared) = suite.group.answer(&request.ke.data, env.rng)?;
    let id = env.spis.ike(env.rng);
    let nonce_r = nonce(env.rng);
    let (spi_i, nonce_i) = (request.header.initiator_spi, request.nonce_i.to_vec());
    let keys = IkeKeys::initial(
        suite,
        &shared,
        Exchanged {
            nonce_i: &nonce_i,
            nonce_r: &nonce_r,
            spi_i,
            spi_r: id.0,
        },
    );
    let (nat_local, nat_remote) = nat::detect(
        &request.header,
        request.payloads,
        request.local,
        request.remote,
    );
    let mut record = Record {
        id,
        gateway,
        revision: 1,
        role: Role::Responder,
        remote_spi: spi_i,
        connection: connection.name.clone(),
        path: Path {
            transport: request.transport,
            local: request.local,
            remote: request.remote,
            nat_local: nat_local || connection.encap,
            nat_remote,
        },
        fragmentation: connection.fragmentation != Fragmentation::No
            && find_notify(request.payloads, NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some(),
        created: env.now,
        inbound: InboundWindow::default(),
        outbound: OutboundWindow::default(),
        succeeds: None,
        phase: Phase::HalfOpen(Box::new(HalfOpen {
            negotiated: Negotiated {
                suite,
                keys,
                nonce_i,
                nonce_r: nonce_r.clone(),
                init_request: bytes.to_vec(),
                init_response: Vec::new(),
                intermediates: Intermediates::default(),
            },
            rounds: Rounds::default(),
            expires_at,
        })),
    };
    let header = header(&record, ExchangeType::IKE_SA_INIT, true, 0);
    let mut payloads = vec![
        Payload::Sa(vec![proposal::answer_ike(chosen, &[])]),
        Payload::Ke(KeyExchange {
            group: suite.group.id(),
            data: public,
        }),
        Payload::Nonce(nonce_r),
    ];
    if !suite.additional.is_empty() {
        payloads.push(notify(
            NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED,
            Vec::new(),
        ));
    }
    payloads.extend(nat::notifies(
        &header,
        request.local,
        request.remote,
        connection.encap,
        env.rng,
    ));
    payloads.extend(capabilities(connection, record.fragmentation));
    payloads.extend(authentication(request, env));
    let response = wire::emit(&header, &payloads);
    if let Phase::HalfOpen(h) = &mut record.phase {
        h.negotiated.init_response = response.clone();
    }
    record.inbound = InboundWindow::after_first(vec![response]);
    Ok(record)
}

/// What else we take from the peer: IKE_AUTH without a Child SA (RFC 6023 §3), and messages in fragments (RFC 7383 §2.3).
fn capabilities(connection: &Connection, fragmentation: bool) -> impl Iterator<Item = Payload> {
    let childless =
        (connection.childless != Childless::Never).then_some(NotifyType::CHILDLESS_IKEV2_SUPPORTED);
    let fragmentation = fragmentation.then_some(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED);
    let supported = childless.into_iter().chain(fragmentation);
    supported.map(|kind| notify(kind, Vec::new()))
}

/// What the peer has to know before it authenticates, where signatures are possible: which hashes we know (RFC 7427 §4), and which authorities
/// its certificate may be of (RFC 7296 §1.2, §3.7). Which connection it is for is not known yet.
fn authentication(request: &Request<'_>, env: &Env<'_>) -> Vec<Payload> {
    let candidates = || env.policy.candidates(request.local, request.remote);
    let mut payloads: Vec<Payload> = certificate_requests(env.policy, candidates()).collect();
    if candidates().any(Connection::has_rounds) {
        payloads.push(notify(NotifyType::MULTIPLE_AUTH_SUPPORTED, Vec::new()));
    }
    let announced = find_notify(request.payloads, NotifyType::SIGNATURE_HASH_ALGORITHMS);
    if announced.is_some() && candidates().any(|c| c.auth.has_signatures()) {
        payloads.push(signature_hashes());
    }
    let ppk = find_notify(request.payloads, NotifyType::USE_PPK);
    if ppk.is_some() && candidates().any(|c| c.auth.ppk.is_some()) {
        payloads.push(ppk::announcement());
    }
    payloads
}

/// Announces the hashes that we know for signatures.
pub(super) fn signature_hashes() -> Payload {
    notify(NotifyType::SIGNATURE_HASH_ALGORITHMS, Hash::announcement())
}

/// A fresh nonce.
pub(super) fn nonce(rng: &mut dyn Entropy) -> Vec<u8> {
    let mut nonce = vec![0; NONCE_LEN];
    rng.fill(&mut nonce);
    nonce
}

/// The group that an INVALID_KE_PAYLOAD names, if it is one of `ours`.
pub(super) fn named_group(data: &[u8], ours: impl IntoIterator<Item = Group>) -> Option<Group> {
    let id = u16::from_be_bytes(data.try_into().ok()?);
    ours.into_iter().find(|g| g.id() == id)
}
