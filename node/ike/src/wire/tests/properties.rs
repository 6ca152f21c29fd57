//! Emitting and parsing are inverse, and no bytes do harm.

use crate::{memory::within, wire::*};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn transform() -> impl Strategy<Value = Transform> {
    (any::<u8>(), any::<u16>(), option::of(any::<u16>())).prop_map(|(kind, id, key_bits)| {
        Transform {
            kind: TransformType(kind),
            id,
            key_bits,
            unknown_attribute: false,
        }
    })
}

fn proposals() -> impl Strategy<Value = Vec<Proposal>> {
    let spi = prop_oneof![
        Just((Protocol::IKE, 0)),
        Just((Protocol::IKE, 8)),
        Just((Protocol::ESP, 4)),
        Just((Protocol::AH, 4)),
        (4..=255u8, 0..=255usize).prop_map(|(p, len)| (Protocol(p), len)),
    ]
    .prop_flat_map(|(protocol, len)| (Just(protocol), vec(any::<u8>(), len)));
    let proposal = (spi, vec(transform(), 1..=MAX_TRANSFORMS));
    vec(proposal, 1..6).prop_map(|list| {
        (1..)
            .zip(list)
            .map(|(number, ((protocol, spi), transforms))| Proposal {
                number,
                protocol,
                spi,
                transforms,
            })
            .collect()
    })
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    let v4 = any::<(u32, u32)>().prop_map(|(a, b)| {
        let ip = |n| IpAddr::V4(Ipv4Addr::from_bits(n));
        (ip(a.min(b)), ip(a.max(b)))
    });
    let v6 = any::<(u128, u128)>().prop_map(|(a, b)| {
        let ip = |n| IpAddr::V6(Ipv6Addr::from_bits(n));
        (ip(a.min(b)), ip(a.max(b)))
    });
    let ports = prop_oneof![
        any::<(u16, u16)>().prop_map(|(a, b)| (a.min(b), a.max(b))),
        Just((0, u16::MAX)),
        Just((u16::MAX, 0)),
    ];
    (any::<u8>(), ports, prop_oneof![v4, v6]).prop_map(
        |(protocol, (start_port, end_port), (start, end))| TrafficSelector {
            protocol,
            start_port,
            end_port,
            start,
            end,
        },
    )
}

fn identification() -> impl Strategy<Value = Identification> {
    (any::<u8>(), any::<[u8; 3]>(), bytes(80)).prop_map(|(kind, reserved, data)| Identification {
        kind: IdType(kind),
        reserved,
        data,
    })
}

fn notify() -> impl Strategy<Value = Payload> {
    let spi = prop_oneof![
        Just((0, 0)),
        (any::<u8>(), Just(4usize)),
        (any::<u8>(), Just(8usize))
    ]
    .prop_flat_map(|(protocol, len)| (Just(Protocol(protocol)), vec(any::<u8>(), len)));
    (spi, any::<u16>(), bytes(60)).prop_map(|((protocol, spi), kind, data)| {
        Payload::Notify(Notify {
            protocol,
            spi,
            kind: NotifyType(kind),
            data,
        })
    })
}

fn delete() -> impl Strategy<Value = Payload> {
    let protocol = prop_oneof![Just(Protocol::AH), Just(Protocol::ESP)];
    prop_oneof![
        Just(Delete::Ike),
        (protocol, vec(any::<u32>(), 0..=MAX_DELETE_SPIS))
            .prop_map(|(protocol, spis)| Delete::Child { protocol, spis }),
    ]
    .prop_map(Payload::Delete)
}

fn configuration() -> impl Strategy<Value = Payload> {
    let attribute = (0..0x8000u16, bytes(20)).prop_map(|(kind, value)| CfgAttribute {
        kind: CfgAttrType(kind),
        value,
    });
    (any::<u8>(), vec(attribute, 0..=MAX_CFG_ATTRIBUTES)).prop_map(|(kind, attributes)| {
        Payload::Cp(Configuration {
            kind: CfgType(kind),
            attributes,
        })
    })
}

