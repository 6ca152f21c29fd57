//! What must be in the store, kept beside it: a database that lost its tail looks like one that never had it.
//!
//! Two slots are written in turn, so that a torn write leaves the other one. Both are far enough apart to be in different
//! sectors and pages.

use super::StoreError;
use crate::Generation;
use std::{
    fs,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const SLOT: u64 = 4096;

/// The numbers in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// This node; zero until it is decided.
    pub(crate) node: u64,
    /// How often it started.
    pub(crate) starts: u64,
    /// Every entry before this index is in the log, unless purged.
    pub(crate) durable_next: u64,
    /// Raft's vote: term, node, and whether that node leads.
    pub(crate) vote: Option<(u64, u64, bool)>,
    /// Term and index of the last entry that is in the snapshot only.
    pub(crate) purged: Option<(u64, u64)>,
    /// A lower bound of what is committed.
    pub(crate) committed: Option<(u64, u64)>,
    /// The generation of the cluster.
    pub(crate) generation: Generation,
    /// A later generation that has begun, or is about to begin here: what is in this store serves nothing any more.
    pub(crate) superseded: Option<Generation>,
}

/// What the file begins with, up to the version, which is the last byte.
const MAGIC: [u8; 7] = *b"EVGMETA";

/// The version without generations, which means the first one. It is written as long as there is no other, so that a former version of the program can read
/// it; and the version with them.
const VERSIONS: [(u8, usize); 2] = [(b'2', 13), (b'3', 18)];

/// How many numbers the later version has.
const COUNT: usize = VERSIONS[1].1;

/// Magic and version, sequence, numbers, checksum.
const fn length(count: usize) -> usize {
    8 + 8 + count * 8 + 4
}

/// Of the later version.
const LEN: usize = length(COUNT);

impl Meta {
    fn numbers(&self) -> [u64; COUNT] {
        let (vote_term, vote_node, leads) = self.vote.unwrap_or_default();
        let (purged_term, purged_index) = self.purged.unwrap_or_default();
        let (committed_term, committed_index) = self.committed.unwrap_or_default();
        let later = self.superseded.unwrap_or_default();
        [
            self.node,
            self.starts,
            self.durable_next,
            self.vote.is_some().into(),
            vote_term,
            vote_node,
            leads.into(),
            self.purged.is_some().into(),
            purged_term,
            purged_index,
            self.committed.is_some().into(),
            committed_term,
            committed_index,
            self.generation.number,
            self.generation.founded,
            self.superseded.is_some().into(),
            later.number,
            later.founded,
        ]
    }

    fn from_numbers(numbers: [u64; COUNT]) -> Self {
        let [
            node,
            starts,
            durable_next,
            voted,
            vote_term,
            vote_node,
            leads,
            has_purged,
            purged_term,
            purged_index,
            has_committed,
            committed_term,
            committed_index,
            number,
            founded,
            superseded,
            later_number,
            later_founded,
        ] = numbers;
        let generation = |number, founded| Generation { founded, number };
        Self {
            node,
            starts,
            durable_next,
            vote: (voted != 0).then_some((vote_term, vote_node, leads != 0)),
            purged: (has_purged != 0).then_some((purged_term, purged_index)),
            committed: (has_committed != 0).then_some((committed_term, committed_index)),
            generation: generation(number, founded),
            superseded: (superseded != 0).then_some(generation(later_number, later_founded)),
        }
    }

