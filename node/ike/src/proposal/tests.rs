//! Proposals as text, and every rule about what is acceptable.

use super::*;
use crate::{
    crypto::{EspSuite, IkeSuite},
    wire::{self, Protocol, Transform, TransformType},
};
use proptest::{prelude::*, sample::subsequence};

const AES256: Encryption = Encryption::AesGcm16 { key_bits: 256 };
const AES128: Encryption = Encryption::AesGcm16 { key_bits: 128 };

fn ike(text: &str) -> IkeProposal {
    text.parse().unwrap()
}

fn esp(text: &str) -> EspProposal {
    text.parse().unwrap()
}

fn t(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform {
        kind,
        id,
        key_bits,
        unknown_attribute: false,
    }
}

/// A proposal for an IKE SA with AES-GCM-256, SHA-384 and Curve25519, and what is added.
fn ike_with(extra: &[Transform]) -> wire::Proposal {
    let mut proposal = offer_ike(&[ike("aes256gcm16-prfsha384-x25519")], &[], None).remove(0);
    proposal.transforms.extend_from_slice(extra);
    proposal
}

/// A proposal for ESP with AES-GCM-256 and 32-bit sequence numbers, and what is added.
fn esp_with(extra: &[Transform]) -> wire::Proposal {
    let mut proposal = offer_esp(&[esp("aes256gcm16")], 0x100, false).remove(0);
    proposal.transforms.extend_from_slice(extra);
    proposal
}

#[test]
fn keywords_are_strongswans() {
    assert_eq!(
        ike("aes256gcm16-chacha20poly1305-prfsha384-x25519-ecp256"),
        IkeProposal {
            encryption: vec![AES256, Encryption::ChaCha20Poly1305],
            integrity: vec![],
            prf: vec![Prf::HmacSha384],
            groups: vec![Group::Curve25519, Group::Ecp256],
            additional: Menus::default(),
        }
    );
    assert_eq!(
        ike("curve25519-prfsha512-aes128gcm128-prfsha256-modp2048-x25519-aes256gcm128"),
        IkeProposal {
            encryption: vec![AES128, AES256],
            integrity: vec![],
            prf: vec![Prf::HmacSha512, Prf::HmacSha256],
            groups: vec![Group::Curve25519, Group::Modp2048],
            additional: Menus::default(),
        }
    );
    assert_eq!(
        esp("aes256gcm16-x25519-esn-noesn"),
        EspProposal {
            encryption: vec![AES256],
            integrity: vec![],
            groups: vec![Group::Curve25519],
            additional: Menus::default(),
            esn: vec![true, false],
        }
    );
    assert_eq!(esp("aes128gcm16").esn, [false]);
    assert_eq!(esp("aes128gcm16").groups, []);
}

#[test]
fn other_texts_are_refused_with_the_reason() {
    let unknown = |word: &str| ProposalError::Unknown(word.to_owned());
    let misplaced = |word: &str| ProposalError::Misplaced(word.to_owned());
    let missing = ProposalError::Missing;
    for (text, want) in [
        ("", unknown("")),
        ("aes256gcm16--x25519", unknown("")),
        ("3des-sha256-modp2048", unknown("3des")),
        ("aes512gcm16-prfsha256-x25519", unknown("aes512gcm16")),
        ("aes256gcm-prfsha256-x25519", unknown("aes256gcm")),
        ("aes256-sha256-modp1024", unknown("modp1024")),
        ("aes256-sha256-modp2048-ke0_x448", unknown("ke0_x448")),
        ("aes256-sha256-modp2048-ke8_x448", unknown("ke8_x448")),
        ("aes256-sha256-modp2048-ke1_x44", unknown("ke1_x44")),
        ("aes256gcm16-aes256-sha256-x25519", ProposalError::Mixed),
        (
            "aes256gcm16iiv-prfsha256-x25519",
            misplaced("aes256gcm16iiv"),
        ),
        (
            "aes256-prfsha256-x25519",
            missing("an integrity algorithm (such as sha256)"),
        ),
        ("AES256GCM16-prfsha256-x25519", unknown("AES256GCM16")),
        ("aes256gcm16-prfsha256-x25519-esn", misplaced("esn")),
        ("prfsha256-x25519", missing("an encryption algorithm")),
        (
            "aes256gcm16-x25519",
            missing("a pseudo-random function (such as prfsha384)"),
        ),
        (
            "aes256gcm16-prfsha256",
            missing("a key exchange method (such as x25519)"),
        ),
    ] {
        assert_eq!(text.parse::<IkeProposal>(), Err(want), "{text}");
    }
    for (text, want) in [
        ("aes256gcm16-prfsha256", misplaced("prfsha256")),
        ("x25519-esn", missing("an encryption algorithm")),
        ("aes256gcm16-md5", unknown("md5")),
        ("aes256", missing("an integrity algorithm (such as sha256)")),
        ("aes256-sha256-aes256gcm16", ProposalError::Mixed),
    ] {
        assert_eq!(text.parse::<EspProposal>(), Err(want), "{text}");
    }
}

