//! Snapshots as files of their own: `snapshot-INDEX`, written beside and renamed, so that one is whole or not there.

use super::{Snapshots, StoreError};
use std::{
    fs, io,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"EVGSNAP1";
const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = "unfinished";

/// The directory.
#[derive(Debug)]
pub(super) struct SnapshotDir(pub(super) PathBuf);

impl SnapshotDir {
    fn path(&self, number: u64) -> PathBuf {
        // All of one length, so that they are listed in order.
        self.0.join(format!("{PREFIX}{number:020}"))
    }

    fn write_file(&self, path: &Path, number: u64, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.0.join(UNFINISHED);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let header = header(number);
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header);
        sum.update(bytes);
        file.write_all(&header)?;
        file.write_all(bytes)?;
        file.write_all(&sum.finalize().to_be_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync_dir(&self.0)
    }
}

impl Snapshots for SnapshotDir {
    fn place(&self) -> PathBuf {
        self.0.clone()
    }

    /// Removes what a crash left half-written, besides.
    fn list(&self) -> Result<Vec<u64>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(StoreError::io(&self.0))? {
            let entry = entry.map_err(StoreError::io(&self.0))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name == UNFINISHED {
                fs::remove_file(entry.path()).map_err(StoreError::io(&entry.path()))?;
            } else if let Some(number) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
                found.push(number);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn read(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let path = self.path(number);
        let mut bytes = Vec::new();
        fs::File::open(&path)
            .and_then(|mut f| f.read_to_end(&mut bytes))
            .map_err(StoreError::io(&path))?;
        let damaged = || StoreError::Damaged {
            path: path.clone(),
            what: "its checksum is wrong".into(),
        };
        let (content, sum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(content) != u32::from_be_bytes(*sum) {
            return Err(damaged());
        }
        content
            .strip_prefix(header(number).as_slice())
            .map(<[u8]>::to_vec)
            .ok_or_else(damaged)
    }

    fn write(&self, number: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path(number);
        self.write_file(&path, number, bytes)
            .map_err(StoreError::io(&path))?;
        for other in self.list()?.into_iter().filter(|n| *n != number) {
            let path = self.path(other);
            fs::remove_file(&path).map_err(StoreError::io(&path))?;
        }
        Ok(())
    }
}

fn header(number: u64) -> Vec<u8> {
    [&MAGIC[..], &number.to_be_bytes()].concat()
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
