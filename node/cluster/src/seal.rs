//! Sealing of what leaves memory: log entries and snapshots.
//!
//! No key and nonce are used twice, whatever is rolled back, copied or restored: each process incarnation draws 256 random
//! bits, its data key comes from them and the cluster key, and the nonce under that key is a counter in memory that starts at zero.
//!
//! A sealed blob is `version (1) | salt (32) | counter (8) | ciphertext | tag (16)`. What it is and its place in the
//! log are authenticated with it, so that no blob can stand in for another.

use crate::{
    Plant,
    key::ClusterKey,
    keyring::{KeyRing, Salt},
};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{self, HKDF_SHA256},
    rand::{SecureRandom, SystemRandom},
};
use evergate_state::KeyId;
use zeroize::Zeroize;

const VERSION: u8 = 1;
const SALT: usize = size_of::<Salt>();
const COUNTER: usize = 8;
const HEADER: usize = 1 + SALT + COUNTER;
const TAG: usize = 16;

/// Keys of other incarnations that are kept: one for each member, and some more while members restart.
const MAX_OPENED: usize = 32;

/// Blobs under one data key; then there is another, with another salt. So no data key is ever one for long.
const MAX_SEALED: u64 = 1 << 16;

/// What keys are derived for: other uses of the cluster key have other words here.
const CONTEXT: &[u8] = b"evergate stored data v1";

/// What a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entry of the log.
    Entry,
    /// A snapshot.
    Snapshot,
    /// A backup.
    Backup,
}

/// Where a blob belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An index in the log.
    Index(u64),
    /// A batch of proposals: who made it, in which incarnation, and its number there.
    Batch {
        /// The node.
        member: u64,
        /// Its incarnation.
        incarnation: u128,
        /// The number.
        number: u64,
    },
}

impl From<u64> for Place {
    fn from(index: u64) -> Self {
        Self::Index(index)
    }
}

/// Why something cannot be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not what [`Sealer::seal`] makes.
    #[error("it is not sealed data of a known version")]
    Malformed,
    /// It does not verify.
    #[error(
        "it does not verify: it is damaged, out of its place, or sealed with another cluster key"
    )]
    Unauthentic,
    /// No more may be sealed in this incarnation, or the system has no randomness.
    #[error("no key to seal with")]
    NoKey,
}

/// Seals and opens, for one process incarnation.
pub struct Sealer {
    ring: KeyRing,
    /// The state of the ring for which the data key was made.
    version: u64,
    salt: Salt,
    key: LessSafeKey,
    next: u64,
    /// The keys of what was opened last, the latest at the end: a log has runs of a few incarnations at a time.
    opened: Vec<(Salt, LessSafeKey)>,
}

/// A data key and its salt.
fn draw(ring: &KeyRing) -> Result<(Salt, LessSafeKey), SealError> {
    let mut salt = [0; SALT];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| SealError::NoKey)?;
    let (id, cluster) = ring.sealing();
    let key = derive(&cluster, &salt)?;
    ring.learn(&salt, id);
    Ok((salt, key))
}

