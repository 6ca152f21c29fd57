//! Malformed bytes, and what is said about them.

use super::{hex, sa_init};
use crate::wire::*;

fn truncated(what: &'static str, offset: usize) -> ParseError {
    ParseError::Truncated { what, offset }
}

fn invalid(what: &'static str, offset: usize) -> ParseError {
    ParseError::Invalid { what, offset }
}

fn refused(kind: PayloadType, bytes: &str) -> ParseError {
    parse_chain(kind, &hex(bytes)).unwrap_err()
}

#[test]
fn every_truncation_is_refused() {
    let bytes = sa_init();
    for len in 0..bytes.len() {
        let cut = &bytes[..len];
        let want = if len < HEADER_LEN {
            "IKE header"
        } else {
            "message"
        };
        assert_eq!(Message::parse(cut), Err(truncated(want, 0)), "{len}");
        // With a length field that agrees, the payloads must notice.
        if len >= HEADER_LEN {
            let mut cut = cut.to_vec();
            cut[24..28].copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            assert!(
                matches!(Message::parse(&cut), Err(ParseError::Truncated { offset, .. }) if offset <= len),
                "{len}"
            );
        }
    }
}

#[test]
fn the_length_field_must_be_that_of_the_datagram() {
    let mut bytes = sa_init();
    bytes.push(0);
    assert_eq!(
        Message::parse(&bytes),
        Err(invalid("data after the message", 164))
    );
    bytes[27] += 1;
    assert_eq!(
        Message::parse(&bytes),
        Err(invalid("data after the last payload", 164))
    );
    bytes[24..28].copy_from_slice(&27u32.to_be_bytes());
    assert_eq!(Message::parse(&bytes), Err(invalid("message length", 24)));
    bytes[24..28].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(Message::parse(&bytes), Err(truncated("message", 0)));
}

#[test]
fn other_major_versions_are_told_apart() {
    let mut bytes = sa_init();
    for (version, major) in [(0x10, 1), (0x30, 3), (0xf0, 15), (0x00, 0)] {
        bytes[17] = version;
        assert_eq!(Header::parse(&bytes), Err(ParseError::MajorVersion(major)));
        assert_eq!(Message::parse(&bytes), Err(ParseError::MajorVersion(major)));
        let (found, header) = Header::parse_any_version(&bytes).unwrap();
        assert_eq!(
            (found, header.initiator_spi),
            (major, 0x0001_0203_0405_0607)
        );
    }
    // The minor version is ignored (RFC 7296 §2.5).
    bytes[17] = 0x2f;
    assert_eq!(Header::parse(&bytes).unwrap().minor_version, 15);
}

#[test]
fn the_encrypted_payload_is_the_last_and_only_one() {
    let head = "0000000000000001 0000000000000002 2e 20 23 08 00000001";
    let after = hex(&format!("{head} 00000025 2b 00 0004 00 00 0005 ff"));
    assert_eq!(
        Message::parse(&after),
        Err(invalid("data after the Encrypted payload", 32))
    );
    for inner in ["2e", "35"] {
        let nested = hex(&format!("{head} 00000020 {inner} 00 0004"));
        let what = "Encrypted payload inside an Encrypted payload";
        assert_eq!(Message::parse(&nested), Err(invalid(what, 28)));
        assert_eq!(
            refused(PayloadType::VENDOR, &format!("{inner} 00 0004 00 00 0004")),
            invalid(what, 4)
        );
    }
    let long = hex(&format!("{head} 00000020 00 00 0005"));
    assert_eq!(Message::parse(&long), Err(truncated("payload", 28)));
}

#[test]
fn fragments_are_numbered_from_one_to_the_total() {
    let head = "0000000000000001 0000000000000002 35 20 23 08 00000001";
    for numbers in ["0000 0001", "0001 0000", "0000 0000", "0003 0002"] {
        let bytes = hex(&format!("{head} 00000024 00 00 0008 {numbers}"));
        assert_eq!(
            Message::parse(&bytes),
            Err(invalid("fragment number", 32)),
            "{numbers}"
        );
    }
    let short = hex(&format!("{head} 00000022 00 00 0006 0001"));
    assert_eq!(
        Message::parse(&short),
        Err(truncated("total fragments", 34))
    );
}

