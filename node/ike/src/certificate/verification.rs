//! Whether a peer is who it says it is: its certificate, and its signature with the key in there.
//!
//! This costs up to milliseconds, so it is not done within a step: it leaves as [`crate::sa::Question::Verify`], and whoever answers that runs
//! [`Verification::run`] where it holds nobody up.

use super::{
    Certificate, CertificateError, MAX_CERTIFICATES,
    ocsp::{CertificateId, Inquiry},
    path::{self, Judge, Known},
};
use crate::{
    config::{Authority, Policy, RemoteAuth, RevocationPolicy},
    env::UnixMillis,
    identity::Identity,
    signature::{Constraint, Signed},
};

/// Lists of revoked certificates that are looked at for one peer.
const MAX_CRLS: usize = 16;
/// Responders that may be asked about one certificate: each may cost a time-out.
const MAX_RESPONDERS: usize = 2;

/// Encodings of CERT payloads (RFC 7296 §3.6).
pub(crate) mod encoding {
    /// X.509 certificate for signatures.
    pub(crate) const X509: u8 = 4;
    /// Raw public key (RFC 7670 §3).
    pub(crate) const RAW_KEY: u8 = 15;
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
    /// Its raw public key, SubjectPublicKeyInfo in DER (RFC 7670 §3).
    pub raw_key: Option<Vec<u8>>,
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
                encoding::RAW_KEY => {
                    if evidence.raw_key.is_some() || data.len() > super::MAX_RAW_KEY {
                        return Err(CertificateError::RawKey);
                    }
                    evidence.raw_key = Some(data.to_vec());
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
    /// In which round it authenticates, from 0 (RFC 4739).
    pub round: usize,
}

/// A peer is who it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The connection that accepts it.
    pub connection: String,
    /// Its certificate; none if the connection names its public key.
    pub certificate: Option<Certificate>,
    /// The issuers of that, up to the authority; none if the connection names the certificate itself.
    pub issuers: Vec<Certificate>,
}

/// Where it is known whether the certificates of a peer's chain were revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// What to ask OCSP responders, a question for each certificate that has some.
    pub inquiries: Vec<Inquiry>,
    /// Places of lists. They are not needed if responders tell of each certificate.
    pub crl_uris: Vec<String>,
    /// The certificates that something has to be known of.
    pub certificates: Vec<CertificateId>,
}

impl Verification {
    /// Answers the question. `known` is what is known of revocations; without it they do not count.
    ///
    /// # Errors
    /// Why no connection accepts the peer: what the first one objects to.
    pub fn run(
        &self,
        policy: &Policy,
        now: UnixMillis,
        known: Option<Known<'_>>,
    ) -> Result<Verified, CertificateError> {
        let mut first = None;
        for candidate in &self.candidates {
            let Some(connection) = policy.connection(candidate) else {
                continue;
            };
            match self.by(connection.remote_auth(self.round), policy, now, known) {
                Ok((certificate, issuers)) => {
                    return Ok(Verified {
                        connection: candidate.clone(),
                        certificate,
                        issuers,
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
        known: Option<Known<'_>>,
    ) -> Result<(Option<Certificate>, Vec<Certificate>), CertificateError> {
        let RemoteAuth::Pubkey {
            constraint,
            certificates: pinned,
            raw_keys,
            revocation,
            ..
        } = wanted
        else {
            return Err(CertificateError::Scheme);
        };
        if !self.signed.is_allowed(constraint) {
            return Err(CertificateError::Scheme);
        }
        if !raw_keys.is_empty() {
            let found = self.by_raw_key(raw_keys, constraint);
            if found.is_ok() || !wanted.takes_certificates(policy) {
                return found.map(|()| (None, Vec::new()));
            }
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
        let issuers = if pinned.is_empty() {
            let revocation = known.map(|known| (known, *revocation));
            self.chain(&certificate, wanted, policy, now, revocation)?
        } else {
            valid_by_itself(&certificate, now)?;
            Vec::new()
        };
        Ok((Some(certificate), issuers))
    }

    /// Whether the signature is by one of the public keys that a connection names (RFC 7670): by the one that the peer showed, if it did. The
    /// connection says whose they are, so that nothing else has to confirm the identity.
    fn by_raw_key(
        &self,
        named: &[Vec<u8>],
        constraint: &Constraint,
    ) -> Result<(), CertificateError> {
        let shown = self.evidence.raw_key.as_ref();
        if shown.is_some_and(|key| !named.contains(key)) {
            return Err(CertificateError::NotNamedKey);
        }
        let signs = |key: &&Vec<u8>| self.signed.verify(key, &self.octets, constraint).is_some();
        let mut possible = named.iter().filter(|key| shown.is_none_or(|s| s == *key));
        possible.find(signs).map(drop).ok_or(CertificateError::Auth)
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
        revocation: Option<(Known<'_>, RevocationPolicy)>,
    ) -> Result<Vec<Certificate>, CertificateError> {
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

    /// Where it is known whether the certificates of the chain were revoked: as is configured, and as they say. `None` if nothing has to be
    /// known: the connection that accepts the peer names its certificates, or there are no places and none are required.
    pub fn sources(&self, verified: &Verified, policy: &Policy) -> Option<Sources> {
        let connection = policy.connection(&verified.connection)?;
        let RemoteAuth::Pubkey {
            certificates,
            authorities,
            revocation,
            ..
        } = connection.remote_auth(self.round)
        else {
            return None;
        };
        let certificate = verified.certificate.as_ref()?;
        if !certificates.is_empty() {
            return None;
        }
        let all = || policy.authorities.iter().chain(authorities);
        let path: Vec<&Certificate> = std::iter::once(certificate)
            .chain(&verified.issuers)
            .collect();
        let links = || path.windows(2).map(|link| (link[0], link[1]));
        let sources = Sources {
            inquiries: links()
                .filter_map(|(certificate, issuer)| inquiry(certificate, issuer, all()))
                .collect(),
            crl_uris: self.crl_uris(all()),
            certificates: links()
                .filter_map(|(certificate, issuer)| CertificateId::of(certificate, issuer))
                .collect(),
        };
        let none = sources.inquiries.is_empty() && sources.crl_uris.is_empty();
        (!none || *revocation == RevocationPolicy::Strict).then_some(sources)
    }

    fn crl_uris<'a>(&self, authorities: impl Iterator<Item = &'a Authority>) -> Vec<String> {
        let sent = self.evidence.certificates.iter();
        let parsed = sent.filter_map(|der| Certificate::parse(der).ok());
        let named = parsed.flat_map(|c| c.crl_uris);
        let configured = authorities.flat_map(|a| a.crl_uris.clone());
        let mut uris: Vec<String> = Vec::new();
        for uri in configured.chain(named) {
            if uris.len() < MAX_CRLS && !uris.contains(&uri) {
                uris.push(uri);
            }
        }
        uris
    }
}

/// What to ask about a certificate: the responders of its issuer as configured, then those that it names itself.
fn inquiry<'a>(
    certificate: &Certificate,
    issuer: &Certificate,
    authorities: impl Iterator<Item = &'a Authority>,
) -> Option<Inquiry> {
    let of_issuer = authorities.filter(|a| a.certificate == issuer.der);
    let configured = of_issuer.flat_map(|a| a.ocsp_uris.iter());
    let mut uris: Vec<String> = Vec::new();
    for uri in configured.chain(&certificate.ocsp_uris) {
        if uris.len() < MAX_RESPONDERS && !uris.contains(uri) {
            uris.push(uri.clone());
        }
    }
    if uris.is_empty() {
        return None;
    }
    Inquiry::new(certificate, issuer, uris)
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
