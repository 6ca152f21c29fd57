//! sled, as its limits ask: the log of a member, some entries to a record.
//!
//! sled's `flush` leaves the data in the page cache, its big values are never synced at all, it panics on some damage and
//! silently forgets a damaged tail. So this module syncs behind its back, keeps values small, and opens it where a panic is caught;
//! whoever uses it compares what it finds with what must be there.

use super::{StoreError, snapshot_file};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
};

/// sled puts values of a quarter of its segments (512 KiB) and more into files of their own; these stay far below.
const CHUNK: usize = 32 * 1024;

/// sled's cache. The log is written, and read at the start and by who lags.
const CACHE: u64 = 1 << 20;

/// A log entry in a batch is preceded by its length.
const LENGTH: usize = 4;

/// A chunk begins with the checksum of the rest and the number of chunks that follow it in its batch.
const CHUNK_HEADER: usize = 8;

/// sled, and what it takes to make it durable.
pub(super) struct Database {
    db: sled::Db,
    dir: PathBuf,
    /// A second handle to the file that sled writes.
    file: fs::File,
    /// Files of big values that are synced.
    synced: BTreeSet<OsString>,
}

/// Entries that were appended together.
pub(super) struct Batch {
    pub(super) first: u64,
    pub(super) entries: Vec<Vec<u8>>,
}

