//! Ciphers and keys (RFC 4106, RFC 7634).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use std::{fmt, sync::OnceLock};
use zeroize::Zeroizing;

use crate::{ICV_LEN, IV_LEN};

const SALT_LEN: usize = 4;

/// An AEAD for ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-GCM with a 16-byte ICV (RFC 4106).
    AesGcm16 {
        /// 128 or 256.
        key_bits: u16,
    },
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
}

/// The key material is not a key of the cipher. Its bytes are not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes are no key and salt of {cipher:?}")]
pub struct KeyError {
    /// The cipher.
    pub cipher: Cipher,
    /// How many bytes there were.
    pub len: usize,
}

/// A key with its salt. The cipher's key schedule is computed for the first packet, so that taking over an SA
/// costs nothing before.
pub struct Key {
    cipher: Cipher,
    material: Zeroizing<Vec<u8>>,
    expanded: OnceLock<LessSafeKey>,
}

/// A packet was not sealed with this key, or was changed.
#[derive(Debug)]
pub(crate) struct Forged;

impl Cipher {
    /// Length of the key in bytes, without the salt.
    pub fn key_len(self) -> usize {
        match self {
            Self::AesGcm16 { key_bits } => usize::from(key_bits / 8),
            Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Length of the salt that follows the key in the key material, in bytes.
    pub fn salt_len(self) -> usize {
        SALT_LEN
    }

    /// Length of the explicit IV in bytes.
    pub fn iv_len(self) -> usize {
        IV_LEN
    }

    /// Length of the ICV in bytes.
    pub fn icv_len(self) -> usize {
        ICV_LEN
    }

    fn algorithm(self) -> Option<&'static Algorithm> {
        match self {
            Self::AesGcm16 { key_bits: 128 } => Some(&AES_128_GCM),
            Self::AesGcm16 { key_bits: 256 } => Some(&AES_256_GCM),
            Self::AesGcm16 { .. } => None,
            Self::ChaCha20Poly1305 => Some(&CHACHA20_POLY1305),
        }
    }
}

impl Key {
    /// A key from key material: the key and then the salt.
    ///
    /// # Errors
    /// If the length is wrong or the cipher does not exist in this key size.
    pub fn new(cipher: Cipher, material: &[u8]) -> Result<Self, KeyError> {
        let len = material.len();
        if cipher.algorithm().is_none() || len != cipher.key_len() + SALT_LEN {
            return Err(KeyError { cipher, len });
        }
        let material = Zeroizing::new(material.to_vec());
        Ok(Self {
            cipher,
            material,
            expanded: OnceLock::new(),
        })
    }

    /// The cipher that the key is for.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Encrypts `text` in place and yields the ICV. `iv` must be new for this key.
    pub(crate) fn seal(&self, iv: [u8; IV_LEN], aad: &[u8], text: &mut [u8]) -> [u8; ICV_LEN] {
        let tag = self
            .expanded()
            .seal_in_place_separate_tag(self.nonce(iv), Aad::from(aad), text)
            .expect("a packet is far below the limits of the AEADs");
        tag.as_ref()
            .try_into()
            .expect("every cipher has an ICV of 16 bytes")
    }

    /// Decrypts ciphertext and ICV in place.
    pub(crate) fn open(&self, iv: [u8; IV_LEN], aad: &[u8], text: &mut [u8]) -> Result<(), Forged> {
        let opened = self
            .expanded()
            .open_in_place(self.nonce(iv), Aad::from(aad), text);
        opened.map(|_| ()).map_err(|_| Forged)
    }

    fn expanded(&self) -> &LessSafeKey {
        self.expanded.get_or_init(|| {
            let algorithm = self.cipher.algorithm().expect("checked by the constructor");
            let key = UnboundKey::new(algorithm, &self.material[..self.cipher.key_len()]);
            LessSafeKey::new(key.expect("the constructor checked the length"))
        })
    }

    /// Salt and IV make the nonce (RFC 4106 §4, RFC 7634 §2).
    fn nonce(&self, iv: [u8; IV_LEN]) -> Nonce {
        let mut nonce = [0; SALT_LEN + IV_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.material[self.cipher.key_len()..]);
        nonce[SALT_LEN..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}
