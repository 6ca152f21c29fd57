//! Answers of OCSP responders (RFC 6960), by HTTP.

#[cfg(test)]
mod tests;

use super::{BACK_OFF, REFRESH, fetch};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use evergate_ike::{
    certificate::ocsp::{Answer, CertificateId, Inquiry, MAX_ANSWER, NONCE_LEN, OcspError},
    env::UnixMillis,
};
use futures::future::join_all;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
};
use tokio::{sync::Mutex, task};
use tracing::{debug, warn};

/// Certificates whose answers are kept: about a kilobyte each.
const MAX_ANSWERS: usize = 4096;

/// What is known of one certificate.
#[derive(Default)]
struct Entry {
    answer: Option<Arc<Answer>>,
    /// When to ask again.
    again: UnixMillis,
}

/// What responders have said.
#[derive(Default)]
pub(crate) struct Responders {
    entries: StdMutex<HashMap<CertificateId, Arc<Mutex<Entry>>>>,
}

impl Responders {
    /// What responders say of these certificates, as far as it can be had. Who asks about the same one at the same time waits for the same answer.
    pub(crate) async fn ask(&self, inquiries: &[Inquiry], now: UnixMillis) -> Vec<Arc<Answer>> {
        let all = join_all(inquiries.iter().map(|inquiry| self.one(inquiry, now))).await;
        all.into_iter().flatten().collect()
    }

    async fn one(&self, inquiry: &Inquiry, now: UnixMillis) -> Option<Arc<Answer>> {
        let entry = self.entry(&inquiry.id)?;
        let mut entry = entry.lock().await;
        if now < entry.again {
            return entry.answer.clone();
        }
        entry.again = now + BACK_OFF;
        for uri in &inquiry.uris {
            match ask(uri, inquiry, now).await {
                Ok(answer) => {
                    entry.again = (now + REFRESH).min(answer.until.max(now + BACK_OFF));
                    debug!(
                        event = "ocsp-answered",
                        uri,
                        revoked = answer.revoked,
                        "a responder told whether a certificate was revoked"
                    );
                    entry.answer = Some(Arc::new(answer));
                    break;
                }
                // What there was stays: whether it is over is judged where it is used.
                Err(e) => warn!(
                    event = "ocsp-failed",
                    uri, "a responder does not tell whether a certificate was revoked: {e}"
                ),
            }
        }
        entry.answer.clone()
    }

    /// The entry of a certificate; a new one takes the place of the one that is asked about again first.
    fn entry(&self, id: &CertificateId) -> Option<Arc<Mutex<Entry>>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(id) {
            return Some(Arc::clone(entry));
        }
        if entries.len() >= MAX_ANSWERS {
            // One that is in use is left alone.
            let idle = entries.iter().filter(|(_, e)| Arc::strong_count(e) == 1);
            let first =
                idle.min_by_key(|(_, e)| e.try_lock().map_or(UnixMillis(u64::MAX), |e| e.again));
            let first = first.map(|(id, _)| id.clone())?;
            entries.remove(&first);
        }
        let entry = Arc::default();
        entries.insert(id.clone(), Arc::clone(&entry));
        Some(entry)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("the request cannot be made")]
    Request,
    #[error("{0}")]
    Fetch(#[from] fetch::FetchError),
    #[error("{0}")]
    Answer(#[from] OcspError),
}

async fn ask(uri: &str, inquiry: &Inquiry, now: UnixMillis) -> Result<Answer, AskError> {
    let mut nonce = [0; NONCE_LEN];
    let random = SystemRandom::new();
    random.fill(&mut nonce).map_err(|_| AskError::Request)?;
    let request = inquiry.request(&nonce).ok_or(AskError::Request)?;
    let bytes = fetch::post(uri, "application/ocsp-request", request, MAX_ANSWER).await?;
    let inquiry = inquiry.clone();
    let read = task::spawn_blocking(move || inquiry.read(&bytes, &nonce, now)).await;
    Ok(read.map_err(|_| AskError::Request)??)
}
