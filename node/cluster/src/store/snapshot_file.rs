//! Snapshots as files of their own: `snapshot-INDEX`, written beside and renamed, so that one is whole or not there.

use super::StoreError;
use std::{
    fs, io,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"EVGSNAP1";
const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = "unfinished";

/// Writes a snapshot durably.
pub(crate) fn write(dir: &Path, last: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let unfinished = dir.join(UNFINISHED);
    let path = dir.join(name(last));
    let io = || StoreError::io(&path);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(io())?;
    let header = [&MAGIC[..], &last.to_be_bytes()].concat();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&header);
    sum.update(bytes);
    file.write_all(&header)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.write_all(&sum.finalize().to_be_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&unfinished, &path))
        .and_then(|()| sync_dir(dir))
        .map_err(io())
}

/// Reads the snapshot up to `last`.
pub(crate) fn read(dir: &Path, last: u64) -> Result<Vec<u8>, StoreError> {
    let path = dir.join(name(last));
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
    let header = [&MAGIC[..], &last.to_be_bytes()].concat();
    content
        .strip_prefix(header.as_slice())
        .map(<[u8]>::to_vec)
        .ok_or_else(damaged)
}

/// The indices of the snapshots that are there, ascending. Removes what a crash left half-written.
pub(crate) fn list(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io(dir))? {
        let entry = entry.map_err(StoreError::io(dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == UNFINISHED {
            fs::remove_file(entry.path()).map_err(StoreError::io(&entry.path()))?;
        } else if let Some(index) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
            found.push(index);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Removes all snapshots but one.
pub(crate) fn keep_only(dir: &Path, last: u64) -> Result<(), StoreError> {
    for other in list(dir)?.into_iter().filter(|i| *i != last) {
        let path = dir.join(name(other));
        fs::remove_file(&path).map_err(StoreError::io(&path))?;
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

fn name(last: u64) -> PathBuf {
    // All of one length, so that they are listed in order.
    format!("{PREFIX}{last:020}").into()
}
