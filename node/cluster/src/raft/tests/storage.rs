//! What Raft asks of a store, and what the store refuses.

use crate::{
    ClusterKey, Config, entry,
    raft::{
        JoinError,
        log::{Identity, LogEnd, LogStore, OpenedLog},
        machine::{Machine, Own},
        types::{Batch, LogId, Node, TypeConfig},
        window::Window,
    },
    replica::{Failed, Shared},
    seal::{Kind, Sealer},
    store::{Snapshots, Storage, StoreError},
};
use evergate_ike::env::UnixMillis;
use openraft::{
    RaftLogReader, RaftSnapshotBuilder, StorageError,
    entry::RaftEntry,
    storage::{IOFlushed, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
    type_config::TypeConfigExt,
    vote::RaftLeaderId,
};
use std::{fs, path::Path, sync::Arc};
use tempfile::TempDir;

struct Builder;

fn open(dir: &Path) -> Result<(LogStore, Identity, LogEnd), StoreError> {
    let storage = Storage::Directory(dir.to_owned());
    let opened = LogStore::open(&storage, Failed::default())?;
    Ok((opened.log, opened.identity, opened.end))
}

/// The machine of a log that is closed.
fn machine(dir: &Path, purged: Option<u64>) -> Result<Machine, JoinError> {
    let storage = Storage::Directory(dir.to_owned());
    let OpenedLog { end, snapshots, .. } = LogStore::open(&storage, Failed::default())?;
    end.close();
    machine_on(snapshots, purged)
}

fn machine_on(snapshots: Arc<dyn Snapshots>, purged: Option<u64>) -> Result<Machine, JoinError> {
    let shared = Arc::new(Shared::new(&Config::new(
        ClusterKey::from_bytes([7; 32]),
        || UnixMillis(1),
    )));
    let sealer = || Sealer::new(ClusterKey::from_bytes([7; 32])).unwrap();
    let own = Own {
        member: 1,
        incarnation: 1,
        window: Arc::new(Window::default()),
    };
    Machine::open(
        snapshots,
        shared,
        (sealer(), sealer()),
        own,
        purged,
        u64::MAX,
    )
    .map(|(m, _)| m)
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::Directory(dir.path().to_owned());
        let opened = LogStore::open(&storage, Failed::default()).unwrap();
        let machine = machine_on(opened.snapshots, None).unwrap();
        Ok((dir, opened.log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_led_does_not_lead_on_in_its_term_after_a_restart() {
    let storage = Storage::Memory(crate::store::Disk::new());
    let vote = |node, committed| crate::raft::meta::vote((3, node, committed));
    for (voted, found) in [
        (vote(7, true), vote(7, false)),
        (vote(8, true), vote(8, true)),
        (vote(8, false), vote(8, false)),
    ] {
        let mut opened = LogStore::open(&storage, Failed::default()).unwrap();
        opened.log.name(7).await.unwrap();
        opened.log.save_vote(&voted).await.unwrap();
        opened.end.close();
        let mut again = LogStore::open(&storage, Failed::default()).unwrap();
        assert_eq!(again.log.read_vote().await.unwrap(), Some(voted));
        again.log.lead_no_more(7);
        assert_eq!(again.log.read_vote().await.unwrap(), Some(found));
        again.end.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    Suite::test_all(Builder).await.unwrap();
}

type Entry = crate::raft::types::Entry;

fn id(term: u64, index: u64) -> LogId {
    let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64>::new(term, 1);
    LogId::new(leader.to_committed(), index)
}

async fn append(log: &mut LogStore, term: u64, indices: std::ops::Range<u64>) {
    let entries: Vec<Entry> = indices.map(|i| Entry::new_blank(id(term, i))).collect();
    let (done, flushed) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

async fn terms(log: &mut LogStore) -> Vec<(u64, u64)> {
    log.try_get_log_entries(..)
        .await
        .unwrap()
        .iter()
        .map(|e| (e.log_id.leader_id.term, e.log_id.index))
        .collect()
}

/// So many bytes of proposals that most are not in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_in_memory_is_read_from_the_store() {
    const ENTRIES: u64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let proposal = |index: u64| Batch {
        member: 1,
        incarnation: 1,
        number: index,
        sealed: vec![u8::try_from(index).unwrap(); 400_000].into(),
    };
    {
        let (mut log, _, end) = open(dir.path()).unwrap();
        append(&mut log, 1, 0..1).await;
        for index in 1..ENTRIES {
            let entry = Entry::new_normal(id(1, index), proposal(index));
            let (done, flushed) = TypeConfig::oneshot();
            log.append([entry], IOFlushed::signal(done)).await.unwrap();
            // Those that were just appended can be read before they are durable, and who lags far behind waits for the store.
            let all = log.try_get_log_entries(..).await.unwrap();
            assert_eq!(all.len() as u64, index + 1);
            flushed.await.unwrap().unwrap();
        }
        assert!(log.resident() <= 1 << 20, "{}", log.resident());
        whole(&mut log, proposal, 0, ENTRIES).await;
        let part = log.limited_get_log_entries(3, ENTRIES).await.unwrap();
        assert_eq!(part.iter().map(|e| e.index()).collect::<Vec<_>>(), [3, 4]);
        // What comes in the place of others is read, not they.
        log.truncate_after(Some(id(1, 20))).await.unwrap();
        append(&mut log, 2, 21..22).await;
        let last = log.try_get_log_entries(20..).await.unwrap();
        assert_eq!(
            last.iter().map(|e| e.log_id).collect::<Vec<_>>(),
            [id(1, 20), id(2, 21)]
        );
        log.purge(id(1, 4)).await.unwrap();
        whole(&mut log, proposal, 5, 21).await;
        end.close();
    }
    let (mut log, _, end) = open(dir.path()).unwrap();
    assert!(log.resident() <= 1 << 20, "{}", log.resident());
    whole(&mut log, proposal, 5, 21).await;
    end.close();
}

async fn whole(log: &mut LogStore, proposal: impl Fn(u64) -> Batch, from: u64, to: u64) {
    let read = log.try_get_log_entries(..to).await.unwrap();
    let expected: Vec<Entry> = (from..to)
        .map(|index| match index {
            0 => Entry::new_blank(id(1, 0)),
            _ => Entry::new_normal(id(1, index), proposal(index)),
        })
        .collect();
    assert!(read == expected, "the log is another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, identity, end) = open(dir.path()).unwrap();
        assert!(identity.pristine && identity.node.is_none());
        log.name(77).await.unwrap();
        append(&mut log, 1, 0..10).await;
        append(&mut log, 1, 10..20).await;
        // In the middle of a record.
        log.truncate_after(Some(id(1, 14))).await.unwrap();
        append(&mut log, 2, 15..18).await;
        log.save_vote(&openraft::Vote::new_committed(2, 77))
            .await
            .unwrap();
        log.save_committed(Some(id(1, 12))).await.unwrap();
        append(&mut log, 2, 18..19).await;
        log.purge(id(1, 4)).await.unwrap();
        end.close();
    }
    let (mut log, identity, end) = open(dir.path()).unwrap();
    assert_eq!(
        (identity.node, identity.starts, identity.pristine),
        (Some(77), 2, false)
    );
    assert_eq!(identity.purged, Some(4));
    let expected: Vec<_> = (5..15)
        .map(|i| (1, i))
        .chain((15..19).map(|i| (2, i)))
        .collect();
    assert_eq!(terms(&mut log).await, expected);
    assert_eq!(
        log.read_vote().await.unwrap(),
        Some(openraft::Vote::new_committed(2, 77))
    );
    assert_eq!(log.read_committed().await.unwrap(), Some(id(1, 12)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(id(1, 4)), Some(id(2, 18)))
    );
    end.close();
    drop(log);
    // What was purged is in no snapshot here.
    assert!(matches!(
        machine(dir.path(), identity.purged),
        Err(JoinError::Store(StoreError::Damaged { .. }))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_tail_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let (mut log, _, end) = open(dir.path()).unwrap();
    append(&mut log, 1, 0..10).await;
    end.close();
    drop(log);
    for file in fs::read_dir(dir.path().join("log")).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let (mut log, _, end) = open(dir.path()).unwrap();
    append(&mut log, 1, 10..20).await;
    end.close();
    drop(log);
    for file in fs::read_dir(copy.path()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join("log").join(file.file_name())).unwrap();
    }
    let refused = open(dir.path()).map(drop).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::LostTail {
                found: 9,
                expected: 19,
                ..
            }
        ),
        "{refused}"
    );
}

/// Makes batches.
struct Proposer {
    sealer: Sealer,
    member: u64,
    incarnation: u128,
}

impl Proposer {
    fn new(member: u64, incarnation: u128) -> Self {
        Self {
            sealer: Sealer::new(ClusterKey::from_bytes([7; 32])).unwrap(),
            member,
            incarnation,
        }
    }

    fn batch(&mut self, number: u64) -> EntryPayload {
        let mut batch = Batch {
            member: self.member,
            incarnation: self.incarnation,
            number,
            sealed: bytes::Bytes::new(),
        };
        let entry = evergate_state::Entry {
            at: UnixMillis(1),
            commands: vec![],
        };
        let plain = postcard::to_stdvec(&(entry::FORMAT, entry)).unwrap();
        let sealed = self
            .sealer
            .seal(Kind::Entry, batch.place(), |out| out.extend(&plain));
        batch.sealed = sealed.unwrap().into();
        openraft::EntryPayload::Normal(batch)
    }
}

type EntryPayload = openraft::alias::PayloadOf<TypeConfig>;

/// Applies a payload, and returns how many batches were carried out by it.
async fn apply(machine: &mut Machine, index: &mut u64, payload: EntryPayload) -> u64 {
    let entry = Entry {
        log_id: id(1, *index),
        payload,
    };
    *index += 1;
    let before = machine.commits();
    let one = futures::stream::iter([Ok((entry, None))]);
    machine.apply(one).await.unwrap();
    machine.commits() - before
}

fn membership(members: &[u64]) -> EntryPayload {
    let nodes = members.iter().map(|m| (*m, Node::default()));
    let membership = openraft::Membership::new(
        vec![members.iter().copied().collect()],
        nodes.collect::<std::collections::BTreeMap<_, _>>(),
    );
    openraft::EntryPayload::Membership(membership.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_carried_out_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine(dir.path(), None).unwrap();
    let (mut one, mut two) = (Proposer::new(1, 10), Proposer::new(2, 10));
    let at = &mut 0;
    // Before it is a member.
    assert_eq!(apply(&mut machine, at, one.batch(1)).await, 0);
    apply(&mut machine, at, membership(&[1, 2])).await;
    for (number, carried_out) in [
        (2, 0),
        (1, 1),
        (1, 0),
        (3, 0),
        (2, 1),
        (1, 0),
        (2, 0),
        (3, 1),
    ] {
        let done = apply(&mut machine, at, one.batch(number)).await;
        assert_eq!(done, carried_out, "batch {number}");
    }
    // Members do not count for one another.
    assert_eq!(apply(&mut machine, at, two.batch(4)).await, 0);
    assert_eq!(apply(&mut machine, at, two.batch(1)).await, 1);
    // A new process: what the old one left behind comes too late, and the new one begins at its beginning.
    let mut again = Proposer::new(1, 11);
    assert_eq!(apply(&mut machine, at, again.batch(4)).await, 0);
    assert_eq!(apply(&mut machine, at, one.batch(4)).await, 1);
    assert_eq!(apply(&mut machine, at, again.batch(1)).await, 1);
    assert_eq!(apply(&mut machine, at, one.batch(5)).await, 0);
    assert_eq!(apply(&mut machine, at, one.batch(1)).await, 0);
    assert_eq!(apply(&mut machine, at, again.batch(2)).await, 1);
    // All this is in a snapshot, too.
    let snapshot = machine
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut other = self::machine(other.path(), None).unwrap();
    other
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
    for machine in [&mut machine, &mut other] {
        let at = &mut at.clone();
        assert_eq!(apply(machine, at, again.batch(2)).await, 0);
        assert_eq!(apply(machine, at, again.batch(3)).await, 1);
        // Who is removed is forgotten.
        apply(machine, at, membership(&[2])).await;
        assert_eq!(apply(machine, at, again.batch(4)).await, 0);
        assert_eq!(apply(machine, at, two.batch(2)).await, 1);
    }
}
