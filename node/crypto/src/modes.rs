//! AES-CCM, AES in counter mode and AES-CBC, behind one interface for all key lengths.

use crate::Forged;
use aes::{
    Aes128, Aes192, Aes256,
    cipher::{
        BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
        InnerIvInit, KeyInit, StreamCipher,
        consts::{U8, U11, U12, U16},
    },
};
use ccm::{
    Ccm,
    aead::{AeadInOut, Nonce, Tag},
};
use ctr::{Ctr32BE, CtrCore};

/// Length of a block of AES in bytes.
pub(crate) const BLOCK: usize = 16;

/// An AEAD whose tag stands apart.
pub(crate) trait Detached: Send + Sync {
    /// Encrypts `text` in place and writes the tag.
    fn seal(&self, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &mut [u8]);
    /// Decrypts `text` in place if the tag is right.
    fn open(&self, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &[u8]) -> Result<(), Forged>;
}

impl<A: AeadInOut + Send + Sync> Detached for A {
    fn seal(&self, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &mut [u8]) {
        let nonce = <&Nonce<A>>::try_from(nonce).expect("the caller knows the nonce's length");
        let sealed = self
            .encrypt_inout_detached(nonce, aad, text.into())
            .expect("a packet is far below the limits of AES-CCM");
        tag.copy_from_slice(&sealed);
    }

    fn open(&self, nonce: &[u8], aad: &[u8], text: &mut [u8], tag: &[u8]) -> Result<(), Forged> {
        let nonce = <&Nonce<A>>::try_from(nonce).expect("the caller knows the nonce's length");
        let tag = <&Tag<A>>::try_from(tag).map_err(|_| Forged)?;
        self.decrypt_inout_detached(nonce, aad, text.into(), tag)
            .map_err(|_| Forged)
    }
}

/// AES-CCM with nonces of 11 bytes (RFC 4309 §4, RFC 5282 §4); `None` for lengths that do not exist.
pub(crate) fn ccm(key: &[u8], tag_len: usize) -> Option<Box<dyn Detached>> {
    fn of<A: AeadInOut + KeyInit + Send + Sync + 'static>(key: &[u8]) -> Option<Box<dyn Detached>> {
        Some(Box::new(A::new_from_slice(key).ok()?))
    }
    match (key.len(), tag_len) {
        (16, 8) => of::<Ccm<Aes128, U8, U11>>(key),
        (16, 12) => of::<Ccm<Aes128, U12, U11>>(key),
        (16, 16) => of::<Ccm<Aes128, U16, U11>>(key),
        (24, 8) => of::<Ccm<Aes192, U8, U11>>(key),
        (24, 12) => of::<Ccm<Aes192, U12, U11>>(key),
        (24, 16) => of::<Ccm<Aes192, U16, U11>>(key),
        (32, 8) => of::<Ccm<Aes256, U8, U11>>(key),
        (32, 12) => of::<Ccm<Aes256, U12, U11>>(key),
        (32, 16) => of::<Ccm<Aes256, U16, U11>>(key),
        _ => None,
    }
}

/// A cipher that does not authenticate.
pub(crate) trait Plain: Send + Sync {
    /// Encrypts in place, from this IV or counter block on.
    fn encrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]);
    /// Decrypts in place.
    fn decrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]);
}

/// AES-CBC; texts are whole blocks.
struct Cbc<C>(C);

/// AES in counter mode; the last four bytes of the block count (RFC 3686 §4).
struct Ctr<C>(C);

impl<C> Plain for Cbc<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]) {
        let (blocks, rest) = aes::Block::slice_as_chunks_mut(text);
        debug_assert!(rest.is_empty(), "the caller pads");
        cbc::Encryptor::inner_iv_init(&self.0, iv.into()).encrypt_blocks(blocks);
    }

    fn decrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]) {
        let (blocks, rest) = aes::Block::slice_as_chunks_mut(text);
        debug_assert!(rest.is_empty(), "the caller checks the length");
        cbc::Decryptor::inner_iv_init(&self.0, iv.into()).decrypt_blocks(blocks);
    }
}

impl<C> Plain for Ctr<C>
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]) {
        let core = CtrCore::inner_iv_init(&self.0, iv.into());
        Ctr32BE::from_core(core).apply_keystream(text);
    }

    fn decrypt(&self, iv: &[u8; BLOCK], text: &mut [u8]) {
        self.encrypt(iv, text);
    }
}

/// AES-CBC with a key of this length, if there is such a one.
pub(crate) fn cbc(key: &[u8]) -> Option<Box<dyn Plain>> {
    Some(match key.len() {
        16 => Box::new(Cbc(Aes128::new_from_slice(key).ok()?)),
        24 => Box::new(Cbc(Aes192::new_from_slice(key).ok()?)),
        32 => Box::new(Cbc(Aes256::new_from_slice(key).ok()?)),
        _ => return None,
    })
}

/// AES in counter mode with a key of this length, if there is such a one.
pub(crate) fn ctr(key: &[u8]) -> Option<Box<dyn Plain>> {
    Some(match key.len() {
        16 => Box::new(Ctr(Aes128::new_from_slice(key).ok()?)),
        24 => Box::new(Ctr(Aes192::new_from_slice(key).ok()?)),
        32 => Box::new(Ctr(Aes256::new_from_slice(key).ok()?)),
        _ => return None,
    })
}
