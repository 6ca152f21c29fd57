//! Key exchange methods: MODP (RFC 3526), ECP (RFC 5903), Curve25519 and Curve448 (RFC 8031), ML-KEM.

use super::{
    mlkem::{self, MlKem},
    modp::Modp,
};
use crate::{env::Entropy, secret::Secret, wire::group as iana};
use aws_lc_rs::agreement::{
    self, Algorithm, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey, X25519,
};
use crrl::x448::{x448, x448_base};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What an uncompressed point begins with everywhere but in IKE (RFC 5903 §7).
const UNCOMPRESSED: u8 = 0x04;

/// Draws of an ECP scalar before we call the source broken: each fails with probability 1/2 at most.
const SCALAR_DRAWS: usize = 64;

/// A key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Group {
    /// 2048-bit MODP, group 14.
    Modp2048,
    /// 3072-bit MODP, group 15.
    Modp3072,
    /// 4096-bit MODP, group 16.
    Modp4096,
    /// 6144-bit MODP, group 17.
    Modp6144,
    /// 8192-bit MODP, group 18.
    Modp8192,
    /// 256-bit random ECP, group 19.
    Ecp256,
    /// 384-bit random ECP, group 20.
    Ecp384,
    /// 521-bit random ECP, group 21.
    Ecp521,
    /// Curve25519, group 31.
    Curve25519,
    /// Curve448, group 32.
    Curve448,
    /// ML-KEM-512, method 35.
    MlKem512,
    /// ML-KEM-768, method 36.
    MlKem768,
    /// ML-KEM-1024, method 37.
    MlKem1024,
}

/// How a method is computed.
enum Math {
    Modp(Modp),
    /// Points on the wire have no leading byte.
    Ecp(&'static Algorithm),
    X25519,
    X448,
    Kem(MlKem),
}

/// The peer's public value is not acceptable: wrong length, not on the curve, it leads to an
/// all-zero shared secret (RFC 6989, RFC 8031 §5), or it is no encapsulation key (FIPS 203 §7.2).
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
    /// All methods.
    pub const ALL: [Self; 13] = [
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Curve25519,
        Self::Curve448,
        Self::MlKem512,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// The IANA number.
    pub fn id(self) -> u16 {
        match self {
            Self::Modp2048 => iana::MODP_2048,
            Self::Modp3072 => iana::MODP_3072,
            Self::Modp4096 => iana::MODP_4096,
            Self::Modp6144 => iana::MODP_6144,
            Self::Modp8192 => iana::MODP_8192,
            Self::Ecp256 => iana::ECP_256,
            Self::Ecp384 => iana::ECP_384,
            Self::Ecp521 => iana::ECP_521,
            Self::Curve25519 => iana::CURVE25519,
            Self::Curve448 => iana::CURVE448,
            Self::MlKem512 => iana::ML_KEM_512,
            Self::MlKem768 => iana::ML_KEM_768,
            Self::MlKem1024 => iana::ML_KEM_1024,
        }
    }

    /// The group with this IANA number, if we know it.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.id() == id)
    }

    fn math(self) -> Math {
        match self {
            Self::Modp2048 => Math::Modp(Modp::Bits2048),
            Self::Modp3072 => Math::Modp(Modp::Bits3072),
            Self::Modp4096 => Math::Modp(Modp::Bits4096),
            Self::Modp6144 => Math::Modp(Modp::Bits6144),
            Self::Modp8192 => Math::Modp(Modp::Bits8192),
            Self::Ecp256 => Math::Ecp(&ECDH_P256),
            Self::Ecp384 => Math::Ecp(&ECDH_P384),
            Self::Ecp521 => Math::Ecp(&ECDH_P521),
            Self::Curve25519 => Math::X25519,
            Self::Curve448 => Math::X448,
            Self::MlKem512 => Math::Kem(MlKem::MlKem512),
            Self::MlKem768 => Math::Kem(MlKem::MlKem768),
            Self::MlKem1024 => Math::Kem(MlKem::MlKem1024),
        }
    }

