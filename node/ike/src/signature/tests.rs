use super::*;

fn signed(scheme: Scheme) -> Vec<u8> {
    let choice = Choice {
        method: AuthMethod::SIGNATURE,
        scheme,
    };
    choice.auth_data(KeyKind::Rsa, b"signature").unwrap()
}

#[test]
fn identifiers_are_those_of_the_rfc() {
    // RFC 7427 Appendix A.1.2, A.3.2, A.4.3; RFC 8420 Appendix A.
    for (scheme, hex) in [
        (
            Scheme::RsaPkcs1(Hash::Sha256),
            "300d06092a864886f70d01010b0500",
        ),
        (Scheme::Ecdsa(Hash::Sha256), "300a06082a8648ce3d040302"),
        (Scheme::Ecdsa(Hash::Sha512), "300a06082a8648ce3d040304"),
        (
            Scheme::RsaPss(Hash::Sha256),
            "304106092a864886f70d01010a3034a00f300d06096086480165030402010500\
             a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120",
        ),
        (Scheme::Ed25519, "300506032b6570"),
    ] {
        let identifier: String = identifier::of(scheme)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(identifier, hex.replace(' ', ""), "{scheme}");
    }
}

#[test]
fn what_is_written_is_read_back() {
    for hash in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        for scheme in [
            Scheme::RsaPkcs1(hash),
            Scheme::RsaPss(hash),
            Scheme::Ecdsa(hash),
            Scheme::Ed25519,
        ] {
            let parsed = Signed::parse(AuthMethod::SIGNATURE, &signed(scheme)).unwrap();
            assert_eq!(parsed.schemes, [scheme]);
            assert_eq!(parsed.signature, b"signature");
        }
    }
}

#[test]
fn absent_parameters_of_rsa_mean_the_same() {
    let bare = b"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
    assert_eq!(
        identifier::parse(bare),
        Some(Scheme::RsaPkcs1(Hash::Sha256))
    );
    let bare = b"\x30\x0c\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02\x05\x00";
    assert_eq!(identifier::parse(bare), None, "ECDSA has no parameters");
}

#[test]
fn what_is_malformed_is_refused() {
    let good = signed(Scheme::Ed25519);
    for data in [
        &[][..],
        &[0],
        &[200, 1, 2],
        &good[..8],
        &[&[5], &b"\x30\x03\x06\x01\x00"[..], b"s"].concat(),
    ] {
        assert!(
            Signed::parse(AuthMethod::SIGNATURE, data).is_err(),
            "{data:x?}"
        );
    }
    let long = [&good[..], &[1; MAX_SIGNATURE]].concat();
    assert_eq!(
        Signed::parse(AuthMethod::SIGNATURE, &long),
        Err(SignatureError::Form)
    );
    assert!(Signed::parse(AuthMethod::ECDSA_256, &[1; 63]).is_err());
    assert!(Signed::parse(AuthMethod::PSK, &[1; 64]).is_err());
}

#[test]
fn both_forms_of_ecdsa_signatures_are_one() {
    for (r, s) in [(1_u8, 0xff_u8), (0x80, 1), (0, 7)] {
        let mut fixed = vec![0; 132];
        fixed[0] = r;
        fixed[131] = s;
        let asn1 = ecdsa::to_asn1(&fixed, 66).unwrap();
        assert_eq!(ecdsa::to_fixed(&asn1, 66), Some(fixed.clone()));
        // A number that the field cannot hold.
        assert_eq!(ecdsa::to_fixed(&asn1, 32).is_some(), r == 0);
    }
    assert_eq!(ecdsa::to_asn1(&[1; 63], 32), None);
    assert_eq!(ecdsa::to_fixed(b"\x30\x03\x02\x01", 32), None);
}

#[test]
fn announcements_say_what_is_known() {
    let all = Hash::announced(&Hash::announcement());
    assert_eq!(all, Hash::ALL);
    // SHA-1, something new, and SHA2-256 twice.
    let data = [0, 1, 0, 99, 0, 2, 0, 2, 7];
    assert_eq!(Hash::announced(&data), [Hash::Sha256]);
}

fn constraint(text: &str) -> Constraint {
    text.parse().unwrap()
}

#[test]
fn constraints_say_what_is_meant() {
    let (pkcs1, pss) = (Scheme::RsaPkcs1(Hash::Sha256), Scheme::RsaPss(Hash::Sha384));
    let ecdsa = Scheme::Ecdsa(Hash::Sha512);
    for (text, allowed) in [
        ("pubkey", [true; 4]),
        ("pubkey-sha256", [true, false, false, true]),
        ("rsa", [true, true, false, false]),
        ("rsa/pss", [false, true, false, false]),
        ("rsa-sha384-sha512", [false, true, false, false]),
        ("ecdsa", [false, false, true, false]),
        ("ed25519", [false, false, false, true]),
    ] {
        let constraint = constraint(text);
        let schemes = [pkcs1, pss, ecdsa, Scheme::Ed25519];
        assert_eq!(schemes.map(|s| constraint.allows(s)), allowed, "{text}");
        assert_eq!(constraint.to_string(), text);
    }
    for text in [
        "",
        "psk",
        "rsa-sha1",
        "rsa-",
        "ed25519-sha256",
        "RSA",
        "rsa/pkcs1",
    ] {
        assert!(text.parse::<Constraint>().is_err(), "{text}");
    }
}

#[test]
fn the_method_is_what_the_peer_can_verify() {
    let any = Constraint::default();
    let choose = |key, peer: Option<&[Hash]>, c: &Constraint| {
        Choice::make(key, peer, c).map(|c| (c.method, c.scheme))
    };
    let new = |scheme| Some((AuthMethod::SIGNATURE, scheme));
    let all = Some(&Hash::ALL[..]);
    assert_eq!(
        choose(KeyKind::Rsa, all, &any),
        new(Scheme::RsaPkcs1(Hash::Sha256))
    );
    assert_eq!(
        choose(KeyKind::Rsa, all, &constraint("rsa/pss-sha512")),
        new(Scheme::RsaPss(Hash::Sha512))
    );
    assert_eq!(
        choose(KeyKind::Rsa, Some(&[Hash::Sha384]), &any),
        new(Scheme::RsaPkcs1(Hash::Sha384))
    );
    assert_eq!(choose(KeyKind::P256, Some(&[Hash::Sha384]), &any), None);
    assert_eq!(choose(KeyKind::Ed25519, Some(&Hash::ALL[..3]), &any), None);
    assert_eq!(choose(KeyKind::Rsa, all, &constraint("ecdsa")), None);
    let old = |method, scheme| Some((method, scheme));
    assert_eq!(
        choose(KeyKind::Rsa, None, &any),
        old(AuthMethod::RSA, Scheme::RsaPkcs1(Hash::Sha256))
    );
    assert_eq!(
        choose(KeyKind::P384, None, &any),
        old(AuthMethod::ECDSA_384, Scheme::Ecdsa(Hash::Sha384))
    );
    assert_eq!(choose(KeyKind::Rsa, None, &constraint("rsa/pss")), None);
    assert_eq!(choose(KeyKind::Ed25519, None, &any), None);
}
