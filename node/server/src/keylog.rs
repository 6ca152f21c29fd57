//! Keys of SAs for a checker on the wire, in Wireshark's tables. Only in builds for drills, and only if `EVERGATE_KEYLOG` names a directory.

use evergate_ike::{
    crypto::{Encryption, IkeKeys},
    record::{Child, Path, Phase, Record, Role},
    secret::Secret,
};
use std::{
    fmt::Write as _,
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
            ike: table("ikev2_decryption_table")?,
            esp: table("esp_sa")?,
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

fn hex(secret: &Secret) -> String {
    secret
        .expose()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Writes the keys of an IKE SA, if it has any; whether it had.
pub(crate) fn ike(record: &Record) -> bool {
    let (suite, keys) = match &record.phase {
        Phase::HalfOpen(h) => (h.negotiated.suite, &h.negotiated.keys),
        Phase::Intermediate(i) => (i.negotiated.suite, &i.negotiated.keys),
        Phase::AuthSent(a) => (a.negotiated.suite, &a.negotiated.keys),
        Phase::Established(e) => (e.suite, &e.keys),
        Phase::InitSent(_) | Phase::Closed(_) => return false,
    };
    if let (Some(tables), Some(line)) = (tables(), ike_line(record, suite.encryption, keys)) {
        append(&tables.ike, &line);
    }
    true
}

/// Wireshark knows no ChaCha20-Poly1305 here: such SAs are left out.
fn ike_line(record: &Record, encryption: Encryption, keys: &IkeKeys) -> Option<String> {
    let Encryption::AesGcm16 { key_bits } = encryption else {
        return None;
    };
    let (spi_i, spi_r) = match record.role {
        Role::Initiator => (record.id.0, record.remote_spi),
        Role::Responder => (record.remote_spi, record.id.0),
    };
    let (ei, er) = (hex(&keys.ei), hex(&keys.er));
    Some(format!(
        "{spi_i:016x},{spi_r:016x},{ei},{er},\"AES-GCM-{key_bits} with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\"\n"
    ))
}

/// Writes the keys of a Child SA, both directions. Addresses are left open: a NAT may change them on the way, and SPIs suffice.
pub(crate) fn child(child: &Child, path: &Path) {
    let Some(tables) = tables() else {
        return;
    };
    if !matches!(child.suite.encryption, Encryption::AesGcm16 { .. }) {
        return;
    }
    let family = if path.remote.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let line = |spi: u32, key: &Secret| {
        let key = hex(key);
        format!(
            "\"{family}\",\"*\",\"*\",\"0x{spi:08x}\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x{key}\",\"NULL\",\"\"\n"
        )
    };
    append(&tables.esp, &line(child.spi_in, &child.key_in));
    append(&tables.esp, &line(child.spi_out, &child.key_out));
}
