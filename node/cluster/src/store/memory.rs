//! A store in memory that fails and crashes as a test wants.

use super::{Meta, Opened, Snapshots, Store, StoreError};
use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What survives a crash. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Content>>);

/// When a disk is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Something is about to be written.
    Before,
    /// It is durable, and nobody knows that yet.
    After,
}

/// Is called whenever something is written, and may take as long as it likes.
#[derive(Clone)]
struct Watcher(Arc<dyn Fn(Moment) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

#[derive(Debug, Default)]
struct Content {
    watcher: Option<Watcher>,
    meta: Meta,
    entries: BTreeMap<u64, Blob>,
    snapshot: Option<(u64, Blob)>,
    /// The index after the last that was ever durable here and was not removed on purpose.
    end: u64,
    appends: u64,
    broken: Option<Broken>,
    /// Which opening owns the disk: what was opened before can no longer write.
    opening: u64,
}

/// What is stored, with the checksum that the real store has, too.
#[derive(Clone, Debug)]
struct Blob {
    bytes: Vec<u8>,
    sum: u32,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let sum = crc32fast::hash(&bytes);
        Self { bytes, sum }
    }

    fn check(&self, what: fmt::Arguments<'_>) -> Result<&[u8], StoreError> {
        if crc32fast::hash(&self.bytes) == self.sum {
            return Ok(&self.bytes);
        }
        Err(StoreError::Damaged {
            path: "memory".into(),
            what: what.to_string(),
        })
    }
}

impl Content {
    /// What opening the real store looks at.
    fn check(&self) -> Result<(), StoreError> {
        for (index, entry) in &self.entries {
            entry.check(format_args!("entry {index}"))?;
        }
        if let Some((number, snapshot)) = &self.snapshot {
            snapshot.check(format_args!("snapshot {number}"))?;
        }
        let purged = self.meta.purged.map_or(0, |(_, index)| index + 1);
        let last = self.entries.last_key_value();
        let found = last.map_or(0, |(index, _)| index + 1).max(purged);
        if found < self.end {
            return Err(StoreError::LostTail {
                path: "memory".into(),
                found: found.saturating_sub(1),
                expected: self.end - 1,
            });
        }
        Ok(())
    }
}

/// How a disk is broken.
#[derive(Clone, Copy, Debug)]
enum Broken {
    /// Nothing is written.
    Full,
    /// So many entries of the next append are written, and then it fails.
    Torn(usize),
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the disk after a crash or for the first time. Stores that were opened before can write no more, as if their process was dead.
    ///
    /// # Errors
    /// If something on it is damaged or missing.
    pub(super) fn open(&self) -> Result<Opened, StoreError> {
        let mut content = self.lock();
        content.check()?;
        content.opening += 1;
        let store = MemoryStore {
            disk: self.clone(),
            opening: content.opening,
        };
        let entries = content.entries.iter();
        Ok(Opened {
            store: Box::new(store.clone()),
            snapshots: Arc::new(store),
            entries: entries.map(|(n, e)| (*n, e.bytes.clone())).collect(),
        })
    }

    /// A bit of what is on it flips, which one follows from `pick`. Nothing happens to an empty disk. Whether it was hit.
    pub fn rot(&self, pick: u64) -> bool {
        let mut content = self.lock();
        let Content {
            entries, snapshot, ..
        } = &mut *content;
        let blobs = entries.values_mut();
        let mut blobs: Vec<&mut Blob> = blobs.chain(snapshot.iter_mut().map(|(_, b)| b)).collect();
        let Some(blob) = pick_of(&mut blobs, pick) else {
            return false;
        };
        match pick_of(&mut blob.bytes, pick >> 16) {
            Some(byte) => *byte ^= 1 << (pick >> 48 & 7),
            None => return false,
        }
        true
    }

    /// The last entries are gone, as if they had never become durable. Whether there was any.
    pub fn lose_tail(&self, count: u64) -> bool {
        let mut content = self.lock();
        let lost = (0..count).filter_map(|_| content.entries.pop_last());
        lost.count() > 0
    }

    /// Everything on it is gone, and it works.
    pub fn wipe(&self) {
        let mut content = self.lock();
        let (watcher, opening) = (content.watcher.take(), content.opening);
        *content = Content {
            watcher,
            opening,
            ..Content::default()
        };
    }

    /// From now on nothing can be written any more, or it can again.
    pub fn set_full(&self, full: bool) {
        self.lock().broken = full.then_some(Broken::Full);
    }

    /// The next append fails after so many of its entries are written.
    pub fn tear_next_append(&self, written: usize) {
        self.lock().broken = Some(Broken::Torn(written));
    }

    /// The disk works again.
    pub fn mend(&self) {
        self.lock().broken = None;
    }

    /// Has this called on the thread that writes, before and after each time.
    pub fn watch(&self, watcher: Arc<dyn Fn(Moment) + Send + Sync>) {
        self.lock().watcher = Some(Watcher(watcher));
    }

