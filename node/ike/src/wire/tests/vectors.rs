//! Well-formed bytes and what they mean.

use super::{hex, sa_init};
use crate::wire::*;

fn transform(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform {
        kind,
        id,
        key_bits,
        unknown_attribute: false,
    }
}

#[test]
fn an_ike_sa_init_request_is_read_and_written() {
    let bytes = sa_init();
    let header = Header {
        initiator_spi: 0x0001_0203_0405_0607,
        responder_spi: 0,
        minor_version: 0,
        exchange: ExchangeType::IKE_SA_INIT,
        from_initiator: true,
        is_response: false,
        higher_version: false,
        message_id: 0,
    };
    let payloads = vec![
        Payload::Sa(vec![Proposal {
            number: 1,
            protocol: Protocol::IKE,
            spi: vec![],
            transforms: vec![
                transform(TransformType::ENCR, encr::AES_GCM_16, Some(256)),
                transform(TransformType::PRF, prf::HMAC_SHA2_256, None),
                transform(TransformType::INTEG, 0, None),
                transform(TransformType::KE, group::CURVE25519, None),
            ],
        }]),
        Payload::Ke(KeyExchange {
            group: group::CURVE25519,
            data: vec![0xaa; 32],
        }),
        Payload::Nonce(vec![0xbb; 16]),
        Payload::Notify(Notify {
            protocol: Protocol::NONE,
            spi: vec![],
            kind: NotifyType::NAT_DETECTION_SOURCE_IP,
            data: vec![0xcc; 20],
        }),
    ];
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.header, header);
    assert_eq!(message.payloads, payloads);
    assert_eq!(message.protected, None);
    assert_eq!(emit(&header, &payloads), bytes);
    assert_eq!(Header::parse(&bytes).unwrap(), header);
}

#[test]
fn each_flag_has_its_bit() {
    let mut bytes = hex("0000000000000001 0000000000000002 00 20 25 00 00000003 0000001c");
    for (flags, want) in [
        (0x08, (true, false, false)),
        (0x10, (false, false, true)),
        (0x20, (false, true, false)),
        (0x38, (true, true, true)),
    ] {
        bytes[19] = flags;
        let message = Message::parse(&bytes).unwrap();
        let h = message.header;
        assert_eq!((h.from_initiator, h.is_response, h.higher_version), want);
        assert_eq!((h.initiator_spi, h.responder_spi, h.message_id), (1, 2, 3));
        assert_eq!(h.exchange, ExchangeType::INFORMATIONAL);
        assert_eq!(emit(&h, &[]), bytes);
    }
    // The other bits are ignored (RFC 7296 §3.1).
    bytes[19] = 0xc7;
    let h = Header::parse(&bytes).unwrap();
    assert!(!h.from_initiator && !h.is_response && !h.higher_version);
}

/// A payload that stands alone in a chain: its type, its bytes and its meaning.
type Vector = (PayloadType, Vec<u8>, Payload);

fn authentication() -> Vec<Vector> {
    vec![
        (
            PayloadType::ID_I,
            hex("00 00 000b  02 010203 612e62"),
            Payload::IdI(Identification {
                kind: IdType::FQDN,
                reserved: [1, 2, 3],
                data: b"a.b".to_vec(),
            }),
        ),
        (
            PayloadType::ID_R,
            hex("00 00 000c  01 000000 c0000201"),
            Payload::IdR(Identification {
                kind: IdType::IPV4_ADDR,
                reserved: [0; 3],
                data: vec![192, 0, 2, 1],
            }),
        ),
        (
            PayloadType::CERT,
            hex("00 00 0008  04 3082ff"),
            Payload::Cert {
                encoding: 4,
                data: vec![0x30, 0x82, 0xff],
            },
        ),
        (
            PayloadType::CERTREQ,
            hex("00 00 0005  04"),
            Payload::CertReq {
                encoding: 4,
                data: vec![],
            },
        ),
        (
            PayloadType::AUTH,
            hex("00 00 000a  02 000000 beef"),
            Payload::Auth(Auth {
                method: AuthMethod::PSK,
                data: vec![0xbe, 0xef],
            }),
        ),
    ]
}

