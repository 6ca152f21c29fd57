//! How members talk: gRPC over mutual TLS.
//!
//! A member's name is in its certificate, and the certificate comes from the cluster's own authority. There are several connections
//! to each other member, so that a snapshot or a burst of entries never delays a heartbeat.

mod client;
mod forward;
mod links;
mod server;
mod services;
mod tls;

pub(crate) use client::{Network, Peers};
pub use forward::ForwardHandler;
pub(crate) use links::Tcp;
pub use links::{BoxStream, Links, Stream};
pub(crate) use server::{Handler, serve};
pub(crate) use services::Services;
pub use services::{LeaseHandler, RelayHandler, StepDownHandler};
pub(crate) use tls::Tls;
pub use tls::{Credentials, TlsError};

use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;

/// The biggest message: an entry of the greatest size with room to spare, or what is read from the log at once.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// Metadata of every message of Raft's own: the id of the node that is meant.
const TO_NODE: &str = "to-node";

/// Metadata of the refusal of a member that was removed.
pub(crate) const REMOVED: &str = "removed";

/// Metadata of every call: the generation of the member that calls.
const GENERATION: &str = "generation";

/// Metadata of the refusal of a member of a former generation: the later one.
pub(crate) const SUPERSEDED: &str = "superseded";

/// A part of a snapshot.
pub(crate) const SNAPSHOT_PART: usize = 256 * 1024;

/// The biggest snapshot that is taken: about what the greatest permitted number of SAs makes.
pub(crate) const MAX_SNAPSHOT: usize = 8 << 30;

fn encode<T: Serialize>(value: &T) -> Result<bytes::Bytes, Status> {
    postcard::to_stdvec(value)
        .map(Into::into)
        .map_err(|e| Status::internal(format!("cannot be encoded: {e}")))
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Status::invalid_argument("cannot be understood")),
    }
}