impl Sealer {
    /// A new incarnation.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(ring: impl Into<KeyRing>) -> Result<Self, SealError> {
        let ring = ring.into();
        // Looked at before: a change in between is seen with the next blob.
        let version = ring.version();
        let (salt, key) = draw(&ring)?;
        Ok(Self {
            ring,
            version,
            salt,
            key,
            next: 0,
            opened: Vec::new(),
        })
    }

    /// Another data key, where there is another cluster key to seal with, or much was sealed.
    fn renew(&mut self) -> Result<(), SealError> {
        let version = self.ring.version();
        if version != self.version || self.next >= MAX_SEALED {
            (self.salt, self.key) = draw(&self.ring)?;
            (self.version, self.next) = (version, 0);
        }
        Ok(())
    }

    /// Seals what `write` appends to the vector that it is given.
    ///
    /// # Errors
    /// If there is no randomness for a data key.
    pub fn seal(
        &mut self,
        kind: Kind,
        place: impl Into<Place>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, SealError> {
        self.renew()?;
        let counter = self.next;
        self.next = counter.checked_add(1).ok_or(SealError::NoKey)?;
        let mut blob = Vec::with_capacity(HEADER + TAG + 1024);
        blob.push(VERSION);
        blob.extend(self.salt);
        blob.extend(counter.to_be_bytes());
        write(&mut blob);
        if Plant::Seal.is_there() {
            blob.extend([0; TAG]);
            return Ok(blob);
        }
        let (_, body) = blob.split_at_mut(HEADER);
        match self
            .key
            .seal_in_place_separate_tag(nonce(counter), aad(kind, place.into()), body)
        {
            Ok(tag) => {
                blob.extend(tag.as_ref());
                Ok(blob)
            }
            Err(_) => {
                blob.zeroize();
                Err(SealError::NoKey)
            }
        }
    }

    /// Opens a blob in place and returns what was sealed. The caller wipes it.
    ///
    /// # Errors
    /// If it is not a blob, or not of this kind, place and any cluster key that there is.
    pub fn open<'a>(
        &mut self,
        kind: Kind,
        place: impl Into<Place>,
        blob: &'a mut [u8],
    ) -> Result<&'a [u8], SealError> {
        let salt = salt_of(blob).ok_or(SealError::Malformed)?;
        if Plant::Seal.is_there() {
            return Ok(&blob[HEADER..blob.len() - TAG]);
        }
        let (header, body) = blob.split_at_mut(HEADER);
        let counter = header[1 + SALT..]
            .try_into()
            .map_err(|_| SealError::Malformed)?;
        let counter = u64::from_be_bytes(counter);
        let place = place.into();
        let met = self.opened.iter().position(|(s, _)| *s == salt);
        let new = match met {
            Some(at) => {
                let entry = self.opened.remove(at);
                self.opened.push(entry);
                None
            }
            None => {
                let (id, key) = self.find_key(&salt, |key| {
                    // To try is to overwrite.
                    let mut copy = body.to_vec();
                    let opened = key.open_in_place(nonce(counter), aad(kind, place), &mut copy);
                    let opened = opened.is_ok();
                    copy.zeroize();
                    opened
                })?;
                if self.opened.len() >= MAX_OPENED {
                    self.opened.remove(0);
                }
                self.opened.push((salt, key));
                Some(id)
            }
        };
        let (_, key) = self.opened.last().ok_or(SealError::NoKey)?;
        let plain = key
            .open_in_place(nonce(counter), aad(kind, place), body)
            .map_err(|_| SealError::Unauthentic)?;
        if let Some(id) = new {
            self.ring.learn(&salt, id);
        }
        Ok(plain)
    }

    /// The data key of a salt that was not met before, and of which cluster key it is.
    fn find_key(
        &self,
        salt: &Salt,
        opens: impl Fn(&LessSafeKey) -> bool,
    ) -> Result<(KeyId, LessSafeKey), SealError> {
        let candidates = self.ring.candidates(salt);
        for (id, cluster) in &candidates {
            let key = derive(cluster, salt)?;
            // Where there is nothing to choose, a blob that does not open says so by itself.
            if candidates.len() == 1 || opens(&key) {
                return Ok((*id, key));
            }
        }
        Err(SealError::Unauthentic)
    }
}

fn salt_of(blob: &[u8]) -> Option<Salt> {
    if blob.len() < HEADER + TAG || blob[0] != VERSION {
        return None;
    }
    blob[1..=SALT].try_into().ok()
}

/// The cluster key with which a blob was sealed, as far as that is known: whoever sealed or opened something under its data key knows it.
pub(crate) fn key_of(blob: &[u8], ring: &KeyRing) -> Option<KeyId> {
    ring.key_of(&salt_of(blob)?)
}

fn derive(cluster: &ClusterKey, salt: &Salt) -> Result<LessSafeKey, SealError> {
    let prk = hkdf::Salt::new(HKDF_SHA256, salt).extract(cluster.expose());
    let okm = prk
        .expand(&[CONTEXT], &AES_256_GCM)
        .map_err(|_| SealError::NoKey)?;
    Ok(LessSafeKey::new(UnboundKey::from(okm)))
}

