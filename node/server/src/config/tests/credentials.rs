//! Certificates and private keys in configurations.

use super::super::{Config, Problem, parse};
use evergate_ike::config::{Credential, LocalAuth, RemoteAuth, RevocationPolicy, SendCert, Shown};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use std::{fs, path::Path};

/// A directory with a root, an intermediate authority, and a certificate of each kind of mistake.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    };
    let (root, root_key) = authority("root");
    let (between, between_key) = authority("between");
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = Issuer::from_params(&root, &root_key);
    let between_pem = between.signed_by(&between_key, &issuer).unwrap().pem();
    let issuer = Issuer::from_params(&between, &between_key);
    let mut own = CertificateParams::new(vec!["gw.test".to_owned()]).unwrap();
    let own_key = KeyPair::generate().unwrap();
    let own_pem = own.signed_by(&own_key, &issuer).unwrap().pem();
    own.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let no_sign = own.signed_by(&own_key, &issuer).unwrap();
    write("chain.pem", format!("{own_pem}{between_pem}"));
    write("own.pem", own_pem);
    write("no-sign.pem", no_sign.pem());
    fs::write(dir.path().join("no-sign.der"), no_sign.der()).unwrap();
    write("gw.key", own_key.serialize_pem());
    write("other.key", KeyPair::generate().unwrap().serialize_pem());
    write("gw.pub", own_key.public_key_pem());
    let der = own_key.subject_public_key_info();
    fs::write(dir.path().join("gw.pub.der"), der).unwrap();
    write("root.pem", root_pem);
    write("between.pem", between_pem);
    write("empty.pem", String::new());
    write("passphrase", "secret\n".to_owned());
    dir
}

fn read(dir: &Path, text: &str) -> Result<Config, Vec<Problem>> {
    parse(text, dir)
}

const CONNECTION: &str = "[connections.c]
send_cert = 'always'
local = { auth = 'pubkey', certs = ['chain.pem'] }
remote = { auth = 'ecdsa-sha256', id = 'C=CH, CN=*' }
[connections.c.children.c]
";

fn chain(credential: &Credential) -> &[Vec<u8>] {
    match &credential.shown {
        Shown::Chain(chain) => chain,
        Shown::RawKey(_) => panic!("{credential:?}"),
    }
}