    fn tell(&self, moment: Moment) {
        let watcher = self.lock().watcher.clone();
        if let Some(Watcher(tell)) = watcher {
            tell(moment);
        }
    }

    /// How often something was appended.
    pub fn appends(&self) -> u64 {
        self.lock().appends
    }

    /// The entries that are on it.
    pub fn entries(&self) -> Vec<Vec<u8>> {
        let content = self.lock();
        content.entries.values().map(|e| e.bytes.clone()).collect()
    }

    /// All that is on it, entries and snapshots.
    pub fn content(&self) -> Vec<Vec<u8>> {
        let content = self.lock();
        let snapshot = content.snapshot.iter().map(|(_, blob)| blob);
        let all = content.entries.values().chain(snapshot);
        all.map(|blob| blob.bytes.clone()).collect()
    }

    /// Changes entries as no disk should.
    #[cfg(test)]
    pub(crate) fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Vec<u8>>)) {
        let mut content = self.lock();
        let entries = std::mem::take(&mut content.entries).into_iter();
        let mut entries = entries.map(|(n, e)| (n, e.bytes)).collect();
        change(&mut entries);
        let changed = entries.into_iter().map(|(n, e)| (n, Blob::new(e)));
        content.entries = changed.collect();
        content.end = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug)]
struct MemoryStore {
    disk: Disk,
    opening: u64,
}

impl MemoryStore {
    fn content(&self) -> Result<MutexGuard<'_, Content>, StoreError> {
        let content = self.disk.lock();
        if content.opening != self.opening {
            return Err(StoreError::Simulated(
                "the process that opened this store is dead",
            ));
        }
        Ok(content)
    }

    /// For writing something that is no append.
    fn writable(&self) -> Result<MutexGuard<'_, Content>, StoreError> {
        let content = self.content()?;
        if content.broken.is_some() {
            return Err(StoreError::Simulated("no space left on device"));
        }
        Ok(content)
    }
}

impl Store for MemoryStore {
    fn meta(&self) -> Meta {
        self.disk.lock().meta
    }

    fn set_meta(&mut self, meta: Meta) -> Result<(), StoreError> {
        self.disk.tell(Moment::Before);
        self.writable()?.meta = meta;
        self.disk.tell(Moment::After);
        Ok(())
    }

    fn append(
        &mut self,
        first: u64,
        entries: &[Vec<u8>],
        committed: Option<(u64, u64)>,
    ) -> Result<(), StoreError> {
        self.disk.tell(Moment::Before);
        let mut content = self.content()?;
        let (count, torn) = match content.broken {
            None => (entries.len(), false),
            Some(Broken::Full) => return Err(StoreError::Simulated("no space left on device")),
            Some(Broken::Torn(written)) => {
                content.broken = None;
                (written.min(entries.len()), true)
            }
        };
        for (index, entry) in (first..).zip(&entries[..count]) {
            content.entries.insert(index, Blob::new(entry.clone()));
            content.end = index + 1;
        }
        content.appends += 1;
        if torn {
            return Err(StoreError::Simulated("input/output error"));
        }
        content.meta.committed = content.meta.committed.max(committed);
        drop(content);
        self.disk.tell(Moment::After);
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let content = self.content()?;
        let found = content.entries.range(range);
        let checked = found.map(|(index, entry)| {
            let bytes = entry.check(format_args!("entry {index}"))?;
            Ok((*index, bytes.to_vec()))
        });
        checked.collect()
    }

    fn truncate(&mut self, from: u64) -> Result<(), StoreError> {
        let mut content = self.writable()?;
        content.entries.split_off(&from);
        content.end = content.end.min(from);
        Ok(())
    }

    fn purge(&mut self, upto: (u64, u64)) -> Result<(), StoreError> {
        let mut content = self.writable()?;
        content.meta.purged = Some(upto);
        content.meta.committed = content.meta.committed.max(Some(upto));
        content.entries = content.entries.split_off(&(upto.1 + 1));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Snapshots for MemoryStore {
    fn place(&self) -> PathBuf {
        "memory".into()
    }

    fn list(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.disk.lock().snapshot.iter().map(|(n, _)| *n).collect())
    }

    fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let content = self.disk.lock();
        let found = content.snapshot.as_ref().filter(|(n, _)| *n == number);
        let found = found.ok_or(StoreError::Simulated("there is no such snapshot"))?;
        let bytes = found.1.check(format_args!("snapshot {number}"))?;
        Ok(bytes.to_vec())
    }

    fn write(&self, number: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.writable()?.snapshot = Some((number, Blob::new(bytes.to_vec())));
        Ok(())
    }
}

/// One of several, any.
fn pick_of<T>(all: &mut [T], pick: u64) -> Option<&mut T> {
    let count = u64::try_from(all.len()).ok().filter(|n| *n > 0)?;
    all.get_mut(usize::try_from(pick % count).ok()?)
}