    /// The version that can say this, and how many numbers it has.
    fn version(&self) -> (u8, usize) {
        let first = self.generation == Generation::FIRST && self.superseded.is_none();
        VERSIONS[usize::from(!first)]
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct MetaFile {
    file: fs::File,
    path: PathBuf,
    /// Of the slot that was written last; its parity says which slot that is.
    sequence: u64,
    meta: Meta,
    /// The slot that was written last is not durable yet. The other one is.
    settled: bool,
}

impl MetaFile {
    /// Makes the file for a store that holds nothing yet.
    pub(super) fn create(path: &Path) -> Result<Self, StoreError> {
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
            meta: Meta::default(),
            settled: true,
        };
        // Both slots, so that later writes find their blocks allocated and a fresh file has no invalid one.
        for _ in 0..2 {
            made.write(Meta::default())?;
        }
        made.file.sync_all().map_err(io())?;
        Ok(made)
    }

    /// Reads the file; `None` if there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, StoreError> {
        let io = || StoreError::io(path);
        let file = match fs::OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io()(e)),
        };
        let mut best: Option<(u64, Meta)> = None;
        let mut other_format = None;
        for slot in 0..2 {
            let mut bytes = [0; LEN];
            if file.read_exact_at(&mut bytes, slot * SLOT).is_err() {
                continue;
            }
            other_format = other_format.or_else(|| format(&bytes));
            if let Some(read) = decode(&bytes)
                && read.0 % 2 == slot
                && best.is_none_or(|(s, _)| s < read.0)
            {
                best = Some(read);
            }
        }
        let (sequence, meta) = best.ok_or_else(|| match other_format {
            Some(format) => StoreError::Format {
                path: path.to_owned(),
                format,
            },
            None => StoreError::Damaged {
                path: path.to_owned(),
                what: "neither of its two halves is whole".into(),
            },
        })?;
        let mut opened = Self {
            file,
            path: path.to_owned(),
            sequence,
            meta,
            // What was read may have been written just before a crash of the process.
            settled: false,
        };
        opened.settle()?;
        Ok(Some(opened))
    }

    /// What the file says.
    pub(super) fn get(&self) -> Meta {
        self.meta
    }

    /// Writes durably.
    pub(super) fn write(&mut self, meta: Meta) -> Result<(), StoreError> {
        self.note(meta)?;
        self.settle()
    }

    /// Writes so that it survives this process, and a crash of the machine after [`MetaFile::settle`].
    pub(super) fn note(&mut self, meta: Meta) -> Result<(), StoreError> {
        // The slot that is durable stays as it is: a crash may tear the other one, whenever the system writes it.
        let sequence = self.sequence + if self.settled { 1 } else { 2 };
        self.file
            .write_all_at(&encode(sequence, &meta), sequence % 2 * SLOT)
            .map_err(StoreError::io(&self.path))?;
        self.sequence = sequence;
        self.meta = meta;
        self.settled = false;
        Ok(())
    }

    /// Makes durable what was noted.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        if !self.settled {
            self.file.sync_data().map_err(StoreError::io(&self.path))?;
            self.settled = true;
        }
        Ok(())
    }
}

fn encode(sequence: u64, meta: &Meta) -> Vec<u8> {
    let (version, count) = meta.version();
    let mut out = MAGIC.to_vec();
    out.push(version);
    let numbers = meta.numbers().into_iter().take(count);
    for number in [sequence].into_iter().chain(numbers) {
        out.extend(number.to_be_bytes());
    }
    out.extend(crc32fast::hash(&out).to_be_bytes());
    out
}

fn decode(bytes: &[u8; LEN]) -> Option<(u64, Meta)> {
    let (version, _) = bytes.strip_prefix(&MAGIC)?.split_first()?;
    let (_, count) = VERSIONS.into_iter().find(|(v, _)| v == version)?;
    let (parts, sum) = bytes[..length(count)].split_last_chunk::<4>()?;
    if crc32fast::hash(parts) != u32::from_be_bytes(*sum) {
        return None;
    }
    let written: Vec<u64> = parts[8..]
        .chunks_exact(8)
        .filter_map(|n| n.try_into().ok().map(u64::from_be_bytes))
        .collect();
    let (&sequence, rest) = written.split_first()?;
    // What is not written there is as it always was.
    let mut numbers = Meta::default().numbers();
    numbers[..count].copy_from_slice(rest);
    Some((sequence, Meta::from_numbers(numbers)))
}