fn management() -> Vec<Vector> {
    vec![
        (
            PayloadType::NOTIFY,
            hex("00 00 000c  03 04 4009 01020304"),
            Payload::Notify(Notify {
                protocol: Protocol::ESP,
                spi: vec![1, 2, 3, 4],
                kind: NotifyType::REKEY_SA,
                data: vec![],
            }),
        ),
        (
            PayloadType::DELETE,
            hex("00 00 0008  01 00 0000"),
            Payload::Delete(Delete::Ike),
        ),
        (
            PayloadType::DELETE,
            hex("00 00 0010  03 04 0002 00000100 ffffffff"),
            Payload::Delete(Delete::Child {
                protocol: Protocol::ESP,
                spis: vec![0x100, 0xffff_ffff],
            }),
        ),
        (
            PayloadType::VENDOR,
            hex("00 00 0006 7878"),
            Payload::Vendor(b"xx".to_vec()),
        ),
    ]
}

fn selectors_and_the_rest() -> Vec<Vector> {
    let selector = |protocol, ports: (u16, u16), start: &str, end: &str| TrafficSelector {
        protocol,
        start_port: ports.0,
        end_port: ports.1,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    };
    vec![
        (
            PayloadType::TS_I,
            hex("00 00 0028  02 000000
                 07 11 0010 0035 0035 0a010000 0a01ffff
                 07 06 0010 ffff 0000 c6336401 c6336401"),
            Payload::TsI(vec![
                selector(17, (53, 53), "10.1.0.0", "10.1.255.255"),
                selector(6, (65535, 0), "198.51.100.1", "198.51.100.1"),
            ]),
        ),
        (
            PayloadType::TS_R,
            hex("00 00 0030  01 000000
                 08 00 0028 0000 ffff
                 20010db8000000000000000000000000 20010db80000ffffffffffffffffffff"),
            Payload::TsR(vec![selector(
                0,
                (0, 65535),
                "2001:db8::",
                "2001:db8:0:ffff:ffff:ffff:ffff:ffff",
            )]),
        ),
        (
            PayloadType::CP,
            hex("00 00 0014  02 000000 0001 0004 0a030001 0003 0000"),
            Payload::Cp(Configuration {
                kind: CfgType::REPLY,
                attributes: vec![
                    CfgAttribute {
                        kind: CfgAttrType::INTERNAL_IP4_ADDRESS,
                        value: vec![10, 3, 0, 1],
                    },
                    CfgAttribute {
                        kind: CfgAttrType::INTERNAL_IP4_DNS,
                        value: vec![],
                    },
                ],
            }),
        ),
        (
            PayloadType::EAP,
            hex("00 00 0009  01 07 0005 01"),
            Payload::Eap(vec![1, 7, 0, 5, 1]),
        ),
        (
            PayloadType(54),
            hex("00 00 0007 616263"),
            Payload::Unknown {
                kind: PayloadType(54),
                data: b"abc".to_vec(),
            },
        ),
    ]
}

#[test]
fn each_payload_is_read_and_written() {
    for (kind, bytes, payload) in
        [authentication(), management(), selectors_and_the_rest()].concat()
    {
        assert_eq!(
            parse_chain(kind, &bytes),
            Ok(vec![payload.clone()]),
            "{kind}"
        );
        assert_eq!(emit_chain(&[payload]), (kind, bytes));
    }
}

#[test]
fn reserved_fields_are_ignored() {
    let cases = [
        (
            PayloadType::KE,
            "00 7f 0009 0013 ffff 05",
            "00 00 0009 0013 0000 05",
        ),
        (
            PayloadType::AUTH,
            "00 01 0009 02 ffffff 05",
            "00 00 0009 02 000000 05",
        ),
        (
            PayloadType::TS_I,
            "00 00 0018 01 ffffff 07 00 0010 0000 ffff 0a000000 0a0000ff",
            "00 00 0018 01 000000 07 00 0010 0000 ffff 0a000000 0a0000ff",
        ),
        (
            PayloadType::CP,
            "00 00 000c 01 ffffff 8001 0000",
            "00 00 000c 01 000000 0001 0000",
        ),
        (
            PayloadType::SA,
            "00 00 0014 00 ff 0010 01 01 00 01 00 ff 0008 02 ff 0005",
            "00 00 0014 00 00 0010 01 01 00 01 00 00 0008 02 00 0005",
        ),
        // Without an SPI the protocol means nothing (RFC 7296 §3.10).
        (
            PayloadType::NOTIFY,
            "00 00 0008 01 00 4000",
            "00 00 0008 00 00 4000",
        ),
    ];
    for (kind, lax, canonical) in cases {
        let payloads = parse_chain(kind, &hex(lax)).unwrap();
        assert_eq!(payloads, parse_chain(kind, &hex(canonical)).unwrap());
        assert_eq!(emit_chain(&payloads), (kind, hex(canonical)));
    }
}

#[test]
fn the_critical_bit_counts_only_for_unknown_types() {
    let vendor = hex("00 80 0005 01");
    assert_eq!(
        parse_chain(PayloadType::VENDOR, &vendor),
        Ok(vec![Payload::Vendor(vec![1])])
    );
    for kind in [1, 32, 49, 52, 54, 255] {
        assert_eq!(
            parse_chain(PayloadType(kind), &vendor),
            Err(ParseError::UnknownCritical(kind))
        );
    }
}

#[test]
fn several_proposals_are_read_and_written() {
    let bytes = hex("00 00 0034
         02 00 0018 01 03 04 01 00000100  00 00 000c 01 00 0014 800e 0080
         00 00 0018 02 03 04 01 00000100  00 00 000c 01 00 0014 800e 0100");
    let payloads = parse_chain(PayloadType::SA, &bytes).unwrap();
    let proposal = |number, bits| Proposal {
        number,
        protocol: Protocol::ESP,
        spi: vec![0, 0, 1, 0],
        transforms: vec![transform(TransformType::ENCR, 20, Some(bits))],
    };
    assert_eq!(
        payloads,
        [Payload::Sa(vec![proposal(1, 128), proposal(2, 256)])]
    );
    assert_eq!(emit_chain(&payloads), (PayloadType::SA, bytes));
}

#[test]
fn the_answer_to_an_offer_may_have_any_number() {
    let bytes = hex("00 00 0014 00 00 0010 07 01 00 01 00 00 0008 02 00 0005");
    let payloads = parse_chain(PayloadType::SA, &bytes).unwrap();
    assert!(matches!(&payloads[..], [Payload::Sa(p)] if p[0].number == 7));
}

#[test]
fn attributes_that_are_not_a_key_length_are_unknown() {
    for (attributes, key_bits) in [
        // In the long format, of another type, twice.
        ("000e 0002 0100", None),
        ("800d 0100", None),
        ("800e 0100 000f 0000", Some(256)),
        ("800e 0100 800e 0080", Some(256)),
    ] {
        let attributes = hex(attributes);
        let len = attributes.len();
        let mut bytes = hex(&format!(
            "00 00 {:04x} 00 00 {:04x} 01 01 00 01 00 00 {:04x} 01 00 0014",
            20 + len,
            16 + len,
            8 + len
        ));
        bytes.extend(attributes);
        let payloads = parse_chain(PayloadType::SA, &bytes).unwrap();
        let [Payload::Sa(proposals)] = &payloads[..] else {
            panic!("{payloads:?}");
        };
        let transform = &proposals[0].transforms[0];
        assert_eq!(transform.key_bits, key_bits);
        assert!(transform.unknown_attribute);
    }
}

#[test]
fn selectors_of_unknown_types_are_left_out() {
    let bytes = hex("00 00 0020 02 000000
         0a 00 0008 61626364
         07 00 0010 0000 ffff 0a000000 0a0000ff");
    let payloads = parse_chain(PayloadType::TS_R, &bytes).unwrap();
    assert!(matches!(&payloads[..], [Payload::TsR(s)] if s.len() == 1));
    let only = hex("00 00 000c 01 000000 0a 00 0004");
    assert_eq!(
        parse_chain(PayloadType::TS_R, &only),
        Ok(vec![Payload::TsR(vec![])])
    );
}

#[test]
fn an_encrypted_payload_is_delimited() {
    let bytes = hex(
        "0000000000000001 0000000000000002 2e 20 23 08 00000001 00000026
         23 00 000a 010203040506",
    );
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.payloads, []);
    let protected = message.protected.unwrap();
    assert_eq!(protected.first, PayloadType::ID_I);
    assert_eq!(protected.associated, &bytes[..32]);
    assert_eq!(protected.body, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(protected.fragment, None);
}

#[test]
fn payloads_may_precede_the_encrypted_one() {
    let bytes = hex(
        "0000000000000001 0000000000000002 2b 20 23 08 00000001 00000026
         2e 00 0005 ff
         00 80 0005 01",
    );
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.payloads, [Payload::Vendor(vec![0xff])]);
    assert_eq!(message.protected.unwrap().associated, &bytes[..37]);
    assert_eq!(message.protected.unwrap().first, PayloadType::NONE);
}

#[test]
fn a_fragment_is_delimited() {
    let bytes = hex(
        "0000000000000001 0000000000000002 35 20 23 08 00000001 00000026
         23 00 000a 0001 0002 aabb",
    );
    let protected = Message::parse(&bytes).unwrap().protected.unwrap();
    assert_eq!(protected.fragment, Some((1, 2)));
    assert_eq!(protected.first, PayloadType::ID_I);
    assert_eq!(protected.associated, &bytes[..36]);
    assert_eq!(protected.body, &[0xaa, 0xbb]);
}
