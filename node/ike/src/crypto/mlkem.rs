//! ML-KEM (FIPS 203) with randomness from outside.
//!
//! The safe interface of the library draws its own randomness and cannot store a private key, so this calls C directly. Everything
//! unsafe is in this file. A private key is its seed (`d | z`); the rest is made from it again when it is needed, which costs some
//! 20 µs.

use crate::secret::Secret;
use aws_lc_sys::{
    EVP_PKEY, EVP_PKEY_CTX, EVP_PKEY_CTX_free, EVP_PKEY_CTX_kem_set_params, EVP_PKEY_CTX_new,
    EVP_PKEY_CTX_new_id, EVP_PKEY_KEM, EVP_PKEY_decapsulate, EVP_PKEY_encapsulate_deterministic,
    EVP_PKEY_free, EVP_PKEY_get_raw_public_key, EVP_PKEY_kem_new_raw_public_key,
    EVP_PKEY_keygen_deterministic, EVP_PKEY_keygen_init, NID_MLKEM512, NID_MLKEM768, NID_MLKEM1024,
};
use std::ptr::{self, NonNull};
use zeroize::Zeroizing;

/// Length of the seed of a key pair in bytes.
pub(super) const SEED_LEN: usize = 64;
/// Length of the randomness of an encapsulation in bytes.
pub(super) const MESSAGE_LEN: usize = 32;
/// Length of the shared secret in bytes.
const SHARED_LEN: usize = 32;

/// A parameter set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MlKem {
    MlKem512,
    MlKem768,
    MlKem1024,
}

impl MlKem {
    /// Length of an encapsulation key in bytes: what the initiator sends.
    pub(super) fn public_len(self) -> usize {
        match self {
            Self::MlKem512 => 800,
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// Length of a ciphertext in bytes: what the responder sends.
    pub(super) fn ciphertext_len(self) -> usize {
        match self {
            Self::MlKem512 => 768,
            Self::MlKem768 => 1088,
            Self::MlKem1024 => 1568,
        }
    }

    fn nid(self) -> i32 {
        match self {
            Self::MlKem512 => NID_MLKEM512,
            Self::MlKem768 => NID_MLKEM768,
            Self::MlKem1024 => NID_MLKEM1024,
        }
    }

    /// The encapsulation key of a seed.
    pub(super) fn public(self, seed: &[u8]) -> Option<Vec<u8>> {
        self.key(seed)?.public(self.public_len())
    }

    /// A ciphertext for an encapsulation key, and the shared secret. `None` if the key is not valid (FIPS 203 §7.2).
    #[allow(unsafe_code)]
    pub(super) fn encapsulate(
        self,
        public: &[u8],
        message: &[u8; MESSAGE_LEN],
    ) -> Option<(Vec<u8>, Secret)> {
        // SAFETY: pointer and length are of one slice, which is copied; null means that it is not a key.
        let key =
            unsafe { EVP_PKEY_kem_new_raw_public_key(self.nid(), public.as_ptr(), public.len()) };
        let key = Key(NonNull::new(key)?);
        let context = Context::of(&key)?;
        let mut ciphertext = vec![0; self.ciphertext_len()];
        let mut shared = Zeroizing::new([0; SHARED_LEN]);
        let (mut ciphertext_len, mut shared_len, mut message_len) =
            (ciphertext.len(), shared.len(), message.len());
        // SAFETY: all pointers are of live buffers with the lengths that are passed; the context's key is alive.
        let ok = unsafe {
            EVP_PKEY_encapsulate_deterministic(
                context.0.as_ptr(),
                ciphertext.as_mut_ptr(),
                &raw mut ciphertext_len,
                shared.as_mut_ptr(),
                &raw mut shared_len,
                message.as_ptr(),
                &raw mut message_len,
            )
        };
        let whole = ok == 1 && ciphertext_len == ciphertext.len() && shared_len == SHARED_LEN;
        whole.then(|| (ciphertext, Secret::new(shared.to_vec())))
    }

    /// The shared secret in a ciphertext. A ciphertext of the right length that was made for another key yields another secret
    /// (implicit rejection, FIPS 203 §6.3).
    #[allow(unsafe_code)]
    pub(super) fn decapsulate(self, seed: &[u8], ciphertext: &[u8]) -> Option<Secret> {
        if ciphertext.len() != self.ciphertext_len() {
            return None;
        }
        let key = self.key(seed)?;
        let context = Context::of(&key)?;
        let mut shared = Zeroizing::new([0; SHARED_LEN]);
        let mut shared_len = shared.len();
        // SAFETY: all pointers are of live buffers with the lengths that are passed; the context's key is alive.
        let ok = unsafe {
            EVP_PKEY_decapsulate(
                context.0.as_ptr(),
                shared.as_mut_ptr(),
                &raw mut shared_len,
                ciphertext.as_ptr(),
                ciphertext.len(),
            )
        };
        (ok == 1 && shared_len == SHARED_LEN).then(|| Secret::new(shared.to_vec()))
    }

    /// The key pair of a seed.
    #[allow(unsafe_code)]
    fn key(self, seed: &[u8]) -> Option<Key> {
        let context = Context::for_generation(self.nid())?;
        let mut key = ptr::null_mut();
        let mut seed_len = seed.len();
        // SAFETY: pointer and length are of one slice; `key` receives a new object or stays null.
        let ok = unsafe {
            EVP_PKEY_keygen_deterministic(
                context.0.as_ptr(),
                &raw mut key,
                seed.as_ptr(),
                &raw mut seed_len,
            )
        };
        let key = NonNull::new(key).map(Key)?;
        (ok == 1).then_some(key)
    }
}

/// Owns a key; wiped when dropped.
struct Key(NonNull<EVP_PKEY>);

impl Key {
    #[allow(unsafe_code)]
    fn public(&self, len: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; len];
        let mut written = len;
        // SAFETY: `out` has the length that is passed.
        let ok = unsafe {
            EVP_PKEY_get_raw_public_key(self.0.as_ptr(), out.as_mut_ptr(), &raw mut written)
        };
        (ok == 1 && written == len).then_some(out)
    }
}

impl Drop for Key {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: made by this library and freed only here.
        unsafe { EVP_PKEY_free(self.0.as_ptr()) }
    }
}

/// Owns an operation.
struct Context(NonNull<EVP_PKEY_CTX>);

impl Context {
    /// An operation with a key; the context holds a reference to it.
    #[allow(unsafe_code)]
    fn of(key: &Key) -> Option<Self> {
        // SAFETY: the key is alive, and the context takes a reference of its own.
        NonNull::new(unsafe { EVP_PKEY_CTX_new(key.0.as_ptr(), ptr::null_mut()) }).map(Self)
    }

    /// The generation of a key.
    #[allow(unsafe_code)]
    fn for_generation(nid: i32) -> Option<Self> {
        // SAFETY: a known constant; null means that memory ran out.
        let context = unsafe { EVP_PKEY_CTX_new_id(EVP_PKEY_KEM, ptr::null_mut()) };
        let context = Self(NonNull::new(context)?);
        // SAFETY: the context was made above.
        let ok = unsafe {
            EVP_PKEY_CTX_kem_set_params(context.0.as_ptr(), nid) == 1
                && EVP_PKEY_keygen_init(context.0.as_ptr()) == 1
        };
        ok.then_some(context)
    }
}

impl Drop for Context {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: made by this library and freed only here.
        unsafe { EVP_PKEY_CTX_free(self.0.as_ptr()) }
    }
}
