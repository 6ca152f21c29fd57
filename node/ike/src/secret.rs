//! Bytes that must not be seen: keys, shared secrets, passwords.

use serde::{Deserialize, Serialize};
use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes: compared in constant time, wiped when dropped, never shown by `Debug`.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(from = "Vec<u8>")]
pub struct Secret(Box<[u8]>);

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl Secret {
    /// Takes ownership of `bytes`.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        if bytes.len() == bytes.capacity() {
            return Self(bytes.into_boxed_slice());
        }
        // To give back what is too much might move the rest, and leave a copy behind.
        let exact = Self(bytes.as_slice().into());
        bytes.zeroize();
        exact
    }

    /// The bytes themselves. Callers keep them out of logs and error texts.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes, which is no secret.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}