#[test]
fn keywords_of_all_kinds() {
    let key_bits = 192;
    let ike_of = |text: &str| (ike(text).encryption, ike(text).integrity, ike(text).prf);
    assert_eq!(
        ike_of("aes192-aes-sha256-sha2_384-modp3072"),
        (
            vec![
                Encryption::AesCbc { key_bits },
                Encryption::AesCbc { key_bits: 128 }
            ],
            vec![Integrity::HmacSha256, Integrity::HmacSha384],
            vec![Prf::HmacSha256, Prf::HmacSha384],
        )
    );
    assert_eq!(
        ike_of("aes192ctr-aesxcbc-aescmac-sha1-prfaescmac-x448"),
        (
            vec![Encryption::AesCtr { key_bits }],
            vec![Integrity::AesXcbc, Integrity::AesCmac, Integrity::HmacSha1],
            vec![Prf::AesCmac],
        )
    );
    // With AEADs an integrity algorithm only stands for its pseudo-random function.
    assert_eq!(
        ike_of("aes192gcm96-aes192ccm8-aes192ccm128-sha512-ecp521"),
        (
            vec![
                Encryption::AesGcm12 { key_bits },
                Encryption::AesCcm8 { key_bits },
                Encryption::AesCcm16 { key_bits },
            ],
            vec![],
            vec![Prf::HmacSha512],
        )
    );
    assert_eq!(esp("aes256gcm16iiv-sha256").integrity, []);
    assert_eq!(parse_ike("default"), Ok(default_ike()));
    assert_eq!(parse_esp("default"), Ok(default_esp()));
    assert_eq!(parse_esp("aes256gcm16").unwrap().len(), 1);
}

#[test]
fn defaults_are_written_as_they_would_be_configured() {
    let text = |p: &[IkeProposal]| p.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        text(&default_ike()),
        [
            "aes256gcm16-chacha20poly1305-aes128gcm16-prfsha384-prfsha256-prfsha512-x25519-ecp256-ecp384-modp3072-modp2048-ke1_mlkem768",
            "aes256gcm16-chacha20poly1305-aes128gcm16-prfsha384-prfsha256-prfsha512-x25519-ecp256-ecp384-modp3072-modp2048",
            "aes256-aes128-sha256-sha384-sha512-prfsha384-prfsha256-prfsha512-x25519-ecp256-ecp384-modp3072-modp2048",
        ]
    );
    let text = |p: &[EspProposal]| p.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        text(&default_esp()),
        [
            "aes256gcm16-chacha20poly1305-aes128gcm16-esn-noesn",
            "aes256-aes128-sha256-sha384-sha512-esn-noesn",
        ]
    );
}

