use super::{
    ocsp::{Answer, Inquiry},
    testing::*,
    *,
};
use crate::{
    config::{Policy, RemoteAuth, RevocationPolicy},
    signature::Signed,
    wire::AuthMethod,
};
use rcgen::{
    BasicConstraints, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, date_time_ymd,
};

/// 2026-01-01.
const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const OCTETS: &[u8] = b"what is signed";

/// A peer that signed with a certificate, and the policy that judges it.
struct Case {
    id: Identity,
    peer: Issued,
    chain: Vec<Vec<u8>>,
    raw_key: Option<Vec<u8>>,
    policy: Policy,
    now: UnixMillis,
    crls: Option<Vec<Crl>>,
    answers: Vec<Answer>,
}

impl Case {
    fn new(peer: Issued, id: &str, others: &[&Issued], anchors: &[&Issued]) -> Self {
        let mut policy = crate::sa::testing_policy();
        policy.authorities = anchors.iter().map(|a| a.authority()).collect();
        policy.connections[0].auth.remote = pubkey();
        let own = peer.der.clone();
        Self {
            id: id.parse().unwrap(),
            chain: std::iter::once(own)
                .chain(others.iter().map(|o| o.der.clone()))
                .collect(),
            raw_key: None,
            peer,
            policy,
            now: NOW,
            crls: None,
            answers: vec![],
        }
    }

    fn question(&self) -> Verification {
        let scheme = match self.peer.certificate().key {
            KeyKind::Rsa => crate::signature::Scheme::RsaPkcs1(crate::signature::Hash::Sha256),
            KeyKind::P384 => crate::signature::Scheme::Ecdsa(crate::signature::Hash::Sha384),
            KeyKind::P521 => crate::signature::Scheme::Ecdsa(crate::signature::Hash::Sha512),
            KeyKind::P256 => crate::signature::Scheme::Ecdsa(crate::signature::Hash::Sha256),
            KeyKind::Ed25519 => crate::signature::Scheme::Ed25519,
        };
        let choice = crate::signature::Choice {
            method: AuthMethod::SIGNATURE,
            scheme,
        };
        let signature = self.peer.sign_octets(OCTETS);
        let data = choice
            .auth_data(self.peer.certificate().key, &signature)
            .unwrap();
        Verification {
            id: self.id.clone(),
            evidence: Evidence {
                certificates: self.chain.clone(),
                raw_key: self.raw_key.clone(),
                hash_and_url: false,
            },
            signed: Signed::parse(AuthMethod::SIGNATURE, &data).unwrap(),
            octets: OCTETS.to_vec(),
            candidates: vec!["c".to_owned()],
            round: 0,
        }
    }

    fn run(&self) -> Result<Certificate, CertificateError> {
        let question = self.question();
        let crls = self.crls.as_ref().map(|c| c.iter().collect::<Vec<_>>());
        let answers: Vec<&Answer> = self.answers.iter().collect();
        let known = crls.as_ref().map(|crls| Known {
            crls,
            answers: &answers,
        });
        let verified = question.run(&self.policy, self.now, known)?;
        assert_eq!(verified.connection, "c");
        Ok(verified.certificate.expect("a certificate"))
    }
}

#[test]
fn every_kind_of_key_is_accepted_through_an_intermediate() {
    let root = root("root");
    let between = root.intermediate("between", |_| {});
    for kind in [
        KeyKind::Rsa,
        KeyKind::P256,
        KeyKind::P384,
        KeyKind::P521,
        KeyKind::Ed25519,
    ] {
        let peer = between.issue(kind, &["peer.test"]);
        let case = Case::new(peer, "peer.test", &[&between], &[&root]);
        assert_eq!(case.run().unwrap().key, kind);
    }
}

#[test]
fn an_intermediate_may_be_known_here_instead_of_sent() {
    let root = root("root");
    let between = root.intermediate("between", |_| {});
    let peer = || between.issue(KeyKind::P256, &["peer.test"]);
    assert!(
        Case::new(peer(), "peer.test", &[], &[&root, &between])
            .run()
            .is_ok()
    );
    let missing = Case::new(peer(), "peer.test", &[], &[&root]);
    assert_eq!(missing.run(), Err(CertificateError::UnknownIssuer));
    // Without its own issuer an authority is the end of the path.
    assert!(
        Case::new(peer(), "peer.test", &[], &[&between])
            .run()
            .is_ok()
    );
}

