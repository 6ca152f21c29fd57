//! Prints how long it takes until a proposal is committed, durable on most members, and applied where it was made: for a member that
//! is alone, and for three members in one process, over mutual TLS on loopback, each with its own log on the disk. With the feature
//! `drills` also how long it takes after the leader was killed.
//!
//! `cargo run --release --features drills --example commit_latency [DIRECTORY]`

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use evergate_cluster::{
    ClusterKey, Config, Replica, pki,
    raft::{Credentials, LinkSource, Node, RaftConfig, Timing},
    store::Storage,
};
use evergate_ike::{env::UnixMillis, sa::CookieSecrets, secret::Secret};
use evergate_state::Command;
use std::{
    net::TcpListener,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

struct Cluster {
    authority: pki::Pair,
    members: Vec<Node>,
    listeners: Vec<Option<TcpListener>>,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let listeners: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        Self {
            authority: pki::authority().unwrap(),
            members: listeners
                .iter()
                .enumerate()
                .map(|(n, l)| Node {
                    name: format!("m{n}"),
                    address: l.local_addr().unwrap().to_string(),
                })
                .collect(),
            listeners: listeners.into_iter().map(Some).collect(),
        }
    }

    fn config(&mut self, dir: &Path, n: usize) -> RaftConfig {
        let name = format!("m{n}");
        let pair = pki::issue(&self.authority, &name).unwrap();
        let address = self.members[n].address.clone();
        RaftConfig {
            replica: replica_config(),
            storage: Storage::Directory(dir.join(&name)),
            name,
            links: self.listeners[n]
                .take()
                .or_else(|| TcpListener::bind(address).ok())
                .map(LinkSource::Tcp),
            members: self.members.clone(),
            entrance: None,
            credentials: Some(Credentials {
                authority: self.authority.certificate.clone().into_bytes(),
                certificate: pair.certificate.into_bytes(),
                key: pair.key.as_bytes().to_vec().into(),
            }),
            timing: Timing::default(),
        }
    }
}

/// A command of the size of a small record, with nothing to it.
fn command() -> Command {
    let secret = || Secret::new(vec![1; 200]);
    Command::SetCookieSecrets(CookieSecrets {
        current: secret(),
        previous: secret(),
    })
}

async fn sequential(replica: &Replica, count: usize) -> Vec<Duration> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        replica.propose(vec![command()]).await.unwrap();
        took.push(begin.elapsed());
    }
    took
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{what:<34} median {:>8.2?}  99% {:>8.2?}  worst {:>8.2?}",
        at(50),
        at(99),
        at(100)
    );
}

async fn throughput(replica: &Replica, tasks: usize) -> f64 {
    let begin = Instant::now();
    let limit = Duration::from_secs(3);
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let replica = replica.clone();
            tokio::spawn(async move {
                let mut count = 0u32;
                while begin.elapsed() < limit {
                    replica.propose(vec![command()]).await.unwrap();
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await.unwrap();
    }
    f64::from(total) / begin.elapsed().as_secs_f64()
}

async fn leading(replicas: &[Replica]) -> usize {
    loop {
        let found = replicas.iter().position(|r| {
            let cluster = r.cluster();
            cluster.last_quorum_acked().is_some() && cluster.is_leader()
        });
        if let Some(found) = found {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn replica_config() -> Config {
    let clock = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        UnixMillis(now.as_millis().try_into().unwrap())
    };
    Config::new(ClusterKey::from_bytes([7; 32]), clock)
}

async fn alone(dir: &Path) {
    let storage = || Storage::Directory(dir.join("alone"));
    let join = || Replica::join(RaftConfig::single(replica_config(), storage(), "alone"));
    let replica = join().await.unwrap();
    sequential(&replica, 50).await;
    print("alone", sequential(&replica, 1000).await);
    for tasks in [16, 128] {
        let rate = throughput(&replica, tasks).await;
        println!("alone, {tasks} at a time: {rate:.0} a second");
    }
    let mut starts = Vec::new();
    let mut replica = replica;
    for _ in 0..10 {
        replica.close().await;
        let begin = Instant::now();
        replica = join().await.unwrap();
        replica.propose(vec![command()]).await.unwrap();
        starts.push(begin.elapsed());
    }
    print("alone, from the start to a commit", starts);
    replica.close().await;
}

#[tokio::main]
async fn main() {
    let dir = std::env::args().nth(1).map_or_else(
        || tempfile::tempdir().unwrap().keep(),
        std::path::PathBuf::from,
    );
    println!("logs in {}", dir.display());
    alone(&dir).await;
    let mut cluster = Cluster::new(3);
    let starts: Vec<_> = (0..3)
        .map(|n| Replica::join(cluster.config(&dir, n)))
        .collect();
    let mut replicas = Vec::new();
    for started in futures::future::join_all(starts).await {
        replicas.push(started.unwrap());
    }
    let leader = leading(&replicas).await;
    let follower = (leader + 1) % 3;
    sequential(&replicas[leader], 50).await;
    print("on the leader", sequential(&replicas[leader], 1000).await);
    print(
        "on another member",
        sequential(&replicas[follower], 1000).await,
    );
    for tasks in [16, 128] {
        let rate = throughput(&replicas[follower], tasks).await;
        println!("on another member, {tasks} at a time: {rate:.0} a second");
    }
    let term = |r: &Replica| r.cluster().leader().borrow().as_ref().map(|l| l.term);
    let (before, idle) = (term(&replicas[leader]), Duration::from_secs(10));
    tokio::time::sleep(idle).await;
    println!(
        "term {before:?}, and {idle:?} later {:?}",
        term(&replicas[leader])
    );
    #[cfg(feature = "drills")]
    {
        let mut gaps = Vec::new();
        for _ in 0..20 {
            let dead = leading(&replicas).await;
            let survivor = replicas[(dead + 1) % 3].clone();
            survivor.propose(vec![command()]).await.unwrap();
            let begin = Instant::now();
            replicas[dead].abort();
            survivor.propose(vec![command()]).await.unwrap();
            gaps.push(begin.elapsed());
            replicas[dead].close().await;
            replicas[dead] = Replica::join(cluster.config(&dir, dead)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        print("after a kill of the leader", gaps);
    }
    for replica in &replicas {
        replica.close().await;
    }
    // Left behind if something failed, to be looked at.
    std::fs::remove_dir_all(dir).unwrap();
}
