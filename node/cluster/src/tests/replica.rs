use super::*;
use crate::{
    ProposeError,
    raft::{Entry, WIDTH},
};
use evergate_state::{Counters, Refusal};
use futures::FutureExt as _;
use openraft::EntryPayload;

#[tokio::test]
async fn outcomes_are_those_of_the_own_commands() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    let outcomes = replica
        .propose(vec![
            register(),
            assign(0),
            put(1, sa(1, b"s")),
            put(9, sa(2, b"s")),
        ])
        .await
        .unwrap();
    assert_eq!(
        outcomes[..3],
        [
            Outcome::Applied,
            Outcome::Epoch { epoch: 1 },
            Outcome::Applied
        ]
    );
    let stale = Refusal::StaleEpoch {
        gateway: GW,
        given: 9,
        current: 1,
    };
    assert_eq!(outcomes[3..], [Outcome::Refused(stale)]);
    assert_eq!(replica.propose(vec![]).await, Ok(vec![]));
    assert!(replica.read(|s| s.sa(SaId(1)).is_some() && s.sa(SaId(2)).is_none()));
}

#[tokio::test]
async fn a_crash_keeps_what_was_answered() {
    let disk = Disk::new();
    let first = on_disk(&disk).await;
    taken(&first).await;
    for n in 0..20 {
        first.propose(vec![put(1, sa(n, b"s"))]).await.unwrap();
    }
    let before = snapshot(&first);
    // No close: the second opening is the death of the first process.
    let second = on_disk(&disk).await;
    assert_eq!(snapshot(&second), before);
    let dead = first.propose(vec![register()]).await;
    assert!(matches!(dead, Err(ProposeError::Failed(_))), "{dead:?}");
    assert_eq!(snapshot(&second), before);
    assert_eq!(taken(&second).await, 2);
}

#[tokio::test]
async fn many_proposals_share_an_append() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    let before = disk.appends();
    let mut all: Vec<_> = (0..50)
        .map(|n| Box::pin(replica.propose(vec![put(1, sa(n, b"s"))])))
        .collect();
    // While the state is read nothing is applied: so many batches as may be under way take what they find, and the rest waits for the next.
    replica.read(|_| {
        for proposal in &mut all {
            assert!(proposal.as_mut().now_or_never().is_none());
        }
    });
    for proposal in all {
        assert_eq!(proposal.await, Ok(vec![Outcome::Applied]));
    }
    let appends = disk.appends() - before;
    assert!(
        appends <= WIDTH as u64 + 1,
        "{appends} appends for 50 proposals"
    );
    assert_eq!(replica.read(|s| s.sas().len()), 50);
}

#[tokio::test]
async fn lazy_proposals_keep_their_place_and_do_not_wait_long() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    let count = |n| Command::Counters {
        gateway: GW,
        epoch: 1,
        counters: vec![Counters {
            sa: SaId(1),
            inbound_next: n,
            outbound_next: 0,
        }],
    };
    // A record that is put lazily is there for the proposal after it.
    replica.propose_lazy(vec![put(1, sa(1, b"s"))]).unwrap();
    let next = Record {
        revision: 2,
        ..sa(1, b"s")
    };
    assert_eq!(
        replica.propose(vec![put(1, next)]).await,
        Ok(vec![Outcome::Applied])
    );
    let appends = disk.appends();
    let mut applied = replica.applied();
    applied.mark_unchanged();
    for n in 3..40 {
        replica.propose_lazy(vec![count(n)]).unwrap();
    }
    tokio::time::timeout(Duration::from_secs(10), applied.changed())
        .await
        .unwrap()
        .unwrap();
    while replica.read(|s| s.sa(SaId(1)).unwrap().inbound.next) < 39 {
        tokio::time::timeout(Duration::from_secs(10), applied.changed())
            .await
            .unwrap()
            .unwrap();
    }
    assert!(
        disk.appends() - appends < 15,
        "{} appends",
        disk.appends() - appends
    );
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let disk = Disk::new();
    let tick = Duration::from_secs(3600);
    let config = Config {
        queue: 10,
        tick,
        ..config()
    };
    let replica = open(config, Storage::Memory(disk)).await.unwrap();
    replica.propose(vec![register()]).await.unwrap();
    for n in 0..10 {
        replica.propose_lazy(vec![assign(n)]).unwrap();
    }
    assert_eq!(
        replica.propose_lazy(vec![assign(10)]),
        Err(ProposeError::Busy)
    );
    // Somebody who waits takes them along, and there is room again.
    let outcome = replica.propose(vec![assign(10)]).await;
    assert_eq!(outcome, Ok(vec![Outcome::Epoch { epoch: 11 }]));
    replica.propose_lazy(vec![assign(11)]).unwrap();
    let big = vec![put(1, sa(1, &vec![0; 5 << 20]))];
    assert!(matches!(
        replica.propose(big).await,
        Err(ProposeError::TooBig(_))
    ));
    replica.close().await;
    assert_eq!(
        replica.propose_lazy(vec![register()]),
        Err(ProposeError::Closed)
    );
    assert_eq!(
        replica.propose(vec![register()]).await,
        Err(ProposeError::Closed)
    );
    assert_eq!(
        replica.read(|s| s.gateway(GW).unwrap().epoch),
        12,
        "what waited is committed at the end"
    );
}

