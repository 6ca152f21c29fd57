//! Private keys: read from files, and used.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA256_ASN1_SIGNING, ECDSA_P521_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
        KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256,
        RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    },
};
use evergate_ike::{
    config::{Policy, PrivateKey},
    secret::Secret,
    signature::{Hash, KeyKind, Scheme},
};
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls_pki_types::pem::{PemObject, SectionKind};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use zeroize::Zeroizing;

/// Keys that are kept ready for use.
const MAX_READY: usize = 256;

/// Why a private key cannot be read or used. Nothing of the key is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// No such key is configured.
    #[error("there is no such key")]
    Unknown,
    /// The file holds no key that we know.
    #[error("it holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1)")]
    NoKey,
    /// The old encryption of OpenSSL, which is weak.
    #[error("it is encrypted in the old way of OpenSSL; convert it with \"openssl pkcs8 -topk8\"")]
    OldEncryption,
    /// It is encrypted, and there is no passphrase.
    #[error("it is encrypted, and no passphrase is given")]
    NoPassphrase,
    /// It does not open.
    #[error("it cannot be decrypted: the passphrase is wrong, or the encryption is not supported")]
    Decryption,
    /// It is not of a kind that we can use.
    #[error(
        "it is no RSA key of 2048 to 8192 bits, ECDSA key on P-256, P-384 or P-521, or Ed25519 key"
    )]
    Kind,
    /// The key cannot make this signature.
    #[error("it does not sign in this way")]
    Scheme,
}

/// Reads a private key, decrypting it where necessary.
///
/// # Errors
/// If there is none that can be used.
pub(crate) fn read_private_key(
    name: &str,
    file: &[u8],
    passphrase: Option<&Secret>,
) -> Result<PrivateKey, KeyError> {
    let text = std::str::from_utf8(file).map_err(|_| KeyError::NoKey)?;
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(KeyError::OldEncryption);
    }
    if let Some(at) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        let passphrase = passphrase.ok_or(KeyError::NoPassphrase)?;
        let (_, document) = SecretDocument::from_pem(&text[at..]).map_err(|_| KeyError::NoKey)?;
        let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
            .map_err(|_| KeyError::NoKey)?;
        let plain = encrypted
            .decrypt(passphrase.expose())
            .map_err(|_| KeyError::Decryption)?;
        return of_pkcs8(name, plain.as_bytes());
    }
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(file) {
        let Ok((kind, der)) = section else {
            break;
        };
        let der = Zeroizing::new(der);
        match kind {
            SectionKind::PrivateKey => return of_pkcs8(name, &der),
            SectionKind::RsaPrivateKey => {
                let key = RsaKeyPair::from_der(&der).map_err(|_| KeyError::Kind)?;
                return of_rsa(name, &key);
            }
            SectionKind::EcPrivateKey => {
                let read = |algorithm| EcdsaKeyPair::from_private_key_der(algorithm, &der).ok();
                return of_ec(name, read);
            }
            _ => {}
        }
    }
    Err(KeyError::NoKey)
}

fn of_pkcs8(name: &str, der: &[u8]) -> Result<PrivateKey, KeyError> {
    if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
        return of_rsa(name, &key);
    }
    if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| KeyError::Kind)?;
        let private: Pkcs8V1Der<'_> = key.as_der().map_err(|_| KeyError::Kind)?;
        return Ok(made(
            name,
            KeyKind::Ed25519,
            private.as_ref(),
            public.as_ref(),
        ));
    }
    of_ec(name, |algorithm| {
        EcdsaKeyPair::from_pkcs8(algorithm, der).ok()
    })
}

fn of_rsa(name: &str, key: &RsaKeyPair) -> Result<PrivateKey, KeyError> {
    let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| KeyError::Kind)?;
    let private: Pkcs8V1Der<'_> = key.as_der().map_err(|_| KeyError::Kind)?;
    Ok(made(name, KeyKind::Rsa, private.as_ref(), public.as_ref()))
}

fn of_ec(
    name: &str,
    read: impl Fn(&'static EcdsaSigningAlgorithm) -> Option<EcdsaKeyPair>,
) -> Result<PrivateKey, KeyError> {
    for (kind, hash) in [
        (KeyKind::P256, Hash::Sha256),
        (KeyKind::P384, Hash::Sha384),
        (KeyKind::P521, Hash::Sha512),
    ] {
        let Some(key) = ec_algorithm(kind, hash).and_then(&read) else {
            continue;
        };
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| KeyError::Kind)?;
        let private = key.to_pkcs8v1().map_err(|_| KeyError::Kind)?;
        return Ok(made(name, kind, private.as_ref(), public.as_ref()));
    }
    Err(KeyError::Kind)
}

