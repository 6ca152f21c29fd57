//! What happened to Child SAs of the configuration that somebody may want up again.

use evergate_ike::record::CloseReason;
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};
use tokio::sync::Notify;

/// A connection and a child of it.
pub(crate) type Target = (String, String);

/// News for who starts Child SAs. Bounded by what is configured: only that is noted.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    news: Mutex<News>,
    notify: Notify,
}

/// What happened since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Child SAs that ended, and why.
    pub(crate) ended: HashMap<Target, CloseReason>,
    /// Traffic came for them, and there was no Child SA.
    pub(crate) traffic: HashSet<Target>,
}

impl Wishes {
    /// A Child SA ended.
    pub(crate) fn ended(&self, target: Target, why: CloseReason) {
        self.lock().ended.insert(target, why);
        self.notify.notify_one();
    }

    /// A packet had no Child SA.
    pub(crate) fn traffic(&self, target: Target) {
        self.lock().traffic.insert(target);
        self.notify.notify_one();
    }

    /// Waits for news.
    pub(crate) async fn news(&self) {
        self.notify.notified().await;
    }

    /// Takes the news.
    pub(crate) fn take(&self) -> News {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