/// The counter as a 96-bit number.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - COUNTER..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn aad(kind: Kind, place: Place) -> Aad<Vec<u8>> {
    let kind = match kind {
        Kind::Entry => 1,
        Kind::Snapshot => 2,
        Kind::Backup => 3,
    };
    let mut bytes = vec![VERSION, kind];
    match place {
        Place::Index(index) => bytes.extend(index.to_be_bytes()),
        // Of another length than an index: the two cannot be taken for one another.
        Place::Batch {
            member,
            incarnation,
            number,
        } => {
            bytes.extend(member.to_be_bytes());
            bytes.extend(incarnation.to_be_bytes());
            bytes.extend(number.to_be_bytes());
        }
    }
    Aad::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn sealer(n: u8) -> Sealer {
        Sealer::new(ClusterKey::from_bytes([n; 32])).unwrap()
    }

    fn sealed(s: &mut Sealer, text: &[u8]) -> Vec<u8> {
        s.seal(Kind::Entry, 7, |out| out.extend(text)).unwrap()
    }

    #[test]
    fn another_incarnation_opens_what_was_sealed() {
        let mut blob = sealed(&mut sealer(1), b"some text");
        assert!(!blob.windows(4).any(|w| w == b"some"));
        assert_eq!(
            sealer(1).open(Kind::Entry, 7, &mut blob),
            Ok(&b"some text"[..])
        );
    }

    #[test]
    fn nothing_opens_out_of_its_place_or_changed() {
        let mut s = sealer(1);
        let blob = sealed(&mut s, b"some text");
        assert_eq!(
            s.open(Kind::Entry, 8, &mut blob.clone()),
            Err(SealError::Unauthentic)
        );
        assert_eq!(
            s.open(Kind::Snapshot, 7, &mut blob.clone()),
            Err(SealError::Unauthentic)
        );
        assert_eq!(
            sealer(2).open(Kind::Entry, 7, &mut blob.clone()),
            Err(SealError::Unauthentic)
        );
        for n in 0..blob.len() {
            let mut changed = blob.clone();
            changed[n] ^= 1;
            assert!(s.open(Kind::Entry, 7, &mut changed).is_err(), "byte {n}");
            assert!(
                s.open(Kind::Entry, 7, &mut blob[..n].to_vec()).is_err(),
                "{n} bytes"
            );
        }
    }

    #[test]
    fn no_nonce_comes_twice_under_one_key() {
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let mut incarnation = sealer(1);
            for _ in 0..100 {
                let blob = sealed(&mut incarnation, b"the same text");
                assert!(
                    seen.insert(blob[1..HEADER].to_vec()),
                    "salt and counter were used before"
                );
            }
        }
    }

    #[test]
    fn a_data_key_is_not_one_for_ever() {
        let mut s = sealer(1);
        let before = sealed(&mut s, b"some text");
        s.next = MAX_SEALED;
        let after = sealed(&mut s, b"some text");
        assert_ne!(salt_of(&before), salt_of(&after));
        assert_eq!(s.next, 1);
        for mut blob in [before, after] {
            assert_eq!(
                sealer(1).open(Kind::Entry, 7, &mut blob),
                Ok(&b"some text"[..])
            );
        }
    }

    #[test]
    fn another_cluster_key_is_used_at_once_and_the_former_one_still_opens() {
        let [old, new] = [1, 2].map(|n| ClusterKey::from_bytes([n; 32]));
        let ring = KeyRing::from(old.clone());
        let mut s = Sealer::new(ring.clone()).unwrap();
        let mut before = sealed(&mut s, b"some text");
        ring.replace(vec![new.clone(), old.clone()], &[]).unwrap();
        ring.agree(Some(ring.ids()[0]));
        let mut after = sealed(&mut s, b"some text");
        assert_eq!(key_of(&before, &ring), Some(ring.ids()[1]));
        assert_eq!(key_of(&after, &ring), Some(ring.ids()[0]));
        let open = |key: &ClusterKey, blob: &mut [u8]| {
            let mut other = Sealer::new(key.clone()).unwrap();
            other.open(Kind::Entry, 7, blob).map(<[u8]>::to_vec)
        };
        assert!(open(&new, &mut after.clone()).is_ok());
        assert!(open(&old, &mut after.clone()).is_err());
        assert!(open(&new, &mut before.clone()).is_err());
        // Who has both opens both, in any order.
        let both = KeyRing::from(new);
        both.replace(vec![ClusterKey::from_bytes([2; 32]), old], &[])
            .unwrap();
        let mut s = Sealer::new(both).unwrap();
        for blob in [&mut before, &mut after] {
            assert_eq!(s.open(Kind::Entry, 7, blob), Ok(&b"some text"[..]));
        }
    }
}