#[test]
fn payload_lengths_are_exact() {
    assert_eq!(
        refused(PayloadType::VENDOR, "00 00 0003"),
        invalid("payload length", 0)
    );
    assert_eq!(
        refused(PayloadType::VENDOR, "2b 00 0005 01 00 00 00"),
        truncated("payload header", 5)
    );
    assert_eq!(
        refused(PayloadType::VENDOR, "00 00 0005"),
        truncated("payload", 0)
    );
    assert_eq!(
        refused(PayloadType::VENDOR, "00 00 0004 00"),
        invalid("data after the last payload", 4)
    );
    assert_eq!(
        parse_chain(PayloadType::NONE, &[0]),
        Err(invalid("data after the last payload", 0))
    );
}

#[test]
fn bodies_are_refused_for_what_is_wrong_with_them() {
    let cases = [
        (
            PayloadType::KE,
            "00 00 0006 001f",
            truncated("reserved field of Key Exchange", 6),
        ),
        (
            PayloadType::ID_I,
            "00 00 0006 0100",
            truncated("reserved field of Identification", 5),
        ),
        (
            PayloadType::CERT,
            "00 00 0004",
            truncated("certificate encoding", 4),
        ),
        (
            PayloadType::CERTREQ,
            "00 00 0004",
            truncated("certificate encoding", 4),
        ),
        (
            PayloadType::AUTH,
            "00 00 0007 020000",
            truncated("reserved field of Authentication", 5),
        ),
        (
            PayloadType::EAP,
            "00 00 0007 010000",
            truncated("EAP message", 4),
        ),
        (
            PayloadType::NOTIFY,
            "00 00 0009 03 01 4000 01",
            invalid("SPI size of Notify", 5),
        ),
        (
            PayloadType::NOTIFY,
            "00 00 0009 03 04 4000 01",
            truncated("SPI of Notify", 8),
        ),
        (
            PayloadType::DELETE,
            "00 00 0008 00 00 0000",
            invalid("protocol of Delete", 4),
        ),
        (
            PayloadType::DELETE,
            "00 00 0008 01 08 0000",
            invalid("SPI size of Delete", 5),
        ),
        (
            PayloadType::DELETE,
            "00 00 0008 01 00 0001",
            invalid("number of SPIs", 6),
        ),
        (
            PayloadType::DELETE,
            "00 00 0009 01 00 0000 00",
            invalid("data after Delete", 8),
        ),
        (
            PayloadType::DELETE,
            "00 00 000a 03 02 0001 0000",
            invalid("SPI size of Delete", 5),
        ),
        (
            PayloadType::DELETE,
            "00 00 000c 03 04 0002 00000100",
            truncated("SPIs of Delete", 8),
        ),
        (
            PayloadType::DELETE,
            "00 00 000c 03 04 0000 00000100",
            invalid("data after Delete", 8),
        ),
        (
            PayloadType::CP,
            "00 00 000d 01 000000 0001 0002 00",
            truncated("configuration attribute", 12),
        ),
        (
            PayloadType::CP,
            "00 00 000a 01 000000 0001",
            truncated("configuration attribute", 10),
        ),
    ];
    for (kind, bytes, want) in cases {
        assert_eq!(refused(kind, bytes), want, "{bytes}");
    }
}

#[test]
fn nonces_have_16_to_256_bytes() {
    for (len, good) in [(15, false), (16, true), (256, true), (257, false)] {
        let mut bytes = hex(&format!("00 00 {:04x}", len + 4));
        bytes.extend(vec![0; len]);
        assert_eq!(parse_chain(PayloadType::NONCE, &bytes).is_ok(), good);
    }
}

