//! Encryption algorithms.

use serde::{Deserialize, Serialize};

/// An encryption algorithm of IKEv2 or ESP. Key lengths are 128, 192 or 256 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encryption {
    /// AES-GCM with a 16-byte ICV (RFC 4106, RFC 5282).
    AesGcm16 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-GCM with a 12-byte ICV (RFC 4106, RFC 5282).
    AesGcm12 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-GCM with an 8-byte ICV (RFC 4106, RFC 5282).
    AesGcm8 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-CCM with a 16-byte ICV (RFC 4309, RFC 5282).
    AesCcm16 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-CCM with a 12-byte ICV (RFC 4309, RFC 5282).
    AesCcm12 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-CCM with an 8-byte ICV (RFC 4309, RFC 5282).
    AesCcm8 {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// AES-GCM with a 16-byte ICV and an IV that is not on the wire (RFC 8750): ESP only.
    AesGcm16Iiv {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-CCM with an 8-byte ICV and an IV that is not on the wire (RFC 8750): ESP only.
    AesCcm8Iiv {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// ChaCha20-Poly1305 with an IV that is not on the wire (RFC 8750): ESP only.
    ChaCha20Poly1305Iiv,
    /// AES in counter mode (RFC 3686, RFC 5930); needs an integrity algorithm.
    AesCtr {
        /// Length of the key in bits.
        key_bits: u16,
    },
    /// AES-CBC (RFC 3602, RFC 7296); needs an integrity algorithm.
    AesCbc {
        /// Length of the key in bits.
        key_bits: u16,
    },
}

impl Encryption {
    /// Length of the key in bits.
    pub fn key_bits(self) -> u16 {
        match self {
            Self::AesGcm16 { key_bits }
            | Self::AesGcm12 { key_bits }
            | Self::AesGcm8 { key_bits }
            | Self::AesCcm16 { key_bits }
            | Self::AesCcm12 { key_bits }
            | Self::AesCcm8 { key_bits }
            | Self::AesGcm16Iiv { key_bits }
            | Self::AesCcm8Iiv { key_bits }
            | Self::AesCtr { key_bits }
            | Self::AesCbc { key_bits } => key_bits,
            Self::ChaCha20Poly1305 | Self::ChaCha20Poly1305Iiv => 256,
        }
    }

    /// Whether the algorithm exists with this key length.
    pub fn exists(self) -> bool {
        matches!(self.key_bits(), 128 | 192 | 256)
    }

    /// Length of the key in bytes, without the salt.
    pub fn key_len(self) -> usize {
        usize::from(self.key_bits() / 8)
    }

    /// Length of the salt that follows the key in the key material, in bytes (RFC 4106 §8.1, RFC 4309 §7.1, RFC 3686 §5.1,
    /// RFC 5282 §7.1, RFC 7634 §2).
    pub fn salt_len(self) -> usize {
        match self {
            Self::AesCcm16 { .. }
            | Self::AesCcm12 { .. }
            | Self::AesCcm8 { .. }
            | Self::AesCcm8Iiv { .. } => 3,
            Self::AesCbc { .. } => 0,
            _ => 4,
        }
    }

    /// Length of the IV on the wire, in bytes.
    pub fn iv_len(self) -> usize {
        match self {
            Self::AesCbc { .. } => 16,
            _ if self.implicit_iv() => 0,
            _ => 8,
        }
    }

    /// Length of the ICV that the algorithm itself yields, in bytes; zero if it needs an integrity algorithm.
    pub fn icv_len(self) -> usize {
        match self {
            Self::AesGcm12 { .. } | Self::AesCcm12 { .. } => 12,
            Self::AesGcm8 { .. } | Self::AesCcm8 { .. } | Self::AesCcm8Iiv { .. } => 8,
            Self::AesCtr { .. } | Self::AesCbc { .. } => 0,
            _ => 16,
        }
    }

    /// What ciphertexts are a multiple of, in bytes.
    pub fn block(self) -> usize {
        match self {
            Self::AesCbc { .. } => 16,
            _ => 1,
        }
    }

    /// Whether it authenticates too, and is used without an integrity algorithm (RFC 7296 §3.3).
    pub fn is_aead(self) -> bool {
        self.icv_len() > 0
    }

    /// Whether its IV is not on the wire (RFC 8750), so that it exists in ESP only.
    pub fn implicit_iv(self) -> bool {
        matches!(
            self,
            Self::AesGcm16Iiv { .. } | Self::AesCcm8Iiv { .. } | Self::ChaCha20Poly1305Iiv
        )
    }
}
