//! Where a member keeps its log and its snapshots. What goes in is sealed already.

pub(crate) mod database;
mod memory;
pub(crate) mod meta;
mod sled;
pub(crate) mod snapshot_file;

pub use self::{
    memory::{Disk, MemoryStore},
    sled::SledStore,
};

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The durable log and the latest snapshot of one member.
pub trait Store: Send {
    /// Appends entries, in order, after the last one. They are durable when this returns; when it fails, any first part of them may
    /// be, and the store must not be used any more.
    ///
    /// # Errors
    /// If they could not be made durable.
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), StoreError>;

    /// Replaces all entries up to and including `last` by a snapshot. It is durable when this returns.
    ///
    /// # Errors
    /// If it could not be made durable; the store must not be used any more.
    fn install_snapshot(&mut self, bytes: &[u8], last: u64) -> Result<(), StoreError>;

    /// The index of the last entry (or of the snapshot, if none follows it); zero if there is nothing.
    fn last_index(&self) -> u64;
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The latest snapshot and the index of the last entry that is in it.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// The entries after the snapshot, without a gap.
    pub entries: Vec<(u64, Vec<u8>)>,
}

impl Recovered {
    /// The index of the last entry; zero if there is none.
    pub fn last_index(&self) -> u64 {
        let snapshot = self.snapshot.as_ref().map_or(0, |(last, _)| *last);
        self.entries.last().map_or(snapshot, |(index, _)| *index)
    }
}

/// Why a store does not work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log's database reports an error.
    #[error("log in {path}: {reason}")]
    Database {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process uses it.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// What is stored contradicts itself or its checksums.
    #[error(
        "{path} is damaged ({what}). State that is rolled back would use sequence numbers again, so this member does not start from it: \
         move the directory away; its peers then set up their tunnels anew"
    )]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Entries that had been durable are missing.
    #[error(
        "the log in {path} ends at entry {found}, but entry {expected} had been stored: the disk lost data, or an old copy was put \
         back. State that is rolled back would use sequence numbers again, so this member does not start from it: move the directory \
         away; its peers then set up their tunnels anew"
    )]
    LostTail {
        /// The directory.
        path: PathBuf,
        /// The last entry that is there.
        found: u64,
        /// The last entry that was there.
        expected: u64,
    },
    /// A test wants it so.
    #[error("{0}")]
    Simulated(&'static str),
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Makes a directory for its owner alone, unless it is there.
pub(crate) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StoreError::io(dir))
}
