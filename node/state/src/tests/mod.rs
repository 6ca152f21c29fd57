//! Rules one by one, and properties over random histories.

mod abilities;
mod enrolments;
mod formats;
mod generations;
mod keys;
mod leases;
mod levels;
mod ownership;
mod properties;
mod rules;
mod unique;

use crate::{Command, Entry, Outcome, State};
use evergate_ike::{
    config::{Policy, Pool},
    crypto::{Encryption, EspSuite, Group, IkeKeys, IkeSuite, Prf},
    env::UnixMillis,
    identity::Identity,
    record::{
        Answered, Child, ChildOffer, CloseReason, Closed, Established, Fate, GatewayId,
        InboundWindow, Mode, OutboundWindow, Path, PendingRequest, Phase, Record, Role, SaId, Task,
        Transport,
    },
    secret::Secret,
};
use std::{net::IpAddr, sync::Arc};

const GW: GatewayId = GatewayId(1);

fn apply(state: &mut State, command: Command) -> Outcome {
    apply_at(state, 0, command)
}

fn apply_at(state: &mut State, at: u64, command: Command) -> Outcome {
    let mut outcomes = state.apply(&Entry {
        at: UnixMillis(at),
        commands: vec![command],
    });
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

fn register(member: &str, incarnation: u128) -> Command {
    Command::RegisterMember {
        member: member.into(),
        incarnation,
    }
}

fn assign(gateway: GatewayId, member: &str, incarnation: u128, expected_epoch: u32) -> Command {
    Command::AssignGateway {
        gateway,
        member: member.into(),
        incarnation,
        expected_epoch,
    }
}

/// The gateway is assigned to process 1 of member `a`.
fn take(state: &mut State, gateway: GatewayId) -> Outcome {
    apply(state, register("a", 1));
    let epoch = state.epoch(gateway);
    apply(state, assign(gateway, "a", 1, epoch))
}

fn put(epoch: u32, records: Vec<Record>) -> Command {
    Command::PutSas {
        epoch,
        records: records.into_iter().map(Arc::new).collect(),
    }
}

/// A state in which [`GW`] has epoch 1.
fn taken() -> State {
    let mut state = State::new();
    assert_eq!(take(&mut state, GW), Outcome::Epoch { epoch: 1 });
    state
}

fn identity(name: &str) -> Identity {
    Identity::Fqdn(name.into())
}

fn child(spi_in: u32, esn: bool) -> Child {
    Child {
        name: "net".into(),
        spi_in,
        spi_out: !spi_in,
        suite: EspSuite {
            encryption: Encryption::ChaCha20Poly1305,
            integrity: None,
            additional: Default::default(),
            group: None,
            esn,
        },
        key_in: Secret::new(vec![1; 36]),
        key_out: Secret::new(vec![2; 36]),
        mode: Mode::Tunnel,
        local_ts: vec![],
        remote_ts: vec![],
        created: UnixMillis(0),
        rekey_at: None,
        expires_at: None,
        initiated: false,
        lowest_nonce: vec![3; 32],
        replaces: None,
        fate: Fate::Live,
    }
}

fn suite() -> IkeSuite {
    IkeSuite {
        encryption: Encryption::AesGcm16 { key_bits: 256 },
        integrity: None,
        additional: Default::default(),
        prf: Prf::HmacSha256,
        group: Group::Curve25519,
    }
}

fn keys() -> IkeKeys {
    let key = |n| Secret::new(vec![n; 36]);
    IkeKeys {
        d: key(1),
        ei: key(2),
        er: key(3),
        pi: key(4),
        pr: key(5),
    }
}

fn established(
    id: u64,
    revision: u64,
    who: &str,
    children: Vec<Child>,
    peer_vips: Vec<IpAddr>,
) -> Record {
    let phase = Phase::Established(Box::new(Established {
        suite: suite(),
        keys: keys(),
        local_id: identity("us.example"),
        remote_id: identity(who),
        initial_contact: false,
        authenticated: UnixMillis(0),
        initiated: false,
        reauth_at: None,
        successor: None,
        rekey_at: None,
        expires_at: None,
        peer_vips,
        our_vips: vec![],
        message_id_sync: false,
        children,
        follow_ups: Vec::new(),
        rival: None,
        sync_request: None,
        sync_answer: None,
        mobike: None,
        replaced_by: None,
    }));
    record(id, revision, phase)
}

fn closed(id: u64, revision: u64) -> Record {
    let closed = Closed {
        protection: None,
        reason: CloseReason::DeletedByPeer,
        expires_at: UnixMillis(0),
    };
    record(id, revision, Phase::Closed(Box::new(closed)))
}

fn record(id: u64, revision: u64, phase: Phase) -> Record {
    Record {
        id: SaId(id),
        gateway: GW,
        revision,
        role: Role::Responder,
        remote_spi: 7,
        connection: "c".into(),
        path: Path {
            transport: Transport::Udp,
            local: "192.0.2.1:500".parse().unwrap(),
            remote: "192.0.2.2:500".parse().unwrap(),
            nat_local: false,
            nat_remote: false,
        },
        fragmentation: false,
        created: UnixMillis(0),
        inbound: InboundWindow {
            next: 2,
            size: 1,
            answered: vec![Answered {
                id: 1,
                response: vec![vec![9; 80]],
            }],
        },
        outbound: OutboundWindow::default(),
        succeeds: None,
        phase,
    }
}

/// Requests that are under way, the first of which has this Message ID.
fn pending<const N: usize>(id: u32, tasks: [Task; N]) -> OutboundWindow {
    let request = |(id, task)| PendingRequest {
        id,
        datagrams: vec![vec![8; 40]],
        task,
        deleted: vec![],
    };
    let pending: Vec<PendingRequest> = (id..).zip(tasks).map(request).collect();
    OutboundWindow {
        next: pending.last().map_or(id, |p| p.id + 1),
        size: 4,
        pending,
    }
}

fn offer(spi_in: u32) -> ChildOffer {
    ChildOffer {
        name: "net".into(),
        spi_in,
        nonce: vec![4; 32],
        key: None,
        local_ts: vec![],
        remote_ts: vec![],
        transport: false,
        replaces: None,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(name: &str, first: &str, last: &str) -> Pool {
    Pool {
        name: name.into(),
        first: ip(first),
        last: ip(last),
        dns: vec![],
    }
}

fn set_pools(state: &mut State, pools: Vec<Pool>) {
    let policy = Arc::new(Policy {
        pools,
        ..Policy::default()
    });
    let expected = state.policy_version();
    assert_eq!(
        apply(state, Command::SetPolicy { expected, policy }),
        Outcome::Applied
    );
}
