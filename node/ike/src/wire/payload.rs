//! Payloads (RFC 7296 §3.2 to §3.16) as types.

use super::*;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One payload, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Security Association.
    Sa(Vec<Proposal>),
    /// Key Exchange.
    Ke(KeyExchange),
    /// Identification of the initiator.
    IdI(Identification),
    /// Identification of the responder.
    IdR(Identification),
    /// Certificate: encoding and data.
    Cert {
        /// Certificate encoding (RFC 7296 §3.6).
        encoding: u8,
        /// Certificate data.
        data: Vec<u8>,
    },
    /// Certificate request: encoding and authorities.
    CertReq {
        /// Certificate encoding (RFC 7296 §3.7).
        encoding: u8,
        /// Concatenated hashes of authorities' keys.
        data: Vec<u8>,
    },
    /// Authentication data.
    Auth(Auth),
    /// Nonce, 16 to 256 bytes.
    Nonce(Vec<u8>),
    /// Notify.
    Notify(Notify),
    /// Delete.
    Delete(Delete),
    /// Vendor ID.
    Vendor(Vec<u8>),
    /// Traffic selectors of the initiator.
    TsI(Vec<TrafficSelector>),
    /// Traffic selectors of the responder.
    TsR(Vec<TrafficSelector>),
    /// Configuration.
    Cp(Configuration),
    /// An EAP message, opaque here.
    Eap(Vec<u8>),
    /// A payload of a type that we do not know, without the critical bit (with it, parsing fails).
    Unknown {
        /// Its type.
        kind: PayloadType,
        /// Its body.
        data: Vec<u8>,
    },
}

/// A proposal (RFC 7296 §3.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its number, from 1.
    pub number: u8,
    /// The protocol that it is for.
    pub protocol: Protocol,
    /// The sender's SPI: empty, 4 (AH, ESP) or 8 bytes (IKE rekey).
    pub spi: Vec<u8>,
    /// The transforms on offer.
    pub transforms: Vec<Transform>,
}

/// A transform (RFC 7296 §3.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformType,
    /// The algorithm.
    pub id: u16,
    /// The Key Length attribute in bits, where present.
    pub key_bits: Option<u16>,
    /// Whether an attribute was present that we do not know: then the transform is not acceptable.
    pub unknown_attribute: bool,
}

/// Key Exchange data (RFC 7296 §3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyExchange {
    /// The key exchange method.
    pub group: u16,
    /// The public value.
    pub data: Vec<u8>,
}

/// Identification (RFC 7296 §3.5) as it is on the wire; `identity` gives it meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identification {
    /// The type of identity.
    pub kind: IdType,
    /// Three reserved bytes: not ours to interpret, but the AUTH computation covers them.
    pub reserved: [u8; 3],
    /// The identity.
    pub data: Vec<u8>,
}

/// Authentication data (RFC 7296 §3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The method.
    pub method: AuthMethod,
    /// The data.
    pub data: Vec<u8>,
}

/// A notification (RFC 7296 §3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// The protocol of the SA that it is about; `NONE` if it is about none.
    pub protocol: Protocol,
    /// The SPI of that SA: empty or 4 bytes (8 in IKE rekey).
    pub spi: Vec<u8>,
    /// The type.
    pub kind: NotifyType,
    /// Type-specific data.
    pub data: Vec<u8>,
}

/// A deletion (RFC 7296 §3.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// This IKE SA.
    Ike,
    /// Child SAs, by the sender's inbound SPIs.
    Child {
        /// AH or ESP.
        protocol: Protocol,
        /// The SPIs.
        spis: Vec<u32>,
    },
}

/// A traffic selector (RFC 7296 §3.13.1): an inclusive range of addresses and of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrafficSelector {
    /// IP protocol; 0 is any.
    pub protocol: u8,
    /// First port; 0 with `end_port` 65535 is any; 65535 with `end_port` 0 is opaque.
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address, of the same family.
    pub end: IpAddr,
}

/// Configuration (RFC 7296 §3.15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Request, reply, set or ack.
    pub kind: CfgType,
    /// The attributes.
    pub attributes: Vec<CfgAttribute>,
}

/// A configuration attribute (RFC 7296 §3.15.1), its value not interpreted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CfgAttribute {
    /// The type.
    pub kind: CfgAttrType,
    /// The value; empty in requests that ask for any.
    pub value: Vec<u8>,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Something ends before its length says; `what` names it, `offset` is where it began.
    #[error("{what} at offset {offset} is truncated")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the message (or of the decrypted chain).
        offset: usize,
    },
    /// A field has a value that it must not have.
    #[error("{what} at offset {offset} is invalid")]
    Invalid {
        /// What was being read.
        what: &'static str,
        /// Offset from the start of the message (or of the decrypted chain).
        offset: usize,
    },
    /// There are more of something than we accept.
    #[error("too many {what}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
    },
    /// An unknown payload has its critical bit set (RFC 7296 §2.5).
    #[error("payload type {0} is unknown and critical")]
    UnknownCritical(u8),
    /// The major version is not 2.
    #[error("major version {0} is not supported")]
    MajorVersion(u8),
}

/// A message as it came: its header, the payloads in clear, and the protected part if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// Payloads before the Encrypted payload, which is the last.
    pub payloads: Vec<Payload>,
    /// The Encrypted payload.
    pub protected: Option<Protected<'a>>,
}

impl Message<'_> {
    /// Whether it is a fragment of a message (RFC 7383 §2.5).
    pub fn is_fragment(&self) -> bool {
        self.protected.is_some_and(|p| p.fragment.is_some())
    }
}

/// An Encrypted payload (RFC 7296 §3.14), or a fragment of one (RFC 7383), not yet opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected<'a> {
    /// Type of the first payload inside.
    pub first: PayloadType,
    /// From the first byte of the message to the last before the IV: what the AEAD authenticates
    /// besides the ciphertext.
    pub associated: &'a [u8],
    /// IV, ciphertext and ICV.
    pub body: &'a [u8],
    /// Number and total of fragments, if this is a fragment.
    pub fragment: Option<(u16, u16)>,
}