#[test]
fn ciphers_without_integrity_need_an_integrity_algorithm() {
    let ours = [
        ike("aes256gcm16-prfsha256-x25519"),
        ike("aes128-sha256-sha384-x25519"),
    ];
    let chosen = |theirs: &str| {
        let offer = offer_ike(&[ike(theirs)], &[], None);
        let chosen = choose_ike(&ours, &offer, 31, true)?;
        assert_eq!(
            accepted_ike(&[ike(theirs)], &[answer_ike(&chosen, &[])]),
            Some(chosen.clone())
        );
        Some((chosen.suite.encryption, chosen.suite.integrity))
    };
    let cbc = Encryption::AesCbc { key_bits: 128 };
    assert_eq!(
        chosen("aes256-aes128-sha512-sha384-prfsha256-x25519"),
        Some((cbc, Some(Integrity::HmacSha384)))
    );
    assert_eq!(chosen("aes128-sha512-prfsha256-x25519"), None);
    assert_eq!(chosen("aes256gcm16-prfsha256-x25519"), Some((AES256, None)));
    // An AEAD beside others in one proposal with integrity algorithms is passed over (RFC 7296 §3.3).
    let mut mixed = offer_ike(&[ike("aes128-sha256-x25519")], &[], None).remove(0);
    let aead = t(TransformType::ENCR, 20, Some(256));
    for more in [
        vec![aead.clone()],
        vec![aead, t(TransformType::INTEG, 0, None)],
    ] {
        mixed.transforms.splice(0..0, more);
        let chosen = choose_ike(&ours, std::slice::from_ref(&mixed), 31, true);
        let suite = chosen.unwrap().suite;
        assert_eq!(
            (suite.encryption, suite.integrity),
            (cbc, Some(Integrity::HmacSha256))
        );
    }
}

#[test]
fn esp_with_an_integrity_algorithm_is_agreed_on() {
    let ours = [esp("aes256-sha256-noesn"), esp("chacha20poly1305iiv-noesn")];
    let chosen = |theirs: &str| {
        let offer = offer_esp(&[esp(theirs)], 7, false);
        let chosen = choose_esp(&ours, &offer, None, false)?;
        let answer = answer_esp(&chosen, 8);
        assert_eq!(
            accepted_esp(&[esp(theirs)], &[answer], false)
                .unwrap()
                .suite,
            chosen.suite
        );
        Some(chosen.suite.cipher())
    };
    assert_eq!(
        chosen("aes128-aes256-sha1-sha256").unwrap().integrity,
        Some(Integrity::HmacSha256)
    );
    assert_eq!(chosen("aes256-sha1"), None);
    assert_eq!(
        chosen("chacha20poly1305iiv-chacha20poly1305"),
        Some(Encryption::ChaCha20Poly1305Iiv.into())
    );
    assert_eq!(chosen("chacha20poly1305"), None);
}

#[test]
fn an_offer_names_everything_once_and_the_group_of_the_ke_payload_first() {
    let ours = [
        ike("aes256gcm16-chacha20poly1305-prfsha384-x25519-ecp256"),
        ike("aes128gcm16-prfsha256-modp2048"),
    ];
    let offer = offer_ike(&ours, &[7; 8], Some(Group::Ecp256));
    assert_eq!(
        offer[0],
        wire::Proposal {
            number: 1,
            protocol: Protocol::IKE,
            spi: vec![7; 8],
            transforms: vec![
                t(TransformType::ENCR, 20, Some(256)),
                t(TransformType::ENCR, 28, None),
                t(TransformType::PRF, 6, None),
                t(TransformType::KE, 19, None),
                t(TransformType::KE, 31, None),
            ],
        }
    );
    assert_eq!((offer.len(), offer[1].number), (2, 2));

    let ours = [esp("aes128gcm16-x25519-esn-noesn")];
    let wanted = |with_groups: bool| {
        let mut transforms = vec![t(TransformType::ENCR, 20, Some(128))];
        transforms.extend(with_groups.then(|| t(TransformType::KE, 31, None)));
        transforms.push(t(TransformType::ESN, 1, None));
        transforms.push(t(TransformType::ESN, 0, None));
        transforms
    };
    for with_groups in [true, false] {
        let offer = offer_esp(&ours, 0xc001_0203, with_groups);
        assert_eq!(offer[0].spi, [0xc0, 1, 2, 3]);
        assert_eq!(offer[0].protocol, Protocol::ESP);
        assert_eq!(offer[0].transforms, wanted(with_groups));
    }
}

