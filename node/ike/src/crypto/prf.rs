//! Pseudo-random functions (RFC 7296 §2.13, RFC 4868).

use crate::secret::Secret;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A pseudo-random function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Prf {
    /// HMAC-SHA2-256.
    HmacSha256,
    /// HMAC-SHA2-384.
    HmacSha384,
    /// HMAC-SHA2-512.
    HmacSha512,
}

impl Prf {
    /// Length of the output, which is also the preferred key length, in bytes.
    pub fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    /// `prf(key, parts[0] | parts[1] | …)`.
    pub fn compute(self, key: &[u8], parts: &[&[u8]]) -> Secret {
        Secret::new(sign(&self.hmac_key(key), parts).as_ref().to_vec())
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
        let key = self.hmac_key(key);
        let mut out = Zeroizing::new(Vec::with_capacity(len + self.output_len()));
        for counter in 1..=u8::MAX {
            if out.len() >= len {
                break;
            }
            let mut context = hmac::Context::with_key(&key);
            context.update(&out[out.len().saturating_sub(self.output_len())..]);
            for part in seed {
                context.update(part);
            }
            context.update(&[counter]);
            out.extend_from_slice(context.sign().as_ref());
        }
        Secret::new(out[..len].to_vec())
    }

    fn hmac_key(self, key: &[u8]) -> hmac::Key {
        let algorithm = match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        };
        hmac::Key::new(algorithm, key)
    }
}

fn sign(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign()
}
