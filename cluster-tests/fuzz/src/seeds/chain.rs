//! A chain of certificates, lists of what was revoked, and signatures.

use crate::certificates::{NAME, OCTETS, part};
use evergate_ike::{
    certificate::Certificate,
    signature::{Choice, Constraint, Hash, KeyKind},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SigningKey,
    date_time_ymd,
};
use std::{fs, io, path::Path};

fn params(name: &str, ca: bool) -> CertificateParams {
    let names = if ca { vec![] } else { vec![name.to_owned()] };
    let mut params = CertificateParams::new(names).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        let uris = vec!["http://crl.test/a.crl".to_owned()];
        params.crl_distribution_points = vec![CrlDistributionPoint { uris }];
    }
    params
}

fn crl(params: &CertificateParams, key: &KeyPair, revoked: &[&[u8]]) -> Vec<u8> {
    let revoked = revoked.iter().map(|serial| RevokedCertParams {
        serial_number: serial.to_vec().into(),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2080, 1, 1),
        crl_number: vec![1].into(),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list
        .signed_by(&Issuer::from_params(params, key))
        .expect("a list");
    list.der().to_vec()
}

fn parts(parts: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let part = |(kind, detail, bytes): &(u8, u8, &[u8])| {
        let len = u16::try_from(bytes.len())
            .expect("a short part")
            .to_be_bytes();
        [&[*kind, *detail], &len[..], bytes].concat()
    };
    parts.iter().flat_map(part).collect()
}

/// Writes the root into a directory, and returns inputs.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(directory: &Path) -> io::Result<Vec<Vec<u8>>> {
    let key = || KeyPair::generate().expect("a key");
    let (root, root_key) = (params("root", true), key());
    let (between, between_key) = (params("between", true), key());
    let (peer, peer_key) = (params(NAME, false), key());
    let root_der = root.self_signed(&root_key).expect("a root").der().to_vec();
    let by_root = Issuer::from_params(&root, &root_key);
    let between_der = between
        .signed_by(&between_key, &by_root)
        .expect("a certificate")
        .der()
        .to_vec();
    let by_between = Issuer::from_params(&between, &between_key);
    let peer_der = peer
        .signed_by(&peer_key, &by_between)
        .expect("a certificate")
        .der()
        .to_vec();
    fs::create_dir_all(directory)?;
    fs::write(directory.join("root.der"), &root_der)?;

    let signature = peer_key.sign(OCTETS).expect("a signature");
    let auth = |hashes: Option<&[Hash]>| {
        let choice = Choice::make(KeyKind::P256, hashes, &Constraint::default()).expect("a scheme");
        let data = choice.auth_data(KeyKind::P256, &signature).expect("a form");
        (choice.method.0, data)
    };
    let (new, old) = (auth(Some(&[Hash::Sha256])), auth(None));
    let serial = Certificate::parse(&peer_der).expect("our own").serial;
    let lists = [
        crl(&root, &root_key, &[]),
        crl(&between, &between_key, &[]),
        crl(&between, &between_key, &[&serial, &[1, 2, 3]]),
    ];
    let (x509, none) = (4, 0);
    let chain = [
        (part::CERTIFICATE, x509, &peer_der[..]),
        (part::CERTIFICATE, x509, &between_der[..]),
    ];
    let mut all = vec![parts(&chain), parts(&chain[..1])];
    for (method, data) in [&new, &old] {
        let signed = (part::AUTH, *method, &data[..]);
        all.push(parts(&[chain[0], chain[1], signed]));
        all.push(parts(&[chain[0], signed]));
        for last in 1..3 {
            let list = |n: usize| (part::CRL, none, &lists[n][..]);
            all.push(parts(&[chain[0], chain[1], signed, list(0), list(last)]));
        }
    }
    all.extend([&root_der, &between_der].map(|der| parts(&[(part::CERTIFICATE, x509, der)])));
    Ok(all)
}