impl Batch {
    pub(super) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl Database {
    /// Opens sled and reads all of it, on a thread of its own whose panics are caught: random damage makes sled panic.
    pub(super) fn open(dir: &Path) -> Result<(Self, Vec<Batch>), StoreError> {
        let own = dir.to_owned();
        let thread = thread::Builder::new()
            .name("open-log".into())
            .spawn(move || Self::open_here(&own));
        let result = thread.map_err(StoreError::io(dir))?.join();
        result.unwrap_or_else(|_| {
            Err(StoreError::Damaged {
                path: dir.to_owned(),
                what: "the database cannot read it".into(),
            })
        })
    }

    fn open_here(dir: &Path) -> Result<(Self, Vec<Batch>), StoreError> {
        remove_files(dir, |name| {
            name.starts_with("snap.") && name.ends_with(".generating")
        })?;
        let config = || {
            // Flushed by hand, and only by hand.
            sled::Config::new()
                .path(dir)
                .cache_capacity(CACHE)
                .mode(sled::Mode::HighThroughput)
                .flush_every_ms(None)
        };
        let db = match config().open() {
            Err(sled::Error::Corruption { .. }) => {
                // An index of the file, which sled makes anew from the file itself.
                remove_files(dir, |name| name.starts_with("snap."))?;
                config().open()
            }
            other => other,
        };
        let db = db.map_err(|e| match e {
            sled::Error::Io(e) if e.to_string().contains("could not acquire lock") => {
                StoreError::InUse(dir.to_owned())
            }
            e => failed(dir, &e),
        })?;
        let path = dir.join("db");
        let file = fs::File::open(&path).map_err(StoreError::io(&path))?;
        let mut database = Self {
            db,
            dir: dir.to_owned(),
            file,
            synced: BTreeSet::new(),
        };
        snapshot_file::sync_dir(dir).map_err(StoreError::io(dir))?;
        let batches = database.read()?;
        Ok((database, batches))
    }

    /// All batches, in order. A batch whose end is missing never became durable, unless `meta` knows better; nothing can follow it.
    fn read(&mut self) -> Result<Vec<Batch>, StoreError> {
        let damaged = |what: String| StoreError::Damaged {
            path: self.dir.clone(),
            what,
        };
        let mut batches = Vec::new();
        let mut unfinished: Option<(u64, u32, Vec<u8>)> = None;
        for item in self.db.iter() {
            let (key, value) = item.map_err(|e| failed(&self.dir, &e))?;
            let (first, number) =
                unkey(&key).ok_or_else(|| damaged("a key has the wrong length".into()))?;
            let (follow, bytes) = unframe(&key, &value)
                .ok_or_else(|| damaged(format!("the checksum of entry {first} is wrong")))?;
            let (_, _, collected) = match &mut unfinished {
                Some(u) if u.0 == first && u.1 == number => u,
                None if number == 0 => unfinished.insert((first, 0, Vec::new())),
                _ => return Err(damaged(format!("a part of entry {first} is missing"))),
            };
            collected.extend(bytes);
            if follow > 0 {
                unfinished = unfinished.map(|(f, n, c)| (f, n + 1, c));
            } else if let Some((first, _, bytes)) = unfinished.take() {
                let entries =
                    unpack(&bytes).ok_or_else(|| damaged(format!("entry {first} is malformed")))?;
                batches.push(Batch { first, entries });
            }
        }
        if let Some((first, number, _)) = unfinished {
            let half: Vec<_> = (0..number).map(|n| key(first, n)).collect();
            for key in half {
                self.db.remove(key).map_err(|e| failed(&self.dir, &e))?;
            }
            self.sync()?;
        }
        Ok(batches)
    }

    /// Reads one batch.
    pub(super) fn read_batch(&self, first: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let damaged = || StoreError::Damaged {
            path: self.dir.clone(),
            what: format!("entry {first} is not as it was written"),
        };
        let mut chunks = Vec::new();
        self.guarded(|db| {
            for item in db.range(key(first, 0)..=key(first, u32::MAX)) {
                chunks.push(item?);
            }
            Ok(())
        })?;
        let mut bytes = Vec::new();
        for (key, value) in &chunks {
            bytes.extend(unframe(key, value).ok_or_else(damaged)?.1);
        }
        unpack(&bytes).ok_or_else(damaged)
    }

    pub(super) fn insert(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), StoreError> {
        let packed = pack(entries).ok_or_else(|| self.too_big())?;
        self.guarded(|db| {
            for (key, value) in chunks(first, &packed) {
                db.insert(key, value)?;
            }
            Ok(())
        })?;
        self.sync()
    }

    pub(super) fn remove(&mut self, batches: &[(u64, u64)]) -> Result<(), StoreError> {
        self.guarded(|db| {
            for &(first, _) in batches {
                for item in db.range(key(first, 0)..=key(first, u32::MAX)).keys() {
                    db.remove(item?)?;
                }
            }
            Ok(())
        })?;
        self.sync()
    }

    /// Removes batches, but for the entries of the first of them before this index, all or nothing.
    pub(super) fn cut(&mut self, batches: &[(u64, u64)], from: u64) -> Result<(), StoreError> {
        let mut kept = Vec::new();
        let first = match batches.first() {
            Some(&(first, _)) if first < from => {
                kept = self.read_batch(first)?;
                kept.truncate(usize::try_from(from - first).unwrap_or(usize::MAX));
                first
            }
            _ => from,
        };
        let packed = pack(&kept).ok_or_else(|| self.too_big())?;
        self.guarded(|db| {
            let mut change = sled::Batch::default();
            for &(first, _) in batches {
                for item in db.range(key(first, 0)..=key(first, u32::MAX)).keys() {
                    change.remove(item?);
                }
            }
            for (key, value) in chunks(first, &packed) {
                change.insert(&key, value);
            }
            db.apply_batch(change)
        })?;
        self.sync()
    }

    fn too_big(&self) -> StoreError {
        StoreError::Damaged {
            path: self.dir.clone(),
            what: "an entry of 4 GiB or more cannot be stored".into(),
        }
    }

    /// Makes everything durable that was inserted or removed.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.guarded(|db| db.flush().map(drop))?;
        self.sync_blobs()?;
        self.file
            .sync_data()
            .map_err(StoreError::io(&self.dir.join("db")))
    }

