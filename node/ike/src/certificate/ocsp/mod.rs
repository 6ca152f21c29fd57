//! Asking whether a certificate was revoked (OCSP, RFC 6960): what is sent, and whether an answer can be relied on. Sending is not done here.

mod asn1;
#[cfg(test)]
mod tests;

use super::Certificate;
use crate::{env::UnixMillis, signature::Scheme};
use asn1::{
    BASIC, BasicResponse, CertId, CertStatus, NONCE, OcspRequest, OcspResponse, Request,
    ResponderId, ResponseData, ResponseStatus, SingleResponse, TbsRequest,
};
use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    anchor_from_trusted_cert,
};
use x509_cert::{
    der::{
        Any, Decode, Encode,
        asn1::{GeneralizedTime, ObjectIdentifier, OctetString},
    },
    ext::Extension,
    serial_number::SerialNumber,
    spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned},
};

/// Longest answer in bytes: one about a single certificate, with the certificate of its responder, has about two thousand.
pub const MAX_ANSWER: usize = 65_536;
/// Length of nonces (RFC 9654 §2.1).
pub const NONCE_LEN: usize = 32;
/// Certificates that are looked at in an answer: that of its responder.
const MAX_RESPONDERS: usize = 4;
/// So much may the clock of a responder be ahead of ours.
const SKEW: Duration = Duration::from_secs(300);
/// An answer that names no time for the next one, and returns no nonce, is taken for so long.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// Why an answer says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OcspError {
    /// It is no OCSP response, or not of the basic type.
    #[error("it is no basic OCSP response: {0}")]
    Malformed(String),
    /// The responder does not answer.
    #[error("the responder refuses: {0}")]
    Refused(&'static str),
    /// It is about other certificates.
    #[error("it is not about that certificate")]
    Other,
    /// The responder does not know the certificate.
    #[error("the responder does not know the certificate")]
    Unknown,
    /// It answers another request.
    #[error("its nonce is another")]
    Nonce,
    /// It is not for now.
    #[error("it is too old, or not valid yet")]
    Time,
    /// It is signed by nobody who may.
    #[error("it is signed neither by the issuer nor by a responder of the issuer's")]
    Responder,
    /// The signature is wrong.
    #[error("its signature is not valid")]
    Signature,
}

/// What names a certificate in OCSP: hashes of its issuer's name and key, and its serial number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertificateId {
    issuer_name: Vec<u8>,
    issuer_key: Vec<u8>,
    serial: Vec<u8>,
}

impl CertificateId {
    /// The name of a certificate of this issuer.
    pub fn of(certificate: &Certificate, issuer: &Certificate) -> Option<Self> {
        Some(Self {
            issuer_name: sha1(&issuer.subject),
            issuer_key: key_hash(&issuer.spki)?,
            serial: certificate.serial.clone(),
        })
    }

    fn is(&self, id: &CertId) -> bool {
        let serial = id.serial.as_bytes();
        let first = serial.iter().position(|b| *b != 0).unwrap_or(serial.len());
        id.hash.oid == SHA1
            && id.issuer_name.as_bytes() == self.issuer_name
            && id.issuer_key.as_bytes() == self.issuer_key
            && serial[first..] == self.serial
    }
}

const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// SHA-1 as all responders know it (RFC 5019 §2.1.1): it makes names, and protects nothing.
fn sha1(data: &[u8]) -> Vec<u8> {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data);
    hash.as_ref().to_vec()
}

/// The hash of the key in a SubjectPublicKeyInfo, without what is around it (RFC 6960 §4.1.1).
fn key_hash(spki: &[u8]) -> Option<Vec<u8>> {
    let info = SubjectPublicKeyInfoOwned::from_der(spki).ok()?;
    Some(sha1(info.subject_public_key.raw_bytes()))
}

/// What is to be asked about a certificate, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// What names the certificate.
    pub id: CertificateId,
    /// Where responders are (`http://`), in the order in which they are asked.
    pub uris: Vec<String>,
    issuer: Certificate,
}

