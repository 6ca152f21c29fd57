//! The 2048-bit MODP group (RFC 3526 §3).
//!
//! The one place of this crate that calls C directly: nothing safe offers a modular exponentiation in constant
//! time that is as fast. Everything unsafe is in [`power`] and in the owners of what it allocates.

use crate::secret::Secret;
use aws_lc_sys::{
    BIGNUM, BN_CTX, BN_CTX_free, BN_CTX_new, BN_MONT_CTX, BN_MONT_CTX_free,
    BN_MONT_CTX_new_for_modulus, BN_bin2bn, BN_bn2bin_padded, BN_clear_free,
    BN_mod_exp_mont_consttime, BN_new,
};
use std::ptr::{self, NonNull};
use zeroize::Zeroizing;

/// Length of the prime, of public values and of shared secrets, in bytes.
pub(super) const LEN: usize = 256;

/// Length of a private exponent in bytes: more than twice the group's strength (RFC 3526 §8).
pub(super) const EXPONENT_LEN: usize = 64;

#[rustfmt::skip]
const PRIME: [u8; LEN] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc9, 0x0f, 0xda, 0xa2, 0x21, 0x68, 0xc2, 0x34,
    0xc4, 0xc6, 0x62, 0x8b, 0x80, 0xdc, 0x1c, 0xd1, 0x29, 0x02, 0x4e, 0x08, 0x8a, 0x67, 0xcc, 0x74,
    0x02, 0x0b, 0xbe, 0xa6, 0x3b, 0x13, 0x9b, 0x22, 0x51, 0x4a, 0x08, 0x79, 0x8e, 0x34, 0x04, 0xdd,
    0xef, 0x95, 0x19, 0xb3, 0xcd, 0x3a, 0x43, 0x1b, 0x30, 0x2b, 0x0a, 0x6d, 0xf2, 0x5f, 0x14, 0x37,
    0x4f, 0xe1, 0x35, 0x6d, 0x6d, 0x51, 0xc2, 0x45, 0xe4, 0x85, 0xb5, 0x76, 0x62, 0x5e, 0x7e, 0xc6,
    0xf4, 0x4c, 0x42, 0xe9, 0xa6, 0x37, 0xed, 0x6b, 0x0b, 0xff, 0x5c, 0xb6, 0xf4, 0x06, 0xb7, 0xed,
    0xee, 0x38, 0x6b, 0xfb, 0x5a, 0x89, 0x9f, 0xa5, 0xae, 0x9f, 0x24, 0x11, 0x7c, 0x4b, 0x1f, 0xe6,
    0x49, 0x28, 0x66, 0x51, 0xec, 0xe4, 0x5b, 0x3d, 0xc2, 0x00, 0x7c, 0xb8, 0xa1, 0x63, 0xbf, 0x05,
    0x98, 0xda, 0x48, 0x36, 0x1c, 0x55, 0xd3, 0x9a, 0x69, 0x16, 0x3f, 0xa8, 0xfd, 0x24, 0xcf, 0x5f,
    0x83, 0x65, 0x5d, 0x23, 0xdc, 0xa3, 0xad, 0x96, 0x1c, 0x62, 0xf3, 0x56, 0x20, 0x85, 0x52, 0xbb,
    0x9e, 0xd5, 0x29, 0x07, 0x70, 0x96, 0x96, 0x6d, 0x67, 0x0c, 0x35, 0x4e, 0x4a, 0xbc, 0x98, 0x04,
    0xf1, 0x74, 0x6c, 0x08, 0xca, 0x18, 0x21, 0x7c, 0x32, 0x90, 0x5e, 0x46, 0x2e, 0x36, 0xce, 0x3b,
    0xe3, 0x9e, 0x77, 0x2c, 0x18, 0x0e, 0x86, 0x03, 0x9b, 0x27, 0x83, 0xa2, 0xec, 0x07, 0xa2, 0x8f,
    0xb5, 0xc5, 0x5d, 0xf0, 0x6f, 0x4c, 0x52, 0xc9, 0xde, 0x2b, 0xcb, 0xf6, 0x95, 0x58, 0x17, 0x18,
    0x39, 0x95, 0x49, 0x7c, 0xea, 0x95, 0x6a, 0xe5, 0x15, 0xd2, 0x26, 0x18, 0x98, 0xfa, 0x05, 0x10,
    0x15, 0x72, 0x8e, 0x5a, 0x8a, 0xac, 0xaa, 0x68, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
];

/// The public value of a private exponent, padded on the left.
pub(super) fn public(exponent: &[u8]) -> Option<Vec<u8>> {
    let public = power(&[2], exponent)?;
    acceptable(public.as_slice()).then(|| public.to_vec())
}

/// The shared secret, padded on the left (RFC 7296 §2.14), if the peer's value is acceptable.
pub(super) fn agree(exponent: &[u8], peer: &[u8]) -> Option<Secret> {
    if !acceptable(peer) {
        return None;
    }
    power(peer, exponent).map(|secret| Secret::new(secret.to_vec()))
}

/// Whether `1 < y < p - 1` (RFC 6989 §2.1), for a value of exactly the group's length.
fn acceptable(y: &[u8]) -> bool {
    let mut one = [0; LEN];
    one[LEN - 1] = 1;
    let mut p_minus_1 = PRIME;
    p_minus_1[LEN - 1] -= 1;
    y.len() == LEN && y > one.as_slice() && y < p_minus_1.as_slice()
}

/// `base ^ exponent mod p`; `None` if `base` is not below p, or if memory ran out. The time depends on the
/// lengths only.
#[allow(unsafe_code)]
fn power(base: &[u8], exponent: &[u8]) -> Option<Zeroizing<[u8; LEN]>> {
    let context = Context::new()?;
    let prime = Number::from_bytes(&PRIME)?;
    let base = Number::from_bytes(base)?;
    let exponent = Number::from_bytes(exponent)?;
    let result = Number::new()?;
    let montgomery = Montgomery::new(&prime, &context)?;
    let mut out = Zeroizing::new([0; LEN]);
    // SAFETY: every pointer comes from an owner that lives to the end of this function; `result` aliases none of
    // the operands; `out` has the length that is passed.
    let ok = unsafe {
        BN_mod_exp_mont_consttime(
            result.0.as_ptr(),
            base.0.as_ptr(),
            exponent.0.as_ptr(),
            prime.0.as_ptr(),
            context.0.as_ptr(),
            montgomery.0.as_ptr(),
        ) == 1
            && BN_bn2bin_padded(out.as_mut_ptr(), LEN, result.0.as_ptr()) == 1
    };
    ok.then_some(out)
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
