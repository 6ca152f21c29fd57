//! From a peer's certificate to an authority (RFC 5280 §6), with IKE's rules (RFC 4945 §5.1.3). The path itself is found and verified by webpki.

use super::{
    Certificate, CertificateError, Crl, malformed,
    ocsp::{Answer, CertificateId},
};
use crate::{config::RevocationPolicy, env::UnixMillis};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{
    ALL_VERIFICATION_ALGS, CertRevocationList, EndEntityCert, Error, ExpirationPolicy,
    ExtendedKeyUsageValidator, KeyPurposeIdIter, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, anchor_from_trusted_cert,
};

/// Certificates between a peer's own and an authority, at most; webpki's bound.
pub const MAX_DEPTH: usize = 6;

/// IKE's rules for extended key usages (RFC 4945 §5.1.3.12): none at all, ipsecIKE, or any.
struct IkeUsage;

impl ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        const IPSEC_IKE: &[usize] = &[1, 3, 6, 1, 5, 5, 7, 3, 17];
        const ANY: &[usize] = &[2, 5, 29, 37, 0];
        let mut none = true;
        for purpose in purposes {
            let oid = purpose?.to_decoded_oid();
            if oid == IPSEC_IKE || oid == ANY {
                return Ok(());
            }
            none = false;
        }
        if none {
            return Ok(());
        }
        Err(Error::EmptyEkuExtension)
    }
}

/// What is known of revocations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Lists of revoked certificates.
    pub crls: &'a [&'a Crl],
    /// What OCSP responders say.
    pub answers: &'a [&'a Answer],
}

/// What a certificate is judged by.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    /// Certificates that may be between.
    pub(super) others: &'a [&'a [u8]],
    /// Authorities.
    pub(super) anchors: &'a [&'a [u8]],
    /// The present.
    pub(super) now: UnixMillis,
    /// What is known of revocations, and what is made of it; none where revocations do not count yet.
    pub(super) revocation: Option<(Known<'a>, RevocationPolicy)>,
}

/// Verifies that `leaf` was issued by one of the authorities, perhaps with others between, and was not revoked. Returns its issuers, up to the
/// authority.
///
/// # Errors
/// Why it was not.
pub(super) fn verify(
    leaf: &Certificate,
    judge: Judge<'_>,
) -> Result<Vec<Certificate>, CertificateError> {
    if !leaf.may_sign {
        return Err(CertificateError::KeyUsage);
    }
    let Some((known, policy)) = judge.revocation else {
        return find(leaf, judge, &[], false);
    };
    // What is old still says what was revoked; only who does not need to be up to date looks at it.
    let relaxed = policy == RevocationPolicy::Relaxed;
    let crls = known.crls.iter().copied();
    let told = Told {
        crls: crls
            .filter(|c| relaxed || c.is_current(judge.now))
            .collect(),
        answers: (known.answers.iter().copied())
            .filter(|a| relaxed || a.is_current(judge.now))
            .collect(),
    };
    told.judge(leaf, judge, policy)
}

/// What counts of what is known.
struct Told<'a> {
    crls: Vec<&'a Crl>,
    answers: Vec<&'a Answer>,
}

impl Told<'_> {
    fn judge(
        &self,
        leaf: &Certificate,
        judge: Judge<'_>,
        policy: RevocationPolicy,
    ) -> Result<Vec<Certificate>, CertificateError> {
        let (issuers, by_lists) = self.with_lists(leaf, judge, policy)?;
        // Each certificate of the path, but the authority at its end, whom nobody revokes.
        let path: Vec<&Certificate> = std::iter::once(leaf).chain(&issuers).collect();
        let mut complete = true;
        for link in path.windows(2) {
            let (certificate, issuer) = (link[0], link[1]);
            let answer = self.answer(certificate, issuer);
            if answer.is_some_and(|a| a.revoked) {
                return Err(CertificateError::Revoked);
            }
            complete &= match policy {
                RevocationPolicy::Relaxed => true,
                RevocationPolicy::Strict => {
                    by_lists == Lists::All || answer.is_some() || {
                        let whole = |crl: &&Crl| crl.issuer == certificate.issuer && !crl.partial;
                        by_lists == Lists::Some && self.crls.iter().any(whole)
                    }
                }
                RevocationPolicy::IfUri => {
                    let named =
                        !certificate.crl_uris.is_empty() || !certificate.ocsp_uris.is_empty();
                    !named || answer.is_some() || {
                        let covers = |crl: &&Crl| crl.issuer == certificate.issuer;
                        by_lists == Lists::Some && self.crls.iter().any(covers)
                    }
                }
            };
        }
        match complete {
            true => Ok(issuers),
            false => Err(CertificateError::RevocationUnknown),
        }
    }

    /// Finds a path in which no list has a certificate, and says what lists say of it.
    fn with_lists(
        &self,
        leaf: &Certificate,
        judge: Judge<'_>,
        policy: RevocationPolicy,
    ) -> Result<(Vec<Certificate>, Lists), CertificateError> {
        if policy == RevocationPolicy::Strict && !self.crls.is_empty() {
            match find(leaf, judge, &self.crls, true) {
                Err(CertificateError::RevocationUnknown) if !self.answers.is_empty() => {}
                found => return Ok((found?, Lists::All)),
            }
        }
        match find(leaf, judge, &self.crls, false) {
            // A list that cannot be relied on says nothing.
            Err(CertificateError::RevocationUnknown) => {
                Ok((find(leaf, judge, &[], false)?, Lists::None))
            }
            found => Ok((found?, Lists::Some)),
        }
    }

    fn answer(&self, certificate: &Certificate, issuer: &Certificate) -> Option<&Answer> {
        let id = CertificateId::of(certificate, issuer)?;
        self.answers.iter().copied().find(|a| a.id == id)
    }
}

