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
    certificate::{
        CertificateError, Crl, Known, Sources, Verification, Verified,
        ocsp::{Answer, CertificateId},
    },
    config::Policy,
    env::UnixMillis,
    signature::Scheme,
};
use futures::FutureExt;
use revocation::{Responders, Revocations};
use std::{future::Future, sync::Arc, thread};
use tokio::{sync::Semaphore, task};
use tracing::error;

/// Answers questions about credentials.
pub(crate) struct Credentials {
    keys: Arc<KeyStore>,
    revocations: Arc<Revocations>,
    responders: Arc<Responders>,
    /// So many threads may be busy. What waits for one is bounded by the number of half-open SAs.
    threads: Arc<Semaphore>,
}

impl Credentials {
    pub(crate) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            keys: Arc::default(),
            revocations: Arc::default(),
            responders: Arc::default(),
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

    /// Finds out whether a peer is who it says. What is known of revocations is looked for once everything else holds.
    pub(crate) fn verify(
        &self,
        policy: Arc<Policy>,
        now: UnixMillis,
        question: Verification,
    ) -> impl Future<Output = Result<Box<Verified>, CertificateError>> + use<> {
        let threads = Arc::clone(&self.threads);
        let (revocations, responders) =
            (Arc::clone(&self.revocations), Arc::clone(&self.responders));
        let question = Arc::new(question);
        let run = move |told: Option<Told>| {
            let (policy, question) = (Arc::clone(&policy), Arc::clone(&question));
            let work = move || -> Result<(Box<Verified>, Option<Sources>), CertificateError> {
                let verified = match &told {
                    Some(told) => told.with(|known| question.run(&policy, now, Some(known)))?,
                    None => question.run(&policy, now, None)?,
                };
                let sources = question.sources(&verified, &policy);
                Ok((Box::new(verified), sources))
            };
            busy(Arc::clone(&threads), work).map(|answer| {
                let died = "it could not be verified".to_owned();
                answer.unwrap_or(Err(CertificateError::Chain(died)))
            })
        };
        async move {
            let (verified, sources) = run(None).await?;
            let Some(sources) = sources else {
                return Ok(verified);
            };
            let told = Told::find(&sources, &responders, &revocations, now).await;
            run(Some(told)).await.map(|(verified, _)| verified)
        }
    }
}

/// What is known of the revocations of a chain.
struct Told {
    crls: Vec<Arc<Crl>>,
    answers: Vec<Arc<Answer>>,
}

impl Told {
    /// Responders are asked first, since their answers are short and new; lists are for what they do not tell.
    async fn find(
        sources: &Sources,
        responders: &Responders,
        revocations: &Revocations,
        now: UnixMillis,
    ) -> Self {
        let answers = responders.ask(&sources.inquiries, now).await;
        let told = |id: &CertificateId| answers.iter().any(|a| a.id == *id && now <= a.until);
        let crls = match sources.certificates.iter().all(told) {
            true => Vec::new(),
            false => revocations.at(&sources.crl_uris, now).await,
        };
        Self { crls, answers }
    }

    fn with<T>(&self, use_it: impl FnOnce(Known<'_>) -> T) -> T {
        let crls: Vec<&Crl> = self.crls.iter().map(|c| &**c).collect();
        let answers: Vec<&Answer> = self.answers.iter().map(|a| &**a).collect();
        use_it(Known {
            crls: &crls,
            answers: &answers,
        })
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
