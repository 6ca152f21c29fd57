//! Sealing of what leaves memory: log entries and snapshots.
//!
//! No key and nonce are used twice, whatever is rolled back, copied or restored: each process incarnation draws 256 random
//! bits, its data key comes from them and the cluster key, and the nonce under that key is a counter in memory that starts at zero.
//!
//! A sealed blob is `version (1) | salt (32) | counter (8) | ciphertext | tag (16)`. What it is and its place in the
//! log are authenticated with it, so that no blob can stand in for another.

use crate::key::ClusterKey;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroize;

const VERSION: u8 = 1;
const SALT: usize = 32;
const COUNTER: usize = 8;
const HEADER: usize = 1 + SALT + COUNTER;
const TAG: usize = 16;

/// Keys of other incarnations that are kept: one for each member, and some more while members restart.
const MAX_OPENED: usize = 32;

/// What keys are derived for: other uses of the cluster key have other words here.
const CONTEXT: &[u8] = b"evergate stored data v1";

/// What a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An entry of the log.
    Entry,
    /// A snapshot.
    Snapshot,
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
    cluster: ClusterKey,
    salt: [u8; SALT],
    key: LessSafeKey,
    next: u64,
    /// The keys of what was opened last, the latest at the end: a log has runs of a few incarnations at a time.
    opened: Vec<([u8; SALT], LessSafeKey)>,
}

impl Sealer {
    /// A new incarnation.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new(cluster: ClusterKey) -> Result<Self, SealError> {
        let mut salt = [0; SALT];
        SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| SealError::NoKey)?;
        let key = derive(&cluster, &salt)?;
        Ok(Self {
            cluster,
            salt,
            key,
            next: 0,
            opened: Vec::new(),
        })
    }

    /// Seals what `write` appends to the vector that it is given.
    ///
    /// # Errors
    /// If the counter is used up.
    pub fn seal(
        &mut self,
        kind: Kind,
        place: impl Into<Place>,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Vec<u8>, SealError> {
        let counter = self.next;
        self.next = counter.checked_add(1).ok_or(SealError::NoKey)?;
        let mut blob = Vec::with_capacity(HEADER + TAG + 1024);
        blob.push(VERSION);
        blob.extend(self.salt);
        blob.extend(counter.to_be_bytes());
        write(&mut blob);
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
    /// If it is not a blob, or not of this kind, place and cluster key.
    pub fn open<'a>(
        &mut self,
        kind: Kind,
        place: impl Into<Place>,
        blob: &'a mut [u8],
    ) -> Result<&'a [u8], SealError> {
        if blob.len() < HEADER + TAG || blob[0] != VERSION {
            return Err(SealError::Malformed);
        }
        let (header, body) = blob.split_at_mut(HEADER);
        let salt: [u8; SALT] = header[1..=SALT]
            .try_into()
            .map_err(|_| SealError::Malformed)?;
        let counter = header[1 + SALT..]
            .try_into()
            .map_err(|_| SealError::Malformed)?;
        let key = self.key_for(&salt)?;
        key.open_in_place(
            nonce(u64::from_be_bytes(counter)),
            aad(kind, place.into()),
            body,
        )
        .map(|plain| &*plain)
        .map_err(|_| SealError::Unauthentic)
    }
}

impl Sealer {
    /// The key of an incarnation; as many are kept as a cluster has proposers at a time.
    fn key_for(&mut self, salt: &[u8; SALT]) -> Result<&LessSafeKey, SealError> {
        let found = self.opened.iter().position(|(s, _)| s == salt);
        let entry = match found {
            Some(at) => self.opened.remove(at),
            None => (*salt, derive(&self.cluster, salt)?),
        };
        if self.opened.len() >= MAX_OPENED {
            self.opened.remove(0);
        }
        self.opened.push(entry);
        self.opened.last().map(|(_, k)| k).ok_or(SealError::NoKey)
    }
}

fn derive(cluster: &ClusterKey, salt: &[u8; SALT]) -> Result<LessSafeKey, SealError> {
    let prk = Salt::new(HKDF_SHA256, salt).extract(cluster.expose());
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
    fn the_last_nonce_ends_it() {
        let mut s = sealer(1);
        s.next = u64::MAX;
        assert_eq!(s.seal(Kind::Entry, 1, |_| ()), Err(SealError::NoKey));
    }
}
