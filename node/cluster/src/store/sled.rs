//! The store of a member in service: the log in sled, snapshots and what must be there in files beside it.
//!
//! ```text
//! DIR/meta                    what must be there (see the module `meta`)
//! DIR/log/                    sled
//! DIR/snapshots/snapshot-N    the state after N entries
//! ```
//! sled silently forgets a damaged tail (see the module `database`), so what is found is compared with what must be there.

use super::{
    Meta, Opened, Store, StoreError,
    database::{Batch, Database},
    make_dir,
    meta::MetaFile,
    snapshot_file::{SnapshotDir, sync_dir},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A [`Store`] in a directory.
struct SledStore {
    dir: PathBuf,
    meta: MetaFile,
    database: Database,
    /// First and last index of the batches that are in the log.
    batches: Vec<(u64, u64)>,
}

/// Opens the store in a directory, which is made if it does not exist, and reads what is in it.
///
/// # Errors
/// If the directory is in use or cannot be used, if what is there is damaged, or if less is there than must be.
pub(super) fn open(dir: &Path) -> Result<Opened, StoreError> {
    let log = dir.join("log");
    let snapshots = dir.join("snapshots");
    make_dir(dir)?;
    make_dir(&snapshots)?;
    let meta = open_meta(dir, &log)?;
    make_dir(&log)?;
    // Without its name in the directory a log would be gone after a power cut, and be missed.
    sync_dir(dir).map_err(StoreError::io(dir))?;
    let (database, batches) = Database::open(&log)?;
    let mut store = SledStore {
        dir: dir.to_owned(),
        meta,
        database,
        batches: Vec::new(),
    };
    let entries = store.take_in(batches)?;
    Ok(Opened {
        store: Box::new(store),
        snapshots: Arc::new(SnapshotDir(snapshots)),
        entries,
    })
}

fn open_meta(dir: &Path, log: &Path) -> Result<MetaFile, StoreError> {
    let path = dir.join("meta");
    if let Some(meta) = MetaFile::open(&path)? {
        return Ok(meta);
    }
    if log.exists() {
        return Err(StoreError::Damaged {
            path: dir.to_owned(),
            what: "there is a log, but its file `meta` is missing".into(),
        });
    }
    let meta = MetaFile::create(&path)?;
    // Before the log exists: a log without `meta` is taken for damage.
    sync_dir(dir).map_err(StoreError::io(dir))?;
    Ok(meta)
}

impl SledStore {
    /// The entries after what was purged; there must be no gap among them, and as many as there were.
    fn take_in(&mut self, batches: Vec<Batch>) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let meta = self.meta.get();
        let start = meta.purged.map_or(0, |(_, index)| index + 1);
        let mut next = start;
        let mut entries = Vec::new();
        for batch in batches {
            self.batches.push((batch.first, batch.last()));
            for (index, entry) in (batch.first..).zip(batch.entries) {
                if index < start {
                    // Purged, but not yet removed.
                    continue;
                }
                if index != next {
                    return Err(StoreError::Damaged {
                        path: self.dir.join("log"),
                        what: format!("entry {next} is missing"),
                    });
                }
                next += 1;
                entries.push((index, entry));
            }
        }
        if next < meta.durable_next {
            return Err(StoreError::LostTail {
                path: self.dir.clone(),
                found: next.saturating_sub(1),
                expected: meta.durable_next - 1,
            });
        }
        // What a crash kept from being witnessed is witnessed now: whoever opens this store goes on from here, and writes `meta` first.
        self.database.sync()?;
        self.meta.note(Meta {
            durable_next: next,
            ..meta
        })?;
        Ok(entries)
    }
}

impl Store for SledStore {
    fn meta(&self) -> Meta {
        self.meta.get()
    }

    fn set_meta(&mut self, meta: Meta) -> Result<(), StoreError> {
        self.meta.write(Meta {
            durable_next: self.meta.get().durable_next,
            ..meta
        })
    }

    fn append(
        &mut self,
        first: u64,
        entries: &[Vec<u8>],
        committed: Option<(u64, u64)>,
    ) -> Result<(), StoreError> {
        let next = first + entries.len() as u64;
        if next == first {
            return Ok(());
        }
        self.database.insert(first, entries)?;
        // Not durable at once: it survives this process as it is, and a power cut soon (see `settle`). The entries themselves are durable.
        self.meta.note(Meta {
            durable_next: next,
            committed: self.meta.get().committed.max(committed),
            ..self.meta.get()
        })?;
        self.batches.push((first, next - 1));
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        let from = self
            .batches
            .partition_point(|(_, last)| *last < range.start);
        let wanted = self.batches[from..].iter();
        for &(first, _) in wanted.take_while(|(first, _)| *first < range.end) {
            let batch = (first..).zip(self.database.read_batch(first)?);
            entries.extend(batch.filter(|(index, _)| range.contains(index)));
        }
        Ok(entries)
    }

    fn truncate(&mut self, from: u64) -> Result<(), StoreError> {
        let meta = self.meta.get();
        self.meta.write(Meta {
            durable_next: meta.durable_next.min(from),
            ..meta
        })?;
        let (rest, old): (Vec<_>, Vec<_>) = self.batches.iter().partition(|(_, last)| *last < from);
        self.database.cut(&old, from)?;
        self.batches = rest;
        if let Some(&(first, _)) = old.first()
            && first < from
        {
            self.batches.push((first, from - 1));
        }
        Ok(())
    }

    fn purge(&mut self, upto: (u64, u64)) -> Result<(), StoreError> {
        let (_, index) = upto;
        let meta = self.meta.get();
        self.meta.write(Meta {
            purged: Some(upto),
            durable_next: meta.durable_next.max(index + 1),
            committed: meta.committed.max(Some(upto)),
            ..meta
        })?;
        let (old, rest): (Vec<_>, Vec<_>) =
            self.batches.iter().partition(|(_, last)| *last <= index);
        self.batches = rest;
        self.database.remove(&old)
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        self.meta.settle()
    }
}
