//! Algorithms, key schedule, and the protection of IKE messages.
//!
//! Keys come and go as [`Secret`]; nothing here keeps state or draws randomness of its own.

mod group;
mod keys;
mod modp;
mod prf;
mod protect;
#[cfg(test)]
mod tests;

pub use group::*;
pub use keys::*;
pub use prf::*;
pub use protect::*;

use serde::{Deserialize, Serialize};

/// An AEAD for IKE (RFC 5282, RFC 7634) and ESP (RFC 4106, RFC 7634).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encryption {
    /// AES-GCM with a 16-byte ICV.
    AesGcm16 {
        /// 128 or 256.
        key_bits: u16,
    },
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// What an IKE SA was negotiated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeSuite {
    /// Protects messages.
    pub encryption: Encryption,
    /// Derives keys.
    pub prf: Prf,
    /// The key exchange of IKE_SA_INIT, or of the last IKE rekey.
    pub group: Group,
}

/// What a Child SA was negotiated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EspSuite {
    /// Protects packets.
    pub encryption: Encryption,
    /// A key exchange of its own (perfect forward secrecy), if agreed.
    pub group: Option<Group>,
    /// Extended (64-bit) sequence numbers (RFC 4303 §2.2.1).
    pub esn: bool,
}

impl Encryption {
    /// Length of the key in bytes, without the salt.
    pub fn key_len(self) -> usize {
        match self {
            Self::AesGcm16 { key_bits } => usize::from(key_bits / 8),
            Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Length of the salt that KEYMAT yields after the key (RFC 5282 §7.1, RFC 4106 §8.1,
    /// RFC 7634 §2), in bytes.
    pub fn salt_len(self) -> usize {
        4
    }

    /// Length of the explicit IV in bytes (RFC 5282 §3.1, RFC 4106 §3.1, RFC 7634 §2).
    pub fn iv_len(self) -> usize {
        8
    }

    /// Length of the integrity check value in bytes.
    pub fn icv_len(self) -> usize {
        16
    }
}