/// What a responder says of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What names the certificate.
    pub id: CertificateId,
    /// Whether it was revoked; else it is good.
    pub revoked: bool,
    /// When there will be news, or the answer has to be asked for again.
    pub until: UnixMillis,
}

impl Answer {
    /// Whether it is the newest one at a time.
    pub(super) fn is_current(&self, now: UnixMillis) -> bool {
        now <= self.until
    }
}

impl Inquiry {
    /// About a certificate of this issuer.
    pub fn new(certificate: &Certificate, issuer: &Certificate, uris: Vec<String>) -> Option<Self> {
        Some(Self {
            id: CertificateId::of(certificate, issuer)?,
            uris,
            issuer: issuer.clone(),
        })
    }

    /// What is sent, with a nonce that nobody can foresee; `None` for a serial number that no certificate may have.
    pub fn request(&self, nonce: &[u8; NONCE_LEN]) -> Option<Vec<u8>> {
        let octets = |bytes: &[u8]| OctetString::new(bytes).ok();
        let id = CertId {
            hash: AlgorithmIdentifierOwned {
                oid: SHA1,
                parameters: Some(Any::null()),
            },
            issuer_name: octets(&self.id.issuer_name)?,
            issuer_key: octets(&self.id.issuer_key)?,
            serial: SerialNumber::new(&self.id.serial).ok()?,
        };
        let nonce = Extension {
            extn_id: NONCE,
            critical: false,
            extn_value: octets(&octets(nonce)?.to_der().ok()?)?,
        };
        let request = OcspRequest {
            tbs: TbsRequest {
                requests: vec![Request { id }],
                extensions: Some(vec![nonce]),
            },
        };
        request.to_der().ok()
    }

    /// Reads the answer to a request with this nonce (RFC 6960 §3.2).
    ///
    /// # Errors
    /// Why it cannot be relied on.
    pub fn read(
        &self,
        response: &[u8],
        nonce: &[u8; NONCE_LEN],
        now: UnixMillis,
    ) -> Result<Answer, OcspError> {
        let basic = basic(response)?;
        let tbs = basic.tbs.to_der().map_err(bad)?;
        let data = ResponseData::from_der(&tbs).map_err(bad)?;
        let single = data.responses.iter().find(|r| self.id.is(&r.id));
        let single = single.ok_or(OcspError::Other)?;
        self.check_signature(&basic, &tbs, &data.responder, now)?;
        let fresh = returned_nonce(&data)?;
        // Responders that answer from a store return none (RFC 6960 §4.4.1).
        if fresh.as_ref().is_some_and(|n| n.as_bytes() != nonce) {
            return Err(OcspError::Nonce);
        }
        let until = valid_until(single, now).ok_or(OcspError::Time)?;
        let revoked = match single.status {
            CertStatus::Good(_) => false,
            CertStatus::Revoked(_) => true,
            CertStatus::Unknown(_) => return Err(OcspError::Unknown),
        };
        Ok(Answer {
            id: self.id.clone(),
            revoked,
            until,
        })
    }

    /// The issuer signed it, or a responder to which the issuer gave that right (RFC 6960 §4.2.2.2).
    fn check_signature(
        &self,
        basic: &BasicResponse,
        tbs: &[u8],
        responder: &ResponderId,
        now: UnixMillis,
    ) -> Result<(), OcspError> {
        let algorithm = basic.algorithm.to_der().map_err(bad)?;
        let scheme = Scheme::parse(&algorithm).ok_or(OcspError::Signature)?;
        let signature = basic.signature.as_bytes().ok_or(OcspError::Signature)?;
        let signs = |spki: &[u8]| match scheme.verify(spki, tbs, signature) {
            true => Ok(()),
            false => Err(OcspError::Signature),
        };
        if names(responder, &self.issuer) {
            return signs(&self.issuer.spki);
        }
        let certs = basic.certs.iter().flatten().take(MAX_RESPONDERS);
        let certs = certs.filter_map(|c| Certificate::parse(&c.to_der().ok()?).ok());
        let mut delegates = certs.filter(|c| names(responder, c));
        let delegate = delegates.find(|c| self.delegated(c, now));
        signs(&delegate.ok_or(OcspError::Responder)?.spki)
    }

