//! Pseudo-random functions (RFC 7296 §2.13, RFC 4434, RFC 4615, RFC 4868).

use crate::secret::Secret;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A pseudo-random function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prf {
    /// HMAC-SHA1: only where the configuration names it.
    HmacSha1,
    /// HMAC-SHA2-256.
    HmacSha256,
    /// HMAC-SHA2-384.
    HmacSha384,
    /// HMAC-SHA2-512.
    HmacSha512,
    /// AES-XCBC with 128 bits (RFC 4434).
    AesXcbc,
    /// AES-CMAC with 128 bits (RFC 4615).
    AesCmac,
}

/// A function with its key.
#[allow(clippy::large_enum_variant)] // the large one is the usual one, and lives on the stack
enum Keyed<'k> {
    Hmac(hmac::Key),
    Aes(fn(&[u8], &[&[u8]]) -> [u8; 16], &'k [u8]),
}

impl Prf {
    /// Length of the output, which is also the preferred key length, in bytes.
    pub fn output_len(self) -> usize {
        match self {
            Self::HmacSha1 => 20,
            Self::AesXcbc | Self::AesCmac => 16,
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// How much of each nonce goes into the key of SKEYSEED, in bytes: all, except with the two functions that had a fixed key length once
    /// (RFC 7296 §2.14).
    pub fn nonce_share(self) -> usize {
        match self {
            Self::AesXcbc | Self::AesCmac => 8,
            _ => usize::MAX,
        }
    }

    /// `prf(key, parts[0] | parts[1] | …)`.
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> Secret {
        Secret::new(self.keyed(key).compute(parts))
    }

    /// The first `len` bytes of `prf+(key, seed)` (RFC 7296 §2.13).
    ///
    /// # Panics
    /// If `len` is more than 255 outputs, which no suite asks for.
    pub fn expand(self, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
        assert!(
            len <= 255 * self.output_len(),
            "prf+ ends after 255 outputs"
        );
        let key = self.keyed(key);
        let mut out = Zeroizing::new(Vec::with_capacity(len + self.output_len()));
        for counter in 1..=u8::MAX {
            if out.len() >= len {
                break;
            }
            let last = &out[out.len().saturating_sub(self.output_len())..];
            let counter = [counter];
            let parts = [&[last], seed, &[&counter]].concat();
            let block = Zeroizing::new(key.compute(&parts));
            out.extend_from_slice(&block);
        }
        Secret::new(out[..len].to_vec())
    }

    fn keyed(self, key: &[u8]) -> Keyed<'_> {
        let algorithm = match self {
            Self::HmacSha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
            Self::AesXcbc => return Keyed::Aes(evergate_crypto::xcbc, key),
            Self::AesCmac => return Keyed::Aes(evergate_crypto::cmac, key),
        };
        Keyed::Hmac(hmac::Key::new(algorithm, key))
    }
}

impl Keyed<'_> {
    fn compute(&self, parts: &[&[u8]]) -> Vec<u8> {
        match self {
            Self::Hmac(key) => {
                let mut context = hmac::Context::with_key(key);
                parts.iter().for_each(|part| context.update(part));
                context.sign().as_ref().to_vec()
            }
            Self::Aes(function, key) => function(key, parts).to_vec(),
        }
    }
}
