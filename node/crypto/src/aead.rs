//! Ciphers that authenticate by themselves: AES-GCM with tags of all lengths, ChaCha20-Poly1305.
//!
//! The safe interface of the library offers whole tags only, and keeps a key behind two pointers more than a packet needs: with many SAs, each is a
//! wait for memory. So this calls C directly.

use crate::Forged;
use aws_lc_sys::{
    EVP_AEAD, EVP_AEAD_CTX, EVP_AEAD_CTX_cleanup, EVP_AEAD_CTX_init, EVP_AEAD_CTX_open_gather,
    EVP_AEAD_CTX_seal_scatter, EVP_aead_aes_128_gcm, EVP_aead_aes_192_gcm, EVP_aead_aes_256_gcm,
    EVP_aead_chacha20_poly1305,
};
use std::{mem::MaybeUninit, ptr};
use zeroize::Zeroize;

/// Length of the nonce in bytes.
pub(crate) const NONCE_LEN: usize = 12;

/// Which cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    AesGcm,
    ChaCha20Poly1305,
}

/// An expanded key, for tags of one length: all that a packet needs, in one piece that begins with a cache line. Wiped when dropped.
#[repr(C, align(64))]
pub(crate) struct Aead {
    /// Was initialised where it is, and is not moved: it is only ever behind the box that [`Self::new`] makes.
    context: MaybeUninit<EVP_AEAD_CTX>,
}

// SAFETY: after it was made a context is only read: the library's header says that seal and open may be called concurrently on
// one context, and it is bound to no thread.
#[allow(unsafe_code)]
unsafe impl Send for Aead {}
// SAFETY: see above.
#[allow(unsafe_code)]
unsafe impl Sync for Aead {}

#[allow(unsafe_code)]
fn table(algorithm: Algorithm, key_len: usize) -> Option<*const EVP_AEAD> {
    // SAFETY: these take no argument and yield static tables.
    unsafe {
        match (algorithm, key_len) {
            (Algorithm::AesGcm, 16) => Some(EVP_aead_aes_128_gcm()),
            (Algorithm::AesGcm, 24) => Some(EVP_aead_aes_192_gcm()),
            (Algorithm::AesGcm, 32) => Some(EVP_aead_aes_256_gcm()),
            (Algorithm::ChaCha20Poly1305, 32) => Some(EVP_aead_chacha20_poly1305()),
            _ => None,
        }
    }
}

impl Aead {
    /// A key; `None` if the cipher has none of this length, or no such tags.
    #[allow(unsafe_code)]
    pub(crate) fn new(algorithm: Algorithm, key: &[u8], tag_len: usize) -> Option<Box<Self>> {
        let table = table(algorithm, key.len())?;
        let mut aead = Box::new(Self {
            context: MaybeUninit::zeroed(),
        });
        let context = aead.context.as_mut_ptr();
        // SAFETY: there is room for a context, which this initialises; pointer and length are of one slice, which is copied. If it fails it leaves
        // a context that may be cleaned up, as a zeroed one may.
        let ok = unsafe {
            EVP_AEAD_CTX_init(
                context,
                table,
                key.as_ptr(),
                key.len(),
                tag_len,
                ptr::null_mut(),
            )
        };
        (ok == 1).then_some(aead)
    }

    /// Encrypts `text` in place and writes the tag, which has the key's tag length.
    #[allow(unsafe_code)]
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8],
    ) {
        let mut written = 0;
        let text_ptr = text.as_mut_ptr();
        // SAFETY: all pointers are of live slices with the lengths that are passed; input and output are the same bytes, which
        // the library allows; `tag` has room for `tag.len()` bytes.
        let ok = unsafe {
            EVP_AEAD_CTX_seal_scatter(
                self.context.as_ptr(),
                text_ptr,
                tag.as_mut_ptr(),
                &raw mut written,
                tag.len(),
                nonce.as_ptr(),
                nonce.len(),
                text_ptr.cast_const(),
                text.len(),
                ptr::null(),
                0,
                aad.as_ptr(),
                aad.len(),
            )
        };
        assert!(
            ok == 1 && written == tag.len(),
            "the caller knows the tag's length, and a packet is far below the limits of the ciphers"
        );
    }

    /// Decrypts `text` in place if `tag` is right.
    #[allow(unsafe_code)]
    pub(crate) fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> Result<(), Forged> {
        let text_ptr = text.as_mut_ptr();
        // SAFETY: as in `seal`; the library compares the tag in constant time and refuses one of another length.
        let ok = unsafe {
            EVP_AEAD_CTX_open_gather(
                self.context.as_ptr(),
                text_ptr,
                nonce.as_ptr(),
                nonce.len(),
                text_ptr.cast_const(),
                text.len(),
                tag.as_ptr(),
                tag.len(),
                aad.as_ptr(),
                aad.len(),
            )
        };
        if ok == 1 { Ok(()) } else { Err(Forged) }
    }
}

impl Drop for Aead {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: `new` has initialised it, or left zeroes, which this takes for a context without a key. It does not wipe.
        unsafe { EVP_AEAD_CTX_cleanup(self.context.as_mut_ptr()) }
        self.context.zeroize();
    }
}
