//! Identities (RFC 7296 §3.5): what they mean, how they are written, when they match.

use crate::wire::Identification;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// An identity.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Identity {
    /// An address.
    Address(IpAddr),
    /// A domain name, compared without case.
    Fqdn(String),
    /// An e-mail address; the domain is compared without case.
    Email(String),
    /// DER of a distinguished name.
    Dn(Vec<u8>),
    /// Opaque bytes; written `keyid:` and text, or `0x` hex after it.
    KeyId(Vec<u8>),
    /// A type that we do not know; it matches only itself.
    Other {
        /// The ID type.
        kind: u8,
        /// The data.
        data: Vec<u8>,
    },
}

/// What a peer may call itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IdPattern {
    /// Anything (`%any`).
    Any,
    /// Exactly this.
    Exact(Identity),
    /// Any name of the domain (`*.example.org`), at any depth; not the domain itself.
    FqdnSuffix(String),
    /// Any mailbox of the domain (`*@example.org`).
    EmailDomain(String),
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an identity")]
pub struct IdentityError(pub String);

impl Identity {
    /// The identity that a payload holds.
    pub fn from_wire(id: &Identification) -> Self {
        let _ = id;
        todo!()
    }

    /// The payload that holds this identity.
    pub fn to_wire(&self) -> Identification {
        todo!()
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    /// The forms of strongSwan: an address, a name, `user@domain`, or with an explicit prefix `fqdn:`, `email:`, `keyid:`, `ipv4:`, `ipv6:`.
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

impl FromStr for IdPattern {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}

impl IdPattern {
    /// Whether `id` is one of those meant.
    pub fn matches(&self, id: &Identity) -> bool {
        let _ = id;
        todo!()
    }
}