    /// Whether the issuer itself issued this certificate, for signing answers, and it is valid.
    fn delegated(&self, responder: &Certificate, now: UnixMillis) -> bool {
        let issuer = CertificateDer::from(&self.issuer.der[..]);
        let der = CertificateDer::from(&responder.der[..]);
        let (Ok(anchor), Ok(certificate)) = (
            anchor_from_trusted_cert(&issuer),
            EndEntityCert::try_from(&der),
        ) else {
            return false;
        };
        let time = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        let (anchors, usage) = ([anchor], OcspSigning);
        // Its own revocation is not looked at: its issuer keeps such certificates short-lived (RFC 6960 §4.2.2.2.1).
        responder.may_sign
            && certificate
                .verify_for_usage(
                    ALL_VERIFICATION_ALGS,
                    &anchors,
                    &[],
                    time,
                    usage,
                    None,
                    None,
                )
                .is_ok()
    }
}

/// A responder's certificate has to name the purpose (RFC 6960 §4.2.2.2); "any" is not enough.
struct OcspSigning;

impl ExtendedKeyUsageValidator for OcspSigning {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        const OCSP_SIGNING: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 9];
        for purpose in purposes {
            if purpose?.to_decoded_oid() == OCSP_SIGNING {
                return Ok(());
            }
        }
        Err(Error::EmptyEkuExtension)
    }
}

fn bad(error: impl std::fmt::Display) -> OcspError {
    OcspError::Malformed(error.to_string())
}

fn basic(response: &[u8]) -> Result<BasicResponse, OcspError> {
    if response.len() > MAX_ANSWER {
        return Err(bad("it is too long"));
    }
    let response = OcspResponse::from_der(response).map_err(bad)?;
    let refused = match response.status {
        ResponseStatus::Successful => None,
        ResponseStatus::MalformedRequest => Some("it finds the request malformed"),
        ResponseStatus::InternalError => Some("internal error"),
        ResponseStatus::TryLater => Some("try later"),
        ResponseStatus::SigRequired => Some("it wants signed requests"),
        ResponseStatus::Unauthorized => Some("unauthorized"),
    };
    if let Some(why) = refused {
        return Err(OcspError::Refused(why));
    }
    let bytes = response.bytes.filter(|b| b.kind == BASIC);
    let bytes = bytes.ok_or_else(|| bad("another type"))?;
    BasicResponse::from_der(bytes.response.as_bytes()).map_err(bad)
}

/// Whether a responder that calls itself so has this certificate.
fn names(responder: &ResponderId, certificate: &Certificate) -> bool {
    match responder {
        ResponderId::ByName(name) => name.to_der().is_ok_and(|n| n == certificate.subject),
        ResponderId::ByKey(hash) => {
            key_hash(&certificate.spki).is_some_and(|own| own == hash.as_bytes())
        }
    }
}

fn returned_nonce(data: &ResponseData) -> Result<Option<OctetString>, OcspError> {
    let mut extensions = data.extensions.iter().flatten();
    let nonce = extensions.find(|e| e.extn_id == NONCE);
    nonce
        .map(|e| OctetString::from_der(e.extn_value.as_bytes()))
        .transpose()
        .map_err(bad)
}

/// How long an answer counts; `None` if it does not now.
fn valid_until(single: &SingleResponse, now: UnixMillis) -> Option<UnixMillis> {
    let this = millis(&single.this_update);
    let next = single.next_update.as_ref().map(millis);
    let until = next.unwrap_or(this + MAX_AGE);
    (this <= now + SKEW && now <= until + SKEW).then_some(until)
}

fn millis(time: &GeneralizedTime) -> UnixMillis {
    let millis = time.to_unix_duration().as_millis();
    UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
}
