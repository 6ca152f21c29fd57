//! `evergate ctl backup`.

use super::{Arguments, Client, said, tables, timed};
use evergate_proto::admin::BackupRequest;
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Has a backup taken, and puts it into a file that must not exist: whole, or not at all.
pub(super) async fn run(
    client: &mut Client,
    arguments: &Arguments,
    file: &Path,
) -> Result<String, String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", file.display());
    if fs::exists(file).map_err(failed)? {
        return Err(format!("{} exists already", file.display()));
    }
    let called = client.backup(timed(arguments, BackupRequest {})).await;
    let mut chunks = called.map_err(|s| said(arguments, &s))?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(|s| said(arguments, &s))? {
        bytes.extend(chunk.data);
    }
    write(file, &bytes).map_err(failed)?;
    let line = format!("{} bytes in {}\n", bytes.len(), file.display());
    let value = json!({ "bytes": bytes.len(), "file": file.display().to_string() });
    Ok(tables::either(arguments.json, &value, line))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)
}