    /// Length of the initiator's public value in a KE payload, in bytes.
    pub fn public_len(self) -> usize {
        match self {
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::Ecp521 => 132,
            Self::Curve25519 => 32,
            Self::Curve448 => 56,
            _ => match self.math() {
                Math::Modp(modp) => modp.len(),
                Math::Kem(kem) => kem.public_len(),
                Math::Ecp(_) | Math::X25519 | Math::X448 => unreachable!("named above"),
            },
        }
    }

    /// Length of the responder's public value in a KE payload, in bytes.
    pub fn answer_len(self) -> usize {
        match self.math() {
            Math::Kem(kem) => kem.ciphertext_len(),
            _ => self.public_len(),
        }
    }

    /// Length of a private value, in bytes.
    fn private_len(self) -> usize {
        match self.math() {
            Math::Modp(modp) => modp.exponent_len(),
            Math::Ecp(_) => self.public_len() / 2,
            Math::X25519 | Math::X448 => self.public_len(),
            Math::Kem(_) => mlkem::SEED_LEN,
        }
    }

    /// The responder's part: what goes into its KE payload, and the shared secret with the initiator, whose public value is `peer`.
    ///
    /// # Errors
    /// If the value is not acceptable for the group.
    pub fn answer(
        self,
        peer: &[u8],
        rng: &mut dyn Entropy,
    ) -> Result<(Vec<u8>, Secret), BadPublicValue> {
        if let Math::Kem(kem) = self.math() {
            let mut message = Zeroizing::new([0; mlkem::MESSAGE_LEN]);
            rng.fill(&mut *message);
            return kem.encapsulate(peer, &message).ok_or(BadPublicValue(self));
        }
        let pair = KeyPair::generate(self, rng);
        let shared = pair.agree(peer)?;
        Ok((pair.public, shared))
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
            if group == Group::Ecp521 {
                private[0] &= 1; // 521 bits in 66 bytes
            }
            if let Some(pair) = Self::from_private(group, &private) {
                return pair;
            }
        }
        panic!("the source of randomness yields no valid scalar");
    }

    /// The pair with this private value, if it is one of the group.
    fn from_private(group: Group, private: &[u8]) -> Option<Self> {
        let public = match group.math() {
            Math::Modp(modp) => modp.public(private)?,
            Math::Ecp(algorithm) => {
                let key = PrivateKey::from_private_key(algorithm, private).ok()?;
                key.compute_public_key().ok()?.as_ref().get(1..)?.to_vec()
            }
            Math::X25519 => {
                let key = PrivateKey::from_private_key(&X25519, private).ok()?;
                key.compute_public_key().ok()?.as_ref().to_vec()
            }
            Math::X448 => x448_base(private.try_into().ok()?).to_vec(),
            Math::Kem(kem) => kem.public(private)?,
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

    /// The shared secret with the responder, whose public value is `peer`.
    ///
    /// # Errors
    /// If the value is not acceptable for the group.
    pub fn agree(&self, peer: &[u8]) -> Result<Secret, BadPublicValue> {
        let bad = BadPublicValue(self.group);
        if peer.len() != self.group.answer_len() {
            return Err(bad);
        }
        let private = self.private.expose();
        match self.group.math() {
            Math::Modp(modp) => modp.agree(private, peer).ok_or(bad),
            Math::Ecp(algorithm) => {
                let key = PrivateKey::from_private_key(algorithm, private).map_err(|_| bad)?;
                let point = [&[UNCOMPRESSED], peer].concat();
                derive(&key, &point, bad)
            }
            Math::X25519 => {
                let key = PrivateKey::from_private_key(&X25519, private).map_err(|_| bad)?;
                derive(&key, peer, bad)
            }
            Math::X448 => {
                let peer = peer.try_into().map_err(|_| bad)?;
                let shared = Zeroizing::new(x448(peer, private.try_into().map_err(|_| bad)?));
                if shared.ct_eq(&[0; 56]).into() {
                    return Err(bad);
                }
                Ok(Secret::new(shared.to_vec()))
            }
            Math::Kem(kem) => kem.decapsulate(private, peer).ok_or(bad),
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
