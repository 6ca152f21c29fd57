//! Keys: sealing and opening.

use crate::{
    Cipher, Encryption, MAX_ICV_LEN,
    aead::{Aead, Algorithm, NONCE_LEN},
    integrity::Mac,
    memory::prefetch,
    modes::{self, BLOCK, Detached, Plain},
};
use aes::{
    Aes256,
    cipher::{BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::hmac;
use std::{fmt, sync::OnceLock};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of the IV of all counter modes: the unique number.
const NUMBER_LEN: usize = 8;

/// The key material is not a key of the cipher. Its bytes are not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes are no key material of {cipher:?}")]
pub struct KeyError {
    /// The cipher.
    pub cipher: Cipher,
    /// How many bytes there were.
    pub len: usize,
}

/// It was not sealed with this key, or was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the integrity check failed")]
pub struct Forged;

/// What is authenticated besides the ciphertext.
#[derive(Clone, Copy, Debug)]
pub struct Associated<'a> {
    /// What an AEAD covers.
    pub aead: &'a [u8],
    /// What an integrity algorithm covers: everything before the IV. The IV and the ciphertext follow.
    pub before: &'a [u8],
    /// What it covers after the ciphertext (the high half of an extended sequence number, RFC 4303 §2.2.1).
    pub after: &'a [u8],
}

/// The key of one direction, with its salt and integrity key. Key schedules are computed for the first packet, so that
/// taking over an SA costs nothing before.
#[repr(C)] // what each packet needs lies together
pub struct Key {
    cipher: Cipher,
    shape: Shape,
    expanded: OnceLock<Expanded>,
    /// The salt again, as each packet needs it: it is in `material`, too, which most do not need any more.
    salt: Zeroizing<[u8; MAX_SALT_LEN]>,
    material: Zeroizing<Vec<u8>>,
}

/// The longest salt, in bytes.
const MAX_SALT_LEN: usize = 4;

/// The lengths of what a cipher makes of a packet, in bytes: what [`Cipher`] says of itself, once for all packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Of the IV on the wire.
    pub iv_len: usize,
    /// Of the integrity check value.
    pub icv_len: usize,
    /// What ciphertexts are a multiple of: a power of two.
    pub block: usize,
}

impl Shape {
    fn of(cipher: Cipher) -> Self {
        let block = cipher.block();
        debug_assert!(block.is_power_of_two());
        Self {
            iv_len: cipher.iv_len(),
            icv_len: cipher.icv_len(),
            block,
        }
    }
}

/// A key that is ready for use. In boxes: many SAs never carry a packet.
enum Expanded {
    /// AES-GCM, ChaCha20-Poly1305.
    Aead(Box<Aead>),
    Ccm(Box<dyn Detached>),
    Ctr(Box<(Box<dyn Plain>, Mac)>),
    Cbc(Box<Cbc>),
}

/// A key of CBC.
struct Cbc {
    cipher: Box<dyn Plain>,
    mac: Mac,
    /// The cipher that makes IVs.
    ivs: Aes256,
}

impl Key {
    /// A key from key material: the key, its salt, and the integrity key.
    ///
    /// # Errors
    /// If the length is wrong or there is no such cipher.
    pub fn new(cipher: Cipher, material: &[u8]) -> Result<Self, KeyError> {
        let len = material.len();
        if !cipher.is_whole() || len != cipher.material_len() {
            return Err(KeyError { cipher, len });
        }
        let mut salt = Zeroizing::new([0; MAX_SALT_LEN]);
        let (start, salt_len) = (cipher.encryption.key_len(), cipher.encryption.salt_len());
        salt[..salt_len].copy_from_slice(&material[start..start + salt_len]);
        Ok(Self {
            cipher,
            shape: Shape::of(cipher),
            expanded: OnceLock::new(),
            salt,
            material: Zeroizing::new(material.to_vec()),
        })
    }

    /// Has the key fetched into the cache, for use soon. Expands nothing.
    pub fn warm(&self) {
        if let Some(Expanded::Aead(key)) = self.expanded.get() {
            prefetch(&**key);
        }
    }

