//! A replica on stores that fail, and on files that are damaged. It is alone, which is no other code than that of a member of a cluster.

mod damage;
mod replica;
mod rotation;
mod secrecy;

use crate::{
    ClusterKey, Config, Replica,
    raft::{JoinError, RaftConfig},
    store::{Disk, Storage},
};
use evergate_ike::{
    crypto::{Encryption, EspSuite, Group, IkeKeys, IkeSuite, Prf},
    env::UnixMillis,
    identity::Identity,
    record::{
        Answered, Child, Established, Fate, GatewayId, InboundWindow, Mode, OutboundWindow, Path,
        Phase, Record, Role, SaId, Transport,
    },
    secret::Secret,
};
use evergate_state::{Command, Outcome};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const GW: GatewayId = GatewayId(1);

/// A clock that moves on a little with every look.
fn config() -> Config {
    let now = AtomicU64::new(1_000_000);
    Config {
        tick: Duration::from_millis(10),
        ..Config::new(ClusterKey::from_bytes([7; 32]), move || {
            UnixMillis(now.fetch_add(5, Ordering::Relaxed))
        })
    }
}

async fn open(config: Config, storage: Storage) -> Result<Replica, JoinError> {
    Replica::join(RaftConfig::single(config, storage, "a")).await
}

async fn open_dir(config: Config, dir: &std::path::Path) -> Result<Replica, JoinError> {
    open(config, Storage::Directory(dir.to_owned())).await
}

async fn on_disk(disk: &Disk) -> Replica {
    open(config(), Storage::Memory(disk.clone())).await.unwrap()
}

/// The gateway is assigned to the process of [`register`].
fn assign(expected_epoch: u32) -> Command {
    Command::AssignGateway {
        gateway: GW,
        member: "a".into(),
        incarnation: 1,
        expected_epoch,
    }
}

fn register() -> Command {
    Command::RegisterMember {
        member: "a".into(),
        incarnation: 1,
    }
}

async fn taken(replica: &Replica) -> u32 {
    let assign = assign(replica.read(|s| s.epoch(GW)));
    let outcome = replica.propose(vec![register(), assign]).await.unwrap();
    let [Outcome::Applied, Outcome::Epoch { epoch }] = outcome[..] else {
        panic!("{outcome:?}")
    };
    epoch
}

fn put(epoch: u32, record: Record) -> Command {
    Command::PutSas {
        epoch,
        records: vec![Arc::new(record)],
    }
}

/// A new SA with one Child SA; all of its secrets are this text.
fn sa(id: u32, secret: &[u8]) -> Record {
    let secret = || Secret::new(secret.to_vec());
    let child = Child {
        name: "net".into(),
        spi_in: 1000 + id,
        spi_out: 1,
        suite: EspSuite {
            encryption: Encryption::ChaCha20Poly1305,
            integrity: None,
            additional: Default::default(),
            group: None,
            esn: true,
        },
        key_in: secret(),
        key_out: secret(),
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
    };
    let established = Established {
        suite: IkeSuite {
            encryption: Encryption::AesGcm16 { key_bits: 256 },
            integrity: None,
            additional: Default::default(),
            prf: Prf::HmacSha256,
            group: Group::Curve25519,
        },
        keys: IkeKeys {
            d: secret(),
            ei: secret(),
            er: secret(),
            pi: secret(),
            pr: secret(),
        },
        local_id: Identity::Fqdn("us".into()),
        remote_id: Identity::Fqdn("peer".into()),
        initial_contact: false,
        authenticated: UnixMillis(0),
        initiated: false,
        reauth_at: None,
        successor: None,
        rekey_at: None,
        expires_at: None,
        peer_vips: vec![],
        our_vips: vec![],
        message_id_sync: false,
        children: vec![child],
        follow_ups: Vec::new(),
        rival: None,
        sync_request: None,
        sync_answer: None,
        mobike: None,
        replaced_by: None,
    };
    Record {
        id: SaId(id.into()),
        gateway: GW,
        revision: 1,
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
        phase: Phase::Established(Box::new(established)),
    }
}

/// Snapshots are made beside what goes on.
async fn snapshot_written(replica: &Replica) {
    let written = async {
        while !replica.cluster().is_purged() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .expect("there is a snapshot");
}

fn snapshot(replica: &Replica) -> Vec<u8> {
    replica.read(evergate_state::State::to_snapshot)
}
