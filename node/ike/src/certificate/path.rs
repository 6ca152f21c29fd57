//! From a peer's certificate to an authority (RFC 5280 §6), with IKE's rules (RFC 4945 §5.1.3). The path itself is found and verified by webpki.

use super::{Certificate, CertificateError, Crl, malformed};
use crate::{config::RevocationPolicy, env::UnixMillis};
use rustls_pki_types::{CertificateDer, UnixTime};
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

/// What a certificate is judged by.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    /// Certificates that may be between.
    pub(super) others: &'a [&'a [u8]],
    /// Authorities.
    pub(super) anchors: &'a [&'a [u8]],
    /// The present.
    pub(super) now: UnixMillis,
    /// Lists of revoked certificates, and what is made of them; none where revocations do not count yet.
    pub(super) revocation: Option<(&'a [&'a Crl], RevocationPolicy)>,
}

/// Verifies that `leaf` was issued by one of the authorities, perhaps with others between, and was not revoked.
///
/// # Errors
/// Why it was not.
pub(super) fn verify(leaf: &Certificate, judge: Judge<'_>) -> Result<(), CertificateError> {
    if !leaf.may_sign {
        return Err(CertificateError::KeyUsage);
    }
    let Some((known, policy)) = judge.revocation else {
        return find(leaf, judge, &[], false).map(drop);
    };
    // An old list still says what was revoked; only who does not need a current one looks at it.
    let usable = |crl: &&&Crl| policy == RevocationPolicy::Relaxed || crl.is_current(judge.now);
    let crls: Vec<&Crl> = known.iter().filter(usable).copied().collect();
    match policy {
        RevocationPolicy::Strict if crls.is_empty() => Err(CertificateError::RevocationUnknown),
        RevocationPolicy::Strict => find(leaf, judge, &crls, true).map(drop),
        RevocationPolicy::IfUri => {
            let (issuers, told) = match find(leaf, judge, &crls, false) {
                Err(CertificateError::RevocationUnknown) => {
                    (find(leaf, judge, &[], false)?, vec![])
                }
                found => (found?, crls),
            };
            let covered = |c: &Certificate| told.iter().any(|crl| crl.issuer == c.issuer);
            let fine = |c: &Certificate| c.crl_uris.is_empty() || covered(c);
            let all = fine(leaf) && issuers.iter().all(fine);
            all.then_some(()).ok_or(CertificateError::RevocationUnknown)
        }
        RevocationPolicy::Relaxed => match find(leaf, judge, &crls, false) {
            // A list that cannot be relied on says nothing.
            Err(CertificateError::RevocationUnknown) => find(leaf, judge, &[], false).map(drop),
            found => found.map(drop),
        },
    }
}

/// Finds a path, and returns the certificates between.
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
    let (anchors, others) = (ders(judge.anchors), ders(judge.others));
    // An authority that webpki cannot read was refused when it was configured.
    let anchors: Vec<_> = anchors
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
    let issuers: Vec<Certificate> = issuers.collect::<Result<_, _>>()?;
    // webpki leaves the key usage of issuers to its caller (RFC 5280 §6.1.4 (n)).
    if issuers.iter().any(|issuer| !issuer.may_certify) {
        return Err(CertificateError::Issuer(
            "its key usage does not include signing certificates".to_owned(),
        ));
    }
    Ok(issuers)
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