#[test]
fn our_order_counts_but_the_peers_key_exchange_is_used() {
    let ours = [ike(
        "chacha20poly1305-aes256gcm16-prfsha512-prfsha256-x25519-ecp256-modp2048",
    )];
    let theirs = [ike(
        "aes256gcm16-chacha20poly1305-prfsha256-prfsha512-modp2048-ecp256",
    )];
    let offered = offer_ike(&theirs, &[], None);
    let suite = |ke_group| choose_ike(&ours, &offered, ke_group, true).unwrap().suite;
    let expected = |group| IkeSuite {
        encryption: Encryption::ChaCha20Poly1305,
        integrity: None,
        additional: Default::default(),
        prf: Prf::HmacSha512,
        group,
    };
    assert_eq!(suite(14), expected(Group::Modp2048));
    assert_eq!(suite(19), expected(Group::Ecp256));
    // A KE payload of a group that is not offered, or that we have not, decides nothing.
    assert_eq!(suite(31), expected(Group::Ecp256));
    assert_eq!(suite(1), expected(Group::Ecp256));
}

#[test]
fn our_first_proposal_wins_over_their_order() {
    let ours = [
        ike("aes256gcm16-prfsha384-x25519"),
        ike("aes128gcm16-prfsha256-ecp256"),
    ];
    let theirs = [
        ike("aes128gcm16-prfsha256-ecp256"),
        ike("aes256gcm16-prfsha384-x25519"),
    ];
    let chosen = choose_ike(&ours, &offer_ike(&theirs, &[9; 8], None), 19, true).unwrap();
    assert_eq!((chosen.number, chosen.suite.encryption), (2, AES256));
    assert_eq!(chosen.peer_spi, [9; 8]);
    let chosen = choose_ike(&ours[1..], &offer_ike(&theirs, &[], None), 19, true).unwrap();
    assert_eq!((chosen.number, chosen.suite.encryption), (1, AES128));
    // Algorithms of different proposals do not mix.
    let mixed = [ike("aes128gcm16-prfsha384-x25519")];
    assert_eq!(
        choose_ike(&mixed, &offer_ike(&theirs, &[], None), 31, true),
        None
    );
}

#[test]
fn ike_proposals_with_something_strange_are_not_acceptable() {
    let ours = [ike("aes256gcm16-prfsha384-x25519")];
    let good = |extra: &[Transform]| choose_ike(&ours, &[ike_with(extra)], 31, true).is_some();
    assert!(good(&[]));
    // Integrity: only NONE beside an AEAD.
    assert!(good(&[t(TransformType::INTEG, 0, None)]));
    assert!(!good(&[t(TransformType::INTEG, 12, None)]));
    assert!(!good(&[
        t(TransformType::INTEG, 0, None),
        t(TransformType::INTEG, 12, None)
    ]));
    // Additional key exchanges (RFC 9370) that we do not want, unless they may be left out.
    assert!(!good(&[t(TransformType(6), 36, None)]));
    assert!(!good(&[t(TransformType(12), 36, None)]));
    assert!(good(&[
        t(TransformType(6), 36, None),
        t(TransformType(6), 0, None)
    ]));
    // Kinds that we do not know, or that IKE has not.
    assert!(!good(&[t(TransformType(13), 0, None)]));
    assert!(!good(&[t(TransformType(250), 1, None)]));
    assert!(!good(&[t(TransformType::ESN, 0, None)]));
    // Algorithms that we do not know are passed over.
    assert!(good(&[
        t(TransformType::ENCR, 999, None),
        t(TransformType::PRF, 999, None),
        t(TransformType::KE, 999, None),
        t(TransformType::KE, 0, None),
    ]));

    // Another proposal is still looked at, and those for other protocols are skipped.
    let strange = ike_with(&[t(TransformType(13), 0, None)]);
    let mut second = ike_with(&[]);
    second.number = 3;
    let offered = [strange, esp_with(&[]), second];
    assert_eq!(choose_ike(&ours, &offered, 31, true).unwrap().number, 3);
}

#[test]
fn transforms_must_be_exactly_as_they_should() {
    let ours = default_ike();
    let base = ike_with(&[]);
    for kind in 0..3 {
        let refused = |change: &dyn Fn(&mut Transform)| {
            let mut proposal = base.clone();
            change(&mut proposal.transforms[kind]);
            assert_eq!(
                choose_ike(&ours, &[proposal], 31, true),
                None,
                "transform {kind}"
            );
        };
        refused(&|t| t.unknown_attribute = true);
        refused(&|t| t.key_bits = Some(192));
        refused(&|t| t.id = 1);
    }
    let cipher = |id, key_bits| {
        let mut proposal = base.clone();
        proposal.transforms[0] = t(TransformType::ENCR, id, key_bits);
        choose_ike(&ours, &[proposal], 31, true).map(|c| c.suite.encryption)
    };
    assert_eq!(cipher(20, Some(128)), Some(AES128));
    assert_eq!(cipher(20, None), None);
    assert_eq!(cipher(28, None), Some(Encryption::ChaCha20Poly1305));
    assert_eq!(cipher(28, Some(256)), None);
    // Without any one kind.
    for missing in 0..3 {
        let mut proposal = base.clone();
        proposal.transforms.remove(missing);
        assert_eq!(choose_ike(&ours, &[proposal], 31, true), None);
    }
}

