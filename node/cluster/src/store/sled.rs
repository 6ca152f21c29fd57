//! The store of a member in service: the log in sled, snapshots and the last durable index in files beside it.
//!
//! ```text
//! DIR/meta                    what must be there (see the module `meta`)
//! DIR/log/                    sled
//! DIR/snapshots/snapshot-N    the state after entry N
//! ```
//! sled silently forgets a damaged tail (see the module `database`), so what is found is compared with what must be there.

use super::{
    Recovered, Store, StoreError,
    database::{Batch, Database},
    make_dir,
    meta::{Meta, MetaFile},
    snapshot_file,
};
use std::path::{Path, PathBuf};

/// A [`Store`] in a directory.
pub struct SledStore {
    dir: PathBuf,
    meta: MetaFile<Meta>,
    database: Database,
    /// First and last index of the batches that are in the log.
    batches: Vec<(u64, u64)>,
    last: u64,
}

impl SledStore {
    /// Opens the store in a directory, which is made if it does not exist, and reads what is in it.
    ///
    /// # Errors
    /// If the directory is in use or cannot be used, if what is there is damaged, or if less is there than must be.
    pub fn open(dir: &Path) -> Result<(Self, Recovered), StoreError> {
        let log = dir.join("log");
        let snapshots = dir.join("snapshots");
        make_dir(dir)?;
        make_dir(&snapshots)?;
        let meta_path = dir.join("meta");
        let existing = MetaFile::<Meta>::open(&meta_path)?;
        let meta = match existing {
            Some(meta) => meta,
            None if log.exists() => {
                return Err(StoreError::Damaged {
                    path: dir.to_owned(),
                    what: "there is a log, but its file `meta` is missing".into(),
                });
            }
            None => {
                let meta = MetaFile::create(&meta_path)?;
                // Before the log exists: a log without `meta` is taken for damage.
                snapshot_file::sync_dir(dir).map_err(StoreError::io(dir))?;
                meta
            }
        };
        make_dir(&log)?;
        // Without its name in the directory a log would be gone after a power cut, and be missed.
        snapshot_file::sync_dir(dir).map_err(StoreError::io(dir))?;
        let (database, batches) = Database::open(&log)?;
        let snapshot = latest_snapshot(&snapshots, meta.get())?;
        let after = snapshot.as_ref().map_or(0, |(last, _)| *last);
        let mut store = Self {
            dir: dir.to_owned(),
            meta,
            database,
            batches: Vec::new(),
            last: after,
        };
        let recovered = Recovered {
            snapshot,
            entries: store.take_in(batches, after)?,
        };
        let expected = store.meta.get().durable;
        if store.last < expected {
            return Err(StoreError::LostTail {
                path: dir.to_owned(),
                found: store.last,
                expected,
            });
        }
        // What a crash kept from being witnessed is witnessed now: whoever opens this store goes on from here.
        store.database.sync()?;
        store.meta.write(Meta {
            durable: store.last,
            snapshot: after,
        })?;
        snapshot_file::keep_only(&snapshots, after)?;
        Ok((store, recovered))
    }

    /// The entries after the snapshot; there must be no gap among them.
    fn take_in(
        &mut self,
        batches: Vec<Batch>,
        after: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        for batch in batches {
            self.batches.push((batch.first, batch.last()));
            for (index, entry) in (batch.first..).zip(batch.entries) {
                if index <= after {
                    continue;
                }
                if index != self.last + 1 {
                    let what = format!("entry {} is missing", self.last + 1);
                    return Err(StoreError::Damaged {
                        path: self.dir.join("log"),
                        what,
                    });
                }
                self.last = index;
                entries.push((index, entry));
            }
        }
        Ok(entries)
    }
}

impl Store for SledStore {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.last + 1;
        let last = self.last + batch.len() as u64;
        self.database.insert(first, batch)?;
        self.meta.write(Meta {
            durable: last,
            ..self.meta.get()
        })?;
        self.batches.push((first, last));
        self.last = last;
        Ok(())
    }

    fn install_snapshot(&mut self, bytes: &[u8], last: u64) -> Result<(), StoreError> {
        let snapshots = self.dir.join("snapshots");
        snapshot_file::write(&snapshots, last, bytes)?;
        let durable = self.meta.get().durable.max(last);
        self.meta.write(Meta {
            durable,
            snapshot: last,
        })?;
        // From here on the log is not needed; if this is interrupted, the next snapshot removes the rest.
        let (old, rest): (Vec<_>, Vec<_>) = self.batches.iter().partition(|(_, l)| *l <= last);
        self.batches = rest;
        self.database.remove(&old)?;
        snapshot_file::keep_only(&snapshots, last)?;
        self.last = self.last.max(last);
        Ok(())
    }

    fn last_index(&self) -> u64 {
        self.last
    }
}

/// The snapshot to start from: the one that `meta` knows, or a newer one that was finished just before a crash.
fn latest_snapshot(dir: &Path, meta: Meta) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let mut found = snapshot_file::list(dir)?;
    while let Some(last) = found.pop().filter(|last| *last > meta.snapshot) {
        if let Ok(bytes) = snapshot_file::read(dir, last) {
            return Ok(Some((last, bytes)));
        }
    }
    if meta.snapshot == 0 {
        return Ok(None);
    }
    snapshot_file::read(dir, meta.snapshot).map(|bytes| Some((meta.snapshot, bytes)))
}