    /// sled merges small values into pages, and a page may become a file of its own.
    fn sync_blobs(&mut self) -> Result<(), StoreError> {
        let dir = self.dir.join("blobs");
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::io(&dir))? {
            present.insert(entry.map_err(StoreError::io(&dir))?.file_name());
        }
        let new: Vec<_> = present.difference(&self.synced).cloned().collect();
        for name in &new {
            let path = dir.join(name);
            match fs::File::open(&path).and_then(|f| f.sync_all()) {
                // Removed by sled meanwhile: nothing needs it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                other => other.map_err(StoreError::io(&path))?,
            }
        }
        if !new.is_empty() {
            snapshot_file::sync_dir(&dir).map_err(StoreError::io(&dir))?;
        }
        self.synced = present;
        Ok(())
    }

    /// Does something with sled; its panics become errors.
    fn guarded(&self, work: impl FnOnce(&sled::Db) -> sled::Result<()>) -> Result<(), StoreError> {
        match catch_unwind(AssertUnwindSafe(|| work(&self.db))) {
            Ok(result) => result.map_err(|e| failed(&self.dir, &e)),
            Err(_) => Err(StoreError::Database {
                path: self.dir.clone(),
                reason: "the database panicked".into(),
            }),
        }
    }
}

fn failed(dir: &Path, error: &sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { .. } => StoreError::Damaged {
            path: dir.to_owned(),
            what: "the database reports corruption".into(),
        },
        e => StoreError::Database {
            path: dir.to_owned(),
            reason: e.to_string(),
        },
    }
}

fn remove_files(dir: &Path, which: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(StoreError::io(dir))? {
        let entry = entry.map_err(StoreError::io(dir))?;
        if entry.file_name().to_str().is_some_and(&which) {
            fs::remove_file(entry.path()).map_err(StoreError::io(&entry.path()))?;
        }
    }
    Ok(())
}

type Key = [u8; 12];

/// The key of a chunk: the first index of its batch, and which chunk of it.
fn key(first: u64, number: u32) -> Key {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&first.to_be_bytes());
    out[8..].copy_from_slice(&number.to_be_bytes());
    out
}

fn unkey(key: &[u8]) -> Option<(u64, u32)> {
    let (first, number) = key.split_first_chunk::<8>()?;
    Some((
        u64::from_be_bytes(*first),
        u32::from_be_bytes(number.try_into().ok()?),
    ))
}

/// The records of a batch.
fn chunks(first: u64, packed: &[u8]) -> impl Iterator<Item = (Key, Vec<u8>)> + '_ {
    let count = packed.len().div_ceil(CHUNK);
    packed
        .chunks(CHUNK)
        .enumerate()
        .map(move |(number, chunk)| {
            let follow = u32::try_from(count - 1 - number).unwrap_or(u32::MAX);
            let key = key(first, u32::try_from(number).unwrap_or(u32::MAX));
            (key, frame(&key, follow, chunk))
        })
}

/// A chunk with its checksum (over its key too) and the number of chunks that follow.
fn frame(key: &Key, follow: u32, chunk: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend(follow.to_be_bytes());
    out.extend(chunk);
    let sum = checksum(key, &out[4..]);
    out[..4].copy_from_slice(&sum.to_be_bytes());
    out
}

fn unframe<'a>(key: &[u8], value: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (header, chunk) = value.split_first_chunk::<CHUNK_HEADER>()?;
    let (sum, follow) = header.split_first_chunk::<4>()?;
    if checksum(key, &value[4..]) != u32::from_be_bytes(*sum) {
        return None;
    }
    Some((u32::from_be_bytes(follow.try_into().ok()?), chunk))
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key);
    sum.update(rest);
    sum.finalize()
}

fn pack(entries: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(entries.iter().map(|e| e.len() + LENGTH).sum());
    for entry in entries {
        out.extend(u32::try_from(entry.len()).ok()?.to_be_bytes());
        out.extend(entry);
    }
    Some(out)
}

/// The entries of a batch; there is at least one.
fn unpack(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
        let (entry, rest) =
            rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        entries.push(entry.to_vec());
        bytes = rest;
    }
    (!entries.is_empty()).then_some(entries)
}