#[test]
fn another_authority_of_the_same_name_is_another() {
    let (ours, theirs) = (root("root"), root("root"));
    let peer = theirs.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[&theirs], &[&ours]);
    assert!(matches!(
        case.run(),
        Err(CertificateError::Signature | CertificateError::UnknownIssuer)
    ));
}

#[test]
fn time_counts_for_every_certificate_of_the_path() {
    let expires = |p: &mut rcgen::CertificateParams| p.not_after = date_time_ymd(2025, 1, 1);
    let begins = |p: &mut rcgen::CertificateParams| p.not_before = date_time_ymd(2027, 1, 1);
    let good = root("root");
    let peer = good.issue_with(KeyKind::P256, &["peer.test"], expires);
    let case = Case::new(peer, "peer.test", &[], &[&good]);
    assert_eq!(case.run(), Err(CertificateError::Expired));
    let peer = good.issue_with(KeyKind::P256, &["peer.test"], begins);
    let case = Case::new(peer, "peer.test", &[], &[&good]);
    assert_eq!(case.run(), Err(CertificateError::NotYetValid));
    let between = good.intermediate("between", expires);
    let peer = between.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[&between], &[&good]);
    assert_eq!(case.run(), Err(CertificateError::Expired));
    // The authority's own, which webpki does not look at.
    let old = root_with("old", expires);
    let peer = old.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[], &[&old]);
    assert_eq!(case.run(), Err(CertificateError::Expired));
}

#[test]
fn extended_key_usage_is_none_or_ikes_or_any() {
    let root = root("root");
    let ike = || ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]);
    for (usages, good) in [
        (vec![], true),
        (vec![ike()], true),
        (vec![ExtendedKeyUsagePurpose::Any], true),
        (vec![ExtendedKeyUsagePurpose::ServerAuth, ike()], true),
        (vec![ExtendedKeyUsagePurpose::ServerAuth], false),
        (vec![ExtendedKeyUsagePurpose::ClientAuth], false),
        // id-kp-ipsecEndSystem is deprecated.
        (
            vec![ExtendedKeyUsagePurpose::Other(vec![
                1, 3, 6, 1, 5, 5, 7, 3, 5,
            ])],
            false,
        ),
    ] {
        let peer = root.issue_with(KeyKind::P256, &["peer.test"], |p| {
            p.extended_key_usages = usages.clone();
        });
        let outcome = Case::new(peer, "peer.test", &[], &[&root]).run();
        let want = if good {
            None
        } else {
            Some(CertificateError::ExtendedKeyUsage)
        };
        assert_eq!(outcome.err(), want, "{usages:?}");
    }
}

#[test]
fn key_usage_has_to_allow_signatures() {
    let root = root("root");
    for (usage, good) in [
        (KeyUsagePurpose::DigitalSignature, true),
        (KeyUsagePurpose::ContentCommitment, true),
        (KeyUsagePurpose::KeyEncipherment, false),
        (KeyUsagePurpose::KeyCertSign, false),
    ] {
        let peer = root.issue_with(KeyKind::P256, &["peer.test"], |p| {
            p.key_usages = vec![usage];
        });
        let outcome = Case::new(peer, "peer.test", &[], &[&root]).run();
        assert_eq!(outcome.is_ok(), good, "{usage:?}: {outcome:?}");
    }
}

#[test]
fn who_may_not_issue_did_not() {
    let root = root("root");
    // An ordinary certificate.
    let user = root.issue(KeyKind::P256, &["user.test"]);
    let peer = user.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[&user], &[&root]);
    assert!(
        matches!(case.run(), Err(CertificateError::Issuer(_))),
        "{:?}",
        case.run()
    );
    // An authority whose key is not for certificates.
    let crl_only = root.intermediate("crl", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let peer = crl_only.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[&crl_only], &[&root]);
    assert!(
        matches!(case.run(), Err(CertificateError::Issuer(_))),
        "{:?}",
        case.run()
    );
    // One that may have no authority below it.
    let last = root.intermediate("last", |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let below = last.intermediate("below", |_| {});
    let peer = below.issue(KeyKind::P256, &["peer.test"]);
    let case = Case::new(peer, "peer.test", &[&below, &last], &[&root]);
    assert!(
        matches!(case.run(), Err(CertificateError::Issuer(_))),
        "{:?}",
        case.run()
    );
    // An ordinary certificate cannot be configured as an authority.
    assert!(crate::config::Authority::new("x".to_owned(), &user.certificate()).is_err());
}