#[test]
fn spis_are_of_the_right_length_and_not_zero() {
    let ours = default_ike();
    for (spi, good) in [
        (vec![], true),
        (vec![1; 8], true),
        (vec![0; 8], false),
        (vec![1; 4], false),
    ] {
        let mut proposal = ike_with(&[]);
        proposal.spi = spi;
        assert_eq!(choose_ike(&ours, &[proposal], 31, true).is_some(), good);
    }
    for (spi, good) in [
        (vec![0, 0, 1, 0], true),
        (vec![0; 4], false),
        (vec![], false),
        (vec![1; 8], false),
    ] {
        let mut proposal = esp_with(&[]);
        proposal.spi = spi;
        let chosen = choose_esp(&default_esp(), &[proposal], None, false);
        assert_eq!(chosen.is_some(), good);
    }
}

#[test]
fn esp_needs_a_word_about_sequence_numbers() {
    let none = wire::Proposal {
        transforms: vec![t(TransformType::ENCR, 20, Some(256))],
        ..esp_with(&[])
    };
    assert_eq!(
        choose_esp(&default_esp(), std::slice::from_ref(&none), None, false),
        None
    );
    let with = |ids: &[u16]| {
        let mut proposal = none.clone();
        let esn = ids.iter().map(|id| t(TransformType::ESN, *id, None));
        proposal.transforms.extend(esn);
        proposal
    };
    let choose = |ours: &str, ids: &[u16]| {
        choose_esp(&[esp(ours)], &[with(ids)], None, false).map(|c| c.suite.esn)
    };
    assert_eq!(choose("aes256gcm16-esn-noesn", &[0, 1]), Some(true));
    assert_eq!(choose("aes256gcm16-noesn-esn", &[1, 0]), Some(false));
    assert_eq!(choose("aes256gcm16-esn-noesn", &[0]), Some(false));
    assert_eq!(choose("aes256gcm16", &[1]), None);
    assert_eq!(choose("aes256gcm16-esn", &[0]), None);
    assert_eq!(choose("aes256gcm16-esn-noesn", &[2]), None);
    // IKE's pseudo-random functions have no place in ESP.
    let strange = esp_with(&[t(TransformType::PRF, 5, None)]);
    assert_eq!(choose_esp(&default_esp(), &[strange], None, false), None);
}

#[test]
fn perfect_forward_secrecy_is_agreed_on_or_not_at_all() {
    let plain = [esp("aes256gcm16")];
    let pfs = [esp("aes256gcm16-x25519-ecp256")];
    let ke = |ids: &[u16]| {
        let kes: Vec<_> = ids
            .iter()
            .map(|id| t(TransformType::KE, *id, None))
            .collect();
        [esp_with(&kes)]
    };
    let group = |ours: &[EspProposal], offered: &[wire::Proposal], ke_group| {
        choose_esp(ours, offered, ke_group, true).map(|c| c.suite.group)
    };
    assert_eq!(group(&plain, &ke(&[]), None), Some(None));
    assert_eq!(group(&plain, &ke(&[0]), None), Some(None));
    assert_eq!(group(&plain, &ke(&[31, 0]), Some(31)), Some(None));
    assert_eq!(group(&plain, &ke(&[31]), Some(31)), None);
    assert_eq!(group(&plain, &ke(&[999]), Some(999)), None);
    assert_eq!(group(&pfs, &ke(&[]), None), None);
    assert_eq!(group(&pfs, &ke(&[0]), None), None);
    assert_eq!(
        group(&pfs, &ke(&[19, 31]), Some(19)),
        Some(Some(Group::Ecp256))
    );
    assert_eq!(
        group(&pfs, &ke(&[19, 31]), None),
        Some(Some(Group::Curve25519))
    );
    assert_eq!(
        group(&pfs, &ke(&[0, 31]), None),
        Some(Some(Group::Curve25519))
    );
    assert_eq!(group(&pfs, &ke(&[14]), Some(14)), None);
    // In IKE_AUTH they do not matter (RFC 7296 §1.2).
    for (ours, ids) in [(&plain, &[31][..]), (&pfs, &[]), (&pfs, &[14])] {
        let chosen = choose_esp(ours, &ke(ids), None, false).unwrap();
        assert_eq!(chosen.suite.group, None);
    }
}