#[test]
fn proposals_nest_exactly() {
    let cases = [
        // No proposal; a proposal shorter than its own header.
        ("00 00 0004", truncated("proposal", 4)),
        ("00 00 0008 00 00 0003", invalid("length of a proposal", 6)),
        // The flag says more where there is none, last where there is more, or nonsense.
        (
            "00 00 0014 02 00 0010 01 01 00 01 00 00 0008 02 00 0005",
            truncated("proposal", 20),
        ),
        (
            "00 00 0014 03 00 0010 01 01 00 01 00 00 0008 02 00 0005",
            invalid("last substructure flag", 4),
        ),
        (
            "00 00 0014 00 00 0010 01 01 00 01 03 00 0008 02 00 0005",
            invalid("last substructure flag", 12),
        ),
        (
            "00 00 0014 00 00 0010 01 01 00 01 02 00 0008 02 00 0005",
            invalid("last substructure flag", 12),
        ),
        // Number of transforms: none, too few, too many.
        (
            "00 00 000c 00 00 0008 01 01 00 00",
            invalid("number of transforms", 11),
        ),
        (
            "00 00 0014 00 00 0010 01 01 00 00 00 00 0008 02 00 0005",
            invalid("number of transforms", 11),
        ),
        (
            "00 00 001c 00 00 0018 01 01 00 01 00 00 0008 02 00 0005 00 00 0008 02 00 0006",
            invalid("data after the last transform", 20),
        ),
        (
            "00 00 0014 00 00 0010 01 01 00 02 03 00 0008 02 00 0005",
            truncated("transform", 20),
        ),
        // Lengths that lie.
        (
            "00 00 0014 00 00 0010 01 01 00 01 00 00 0009 02 00 0005",
            truncated("transform", 12),
        ),
        (
            "00 00 0014 00 00 0010 01 01 00 01 00 00 0003 02 00 0005",
            invalid("length of a transform", 14),
        ),
        (
            "00 00 0014 00 00 0011 01 01 00 01 00 00 0008 02 00 0005",
            truncated("proposal", 4),
        ),
        (
            "00 00 0015 00 00 0010 01 01 00 01 00 00 0008 02 00 0005 00",
            invalid("data after the last proposal", 20),
        ),
        // An SPI size that the protocol does not have.
        (
            "00 00 0018 00 00 0014 01 01 04 01 00000001 00 00 0008 02 00 0005",
            invalid("SPI size of a proposal", 10),
        ),
        (
            "00 00 0014 00 00 0010 01 03 00 01 00 00 0008 02 00 0005",
            invalid("SPI size of a proposal", 10),
        ),
        // Numbers: zero, not from one, a gap.
        (
            "00 00 0014 00 00 0010 00 01 00 01 00 00 0008 02 00 0005",
            invalid("proposal number", 8),
        ),
        (
            "00 00 0024 02 00 0010 02 01 00 01 00 00 0008 02 00 0005 00 00 0010 03 01 00 01 00 00 0008 02 00 0005",
            invalid("proposal number", 8),
        ),
        (
            "00 00 0024 02 00 0010 01 01 00 01 00 00 0008 02 00 0005 00 00 0010 03 01 00 01 00 00 0008 02 00 0005",
            invalid("proposal number", 24),
        ),
        // Attributes that end too early.
        (
            "00 00 0016 00 00 0012 01 01 00 01 00 00 000a 01 00 0014 800e",
            truncated("transform attribute", 22),
        ),
        (
            "00 00 0018 00 00 0014 01 01 00 01 00 00 000c 01 00 0014 000e 0001",
            truncated("transform attribute", 24),
        ),
    ];
    for (bytes, want) in cases {
        assert_eq!(refused(PayloadType::SA, bytes), want, "{bytes}");
    }
}

#[test]
fn selectors_are_exact() {
    let cases = [
        (
            "00 00 0008 00 000000",
            invalid("number of traffic selectors", 4),
        ),
        (
            "00 00 000a 01 000000 0700",
            truncated("traffic selector", 8),
        ),
        (
            "00 00 0018 01 000000 07 00 000f 0000 ffff 0a000000 0a0000ff",
            invalid("length of a traffic selector", 10),
        ),
        (
            "00 00 0018 01 000000 08 00 0010 0000 ffff 0a000000 0a0000ff",
            invalid("length of a traffic selector", 10),
        ),
        (
            "00 00 000c 01 000000 0a 00 0003",
            invalid("length of a traffic selector", 10),
        ),
        (
            "00 00 0018 01 000000 07 00 0010 0000 ffff 0a000001 0a000000",
            invalid("addresses of a traffic selector", 16),
        ),
        (
            "00 00 0018 01 000000 07 00 0010 0002 0001 0a000000 0a000000",
            invalid("ports of a traffic selector", 12),
        ),
        (
            "00 00 0018 01 000000 07 00 0010 ffff 0001 0a000000 0a000000",
            invalid("ports of a traffic selector", 12),
        ),
        (
            "00 00 0018 02 000000 07 00 0010 0000 ffff 0a000000 0a0000ff",
            truncated("traffic selector", 24),
        ),
        (
            "00 00 0019 01 000000 07 00 0010 0000 ffff 0a000000 0a0000ff 00",
            invalid("data after the last traffic selector", 24),
        ),
    ];
    for (bytes, want) in cases {
        assert_eq!(refused(PayloadType::TS_I, bytes), want, "{bytes}");
    }
}