/// The types that we do not know.
fn unknown() -> impl Strategy<Value = Payload> {
    let kind = prop_oneof![1..=32u8, 49..=52u8, 54..=255u8].prop_map(PayloadType);
    (kind, bytes(40)).prop_map(|(kind, data)| Payload::Unknown { kind, data })
}

/// Every kind of payload.
fn payload() -> impl Strategy<Value = Payload> {
    let selectors = || vec(selector(), 1..=MAX_SELECTORS);
    prop_oneof![
        proposals().prop_map(Payload::Sa),
        (any::<u16>(), bytes(80))
            .prop_map(|(group, data)| Payload::Ke(KeyExchange { group, data })),
        identification().prop_map(Payload::IdI),
        identification().prop_map(Payload::IdR),
        (any::<u8>(), bytes(300)).prop_map(|(encoding, data)| Payload::Cert { encoding, data }),
        (any::<u8>(), bytes(60)).prop_map(|(encoding, data)| Payload::CertReq { encoding, data }),
        (any::<u8>(), bytes(80)).prop_map(|(method, data)| Payload::Auth(Auth {
            method: AuthMethod(method),
            data,
        })),
        vec(any::<u8>(), MIN_NONCE_LEN..=MAX_NONCE_LEN).prop_map(Payload::Nonce),
        notify(),
        delete(),
        bytes(40).prop_map(Payload::Vendor),
        selectors().prop_map(Payload::TsI),
        selectors().prop_map(Payload::TsR),
        configuration(),
        vec(any::<u8>(), 4..60).prop_map(Payload::Eap),
        unknown(),
    ]
}

fn header() -> impl Strategy<Value = Header> {
    (
        any::<(u64, u64, u8, u32)>(),
        0..16u8,
        any::<(bool, bool, bool)>(),
    )
        .prop_map(|(numbers, minor_version, flags)| Header {
            initiator_spi: numbers.0,
            responder_spi: numbers.1,
            minor_version,
            exchange: ExchangeType(numbers.2),
            from_initiator: flags.0,
            is_response: flags.1,
            higher_version: flags.2,
            message_id: numbers.3,
        })
}

/// A whole message, perhaps with an Encrypted payload at its end.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let encrypted = (any::<bool>(), prop_oneof![Just(0u8), 33..=45u8], bytes(64));
    (header(), vec(payload(), 0..6), option::of(encrypted)).prop_map(
        |(header, payloads, encrypted)| match encrypted {
            None => emit(&header, &payloads),
            Some((fragment, first, body)) => sealed(&header, payloads, fragment, first, &body),
        },
    )
}

/// A message that ends with an Encrypted payload. There is no emitter for that here, so a payload of
/// a type that is not known takes its place and is renamed.
fn sealed(
    header: &Header,
    mut payloads: Vec<Payload>,
    fragment: bool,
    first: u8,
    body: &[u8],
) -> Vec<u8> {
    let before = emit(header, &payloads);
    let mut data = if fragment { vec![0, 1, 0, 2] } else { vec![] };
    data.extend(body);
    payloads.push(Payload::Unknown {
        kind: if fragment {
            PayloadType::SKF
        } else {
            PayloadType::SK
        },
        data,
    });
    let mut out = emit(header, &payloads);
    out[before.len()] = first;
    out
}

