//! Whether a peer is who it says it is: its certificate, and its signature with the key in there.
//!
//! This costs up to milliseconds, so it is not done within a step: it leaves as [`crate::sa::Question::Verify`], and whoever answers that runs
//! [`Verification::run`] where it holds nobody up.

use super::{
    Certificate, CertificateError, Crl, MAX_CERTIFICATES,
    path::{self, Judge},
};
use crate::{
    config::{Policy, RemoteAuth, RevocationPolicy},
    env::UnixMillis,
    identity::Identity,
    signature::Signed,
};

/// Lists of revoked certificates that are looked at for one peer.
const MAX_CRLS: usize = 16;

/// Encodings of CERT payloads (RFC 7296 §3.6).
pub(crate) mod encoding {
    /// X.509 certificate for signatures.
    pub(crate) const X509: u8 = 4;
    /// Hash and URL of one.
    pub(crate) const HASH_AND_URL: u8 = 12;
    /// Hash and URL of several.
    pub(crate) const HASH_AND_URL_BUNDLE: u8 = 13;
}

/// What a peer sent to show who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Its certificates, its own first, in DER.
    pub certificates: Vec<Vec<u8>>,
    /// Whether there were some that would have had to be fetched.
    pub hash_and_url: bool,
}

impl Evidence {
    /// From CERT payloads: their encodings and data. Those of encodings that we do not know are passed over (RFC 7296 §3.6).
    ///
    /// # Errors
    /// If there are more, or longer ones, than we take.
    pub fn collect<'a>(
        payloads: impl Iterator<Item = (u8, &'a [u8])>,
    ) -> Result<Self, CertificateError> {
        let mut evidence = Self::default();
        for (kind, data) in payloads {
            match kind {
                encoding::X509 => {
                    if evidence.certificates.len() == MAX_CERTIFICATES {
                        return Err(CertificateError::TooMany);
                    }
                    if data.len() > super::MAX_CERTIFICATE {
                        return Err(CertificateError::TooLong);
                    }
                    evidence.certificates.push(data.to_vec());
                }
                encoding::HASH_AND_URL | encoding::HASH_AND_URL_BUNDLE => {
                    evidence.hash_and_url = true;
                }
                _ => {}
            }
        }
        Ok(evidence)
    }
}

/// The question whether a peer is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Who it says it is.
    pub id: Identity,
    /// What it sent.
    pub evidence: Evidence,
    /// Its AUTH payload.
    pub signed: Signed,
    /// What the AUTH payload is over (RFC 7296 §2.15).
    pub octets: Vec<u8>,
    /// The connections that it may be for, in their order: the first that accepts it is the one.
    pub candidates: Vec<String>,
}

/// A peer is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The connection that accepts it.
    pub connection: String,
    /// Its certificate.
    pub certificate: Certificate,
}

