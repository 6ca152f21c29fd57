//! Which signatures are meant, in the words of strongSwan: `pubkey`, `rsa`, `rsa/pss-sha256-sha384`, `ecdsa`, `ed25519`.

use super::{Hash, Scheme};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A family of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyFamily {
    /// RSA.
    Rsa,
    /// ECDSA.
    Ecdsa,
    /// Ed25519.
    Ed25519,
}

/// Which signatures are acceptable. The default is all that we know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    family: Option<KeyFamily>,
    /// RSASSA-PSS only.
    pss: bool,
    /// Empty for any.
    hashes: Vec<Hash>,
}

/// Why a text is no constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no kind of signature")]
pub struct ConstraintError(pub String);

impl Constraint {
    /// Whether signatures of this scheme are meant.
    pub fn allows(&self, scheme: Scheme) -> bool {
        let family = match scheme {
            Scheme::RsaPkcs1(_) | Scheme::RsaPss(_) => KeyFamily::Rsa,
            Scheme::Ecdsa(_) => KeyFamily::Ecdsa,
            Scheme::Ed25519 => KeyFamily::Ed25519,
        };
        self.family.is_none_or(|f| f == family)
            && (!self.pss || matches!(scheme, Scheme::RsaPss(_)))
            && (self.hashes.is_empty()
                || scheme == Scheme::Ed25519
                || self.hashes.contains(&scheme.hash()))
    }

    /// Whether RSA keys sign with PSS.
    pub fn pss(&self) -> bool {
        self.pss
    }
}

impl FromStr for Constraint {
    type Err = ConstraintError;

    fn from_str(text: &str) -> Result<Self, ConstraintError> {
        let mut parts = text.split('-');
        let (family, pss) = match parts.next() {
            Some("pubkey") => (None, false),
            Some("rsa") => (Some(KeyFamily::Rsa), false),
            Some("rsa/pss") => (Some(KeyFamily::Rsa), true),
            Some("ecdsa") => (Some(KeyFamily::Ecdsa), false),
            Some("ed25519") => (Some(KeyFamily::Ed25519), false),
            _ => return Err(ConstraintError(text.to_owned())),
        };
        let hash = |part| match part {
            "sha256" => Some(Hash::Sha256),
            "sha384" => Some(Hash::Sha384),
            "sha512" => Some(Hash::Sha512),
            _ => None,
        };
        let hashes: Option<Vec<Hash>> = parts.map(hash).collect();
        let hashes = hashes
            .filter(|h| h.is_empty() || family != Some(KeyFamily::Ed25519))
            .ok_or_else(|| ConstraintError(text.to_owned()))?;
        Ok(Self {
            family,
            pss,
            hashes,
        })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.family, self.pss) {
            (None, _) => "pubkey",
            (Some(KeyFamily::Rsa), false) => "rsa",
            (Some(KeyFamily::Rsa), true) => "rsa/pss",
            (Some(KeyFamily::Ecdsa), _) => "ecdsa",
            (Some(KeyFamily::Ed25519), _) => "ed25519",
        })?;
        self.hashes.iter().try_for_each(|hash| write!(f, "-{hash}"))
    }
}
