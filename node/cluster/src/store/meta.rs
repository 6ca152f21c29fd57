//! What must be in the store, kept beside it: a database that lost its tail looks like one that never had it.
//!
//! Two slots are written in turn, so that a torn write leaves the other one. Both are far enough apart to be in different
//! sectors and pages.

use super::StoreError;
use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const SLOT: u64 = 4096;

/// What such a file says: a few numbers, always as many.
pub(crate) trait Content: Copy + Default {
    /// What the file begins with.
    const MAGIC: [u8; 8];
    /// How many numbers there are.
    const COUNT: usize;

    /// The numbers.
    fn numbers(&self) -> Vec<u64>;

    /// From the numbers, of which there are [`Content::COUNT`].
    fn from_numbers(numbers: &[u64]) -> Option<Self>;

    /// Magic, sequence, numbers, checksum.
    const LEN: usize = 8 + 8 + Self::COUNT * 8 + 4;
}

/// What the store is known to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The last entry that is durable.
    pub(super) durable: u64,
    /// The last entry of the snapshot that the log begins after; zero if there is no snapshot.
    pub(super) snapshot: u64,
}

impl Content for Meta {
    const MAGIC: [u8; 8] = *b"EVGMETA1";
    const COUNT: usize = 2;

    fn numbers(&self) -> Vec<u64> {
        vec![self.durable, self.snapshot]
    }

    fn from_numbers(numbers: &[u64]) -> Option<Self> {
        let &[durable, snapshot] = numbers else {
            return None;
        };
        Some(Self { durable, snapshot })
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct MetaFile<M> {
    file: fs::File,
    path: PathBuf,
    sequence: u64,
    meta: M,
}

impl<M: Content> MetaFile<M> {
    /// Makes the file for a store that holds nothing yet.
    pub(crate) fn create(path: &Path) -> Result<Self, StoreError> {
        let io = || StoreError::io(path);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io())?;
        file.set_len(2 * SLOT).map_err(io())?;
        let mut made = Self {
            file,
            path: path.to_owned(),
            sequence: 0,
            meta: M::default(),
        };
        // Both slots, so that later writes find their blocks allocated and a fresh file has no invalid one.
        for _ in 0..2 {
            made.write(M::default())?;
        }
        made.file.sync_all().map_err(io())?;
        Ok(made)
    }

    /// Reads the file; `None` if there is none.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let io = || StoreError::io(path);
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io()(e)),
        };
        let mut best: Option<(u64, M)> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; M::LEN];
            if file.read_exact_at(&mut bytes, slot * SLOT).is_err() {
                continue;
            }
            if let Some(read) = decode::<M>(&bytes)
                && read.0 % 2 == slot
                && best.is_none_or(|(s, _)| s < read.0)
            {
                best = Some(read);
            }
        }
        let (sequence, meta) = best.ok_or_else(|| StoreError::Damaged {
            path: path.to_owned(),
            what: "neither of its two halves is whole".into(),
        })?;
        Ok(Some(Self {
            file,
            path: path.to_owned(),
            sequence,
            meta,
        }))
    }

    /// What the file says.
    pub(crate) fn get(&self) -> M {
        self.meta
    }

    /// Writes durably.
    pub(crate) fn write(&mut self, meta: M) -> Result<(), StoreError> {
        let sequence = self.sequence + 1;
        self.file
            .write_all_at(&encode(sequence, &meta), sequence % 2 * SLOT)
            .and_then(|()| self.file.sync_data())
            .map_err(StoreError::io(&self.path))?;
        self.sequence = sequence;
        self.meta = meta;
        Ok(())
    }
}

fn encode<M: Content>(sequence: u64, meta: &M) -> Vec<u8> {
    let mut out = M::MAGIC.to_vec();
    for number in [sequence].into_iter().chain(meta.numbers()) {
        out.extend(number.to_be_bytes());
    }
    out.extend(crc32fast::hash(&out).to_be_bytes());
    out
}

fn decode<M: Content>(bytes: &[u8]) -> Option<(u64, M)> {
    let (parts, sum) = bytes.split_last_chunk::<4>()?;
    let numbers = parts.strip_prefix(&M::MAGIC)?;
    if crc32fast::hash(parts) != u32::from_be_bytes(*sum) {
        return None;
    }
    let numbers: Vec<u64> = numbers
        .chunks_exact(8)
        .filter_map(|n| n.try_into().ok().map(u64::from_be_bytes))
        .collect();
    let (&sequence, rest) = numbers.split_first()?;
    Some((sequence, M::from_numbers(rest)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let at = |n| Meta {
            durable: n,
            snapshot: n / 2,
        };
        let mut file = MetaFile::<Meta>::create(&path).unwrap();
        for n in 1..10 {
            file.write(at(n)).unwrap();
            assert_eq!(MetaFile::<Meta>::open(&path).unwrap().unwrap().get(), at(n));
        }
        let whole = fs::read(&path).unwrap();
        let latest = usize::try_from(file.sequence % 2 * SLOT).unwrap();
        for n in 0..Meta::LEN {
            let mut torn = whole.clone();
            torn[latest + n] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert_eq!(
                MetaFile::<Meta>::open(&path).unwrap().unwrap().get(),
                at(8),
                "byte {n}"
            );
            torn[(latest + 4096) % 8192 + n] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert!(matches!(
                MetaFile::<Meta>::open(&path),
                Err(StoreError::Damaged { .. })
            ));
        }
    }

    #[test]
    fn a_file_that_was_just_made_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        assert!(MetaFile::<Meta>::open(&path).unwrap().is_none());
        MetaFile::<Meta>::create(&path).unwrap();
        assert_eq!(
            MetaFile::<Meta>::open(&path).unwrap().unwrap().get(),
            Meta::default()
        );
        fs::write(&path, b"").unwrap();
        assert!(MetaFile::<Meta>::open(&path).is_err());
    }
}
