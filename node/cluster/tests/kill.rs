//! `kill -9`, again and again: what was acknowledged is there afterwards.

// The child speaks to the test over its standard output.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use evergate_cluster::{ClusterKey, Config, Replica, raft::RaftConfig, store::Storage};
use evergate_ike::{
    env::UnixMillis,
    record::{
        CloseReason, Closed, GatewayId, InboundWindow, OutboundWindow, Path, Phase, Record, Role,
        SaId, Transport,
    },
};
use evergate_state::{Command, Outcome};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    process::{Child, Command as Process, Stdio},
    sync::Arc,
    time::Duration,
};

const DIR: &str = "EVERGATE_TEST_DIR";
const GW: GatewayId = GatewayId(1);

async fn open(dir: &std::path::Path) -> Replica {
    let config = Config {
        // Snapshots and purges happen under the kills as well.
        snapshot_entries: 50,
        ..Config::new(ClusterKey::from_bytes([7; 32]), || UnixMillis(1))
    };
    let storage = Storage::Directory(dir.to_owned());
    let raft = RaftConfig::single(config, storage, "a");
    Replica::join(raft).await.unwrap()
}

fn record(id: u64) -> Arc<Record> {
    let address = "192.0.2.1:500".parse().unwrap();
    Arc::new(Record {
        id: SaId(id),
        gateway: GW,
        revision: 1,
        role: Role::Responder,
        remote_spi: 1,
        connection: "c".into(),
        path: Path {
            transport: Transport::Udp,
            local: address,
            remote: address,
            nat_local: false,
            nat_remote: false,
        },
        fragmentation: false,
        created: UnixMillis(0),
        inbound: InboundWindow::after_first(vec![vec![1; 300]]),
        outbound: OutboundWindow::default(),
        succeeds: None,
        phase: Phase::Closed(Box::new(Closed {
            protection: None,
            reason: CloseReason::Expired,
            expires_at: UnixMillis(0),
        })),
    })
}

/// The child: appends from several tasks and says which SA is acknowledged. Runs until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_appends() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let replica = open(dir.as_ref()).await;
    let before = replica.read(|s| s.epoch(GW));
    let outcome = replica
        .propose(vec![
            Command::RegisterMember {
                member: "a".into(),
                incarnation: u128::from(before) + 1,
            },
            Command::AssignGateway {
                gateway: GW,
                member: "a".into(),
                incarnation: u128::from(before) + 1,
                expected_epoch: before,
            },
        ])
        .await
        .unwrap();
    let [Outcome::Applied, Outcome::Epoch { epoch }] = outcome[..] else {
        panic!("{outcome:?}")
    };
    println!("epoch {epoch}");
    let tasks: Vec<_> = (0..4u64)
        .map(|task| {
            let replica = replica.clone();
            tokio::spawn(async move {
                for n in 0..100_000 {
                    let id = u64::from(epoch) << 32 | n << 4 | task;
                    let outcome = replica
                        .propose(vec![Command::PutSas {
                            epoch,
                            records: vec![record(id)],
                        }])
                        .await;
                    if outcome != Ok(vec![Outcome::Applied]) {
                        println!("failed {outcome:?}");
                        return;
                    }
                    writeln!(std::io::stdout().lock(), "acknowledged {id}").unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

fn spawn(dir: &std::path::Path, failpoint: Option<&str>) -> Child {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process
        .args([
            "--exact",
            "child_appends",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(DIR, dir)
        .stdout(Stdio::piped());
    process.stderr(Stdio::inherit());
    if let Some(point) = failpoint {
        process.env("EVERGATE_FAILPOINT", point);
    }
    process.spawn().unwrap()
}

/// Reads what the child says until it is dead; kills it `after` its first acknowledgement, if it is not to die by itself.
fn watch(mut child: Child, after: Option<Duration>, acknowledged: &mut BTreeSet<u64>) -> u32 {
    let mut epoch = 0;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut killer = None;
    let mut child = Some(child);
    while let Some(Ok(line)) = lines.next() {
        assert!(!line.contains("failed"), "{line}");
        // A line that the kill cut off is no acknowledgement of what it seems to say; ids are checked for their epoch.
        if let Some(n) = line
            .find("epoch ")
            .and_then(|at| line[at + 6..].parse().ok())
        {
            epoch = n;
        } else if let Some(id) = line
            .strip_prefix("acknowledged ")
            .and_then(|id| id.parse().ok())
        {
            if id >> 32 == u64::from(epoch) {
                acknowledged.insert(id);
            }
            if let (Some(after), Some(mut child)) = (after, child.take_if(|_| after.is_some())) {
                killer = Some(std::thread::spawn(move || {
                    std::thread::sleep(after);
                    child.kill().unwrap();
                    child.wait().unwrap();
                }));
            }
        }
    }
    if let Some(killer) = killer {
        killer.join().unwrap();
    }
    if let Some(mut child) = child {
        child.wait().unwrap();
    }
    epoch
}

#[tokio::test]
async fn what_was_acknowledged_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=20u32 {
        let before = acknowledged.len();
        let epoch = watch(
            spawn(dir.path(), None),
            Some(Duration::from_millis(u64::from(round * 37 % 150))),
            &mut acknowledged,
        );
        assert_eq!(epoch, round, "each process has its own epoch");
        assert!(acknowledged.len() > before, "round {round} did nothing");
    }
    let replica = open(dir.path()).await;
    let (present, epoch) = replica.read(|s| {
        (
            s.sas().map(|r| r.id.0).collect::<BTreeSet<u64>>(),
            s.gateway(GW).unwrap().epoch,
        )
    });
    let lost: Vec<_> = acknowledged.difference(&present).collect();
    assert!(
        lost.is_empty(),
        "{} of {} are lost: {lost:x?}",
        lost.len(),
        acknowledged.len()
    );
    assert_eq!(epoch, 20);
    // Those that were on their way: at most what the tasks of each child had open.
    assert!(
        present.len() - acknowledged.len() <= 20 * 4,
        "{} more than acknowledged",
        present.len() - acknowledged.len()
    );
    replica.close().await;
}

#[cfg(feature = "drills")]
#[tokio::test]
async fn failpoints_kill_between_append_and_answer() {
    for (point, durable) in [("before-append:2", 0), ("after-append:2", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let mut acknowledged = BTreeSet::new();
        assert_eq!(
            watch(spawn(dir.path(), Some(point)), None, &mut acknowledged),
            1
        );
        assert!(acknowledged.is_empty());
        let replica = open(dir.path()).await;
        let present = replica.read(|s| s.sas().len());
        // The first append is the taking of the gateway, the second has at least one SA.
        assert_eq!(present.min(1), durable, "{point}: {present}");
        replica.close().await;
    }
}