/// Bytes on the heap that `payloads` hold.
fn heap(payloads: &[Payload]) -> usize {
    let inner = |payload: &Payload| match payload {
        Payload::Sa(list) => {
            let transforms = |p: &Proposal| p.transforms.capacity() * size_of::<Transform>();
            list.capacity() * size_of::<Proposal>()
                + list
                    .iter()
                    .map(|p| p.spi.capacity() + transforms(p))
                    .sum::<usize>()
        }
        Payload::TsI(list) | Payload::TsR(list) => list.capacity() * size_of::<TrafficSelector>(),
        Payload::Cp(cp) => {
            cp.attributes.capacity() * size_of::<CfgAttribute>()
                + cp.attributes
                    .iter()
                    .map(|a| a.value.capacity())
                    .sum::<usize>()
        }
        Payload::Delete(Delete::Child { spis, .. }) => spis.capacity() * 4,
        Payload::Delete(Delete::Ike) => 0,
        Payload::Ke(ke) => ke.data.capacity(),
        Payload::IdI(id) | Payload::IdR(id) => id.data.capacity(),
        Payload::Auth(auth) => auth.data.capacity(),
        Payload::Notify(notify) => notify.spi.capacity() + notify.data.capacity(),
        Payload::Cert { data, .. }
        | Payload::CertReq { data, .. }
        | Payload::Unknown { data, .. }
        | Payload::Nonce(data)
        | Payload::Vendor(data)
        | Payload::Eap(data) => data.capacity(),
    };
    size_of_val(payloads) + payloads.iter().map(inner).sum::<usize>()
}

/// Whether something was left out when `payloads` was parsed, so that emitting cannot bring it back.
fn lossy(payloads: &[Payload]) -> bool {
    payloads.iter().any(|payload| match payload {
        Payload::Sa(list) => list
            .iter()
            .flat_map(|p| &p.transforms)
            .any(|t| t.unknown_attribute),
        Payload::TsI(list) | Payload::TsR(list) => list.is_empty(),
        _ => false,
    })
}

/// How much memory parsing so many bytes may take at once, the vectors that grow meanwhile included.
fn justified(len: usize) -> usize {
    256 + 128 * len
}

/// What must hold for any bytes at all.
fn harmless(bytes: &[u8]) -> Result<(), TestCaseError> {
    let _ = Header::parse(bytes);
    let Ok(message) = within(justified(bytes.len()), || Message::parse(bytes)) else {
        return Ok(());
    };
    // A payload of four bytes costs one `Payload`, and a vector has up to twice its length.
    prop_assert!(heap(&message.payloads) <= 64 * bytes.len());
    if let Some(protected) = message.protected {
        prop_assert_eq!(
            [protected.associated, protected.body].concat(),
            bytes.to_vec()
        );
    } else if !lossy(&message.payloads) {
        let again = emit(&message.header, &message.payloads);
        prop_assert!(again.len() <= bytes.len());
        prop_assert_eq!(Message::parse(&again), Ok(message));
    }
    Ok(())
}

proptest! {
    #[test]
    fn parsing_is_the_inverse_of_emitting(header in header(), payloads in vec(payload(), 0..8)) {
        let bytes = emit(&header, &payloads);
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!(&message.header, &header);
        prop_assert_eq!(&message.payloads, &payloads);
        prop_assert_eq!(message.protected, None);
        prop_assert_eq!(emit(&message.header, &message.payloads), bytes);
    }

    #[test]
    fn chains_are_parsed_as_they_were_emitted(payloads in vec(payload(), 0..8)) {
        let (first, bytes) = emit_chain(&payloads);
        prop_assert_eq!(parse_chain(first, &bytes), Ok(payloads));
    }

    #[test]
    fn arbitrary_bytes_are_harmless(bytes in bytes(400), first in any::<u8>()) {
        harmless(&bytes)?;
        let chain = || parse_chain(PayloadType(first), &bytes);
        if let Ok(payloads) = within(justified(bytes.len()), chain) {
            prop_assert!(heap(&payloads) <= 64 * bytes.len());
        }
    }

    #[test]
    fn messages_that_were_tampered_with_are_harmless(
        mut bytes in message(),
        changes in vec(any::<(Index, u8)>(), 0..4),
        cut in option::weighted(0.2, any::<Index>()),
        honest_length in any::<bool>(),
    ) {
        prop_assert!(Message::parse(&bytes).is_ok());
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if honest_length && bytes.len() >= HEADER_LEN {
            bytes[17] = 0x20;
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[24..28].copy_from_slice(&length.to_be_bytes());
        }
        harmless(&bytes)?;
    }
}
