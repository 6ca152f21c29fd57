//! Where a member keeps its log and its snapshots. What goes in is sealed already.
//!
//! A [`Store`] is the durable side of the log, and used by one thread; [`Snapshots`] stand beside it. Both come out of [`Storage`]: a
//! directory of a member in service, or a disk in memory for tests that fails as they want.

mod database;
mod memory;
mod meta;
mod sled;
mod snapshot_file;

pub use memory::{Disk, Moment};
pub(crate) use meta::Meta;

use std::{
    fmt, fs, io,
    ops::Range,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The log of one member as it is on its disk. Entries have consecutive indices. After an error the store must not be used any more:
/// what the disk holds is unknown then, and only the next opening finds out.
pub(crate) trait Store: Send {
    /// What must survive besides the entries.
    fn meta(&self) -> Meta;

    /// Makes other numbers durable. The end of the log is the store's own business.
    fn set_meta(&mut self, meta: Meta) -> Result<(), StoreError>;

    /// Appends entries from this index on, which is the next one. They are durable when this returns; when it fails, any first part of
    /// them may be. `committed` becomes durable at some time.
    fn append(
        &mut self,
        first: u64,
        entries: &[Vec<u8>],
        committed: Option<(u64, u64)>,
    ) -> Result<(), StoreError>;

    /// The entries of this range that are there, in their order.
    fn read(&self, range: Range<u64>) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;

    /// Removes the entries from this index on.
    fn truncate(&mut self, from: u64) -> Result<(), StoreError>;

    /// Removes the entries up to this one (term and index), which are in a snapshot. If the log ends before it, it goes on after it.
    fn purge(&mut self, upto: (u64, u64)) -> Result<(), StoreError>;

    /// Makes durable how far the log reaches, so that a log which loses its end is noticed after a power cut, too. Called when there is time
    /// for it.
    fn settle(&mut self) -> Result<(), StoreError>;
}

/// Snapshots, each under the number of entries that are in it.
pub(crate) trait Snapshots: Send + Sync {
    /// Where they are, for messages.
    fn place(&self) -> PathBuf;

    /// The numbers of those that are there, ascending.
    fn list(&self) -> Result<Vec<u64>, StoreError>;

    /// Reads one; the error says so if it is damaged.
    fn read(&self, number: u64) -> Result<Vec<u8>, StoreError>;

    /// Makes one durable, whole or not at all, and removes all others.
    fn write(&self, number: u64, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What was opened.
pub(crate) struct Opened {
    pub(crate) store: Box<dyn Store>,
    pub(crate) snapshots: Arc<dyn Snapshots>,
    /// The entries, without a gap.
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
}

/// Where a member's log and snapshots are.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In a directory, which is made if it does not exist.
    Directory(PathBuf),
    /// In memory.
    Memory(Disk),
}

impl Storage {
    /// Opens what is there. Reads files.
    pub(crate) fn open(&self) -> Result<Opened, StoreError> {
        match self {
            Self::Directory(dir) => sled::open(dir),
            Self::Memory(disk) => disk.open(),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::Memory(_) => f.write_str("memory"),
        }
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
    /// Another version of the program wrote it.
    #[error(
        "{path} was written by another version of the program, in a format that this one does not know ({format}): move the directory \
         away; a member of a cluster then joins again, and the peers of one that is alone set up their tunnels anew"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says that it is.
        format: String,
    },
    /// What is stored contradicts itself or its checksums.
    #[error(
        "{path} is damaged ({what}). State that is rolled back would use sequence numbers again, so this member does not start from it: \
         move the directory away; a member of a cluster then joins again, and the peers of one that is alone set up their tunnels anew"
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
         away; a member of a cluster then joins again, and the peers of one that is alone set up their tunnels anew"
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
fn make_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(StoreError::io(dir))
}