/// The name of another version of the file.
fn format(bytes: &[u8; LEN]) -> Option<String> {
    let other = bytes.strip_prefix(&MAGIC)?.first()?;
    let known = other.is_ascii_digit() && VERSIONS.iter().all(|(version, _)| version != other);
    known.then(|| String::from_utf8_lossy(&bytes[..8]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Meta {
        Meta {
            durable_next: n,
            starts: n / 2,
            purged: Some((n, 1)),
            ..Meta::default()
        }
    }

    fn read(path: &Path) -> Result<Meta, StoreError> {
        MetaFile::open(path).map(|file| file.unwrap().get())
    }

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let mut file = MetaFile::create(&path).unwrap();
        for n in 1..10 {
            file.write(at(n)).unwrap();
            assert_eq!(read(&path).unwrap(), at(n));
        }
        let whole = fs::read(&path).unwrap();
        let latest = usize::try_from(file.sequence % 2 * SLOT).unwrap();
        for n in 0..length(VERSIONS[0].1) {
            let mut torn = whole.clone();
            torn[latest + n] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert_eq!(read(&path).unwrap(), at(8), "byte {n}");
            torn[(latest + 4096) % 8192 + n] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert!(matches!(read(&path), Err(StoreError::Damaged { .. })));
        }
    }

    #[test]
    fn notes_leave_alone_what_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let mut file = MetaFile::create(&path).unwrap();
        file.write(at(1)).unwrap();
        for n in 2..20 {
            file.note(at(n)).unwrap();
            assert_eq!(read(&path).unwrap(), at(n), "it survives the process");
            // A crash of the machine may tear whatever was not settled.
            let whole = fs::read(&path).unwrap();
            let latest = usize::try_from(file.sequence % 2 * SLOT).unwrap();
            let mut torn = whole.clone();
            torn[latest + 20] ^= 1;
            fs::write(&path, &torn).unwrap();
            assert_eq!(read(&path).unwrap(), at(1));
            fs::write(&path, &whole).unwrap();
        }
        file.settle().unwrap();
        file.note(at(20)).unwrap();
        let mut torn = fs::read(&path).unwrap();
        torn[usize::try_from(file.sequence % 2 * SLOT).unwrap()] ^= 1;
        fs::write(&path, &torn).unwrap();
        assert_eq!(read(&path).unwrap(), at(19));
    }

    #[test]
    fn a_file_that_was_just_made_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        assert!(MetaFile::open(&path).unwrap().is_none());
        MetaFile::create(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Meta::default());
        fs::write(&path, b"").unwrap();
        assert!(MetaFile::open(&path).is_err());
    }

    #[test]
    fn the_first_generation_is_written_as_before_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        let mut file = MetaFile::create(&path).unwrap();
        let second = Generation {
            founded: 1_000,
            number: 2,
        };
        let mut all = vec![at(7)];
        all.push(Meta {
            superseded: Some(second),
            ..at(8)
        });
        all.push(Meta {
            generation: second,
            ..at(9)
        });
        for (meta, version) in all.into_iter().zip(*b"233") {
            file.write(meta).unwrap();
            assert_eq!(read(&path).unwrap(), meta);
            let latest = usize::try_from(file.sequence % 2 * SLOT).unwrap();
            assert_eq!(fs::read(&path).unwrap()[latest + 7], version);
        }
    }

    #[test]
    fn another_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        // As a member that was alone wrote it before there was one way to commit.
        let mut slot = b"EVGMETA1".to_vec();
        for number in [2u64, 7, 0] {
            slot.extend(number.to_be_bytes());
        }
        slot.extend(crc32fast::hash(&slot).to_be_bytes());
        slot.resize(8192, 0);
        fs::write(&path, slot).unwrap();
        let error = MetaFile::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, StoreError::Format { .. }), "{text}");
        assert!(
            text.contains("EVGMETA1") && text.contains("move the directory away"),
            "{text}"
        );
    }
}
