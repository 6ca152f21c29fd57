//! Backups: what a cluster is configured to do, with its secrets, and nothing of what it does. A cluster that is restored from one is a later generation.
//!
//! ```text
//! "EVGBACK" version (1) | name of the cluster key (8) | length (8) | sealed | checksum of all before it (4)
//! ```
//! The checksum tells a file that was torn or damaged from one that is sealed with another key. Version 1 seals generation, time and members (postcard), and a snapshot of
//! the state.

use crate::{
    Generation, KeyRing,
    seal::{Kind, SealError, Sealer},
};
use evergate_ike::env::UnixMillis;
use evergate_state::{KeyId, SnapshotError, State};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// What a backup begins with, up to the version.
const MAGIC: [u8; 7] = *b"EVGBACK";

const VERSION: u8 = b'1';

/// Magic and version, key, length.
const HEADER: usize = 8 + 8 + 8;

const CHECKSUM: usize = 4;

/// What a cluster can be restored from.
#[derive(Debug)]
pub struct Backup {
    /// The generation that it was taken of.
    pub generation: Generation,
    /// When.
    pub taken: UnixMillis,
    /// The members that there were.
    pub members: Vec<String>,
    /// What a later generation begins with: [`State::heir`].
    pub state: State,
}

/// Why a file is no good as a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of a cluster")]
    NotABackup,
    /// Another version of the program made it.
    #[error("it is a backup in version {0:?}, which this version of the program does not know")]
    UnknownVersion(char),
    /// It is shorter or longer than it was.
    #[error("it is not whole: it has {found} bytes, and should have {expected}")]
    Torn {
        /// Its length.
        found: u64,
        /// What its length should be.
        expected: u64,
    },
    /// Its bytes are not those that were written.
    #[error("it is damaged: its checksum is wrong")]
    Damaged,
    /// There is no such key here.
    #[error("it is sealed with cluster key {0}, which is not in the key file")]
    OtherKey(KeyId),
    /// It cannot be opened with the key that it names, or not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What is in it cannot be understood.
    #[error("what is in it: {0}")]
    Content(#[from] SnapshotError),
}

/// What stands before the state.
#[derive(Serialize, Deserialize)]
struct Head {
    number: u64,
    founded: u64,
    taken: UnixMillis,
    members: Vec<String>,
}

