//! The IKE header (RFC 7296 §3.1).

use super::ExchangeType;
use serde::{Deserialize, Serialize};

/// Length of the IKE header in bytes.
pub const HEADER_LEN: usize = 28;

/// The fields of an IKE header that are not implied by the rest of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// SPI of the original initiator of the IKE SA.
    pub initiator_spi: u64,
    /// SPI of the original responder; zero in the first message.
    pub responder_spi: u64,
    /// Minor version; we send 0 and ignore it on receipt.
    pub minor_version: u8,
    /// The exchange that this message belongs to.
    pub exchange: ExchangeType,
    /// I flag: the sender is the original initiator of the IKE SA.
    pub from_initiator: bool,
    /// R flag: this message is a response.
    pub is_response: bool,
    /// V flag: the sender could speak a higher major version.
    pub higher_version: bool,
    /// Message ID.
    pub message_id: u32,
}