/// A payload with `count` times `element` after `head`.
fn repeated(head: &str, element: &str, count: usize) -> Vec<u8> {
    let body = hex(&format!("{head}{}", element.repeat(count)));
    let mut out = hex(&format!("00 00 {:04x}", body.len() + 4));
    out.extend(body);
    out
}

#[test]
fn every_list_is_bounded() {
    let too_many = |what| Err(ParseError::TooMany { what });
    let vendors = |count: usize| hex(&format!("{}00000004", "2b000004".repeat(count - 1)));
    assert_eq!(
        parse_chain(PayloadType::VENDOR, &vendors(MAX_PAYLOADS)).map(|p| p.len()),
        Ok(MAX_PAYLOADS)
    );
    assert_eq!(
        parse_chain(PayloadType::VENDOR, &vendors(MAX_PAYLOADS + 1)),
        too_many("payloads")
    );

    let delete = |n: usize| repeated(&format!("03 04 {n:04x}"), "00000100", n);
    assert!(parse_chain(PayloadType::DELETE, &delete(MAX_DELETE_SPIS)).is_ok());
    assert_eq!(
        parse_chain(PayloadType::DELETE, &delete(MAX_DELETE_SPIS + 1)),
        too_many("SPIs in Delete")
    );

    let cp = |n| repeated("01 000000", "00010000", n);
    assert!(parse_chain(PayloadType::CP, &cp(MAX_CFG_ATTRIBUTES)).is_ok());
    assert_eq!(
        parse_chain(PayloadType::CP, &cp(MAX_CFG_ATTRIBUTES + 1)),
        too_many("configuration attributes")
    );

    let ts = |n: usize| {
        repeated(
            &format!("{n:02x} 000000"),
            "070000100000ffff0a0000000a0000ff",
            n,
        )
    };
    assert!(parse_chain(PayloadType::TS_I, &ts(MAX_SELECTORS)).is_ok());
    assert_eq!(
        parse_chain(PayloadType::TS_I, &ts(MAX_SELECTORS + 1)),
        too_many("traffic selectors")
    );

    let id = |n| repeated("02 000000", "61", n);
    assert!(parse_chain(PayloadType::ID_I, &id(MAX_ID_LEN)).is_ok());
    assert_eq!(
        parse_chain(PayloadType::ID_I, &id(MAX_ID_LEN + 1)),
        Err(invalid("length of Identification", 8))
    );
}

#[test]
fn lists_in_proposals_are_bounded() {
    let too_many = |what| Err(ParseError::TooMany { what });
    let sa = |proposals: usize, transforms: usize, attributes: usize| {
        let transform = Transform {
            kind: TransformType::PRF,
            id: 5,
            key_bits: None,
            unknown_attribute: false,
        };
        let proposals = (1..=proposals).map(|n| Proposal {
            number: u8::try_from(n).unwrap(),
            protocol: Protocol::IKE,
            spi: vec![],
            transforms: vec![transform.clone(); transforms],
        });
        let mut bytes = emit_chain(&[Payload::Sa(proposals.collect())]).1;
        let more = u8::try_from(attributes * 4).unwrap();
        bytes.extend(hex("800d0001").repeat(attributes));
        if more > 0 {
            // Only used with one proposal of one transform.
            for at in [3, 7, 15] {
                bytes[at] += more;
            }
        }
        parse_chain(PayloadType::SA, &bytes).map(|_| ())
    };
    assert_eq!(sa(MAX_PROPOSALS, 1, 0), Ok(()));
    assert_eq!(sa(MAX_PROPOSALS + 1, 1, 0), too_many("proposals"));
    assert_eq!(sa(1, MAX_TRANSFORMS, 0), Ok(()));
    assert_eq!(sa(1, MAX_TRANSFORMS + 1, 0), too_many("transforms"));
    assert_eq!(sa(1, 1, MAX_TRANSFORM_ATTRIBUTES), Ok(()));
    assert_eq!(
        sa(1, 1, MAX_TRANSFORM_ATTRIBUTES + 1),
        too_many("transform attributes")
    );
}
