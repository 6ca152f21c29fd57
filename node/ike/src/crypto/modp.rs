//! The MODP groups of RFC 3526.
//!
//! The one place of this crate that calls C directly: nothing safe offers a modular exponentiation in constant
//! time that is as fast. Everything unsafe is in [`Modp`] and in the owners of what it allocates.

use crate::secret::Secret;
use aws_lc_sys::{
    BIGNUM, BN_CTX, BN_CTX_free, BN_CTX_new, BN_MONT_CTX, BN_MONT_CTX_free,
    BN_MONT_CTX_new_for_modulus, BN_bin2bn, BN_bn2bin_padded, BN_clear_free,
    BN_get_rfc3526_prime_2048, BN_get_rfc3526_prime_3072, BN_get_rfc3526_prime_4096,
    BN_get_rfc3526_prime_6144, BN_get_rfc3526_prime_8192, BN_mod_exp_mont_consttime, BN_new,
};
use std::ptr::{self, NonNull};
use zeroize::Zeroizing;

/// A MODP group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Modp {
    Bits2048,
    Bits3072,
    Bits4096,
    Bits6144,
    Bits8192,
}

impl Modp {
    /// Length of the prime, of public values and of shared secrets, in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Bits2048 => 256,
            Self::Bits3072 => 384,
            Self::Bits4096 => 512,
            Self::Bits6144 => 768,
            Self::Bits8192 => 1024,
        }
    }

    /// Length of a private exponent in bytes: at least twice the higher estimate of the group's strength (RFC 3526 §8).
    pub(super) fn exponent_len(self) -> usize {
        match self {
            Self::Bits2048 | Self::Bits3072 => 64,
            Self::Bits4096 => 72,
            Self::Bits6144 => 80,
            Self::Bits8192 => 96,
        }
    }

    #[allow(unsafe_code)]
    fn prime(self) -> Option<Number> {
        let null = ptr::null_mut();
        // SAFETY: a null argument asks for a new number; a null result means that memory ran out.
        let prime = unsafe {
            match self {
                Self::Bits2048 => BN_get_rfc3526_prime_2048(null),
                Self::Bits3072 => BN_get_rfc3526_prime_3072(null),
                Self::Bits4096 => BN_get_rfc3526_prime_4096(null),
                Self::Bits6144 => BN_get_rfc3526_prime_6144(null),
                Self::Bits8192 => BN_get_rfc3526_prime_8192(null),
            }
        };
        NonNull::new(prime).map(Number)
    }

    /// The public value of a private exponent, padded on the left.
    pub(super) fn public(self, exponent: &[u8]) -> Option<Vec<u8>> {
        let prime = self.prime()?;
        let public = self.power(&prime, &[2], exponent)?;
        self.acceptable(&prime, &public).then(|| public.to_vec())
    }

    /// The shared secret, padded on the left (RFC 7296 §2.14), if the peer's value is acceptable.
    pub(super) fn agree(self, exponent: &[u8], peer: &[u8]) -> Option<Secret> {
        let prime = self.prime()?;
        if !self.acceptable(&prime, peer) {
            return None;
        }
        self.power(&prime, peer, exponent)
            .map(|secret| Secret::new(secret.to_vec()))
    }

    /// Whether `1 < y < p - 1` (RFC 6989 §2.1), for a value of exactly the group's length.
    fn acceptable(self, prime: &Number, y: &[u8]) -> bool {
        let Some(mut p_minus_1) = prime.to_bytes(self.len()) else {
            return false;
        };
        let last = self.len() - 1;
        p_minus_1[last] -= 1; // a prime is odd
        let mut one = vec![0; self.len()];
        one[last] = 1;
        y.len() == self.len() && y > one.as_slice() && y < p_minus_1.as_slice()
    }

    /// `base ^ exponent mod p`; `None` if `base` is not below p, or if memory ran out. The time depends on the
    /// lengths only.
    #[allow(unsafe_code)]
    fn power(self, prime: &Number, base: &[u8], exponent: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let context = Context::new()?;
        let base = Number::from_bytes(base)?;
        let exponent = Number::from_bytes(exponent)?;
        let result = Number::new()?;
        let montgomery = Montgomery::new(prime, &context)?;
        // SAFETY: every pointer comes from an owner that lives to the end of this function; `result` aliases none of
        // the operands.
        let ok = unsafe {
            BN_mod_exp_mont_consttime(
                result.0.as_ptr(),
                base.0.as_ptr(),
                exponent.0.as_ptr(),
                prime.0.as_ptr(),
                context.0.as_ptr(),
                montgomery.0.as_ptr(),
            )
        };
        (ok == 1).then(|| result.to_bytes(self.len())).flatten()
    }
}

/// Owns a big number; wiped when dropped.
struct Number(NonNull<BIGNUM>);

impl Number {
    #[allow(unsafe_code)]
    fn new() -> Option<Self> {
        // SAFETY: takes no argument; null means that memory ran out.
        NonNull::new(unsafe { BN_new() }).map(Self)
    }

    #[allow(unsafe_code)]
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: pointer and length are of one slice; a null result argument asks for a new number.
        NonNull::new(unsafe { BN_bin2bn(bytes.as_ptr(), bytes.len(), ptr::null_mut()) }).map(Self)
    }

    /// The number in `len` bytes, padded on the left; `None` if it does not fit.
    #[allow(unsafe_code)]
    fn to_bytes(&self, len: usize) -> Option<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(vec![0; len]);
        // SAFETY: `out` has the length that is passed.
        let ok = unsafe { BN_bn2bin_padded(out.as_mut_ptr(), len, self.0.as_ptr()) };
        (ok == 1).then_some(out)
    }
}

impl Drop for Number {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: allocated by this library and freed only here.
        unsafe { BN_clear_free(self.0.as_ptr()) }
    }
}

/// Owns scratch space.
struct Context(NonNull<BN_CTX>);

impl Context {
    #[allow(unsafe_code)]
    fn new() -> Option<Self> {
        // SAFETY: takes no argument; null means that memory ran out.
        NonNull::new(unsafe { BN_CTX_new() }).map(Self)
    }
}

impl Drop for Context {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: allocated by this library and freed only here.
        unsafe { BN_CTX_free(self.0.as_ptr()) }
    }
}

/// Owns the precomputation for a modulus.
struct Montgomery(NonNull<BN_MONT_CTX>);

impl Montgomery {
    #[allow(unsafe_code)]
    fn new(modulus: &Number, context: &Context) -> Option<Self> {
        // SAFETY: both pointers come from live owners; the result copies the modulus.
        NonNull::new(unsafe { BN_MONT_CTX_new_for_modulus(modulus.0.as_ptr(), context.0.as_ptr()) })
            .map(Self)
    }
}

impl Drop for Montgomery {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: allocated by this library and freed only here.
        unsafe { BN_MONT_CTX_free(self.0.as_ptr()) }
    }
}
