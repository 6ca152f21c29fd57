//! Whom a certificate names (RFC 4945 §3.1, §5.1.3.6).

use super::{Certificate, CertificateError, malformed};
use crate::identity::Identity;
use std::net::IpAddr;
use x509_cert::{
    TbsCertificate,
    der::Encode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// Names that are taken from one certificate. Name by name is compared, so there is a bound.
const MAX_NAMES: usize = 256;

/// The identities among the subject alternative names.
pub(super) fn of(tbs: &TbsCertificate) -> Result<Vec<Identity>, CertificateError> {
    let Some((_, names)) = tbs.get_extension::<SubjectAltName>().map_err(malformed)? else {
        return Ok(Vec::new());
    };
    Ok(names
        .0
        .iter()
        .filter_map(identity)
        .take(MAX_NAMES)
        .collect())
}

fn identity(name: &GeneralName) -> Option<Identity> {
    match name {
        GeneralName::DnsName(name) => Some(Identity::Fqdn(name.as_str().to_ascii_lowercase())),
        GeneralName::Rfc822Name(name) => Some(Identity::Email(name.as_str().to_owned())),
        GeneralName::DirectoryName(name) => name.to_der().ok().map(Identity::Dn),
        GeneralName::IpAddress(octets) => {
            let octets = octets.as_bytes();
            let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
            v4.or(v6).ok().map(Identity::Address)
        }
        _ => None,
    }
}

impl Certificate {
    /// Whether the certificate confirms an identity, by its type: names and addresses as they stand in the subject alternative names, without
    /// wildcards (RFC 4945 §3.1.1 to §3.1.3), a distinguished name as its subject (§3.1.5) or an alternative one, as RFC 5280 §7.1 compares them, a key ID as its subject key
    /// identifier.
    pub fn confirms(&self, id: &Identity) -> bool {
        match id {
            Identity::Fqdn(name) => self
                .names
                .iter()
                .any(|n| matches!(n, Identity::Fqdn(own) if own.eq_ignore_ascii_case(name))),
            Identity::Email(name) => self
                .names
                .iter()
                .any(|n| matches!(n, Identity::Email(own) if own.eq_ignore_ascii_case(name))),
            Identity::Address(_) => self.names.contains(id),
            // Senders ought to take it from their certificate byte for byte (§3.1.5), but strongSwan makes it from text, with other types of
            // strings. That it means the same is enough.
            Identity::Dn(_) => {
                let subject = self.subject_id();
                subject.iter().chain(&self.names).any(|name| name.means(id))
            }
            Identity::KeyId(key) => self.key_id.as_ref() == Some(key),
            Identity::Other { .. } => false,
        }
    }
}
