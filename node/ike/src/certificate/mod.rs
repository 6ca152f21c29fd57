//! Certificates (RFC 5280) as IKE uses them (RFC 4945): what one says, whether a chain of them leads to an authority, and whether it is of whom it
//! should be.
//!
//! Everything here is a function of its arguments: certificates, time, what is known of revocations. Fetching is not done here.

mod crl;
mod names;
pub mod ocsp;
mod path;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verification;

pub use crl::Crl;
pub use path::Known;
pub use path::MAX_DEPTH;
pub(crate) use path::check_anchor;
pub(crate) use verification::encoding;
pub use verification::{Evidence, Sources, Verification, Verified};

use crate::{env::UnixMillis, identity::Identity, signature::KeyKind};
use aws_lc_rs::digest;
use x509_cert::{
    der::{Decode, Encode, asn1::ObjectIdentifier},
    ext::pkix::{
        AuthorityInfoAccessSyntax, BasicConstraints, CrlDistributionPoints, KeyUsage,
        SubjectKeyIdentifier,
        name::{DistributionPointName, GeneralName},
    },
};

/// Longest certificate in bytes: one with hundreds of names is shorter, and a peer can send some of them before it has authenticated.
pub const MAX_CERTIFICATE: usize = 16_384;
/// Certificates that are taken from one message: the peer's own and those between it and an authority.
pub const MAX_CERTIFICATES: usize = 8;
/// Longest raw public key in bytes: RSA with 8192 bits is shorter.
pub const MAX_RAW_KEY: usize = 2048;
/// URIs that are taken from one certificate, for each purpose.
const MAX_URIS: usize = 4;

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The peer sent none, and none is configured for it.
    #[error("there is none")]
    Missing,
    /// It was sent as hash and URL, which is never followed.
    #[error("it was sent as hash and URL, which is not followed")]
    HashAndUrl,
    /// There are more than we take.
    #[error("there are more than {MAX_CERTIFICATES}")]
    TooMany,
    /// One is longer than we take.
    #[error("it is longer than {MAX_CERTIFICATE} bytes")]
    TooLong,
    /// There is more than one raw public key, or one that is longer than we take.
    #[error("there is more than one raw public key, or it is longer than {MAX_RAW_KEY} bytes")]
    RawKey,
    /// It is no X.509 certificate in DER.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// The key cannot be used.
    #[error("its key is of a kind that is not supported")]
    Key,
    /// No configured authority issued it, or the chain is incomplete.
    #[error("no authority that is trusted here issued it, or a certificate between is missing")]
    UnknownIssuer,
    /// It is over.
    #[error("it, or one of its issuers, has expired")]
    Expired,
    /// It has not begun.
    #[error("it, or one of its issuers, is not valid yet")]
    NotYetValid,
    /// An issuer is no certification authority, or one that may not issue this.
    #[error("one of its issuers is no authority for it: {0}")]
    Issuer(String),
    /// The names that an issuer may certify do not contain it.
    #[error("the name constraints of an issuer do not allow it")]
    NameConstraints,
    /// It is for other purposes than IKE (RFC 4945 §5.1.3.12).
    #[error("its extended key usage names neither ipsecIKE nor anyExtendedKeyUsage")]
    ExtendedKeyUsage,
    /// Its key is not for signatures (RFC 4945 §5.1.3.2).
    #[error("its key usage does not include digital signatures")]
    KeyUsage,
    /// A signature in the chain is wrong, or by an algorithm that is not accepted.
    #[error("a signature in its chain is not valid")]
    Signature,
    /// It was revoked.
    #[error("it, or one of its issuers, was revoked")]
    Revoked,
    /// It is not known whether it was revoked, and the policy wants to know.
    #[error("it cannot be told whether it was revoked")]
    RevocationUnknown,
    /// The connection names the certificates that it accepts, and this is another.
    #[error("it is none of those that the connection names")]
    NotPinned,
    /// The connection names the public keys that it accepts, and the peer has another.
    #[error("its public key is none of those that the connection names")]
    NotNamedKey,
    /// It is of somebody else.
    #[error("it does not name {0}")]
    Identity(Identity),
    /// The AUTH payload is by a method or algorithm that the connection does not accept.
    #[error("the signature is by a scheme that the connection does not accept")]
    Scheme,
    /// The AUTH payload is not a signature with its key.
    #[error("the AUTH payload does not verify with its key")]
    Auth,
    /// Anything else that path validation refuses.
    #[error("its chain does not hold: {0}")]
    Chain(String),
}

