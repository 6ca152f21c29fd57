//! What a member does for others besides Raft. It can be told long after it answers.

use super::ForwardHandler;
use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use std::sync::{Arc, PoisonError, RwLock};

/// Answers what belongs to leases: who asks, and what.
pub type LeaseHandler =
    Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// Takes packets of a gateway: gets who sends them, what the first payload says, and the payloads behind it. What it returns is over when it takes no more.
pub type RelayHandler = Arc<
    dyn Fn(String, Bytes, BoxStream<'static, Bytes>) -> Result<BoxFuture<'static, ()>, String>
        + Send
        + Sync,
>;

/// Stops (`true`) granting what leases there are, because leadership is about to be transferred; or goes on after that failed.
pub type StepDownHandler = Arc<dyn Fn(bool) + Send + Sync>;

/// Something that is set later, and shared by its clones.
pub(crate) struct Later<T>(Arc<RwLock<Option<T>>>);

impl<T: Clone> Later<T> {
    pub(crate) fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    pub(crate) fn get(&self) -> Option<T> {
        let value = self.0.read().unwrap_or_else(PoisonError::into_inner);
        value.clone()
    }
}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Later<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// All of it. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Services {
    pub(crate) leases: Later<LeaseHandler>,
    /// Does what operators asked other members for.
    pub(crate) forwarded: Later<ForwardHandler>,
    pub(crate) relays: Later<RelayHandler>,
    pub(crate) step_down: Later<StepDownHandler>,
}