#[tokio::test]
async fn batches_are_bounded_in_bytes() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    let secret = vec![1; 300 << 10];
    let all: Vec<_> = (0..6)
        .map(|n| {
            let (replica, record) = (replica.clone(), sa(n, &secret));
            tokio::spawn(async move { replica.propose(vec![put(1, record)]).await })
        })
        .collect();
    for task in all {
        assert_eq!(task.await.unwrap(), Ok(vec![Outcome::Applied]));
    }
    let entries = disk.entries();
    assert!(entries.len() > 1 && entries.iter().all(|e| e.len() < (4 << 20) + 1000));
}

#[tokio::test]
async fn a_full_disk_ends_the_service() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    let before = snapshot(&replica);
    let mut failed = replica.failed();
    assert_eq!(*failed.borrow(), None);
    disk.set_full(true);
    let Err(ProposeError::Failed(why)) = replica.propose(vec![put(1, sa(1, b"s"))]).await else {
        panic!("no failure")
    };
    assert!(why.contains("no space left"), "{why}");
    failed.wait_for(Option::is_some).await.unwrap();
    // Space that comes back does not bring it back: what the disk holds is not known.
    disk.set_full(false);
    assert_eq!(
        replica.propose(vec![register()]).await,
        Err(ProposeError::Failed(why.clone()))
    );
    assert_eq!(
        replica.propose_lazy(vec![register()]),
        Err(ProposeError::Failed(why))
    );
    assert_eq!(
        snapshot(&replica),
        before,
        "nothing is applied that is not durable"
    );
    replica.close().await;
    assert_eq!(snapshot(&on_disk(&disk).await), before);
}

#[tokio::test]
async fn a_failed_append_may_have_been_written() {
    for written in [0, 1] {
        let disk = Disk::new();
        let replica = on_disk(&disk).await;
        taken(&replica).await;
        disk.tear_next_append(written);
        assert!(matches!(
            replica.propose(vec![assign(1)]).await,
            Err(ProposeError::Failed(_))
        ));
        assert_eq!(replica.read(|s| s.gateway(GW).unwrap().epoch), 1);
        let epoch = 1 + u32::try_from(written).unwrap();
        assert_eq!(
            on_disk(&disk).await.read(|s| s.gateway(GW).unwrap().epoch),
            epoch
        );
    }
}

#[tokio::test]
async fn a_disk_that_rots_or_loses_its_end_is_refused_until_it_is_empty() {
    type Damage = fn(&Disk) -> bool;
    let damages: [(Damage, &str); 3] = [
        (|disk| disk.rot(0), "damaged"),
        (|disk| disk.rot(u64::MAX / 3), "damaged"),
        (|disk| disk.lose_tail(1), "ends at entry"),
    ];
    for (damage, said) in damages {
        let disk = Disk::new();
        assert!(!damage(&disk), "there is nothing on it");
        let replica = on_disk(&disk).await;
        taken(&replica).await;
        replica.close().await;
        assert!(damage(&disk));
        let error = open(config(), Storage::Memory(disk.clone())).await;
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains(said) && text.contains("move the directory away"),
            "{text}"
        );
        disk.wipe();
        let replica = on_disk(&disk).await;
        assert!(replica.read(|s| s.gateway(GW).is_none()));
    }
}