/// What a certificate says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate itself.
    pub der: Vec<u8>,
    /// DER of its subject.
    pub subject: Vec<u8>,
    /// DER of its issuer.
    pub issuer: Vec<u8>,
    /// Its serial number, without leading zeros.
    pub serial: Vec<u8>,
    /// DER of its SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    /// The kind of its key.
    pub key: KeyKind,
    /// Its subject key identifier.
    pub key_id: Option<Vec<u8>>,
    /// The identities among its subject alternative names.
    pub names: Vec<Identity>,
    /// When it begins.
    pub not_before: UnixMillis,
    /// When it ends.
    pub not_after: UnixMillis,
    /// Whether it is of a certification authority.
    pub is_ca: bool,
    /// Whether its key may sign (RFC 4945 §5.1.3.2): digitalSignature or nonRepudiation, or no key usage at all.
    pub may_sign: bool,
    /// Whether its key may sign certificates.
    pub may_certify: bool,
    /// Where lists of revoked certificates are, by HTTP.
    pub crl_uris: Vec<String>,
    /// Where OCSP is answered, by HTTP.
    pub ocsp_uris: Vec<String>,
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// If it is too long, not an X.509 certificate in DER, or has a key of a kind that we do not know.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLong);
        }
        let parsed = x509_cert::Certificate::from_der(der).map_err(malformed)?;
        let tbs = parsed.tbs_certificate();
        let spki = tbs.subject_public_key_info().to_der().map_err(malformed)?;
        let constraints = tbs.get_extension::<BasicConstraints>().map_err(malformed)?;
        let usage = tbs.get_extension::<KeyUsage>().map_err(malformed)?;
        let usage = usage.map(|(_, usage)| usage);
        let key_id = tbs
            .get_extension::<SubjectKeyIdentifier>()
            .map_err(malformed)?;
        let serial = tbs.serial_number().as_bytes();
        let first = serial.iter().position(|b| *b != 0).unwrap_or(serial.len());
        Ok(Self {
            subject: tbs.subject().to_der().map_err(malformed)?,
            issuer: tbs.issuer().to_der().map_err(malformed)?,
            serial: serial[first..].to_vec(),
            key: KeyKind::of(&spki).ok_or(CertificateError::Key)?,
            spki,
            key_id: key_id.map(|(_, id)| id.0.as_bytes().to_vec()),
            names: names::of(tbs)?,
            not_before: millis(tbs.validity().not_before),
            not_after: millis(tbs.validity().not_after),
            is_ca: constraints.is_some_and(|(_, c)| c.ca),
            may_sign: usage
                .as_ref()
                .is_none_or(|u| u.digital_signature() || u.non_repudiation()),
            may_certify: usage.as_ref().is_none_or(KeyUsage::key_cert_sign),
            crl_uris: crl_uris(tbs)?,
            ocsp_uris: ocsp_uris(tbs)?,
            der: der.to_vec(),
        })
    }

    /// Its subject as an identity; `None` if it is empty (RFC 4945 §3.1.5).
    pub fn subject_id(&self) -> Option<Identity> {
        (self.subject.len() > 2).then(|| Identity::Dn(self.subject.clone()))
    }

    /// Whether its subject is also its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.subject == self.issuer
    }

    /// What CERTREQ payloads name an authority by: the SHA-1 hash of its public key (RFC 7296 §3.7).
    pub fn key_hash(&self) -> [u8; KEY_HASH_LEN] {
        key_hash(&self.spki)
    }
}

/// Length of the name of an authority in CERTREQ payloads (RFC 7296 §3.7).
pub const KEY_HASH_LEN: usize = 20;

/// The SHA-1 hash of a SubjectPublicKeyInfo: a name of it, no more.
fn key_hash(spki: &[u8]) -> [u8; KEY_HASH_LEN] {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, spki);
    let mut name = [0; KEY_HASH_LEN];
    name.copy_from_slice(hash.as_ref());
    name
}

fn malformed(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Malformed(error.to_string())
}

fn millis(time: x509_cert::time::Time) -> UnixMillis {
    let millis = time.to_unix_duration().as_millis();
    UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// The HTTP URIs of a list of names.
fn uris<'a>(names: impl Iterator<Item = &'a GeneralName>) -> impl Iterator<Item = String> {
    names.filter_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) if uri.as_str().starts_with("http://") => {
            Some(uri.as_str().to_owned())
        }
        _ => None,
    })
}

/// Where its CRLs are (RFC 5280 §4.2.1.13): whole ones, by its own issuer.
fn crl_uris(tbs: &x509_cert::TbsCertificate) -> Result<Vec<String>, CertificateError> {
    let Some((_, points)) = tbs
        .get_extension::<CrlDistributionPoints>()
        .map_err(malformed)?
    else {
        return Ok(Vec::new());
    };
    let whole = points
        .0
        .iter()
        .filter(|p| p.reasons.is_none() && p.crl_issuer.is_none());
    let names = whole.filter_map(|p| match &p.distribution_point {
        Some(DistributionPointName::FullName(names)) => Some(names.iter()),
        _ => None,
    });
    Ok(uris(names.flatten()).take(MAX_URIS).collect())
}

/// Where OCSP is answered (RFC 5280 §4.2.2.1).
fn ocsp_uris(tbs: &x509_cert::TbsCertificate) -> Result<Vec<String>, CertificateError> {
    const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
    let access = tbs
        .get_extension::<AuthorityInfoAccessSyntax>()
        .map_err(malformed)?;
    let Some((_, access)) = access else {
        return Ok(Vec::new());
    };
    let ocsp = access.0.iter().filter(|d| d.access_method == OCSP);
    Ok(uris(ocsp.map(|d| &d.access_location))
        .take(MAX_URIS)
        .collect())
}