/// Of which certificates of a path lists tell that they are not revoked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    /// Of each.
    All,
    /// Of those of whose issuer there is one.
    Some,
    /// Of none.
    None,
}

/// Finds a path, and returns the issuers in it, up to the authority.
fn find(
    leaf: &Certificate,
    judge: Judge<'_>,
    crls: &[&Crl],
    required: bool,
) -> Result<Vec<Certificate>, CertificateError> {
    let ders = |all: &[&[u8]]| -> Vec<CertificateDer<'static>> {
        all.iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect()
    };
    let (authorities, others) = (ders(judge.anchors), ders(judge.others));
    // An authority that webpki cannot read was refused when it was configured.
    let anchors: Vec<_> = authorities
        .iter()
        .filter_map(|der| anchor_from_trusted_cert(der).ok())
        .collect();
    let der = CertificateDer::from(&leaf.der[..]);
    let end_entity = EndEntityCert::try_from(&der).map_err(error)?;
    let parsed: Vec<&CertRevocationList<'_>> = crls.iter().map(|crl| crl.parsed()).collect();
    let unknown = if required {
        UnknownStatusPolicy::Deny
    } else {
        UnknownStatusPolicy::Allow
    };
    let options = RevocationOptionsBuilder::new(&parsed).ok().map(|builder| {
        builder
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(unknown)
            .with_expiration_policy(ExpirationPolicy::Ignore) // done by the caller
            .build()
    });
    let path = end_entity
        .verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &others,
            UnixTime::since_unix_epoch(Duration::from_millis(judge.now.0)),
            IkeUsage,
            options,
            None,
        )
        .map_err(error)?;
    let issuers = path
        .intermediate_certificates()
        .map(|c| Certificate::parse(&c.der()));
    let mut issuers: Vec<Certificate> = issuers.collect::<Result<_, _>>()?;
    // webpki leaves the key usage of issuers to its caller (RFC 5280 §6.1.4 (n)).
    if issuers.iter().any(|issuer| !issuer.may_certify) {
        return Err(CertificateError::Issuer(
            "its key usage does not include signing certificates".to_owned(),
        ));
    }
    issuers.extend(authority(path.anchor(), judge.anchors));
    Ok(issuers)
}

/// The authority at which a path ends.
fn authority(anchor: &TrustAnchor<'_>, all: &[&[u8]]) -> Option<Certificate> {
    // webpki has what is inside of both without the outermost tag and length.
    let is_it = |c: &Certificate| {
        c.subject.ends_with(&anchor.subject) && c.spki.ends_with(&anchor.subject_public_key_info)
    };
    let mut parsed = all.iter().filter_map(|der| Certificate::parse(der).ok());
    parsed.find(is_it)
}

/// Whether a certificate can be an authority.
///
/// # Errors
/// Why not.
pub(crate) fn check_anchor(der: &[u8]) -> Result<(), CertificateError> {
    anchor_from_trusted_cert(&CertificateDer::from(der))
        .map(drop)
        .map_err(malformed)
}

fn error(error: Error) -> CertificateError {
    match error {
        Error::UnknownIssuer => CertificateError::UnknownIssuer,
        Error::CertExpired { .. } => CertificateError::Expired,
        Error::CertNotValidYet { .. } => CertificateError::NotYetValid,
        Error::NameConstraintViolation => CertificateError::NameConstraints,
        // What our own validator says.
        Error::EmptyEkuExtension => CertificateError::ExtendedKeyUsage,
        Error::InvalidSignatureForPublicKey | Error::SignatureAlgorithmMismatch => {
            CertificateError::Signature
        }
        Error::CertRevoked => CertificateError::Revoked,
        Error::UnknownRevocationStatus
        | Error::InvalidCrlSignatureForPublicKey
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        | Error::IssuerNotCrlSigner => CertificateError::RevocationUnknown,
        Error::EndEntityUsedAsCa | Error::PathLenConstraintViolated => {
            CertificateError::Issuer(error.to_string())
        }
        Error::BadDer | Error::BadDerTime => malformed(error),
        other => CertificateError::Chain(other.to_string()),
    }
}
