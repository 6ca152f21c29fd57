//! IKEv2 messages on the wire (RFC 7296 §3): parsed once into types that cannot be wrong.
//!
//! Emitting is the exact inverse of parsing. Nothing here knows keys, SAs or policy; the protected
//! part of a message is only delimited ([`Protected`]), `crypto` opens it.

mod codec;
mod cursor;
mod header;
mod limits;
mod payload;
#[cfg(test)]
mod tests;
mod types;

pub use codec::{emit, emit_chain, parse_chain};
pub use header::*;
pub use limits::*;
pub use payload::*;
pub use types::*;
