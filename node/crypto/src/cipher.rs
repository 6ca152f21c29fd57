//! What two ends agreed on.

use crate::{Encryption, Integrity};
use serde::{Deserialize, Serialize};

/// How the bytes of an SA are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cipher {
    /// Encrypts.
    pub encryption: Encryption,
    /// Authenticates; absent if `encryption` does.
    pub integrity: Option<Integrity>,
}

impl From<Encryption> for Cipher {
    /// Encryption alone: whole only with an AEAD.
    fn from(encryption: Encryption) -> Self {
        Self {
            encryption,
            integrity: None,
        }
    }
}

impl Cipher {
    /// Whether this is encryption that authenticates, or encryption that does not with an integrity algorithm.
    pub fn is_whole(self) -> bool {
        self.encryption.exists() && self.encryption.is_aead() == self.integrity.is_none()
    }

    /// Length of all key material for one direction, in bytes: the key, its salt, and the integrity key.
    pub fn material_len(self) -> usize {
        self.encryption.key_len() + self.encryption.salt_len() + self.integrity_key_len()
    }

    /// Length of the integrity key in bytes; zero for an AEAD.
    pub fn integrity_key_len(self) -> usize {
        self.integrity.map_or(0, Integrity::key_len)
    }

    /// Length of the IV on the wire, in bytes.
    pub fn iv_len(self) -> usize {
        self.encryption.iv_len()
    }

    /// Length of the integrity check value in bytes.
    pub fn icv_len(self) -> usize {
        self.integrity
            .map_or(self.encryption.icv_len(), Integrity::icv_len)
    }

    /// What ciphertexts are a multiple of, in bytes.
    pub fn block(self) -> usize {
        self.encryption.block()
    }
}
