//! Which cluster keys members have, and with which one all of them seal.
//!
//! Keys come to the members from outside, as files. A new one is used when every member has it and would use it: the same entry of the log says so
//! to all of them. What was sealed before stays readable to who has the former key.

use crate::{
    command::{Outcome, Refusal},
    limits::MAX_KEYS,
    state::State,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Names a cluster key, and tells nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberKeys {
    /// It can open what was sealed with any of these, and would seal with the first.
    pub has: Vec<KeyId>,
    /// Without these it could not open all that is on its disk.
    pub needs: Vec<KeyId>,
}

/// What is replicated of keys.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    by_member: BTreeMap<String, MemberKeys>,
    sealing: Option<KeyId>,
}

impl Keys {
    pub(crate) fn forget(&mut self, member: &str) {
        self.by_member.remove(member);
    }
}

impl State {
    /// The keys that a member has, if it has said so.
    pub fn keys_of(&self, member: &str) -> Option<&MemberKeys> {
        self.second.keys.by_member.get(member)
    }

    /// The key with which all members seal; `None` if they never agreed on one: then each uses its first.
    pub fn sealing_key(&self) -> Option<KeyId> {
        self.second.keys.sealing
    }

    pub(crate) fn announce_keys(
        &mut self,
        name: &str,
        incarnation: u128,
        keys: &MemberKeys,
    ) -> Result<Outcome, Refusal> {
        if keys.has.len() > MAX_KEYS || keys.needs.len() > MAX_KEYS {
            return Err(Refusal::Limit("cluster keys"));
        }
        self.current(name, incarnation)?;
        let known = &mut self.second.keys.by_member;
        known.insert(name.to_owned(), keys.clone());
        self.choose_key();
        Ok(Outcome::Applied)
    }

    /// The key that all members would use is used.
    pub(crate) fn choose_key(&mut self) {
        if let Some(key) = self.key_of_all() {
            self.second.keys.sealing = Some(key);
        }
    }

    fn key_of_all(&self) -> Option<KeyId> {
        let first_of = |name| self.keys_of(name).and_then(|keys| keys.has.first());
        let mut first = self.members().map(|(name, _)| first_of(name));
        let candidate = first.next()??;
        first
            .all(|other| other == Some(candidate))
            .then_some(*candidate)
    }
}
