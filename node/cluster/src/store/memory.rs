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
    entries: BTreeMap<u64, Vec<u8>>,
    snapshot: Option<(u64, Vec<u8>)>,
    appends: u64,
    broken: Option<Broken>,
    /// Which opening owns the disk: what was opened before can no longer write.
    opening: u64,
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
    pub(super) fn open(&self) -> Opened {
        let mut content = self.lock();
        content.opening += 1;
        let store = MemoryStore {
            disk: self.clone(),
            opening: content.opening,
        };
        Opened {
            store: Box::new(store.clone()),
            snapshots: Arc::new(store),
            entries: content.entries.clone().into_iter().collect(),
        }
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
        self.lock().entries.values().cloned().collect()
    }

    /// All that is on it, entries and snapshots.
    pub fn content(&self) -> Vec<Vec<u8>> {
        let content = self.lock();
        let snapshot = content.snapshot.iter().map(|(_, bytes)| bytes);
        content.entries.values().chain(snapshot).cloned().collect()
    }

    /// Changes entries as no disk should.
    #[cfg(test)]
    pub(crate) fn change(&self, change: impl FnOnce(&mut BTreeMap<u64, Vec<u8>>)) {
        change(&mut self.lock().entries);
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
            content.entries.insert(index, entry.clone());
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
        Ok(found
            .map(|(index, entry)| (*index, entry.clone()))
            .collect())
    }

    fn truncate(&mut self, from: u64) -> Result<(), StoreError> {
        self.writable()?.entries.split_off(&from);
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
        found
            .map(|(_, bytes)| bytes.clone())
            .ok_or(StoreError::Simulated("there is no such snapshot"))
    }

    fn write(&self, number: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.writable()?.snapshot = Some((number, bytes.to_vec()));
        Ok(())
    }
}