impl Backup {
    /// The file, sealed with the key that is used now.
    ///
    /// # Errors
    /// If the system has no randomness.
    ///
    /// # Panics
    /// Never: plain values can be encoded into memory.
    pub fn seal(&self, ring: &KeyRing) -> Result<Vec<u8>, BackupError> {
        let head = Head {
            number: self.generation.number,
            founded: self.generation.founded,
            taken: self.taken,
            members: self.members.clone(),
        };
        let head = postcard::to_stdvec(&head).expect("plain values into memory");
        let state = Zeroizing::new(self.state.to_snapshot());
        let mut sealer = Sealer::new(ring.clone())?;
        let sealed = sealer.seal(Kind::Backup, 0, |out| {
            out.reserve(head.len() + state.len() + 64);
            out.extend(&head);
            out.extend(state.iter());
        })?;
        let key = crate::seal::key_of(&sealed, ring).ok_or(SealError::NoKey)?;
        let mut out = Vec::with_capacity(HEADER + sealed.len() + CHECKSUM);
        out.extend(MAGIC);
        out.push(VERSION);
        out.extend(key.0);
        out.extend((sealed.len() as u64).to_be_bytes());
        out.extend(sealed);
        out.extend(crc32fast::hash(&out).to_be_bytes());
        Ok(out)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(file: &[u8], ring: &KeyRing) -> Result<Self, BackupError> {
        let (key, mut sealed) = unwrap(file)?;
        if !ring.ids().contains(&key) {
            return Err(BackupError::OtherKey(key));
        }
        let mut sealer = Sealer::new(ring.clone())?;
        let plain = sealer.open(Kind::Backup, 0, &mut sealed)?;
        let read = read(plain);
        sealed.zeroize();
        read
    }
}

/// The key that a file is sealed with, and what is sealed.
fn unwrap(file: &[u8]) -> Result<(KeyId, Vec<u8>), BackupError> {
    let rest = file.strip_prefix(&MAGIC).ok_or(BackupError::NotABackup)?;
    let (&version, _) = rest.split_first().ok_or(BackupError::NotABackup)?;
    if version != VERSION {
        return Err(BackupError::UnknownVersion(version.into()));
    }
    let found = file.len() as u64;
    let torn = |expected| BackupError::Torn { found, expected };
    let header: &[u8; HEADER] = file.first_chunk().ok_or(torn(HEADER as u64))?;
    let (_, header) = header.split_at(8);
    let (key, length) = header.split_at(8);
    let key = KeyId(key.try_into().map_err(|_| BackupError::NotABackup)?);
    let length = length.try_into().map_err(|_| BackupError::NotABackup)?;
    let expected = u64::from_be_bytes(length).saturating_add((HEADER + CHECKSUM) as u64);
    if found != expected {
        return Err(torn(expected));
    }
    let (parts, sum) = file.split_last_chunk().ok_or(torn(expected))?;
    if crc32fast::hash(parts) != u32::from_be_bytes(*sum) {
        return Err(BackupError::Damaged);
    }
    Ok((key, parts[HEADER..].to_vec()))
}

fn read(plain: &[u8]) -> Result<Backup, BackupError> {
    let damaged = |_| SnapshotError::Damaged("its head cannot be decoded");
    let (head, state): (Head, &[u8]) = postcard::take_from_bytes(plain).map_err(damaged)?;
    Ok(Backup {
        generation: Generation {
            founded: head.founded,
            number: head.number,
        },
        taken: head.taken,
        members: head.members,
        state: State::from_snapshot(state)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterKey;

    fn ring(n: u8) -> KeyRing {
        KeyRing::from(ClusterKey::from_bytes([n; 32]))
    }

    fn backup() -> Backup {
        Backup {
            generation: Generation::FIRST,
            taken: UnixMillis(1_000),
            members: vec!["m1".into(), "m2".into()],
            state: State::new(),
        }
    }

    #[test]
    fn a_backup_is_read_as_it_was_taken() {
        let file = backup().seal(&ring(1)).unwrap();
        let read = Backup::open(&file, &ring(1)).unwrap();
        assert_eq!(read.generation, Generation::FIRST);
        assert_eq!(read.taken, UnixMillis(1_000));
        assert_eq!(read.members, ["m1", "m2"]);
        assert!(read.state == State::new());
    }

    #[test]
    fn it_is_said_what_is_wrong_with_a_file() {
        let file = backup().seal(&ring(1)).unwrap();
        let open = |file: &[u8]| Backup::open(file, &ring(1)).map(drop);
        for n in 0..8 {
            assert_eq!(open(&file[..n]), Err(BackupError::NotABackup), "{n}");
        }
        for n in 8..file.len() {
            let error = open(&file[..n]).unwrap_err();
            assert!(matches!(error, BackupError::Torn { found, .. } if found == n as u64));
        }
        let longer = [&file[..], b"x"].concat();
        assert!(matches!(open(&longer), Err(BackupError::Torn { .. })));
        for n in 0..file.len() {
            let mut flipped = file.clone();
            flipped[n] ^= 1;
            let expected: fn(&BackupError) -> bool = match n {
                0..7 => |e| *e == BackupError::NotABackup,
                7 => |e| *e == BackupError::UnknownVersion('0'),
                16..24 => |e| matches!(e, BackupError::Torn { .. }),
                _ => |e| *e == BackupError::Damaged,
            };
            let error = open(&flipped).unwrap_err();
            assert!(expected(&error), "byte {n}: {error}");
        }
        assert_eq!(
            Backup::open(&file, &ring(2)).map(drop),
            Err(BackupError::OtherKey(ring(1).ids()[0]))
        );
        assert_eq!(open(b"[member]\nname = 1\n"), Err(BackupError::NotABackup));
    }

    #[test]
    fn a_file_that_was_forged_to_name_a_key_does_not_open() {
        let mut file = backup().seal(&ring(1)).unwrap();
        file[8..16].copy_from_slice(&ring(2).ids()[0].0);
        let end = file.len() - CHECKSUM;
        let sum = crc32fast::hash(&file[..end]);
        file[end..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(
            Backup::open(&file, &ring(2)).map(drop),
            Err(BackupError::Seal(SealError::Unauthentic))
        );
    }
}
