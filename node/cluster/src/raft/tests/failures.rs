//! Kills, restarts, and members that fall behind.

use super::lab::{Lab, check, epoch, kill, leader, same, take, taking, within};
use crate::Replica;
use futures::stream::{FuturesOrdered, StreamExt};
use openraft::async_runtime::WatchReceiver as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_proposes_and_all_agree() {
    let mut lab = Lab::new(3);
    let replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    leader(&all).await;
    let mut tasks = Vec::new();
    for (n, replica) in (1u32..).zip(&replicas) {
        let replica = replica.clone();
        tasks.push(tokio::spawn(async move {
            for nth in 1..=20 {
                take(&replica, n, nth).await;
                // Seen here as soon as it is acknowledged.
                assert_eq!(epoch(&replica, n), nth);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    same(&all).await;
    for replica in &all {
        assert!([1, 2, 3].iter().all(|n| epoch(replica, *n) == 20));
        assert!(replica.failed().borrow().is_none());
    }
}

/// Many proposals at once, each of which needs the one before it.
async fn stream(replica: &Replica, gateway: u32, count: u32) {
    let mut under_way = FuturesOrdered::new();
    let (mut started, mut done) = (0, 0);
    while done < count {
        while started < count && under_way.len() < 32 {
            started += 1;
            under_way.push_back(replica.propose(taking(gateway, started)));
        }
        done += 1;
        check(&within(under_way.next()).await.unwrap().unwrap(), done);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_neither_loses_nor_doubles_nor_reorders() {
    let mut lab = Lab::new(3);
    let mut replicas: Vec<Option<Replica>> = lab.start_all().await.into_iter().map(Some).collect();
    for round in 1..=3u32 {
        let alive: Vec<&Replica> = replicas.iter().flatten().collect();
        let first = leader(&alive).await;
        let proposer = replicas[(first + 1) % 3].clone().unwrap();
        let streaming = tokio::spawn(async move {
            stream(&proposer, round, 400).await;
        });
        // In the middle of them.
        let watched = replicas[(first + 2) % 3].clone().unwrap();
        within(async {
            while epoch(&watched, round) < 50 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        })
        .await;
        kill(replicas[first].take().unwrap()).await;
        streaming.await.unwrap();
        let survivors: Vec<&Replica> = replicas.iter().flatten().collect();
        same(&survivors).await;
        assert!(survivors.iter().all(|r| epoch(r, round) == 400));
        // It comes back from its disk, and catches up.
        replicas[first] = Some(within(lab.start(first)).await.unwrap());
        let all: Vec<&Replica> = replicas.iter().flatten().collect();
        same(&all).await;
    }
}

/// The last entry that is in its log no more.
fn purged(replica: &Replica) -> Option<u64> {
    let metrics = replica.cluster().0.raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.purged.map(|id| id.index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lags_takes_a_snapshot() {
    let mut lab = Lab::new(3);
    lab.snapshot_entries = 10;
    let mut replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    let lagging = (leader(&all).await + 1) % 3;
    take(&replicas[lagging], 1, 1).await;
    kill(replicas.remove(lagging)).await;
    let mut nth = 1;
    // Snapshots are made beside that: until what it lacks is in them alone.
    within(async {
        while nth < 60 || replicas.iter().any(|r| purged(r) < Some(20)) {
            nth += 1;
            take(&replicas[0], 1, nth).await;
        }
    })
    .await;
    let back = within(lab.start(lagging)).await.unwrap();
    replicas.push(back);
    let all: Vec<&Replica> = replicas.iter().collect();
    same(&all).await;
    let back = all[2];
    assert!(back.stats().snapshots > 0);
    // The log before its snapshot is gone everywhere: what it applied one by one is less than all.
    assert!(back.stats().commits < 60, "{:?}", back.stats());
    take(back, 1, nth + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_all_keeps_everything() {
    let mut lab = Lab::new(3);
    for round in 0..3 {
        let replicas = lab.start_all().await;
        for (n, replica) in (1u32..).zip(&replicas) {
            for step in 1..=5 {
                take(replica, n, round * 5 + step).await;
            }
        }
        let all: Vec<&Replica> = replicas.iter().collect();
        same(&all).await;
        // By a kill, and in good order.
        for replica in replicas {
            if round == 0 {
                kill(replica).await;
            } else {
                within(replica.close()).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_comes_back_as_another_node() {
    let mut lab = Lab::new(3);
    let mut replicas = lab.start_all().await;
    take(&replicas[0], 1, 1).await;
    let before = replicas[2].cluster().id();
    kill(replicas.remove(2)).await;
    lab.wipe(2);
    take(&replicas[0], 1, 2).await;
    let back = within(lab.start(2)).await.unwrap();
    assert_ne!(back.cluster().id(), before);
    take(&back, 1, 3).await;
    replicas.push(back);
    let all: Vec<&Replica> = replicas.iter().collect();
    same(&all).await;
    within(async {
        loop {
            let members = replicas[0].cluster().members();
            if members.len() == 3 && members.iter().all(|m| m.voter && m.id != before) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged() {
    let mut lab = Lab::new(3);
    let mut replicas = lab.start_all().await;
    take(&replicas[0], 1, 1).await;
    kill(replicas.pop().unwrap()).await;
    kill(replicas.pop().unwrap()).await;
    let alone = replicas.remove(0);
    let waits = tokio::time::timeout(
        std::time::Duration::from_secs(2),
        alone.propose(taking(1, 2)),
    );
    assert!(waits.await.is_err(), "it was acknowledged");
    assert_eq!(epoch(&alone, 1), 1);
    // With one of the others it goes on, and what was proposed then is still proposed.
    let other = within(lab.start(1)).await.unwrap();
    take(&alone, 1, 3).await;
    same(&[&alone, &other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_raft_panics_says_so_and_the_others_go_on() {
    let mut lab = Lab::new(3);
    let mut replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    let first = leader(&all).await;
    let broken = replicas.remove(first);
    let panics = broken
        .cluster()
        .0
        .raft
        .with_raft_state(|_| panic!("planted"));
    assert!(within(panics).await.is_err());
    let mut failed = broken.failed();
    let why = within(failed.wait_for(Option::is_some)).await.unwrap();
    assert!(why.as_ref().unwrap().contains("raft ended"), "{why:?}");
    drop(why);
    // Nobody waits for an answer.
    assert!(within(broken.propose(taking(1, 1))).await.is_err());
    let others: Vec<&Replica> = replicas.iter().collect();
    leader(&others).await;
    take(others[0], 1, 1).await;
    same(&others).await;
}
