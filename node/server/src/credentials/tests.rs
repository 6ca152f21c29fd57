use super::{
    keys::{KeyError, KeyStore, read_private_key},
    *,
};
use evergate_ike::{
    secret::Secret,
    signature::{Hash, KeyKind},
};

/// Keys that openssl made for these tests; they are used nowhere else.
macro_rules! file {
    ($name:literal) => {
        &include_bytes!(concat!("testdata/", $name))[..]
    };
}

fn passphrase(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

#[test]
fn every_form_of_key_is_read() {
    let pass = passphrase("passphrase");
    for (file, pass, kind) in [
        (file!("pkcs1.pem"), None, KeyKind::Rsa),
        (file!("sec1.pem"), None, KeyKind::P256),
        (file!("p384.pem"), None, KeyKind::P384),
        (file!("p521.pem"), None, KeyKind::P521),
        (file!("ed25519.pem"), None, KeyKind::Ed25519),
        (file!("encrypted.pem"), Some(&pass), KeyKind::Ed25519),
        (file!("scrypt.pem"), Some(&pass), KeyKind::P256),
        // One that is not encrypted needs none.
        (file!("sec1.pem"), Some(&pass), KeyKind::P256),
    ] {
        let key = read_private_key("k", file, pass).unwrap();
        assert_eq!(key.kind, kind);
        assert_eq!(KeyKind::of(&key.spki), Some(kind));
    }
    let plain = read_private_key("k", file!("ed25519.pem"), None).unwrap();
    let opened = read_private_key("k", file!("encrypted.pem"), Some(&pass)).unwrap();
    assert_eq!(plain.spki, opened.spki);
}

#[test]
fn what_cannot_be_used_is_said_without_showing_it() {
    for (file, pass, error) in [
        (file!("encrypted.pem"), None, KeyError::NoPassphrase),
        (file!("encrypted.pem"), Some("wrong"), KeyError::Decryption),
        (file!("scrypt.pem"), Some(""), KeyError::Decryption),
        (
            file!("old.pem"),
            Some("passphrase"),
            KeyError::OldEncryption,
        ),
        (file!("x25519.pem"), None, KeyError::Kind),
        (file!("small.pem"), None, KeyError::Kind),
        (&b"no key"[..], None, KeyError::NoKey),
        (b"", None, KeyError::NoKey),
        (b"\xff\xfe", None, KeyError::NoKey),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            None,
            KeyError::Kind,
        ),
        (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            Some("x"),
            KeyError::NoKey,
        ),
    ] {
        let pass = pass.map(passphrase);
        assert_eq!(
            read_private_key("k", file, pass.as_ref()).err(),
            Some(error)
        );
    }
    let key = read_private_key("k", file!("ed25519.pem"), None).unwrap();
    assert!(format!("{key:?}").contains("Secret("));
}

#[test]
fn signatures_verify_under_their_public_key() {
    let store = KeyStore::default();
    let all = [Hash::Sha256, Hash::Sha384, Hash::Sha512];
    let rsa = all
        .iter()
        .flat_map(|h| [Scheme::RsaPkcs1(*h), Scheme::RsaPss(*h)]);
    let mut cases: Vec<(&[u8], Scheme)> = rsa.map(|s| (file!("pkcs1.pem"), s)).collect();
    cases.push((file!("sec1.pem"), Scheme::Ecdsa(Hash::Sha256)));
    cases.push((file!("p384.pem"), Scheme::Ecdsa(Hash::Sha384)));
    cases.extend(all.map(|h| (file!("p521.pem"), Scheme::Ecdsa(h))));
    cases.push((file!("ed25519.pem"), Scheme::Ed25519));
    for (file, scheme) in cases {
        let key = read_private_key("k", file, None).unwrap();
        // Twice: made ready, and ready.
        for _ in 0..2 {
            let signature = store.sign(&key, scheme, b"octets").unwrap();
            assert!(scheme.verify(&key.spki, b"octets", &signature), "{scheme}");
            assert!(!scheme.verify(&key.spki, b"other", &signature), "{scheme}");
        }
    }
    let key = read_private_key("k", file!("sec1.pem"), None).unwrap();
    for scheme in [
        Scheme::Ed25519,
        Scheme::Ecdsa(Hash::Sha384),
        Scheme::RsaPkcs1(Hash::Sha256),
    ] {
        assert_eq!(store.sign(&key, scheme, b""), Err(KeyError::Scheme));
    }
}

#[tokio::test]
async fn a_key_that_is_gone_signs_nothing() {
    let credentials = Credentials::new();
    let policy = Arc::new(Policy::default());
    let signed = credentials.sign(policy, "gone".to_owned(), Scheme::Ed25519, vec![1]);
    assert_eq!(signed.await, None);
}
