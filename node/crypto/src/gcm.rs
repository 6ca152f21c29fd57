//! AES-GCM with shortened tags.
//!
//! The safe interface of the library offers whole tags only, so this calls C directly. Everything unsafe is in this file.

use crate::Forged;
use aws_lc_sys::{
    EVP_AEAD_CTX, EVP_AEAD_CTX_free, EVP_AEAD_CTX_new, EVP_AEAD_CTX_open_gather,
    EVP_AEAD_CTX_seal_scatter, EVP_aead_aes_128_gcm, EVP_aead_aes_192_gcm, EVP_aead_aes_256_gcm,
};
use std::ptr::{self, NonNull};

/// Length of the nonce in bytes.
pub(crate) const NONCE_LEN: usize = 12;

/// A key of AES-GCM for tags of one length; wiped when dropped.
pub(crate) struct ShortTagGcm {
    context: NonNull<EVP_AEAD_CTX>,
    tag_len: usize,
}

// SAFETY: after it was made a context is only read: the library's header says that seal and open may be called concurrently on
// one context, and it is bound to no thread.
#[allow(unsafe_code)]
unsafe impl Send for ShortTagGcm {}
// SAFETY: see above.
#[allow(unsafe_code)]
unsafe impl Sync for ShortTagGcm {}

impl ShortTagGcm {
    /// A key of 16, 24 or 32 bytes; `None` for another length, or if memory ran out.
    #[allow(unsafe_code)]
    pub(crate) fn new(key: &[u8], tag_len: usize) -> Option<Self> {
        // SAFETY: these take no argument and yield static tables.
        let algorithm = unsafe {
            match key.len() {
                16 => EVP_aead_aes_128_gcm(),
                24 => EVP_aead_aes_192_gcm(),
                32 => EVP_aead_aes_256_gcm(),
                _ => return None,
            }
        };
        // SAFETY: pointer and length are of one slice, which is copied; null means that it failed.
        let context = unsafe { EVP_AEAD_CTX_new(algorithm, key.as_ptr(), key.len(), tag_len) };
        Some(Self {
            context: NonNull::new(context)?,
            tag_len,
        })
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
        assert_eq!(tag.len(), self.tag_len);
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
            "a packet is far below the limits of AES-GCM"
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

impl Drop for ShortTagGcm {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: made by this library and freed only here, which wipes it.
        unsafe { EVP_AEAD_CTX_free(self.context.as_ptr()) }
    }
}