#[test]
fn name_constraints_hold() {
    let constraints = |permitted: Vec<GeneralSubtree>| NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: vec![],
    };
    let root = root("root");
    let between = root.intermediate("between", |p| {
        p.name_constraints = Some(constraints(vec![
            GeneralSubtree::DnsName("good.test".to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([192, 0, 2, 0], 24)),
        ]));
    });
    let good = [
        ("peer.good.test", true),
        ("192.0.2.7", true),
        ("peer.bad.test", false),
        ("198.51.100.1", false),
    ];
    for (name, good) in good {
        let peer = between.issue(KeyKind::P256, &[name]);
        let outcome = Case::new(peer, name, &[&between], &[&root]).run();
        let want = (!good).then_some(CertificateError::NameConstraints);
        assert_eq!(outcome.err(), want, "{name}");
    }
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let root = root("root");
    let mut chain: Vec<Issued> = Vec::new();
    for n in 0..=MAX_DEPTH {
        let issuer = chain.last().unwrap_or(&root);
        let next = issuer.intermediate(&format!("level {n}"), |_| {});
        chain.push(next);
    }
    for (len, good) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
        let peer = chain[len - 1].issue(KeyKind::P256, &["peer.test"]);
        let others: Vec<&Issued> = chain[..len].iter().rev().collect();
        let case = Case::new(peer, "peer.test", &others, &[&root]);
        assert_eq!(case.run().is_ok(), good, "{len}: {:?}", case.run());
    }
}

#[test]
fn identities_are_confirmed_by_their_type() {
    let root = root("root");
    let names = ["peer.test", "carol@peer.test", "192.0.2.1", "2001:db8::1"];
    for (id, good) in [
        ("peer.test", true),
        ("PEER.test", true),
        ("carol@PEER.test", true),
        ("192.0.2.1", true),
        ("2001:db8::1", true),
        ("O=Test, CN=peer.test", true),
        ("other.test", false),
        ("a.peer.test", false),
        ("email:peer.test", false),
        ("fqdn:carol@peer.test", false),
        ("fqdn:192.0.2.1", false),
        ("192.0.2.2", false),
        ("keyid:peer.test", false),
        ("O=Test, CN=other.test", false),
    ] {
        let case = Case::new(root.issue(KeyKind::P256, &names), id, &[], &[&root]);
        let want = (!good).then(|| CertificateError::Identity(case.id.clone()));
        assert_eq!(case.run().err(), want, "{id}");
    }
    // A wildcard in a certificate names nobody (RFC 4945 §3.1.2).
    let case = Case::new(
        root.issue(KeyKind::P256, &["*.test"]),
        "peer.test",
        &[],
        &[&root],
    );
    assert!(matches!(case.run(), Err(CertificateError::Identity(_))));
}

#[test]
fn a_key_id_is_that_of_the_certificate() {
    let root = root("root");
    let peer = root.issue_with(KeyKind::P256, &["peer.test"], |p| {
        p.is_ca = IsCa::ExplicitNoCa
    });
    let key_id = peer.certificate().key_id;
    if let Some(key_id) = key_id {
        let mut case = Case::new(peer, "peer.test", &[], &[&root]);
        case.id = Identity::KeyId(key_id);
        assert!(case.run().is_ok());
        case.id = Identity::KeyId(vec![1; 20]);
        assert!(case.run().is_err());
    } else {
        panic!("the certificate has no subject key identifier");
    }
}

#[test]
fn a_certificate_that_the_connection_names_needs_no_authority() {
    let (root, other) = (root("root"), root("other"));
    let peer = root.issue(KeyKind::Ed25519, &["peer.test"]);
    let pin = |case: &mut Case, der: Vec<u8>| {
        case.policy.connections[0].auth.remote = RemoteAuth::Pubkey {
            constraint: crate::signature::Constraint::default(),
            authorities: vec![],
            certificates: vec![der],
            raw_keys: vec![],
            revocation: RevocationPolicy::default(),
        };
    };
    let der = peer.der.clone();
    let mut case = Case::new(peer, "peer.test", &[], &[]);
    pin(&mut case, der.clone());
    assert!(case.run().is_ok());
    // It need not even be sent.
    case.chain.clear();
    assert!(case.run().is_ok());
    case.now = UnixMillis(4_102_444_800_000); // 2100
    assert_eq!(case.run().err(), Some(CertificateError::Expired));
    // Another one of the same name, by an authority that is trusted otherwise.
    let mut case = Case::new(
        other.issue(KeyKind::Ed25519, &["peer.test"]),
        "peer.test",
        &[],
        &[&other],
    );
    pin(&mut case, der);
    assert_eq!(case.run().err(), Some(CertificateError::NotPinned));
}

