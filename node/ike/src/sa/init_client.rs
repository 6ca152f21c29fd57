//! IKE_SA_INIT as initiator (RFC 7296 §1.2, §2.6, §2.7).

use super::{
    Effect, Env, Failure,
    auth::ppk,
    init::{named_group, nonce, signature_hashes},
    nat, tcp,
    turn::{Turn, find_error, find_notify, header, notify, only},
};
use crate::{
    config::{Childless, Connection, EnableTcp, Fragmentation, Unique},
    crypto::{Exchanged, Group, IkeKeys, KeyPair},
    env::Entropy,
    proposal::{self, IkeProposal},
    record::{
        CloseReason, GatewayId, InboundWindow, InitSent, Intent, Intermediates, Negotiated,
        OutboundWindow, Path, PendingRequest, Phase, Record, Role, Task, TcpEnd, Transport,
    },
    wire::{self, ExchangeType, KeyExchange, Message, NotifyType, Payload},
};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// How often a request is made anew because of cookies or groups, before the peer is considered broken.
const MAX_RESTARTS: u8 = 4;

/// So many addresses of a peer are tried besides the first: more than one peer has.
const MAX_OTHERS: usize = 15;

/// Starts an SA of our own: a record whose pending request is to be committed and then sent. `pairs` are addresses of ours and the peer's, to be tried
/// in this order; `ike_port` is our port. `alone` says that nobody in the
/// cluster has an IKE SA with the peer, which it will be told.
///
/// # Errors
/// If the connection or the child does not exist, or it is not clear from where to where.
pub fn initiate(
    connection: &str,
    child: &str,
    pairs: &[(IpAddr, IpAddr)],
    ike_port: u16,
    gateway: GatewayId,
    alone: bool,
    env: &mut Env<'_>,
) -> Result<Record, Failure> {
    let config = env
        .policy
        .connection(connection)
        .ok_or_else(|| Failure::Unconfigured(connection.to_owned()))?;
    config
        .child(child)
        .ok_or(Failure::Command("the connection has no such child"))?;
    let Some((&(local, remote), others)) = pairs.split_first() else {
        return Err(Failure::Command(
            "no address of the peer is known, or none of ours from which to reach it",
        ));
    };
    let transport = match config.enable_tcp {
        EnableTcp::Yes => Transport::Tcp(TcpEnd::Originator),
        EnableTcp::No | EnableTcp::Fallback => Transport::Udp,
    };
    let ends = match transport {
        Transport::Udp => (
            SocketAddr::new(local, ike_port),
            SocketAddr::new(remote, config.remote_port),
        ),
        Transport::Tcp(_) => tcp::ends(config, local, remote, env.rng),
    };
    first_record(
        config,
        (child, alone),
        (transport, ends),
        others,
        gateway,
        env,
    )
}

/// A new SA of our own, whose pending request is the first message.
pub(super) fn first_record(
    config: &Connection,
    (child, alone): (&str, bool),
    (transport, (local, remote)): (Transport, (SocketAddr, SocketAddr)),
    others: &[(IpAddr, IpAddr)],
    gateway: GatewayId,
    env: &mut Env<'_>,
) -> Result<Record, Failure> {
    let group = *config
        .proposals
        .iter()
        .flat_map(|p| &p.groups)
        .next()
        .ok_or(Failure::NoIkeProposal)?;
    let mut record = Record {
        id: env.spis.ike(env.rng),
        gateway,
        revision: 1,
        role: Role::Initiator,
        remote_spi: 0,
        connection: config.name.clone(),
        path: Path {
            transport,
            local,
            remote,
            nat_local: config.encap,
            nat_remote: false,
        },
        fragmentation: false,
        created: env.now,
        inbound: InboundWindow::default(),
        outbound: OutboundWindow::default(),
        succeeds: None,
        phase: Phase::InitSent(Box::new(InitSent {
            child: child.to_owned(),
            others: others.iter().copied().take(MAX_OTHERS).collect(),
            silent: Vec::new(),
            key: KeyPair::generate(group, env.rng),
            nonce: nonce(env.rng),
            initial_contact: alone && config.unique != Unique::Never,
            cookie: None,
            restarts: 0,
        })),
    };
    make_request(&mut record, config, env.rng);
    Ok(record)
}

