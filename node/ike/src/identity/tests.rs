//! Identities on the wire, as text, and against patterns.

use super::*;
use proptest::prelude::*;

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

fn wire(kind: IdType, data: &[u8]) -> Identity {
    Identity::from_wire(&Identification {
        kind,
        reserved: [1, 2, 3],
        data: data.to_vec(),
    })
}

#[test]
fn forms_are_strongswans() {
    let fqdn = |name: &str| Identity::Fqdn(name.to_owned());
    let email = |name: &str| Identity::Email(name.to_owned());
    let ip = |text: &str| Identity::Address(text.parse().unwrap());
    let key = |data: &[u8]| Identity::KeyId(data.to_vec());
    for (text, want) in [
        ("192.0.2.1", ip("192.0.2.1")),
        ("2001:db8::1", ip("2001:db8::1")),
        ("ipv4:192.0.2.1", ip("192.0.2.1")),
        ("ipv6:fe80::1", ip("fe80::1")),
        ("gw.Example.ORG", fqdn("gw.example.org")),
        ("carol", fqdn("carol")),
        ("@gw.example.org", fqdn("gw.example.org")),
        ("fqdn:10.0.0.1", fqdn("10.0.0.1")),
        ("fqdn:a b", fqdn("a b")),
        ("Carol@Example.org", email("Carol@example.org")),
        ("email:carol", email("carol")),
        ("@@carol@example.org", email("carol@example.org")),
        ("keyid:my key", key(b"my key")),
        ("keyid:0x00fF", key(&[0, 0xff])),
        ("@#00ff", key(&[0, 0xff])),
        ("dn:0x3000", Identity::Dn(vec![0x30, 0])),
        (
            "{12}:0x01",
            Identity::Other {
                kind: 12,
                data: vec![1],
            },
        ),
        ("{2}:0x41", fqdn("a")),
    ] {
        assert_eq!(id(text), want, "{text}");
    }
}

#[test]
fn other_texts_are_refused() {
    for text in [
        "",
        "%any",
        "*.example.org",
        "a*b",
        "C=CH, O=",
        "C=CH, Nonsense=x",
        "C=Zürich",
        "C=CH, O=a+b",
        "C=CH, O=x\\",
        "=x",
        "two words",
        "10.0.0.0/8",
        "a\nb",
        "fqdn:",
        "fqdn:a\nb",
        "email:\u{202e}",
        "ipv4:::1",
        "ipv6:192.0.2.1",
        "keyid:",
        "keyid:0x0",
        "keyid:0xzz",
        "dn:3000",
        "unknown:foo",
        "@",
        "carol@",
        "@@",
        "a@b@c",
        "{256}:0x00",
        "{12}:01",
    ] {
        assert!(text.parse::<Identity>().is_err(), "{text}");
    }
    assert!("a".repeat(5000).parse::<Identity>().is_err());
}

#[test]
fn payloads_are_read_and_written() {
    for (kind, data, want) in [
        (IdType::IPV4_ADDR, &[192, 0, 2, 1][..], "192.0.2.1"),
        (
            IdType::IPV6_ADDR,
            &[0xff; 16],
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ),
        (IdType::FQDN, b"gw.example.org", "gw.example.org"),
        (
            IdType::RFC822_ADDR,
            b"carol@example.org",
            "carol@example.org",
        ),
        (IdType::DER_ASN1_DN, &[0x30, 0], "dn:0x3000"),
        (IdType::KEY_ID, b"key", "keyid:key"),
        (IdType::KEY_ID, &[0, 1], "keyid:0x0001"),
        (IdType::KEY_ID, b"0x", "keyid:0x3078"),
        (IdType::DER_ASN1_GN, &[1], "{10}:0x01"),
        // Data that is not what its type says.
        (IdType::IPV4_ADDR, &[192, 0, 2], "{1}:0xc00002"),
        (IdType::IPV6_ADDR, &[0; 4], "{5}:0x00000000"),
        (IdType::FQDN, &[0xff], "{2}:0xff"),
        (IdType::RFC822_ADDR, &[0xff], "{3}:0xff"),
    ] {
        let identity = wire(kind, data);
        assert_eq!(identity.to_string(), want);
        assert_eq!(identity.to_wire().kind, kind);
        assert_eq!(identity.to_wire().data, data);
        assert_eq!(identity.to_wire().reserved, [0; 3]);
        assert_eq!(format!("{identity:?}"), format!("Identity({want})"));
    }
    assert!(matches!(
        wire(IdType::FQDN, &[0xff]),
        Identity::Other { kind: 2, .. }
    ));
}

