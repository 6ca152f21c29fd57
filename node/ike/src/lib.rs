//! IKEv2 (RFC 7296) without I/O, clock or randomness of its own.
//!
//! Time, entropy and policy come in as arguments; what should happen goes out as values. So one
//! process can run both ends of every exchange in virtual time, and a member that takes over an SA
//! continues from its [`record::Record`] as if it had always been there.

pub mod certificate;
pub mod config;
pub mod crypto;
pub mod env;
pub mod identity;
#[cfg(test)]
mod memory;
pub mod proposal;
pub mod record;
pub mod sa;
pub mod secret;
pub mod selector;
pub mod signature;
pub mod wire;