/// Whether the responder takes IKE_AUTH without a Child SA (RFC 6023 §3).
fn supports_childless(payloads: &[Payload]) -> bool {
    find_notify(payloads, NotifyType::CHILDLESS_IKEV2_SUPPORTED).is_some()
}

/// The address that a network of one address stands for.
fn single(net: &IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len() && !net.addr().is_unspecified()).then(|| net.addr())
}

impl Connection {
    /// The addresses to initiate to that the connection names.
    pub fn remote_hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.remote_addrs.iter().filter_map(single)
    }
}

/// Makes the pending request what the phase says.
pub(super) fn make_request(record: &mut Record, config: &Connection, rng: &mut dyn Entropy) {
    let Phase::InitSent(init) = &record.phase else {
        return;
    };
    let mut payloads = Vec::new();
    if let Some(cookie) = &init.cookie {
        payloads.push(notify(NotifyType::COOKIE, cookie.clone())); // must be the first (RFC 7296 §2.6)
    }
    payloads.push(Payload::Sa(proposal::offer_ike(
        &config.proposals,
        &[],
        Some(init.key.group()),
    )));
    payloads.push(Payload::Ke(KeyExchange {
        group: init.key.group().id(),
        data: init.key.public().to_vec(),
    }));
    payloads.push(Payload::Nonce(init.nonce.clone()));
    let additional = |p: &IkeProposal| p.additional.iter().any(|menu| !menu.is_empty());
    if config.proposals.iter().any(additional) {
        payloads.push(notify(
            NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED,
            Vec::new(),
        ));
    }
    let header = header(record, ExchangeType::IKE_SA_INIT, false, 0);
    payloads.extend(nat::notifies(
        &header,
        record.path.local,
        record.path.remote,
        config.encap,
        rng,
    ));
    if config.fragmentation != Fragmentation::No {
        payloads.push(notify(
            NotifyType::IKEV2_FRAGMENTATION_SUPPORTED,
            Vec::new(),
        ));
    }
    if config.auth.has_signatures() {
        payloads.push(signature_hashes());
    }
    if config.auth.ppk.as_ref().is_some_and(|ppk| ppk.id.is_some()) {
        payloads.push(ppk::announcement());
    }
    let datagram = wire::emit(&header, &payloads);
    record.outbound = OutboundWindow {
        next: 1,
        pending: vec![PendingRequest {
            id: 0,
            datagrams: vec![datagram],
            task: Task::Connect,
            deleted: Vec::new(),
        }],
        ..OutboundWindow::default()
    };
}

