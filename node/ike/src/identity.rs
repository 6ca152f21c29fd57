//! Identities (RFC 7296 §3.5): what they mean, how they are written, when they match.

mod dn;
#[cfg(test)]
mod tests;
mod text;

pub use dn::DnPattern;

use crate::wire::{IdType, Identification};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// An identity. Names are in lower case where case does not matter, so that equal values are equal
/// identities; what a peer authenticates is the payload as it came, not [`Identity::to_wire`].
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
    /// Any distinguished name like this (`C=CH, O=Example, CN=*`).
    Dn(DnPattern),
}

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an identity")]
pub struct IdentityError(pub String);

impl Identity {
    /// The identity that a payload holds. Data that is not what its type says (an address of the wrong
    /// length, a name that is not UTF-8) makes it [`Identity::Other`].
    pub fn from_wire(id: &Identification) -> Self {
        Self::from_parts(id.kind, &id.data)
    }

    fn from_parts(kind: IdType, data: &[u8]) -> Self {
        let text = || std::str::from_utf8(data).ok();
        let known = match kind {
            IdType::IPV4_ADDR => <[u8; 4]>::try_from(data)
                .ok()
                .map(|octets| Self::Address(octets.into())),
            IdType::IPV6_ADDR => <[u8; 16]>::try_from(data)
                .ok()
                .map(|octets| Self::Address(octets.into())),
            IdType::FQDN => text().map(Self::fqdn),
            IdType::RFC822_ADDR => text().map(Self::email),
            IdType::DER_ASN1_DN => Some(Self::Dn(data.to_vec())),
            IdType::KEY_ID => Some(Self::KeyId(data.to_vec())),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Other {
            kind: kind.0,
            data: data.to_vec(),
        })
    }

    /// The payload that holds this identity.
    pub fn to_wire(&self) -> Identification {
        let (kind, data) = match self {
            Self::Address(IpAddr::V4(ip)) => (IdType::IPV4_ADDR, ip.octets().to_vec()),
            Self::Address(IpAddr::V6(ip)) => (IdType::IPV6_ADDR, ip.octets().to_vec()),
            Self::Fqdn(name) => (IdType::FQDN, name.clone().into_bytes()),
            Self::Email(name) => (IdType::RFC822_ADDR, name.clone().into_bytes()),
            Self::Dn(der) => (IdType::DER_ASN1_DN, der.clone()),
            Self::KeyId(data) => (IdType::KEY_ID, data.clone()),
            Self::Other { kind, data } => (IdType(*kind), data.clone()),
        };
        Identification {
            kind,
            reserved: [0; 3],
            data,
        }
    }

    /// A domain name, in lower case.
    fn fqdn(name: &str) -> Self {
        Self::Fqdn(name.to_ascii_lowercase())
    }

    /// An e-mail address, its domain in lower case; the mailbox is its host's to interpret.
    fn email(name: &str) -> Self {
        let Some((mailbox, domain)) = name.rsplit_once('@') else {
            return Self::Email(name.to_owned());
        };
        Self::Email(format!("{mailbox}@{}", domain.to_ascii_lowercase()))
    }

    /// Whether both are the same identity.
    pub fn means(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dn(a), Self::Dn(b)) => dn::same(a, b),
            (a, b) => a.normalised() == b.normalised(),
        }
    }

    /// The same identity as parsing would have made it.
    fn normalised(&self) -> Self {
        match self {
            Self::Fqdn(name) => Self::fqdn(name),
            Self::Email(name) => Self::email(name),
            other => other.clone(),
        }
    }
}

impl IdPattern {
    /// Whether `id` is one of those meant.
    pub fn matches(&self, id: &Identity) -> bool {
        match (self, id) {
            (Self::Any, _) => true,
            (Self::Exact(exact), id) => exact.means(id),
            (Self::Dn(pattern), Identity::Dn(der)) => pattern.matches(der),
            (Self::FqdnSuffix(domain), Identity::Fqdn(name)) => {
                let (name, domain) = (name.to_ascii_lowercase(), domain.to_ascii_lowercase());
                name.strip_suffix(&domain)
                    .and_then(|host| host.strip_suffix('.'))
                    .is_some_and(|host| !host.is_empty())
            }
            (Self::EmailDomain(domain), Identity::Email(name)) => name
                .rsplit_once('@')
                .is_some_and(|(mailbox, d)| !mailbox.is_empty() && d.eq_ignore_ascii_case(domain)),
            _ => false,
        }
    }
}
