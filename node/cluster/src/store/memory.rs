//! A store in memory that fails and crashes as a test wants.

use super::{Recovered, Store, StoreError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What survives a crash. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    recovered: Recovered,
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
    pub fn open(&self) -> (MemoryStore, Recovered) {
        let mut content = self.lock();
        content.opening += 1;
        let store = MemoryStore {
            disk: self.clone(),
            opening: content.opening,
        };
        (store, content.recovered.clone())
    }

    /// From now on nothing can be written any more, or it can again.
    pub fn set_full(&self, full: bool) {
        self.lock().broken = full.then_some(Broken::Full);
    }

    /// The next append fails after so many of its entries are written.
    pub fn tear_next_append(&self, written: usize) {
        self.lock().broken = Some(Broken::Torn(written));
    }

    /// How often something was appended.
    pub fn appends(&self) -> u64 {
        self.lock().appends
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`Store`] on a [`Disk`].
#[derive(Debug)]
pub struct MemoryStore {
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
}

impl Store for MemoryStore {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), StoreError> {
        let mut content = self.content()?;
        let (count, torn) = match content.broken {
            None => (batch.len(), false),
            Some(Broken::Full) => return Err(StoreError::Simulated("no space left on device")),
            Some(Broken::Torn(written)) => {
                content.broken = None;
                (written.min(batch.len()), true)
            }
        };
        for entry in &batch[..count] {
            let index = content.recovered.last_index() + 1;
            content.recovered.entries.push((index, entry.clone()));
        }
        content.appends += 1;
        if torn {
            Err(StoreError::Simulated("input/output error"))
        } else {
            Ok(())
        }
    }

    fn install_snapshot(&mut self, bytes: &[u8], last: u64) -> Result<(), StoreError> {
        let mut content = self.content()?;
        if content.broken.is_some() {
            return Err(StoreError::Simulated("no space left on device"));
        }
        content.recovered.snapshot = Some((last, bytes.to_vec()));
        content.recovered.entries.retain(|(index, _)| *index > last);
        Ok(())
    }

    fn last_index(&self) -> u64 {
        self.disk.lock().recovered.last_index()
    }
}
