//! What the outside answers about credentials: signatures with our private keys, and whether peers are who they say.
//!
//! Both cost up to milliseconds, so they run on threads of their own, as many at a time as there are processors; the worker that asked goes on with its
//! other SAs.

mod keys;
mod revocation;
#[cfg(test)]
mod tests;

pub(crate) use keys::{KeyStore, read_private_key};

use evergate_ike::{
    certificate::{CertificateError, Crl, Verification, Verified},
    config::Policy,
    env::UnixMillis,
    signature::Scheme,
};
use futures::FutureExt;
use revocation::Revocations;
use std::{future::Future, sync::Arc, thread};
use tokio::{sync::Semaphore, task};
use tracing::error;

/// Answers questions about credentials.
pub(crate) struct Credentials {
    keys: Arc<KeyStore>,
    revocations: Arc<Revocations>,
    /// So many threads may be busy. What waits for one is bounded by the number of half-open SAs.
    threads: Arc<Semaphore>,
}

impl Credentials {
    pub(crate) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            keys: Arc::default(),
            revocations: Arc::default(),
            threads: Arc::new(Semaphore::new(processors)),
        }
    }

    /// Signs with the private key of this name; `None` if that fails, which the log says.
    pub(crate) fn sign(
        &self,
        policy: Arc<Policy>,
        key: String,
        scheme: Scheme,
        octets: Vec<u8>,
    ) -> impl Future<Output = Option<Vec<u8>>> + use<> {
        let keys = Arc::clone(&self.keys);
        let work = move || {
            let signed = keys.sign_by_name(&policy, &key, scheme, &octets);
            if let Err(e) = &signed {
                error!(event = "signing-failed", key, %scheme, "the private key cannot be used: {e}");
            }
            signed.ok()
        };
        busy(Arc::clone(&self.threads), work).map(Option::flatten)
    }

    /// Finds out whether a peer is who it says. Lists of revoked certificates are looked for once everything else holds.
    pub(crate) fn verify(
        &self,
        policy: Arc<Policy>,
        now: UnixMillis,
        question: Verification,
    ) -> impl Future<Output = Result<Box<Verified>, CertificateError>> + use<> {
        let (threads, revocations) = (Arc::clone(&self.threads), Arc::clone(&self.revocations));
        let question = Arc::new(question);
        let run = move |crls: Option<Vec<Arc<Crl>>>| {
            let (policy, question) = (Arc::clone(&policy), Arc::clone(&question));
            let work = move || -> Result<(Box<Verified>, Option<Vec<String>>), CertificateError> {
                let crls: Option<Vec<&Crl>> =
                    crls.as_ref().map(|all| all.iter().map(|c| &**c).collect());
                let verified = question.run(&policy, now, crls.as_deref())?;
                let uris = question.crl_uris(&verified, &policy);
                Ok((Box::new(verified), uris))
            };
            busy(Arc::clone(&threads), work).map(|answer| {
                let died = "it could not be verified".to_owned();
                answer.unwrap_or(Err(CertificateError::Chain(died)))
            })
        };
        async move {
            let (verified, uris) = run(None).await?;
            let Some(uris) = uris else {
                return Ok(verified);
            };
            let crls = revocations.at(&uris, now).await;
            run(Some(crls)).await.map(|(verified, _)| verified)
        }
    }
}

/// Runs something on a thread of its own; `None` if it panicked or the process ends.
async fn busy<T: Send + 'static>(
    threads: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let _permit = threads.acquire_owned().await.ok()?;
    task::spawn_blocking(work).await.ok()
}
