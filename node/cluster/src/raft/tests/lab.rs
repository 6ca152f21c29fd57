//! A cluster in one process.

use crate::{
    ClusterKey, Config, Replica, pki,
    raft::{Credentials, Entrance, JoinError, JoinToken, LinkSource, Node, RaftConfig, Timing},
    store::Storage,
};
use evergate_ike::{env::UnixMillis, record::GatewayId};
use evergate_state::{Command, Outcome, State};
use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Long enough for a machine that does other things, too.
const LIMIT: Duration = Duration::from_secs(60);

/// An address of this machine that no other lab has: the port of a member that is down is nobody else's.
fn own_address() -> Ipv4Addr {
    static LABS: AtomicU16 = AtomicU16::new(0);
    let [a, b] = LABS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 100, a, b)
}

pub(super) struct Lab {
    dir: TempDir,
    pub(super) authority: pki::Pair,
    pub(super) members: Vec<Node>,
    listeners: Vec<Option<TcpListener>>,
    pub(super) snapshot_entries: u64,
    timing: Timing,
}

impl Lab {
    pub(super) fn new(count: usize) -> Self {
        let address = own_address();
        let listeners: Vec<_> = (0..count)
            .map(|_| TcpListener::bind((address, 0)).unwrap())
            .collect();
        let members = listeners
            .iter()
            .enumerate()
            .map(|(n, l)| Node {
                name: format!("m{n}"),
                address: l.local_addr().unwrap().to_string(),
            })
            .collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            authority: pki::authority().unwrap(),
            members,
            listeners: listeners.into_iter().map(Some).collect(),
            snapshot_entries: 100_000,
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_millis(200),
                election_max: Duration::from_millis(400),
            },
        }
    }

    /// Whoever leads goes on leading when the machine stands still for a moment.
    pub(super) fn patient(count: usize) -> Self {
        Self {
            timing: Timing {
                heartbeat: Duration::from_millis(50),
                election_min: Duration::from_secs(1),
                election_max: Duration::from_secs(2),
            },
            ..Self::new(count)
        }
    }

    pub(super) fn credentials(&self, name: &str) -> Credentials {
        credentials(&self.authority, &self.authority, name)
    }

    pub(super) fn config(&mut self, n: usize) -> RaftConfig {
        let now = AtomicU64::new(1_000_000);
        let address = self.members[n].address.clone();
        // After a restart the address may still be in use for a moment.
        let listener = self.listeners[n].take().unwrap_or_else(|| {
            let begin = Instant::now();
            loop {
                match TcpListener::bind(&address) {
                    Ok(listener) => break listener,
                    Err(e) => assert!(begin.elapsed() < LIMIT, "{e}"),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        RaftConfig {
            replica: Config {
                snapshot_entries: self.snapshot_entries,
                tick: Duration::from_millis(10),
                ..Config::new(ClusterKey::from_bytes([7; 32]), move || {
                    UnixMillis(now.fetch_add(5, Ordering::Relaxed))
                })
            },
            storage: Storage::Directory(self.dir.path().join(format!("m{n}"))),
            name: format!("m{n}"),
            links: Some(LinkSource::Tcp(listener)),
            members: self.members.clone(),
            entrance: None,
            credentials: Some(self.credentials(&format!("m{n}"))),
            timing: self.timing,
        }
    }

    /// One of a cluster that is formed by the first alone: it asks the members with these numbers, with a token.
    pub(super) fn joiner(
        &mut self,
        n: usize,
        ask: &[usize],
        token: Option<JoinToken>,
    ) -> RaftConfig {
        let addresses = ask.iter().map(|m| self.members[*m].address.clone());
        let addresses = addresses.collect();
        RaftConfig {
            members: Vec::new(),
            entrance: Some(Entrance { addresses, token }),
            ..self.config(n)
        }
    }

    pub(super) async fn start(&mut self, n: usize) -> Result<Replica, JoinError> {
        let config = self.config(n);
        Replica::join(config).await
    }

    /// All members at once.
    pub(super) async fn start_all(&mut self) -> Vec<Replica> {
        let starts: Vec<_> = (0..self.members.len())
            .map(|n| Replica::join(self.config(n)))
            .collect();
        let started = tokio::time::timeout(LIMIT, futures::future::join_all(starts)).await;
        started
            .expect("members start in time")
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    pub(super) fn wipe(&self, n: usize) {
        std::fs::remove_dir_all(self.dir.path().join(format!("m{n}"))).unwrap();
    }
}

/// A certificate for a name by one authority, for a member that believes another.
pub(super) fn credentials(believed: &pki::Pair, by: &pki::Pair, name: &str) -> Credentials {
    let pair = pki::issue(by, name).unwrap();
    Credentials {
        authority: believed.certificate.clone().into_bytes(),
        certificate: pair.certificate.into_bytes(),
        key: pair.key.as_bytes().to_vec().into(),
    }
}

/// As if by `kill -9`; returns when the directory can be used again.
pub(super) async fn kill(replica: Replica) {
    let mut ended = replica.ended();
    replica.abort();
    within(ended.wait_for(|e| *e)).await.unwrap();
}

/// Takes a gateway for the so-manieth time. It is refused if it was not taken just as often before, so that this sees whatever is lost,
/// doubled or reordered.
pub(super) fn taking(gateway: u32, nth: u32) -> Vec<Command> {
    vec![
        Command::RegisterMember {
            member: "m".into(),
            incarnation: 1,
        },
        Command::AssignGateway {
            gateway: GatewayId(gateway),
            member: "m".into(),
            incarnation: 1,
            expected_epoch: nth - 1,
        },
    ]
}

pub(super) fn check(outcomes: &[Outcome], nth: u32) {
    assert_eq!(outcomes.last(), Some(&Outcome::Epoch { epoch: nth }));
}

pub(super) async fn take(replica: &Replica, gateway: u32, nth: u32) {
    let outcomes = within(replica.propose(taking(gateway, nth))).await.unwrap();
    check(&outcomes, nth);
}

pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Which of them leads, when all agree.
pub(super) async fn leader(replicas: &[&Replica]) -> usize {
    within(async {
        loop {
            let leaders: Vec<_> = replicas
                .iter()
                .map(|r| r.cluster().leader().borrow().clone())
                .collect();
            if let Some(Some(first)) = leaders.first()
                && leaders.iter().all(|l| l.as_ref() == Some(first))
                && let Some(at) = replicas.iter().position(|r| r.cluster().id() == first.id)
            {
                break at;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

pub(super) fn snapshot(replica: &Replica) -> Vec<u8> {
    replica.read(State::to_snapshot)
}

/// Waits until all have applied the same, and compares their states byte by byte.
pub(super) async fn same(replicas: &[&Replica]) {
    within(async {
        loop {
            let applied: Vec<u64> = replicas.iter().map(|r| r.stats().applied).collect();
            let states: Vec<_> = replicas.iter().map(|r| snapshot(r)).collect();
            if applied.windows(2).all(|p| p[0] == p[1]) && states.windows(2).all(|p| p[0] == p[1]) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The epoch of a gateway, which is how often it was taken.
pub(super) fn epoch(replica: &Replica, gateway: u32) -> u32 {
    replica.read(|state| state.gateway(GatewayId(gateway)).map_or(0, |g| g.epoch))
}
