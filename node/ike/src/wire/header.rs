//! The IKE header (RFC 7296 §3.1).

use super::{ExchangeType, ParseError, PayloadType, cursor::Cursor};
use serde::{Deserialize, Serialize};

/// Length of the IKE header in bytes.
pub const HEADER_LEN: usize = 28;

/// The major version that we speak.
const MAJOR_VERSION: u8 = 2;

const FLAG_INITIATOR: u8 = 0x08;
const FLAG_VERSION: u8 = 0x10;
const FLAG_RESPONSE: u8 = 0x20;

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

/// A header with what a message's other parts decide.
pub(super) struct RawHeader {
    pub(super) header: Header,
    pub(super) major_version: u8,
    pub(super) first: PayloadType,
    pub(super) length: u32,
}

impl Header {
    /// Parses only the header, so that a message can be routed and errors can be answered. The
    /// length field is not compared with the datagram.
    ///
    /// # Errors
    /// If there are too few bytes, or the major version is not 2.
    pub fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        RawHeader::parse_v2(datagram).map(|raw| raw.header)
    }

    /// Parses the header whatever its major version is, which comes first in the answer: the
    /// INVALID_MAJOR_VERSION notify copies SPIs and Message ID from it (RFC 7296 §2.5).
    ///
    /// # Errors
    /// If there are too few bytes.
    pub fn parse_any_version(datagram: &[u8]) -> Result<(u8, Self), ParseError> {
        RawHeader::parse(datagram).map(|raw| (raw.major_version, raw.header))
    }

    /// The header of a message of `length` bytes, itself included, whose first payload is `first`.
    pub fn to_bytes(&self, first: PayloadType, length: u32) -> [u8; HEADER_LEN] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut out = [0; HEADER_LEN];
        out[0..8].copy_from_slice(&self.initiator_spi.to_be_bytes());
        out[8..16].copy_from_slice(&self.responder_spi.to_be_bytes());
        out[16] = first.0;
        out[17] = MAJOR_VERSION << 4 | (self.minor_version & 0x0f);
        out[18] = self.exchange.0;
        out[19] = flag(self.from_initiator, FLAG_INITIATOR)
            | flag(self.higher_version, FLAG_VERSION)
            | flag(self.is_response, FLAG_RESPONSE);
        out[20..24].copy_from_slice(&self.message_id.to_be_bytes());
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }
}

impl RawHeader {
    /// Parses a header of any major version: its layout has been the same since IKEv1.
    fn parse(datagram: &[u8]) -> Result<Self, ParseError> {
        const WHAT: &str = "IKE header";
        if datagram.len() < HEADER_LEN {
            return Err(ParseError::Truncated {
                what: WHAT,
                offset: 0,
            });
        }
        let mut c = Cursor::new(datagram, 0);
        let (initiator_spi, responder_spi) = (c.u64(WHAT)?, c.u64(WHAT)?);
        let first = PayloadType(c.u8(WHAT)?);
        let version = c.u8(WHAT)?;
        let exchange = ExchangeType(c.u8(WHAT)?);
        let flags = c.u8(WHAT)?;
        let header = Header {
            initiator_spi,
            responder_spi,
            minor_version: version & 0x0f,
            exchange,
            from_initiator: flags & FLAG_INITIATOR != 0,
            is_response: flags & FLAG_RESPONSE != 0,
            higher_version: flags & FLAG_VERSION != 0,
            message_id: c.u32(WHAT)?,
        };
        Ok(Self {
            header,
            major_version: version >> 4,
            first,
            length: c.u32(WHAT)?,
        })
    }

    /// Parses a header of our major version.
    pub(super) fn parse_v2(datagram: &[u8]) -> Result<Self, ParseError> {
        let raw = Self::parse(datagram)?;
        if raw.major_version == MAJOR_VERSION {
            Ok(raw)
        } else {
            Err(ParseError::MajorVersion(raw.major_version))
        }
    }
}
