//! Keys of SAs for a checker on the wire, in Wireshark's tables. Only in builds for drills, and only if `EVERGATE_KEYLOG` names a directory.

use crate::wireshark;
use evergate_ike::record::{Child, Path, Record};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
};
use tracing::warn;

/// The environment variable that names the directory.
const VARIABLE: &str = "EVERGATE_KEYLOG";

struct Tables {
    ike: Mutex<File>,
    esp: Mutex<File>,
}

/// The tables, opened on the first use.
fn tables() -> Option<&'static Tables> {
    static TABLES: OnceLock<Option<Tables>> = OnceLock::new();
    let open = || {
        let directory = PathBuf::from(std::env::var_os(VARIABLE)?);
        warn!(event = "key-log", directory = %directory.display(), "this is a build for drills, and it writes all keys to files");
        let table = |name: &str| {
            let mut options = OpenOptions::new();
            let opened = options
                .create(true)
                .append(true)
                .mode(0o600)
                .open(directory.join(name));
            opened
                .inspect_err(|e| warn!("cannot write the key log: {e}"))
                .ok()
                .map(Mutex::new)
        };
        Some(Tables {
            ike: table(wireshark::IKE_TABLE)?,
            esp: table(wireshark::ESP_TABLE)?,
        })
    };
    TABLES.get_or_init(open).as_ref()
}

/// Opens the key log if there is to be one, so that its warning comes first.
pub(crate) fn announce() {
    let _ = tables();
}

fn append(table: &Mutex<File>, line: &str) {
    let mut file = table.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(e) = file.write_all(line.as_bytes()) {
        warn!("cannot write the key log: {e}");
    }
}

/// Writes the keys of an IKE SA, if it has any; whether it had.
pub(crate) fn ike(record: &Record) -> bool {
    if let (Some(tables), Some(line)) = (tables(), wireshark::ike(record)) {
        append(&tables.ike, &line);
    }
    wireshark::ike_keys(record).is_some()
}

/// Writes the keys of a Child SA, both directions.
pub(crate) fn child(child: &Child, path: &Path) {
    if let (Some(tables), Some(lines)) = (tables(), wireshark::child(child, path)) {
        append(&tables.esp, &lines);
    }
}