#[tokio::test]
async fn another_key_does_not_open_it() {
    let disk = Disk::new();
    taken(&on_disk(&disk).await).await;
    let other = Config {
        keys: ClusterKey::from_bytes([8; 32]).into(),
        ..config()
    };
    let error = open(other, Storage::Memory(disk)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JoinError::Log(_)), "{text}");
    assert!(
        text.contains("log entry 2") && text.contains("another cluster key"),
        "{text}"
    );
}

#[tokio::test]
async fn entries_cannot_change_places() {
    let disk = Disk::new();
    let replica = on_disk(&disk).await;
    taken(&replica).await;
    taken(&replica).await;
    drop(replica);
    let other = Disk::new();
    disk.change(|all| other.change(|others| others.clone_from(all)));
    // Whole entries.
    disk.change(|all| {
        let (second, third) = (all[&2].clone(), all[&3].clone());
        all.extend([(2, third), (3, second)]);
    });
    let error = open(config(), Storage::Memory(disk)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JoinError::Store(_)), "{text}");
    assert!(text.contains("entry 2 says that it is another"), "{text}");
    // Only what is sealed in them.
    other.change(|all| {
        let entry = |n: u64| -> Entry { postcard::from_bytes(&all[&n]).unwrap() };
        let (mut second, third) = (entry(2), entry(3));
        let (EntryPayload::Normal(one), EntryPayload::Normal(another)) =
            (&mut second.payload, &third.payload)
        else {
            panic!("{second:?} {third:?}")
        };
        one.sealed = another.sealed.clone();
        all.insert(2, postcard::to_stdvec(&second).unwrap());
    });
    let error = open(config(), Storage::Memory(other)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JoinError::Log(_)), "{text}");
    assert!(
        text.contains("log entry 2") && text.contains("out of its place"),
        "{text}"
    );
}

#[tokio::test]
async fn snapshots_replace_the_log_and_bound_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = || async {
        let config = Config {
            snapshot_bytes: 1 << 20,
            ..config()
        };
        open_dir(config, dir.path()).await.unwrap()
    };
    let replica = open().await;
    taken(&replica).await;
    // 60 MB through a state of 300 kB.
    let secret = vec![5; 25_000];
    for round in 1..=240 {
        let record = Record {
            revision: round,
            ..sa(1, &secret)
        };
        assert_eq!(
            replica.propose(vec![put(1, record)]).await,
            Ok(vec![Outcome::Applied])
        );
        // They are made beside that, and on a slow machine waited for: five times the bytes that one is for.
        let waited = async {
            while replica.stats().snapshots < round / 20 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
        waited.expect("there are snapshots");
    }
    assert!(replica.stats().snapshots > 10, "{:?}", replica.stats());
    let before = snapshot(&replica);
    replica.close().await;
    let used = size(dir.path());
    assert!(
        used < 30 << 20,
        "{used} bytes on disk for a state of {}",
        before.len()
    );
    let applied = replica.stats().applied;
    let again = open().await;
    assert_eq!(snapshot(&again), before);
    assert_eq!(again.stats().applied, applied);
}

#[tokio::test]
async fn a_store_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let replica = open_dir(config(), dir.path()).await.unwrap();
    taken(&replica).await;
    let error = open_dir(config(), dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    let before = snapshot(&replica);
    replica.close().await;
    let again = open_dir(config(), dir.path()).await.unwrap();
    assert_eq!(snapshot(&again), before);
}

/// Bytes that a directory really takes.
fn size(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| {
            let meta = e.metadata().unwrap();
            if meta.is_dir() {
                size(&e.path())
            } else {
                meta.blocks() * 512
            }
        })
        .sum()
}
