//! New IKE SAs: first messages of peers, and our own.

use super::{
    Worker,
    commit::Done,
    limits::Admission,
    slot::{Committing, Slot, Watcher},
};
use crate::{counters::IkeDrop, drills};
use evergate_ike::{
    config::Policy,
    identity::{IdPattern, Identity},
    record::{Phase, Record, SaId, Transport},
    sa::{Effect, Env, Failure, IkeSa, InitAnswer, answer_init, initiate},
    wire::{ExchangeType, Header},
};
use evergate_state::{Command, State};
use futures::FutureExt;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use tokio::sync::oneshot;
use tracing::{info, warn};

const INIT: Option<ExchangeType> = Some(ExchangeType::IKE_SA_INIT);

impl Worker {
    /// Answers a first message (RFC 7296 §1.2).
    pub(super) fn init(
        &mut self,
        bytes: &[u8],
        header: &Header,
        (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    ) {
        drills::pass("request-arrived", INIT);
        if let Some(known) = self.inits.get(&(remote, header.initiator_spi)) {
            return self.repeated_init(*known, bytes, (local, remote, transport));
        }
        let shared = Arc::clone(&self.shared);
        let demand_cookie = match shared.half_open.admission(remote.ip()) {
            Admission::Free => false,
            Admission::WithCookie => true,
            Admission::Full => {
                return shared.dropped(
                    IkeDrop::HalfOpenLimit,
                    local,
                    remote,
                    &"too many half-open IKE SAs",
                );
            }
        };
        let policy = shared.policy.load_full();
        let addresses = shared.outer_addresses(&policy);
        let cookies = shared.cookies.load_full();
        let mut env = Env {
            now: shared.clock.now(),
            ivs: &shared.ivs,
            policy: &policy,
            rng: &mut self.rng,
            spis: &mut self.spis,
            nat_port: shared.ports.nat,
            addresses: &addresses,
        };
        let answer = answer_init(
            bytes,
            (local, remote, transport),
            shared.gateway,
            demand_cookie,
            shared.half_open.patience(),
            &cookies,
            &mut env,
        );
        match answer {
            InitAnswer::Stateless { datagram, failure } => {
                if let Some(failure) = failure {
                    self.refused_init(local, remote, &failure);
                }
                self.send(local, remote, transport, &datagram);
            }
            InitAnswer::HalfOpen(record) => self.half_open(*record),
            InitAnswer::Silent(failure) => {
                shared.dropped(IkeDrop::BadInit, local, remote, &failure)
            }
        }
    }

    /// The same first message again gets the same answer, until the peer is past it (RFC 7296 §2.1).
    fn repeated_init(
        &mut self,
        known: SaId,
        bytes: &[u8],
        (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    ) {
        let answer = self
            .slots
            .get(&known)
            .filter(|slot| slot.committing.is_none())
            .and_then(|slot| match &slot.sa.record().phase {
                Phase::HalfOpen(h) if h.negotiated.init_request == bytes => {
                    Some(h.negotiated.init_response.clone())
                }
                _ => None,
            });
        match answer {
            Some(datagram) => self.send(local, remote, transport, &datagram),
            None => self.shared.dropped(
                IkeDrop::LateInit,
                local,
                remote,
                &"a first message of an SA that is past it",
            ),
        }
    }

    fn refused_init(&self, local: SocketAddr, remote: SocketAddr, failure: &Failure) {
        if let Some(suppressed) = self.shared.stranger_lines.pass(Instant::now()) {
            warn!(event = "init-refused", %local, peer = %remote, suppressed, "refused a new IKE SA: {failure}");
        }
    }

    /// A half-open SA. Its response waits for the record like any other: a peer that sends IKE_AUTH at once must find an SA also when this process
    /// dies in between. It costs a moment, but no more writes: what comes at the same time goes into one.
    fn half_open(&mut self, record: Record) {
        let path = record.path;
        let response = record.inbound.response(0).cloned();
        let effects = response.into_iter().flatten().map(|datagram| Effect::Send {
            datagram,
            local: path.local,
            remote: path.remote,
            transport: path.transport,
        });
        let slot = Slot::new(IkeSa::created(record.clone(), self.shared.clock.now()));
        self.propose_new(slot, record, effects.collect());
    }

    /// An SA that starts with the commit of its first record.
    fn propose_new(&mut self, mut slot: Slot, record: Record, effects: Vec<Effect>) {
        drills::pass("before-commit", INIT);
        let id = record.id;
        let records = vec![Arc::new(record)];
        let proposal = self.shared.propose(Command::PutSas {
            epoch: self.shared.epoch,
            records: records.clone(),
        });
        slot.committing = Some(Box::new(Committing {
            records,
            effects,
            exchange: INIT,
        }));
        self.insert(id, slot);
        self.pending.push(
            proposal
                .map(move |outcome| Done::Put { sa: id, outcome })
                .boxed(),
        );
    }

    /// Starts an IKE SA of our own: its first message is committed before it leaves.
    pub(super) fn initiate(
        &mut self,
        connection: &str,
        child: &str,
        pairs: &[(IpAddr, IpAddr)],
        watcher: Option<Watcher>,
        reply: oneshot::Sender<Result<SaId, Failure>>,
    ) {
        let shared = Arc::clone(&self.shared);
        let policy = shared.policy.load_full();
        let addresses = shared.outer_addresses(&policy);
        // All attempts of a connection come to this worker: two at the same time must not both say that there is no other.
        let attempted = self.slots.values().map(|slot| slot.sa.record()).any(|r| {
            r.connection == connection && matches!(r.phase, Phase::InitSent(_) | Phase::AuthSent(_))
        });
        let local = pairs.first().map(|(local, _)| *local);
        let alone = !attempted && shared.read(|state| is_alone(state, &policy, connection, local));
        let mut env = Env {
            now: shared.clock.now(),
            ivs: &shared.ivs,
            policy: &policy,
            rng: &mut self.rng,
            spis: &mut self.spis,
            nat_port: shared.ports.nat,
            addresses: &addresses,
        };
        let started = initiate(
            connection,
            child,
            pairs,
            shared.ports.ike,
            shared.gateway,
            alone,
            &mut env,
        );
        let record = match started {
            Ok(record) => record,
            Err(failure) => {
                warn!(
                    event = "initiate-failed",
                    connection, child, "cannot initiate: {failure}"
                );
                let _ = reply.send(Err(failure));
                return;
            }
        };
        let id = record.id;
        info!(event = "initiating", sa = %id, connection, child, peer = %record.path.remote, "initiating an IKE SA");
        let mut slot = Slot::new(IkeSa::created(record.clone(), env.now));
        if let Some(watcher) = watcher {
            slot.watch(watcher);
        }
        // Once it is committed the SA's own timer sends the message.
        self.propose_new(slot, record, Vec::new());
        let _ = reply.send(Ok(id));
    }
}

/// Whether nobody has an IKE SA with the peer of a connection, as far as its identity is known before it has authenticated: then the peer may forget
/// those that it believes to have (RFC 7296 §2.4).
fn is_alone(state: &State, policy: &Policy, connection: &str, local: Option<IpAddr>) -> bool {
    let Some(connection) = policy.connection(connection) else {
        return false;
    };
    let ours = connection.local_id.clone().or(local.map(Identity::Address));
    match (ours, &connection.remote_id) {
        (Some(ours), IdPattern::Exact(theirs)) => state.between(&ours, theirs).next().is_none(),
        _ => false,
    }
}