#[test]
fn the_answer_must_be_one_of_ours_without_alternatives() {
    let ours = [
        ike("aes256gcm16-aes128gcm16-prfsha384-x25519-ecp256"),
        ike("chacha20poly1305-prfsha256-x25519"),
    ];
    let answer = |number| wire::Proposal {
        number,
        ..ike_with(&[])
    };
    let accepted = accepted_ike(&ours, &[answer(1)]).unwrap();
    assert_eq!(
        accepted.suite,
        IkeSuite {
            encryption: AES256,
            integrity: None,
            additional: Default::default(),
            prf: Prf::HmacSha384,
            group: Group::Curve25519,
        }
    );
    let with_none = wire::Proposal {
        number: 1,
        ..ike_with(&[t(TransformType::INTEG, 0, None)])
    };
    assert_eq!(accepted_ike(&ours, &[with_none]), Some(accepted));
    let refused = |answer: &[wire::Proposal]| assert_eq!(accepted_ike(&ours, answer), None);
    // The wrong number, none, two.
    refused(&[answer(2)]);
    refused(&[answer(3)]);
    refused(&[answer(0)]);
    refused(&[]);
    refused(&[answer(1), answer(2)]);
    // Two of a kind, even twice the same.
    refused(&[ike_with(&[t(TransformType::ENCR, 20, Some(128))])]);
    refused(&[ike_with(&[t(TransformType::PRF, 6, None)])]);
    refused(&[ike_with(&[t(TransformType::KE, 19, None)])]);
    // What we did not offer.
    refused(&offer_ike(
        &[ike("chacha20poly1305-prfsha384-x25519")],
        &[],
        None,
    ));
    refused(&offer_ike(
        &[ike("aes256gcm16-prfsha512-x25519")],
        &[],
        None,
    ));
    refused(&offer_ike(
        &[ike("aes256gcm16-prfsha384-modp2048")],
        &[],
        None,
    ));
    refused(&[ike_with(&[t(TransformType(6), 0, None)])]);
    refused(&[esp_with(&[])]);
}

#[test]
fn the_answer_for_a_child_sa_is_checked_too() {
    let ours = [esp("aes256gcm16-x25519-noesn")];
    let ke = |id| t(TransformType::KE, id, None);
    let accept = |extra: &[Transform], with_groups| {
        accepted_esp(&ours, &[esp_with(extra)], with_groups).map(|c| c.suite)
    };
    let suite = |group| EspSuite {
        encryption: AES256,
        integrity: None,
        group,
        additional: Default::default(),
        esn: false,
    };
    assert_eq!(
        accept(&[ke(31)], true),
        Some(suite(Some(Group::Curve25519)))
    );
    assert_eq!(accept(&[], true), None);
    assert_eq!(accept(&[ke(0)], true), None);
    assert_eq!(accept(&[ke(19)], true), None);
    assert_eq!(accept(&[], false), Some(suite(None)));
    assert_eq!(accept(&[ke(0)], false), Some(suite(None)));
    assert_eq!(accept(&[ke(31)], false), None);
    assert_eq!(accept(&[t(TransformType::ESN, 1, None)], false), None);
    let esn = [esp("aes256gcm16-esn")];
    assert_eq!(accepted_esp(&esn, &[esp_with(&[])], false), None);
}

fn some<T: Clone + std::fmt::Debug + 'static>(all: &[T]) -> impl Strategy<Value = Vec<T>> + use<T> {
    subsequence(all.to_vec(), 1..=all.len()).prop_shuffle()
}

