//! Files that may change while a member runs: the cluster keys, and what it proves itself with to other members.

use crate::{
    config::{ClusterConfig, Member},
    keys,
    node::Node,
};
use anyhow::Context;
use evergate_cluster::raft::Credentials;
use evergate_ike::certificate::Certificate;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where the files are.
pub(crate) struct Files {
    keys: PathBuf,
    /// Of a member that has others.
    credentials: Option<ClusterConfig>,
}

impl Files {
    /// As the configuration says.
    pub(crate) fn new(member: &Member, cluster: Option<&ClusterConfig>) -> Self {
        Self {
            keys: member.key_file.clone(),
            credentials: cluster.cloned(),
        }
    }
}

/// Reads what members prove themselves with.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn credentials(config: &ClusterConfig) -> anyhow::Result<Credentials> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(Credentials {
        authority: read(&config.ca)?,
        certificate: read(&config.cert)?,
        key: Zeroizing::new(read(&config.key)?),
    })
}

/// What changes when a file is replaced or written: its number, time and length.
type Stamp = (u64, i64, i64, u64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

/// Files, and how they were when they were looked at last.
struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

impl Watched {
    fn new(paths: Vec<PathBuf>) -> Self {
        let mut watched = Self {
            paths,
            seen: Vec::new(),
        };
        watched.has_changed();
        watched
    }

    /// Whether one of them is another since the last time.
    fn has_changed(&mut self) -> bool {
        let now: Vec<Option<Stamp>> = self.paths.iter().map(|p| stamp(p).ok()).collect();
        std::mem::replace(&mut self.seen, now) != self.seen
    }
}

/// Reads the files whenever they are others, or someone asks for that.
pub(crate) async fn watch(
    node: Arc<Node>,
    files: Files,
    now: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut look = time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keys = Watched::new(vec![files.keys.clone()]);
    let parts = |c: &ClusterConfig| vec![c.ca.clone(), c.cert.clone(), c.key.clone()];
    let mut credentials = Watched::new(files.credentials.as_ref().map(parts).unwrap_or_default());
    if let Some(config) = &files.credentials {
        note_expiry(&node, config);
    }
    loop {
        let asked = tokio::select! {
            _ = look.tick() => false,
            () = now.notified() => true,
            () = stop.cancelled() => return,
        };
        if keys.has_changed() || asked {
            keys::reload(&node, &files.keys);
        }
        if let Some(config) = &files.credentials
            && (credentials.has_changed() || asked)
        {
            renew(&node, config);
        }
    }
}

fn renew(node: &Node, config: &ClusterConfig) {
    let renewed = credentials(config).and_then(|credentials| {
        let cluster = node.replica.cluster();
        Ok(cluster.renew_credentials(&credentials)?)
    });
    match renewed {
        Ok(()) => {
            note_expiry(node, config);
            info!(
                event = "credentials",
                "certificate and key were read again, for new connections with other members"
            );
        }
        Err(error) => {
            warn!(event = "credentials-refused", %error, "certificate and key stay as they were: {error:#}");
        }
    }
}

/// Remembers when the certificate ends, for who asks how this member is.
fn note_expiry(node: &Node, config: &ClusterConfig) {
    let expires = fs::read(&config.cert).ok().and_then(|pem| expiry(&pem));
    let expires = expires.unwrap_or_default();
    node.membership
        .certificate_ends
        .store(expires, Ordering::Relaxed);
}

/// When the first certificate ends, in milliseconds of Unix time.
fn expiry(pem: &[u8]) -> Option<u64> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    Certificate::parse(&der).ok().map(|c| c.not_after.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_cluster::pki;

    #[test]
    fn a_file_that_is_replaced_or_written_is_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut watched = Watched::new(vec![path.clone(), dir.path().join("b")]);
        assert!(!watched.has_changed());
        fs::write(&path, "1").unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
        fs::write(dir.path().join("new"), "2").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
        fs::remove_file(&path).unwrap();
        assert!(watched.has_changed() && !watched.has_changed());
    }

    #[test]
    fn the_end_of_a_certificate_is_known() {
        let authority = pki::authority().unwrap();
        let pair = pki::issue(&authority, "m1").unwrap();
        let now = time_now();
        let ends = expiry(pair.certificate.as_bytes()).unwrap();
        let days = (ends - now) / 86_400_000;
        assert!((1824..=1826).contains(&days), "{days} days");
        assert_eq!(expiry(b"nothing"), None);
    }

    fn time_now() -> u64 {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
        u64::try_from(now.unwrap().as_millis()).unwrap()
    }
}