#[test]
fn what_could_mislead_in_a_log_is_written_as_what_it_is() {
    for (kind, data, want) in [
        (IdType::FQDN, &b"a\nb"[..], "{2}:0x610a62"),
        (IdType::FQDN, b"\x1b[2j", "{2}:0x1b5b326a"),
        (IdType::FQDN, "\u{202e}gro".as_bytes(), "{2}:0xe280ae67726f"),
        (IdType::FQDN, b"", "{2}:0x"),
        (IdType::FQDN, b"192.0.2.1", "fqdn:192.0.2.1"),
        (IdType::FQDN, b"carol@example.org", "fqdn:carol@example.org"),
        (IdType::FQDN, b"%any", "fqdn:%any"),
        (IdType::FQDN, b"*.example.org", "fqdn:*.example.org"),
        (IdType::RFC822_ADDR, b"example.org", "email:example.org"),
        (
            IdType::RFC822_ADDR,
            b"x\r@example.org",
            "{3}:0x780d406578616d706c652e6f7267",
        ),
        (IdType::KEY_ID, b"a\tb", "keyid:0x610962"),
    ] {
        assert_eq!(wire(kind, data).to_string(), want);
    }
}

#[test]
fn names_are_equal_without_case_where_case_does_not_matter() {
    assert_eq!(wire(IdType::FQDN, b"GW.example.org"), id("gw.EXAMPLE.org"));
    assert_eq!(
        wire(IdType::RFC822_ADDR, b"carol@EXAMPLE.org"),
        id("carol@example.org")
    );
    assert_ne!(id("Carol@example.org"), id("carol@example.org"));
    assert_ne!(id("keyid:A"), id("keyid:a"));
    // Also when they were not made by parsing.
    let odd = IdPattern::Exact(Identity::Fqdn("GW".to_owned()));
    assert!(odd.matches(&id("gw")));
    assert_eq!(Identity::Fqdn("GW".to_owned()).to_string(), "GW");
}

