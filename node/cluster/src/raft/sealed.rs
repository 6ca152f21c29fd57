//! With which cluster keys that is sealed what a member has on its disk, and how the former ones come to be needed no more.

use super::types::Raft;
use crate::{keyring::KeyRing, replica::Shared, seal};
use evergate_state::{KeyId, State};
use openraft::async_runtime::WatchReceiver as _;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{self, MissedTickBehavior};

/// How often it is looked at. A rotation is a matter of minutes.
const LOOK: Duration = Duration::from_secs(1);

/// What is on the disk, by the keys that it is sealed with.
#[derive(Default)]
pub(crate) struct Sealed(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    snapshot: Option<KeyId>,
    /// The last entry that is sealed with a key.
    entries: BTreeMap<KeyId, u64>,
}

/// What is to be done next, so that a former key is needed no more.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    Snapshot,
    Purge(u64),
}

impl Sealed {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is this snapshot now, and no other.
    pub(super) fn snapshot(&self, blob: &[u8], ring: &KeyRing) {
        self.lock().snapshot = seal::key_of(blob, ring);
    }

    /// An entry of the log was applied. One that nobody ever opens needs no key.
    pub(super) fn entry(&self, index: u64, blob: &[u8], ring: &KeyRing) {
        if let Some(key) = seal::key_of(blob, ring) {
            self.lock().entries.insert(key, index);
        }
    }

    /// The keys without which something on the disk could not be opened. The log goes on after `purged`.
    fn needed(&self, purged: Option<u64>) -> Vec<KeyId> {
        let mut inner = self.lock();
        inner.entries.retain(|_, last| Some(*last) > purged);
        let mut all: Vec<KeyId> = inner
            .entries
            .keys()
            .copied()
            .chain(inner.snapshot)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What is to be done, so that nothing but `key` is needed; the snapshot has the entries up to `snapshot`.
    fn next(&self, key: KeyId, snapshot: Option<u64>) -> Next {
        let inner = self.lock();
        let others = inner.entries.iter().filter(|(other, _)| **other != key);
        let last = others.map(|(_, last)| *last).max();
        let resealed = inner.snapshot.is_none_or(|other| other == key);
        match last {
            None if resealed => Next::Nothing,
            Some(last) if resealed && snapshot >= Some(last) => Next::Purge(last),
            _ => Next::Snapshot,
        }
    }
}

/// The keys without which something on this member's disk could not be opened.
pub(super) fn needed(raft: &Raft, shared: &Shared) -> Vec<KeyId> {
    let purged = raft.metrics().borrow_watched().purged.map(|id| id.index);
    shared.sealed.needed(purged)
}

/// When all have agreed on another key, what is on the disk is sealed with it as soon as that can be: by a snapshot, and without the log before it.
pub(super) async fn reseal(raft: Raft, shared: Arc<Shared>) {
    let mut look = time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        // Only looked at: what is purged is left out.
        needed(&raft, &shared);
        let Some(key) = shared.read(State::sealing_key) else {
            continue;
        };
        let snapshot = raft.metrics().borrow_watched().snapshot.map(|id| id.index);
        let done = match shared.sealed.next(key, snapshot) {
            Next::Nothing => Ok(()),
            Next::Snapshot => raft.trigger().snapshot().await,
            Next::Purge(last) => raft.trigger().purge_log(last).await,
        };
        if done.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_keys_are_needed_until_a_snapshot_and_a_purge() {
        let [old, new] = [1, 2].map(|n| KeyId([n; 8]));
        let sealed = Sealed::default();
        sealed.lock().snapshot = Some(old);
        sealed.lock().entries = BTreeMap::from([(old, 20), (new, 22)]);
        assert_eq!(sealed.needed(Some(9)), [old, new]);
        assert_eq!(sealed.next(new, Some(10)), Next::Snapshot);
        sealed.lock().snapshot = Some(new);
        assert_eq!(
            sealed.next(new, Some(19)),
            Next::Snapshot,
            "one entry came late"
        );
        assert_eq!(sealed.next(new, Some(20)), Next::Purge(20));
        assert_eq!(sealed.needed(Some(19)), [old, new]);
        assert_eq!(sealed.needed(Some(20)), [new]);
        assert_eq!(sealed.next(new, Some(20)), Next::Nothing);
    }
}