/// A peer whose connection names its public key (RFC 7670), and another peer.
fn with_named_key() -> (Case, Issued) {
    let root = root("root");
    let peer = root.issue(KeyKind::P256, &["peer.test"]);
    let other = root.issue(KeyKind::P256, &["other.test"]);
    let named = named_keys(&[&other, &peer]);
    let mut case = Case::new(peer, "peer.test", &[], &[&root]);
    case.policy.connections[0].auth.remote = named;
    case.chain.clear();
    (case, other)
}

#[test]
fn a_public_key_that_the_connection_names_needs_no_certificate() {
    let (mut case, _) = with_named_key();
    let run = |case: &Case| case.question().run(&case.policy, case.now, None);
    // Whether it is shown or not, with a certificate or not: it is known, and whose it is.
    for shown in [None, Some(case.peer.certificate().spki)] {
        case.raw_key = shown;
        for chain in [vec![], vec![case.peer.der.clone()]] {
            case.chain = chain;
            let verified = run(&case).unwrap();
            assert_eq!(verified.certificate, None);
            assert_eq!(case.question().sources(&verified, &case.policy), None);
        }
    }
}

#[test]
fn another_public_key_than_those_that_are_named_is_refused() {
    let (mut case, other) = with_named_key();
    let run = |case: &Case| case.question().run(&case.policy, case.now, None).err();
    // Named, but of somebody else than who signs.
    case.raw_key = Some(other.certificate().spki);
    assert_eq!(run(&case), Some(CertificateError::Auth));
    let stranger = root("root").issue(KeyKind::P256, &["peer.test"]);
    case.raw_key = Some(stranger.certificate().spki);
    assert_eq!(run(&case), Some(CertificateError::NotNamedKey));
    // The authorities of the policy do not count beside keys that are named.
    case.raw_key = None;
    case.policy.connections[0].auth.remote = named_keys(&[&other]);
    case.chain = vec![case.peer.der.clone()];
    assert_eq!(run(&case), Some(CertificateError::Auth));
    // Unless the connection names some, too.
    let authority = case.policy.authorities[0].clone();
    if let RemoteAuth::Pubkey { authorities, .. } = &mut case.policy.connections[0].auth.remote {
        authorities.push(authority);
    }
    assert!(case.run().is_ok());
}

#[test]
fn the_signature_has_to_be_of_the_certificates_key() {
    let root = root("root");
    let mut case = Case::new(
        root.issue(KeyKind::P256, &["peer.test"]),
        "peer.test",
        &[],
        &[&root],
    );
    case.chain[0] = root.issue(KeyKind::P256, &["peer.test"]).der;
    assert_eq!(case.run().err(), Some(CertificateError::Auth));
    case.chain[0] = root.issue(KeyKind::Rsa, &["peer.test"]).der;
    assert_eq!(case.run().err(), Some(CertificateError::Auth));
}

#[test]
fn the_constraint_of_a_connection_holds() {
    let root = root("root");
    let mut case = Case::new(
        root.issue(KeyKind::P256, &["peer.test"]),
        "peer.test",
        &[],
        &[&root],
    );
    for (constraint, good) in [
        ("pubkey", true),
        ("ecdsa-sha256", true),
        ("ecdsa-sha384", false),
        ("rsa", false),
    ] {
        case.policy.connections[0].auth.remote = RemoteAuth::Pubkey {
            constraint: constraint.parse().unwrap(),
            authorities: vec![],
            certificates: vec![],
            raw_keys: vec![],
            revocation: RevocationPolicy::default(),
        };
        assert_eq!(case.run().is_ok(), good, "{constraint}");
    }
}

