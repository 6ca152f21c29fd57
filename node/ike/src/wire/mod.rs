//! IKEv2 messages on the wire (RFC 7296 §3): parsed once into types that cannot be wrong.
//!
//! Emitting is the exact inverse of parsing. Nothing here knows keys, SAs or policy; the protected
//! part of a message is only delimited ([`Protected`]), `crypto` opens it.

mod header;
mod payload;
mod types;

pub use header::*;
pub use payload::*;
pub use types::*;