impl Turn<'_, '_> {
    /// The response to our IKE_SA_INIT. It is not authenticated: what does not fit is ignored, since a better one may follow.
    pub(super) fn init_response(
        &mut self,
        message: &Message<'_>,
        bytes: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let h = message.header;
        let fits = h.exchange == ExchangeType::IKE_SA_INIT
            && h.is_response
            && h.message_id == 0
            && message.protected.is_none();
        if !fits
            || h.initiator_spi != self.record.id.0
            || self.transport != self.record.path.transport
            || remote.ip() != self.record.path.remote.ip()
        {
            return self.ignore(Failure::Invalid("not a response to our IKE_SA_INIT"));
        }
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            let gone = Failure::Unconfigured(self.record.connection.clone());
            return self.give_up(gone);
        };
        if let Some(cookie) = find_notify(&message.payloads, NotifyType::COOKIE) {
            return self.restart(config, Some(cookie.data.clone()), None);
        }
        if let Some(error) = find_error(&message.payloads) {
            let ours = config
                .proposals
                .iter()
                .flat_map(|p| p.groups.iter().copied());
            return match (error.kind, named_group(&error.data, ours)) {
                (NotifyType::INVALID_KE_PAYLOAD, Some(group)) => {
                    self.restart(config, None, Some(group))
                }
                (kind, _) => self.give_up(Failure::PeerRefused(kind)),
            };
        }
        match self.negotiate(config, message, bytes, local, remote) {
            Ok((negotiated, intent)) => self.proceed_to_auth(config, negotiated, intent),
            Err(failure) => self.ignore(failure),
        }
    }

    /// The request again, with a cookie or another group, as a new first message.
    fn restart(&mut self, config: &Connection, cookie: Option<Vec<u8>>, group: Option<Group>) {
        let Phase::InitSent(init) = &mut self.record.phase else {
            return;
        };
        if init.restarts >= MAX_RESTARTS {
            return self.give_up(Failure::Invalid(
                "it keeps asking for another first message",
            ));
        }
        init.restarts += 1;
        if cookie.is_some() {
            init.cookie = cookie;
        }
        if let Some(group) = group {
            init.key = KeyPair::generate(group, self.env.rng);
        }
        make_request(&mut self.record, config, self.env.rng);
        self.commit();
        self.repeat_from_now();
        if let Some(pending) = self.record.outbound.get(0) {
            let datagrams = pending.datagrams.clone();
            self.send(&datagrams);
        }
    }

    /// Setting up failed before there was anything to keep.
    pub(super) fn give_up(&mut self, failure: Failure) {
        let Err(failure) = self.try_next_address(failure) else {
            return;
        };
        self.fail(failure);
        self.close(CloseReason::SetupFailed);
        self.effects.push(Effect::Forget);
    }

    fn negotiate(
        &mut self,
        config: &Connection,
        message: &Message<'_>,
        bytes: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(Negotiated, Intent), Failure> {
        let payloads = &message.payloads;
        let answer = only!(payloads, Sa).map_err(Failure::Invalid)?;
        let ke = only!(payloads, Ke).map_err(Failure::Invalid)?;
        let nonce_r = only!(payloads, Nonce).map_err(Failure::Invalid)?;
        let Phase::InitSent(init) = &self.record.phase else {
            return Err(Failure::Invalid("not waiting for IKE_SA_INIT"));
        };
        let suite = proposal::accepted_ike(&config.proposals, answer)
            .ok_or(Failure::NoIkeProposal)?
            .suite;
        if message.header.responder_spi == 0
            || suite.group != init.key.group()
            || ke.group != suite.group.id()
        {
            return Err(Failure::Invalid("SPI or group of the response do not fit"));
        }
        let intermediate = find_notify(payloads, NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED);
        if !suite.additional.is_empty() && intermediate.is_none() {
            return Err(Failure::Invalid(
                "additional key exchanges without IKE_INTERMEDIATE",
            ));
        }
        let shared = init.key.agree(&ke.data)?;
        let (spi_i, spi_r) = (self.record.id.0, message.header.responder_spi);
        let keys = IkeKeys::initial(
            suite,
            &shared,
            Exchanged {
                nonce_i: &init.nonce,
                nonce_r,
                spi_i,
                spi_r,
            },
        );
        let negotiated = Negotiated {
            suite,
            keys,
            nonce_i: init.nonce.clone(),
            nonce_r: nonce_r.clone(),
            init_request: self
                .record
                .outbound
                .get(0)
                .and_then(|p| p.datagrams.first().cloned())
                .unwrap_or_default(),
            init_response: bytes.to_vec(),
            intermediates: Intermediates::default(),
        };
        let (child, alone) = (init.child.clone(), init.initial_contact);
        let childless = match config.childless {
            Childless::Allow | Childless::Never => false,
            Childless::Prefer => supports_childless(payloads),
            Childless::Force if supports_childless(payloads) => true,
            Childless::Force => return Err(Failure::NoChildless),
        };
        let (nat_local, nat_remote) = nat::detect(&message.header, payloads, local, remote);
        self.record.remote_spi = spi_r;
        self.record.fragmentation = config.fragmentation != Fragmentation::No
            && find_notify(payloads, NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some();
        self.record.path.nat_local |= nat_local;
        self.record.path.nat_remote |= nat_remote;
        // A peer that may support MOBIKE is met at the NAT traversal port at once, NAT or not (RFC 4555 §3.3).
        let may_move = config.mobike && nat::supported(payloads);
        if !self.record.path.transport.is_tcp() && (self.record.path.encapsulated() || may_move) {
            // From here on both ends use the NAT traversal port (RFC 7296 §2.23).
            self.record.path.local.set_port(self.env.nat_port);
            if self.record.path.remote.port() == 500 {
                self.record.path.remote.set_port(4500);
            }
        }
        let intent = Intent {
            child,
            alone,
            childless,
        };
        Ok((negotiated, intent))
    }
}
