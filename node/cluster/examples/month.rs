//! Prints how big the store of a member is while a month's load goes through it, day by day.
//!
//! `cargo run --release -p evergate-cluster --example month [MIB_A_DAY [DIRECTORY]]`
//!
//! A month is thirty days of 72 MiB, unless it is said: what the records of a thousand SAs come to that are rekeyed every hour. The state is one of 3 MiB.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use evergate_cluster::{ClusterKey, Config, Replica, raft::RaftConfig, store::Storage};
use evergate_ike::{
    config::{Policy, SharedSecret},
    env::UnixMillis,
    sa::CookieSecrets,
    secret::Secret,
};
use evergate_state::Command;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bytes of an entry: many small records that went together.
const ENTRY: usize = 64 << 10;

/// Bytes of the state; it must fit into an entry.
const STATE: usize = 3 << 20;

/// A state of about so many bytes.
fn policy(bytes: usize) -> Command {
    let secret = |n| SharedSecret {
        name: format!("s{n}"),
        ids: vec![],
        secret: Secret::new(vec![1; 1000]),
    };
    Command::SetPolicy {
        expected: 0,
        policy: Arc::new(Policy {
            secrets: (0..bytes / 1024).map(secret).collect(),
            ..Policy::default()
        }),
    }
}

fn entry() -> Command {
    let secret = || Secret::new(vec![2; ENTRY / 2]);
    Command::SetCookieSecrets(CookieSecrets {
        current: secret(),
        previous: secret(),
    })
}

/// Bytes that a directory really takes.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().filter_map(Result::ok);
    let of = |e: fs::DirEntry| match e.metadata() {
        Ok(meta) if meta.is_dir() => size(&e.path()),
        Ok(meta) => meta.blocks() * 512,
        // A file that was removed meanwhile.
        Err(_) => 0,
    };
    entries.map(of).sum()
}

#[tokio::main]
async fn main() {
    let day = std::env::args().nth(1);
    let day = day.map_or(72, |text| text.parse::<usize>().expect("a number of MiB")) << 20;
    let made = tempfile::tempdir().unwrap();
    let dir = std::env::args().nth(2);
    let dir = dir.as_deref().map_or(made.path(), Path::new).join("month");
    let now = AtomicU64::new(0);
    let config = Config::new(ClusterKey::from_bytes([7; 32]), move || {
        UnixMillis(now.fetch_add(1, Ordering::Relaxed))
    });
    let storage = Storage::Directory(dir.clone());
    let replica = Replica::join(RaftConfig::single(config, storage, "m1"));
    let replica = replica.await.unwrap();
    replica.propose(vec![policy(STATE)]).await.unwrap();
    println!("day  logged MiB  snapshots  store MiB");
    let mut most = 0;
    for n in 1..=30 {
        for _ in 0..day / ENTRY {
            replica.propose(vec![entry()]).await.unwrap();
            most = most.max(size(&dir));
        }
        let now = size(&dir);
        most = most.max(now);
        let snapshots = replica.stats().snapshots;
        println!(
            "{n:>3}  {:>10}  {snapshots:>9}  {:>9.1}",
            (n * day) >> 20,
            mib(now)
        );
    }
    println!("at most {:.1} MiB", mib(most));
    replica.close().await;
}

#[allow(clippy::cast_precision_loss)]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
