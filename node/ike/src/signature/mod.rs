//! Signatures in AUTH payloads: Digital Signature (RFC 7427, RFC 8420) and the older methods (RFC 7296 §3.8, RFC 4754).
//!
//! Verification is a function of its arguments and happens here. Signing needs randomness and a private key, so it is a question that leaves
//! the state machine ([`crate::sa::Question::Sign`]).

mod constraint;
mod ecdsa;
mod identifier;
#[cfg(test)]
mod tests;

pub use constraint::{Constraint, ConstraintError, KeyFamily};

use crate::wire::AuthMethod;
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use std::fmt;
use webpki::{RawPublicKeyEntity, aws_lc_rs as algorithms};
use x509_cert::{
    der::{Decode, asn1::ObjectIdentifier, referenced::OwnedToRef},
    spki::SubjectPublicKeyInfoOwned,
};

/// Longest signature: RSA with 8192 bits.
pub const MAX_SIGNATURE: usize = 1024;

/// Hash algorithms of SIGNATURE_HASH_ALGORITHMS (RFC 7427 §7, RFC 8420 §2). SHA-1 is not among them (RFC 8247 §3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Hash {
    /// SHA2-256.
    Sha256,
    /// SHA2-384.
    Sha384,
    /// SHA2-512.
    Sha512,
    /// None: what is signed goes in as it is (RFC 8420).
    Identity,
}

impl Hash {
    /// All that are announced.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha384, Self::Sha512, Self::Identity];

    /// Its IANA number.
    pub fn id(self) -> u16 {
        match self {
            Self::Sha256 => 2,
            Self::Sha384 => 3,
            Self::Sha512 => 4,
            Self::Identity => 5,
        }
    }

    /// The data of a SIGNATURE_HASH_ALGORITHMS notify that announces all (RFC 7427 §4).
    pub fn announcement() -> Vec<u8> {
        Self::ALL
            .iter()
            .flat_map(|h| h.id().to_be_bytes())
            .collect()
    }

    /// Those of an announcement that we know.
    pub fn announced(data: &[u8]) -> Vec<Self> {
        let ids = data
            .chunks_exact(2)
            .map(|c| u16::from_be_bytes([c[0], c[1]]));
        let known = |id| Self::ALL.into_iter().find(|h| h.id() == id);
        let mut hashes: Vec<Self> = ids.filter_map(known).collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Identity => "identity",
        })
    }
}

/// What a public key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA on the curve P-256.
    P256,
    /// ECDSA on the curve P-384.
    P384,
    /// ECDSA on the curve P-521.
    P521,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    /// The kind of a key, given its SubjectPublicKeyInfo; `None` for kinds that cannot be used.
    pub fn of(spki: &[u8]) -> Option<Self> {
        const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
        const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
        const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
        const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
        const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
        const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
        let info = SubjectPublicKeyInfoOwned::from_der(spki).ok()?;
        let info = info.owned_to_ref();
        match info.algorithm.oid {
            RSA => Some(Self::Rsa),
            ED25519 => Some(Self::Ed25519),
            EC => match info.algorithm.parameters_oid().ok()? {
                P256 => Some(Self::P256),
                P384 => Some(Self::P384),
                P521 => Some(Self::P521),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa => "RSA",
            Self::P256 => "ECDSA P-256",
            Self::P384 => "ECDSA P-384",
            Self::P521 => "ECDSA P-521",
            Self::Ed25519 => "Ed25519",
        })
    }
}

/// A signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1(Hash),
    /// RSASSA-PSS: MGF1 with the same hash, a salt as long as its output.
    RsaPss(Hash),
    /// ECDSA on any curve.
    Ecdsa(Hash),
    /// Ed25519.
    Ed25519,
}

impl Scheme {
    /// The scheme of an AlgorithmIdentifier in DER; `None` if it is none of these.
    pub(crate) fn parse(identifier: &[u8]) -> Option<Self> {
        identifier::parse(identifier)
    }

    /// Its AlgorithmIdentifier in DER.
    #[cfg(test)]
    pub(crate) fn identifier(self) -> Vec<u8> {
        identifier::of(self)
    }

    /// Its hash.
    pub fn hash(self) -> Hash {
        match self {
            Self::RsaPkcs1(hash) | Self::RsaPss(hash) | Self::Ecdsa(hash) => hash,
            Self::Ed25519 => Hash::Identity,
        }
    }

    /// Whether keys of this kind sign with it.
    pub fn fits(self, key: KeyKind) -> bool {
        match self {
            Self::RsaPkcs1(_) | Self::RsaPss(_) => key == KeyKind::Rsa,
            Self::Ecdsa(_) => matches!(key, KeyKind::P256 | KeyKind::P384 | KeyKind::P521),
            Self::Ed25519 => key == KeyKind::Ed25519,
        }
    }