#[test]
fn patterns_match_what_they_mean() {
    let cases = [
        ("%any", "gw.example.org", true),
        ("%any", "192.0.2.1", true),
        ("192.0.2.1", "192.0.2.1", true),
        ("192.0.2.1", "fqdn:192.0.2.1", false),
        ("192.0.2.1", "192.0.2.2", false),
        ("GW.example.org", "gw.example.org", true),
        ("gw.example.org", "email:gw.example.org", false),
        ("*.Example.org", "gw.example.org", true),
        ("*.example.org", "a.b.EXAMPLE.org", true),
        ("*.example.org", "example.org", false),
        ("*.example.org", "fqdn:.example.org", false),
        ("*.example.org", "evilexample.org", false),
        ("*.example.org", "gw.example.org.evil", false),
        ("*.example.org", "keyid:gw.example.org", false),
        ("*.example.org", "email:gw.example.org", false),
        ("*@example.org", "carol@Example.org", true),
        ("*@example.org", "carol@sub.example.org", false),
        ("*@example.org", "email:@example.org", false),
        ("*@example.org", "fqdn:carol@example.org", false),
        ("fqdn:*.example.org", "gw.example.org", false),
        ("fqdn:*.example.org", "fqdn:*.example.org", true),
    ];
    for (pattern, identity, want) in cases {
        let parsed: IdPattern = pattern.parse().unwrap();
        assert_eq!(parsed.matches(&id(identity)), want, "{pattern} {identity}");
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
    for text in ["", "*", "*.", "*@", "*.a*", "*@a@b", "a.*", "*.a b"] {
        assert!(text.parse::<IdPattern>().is_err(), "{text}");
    }
}

fn dn(text: &str) -> Identity {
    let parsed = id(text);
    assert!(matches!(parsed, Identity::Dn(_)), "{text}");
    parsed
}

#[test]
fn distinguished_names_are_written_in_the_order_of_their_der() {
    for (text, shown) in [
        ("C=CH, O=Example, CN=gw", "C=CH, O=Example, CN=gw"),
        ("c=CH,o=Example , cn = gw", "C=CH, O=Example, CN=gw"),
        (
            "O=Example\\, Inc., E=a@b.test",
            "O=Example\\, Inc., E=a@b.test",
        ),
        ("CN=Zürich", "CN=Zürich"),
        ("dn:CN=gw", "CN=gw"),
        ("2.5.4.3=gw, 1.2.3.4=x", "CN=gw, 1.2.3.4=x"),
        ("CN=\\*", "CN=\\*"),
    ] {
        assert_eq!(dn(text).to_string(), shown);
        assert_eq!(dn(shown), dn(text));
    }
    // SEQUENCE { SET { SEQUENCE { OID 2.5.4.3, PrintableString "gw" } } }
    let der = b"\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x13\x02gw";
    assert_eq!(dn("CN=gw"), Identity::Dn(der.to_vec()));
    // Another type of string is another payload, so it is shown as what it is; but it means the same.
    let mut utf8 = der.to_vec();
    utf8[11] = 0x0c;
    let utf8 = Identity::Dn(utf8);
    assert!(utf8.to_string().starts_with("dn:0x30"));
    assert!(utf8.means(&dn("CN=gw")) && utf8 != dn("CN=gw"));
}

#[test]
fn distinguished_names_match_part_by_part() {
    for (pattern, name, want) in [
        ("C=CH, O=Example, CN=gw", "c=ch, O=example,  CN=GW", true),
        ("C=CH, O=Example, CN=gw", "C=CH, O=Example", false),
        ("C=CH, O=Example, CN=gw", "C=CH, CN=gw, O=Example", false),
        ("C=CH, O=Example, CN=*", "C=CH, O=Example, CN=anyone", true),
        ("C=CH, O=Example, CN=*", "C=CH, O=Other, CN=anyone", false),
        (
            "C=CH, O=Example, CN=*",
            "C=CH, O=Example, OU=x, CN=anyone",
            false,
        ),
        ("C=CH, O=*, CN=*", "C=CH, O=x, CN=y", true),
        (
            "O=Example, OU=Field, *",
            "C=CH, O=Example, L=Bern, OU=Field, CN=x",
            true,
        ),
        ("O=Example, OU=Field, *", "O=Example, OU=Field", true),
        ("O=Example, OU=Field, *", "OU=Field, O=Example", false),
        ("O=Example, *", "CN=Example", false),
        ("O=Some  Words", "O=some words", true),
    ] {
        let parsed: IdPattern = pattern.parse().unwrap();
        assert_eq!(parsed.matches(&dn(name)), want, "{pattern} {name}");
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
    let any_name: IdPattern = "CN=*".parse().unwrap();
    assert!(!any_name.matches(&id("gw")) && !any_name.matches(&Identity::Dn(vec![0x30, 0])));
    for text in ["*", "CN=*, Nonsense=x", "=*", "CN=", "CN=gw, *, O=x"] {
        assert!(text.parse::<IdPattern>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_shown_harmlessly_and_reads_back(
        kind in any::<u8>(),
        data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            ".{0,20}".prop_map(String::into_bytes),
            "[a-zA-Z0-9.@*:%={} -]{0,20}".prop_map(String::into_bytes),
        ],
    ) {
        let identity = wire(IdType(kind % 13), &data);
        let text = identity.to_string();
        prop_assert!(!text.chars().any(char::is_control));
        prop_assert_eq!(text.parse::<Identity>(), Ok(identity.clone()));
        prop_assert_eq!(Identity::from_wire(&identity.to_wire()), identity.clone());
        prop_assert!(IdPattern::Exact(identity.clone()).matches(&identity));
        prop_assert!(identity.to_wire().data.eq_ignore_ascii_case(&data));
    }

    #[test]
    fn no_text_does_harm(text in ".{0,30}") {
        if let Ok(identity) = text.parse::<Identity>() {
            prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity));
        }
        let _ = text.parse::<IdPattern>();
    }
}