#[test]
fn what_a_peer_sends_is_bounded() {
    let certificate = (encoding::X509, &b"x"[..]);
    let many = vec![certificate; MAX_CERTIFICATES + 1];
    assert_eq!(
        Evidence::collect(many.into_iter()),
        Err(CertificateError::TooMany)
    );
    let key = (encoding::RAW_KEY, &b"x"[..]);
    let evidence = Evidence::collect([key].into_iter()).unwrap();
    assert_eq!(evidence.raw_key.as_deref(), Some(&b"x"[..]));
    let long = vec![0; MAX_RAW_KEY + 1];
    for keys in [vec![key, key], vec![(encoding::RAW_KEY, &long[..])]] {
        assert_eq!(
            Evidence::collect(keys.into_iter()),
            Err(CertificateError::RawKey)
        );
    }
    let long = vec![0; MAX_CERTIFICATE + 1];
    let long = (encoding::X509, &long[..]);
    assert_eq!(
        Evidence::collect([long].into_iter()),
        Err(CertificateError::TooLong)
    );
    let url = (encoding::HASH_AND_URL, &b"hash and http://192.0.2.1/"[..]);
    let evidence = Evidence::collect([url, (7, b"?")].into_iter()).unwrap();
    assert!(evidence.hash_and_url && evidence.certificates.is_empty());
    for der in [&b""[..], b"\x30", &[0x30, 0x82, 0xff, 0xff], &[0xff; 100]] {
        assert!(matches!(
            Certificate::parse(der),
            Err(CertificateError::Malformed(_))
        ));
    }
}

/// Who may be revoked, and what is known then.
fn revocable(policy: RevocationPolicy, with_uri: bool) -> (Issued, Issued, Case) {
    let root = root("root");
    let between = root.intermediate("between", |_| {});
    let peer = between.issue_with(KeyKind::P256, &["peer.test"], |p| {
        p.serial_number = Some(vec![1, 2, 3].into());
        if with_uri {
            p.crl_distribution_points = vec![rcgen::CrlDistributionPoint {
                uris: vec![
                    "http://crl.test/between.crl".to_owned(),
                    "ldap://crl.test/".to_owned(),
                ],
            }];
        }
    });
    let mut case = Case::new(peer, "peer.test", &[&between], &[&root]);
    if let RemoteAuth::Pubkey { revocation, .. } = &mut case.policy.connections[0].auth.remote {
        *revocation = policy;
    }
    (root, between, case)
}

#[test]
fn who_is_revoked_is_refused_under_every_policy() {
    for policy in [
        RevocationPolicy::Strict,
        RevocationPolicy::IfUri,
        RevocationPolicy::Relaxed,
    ] {
        let (root, between, mut case) = revocable(policy, true);
        let nobody = || root.crl(&[], 2027);
        case.crls = Some(vec![nobody(), between.crl(&[], 2027)]);
        assert!(case.run().is_ok(), "{policy:?}: {:?}", case.run());
        case.crls = Some(vec![nobody(), between.crl(&[&[1, 2, 3]], 2027)]);
        assert_eq!(
            case.run().err(),
            Some(CertificateError::Revoked),
            "{policy:?}"
        );
        // The authority between.
        let serial = between.certificate().serial;
        case.crls = Some(vec![root.crl(&[&serial], 2027), between.crl(&[], 2027)]);
        assert_eq!(
            case.run().err(),
            Some(CertificateError::Revoked),
            "{policy:?}"
        );
    }
}

#[test]
fn what_is_not_known_counts_as_the_policy_says() {
    use RevocationPolicy::{IfUri, Relaxed, Strict};
    for (policy, with_uri, good) in [
        (Strict, true, false),
        (Strict, false, false),
        (IfUri, true, false),
        (IfUri, false, true),
        (Relaxed, true, true),
        (Relaxed, false, true),
    ] {
        let (root, between, mut case) = revocable(policy, with_uri);
        let want = (!good).then_some(CertificateError::RevocationUnknown);
        let stranger = testing::root("between");
        for crls in [
            vec![],
            // Over; of the root only; of another authority of the same name.
            vec![root.crl(&[], 2027), between.crl(&[], 2025)],
            vec![root.crl(&[], 2027)],
            vec![root.crl(&[], 2027), stranger.crl(&[&[1, 2, 3]], 2027)],
        ] {
            case.crls = Some(crls);
            assert_eq!(case.run().err(), want, "{policy:?} {with_uri}");
        }
        // An old list that names the peer is enough to refuse it.
        if policy == Relaxed {
            case.crls = Some(vec![between.crl(&[&[1, 2, 3]], 2025)]);
            assert_eq!(case.run().err(), Some(CertificateError::Revoked));
        }
    }
}

