//! The cluster keys of a member: one, and during a rotation the one before.
//!
//! All members seal with the same key, which the replicated state names ([`State::sealing_key`](evergate_state::State::sealing_key)). What was sealed is opened with whichever key it was
//! sealed with. A blob does not name its key; but it has the salt of whoever sealed it, and what was found out of a salt is remembered.

use crate::key::{ClusterKey, KeyError};
use aws_lc_rs::hmac;
use evergate_state::{KeyId, MAX_KEYS};
use std::{
    collections::VecDeque,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Salts whose key is remembered: those of the processes that sealed what is in a log.
const MAX_SALTS: usize = 256;

/// A salt of [`seal`](crate::seal).
pub(crate) type Salt = [u8; 32];

/// The keys. Clones are the same.
#[derive(Clone)]
pub struct KeyRing(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Grows when another key is to be sealed with.
    version: AtomicU64,
}

struct Inner {
    /// At least one; this member would seal with the first.
    keys: Vec<(KeyId, ClusterKey)>,
    /// With which all seal.
    agreed: Option<KeyId>,
    salts: VecDeque<(Salt, KeyId)>,
}

/// Why keys are not taken.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// There is none.
    #[error("there is no cluster key")]
    Empty,
    /// There are more than a rotation needs.
    #[error("there are {0} cluster keys: a rotation needs two, and {MAX_KEYS} are the most")]
    TooMany(usize),
    /// One is missing that is still needed.
    #[error("cluster key {0} is still needed: something is sealed with it")]
    Needed(KeyId),
}

impl From<ClusterKey> for KeyRing {
    fn from(key: ClusterKey) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                keys: vec![(id_of(&key), key)],
                agreed: None,
                salts: VecDeque::new(),
            }),
            version: AtomicU64::new(0),
        }))
    }
}

impl KeyRing {
    /// The keys that a file holds, as for [`ClusterKey::from_file`].
    ///
    /// # Errors
    /// As there; and if there are too many.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let mut keys = ClusterKey::all_from_file(path)?.into_iter();
        let first = keys.next().ok_or_else(|| KeyError::Malformed {
            path: path.to_owned(),
        })?;
        let ring = Self::from(first);
        ring.lock().keys.extend(keys.map(|key| (id_of(&key), key)));
        Ok(ring)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the keys; this member would seal with the first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.lock().keys.iter().map(|(id, _)| *id).collect()
    }

    /// Takes other keys in place of those that there are. `needed` are those without which something could not be opened.
    ///
    /// # Errors
    /// If there is none, there are too many, or a needed one is missing. Then nothing has changed.
    pub fn replace(&self, keys: Vec<ClusterKey>, needed: &[KeyId]) -> Result<(), RingError> {
        if keys.len() > MAX_KEYS {
            return Err(RingError::TooMany(keys.len()));
        }
        let keys: Vec<_> = keys.into_iter().map(|key| (id_of(&key), key)).collect();
        if keys.is_empty() {
            return Err(RingError::Empty);
        }
        let mut inner = self.lock();
        let has = |id: &KeyId| keys.iter().any(|(other, _)| other == id);
        let missing = needed.iter().chain(&inner.agreed).find(|id| !has(id));
        if let Some(missing) = missing {
            return Err(RingError::Needed(*missing));
        }
        inner.keys = keys;
        drop(inner);
        self.0.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// All members seal with this key from now on; `None` as long as they have not agreed on one.
    pub(crate) fn agree(&self, key: Option<KeyId>) {
        let mut inner = self.lock();
        if inner.agreed != key {
            inner.agreed = key;
            drop(inner);
            self.0.version.fetch_add(1, Ordering::Release);
        }
    }

    /// Grows when there is another key to seal with.
    pub(crate) fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    /// The key to seal with: the agreed one if it is here, else this member's first.
    pub(crate) fn sealing(&self) -> (KeyId, ClusterKey) {
        let inner = self.lock();
        let agreed = inner.keys.iter().find(|(id, _)| Some(*id) == inner.agreed);
        agreed.unwrap_or(&inner.keys[0]).clone()
    }

    /// The keys that a salt may belong to, the likeliest first.
    pub(crate) fn candidates(&self, salt: &Salt) -> Vec<(KeyId, ClusterKey)> {
        let inner = self.lock();
        let known = inner.salts.iter().find(|(s, _)| s == salt);
        let known = known.and_then(|(_, id)| inner.keys.iter().find(|(other, _)| other == id));
        match known {
            Some(key) => vec![key.clone()],
            None => inner.keys.clone(),
        }
    }

    /// Remembers which key a salt belongs to.
    pub(crate) fn learn(&self, salt: &Salt, key: KeyId) {
        let mut inner = self.lock();
        if inner.salts.iter().any(|(s, _)| s == salt) {
            return;
        }
        if inner.salts.len() >= MAX_SALTS {
            inner.salts.pop_front();
        }
        inner.salts.push_back((*salt, key));
    }

    /// The key that a salt belongs to, if something with it was sealed or opened here.
    pub(crate) fn key_of(&self, salt: &Salt) -> Option<KeyId> {
        let inner = self.lock();
        let known = inner.salts.iter().find(|(s, _)| s == salt);
        known.map(|(_, id)| *id)
    }

    /// Shows to who has the key that is sealed with here that this member has it, and tells nothing of it.
    pub(crate) fn check(&self) -> [u8; 32] {
        check(&self.sealing().1)
    }

    /// Whether another member has shown that it has one of these keys.
    pub(crate) fn is_checked(&self, given: &[u8]) -> bool {
        let inner = self.lock();
        inner.keys.iter().any(|(_, key)| check(key) == given)
    }
}

