//! Certificates for drills: a root, an authority below it, and what it issues, as files.

use crate::Result;
use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, DnValue, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SignatureAlgorithm, date_time_ymd,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// The kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// RSA with 2048 bits.
    Rsa,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// ECDSA on P-521.
    P521,
    /// Ed25519.
    Ed25519,
}

impl Key {
    fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
            Self::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}

/// A certificate as files, and whom it is trusted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// It alone.
    pub own: PathBuf,
    /// It and the authority that issued it.
    pub chain: PathBuf,
    /// That authority alone.
    pub between: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Its public key.
    pub public: PathBuf,
    /// The root.
    pub root: PathBuf,
    /// Its serial number.
    pub serial: u64,
}

/// A root, and an authority below it that issues. The files go with it.
#[derive(Debug)]
pub struct Pki {
    dir: TempDir,
    root: CertificateParams,
    root_key: KeyPair,
    between: CertificateParams,
    between_key: KeyPair,
    /// The serial number of the next certificate.
    serial: AtomicU64,
}

fn params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // A country is a PrintableString (RFC 5280 appendix A.1), and Wireshark insists on it.
    let country = DnValue::PrintableString("CH".try_into()?);
    for (kind, value) in [
        (DnType::CountryName, country),
        (DnType::OrganizationName, "Drill".into()),
        (DnType::CommonName, name.into()),
    ] {
        params.distinguished_name.push(kind, value);
    }
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = params(name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

impl Pki {
    /// Authorities with keys of this kind; the name is that of the root.
    pub fn new(name: &str, key: Key) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root_key = KeyPair::generate_for(key.algorithm())?;
        let root_params = authority(name)?;
        let root = root_params.self_signed(&root_key)?;
        let between_key = KeyPair::generate_for(key.algorithm())?;
        let between = authority(&format!("{name} between"))?;
        let issuer = Issuer::from_params(&root_params, &root_key);
        let certificate = between.signed_by(&between_key, &issuer)?;
        std::fs::write(dir.path().join("root.pem"), root.pem())?;
        std::fs::write(dir.path().join("between.pem"), certificate.pem())?;
        Ok(Self {
            dir,
            root: root_params,
            root_key,
            between,
            between_key,
            serial: AtomicU64::new(1000),
        })
    }

    /// A certificate for a name, with a key of this kind.
    pub fn issue(&self, name: &str, key: Key) -> Result<Certificate> {
        self.issue_with(name, key, |_| {})
    }

    /// One that is over.
    pub fn issue_expired(&self, name: &str, key: Key) -> Result<Certificate> {
        self.issue_with(name, key, |p| p.not_after = date_time_ymd(2024, 1, 1))
    }

    /// One that differs.
    pub fn issue_with(
        &self,
        name: &str,
        key: Key,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Certificate> {
        let mut params = params(name)?;
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(serial.into());
        change(&mut params);
        let own_key = KeyPair::generate_for(key.algorithm())?;
        let issuer = Issuer::from_params(&self.between, &self.between_key);
        let own = params.signed_by(&own_key, &issuer)?.pem();
        let path = |ending: &str| self.dir.path().join(format!("{name}{ending}"));
        let between = self.dir.path().join("between.pem");
        let chain = format!("{own}{}", std::fs::read_to_string(&between)?);
        std::fs::write(path(".pem"), own)?;
        std::fs::write(path(".chain.pem"), chain)?;
        std::fs::write(path(".key"), own_key.serialize_pem())?;
        std::fs::write(path(".pub"), own_key.public_key_pem())?;
        Ok(Certificate {
            own: path(".pem"),
            chain: path(".chain.pem"),
            between,
            key: path(".key"),
            public: path(".pub"),
            root: self.dir.path().join("root.pem"),
            serial,
        })
    }

    /// A DNS name among the alternative names of a certificate; none if it is not one.
    pub fn dns(name: &str) -> Option<SanType> {
        name.try_into().ok().map(SanType::DnsName)
    }

    /// Writes what both authorities revoked: nothing, and these. Returns the files, that of the root first.
    pub fn revoke(&self, revoked: &[&Certificate]) -> Result<[PathBuf; 2]> {
        let root = self.dir.path().join("root.crl");
        let between = self.dir.path().join("between.crl");
        std::fs::write(&root, crl(&self.root, &self.root_key, &[])?)?;
        // In one piece: a member may be reading it.
        let new = self.dir.path().join("new.crl");
        std::fs::write(&new, crl(&self.between, &self.between_key, revoked)?)?;
        std::fs::rename(new, &between)?;
        Ok([root, between])
    }
}

/// A list of what an authority revoked.
fn crl(authority: &CertificateParams, key: &KeyPair, revoked: &[&Certificate]) -> Result<Vec<u8>> {
    let revoked = revoked.iter().map(|certificate| RevokedCertParams {
        serial_number: certificate.serial.into(),
        revocation_time: date_time_ymd(2025, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2120, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let issuer = Issuer::from_params(authority, key);
    Ok(params.signed_by(&issuer)?.der().to_vec())
}

impl Certificate {
    /// Puts it where swanctl looks for it, in its directory, under a name.
    pub fn install(&self, swanctl: &Path, name: &str) -> Result<()> {
        for (below, from) in [
            (format!("x509/{name}.pem"), &self.own),
            (format!("x509ca/{name}.pem"), &self.between),
            (format!("private/{name}.pem"), &self.key),
        ] {
            put(&swanctl.join(below), from)?;
        }
        Ok(())
    }

    /// Puts its keys where swanctl looks for them, without the certificate.
    pub fn install_keys(&self, swanctl: &Path, name: &str) -> Result<()> {
        put(&swanctl.join(format!("private/{name}.pem")), &self.key)?;
        put(&swanctl.join(format!("pubkey/{name}.pem")), &self.public)
    }

    /// Puts its public key where swanctl looks for it.
    pub fn install_public(&self, swanctl: &Path, name: &str) -> Result<()> {
        let to = format!("pubkey/{name}-remote.pem");
        put(&swanctl.join(to), &self.public)
    }

    /// Puts its root where swanctl looks for it.
    pub fn install_root(&self, swanctl: &Path, name: &str) -> Result<()> {
        put(&swanctl.join(format!("x509ca/{name}-root.pem")), &self.root)
    }
}

fn put(to: &Path, from: &Path) -> Result<()> {
    std::fs::create_dir_all(to.parent().context("no parent")?)?;
    std::fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}
