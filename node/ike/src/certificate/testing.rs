//! Authorities and certificates for tests.

use super::Certificate;
use crate::{
    config::{
        Authentication, Authority, Credential, LocalAuth, PrivateKey, RemoteAuth, RevocationPolicy,
        SendCert, Shown,
    },
    secret::Secret,
    signature::{Constraint, KeyKind},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SigningKey, date_time_ymd,
};

/// A certificate with its private key, and how it issues others.
pub(crate) struct Issued {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) der: Vec<u8>,
}

/// Keys of every kind.
pub(crate) fn key(kind: KeyKind) -> KeyPair {
    let algorithm = match kind {
        KeyKind::Rsa => &rcgen::PKCS_RSA_SHA256,
        KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyKind::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
        KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
    };
    KeyPair::generate_for(algorithm).unwrap()
}

/// 1970-01-01 to 2090-01-01, so that it holds at the times of tests.
fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Test");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A root.
pub(crate) fn root(name: &str) -> Issued {
    root_with(name, |_| {})
}

/// A root that differs.
pub(crate) fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
    let (mut params, key) = (authority(name), key(KeyKind::P256));
    change(&mut params);
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Issued { params, key, der }
}

impl Issued {
    /// An authority below this one.
    pub(crate) fn intermediate(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = authority(name);
        change(&mut params);
        self.sign(params, key(KeyKind::P256))
    }

    /// A certificate of a peer with these names (DNS, address or e-mail).
    pub(crate) fn issue(&self, kind: KeyKind, names: &[&str]) -> Self {
        self.issue_with(kind, names, |_| {})
    }

    /// One that differs.
    pub(crate) fn issue_with(
        &self,
        kind: KeyKind,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = params(names.first().copied().unwrap_or("nobody"));
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        change(&mut params);
        self.sign(params, key(kind))
    }

    fn sign(&self, params: CertificateParams, key: KeyPair) -> Self {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().to_vec();
        Self { params, key, der }
    }

    pub(crate) fn certificate(&self) -> Certificate {
        Certificate::parse(&self.der).unwrap()
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::new("test".to_owned(), &self.certificate()).unwrap()
    }

    /// The private key, under the name by which credentials refer to it.
    pub(crate) fn private_key(&self, name: &str) -> PrivateKey {
        let certificate = self.certificate();
        PrivateKey {
            name: name.to_owned(),
            kind: certificate.key,
            pkcs8: Secret::new(self.key.serialize_der()),
            spki: self.key.subject_public_key_info(),
        }
    }

    /// It as a credential, with others after it.
    pub(crate) fn credential(&self, name: &str, chain: &[&Issued]) -> Credential {
        let own = self.certificate();
        let others = chain.iter().map(|c| c.der.clone());
        Credential {
            shown: Shown::Chain(std::iter::once(self.der.clone()).chain(others).collect()),
            subject: own.subject.clone(),
            key: own.key,
            private_key: name.to_owned(),
            issuers: chain.iter().map(|c| c.certificate().key_hash()).collect(),
        }
    }

    /// Its public key alone as a credential (RFC 7670).
    pub(crate) fn raw_key(&self, name: &str) -> Credential {
        let own = self.certificate();
        Credential {
            shown: Shown::RawKey(own.spki),
            subject: Vec::new(),
            key: own.key,
            private_key: name.to_owned(),
            issuers: Vec::new(),
        }
    }

    /// A list of what it revoked, by serial numbers, that is current until this year.
    pub(crate) fn crl(&self, revoked: &[&[u8]], until: i32) -> super::Crl {
        let revoked = revoked.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: serial.to_vec().into(),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_params(&self.params, &self.key);
        super::Crl::parse(params.signed_by(&issuer).unwrap().der()).unwrap()
    }

    pub(crate) fn sign_octets(&self, octets: &[u8]) -> Vec<u8> {
        self.key.sign(octets).unwrap()
    }
}

fn san(name: &str) -> rcgen::SanType {
    if let Ok(ip) = name.parse() {
        return rcgen::SanType::IpAddress(ip);
    }
    let text = name.try_into().unwrap();
    if name.contains('@') {
        return rcgen::SanType::Rfc822Name(text);
    }
    rcgen::SanType::DnsName(text)
}

/// An end that signs with a credential, and wants signatures of the other.
pub(crate) fn signing(credential: Credential) -> Authentication {
    Authentication {
        local: LocalAuth::Pubkey {
            constraint: Constraint::default(),
            credentials: vec![credential],
        },
        remote: pubkey(),
        more_local: Vec::new(),
        more_remote: Vec::new(),
        send_cert: SendCert::IfAsked,
        send_certreq: true,
        ppk: None,
    }
}

/// Any signature by a certificate of the policy's authorities.
pub(crate) fn pubkey() -> RemoteAuth {
    RemoteAuth::Pubkey {
        constraint: Constraint::default(),
        authorities: Vec::new(),
        certificates: Vec::new(),
        raw_keys: Vec::new(),
        revocation: RevocationPolicy::default(),
    }
}

/// A signature with one of these public keys (RFC 7670).
pub(crate) fn named_keys(keys: &[&Issued]) -> RemoteAuth {
    RemoteAuth::Pubkey {
        constraint: Constraint::default(),
        authorities: Vec::new(),
        certificates: Vec::new(),
        raw_keys: keys.iter().map(|k| k.certificate().spki).collect(),
        revocation: RevocationPolicy::default(),
    }
}
