//! Lists of revoked certificates (RFC 5280 §5).

use super::{CertificateError, malformed};
use crate::env::UnixMillis;
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_cert::{
    crl::CertificateList,
    der::{Decode, Encode, oid::AssociatedOid},
    ext::pkix::IssuingDistributionPoint,
};

/// A list of revoked certificates. Its signature is verified where it is used, with the key of the issuer in the path.
#[derive(Debug)]
pub struct Crl {
    parsed: CertRevocationList<'static>,
    der: Vec<u8>,
    /// DER of its issuer.
    pub(super) issuer: Vec<u8>,
    next_update: Option<UnixMillis>,
    /// It is about some certificates of its issuer only, perhaps (RFC 5280 §5.2.5).
    pub(super) partial: bool,
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Crl {}

impl Crl {
    /// Reads a list, in DER or PEM.
    ///
    /// # Errors
    /// If it is none, or of a kind that is not supported (indirect, delta).
    pub fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        let der = if bytes.starts_with(b"-----BEGIN") {
            let pem = CertificateRevocationListDer::from_pem_slice(bytes);
            pem.map_err(malformed)?.to_vec()
        } else {
            bytes.to_vec()
        };
        let parsed = OwnedCertRevocationList::from_der(&der)
            .map_err(malformed)?
            .into();
        let list = CertificateList::<x509_cert::certificate::Rfc5280>::from_der(&der)
            .map_err(malformed)?;
        let tbs = list.tbs_cert_list;
        let mut extensions = tbs.crl_extensions.iter().flatten();
        let partial = extensions.any(|e| e.extn_id == IssuingDistributionPoint::OID);
        Ok(Self {
            parsed,
            der,
            issuer: tbs.issuer.to_der().map_err(malformed)?,
            next_update: tbs.next_update.map(super::millis),
            partial,
        })
    }

    /// When there will be a newer one.
    pub fn next_update(&self) -> Option<UnixMillis> {
        self.next_update
    }

    pub(super) fn parsed(&self) -> &CertRevocationList<'static> {
        &self.parsed
    }

    /// Whether it is the newest one at a time.
    pub(super) fn is_current(&self, now: UnixMillis) -> bool {
        self.next_update.is_none_or(|next| now <= next)
    }
}