    /// The lengths of what it makes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The cipher that the key is for.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Encrypts `text` in place, and writes IV and ICV, which have the cipher's lengths. `number` must be new for this key.
    ///
    /// In counter modes the IV is the number (RFC 4106 §3.1, RFC 4309 §3.1, RFC 3686 §3.1, RFC 7634 §2). In CBC it is the number
    /// encrypted under a key that serves nothing else: nobody without the keys can predict it, and no two numbers have the same
    /// (RFC 3602 §3, RFC 7296 §3.14). So it needs no source of randomness, and nothing that could be rolled back.
    ///
    /// # Panics
    /// If the lengths are not the cipher's, or `text` is not whole blocks.
    pub fn seal(
        &self,
        number: u64,
        associated: &Associated<'_>,
        iv: &mut [u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) {
        match self.expanded() {
            Expanded::Aead(key) => {
                iv.copy_from_slice(&number.to_be_bytes()[..iv.len()]);
                key.seal(&self.nonce(number), associated.aead, text, icv);
            }
            Expanded::Ccm(key) => {
                iv.copy_from_slice(&number.to_be_bytes()[..iv.len()]);
                key.seal(&self.nonce::<11>(number), associated.aead, text, icv);
            }
            Expanded::Ctr(key) => {
                let (cipher, mac) = &**key;
                iv.copy_from_slice(&number.to_be_bytes());
                cipher.encrypt(&self.counter_block(number), text);
                mac.compute(&[associated.before, iv, text, associated.after], icv);
            }
            Expanded::Cbc(key) => {
                let Cbc { cipher, mac, ivs } = &**key;
                let mut block = [0; BLOCK];
                block[BLOCK - NUMBER_LEN..].copy_from_slice(&number.to_be_bytes());
                ivs.encrypt_block((&mut block).into());
                iv.copy_from_slice(&block);
                cipher.encrypt(&block, text);
                mac.compute(&[associated.before, iv, text, associated.after], icv);
            }
        }
    }

    /// Decrypts ciphertext and ICV (`sealed`) in place: the text then stands before the ICV. `number` counts only for ciphers whose
    /// IV is not on the wire. Nothing is decrypted before the integrity check.
    ///
    /// # Errors
    /// If it was not sealed with this key, or was changed.
    ///
    /// # Panics
    /// If `iv` has not the cipher's length.
    pub fn open(
        &self,
        number: u64,
        associated: &Associated<'_>,
        iv: &[u8],
        sealed: &mut [u8],
    ) -> Result<(), Forged> {
        let number = match <[u8; NUMBER_LEN]>::try_from(iv) {
            Ok(iv) => u64::from_be_bytes(iv),
            Err(_) => number,
        };
        let text_len = sealed.len().checked_sub(self.shape.icv_len);
        let text_len = text_len.ok_or(Forged)?;
        let (text, icv) = sealed.split_at_mut(text_len);
        match self.expanded() {
            Expanded::Aead(key) => key.open(&self.nonce(number), associated.aead, text, icv),
            Expanded::Ccm(key) => key.open(&self.nonce::<11>(number), associated.aead, text, icv),
            Expanded::Ctr(key) => {
                let (cipher, mac) = &**key;
                verify(mac, &[associated.before, iv, text, associated.after], icv)?;
                cipher.decrypt(&self.counter_block(number), text);
                Ok(())
            }
            Expanded::Cbc(key) => {
                let Cbc { cipher, mac, .. } = &**key;
                verify(mac, &[associated.before, iv, text, associated.after], icv)?;
                let iv: &[u8; BLOCK] = iv.try_into().expect("the caller knows the IV's length");
                if !text.len().is_multiple_of(BLOCK) {
                    return Err(Forged); // no key of ours seals such a text
                }
                cipher.decrypt(iv, text);
                Ok(())
            }
        }
    }

    fn expanded(&self) -> &Expanded {
        self.expanded.get_or_init(|| {
            let expanded = self.expand();
            expanded.expect("the constructor checked cipher and length")
        })
    }

    fn expand(&self) -> Option<Expanded> {
        let encryption = self.cipher.encryption;
        let key = &self.material[..encryption.key_len()];
        let mac = || {
            let integrity = self.cipher.integrity?;
            let start = encryption.key_len() + encryption.salt_len();
            Some(Mac::new(integrity, &self.material[start..]))
        };
        let aead = |algorithm| {
            let key = Aead::new(algorithm, key, encryption.icv_len())?;
            Some(Expanded::Aead(key))
        };
        match encryption {
            Encryption::AesGcm16 { .. }
            | Encryption::AesGcm16Iiv { .. }
            | Encryption::AesGcm12 { .. }
            | Encryption::AesGcm8 { .. } => aead(Algorithm::AesGcm),
            Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305Iiv => {
                aead(Algorithm::ChaCha20Poly1305)
            }
            Encryption::AesCcm16 { .. }
            | Encryption::AesCcm12 { .. }
            | Encryption::AesCcm8 { .. }
            | Encryption::AesCcm8Iiv { .. } => {
                Some(Expanded::Ccm(modes::ccm(key, encryption.icv_len())?))
            }
            Encryption::AesCtr { .. } => Some(Expanded::Ctr(Box::new((modes::ctr(key)?, mac()?)))),
            Encryption::AesCbc { .. } => Some(Expanded::Cbc(Box::new(Cbc {
                cipher: modes::cbc(key)?,
                mac: mac()?,
                ivs: self.iv_cipher(),
            }))),
        }
    }

    /// The cipher that makes the IVs of CBC, with a key derived from all key material.
    fn iv_cipher(&self) -> Aes256 {
        let material = hmac::Key::new(hmac::HMAC_SHA256, &self.material);
        let tag = hmac::sign(&material, b"Evergate: IVs of CBC");
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(tag.as_ref());
        Aes256::new((&*key).into())
    }

    /// Salt and number make the nonce (RFC 4106 §4, RFC 4309 §4, RFC 5282 §4, RFC 7634 §2, RFC 8750 §4).
    fn nonce<const LEN: usize>(&self, number: u64) -> [u8; LEN] {
        let mut nonce = [0; LEN];
        let (salt, iv) = nonce.split_at_mut(LEN - NUMBER_LEN);
        salt.copy_from_slice(&self.salt[..salt.len()]);
        iv.copy_from_slice(&number.to_be_bytes());
        nonce
    }

    /// Nonce, IV, and a counter from one (RFC 3686 §4).
    fn counter_block(&self, number: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..NONCE_LEN].copy_from_slice(&self.nonce::<NONCE_LEN>(number));
        block[BLOCK - 1] = 1;
        block
    }
}

fn verify(mac: &Mac, parts: &[&[u8]], icv: &[u8]) -> Result<(), Forged> {
    let mut expected = [0; MAX_ICV_LEN];
    let expected = &mut expected[..icv.len()];
    mac.compute(parts, expected);
    if expected.ct_eq(icv).into() {
        Ok(())
    } else {
        Err(Forged)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}
