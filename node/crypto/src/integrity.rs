//! Integrity algorithms, for encryption algorithms that do not authenticate.

use crate::mac::Prepared;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

/// An integrity algorithm of IKEv2 and ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Integrity {
    /// HMAC-SHA1-96 (RFC 2404): only where the configuration names it.
    HmacSha1,
    /// HMAC-SHA2-256-128 (RFC 4868).
    HmacSha256,
    /// HMAC-SHA2-384-192 (RFC 4868).
    HmacSha384,
    /// HMAC-SHA2-512-256 (RFC 4868).
    HmacSha512,
    /// AES-XCBC-96 (RFC 3566).
    AesXcbc,
    /// AES-CMAC-96 (RFC 4494).
    AesCmac,
}

impl Integrity {
    /// Length of the key in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
            Self::AesXcbc | Self::AesCmac => 16,
        }
    }

    /// Length of the integrity check value in bytes.
    pub fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1 | Self::AesXcbc | Self::AesCmac => 12,
            Self::HmacSha256 => 16,
            Self::HmacSha384 => 24,
            Self::HmacSha512 => 32,
        }
    }
}

/// An integrity algorithm with its key, ready for use. Small: what is moved into memory with room to spare takes with it what was on the stack.
pub(crate) enum Mac {
    Hmac(Box<hmac::Key>),
    Aes(Prepared),
}

impl Mac {
    /// Prepares `key`, which has the algorithm's length.
    pub(crate) fn new(algorithm: Integrity, key: &[u8]) -> Self {
        let hmac = |algorithm| Self::Hmac(Box::new(hmac::Key::new(algorithm, key)));
        match algorithm {
            Integrity::HmacSha1 => hmac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            Integrity::HmacSha256 => hmac(hmac::HMAC_SHA256),
            Integrity::HmacSha384 => hmac(hmac::HMAC_SHA384),
            Integrity::HmacSha512 => hmac(hmac::HMAC_SHA512),
            Integrity::AesXcbc => Self::Aes(Prepared::xcbc(key)),
            Integrity::AesCmac => Self::Aes(Prepared::cmac(key)),
        }
    }

    /// The MAC of all parts, cut to the length of `out`.
    pub(crate) fn compute(&self, parts: &[&[u8]], out: &mut [u8]) {
        let len = out.len();
        match self {
            Self::Hmac(key) => {
                let mut context = hmac::Context::with_key(key);
                parts.iter().for_each(|part| context.update(part));
                out.copy_from_slice(&context.sign().as_ref()[..len]);
            }
            Self::Aes(prepared) => out.copy_from_slice(&prepared.compute(parts)[..len]),
        }
    }
}