fn check(key: &ClusterKey) -> [u8; 32] {
    tag(key, b"evergate cluster key check v1")
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRing").field(&self.ids()).finish()
    }
}

fn id_of(key: &ClusterKey) -> KeyId {
    let mut id = [0; 8];
    id.copy_from_slice(&tag(key, b"evergate cluster key name v1")[..8]);
    KeyId(id)
}

fn tag(key: &ClusterKey, what: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), what);
    let mut out = [0; 32];
    out.copy_from_slice(tag.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> ClusterKey {
        ClusterKey::from_bytes([n; 32])
    }

    #[test]
    fn what_is_needed_stays() {
        let ring = KeyRing::from(key(1));
        let old = ring.ids()[0];
        assert!(matches!(ring.replace(vec![], &[]), Err(RingError::Empty)));
        assert!(matches!(
            ring.replace(vec![key(2)], &[old]),
            Err(RingError::Needed(id)) if id == old
        ));
        ring.agree(Some(old));
        assert!(matches!(
            ring.replace(vec![key(2)], &[]),
            Err(RingError::Needed(_))
        ));
        let many = (1..=u8::try_from(MAX_KEYS + 1).unwrap()).map(key).collect();
        assert!(matches!(
            ring.replace(many, &[]),
            Err(RingError::TooMany(_))
        ));
        assert_eq!(ring.ids(), [old]);
        ring.replace(vec![key(2), key(1)], &[old]).unwrap();
        assert_eq!(ring.ids()[1], old);
        assert_eq!(ring.sealing().0, old, "the others may not have the new one");
        ring.agree(Some(ring.ids()[0]));
        ring.replace(vec![key(2)], &[]).unwrap();
    }

    #[test]
    fn names_are_of_the_key_and_show_nothing_of_it() {
        let (a, b) = (KeyRing::from(key(1)), KeyRing::from(key(2)));
        assert_ne!(a.ids(), b.ids());
        assert_eq!(a.ids(), KeyRing::from(key(1)).ids());
        assert!(a.is_checked(&a.check()) && !a.is_checked(&b.check()));
        assert!(!format!("{a:?}").contains("0101"));
    }
}