impl Verification {
    /// Answers the question. `crls` are the lists of revoked certificates that are known; without them revocations do not count.
    ///
    /// # Errors
    /// Why no connection accepts the peer: what the first one objects to.
    pub fn run(
        &self,
        policy: &Policy,
        now: UnixMillis,
        crls: Option<&[&Crl]>,
    ) -> Result<Verified, CertificateError> {
        let mut first = None;
        for candidate in &self.candidates {
            let Some(connection) = policy.connection(candidate) else {
                continue;
            };
            match self.by(&connection.auth.remote, policy, now, crls) {
                Ok(certificate) => {
                    return Ok(Verified {
                        connection: candidate.clone(),
                        certificate,
                    });
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(CertificateError::Missing))
    }

    /// Whether a connection that wants this accepts the peer.
    fn by(
        &self,
        wanted: &RemoteAuth,
        policy: &Policy,
        now: UnixMillis,
        crls: Option<&[&Crl]>,
    ) -> Result<Certificate, CertificateError> {
        let RemoteAuth::Pubkey {
            constraint,
            certificates: pinned,
            revocation,
            ..
        } = wanted
        else {
            return Err(CertificateError::Scheme);
        };
        if !self.signed.is_allowed(constraint) {
            return Err(CertificateError::Scheme);
        }
        let certificate = self.certificate(pinned)?;
        // The cheapest first, and nothing about the chain is said to who does not have the key.
        if self
            .signed
            .verify(&certificate.spki, &self.octets, constraint)
            .is_none()
        {
            return Err(CertificateError::Auth);
        }
        if !certificate.confirms(&self.id) {
            return Err(CertificateError::Identity(self.id.clone()));
        }
        if pinned.is_empty() {
            self.chain(
                &certificate,
                wanted,
                policy,
                now,
                crls.map(|c| (c, *revocation)),
            )?;
        } else {
            valid_by_itself(&certificate, now)?;
        }
        Ok(certificate)
    }

    /// The certificate that the peer is to be judged by: its own, or, where it sent none, the one that the connection names for it.
    fn certificate(&self, pinned: &[Vec<u8>]) -> Result<Certificate, CertificateError> {
        if let Some(own) = self.evidence.certificates.first() {
            if !pinned.is_empty() && !pinned.contains(own) {
                return Err(CertificateError::NotPinned);
            }
            return Certificate::parse(own);
        }
        if self.evidence.hash_and_url {
            return Err(CertificateError::HashAndUrl);
        }
        let mut known = pinned.iter().filter_map(|der| Certificate::parse(der).ok());
        known
            .find(|c| c.confirms(&self.id))
            .ok_or(CertificateError::Missing)
    }

    fn chain(
        &self,
        certificate: &Certificate,
        wanted: &RemoteAuth,
        policy: &Policy,
        now: UnixMillis,
        revocation: Option<(&[&Crl], RevocationPolicy)>,
    ) -> Result<(), CertificateError> {
        let trusted = wanted.anchors(policy);
        let valid: Vec<&[u8]> = trusted
            .iter()
            .filter(|a| a.is_valid(now))
            .map(|a| &a.certificate[..])
            .collect();
        let sent = self.evidence.certificates.iter().skip(1);
        let known = policy.authorities.iter().map(|a| &a.certificate);
        let others: Vec<&[u8]> = sent.chain(known).map(|der| &der[..]).collect();
        let judge = Judge {
            others: &others,
            anchors: &valid,
            now,
            revocation,
        };
        let found = path::verify(certificate, judge);
        // webpki does not look at the time of an authority; without it the path has no end.
        if found == Err(CertificateError::UnknownIssuer) && valid.len() < trusted.len() {
            let anchors: Vec<&[u8]> = trusted.iter().map(|a| &a.certificate[..]).collect();
            let anchors = &anchors[..];
            path::verify(certificate, Judge { anchors, ..judge })?;
            return Err(CertificateError::Expired);
        }
        found
    }

    /// Where there are lists of revoked certificates for the chain: as is configured, and as the certificates say. `None` if none have to be
    /// looked at: the connection that accepts the peer names its certificates, or there are no lists and none are required.
    pub fn crl_uris(&self, verified: &Verified, policy: &Policy) -> Option<Vec<String>> {
        let connection = policy.connection(&verified.connection)?;
        let RemoteAuth::Pubkey {
            certificates,
            authorities,
            revocation,
            ..
        } = &connection.auth.remote
        else {
            return None;
        };
        if !certificates.is_empty() {
            return None;
        }
        let sent = self.evidence.certificates.iter();
        let parsed = sent.filter_map(|der| Certificate::parse(der).ok());
        let named = parsed.flat_map(|c| c.crl_uris);
        let all = policy.authorities.iter().chain(authorities);
        let configured = all.flat_map(|a| a.crl_uris.clone());
        let mut uris: Vec<String> = Vec::new();
        for uri in configured.chain(named) {
            if uris.len() < MAX_CRLS && !uris.contains(&uri) {
                uris.push(uri);
            }
        }
        (!uris.is_empty() || *revocation == RevocationPolicy::Strict).then_some(uris)
    }
}

/// A certificate that is trusted because the connection names it.
fn valid_by_itself(certificate: &Certificate, now: UnixMillis) -> Result<(), CertificateError> {
    if !certificate.may_sign {
        return Err(CertificateError::KeyUsage);
    }
    if now < certificate.not_before {
        return Err(CertificateError::NotYetValid);
    }
    if now > certificate.not_after {
        return Err(CertificateError::Expired);
    }
    Ok(())
}