#[test]
fn lists_are_looked_for_where_certificates_and_authorities_say() {
    let (_, _, mut case) = revocable(RevocationPolicy::Strict, true);
    case.policy.authorities[0].crl_uris = vec!["file:/root.crl".to_owned()];
    let uris = |case: &Case| {
        let verified = case.question().run(&case.policy, case.now, None).unwrap();
        let sources = case.question().sources(&verified, &case.policy);
        sources.map(|s| s.crl_uris)
    };
    let expected = ["file:/root.crl", "http://crl.test/between.crl"].map(str::to_owned);
    assert_eq!(uris(&case), Some(expected.to_vec()));
    // Nothing to look at, and nothing that has to be.
    let (_, _, case) = revocable(RevocationPolicy::IfUri, false);
    assert_eq!(uris(&case), None);
}

/// What is to be asked about the certificates of a case: the peer's own, and the one between it and the root.
fn inquiries(case: &Case) -> Vec<Inquiry> {
    let verified = case.question().run(&case.policy, case.now, None).unwrap();
    let sources = case.question().sources(&verified, &case.policy).unwrap();
    assert_eq!(sources.certificates.len(), 2);
    sources.inquiries
}

fn answer(inquiry: &Inquiry, revoked: bool, until: UnixMillis) -> Answer {
    Answer {
        id: inquiry.id.clone(),
        revoked,
        until,
    }
}

#[test]
fn responders_are_asked_about_each_certificate_that_has_some() {
    let (_, _, mut case) = revocable(RevocationPolicy::Strict, false);
    assert_eq!(inquiries(&case), []);
    case.policy.authorities[0].ocsp_uris = vec!["http://ocsp.test/root".to_owned()];
    let [inquiry] = &inquiries(&case)[..] else {
        panic!();
    };
    assert_eq!(inquiry.uris, ["http://ocsp.test/root"]);
}

#[test]
fn what_responders_say_counts_as_the_policy_says() {
    use RevocationPolicy::{IfUri, Relaxed, Strict};
    let (now, past) = (NOW, UnixMillis(NOW.0 - 1));
    for policy in [Strict, IfUri, Relaxed] {
        let (root, between, mut case) = revocable(policy, true);
        case.crls = Some(vec![]);
        case.policy.authorities[0].ocsp_uris = vec!["http://ocsp.test/root".to_owned()];
        let of_between = inquiries(&case).remove(0);
        let path = [case.peer.certificate(), between.certificate()];
        let of_peer = Inquiry::new(&path[0], &path[1], vec![]).unwrap();
        assert_eq!(
            Inquiry::new(&path[1], &root.certificate(), of_between.uris.clone()),
            Some(of_between.clone())
        );
        let mut run = |answers: &[Answer], crls: Vec<Crl>| {
            case.answers = answers.to_vec();
            case.crls = Some(crls);
            case.run().err()
        };
        let good = [
            answer(&of_peer, false, now),
            answer(&of_between, false, now),
        ];
        assert_eq!(run(&good, vec![]), None, "{policy:?}");
        for revoked in [&of_peer, &of_between] {
            let mut answers = good.clone();
            let at = usize::from(revoked == &of_between);
            answers[at] = answer(revoked, true, now);
            assert_eq!(run(&answers, vec![]), Some(CertificateError::Revoked));
            // What was said before still holds where nothing has to be up to date.
            answers[at].until = past;
            let expected = match policy {
                Relaxed => Some(CertificateError::Revoked),
                Strict => Some(CertificateError::RevocationUnknown),
                IfUri => (at == 0).then_some(CertificateError::RevocationUnknown),
            };
            assert_eq!(run(&answers, vec![]), expected, "{policy:?}");
        }
        // One certificate by a responder, the other by a list.
        let lists = || vec![root.crl(&[], 2030)];
        let strict = (policy == Strict).then_some(CertificateError::RevocationUnknown);
        assert_eq!(run(&good[..1], lists()), None, "{policy:?}");
        assert_eq!(run(&good[..1], vec![]), strict, "{policy:?}");
        assert_eq!(
            run(&good[1..], lists()),
            (policy != Relaxed).then_some(CertificateError::RevocationUnknown)
        );
        // A responder's word does not outweigh a list.
        let serial = path[1].serial.clone();
        let revoked = root.crl(&[&serial], 2030);
        assert_eq!(run(&good, vec![revoked]), Some(CertificateError::Revoked));
    }
}

#[test]
fn lists_that_are_none_are_refused() {
    for bytes in [
        &b""[..],
        b"\x30\x03\x02\x01\x01",
        b"-----BEGIN X509 CRL-----\n",
        &[0xff; 64],
    ] {
        assert!(matches!(
            Crl::parse(bytes),
            Err(CertificateError::Malformed(_))
        ));
    }
}
