//! Key exchange methods: MODP (RFC 3526), ECP (RFC 5903), Curve25519 (RFC 8031).

use super::modp;
use crate::{env::Entropy, secret::Secret, wire::group as iana};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey, X25519};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// What an uncompressed point begins with everywhere but in IKE (RFC 5903 §7).
const UNCOMPRESSED: u8 = 0x04;

/// Draws of a P-256 scalar before we call the source broken: each fails with probability below 2^-31.
const SCALAR_DRAWS: usize = 16;

/// A key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Group {
    /// 2048-bit MODP, group 14.
    Modp2048,
    /// 256-bit random ECP, group 19.
    Ecp256,
    /// Curve25519, group 31.
    Curve25519,
}

/// The peer's public value is not acceptable: wrong length, not on the curve, or it leads to an
/// all-zero shared secret (RFC 6989, RFC 8031 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's public value is not a valid element of {0:?}")]
pub struct BadPublicValue(pub Group);

/// A key pair for one exchange. It can be stored, because a request that was committed before
/// it was sent must be completed by whoever takes over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    group: Group,
    private: Secret,
    public: Vec<u8>,
}

impl Group {
    /// The IANA number.
    pub fn id(self) -> u16 {
        match self {
            Self::Modp2048 => iana::MODP_2048,
            Self::Ecp256 => iana::ECP_256,
            Self::Curve25519 => iana::CURVE25519,
        }
    }

    /// The group with this IANA number, if we know it.
    pub fn from_id(id: u16) -> Option<Self> {
        [Self::Modp2048, Self::Ecp256, Self::Curve25519]
            .into_iter()
            .find(|group| group.id() == id)
    }

    /// Length of a public value in a KE payload, in bytes.
    pub fn public_len(self) -> usize {
        match self {
            Self::Modp2048 => modp::LEN,
            Self::Ecp256 => 64,
            Self::Curve25519 => 32,
        }
    }

    /// Length of a private value, in bytes.
    fn private_len(self) -> usize {
        match self {
            Self::Modp2048 => modp::EXPONENT_LEN,
            Self::Ecp256 | Self::Curve25519 => 32,
        }
    }
}

impl KeyPair {
    /// A fresh pair.
    ///
    /// # Panics
    /// If `rng` is so broken that it yields no valid scalar.
    pub fn generate(group: Group, rng: &mut dyn Entropy) -> Self {
        let mut private = Zeroizing::new(vec![0; group.private_len()]);
        for _ in 0..SCALAR_DRAWS {
            rng.fill(&mut private);
            if let Some(pair) = Self::from_private(group, &private) {
                return pair;
            }
        }
        panic!("the source of randomness yields no valid scalar");
    }

    /// The pair with this private value, if it is one of the group.
    fn from_private(group: Group, private: &[u8]) -> Option<Self> {
        let public = match group {
            Group::Modp2048 => modp::public(private)?,
            Group::Ecp256 => {
                let key = PrivateKey::from_private_key(&ECDH_P256, private).ok()?;
                key.compute_public_key().ok()?.as_ref().get(1..)?.to_vec()
            }
            Group::Curve25519 => {
                let key = PrivateKey::from_private_key(&X25519, private).ok()?;
                key.compute_public_key().ok()?.as_ref().to_vec()
            }
        };
        let private = Secret::new(private.to_vec());
        Some(Self {
            group,
            private,
            public,
        })
    }

    /// The group of the pair.
    pub fn group(&self) -> Group {
        self.group
    }

    /// The public value as it stands in a KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with `peer`'s public value.
    ///
    /// # Errors
    /// If the value is not acceptable for the group.
    pub fn agree(&self, peer: &[u8]) -> Result<Secret, BadPublicValue> {
        let bad = BadPublicValue(self.group);
        if peer.len() != self.group.public_len() {
            return Err(bad);
        }
        let private = self.private.expose();
        match self.group {
            Group::Modp2048 => modp::agree(private, peer).ok_or(bad),
            Group::Ecp256 => {
                let key = PrivateKey::from_private_key(&ECDH_P256, private).map_err(|_| bad)?;
                let point = [&[UNCOMPRESSED], peer].concat();
                derive(&key, &point, bad)
            }
            Group::Curve25519 => {
                let key = PrivateKey::from_private_key(&X25519, private).map_err(|_| bad)?;
                derive(&key, peer, bad)
            }
        }
    }
}

/// Checks the peer's value and agrees; an all-zero result is an error too.
fn derive(key: &PrivateKey, peer: &[u8], bad: BadPublicValue) -> Result<Secret, BadPublicValue> {
    let peer = UnparsedPublicKey::new(key.algorithm(), peer);
    agreement::agree(key, peer, bad, |secret| Ok(Secret::new(secret.to_vec())))
}

#[cfg(test)]
mod tests;