    /// The verification algorithm for keys of this kind.
    fn algorithm(self, key: KeyKind) -> Option<&'static dyn SignatureVerificationAlgorithm> {
        use Hash::{Sha256, Sha384, Sha512};
        Some(match (self, key) {
            (Self::RsaPkcs1(Sha256), KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA256,
            (Self::RsaPkcs1(Sha384), KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA384,
            (Self::RsaPkcs1(Sha512), KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA512,
            (Self::RsaPss(Sha256), KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
            (Self::RsaPss(Sha384), KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
            (Self::RsaPss(Sha512), KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
            (Self::Ecdsa(Sha256), KeyKind::P256) => algorithms::ECDSA_P256_SHA256,
            (Self::Ecdsa(Sha384), KeyKind::P256) => algorithms::ECDSA_P256_SHA384,
            (Self::Ecdsa(Sha512), KeyKind::P256) => algorithms::ECDSA_P256_SHA512,
            (Self::Ecdsa(Sha256), KeyKind::P384) => algorithms::ECDSA_P384_SHA256,
            (Self::Ecdsa(Sha384), KeyKind::P384) => algorithms::ECDSA_P384_SHA384,
            (Self::Ecdsa(Sha512), KeyKind::P384) => algorithms::ECDSA_P384_SHA512,
            (Self::Ecdsa(Sha256), KeyKind::P521) => algorithms::ECDSA_P521_SHA256,
            (Self::Ecdsa(Sha384), KeyKind::P521) => algorithms::ECDSA_P521_SHA384,
            (Self::Ecdsa(Sha512), KeyKind::P521) => algorithms::ECDSA_P521_SHA512,
            (Self::Ed25519, KeyKind::Ed25519) => algorithms::ED25519,
            _ => return None,
        })
    }

    /// Whether `signature` over `message` is of the key in this SubjectPublicKeyInfo.
    pub fn verify(self, spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let spki = SubjectPublicKeyInfoDer::from(spki);
        let Some(algorithm) = KeyKind::of(&spki).and_then(|key| self.algorithm(key)) else {
            return false;
        };
        RawPublicKeyEntity::try_from(&spki)
            .is_ok_and(|key| key.verify_signature(algorithm, message, signature).is_ok())
    }

    /// Those with which a key of this kind can sign for us, the best first.
    fn of_key(key: KeyKind, pss: bool) -> Vec<Self> {
        use Hash::{Sha256, Sha384, Sha512};
        let rsa = |hash| {
            if pss {
                Self::RsaPss(hash)
            } else {
                Self::RsaPkcs1(hash)
            }
        };
        match key {
            KeyKind::Rsa => vec![rsa(Sha256), rsa(Sha384), rsa(Sha512)],
            KeyKind::P256 => vec![Self::Ecdsa(Sha256)],
            KeyKind::P384 => vec![Self::Ecdsa(Sha384)],
            KeyKind::P521 => vec![
                Self::Ecdsa(Sha512),
                Self::Ecdsa(Sha384),
                Self::Ecdsa(Sha256),
            ],
            KeyKind::Ed25519 => vec![Self::Ed25519],
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPkcs1(hash) => write!(f, "rsa-{hash}"),
            Self::RsaPss(hash) => write!(f, "rsa/pss-{hash}"),
            Self::Ecdsa(hash) => write!(f, "ecdsa-{hash}"),
            Self::Ed25519 => f.write_str("ed25519"),
        }
    }
}

/// How we sign: the authentication method of the AUTH payload, and the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The method.
    pub method: AuthMethod,
    /// The algorithm.
    pub scheme: Scheme,
}

impl Choice {
    /// How a key of this kind signs for a peer that announced these hashes, if it did (RFC 7427 §4). To one that did not, the older methods are
    /// used: RSA with SHA2-256 (RFC 7296 §3.8 leaves the hash to the signer), and ECDSA with the curve's own hash (RFC 4754).
    pub fn make(key: KeyKind, peer: Option<&[Hash]>, constraint: &Constraint) -> Option<Self> {
        let schemes = Scheme::of_key(key, constraint.pss());
        let mut allowed = schemes.into_iter().filter(|s| constraint.allows(*s));
        match peer {
            Some(hashes) => allowed
                .find(|s| hashes.contains(&s.hash()))
                .map(|scheme| Self {
                    method: AuthMethod::SIGNATURE,
                    scheme,
                }),
            None => allowed.find_map(|scheme| {
                Some(Self {
                    method: old_method(key, scheme)?,
                    scheme,
                })
            }),
        }
    }

    /// The data of the AUTH payload with this signature (in ASN.1 form if it is of ECDSA).
    pub fn auth_data(self, key: KeyKind, signature: &[u8]) -> Option<Vec<u8>> {
        match self.method {
            AuthMethod::SIGNATURE => {
                let identifier = identifier::of(self.scheme);
                let mut data = vec![u8::try_from(identifier.len()).ok()?];
                data.extend(identifier);
                data.extend(signature);
                Some(data)
            }
            AuthMethod::RSA => Some(signature.to_vec()),
            _ => ecdsa::to_fixed(signature, ecdsa::field_len(key)?),
        }
    }
}

/// The older method for this key and scheme.
fn old_method(key: KeyKind, scheme: Scheme) -> Option<AuthMethod> {
    match (key, scheme) {
        (KeyKind::Rsa, Scheme::RsaPkcs1(_)) => Some(AuthMethod::RSA),
        (KeyKind::P256, Scheme::Ecdsa(Hash::Sha256)) => Some(AuthMethod::ECDSA_256),
        (KeyKind::P384, Scheme::Ecdsa(Hash::Sha384)) => Some(AuthMethod::ECDSA_384),
        (KeyKind::P521, Scheme::Ecdsa(Hash::Sha512)) => Some(AuthMethod::ECDSA_521),
        _ => None,
    }
}

/// A signature as a peer sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    schemes: Vec<Scheme>,
    /// In ASN.1 form if it is of ECDSA.
    signature: Vec<u8>,
}

/// Why an AUTH payload is no signature that can be verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The AlgorithmIdentifier is missing, cut, or not one that we know.
    #[error("its signature algorithm is not one that is accepted")]
    Algorithm,
    /// The signature is longer than any, or not of its form.
    #[error("its signature is malformed")]
    Form,
}

impl Signed {
    /// Whether a method is one of signatures.
    pub fn is_method(method: AuthMethod) -> bool {
        matches!(
            method,
            AuthMethod::SIGNATURE
                | AuthMethod::RSA
                | AuthMethod::ECDSA_256
                | AuthMethod::ECDSA_384
                | AuthMethod::ECDSA_521
        )
    }

    /// Reads the data of an AUTH payload.
    ///
    /// # Errors
    /// If it is not of a known form.
    pub fn parse(method: AuthMethod, data: &[u8]) -> Result<Self, SignatureError> {
        let (schemes, signature) = match method {
            AuthMethod::SIGNATURE => {
                let (len, rest) = data.split_first().ok_or(SignatureError::Algorithm)?;
                let (identifier, signature) = rest
                    .split_at_checked(usize::from(*len))
                    .ok_or(SignatureError::Algorithm)?;
                let scheme = identifier::parse(identifier).ok_or(SignatureError::Algorithm)?;
                (vec![scheme], signature.to_vec())
            }
            // The hash is in the signature (RFC 7296 §3.8): whichever verifies it is the one.
            AuthMethod::RSA => {
                let all = [Hash::Sha256, Hash::Sha384, Hash::Sha512];
                (all.map(Scheme::RsaPkcs1).to_vec(), data.to_vec())
            }
            AuthMethod::ECDSA_256 => (
                vec![Scheme::Ecdsa(Hash::Sha256)],
                asn1(data, KeyKind::P256)?,
            ),
            AuthMethod::ECDSA_384 => (
                vec![Scheme::Ecdsa(Hash::Sha384)],
                asn1(data, KeyKind::P384)?,
            ),
            AuthMethod::ECDSA_521 => (
                vec![Scheme::Ecdsa(Hash::Sha512)],
                asn1(data, KeyKind::P521)?,
            ),
            _ => return Err(SignatureError::Algorithm),
        };
        if signature.is_empty() || signature.len() > MAX_SIGNATURE {
            return Err(SignatureError::Form);
        }
        Ok(Self { schemes, signature })
    }

    /// The scheme under which the signature over `message` is of this key; `None` if it is not, or not by a scheme that is allowed.
    pub fn verify(&self, spki: &[u8], message: &[u8], constraint: &Constraint) -> Option<Scheme> {
        let mut allowed = self.schemes.iter().filter(|s| constraint.allows(**s));
        allowed
            .find(|s| s.verify(spki, message, &self.signature))
            .copied()
    }

    /// Whether any of the schemes that it can be of is allowed.
    pub fn is_allowed(&self, constraint: &Constraint) -> bool {
        self.schemes.iter().any(|s| constraint.allows(*s))
    }
}

/// A signature of RFC 4754 §7 in ASN.1 form.
fn asn1(fixed: &[u8], key: KeyKind) -> Result<Vec<u8>, SignatureError> {
    let len = ecdsa::field_len(key).ok_or(SignatureError::Form)?;
    ecdsa::to_asn1(fixed, len).ok_or(SignatureError::Form)
}