/// AEADs, or ciphers that are none with integrity algorithms.
fn ciphers() -> impl Strategy<Value = (Vec<Encryption>, Vec<Integrity>)> {
    prop_oneof![
        some(&AEADS).prop_map(|aeads| (aeads, vec![])),
        (some(&CBC), some(&HMACS)),
    ]
}

fn any_ike() -> impl Strategy<Value = IkeProposal> {
    let prfs = some(&[Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512]);
    let groups = some(&[Group::Modp2048, Group::Ecp256, Group::Curve25519]);
    (ciphers(), prfs, groups).prop_map(|((encryption, integrity), prf, groups)| IkeProposal {
        encryption,
        integrity,
        prf,
        groups,
        additional: Menus::default(),
    })
}

fn any_esp() -> impl Strategy<Value = EspProposal> {
    let all = vec![Group::Modp2048, Group::Ecp256, Group::Curve25519];
    let groups = subsequence(all, 0..=3).prop_shuffle();
    (ciphers(), groups, some(&[true, false])).prop_map(|((encryption, integrity), groups, esn)| {
        EspProposal {
            encryption,
            integrity,
            groups,
            additional: Menus::default(),
            esn,
        }
    })
}

proptest! {
    #[test]
    fn text_reads_back(ike in any_ike(), esp in any_esp()) {
        prop_assert_eq!(ike.to_string().parse(), Ok(ike));
        prop_assert_eq!(esp.to_string().parse(), Ok(esp));
    }

    #[test]
    fn both_ends_agree_on_an_ike_suite(
        ours in prop::collection::vec(any_ike(), 1..4),
        theirs in prop::collection::vec(any_ike(), 1..4),
        ke in prop_oneof![Just(Group::Modp2048), Just(Group::Ecp256), Just(Group::Curve25519)],
    ) {
        let common = |a: &IkeProposal, b: &IkeProposal| {
            a.encryption.iter().any(|x| b.encryption.contains(x))
                && (a.integrity.is_empty() || a.integrity.iter().any(|x| b.integrity.contains(x)))
                && a.prf.iter().any(|x| b.prf.contains(x))
                && a.groups.iter().any(|x| b.groups.contains(x))
        };
        let possible = ours.iter().any(|a| theirs.iter().any(|b| common(a, b)));
        let chosen = choose_ike(&ours, &offer_ike(&theirs, &[1; 8], Some(ke)), ke.id(), true);
        prop_assert_eq!(chosen.is_some(), possible);
        if let Some(chosen) = chosen {
            let accepted = accepted_ike(&theirs, &[answer_ike(&chosen, &[2; 8])]).unwrap();
            prop_assert_eq!(accepted.suite, chosen.suite);
            prop_assert_eq!(accepted.peer_spi, [2; 8]);
            prop_assert_eq!(chosen.peer_spi, [1; 8]);
        }
    }

    #[test]
    fn both_ends_agree_on_an_esp_suite(
        ours in prop::collection::vec(any_esp(), 1..4),
        theirs in prop::collection::vec(any_esp(), 1..4),
        with_groups in any::<bool>(),
    ) {
        let groups_fit = |a: &EspProposal, b: &EspProposal| {
            let none = a.groups.is_empty() && b.groups.is_empty();
            !with_groups || none || a.groups.iter().any(|x| b.groups.contains(x))
        };
        let common = |a: &EspProposal, b: &EspProposal| {
            a.encryption.iter().any(|x| b.encryption.contains(x))
                && (a.integrity.is_empty() || a.integrity.iter().any(|x| b.integrity.contains(x)))
                && a.esn.iter().any(|x| b.esn.contains(x))
                && groups_fit(a, b)
        };
        let possible = ours.iter().any(|a| theirs.iter().any(|b| common(a, b)));
        let chosen = choose_esp(&ours, &offer_esp(&theirs, 1, with_groups), None, with_groups);
        prop_assert_eq!(chosen.is_some(), possible);
        if let Some(chosen) = chosen {
            let answer = answer_esp(&chosen, 2);
            let accepted = accepted_esp(&theirs, &[answer], with_groups).unwrap();
            prop_assert_eq!(accepted.suite, chosen.suite);
            prop_assert_eq!(accepted.peer_spi, [0, 0, 0, 2]);
        }
    }
}
