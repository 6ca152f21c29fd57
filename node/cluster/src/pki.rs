//! A certificate authority for a cluster that has none, and certificates for its members.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// How long certificates are valid, in days. Members that were not touched for years must not stop at once.
const AUTHORITY_DAYS: i64 = 20 * 365;
const MEMBER_DAYS: i64 = 5 * 365;

/// Clocks may differ by so much.
const SKEW: Duration = Duration::hours(24);

/// The files of an authority in its directory.
const AUTHORITY: (&str, &str) = ("ca.pem", "ca.key");

/// A certificate and its private key, in PEM.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate cannot be made, or the authority's cannot be read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The name cannot stand in a certificate.
    #[error("{0:?} is no name for a member: letters, digits, hyphens and dots, as in a host name")]
    Name(String),
}

/// Makes an authority.
///
/// # Errors
/// If the cryptography fails.
pub fn authority() -> Result<Pair, PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Evergate cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, AUTHORITY_DAYS);
    let certificate = params.self_signed(&key)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem().into(),
    })
}

/// Makes a certificate for a member, with its name as a DNS name.
///
/// # Errors
/// If the name cannot be one, or the authority cannot be read.
pub fn issue(authority: &Pair, name: &str) -> Result<Pair, PkiError> {
    if !is_name(name) {
        return Err(PkiError::Name(name.to_owned()));
    }
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, MEMBER_DAYS);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem().into(),
    })
}

/// Whether a member can have this name: it stands in its certificate as a DNS name.
pub fn is_name(name: &str) -> bool {
    let label = |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-');
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'.';
    !name.is_empty() && name.len() <= 63 && name.split('.').all(label) && name.bytes().all(allowed)
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(days);
}

/// Makes an authority in a directory: `ca.pem` and `ca.key`. One that is there is left alone.
///
/// # Errors
/// If there is one already, or it cannot be written.
pub fn init(dir: &Path) -> Result<Pair, PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error(dir))?;
    let made = authority()?;
    write(dir, AUTHORITY, &made)?;
    Ok(made)
}

/// Makes a certificate for a member in the authority's directory: `NAME.pem` and `NAME.key`. One that is there is left alone.
///
/// # Errors
/// If there is no authority, there is one for the member already, or it cannot be written.
pub fn issue_in(dir: &Path, name: &str) -> Result<Pair, PkiError> {
    let read = |file: &str| {
        let path = dir.join(file);
        fs::read_to_string(&path).map_err(io_error(&path))
    };
    let authority = Pair {
        certificate: read(AUTHORITY.0)?,
        key: read(AUTHORITY.1)?.into(),
    };
    let made = issue(&authority, name)?;
    write(dir, (&format!("{name}.pem"), &format!("{name}.key")), &made)?;
    Ok(made)
}

fn write(dir: &Path, names: (&str, &str), pair: &Pair) -> Result<(), PkiError> {
    // The key first: a certificate without its key would be in the way of the next attempt.
    for (name, text) in [(names.1, &*pair.key), (names.0, &pair.certificate)] {
        let path = dir.join(name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .map_err(io_error(&path))?;
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("pki");
        assert!(matches!(issue_in(&dir, "m1"), Err(PkiError::Io { .. })));
        init(&dir).unwrap();
        issue_in(&dir, "m1").unwrap();
        for name in ["ca.pem", "ca.key", "m1.pem", "m1.key"] {
            let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(matches!(init(&dir), Err(PkiError::Io { .. })));
        assert!(matches!(issue_in(&dir, "m1"), Err(PkiError::Io { .. })));
    }

    #[test]
    fn names_that_are_paths_or_nonsense_are_refused() {
        let ca = authority().unwrap();
        for name in ["", "../m1", "a/b", "a b", "-a", "a..b", &"a".repeat(64)] {
            assert!(matches!(issue(&ca, name), Err(PkiError::Name(_))), "{name}");
        }
        issue(&ca, "m1.example.net").unwrap();
    }
}
