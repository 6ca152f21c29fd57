//! What is known of revocations: lists (RFC 5280 §5) from files and by HTTP, and answers of OCSP responders (RFC 6960), both kept until they are
//! over.
//!
//! What is fetched is named by the configuration or by certificates whose chain already holds, so strangers cannot make a member connect anywhere.

mod fetch;
mod ocsp;
#[cfg(test)]
mod tests;

pub(super) use ocsp::Responders;

use evergate_ike::{certificate::Crl, env::UnixMillis};
use futures::future::join_all;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};
use tokio::{fs, sync::Mutex, task};
use tracing::{info, warn};

/// Longest list in bytes: hundreds of thousands of certificates.
pub(super) const MAX_CRL: usize = 8_388_608;
/// Lists that are kept.
const MAX_CACHED: usize = 64;
/// A list by HTTP is fetched again after so long, even if it says that there is no newer one yet.
const REFRESH: Duration = Duration::from_secs(3600);
/// A file is looked at again after so long.
const REREAD: Duration = Duration::from_secs(10);
/// After a failure the same list is not tried again for so long.
const BACK_OFF: Duration = Duration::from_secs(30);

/// What is known of one list.
#[derive(Default)]
struct Entry {
    crl: Option<Arc<Crl>>,
    /// When to look again.
    again: UnixMillis,
}

/// The lists that are known.
#[derive(Default)]
pub(crate) struct Revocations {
    entries: StdMutex<HashMap<String, Arc<Mutex<Entry>>>>,
}

impl Revocations {
    /// The lists at these places (`http://` or `file:`), as far as they can be had. Who asks for the same one at the same time waits for the same answer.
    pub(crate) async fn at(&self, uris: &[String], now: UnixMillis) -> Vec<Arc<Crl>> {
        let all = join_all(uris.iter().map(|uri| self.one(uri, now))).await;
        all.into_iter().flatten().collect()
    }

    async fn one(&self, uri: &str, now: UnixMillis) -> Option<Arc<Crl>> {
        let entry = self.entry(uri)?;
        let mut entry = entry.lock().await;
        if now < entry.again {
            return entry.crl.clone();
        }
        match load(uri).await {
            Ok(crl) => {
                let until = now
                    + if uri.starts_with("file:") {
                        REREAD
                    } else {
                        REFRESH
                    };
                entry.again = crl
                    .next_update()
                    .map_or(until, |next| until.min(next.max(now + BACK_OFF)));
                let same = entry.crl.as_ref().is_some_and(|old| **old == crl);
                if !same {
                    info!(
                        event = "crl-loaded",
                        uri, "loaded a list of revoked certificates"
                    );
                }
                entry.crl = Some(Arc::new(crl));
            }
            // What there was stays: whether it is over is judged where it is used.
            Err(e) => {
                entry.again = now + BACK_OFF;
                warn!(
                    event = "crl-failed",
                    uri, "cannot get a list of revoked certificates: {e}"
                );
            }
        }
        entry.crl.clone()
    }

    /// The entry of a place; a new one takes the place of the one that is looked at again first.
    fn entry(&self, uri: &str) -> Option<Arc<Mutex<Entry>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(uri) {
            return Some(Arc::clone(entry));
        }
        if entries.len() >= MAX_CACHED {
            // One that is in use is left alone.
            let idle = entries.iter().filter(|(_, e)| Arc::strong_count(e) == 1);
            let first =
                idle.min_by_key(|(_, e)| e.try_lock().map_or(UnixMillis(u64::MAX), |e| e.again));
            let first = first.map(|(uri, _)| uri.clone())?;
            entries.remove(&first);
        }
        let entry = Arc::default();
        entries.insert(uri.to_owned(), Arc::clone(&entry));
        Some(entry)
    }
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Fetch(#[from] fetch::FetchError),
    #[error("it is longer than {MAX_CRL} bytes")]
    TooLong,
    #[error("it is no list: {0}")]
    Malformed(String),
    #[error("only http:// and file: are supported")]
    Scheme,
}

async fn load(uri: &str) -> Result<Crl, LoadError> {
    let bytes = if let Some(path) = uri.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if fs::metadata(path).await?.len() > MAX_CRL as u64 {
            return Err(LoadError::TooLong);
        }
        fs::read(path).await?
    } else if uri.starts_with("http://") {
        fetch::get(uri, MAX_CRL).await?
    } else {
        return Err(LoadError::Scheme);
    };
    let parsed = task::spawn_blocking(move || Crl::parse(&bytes)).await;
    let parsed = parsed.map_err(|e| LoadError::Malformed(e.to_string()))?;
    parsed.map_err(|e| LoadError::Malformed(e.to_string()))
}
