//! What members say to the leader about leases, and what it answers.

use evergate_cluster::lease::{Grant, Request};
use evergate_ike::record::GatewayId;
use evergate_state::Owner;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a member asks of the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Its leases.
    Leases(Request),
    /// That a gateway is moved.
    Move {
        /// Which.
        gateway: GatewayId,
        /// The member that should get it.
        member: String,
    },
    /// That all its gateways go to others: the process is about to end.
    Leave(Owner),
}

/// Its leases, and more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Its leases.
    pub(super) grant: Grant,
    /// What it should give to others.
    pub(super) hand_over: Vec<HandOver>,
}

/// A gateway that should go to another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HandOver {
    /// Which.
    pub(super) gateway: GatewayId,
    /// The epoch that ends.
    pub(super) epoch: u32,
    /// Who gets it.
    pub(super) to: Owner,
}

/// Writes a message.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<bytes::Bytes, String> {
    postcard::to_stdvec(message)
        .map(Into::into)
        .map_err(|e| e.to_string())
}

/// Reads a message.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err("there is something behind the message".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}
