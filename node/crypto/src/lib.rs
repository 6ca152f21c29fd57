//! How bytes are protected in IKEv2 and ESP, without I/O, clock or randomness of its own: ciphers, integrity
//! algorithms, and the MACs made of AES that are pseudo-random functions too.
//!
//! A [`Cipher`] is what two ends agreed on, a [`Key`] seals and opens with it. Whoever seals names a number that was
//! never used with the key before (the *unique* number: ESP's sequence number, the counter of IKE messages); the IV on
//! the wire is a function of key and number, so the law "no IV twice" is a law about numbers alone.

mod aead;
mod cipher;
mod encryption;
mod integrity;
mod key;
mod mac;
mod memory;
mod modes;
#[cfg(test)]
mod tests;

pub use cipher::Cipher;
pub use encryption::Encryption;
pub use integrity::Integrity;
pub use key::{Associated, Forged, Key, KeyError, Shape};
pub use mac::{cmac, xcbc};
pub use memory::{prefetch, prefetch_some};

/// Length of the longest explicit IV (CBC), in bytes.
pub const MAX_IV_LEN: usize = 16;
/// Length of the longest integrity check value (HMAC-SHA2-512-256), in bytes.
pub const MAX_ICV_LEN: usize = 32;
/// The largest block that a cipher wants filled with padding (CBC), in bytes.
pub const MAX_BLOCK: usize = 16;