#[test]
fn raw_public_keys_need_no_authority() {
    let dir = files();
    let text = "[connections.c]
local = { auth = 'pubkey', pubkeys = ['gw.pub'] }
remote = { auth = 'pubkey', id = 'peer.test', pubkeys = ['gw.pub', 'gw.pub.der'] }
[connections.c.children.c]
[secrets.gw]
file = 'gw.key'
";
    let config = read(dir.path(), text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let auth = &config.policy.connections[0].auth;
    let LocalAuth::Pubkey { credentials, .. } = &auth.local else {
        panic!("{auth:?}");
    };
    let [credential] = &credentials[..] else {
        panic!("{auth:?}");
    };
    let spki = fs::read(dir.path().join("gw.pub.der")).unwrap();
    assert_eq!(credential.shown, Shown::RawKey(spki.clone()));
    assert_eq!(credential.private_key, "gw");
    assert!(
        matches!(&auth.remote, RemoteAuth::Pubkey { raw_keys, .. } if *raw_keys == [spki.clone(), spki])
    );
    assert!(auth.remote.takes_raw_keys() && !auth.remote.takes_certificates(&config.policy));
    let many = format!("pubkeys = [{}]", "'gw.pub',".repeat(17));
    for (text, expected) in [
        (
            text.replace("['gw.pub', 'gw", "['own.pem', 'gw"),
            "own.pem is no public key",
        ),
        (
            text.replace("gw.key", "other.key"),
            "no private key belongs to gw.pub",
        ),
        (
            text.replace("'pubkey', pubkeys", "'psk', pubkeys"),
            "pubkeys are for signatures",
        ),
        (
            text.replace("'pubkey', id", "'psk', id"),
            "certificates and public keys are for signatures",
        ),
        (
            text.replace("pubkeys = ['gw.pub', 'gw.pub.der']", &many),
            "expected up to 16",
        ),
    ] {
        let problems = read(dir.path(), &text).expect_err(expected);
        let said: Vec<&str> = problems.iter().map(|p| &p.message[..]).collect();
        assert!(
            said.iter().any(|s| s.contains(expected)),
            "{expected}: {said:?}"
        );
    }
}

#[test]
fn certificates_keys_and_authorities_are_matched() {
    let dir = files();
    let text = format!(
        "{CONNECTION}[secrets.gw]\nfile = 'gw.key'\n[authorities.root]\ncacert = 'root.pem'\n"
    );
    let config = read(dir.path(), &text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let auth = &config.policy.connections[0].auth;
    let LocalAuth::Pubkey { credentials, .. } = &auth.local else {
        panic!("{auth:?}");
    };
    assert_eq!(chain(&credentials[0]).len(), 2);
    assert_eq!(credentials[0].private_key, "gw");
    assert_eq!(
        credentials[0].issuers.len(),
        2,
        "the intermediate and the root"
    );
    assert_eq!(auth.send_cert, SendCert::Always);
    assert!(auth.send_certreq);
    assert!(
        matches!(&auth.remote, RemoteAuth::Pubkey { constraint, .. } if constraint.to_string() == "ecdsa-sha256")
    );
    assert_eq!(config.policy.authorities.len(), 1);
    let more = format!("{text}crl_uris = ['http://crl.test/root.crl', 'file:/root.crl']\n");
    let more = read(
        dir.path(),
        &more.replace("id = 'C=CH", "revocation = 'strict', id = 'C=CH"),
    )
    .unwrap();
    assert_eq!(more.policy.authorities[0].crl_uris.len(), 2);
    let strict = matches!(&more.policy.connections[0].auth.remote, RemoteAuth::Pubkey { revocation, .. } if *revocation == RevocationPolicy::Strict);
    assert!(strict);
    assert!(config.policy.secrets.is_empty());
    // The same with the intermediate among the authorities.
    let text =
        text.replace("chain.pem", "own.pem") + "[authorities.between]\ncacert = 'between.pem'\n";
    let config = read(dir.path(), &text).unwrap();
    let LocalAuth::Pubkey { credentials, .. } = &config.policy.connections[0].auth.local else {
        panic!();
    };
    assert_eq!(chain(&credentials[0]).len(), 2);
    let anchors: Vec<_> = config.policy.anchors().map(|a| &a.name[..]).collect();
    assert_eq!(anchors, ["root"]);
}

#[test]
fn what_does_not_fit_together_is_said() {
    let dir = files();
    let key = "[secrets.gw]\nfile = 'gw.key'\n";
    let root = "[authorities.root]\ncacert = 'root.pem'\n";
    let good = format!("{CONNECTION}{key}{root}");
    for (text, expected) in [
        (
            good.replace("gw.key", "other.key"),
            "no private key belongs to chain.pem",
        ),
        (good.replace("gw.key", "missing.key"), "cannot read"),
        (
            good.replace("gw.key", "root.pem"),
            "root.pem is no private key that can be used",
        ),
        (good.replace("chain.pem", "gw.key"), "the certificate in"),
        (good.replace("chain.pem", "empty.pem"), "the certificate in"),
        (
            good.replace("chain.pem", "no-sign.pem"),
            "the key usage of no-sign.pem",
        ),
        (
            good.replace("chain.pem", "no-sign.der"),
            "the key usage of no-sign.der",
        ),
        (
            good.replace("root.pem", "own.pem"),
            "own.pem is no authority",
        ),
        (
            good.replace("certs = ['chain.pem']", "certs = []"),
            "there is no certificate",
        ),
        (format!("{CONNECTION}{key}"), "trusts no certificate"),
        (
            good.replace("'pubkey'", "'psk'"),
            "certs are for signatures",
        ),
        (
            good.replace("'pubkey'", "'eap'"),
            "not a method of authentication",
        ),
        (
            good.replace("'always'", "'perhaps'"),
            "does not say when to send certificates",
        ),
        (
            good.replace("file = 'gw.key'", "file = 'gw.key'\nids = ['a']"),
            "expected no ids",
        ),
        (
            good.replace(
                "file = 'gw.key'",
                "file = 'gw.key'\nsecret = 'a'\nsecret_file = 'passphrase'",
            ),
            "expected the passphrase in either",
        ),
    ] {
        let problems = read(dir.path(), &text).expect_err(expected);
        let said: Vec<&str> = problems.iter().map(|p| &p.message[..]).collect();
        assert!(
            said.iter().any(|s| s.contains(expected)),
            "{expected}: {said:?}"
        );
        assert!(said.iter().all(|s| !s.contains("PRIVATE KEY")));
    }
}

#[test]
fn arrays_of_ends_are_rounds() {
    let dir = files();
    let text = "[connections.c]
[[connections.c.local]]
auth = 'pubkey'
pubkeys = ['gw.pub']
[[connections.c.local]]
id = 'second.test'
[[connections.c.remote]]
auth = 'pubkey'
id = 'peer.test'
pubkeys = ['gw.pub']
[[connections.c.remote]]
id = '*@staff.test'
[connections.c.children.c]
[secrets.gw]
file = 'gw.key'
[secrets.alice]
ids = ['alice@staff.test', 'second.test']
secret = 'a'
";
    let config = read(dir.path(), text).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let connection = &config.policy.connections[0];
    assert_eq!(connection.rounds(), (2, 2));
    assert!(matches!(connection.local_auth(0), LocalAuth::Pubkey { .. }));
    assert_eq!(*connection.local_auth(1), LocalAuth::Psk);
    let address = "192.0.2.1".parse().unwrap();
    let names = [0, 1, 2].map(|round| connection.own_identity(round, address).to_string());
    assert_eq!(names, ["192.0.2.1", "second.test", "second.test"]);
    assert_eq!(connection.remote_id_in(0).to_string(), "peer.test");
    assert_eq!(connection.remote_id_in(1).to_string(), "*@staff.test");
    // A key that is missing in a later round is missed, too.
    let config = read(
        dir.path(),
        &text.replace("alice@", "bob@other.test', 'bob@"),
    )
    .unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let config = read(dir.path(), &text.replace("alice@staff.test", "bob.test")).unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    let many = format!(
        "{}[connections.c.children.c]",
        "[[connections.c.local]]\n".repeat(5)
    );
    for text in [&many[..], "[connections.c]\nlocal = []\n"] {
        let problems = read(dir.path(), text).expect_err("many");
        assert!(
            problems[0].message.contains("1 to 4 tables"),
            "{problems:?}"
        );
    }
}