fn made(name: &str, kind: KeyKind, pkcs8: &[u8], spki: &[u8]) -> PrivateKey {
    PrivateKey {
        name: name.to_owned(),
        kind,
        pkcs8: Secret::new(pkcs8.to_vec()),
        spki: spki.to_vec(),
    }
}

fn ec_algorithm(kind: KeyKind, hash: Hash) -> Option<&'static EcdsaSigningAlgorithm> {
    match (kind, hash) {
        (KeyKind::P256, Hash::Sha256) => Some(&ECDSA_P256_SHA256_ASN1_SIGNING),
        (KeyKind::P384, Hash::Sha384) => Some(&ECDSA_P384_SHA384_ASN1_SIGNING),
        (KeyKind::P521, Hash::Sha256) => Some(&ECDSA_P521_SHA256_ASN1_SIGNING),
        (KeyKind::P521, Hash::Sha384) => Some(&ECDSA_P521_SHA384_ASN1_SIGNING),
        (KeyKind::P521, Hash::Sha512) => Some(&ECDSA_P521_SHA512_ASN1_SIGNING),
        _ => None,
    }
}

fn rsa_encoding(scheme: Scheme) -> Option<&'static dyn RsaEncoding> {
    match scheme {
        Scheme::RsaPkcs1(Hash::Sha256) => Some(&RSA_PKCS1_SHA256),
        Scheme::RsaPkcs1(Hash::Sha384) => Some(&RSA_PKCS1_SHA384),
        Scheme::RsaPkcs1(Hash::Sha512) => Some(&RSA_PKCS1_SHA512),
        Scheme::RsaPss(Hash::Sha256) => Some(&RSA_PSS_SHA256),
        Scheme::RsaPss(Hash::Sha384) => Some(&RSA_PSS_SHA384),
        Scheme::RsaPss(Hash::Sha512) => Some(&RSA_PSS_SHA512),
        _ => None,
    }
}

/// A key that is ready to sign.
enum Signer {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    fn new(key: &PrivateKey, scheme: Scheme) -> Result<Self, KeyError> {
        let pkcs8 = key.pkcs8.expose();
        match (key.kind, scheme) {
            (KeyKind::Rsa, _) => {
                let encoding = rsa_encoding(scheme).ok_or(KeyError::Scheme)?;
                let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::Kind)?;
                Ok(Self::Rsa(pair, encoding))
            }
            (KeyKind::Ed25519, Scheme::Ed25519) => {
                let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8);
                pair.map(Self::Ed25519).map_err(|_| KeyError::Kind)
            }
            (kind, Scheme::Ecdsa(hash)) => {
                let algorithm = ec_algorithm(kind, hash).ok_or(KeyError::Scheme)?;
                let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8);
                pair.map(Self::Ec).map_err(|_| KeyError::Kind)
            }
            _ => Err(KeyError::Scheme),
        }
    }

    fn sign(&self, octets: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, octets, &mut signature)
                    .map_err(|_| KeyError::Scheme)?;
                Ok(signature)
            }
            Self::Ec(pair) => {
                let signature = pair.sign(&random, octets).map_err(|_| KeyError::Scheme)?;
                Ok(signature.as_ref().to_vec())
            }
            Self::Ed25519(pair) => Ok(pair.sign(octets).as_ref().to_vec()),
        }
    }
}

/// Ready keys by their public keys, which are no secrets, and what they sign with.
type Ready = HashMap<(Vec<u8>, Scheme), Arc<Signer>>;

/// Keys that were used before, parsed and checked: that costs more than a signature.
#[derive(Default)]
pub(crate) struct KeyStore(Mutex<Ready>);

impl KeyStore {
    /// Signs with the private key that has this name.
    ///
    /// # Errors
    /// If there is none, or it cannot do this.
    pub(crate) fn sign_by_name(
        &self,
        policy: &Policy,
        name: &str,
        scheme: Scheme,
        octets: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let key = policy.private_key(name).ok_or(KeyError::Unknown)?;
        self.sign(key, scheme, octets)
    }

    /// Signs.
    ///
    /// # Errors
    /// If the key cannot do this.
    pub(super) fn sign(
        &self,
        key: &PrivateKey,
        scheme: Scheme,
        octets: &[u8],
    ) -> Result<Vec<u8>, KeyError> {
        let id = (key.spki.clone(), scheme);
        let ready = self.lock().get(&id).cloned();
        let signer = match ready {
            Some(signer) => signer,
            None => {
                let signer = Arc::new(Signer::new(key, scheme)?);
                let mut ready = self.lock();
                if ready.len() >= MAX_READY {
                    ready.clear();
                }
                ready.insert(id, Arc::clone(&signer));
                signer
            }
        };
        signer.sign(octets)
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
