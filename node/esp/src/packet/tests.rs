use super::*;
use proptest::prelude::*;

fn v4(protocol: u8, flags: u16, options: &[u8], upper: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = u16::try_from(header_len + upper.len())
        .unwrap()
        .to_be_bytes();
    let [flags_high, flags_low] = flags.to_be_bytes();
    let ihl = u8::try_from(0x40 + header_len / 4).unwrap();
    let mut packet = vec![
        ihl, 0xb9, total[0], total[1], 0, 7, flags_high, flags_low, 33, protocol, 0, 0,
    ];
    packet.extend([192, 0, 2, 1, 198, 51, 100, 2]);
    packet.extend(options);
    packet.extend(upper);
    packet
}

fn v6(next: u8, behind: &[u8]) -> Vec<u8> {
    let len = u16::try_from(behind.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x6b, 0x90, 0, 0, len[0], len[1], next, 33];
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend(behind);
    packet
}

const PORTS: [u8; 8] = [0x12, 0x34, 0, 53, 0, 0, 0, 0];
const NUMBERS: Option<(u16, u16)> = Some((0x1234, 53));

#[test]
fn ipv4_with_options() {
    let mut packet = v4(UDP, 0x4000, &[1; 4], &PORTS);
    packet.extend([0; 9]); // link padding
    let inner = parse(&packet).unwrap();
    assert_eq!(
        inner.selectors.source,
        "192.0.2.1".parse::<IpAddr>().unwrap()
    );
    assert_eq!(
        inner.selectors.destination,
        "198.51.100.2".parse::<IpAddr>().unwrap()
    );
    assert_eq!(
        (inner.selectors.protocol, inner.selectors.ports),
        (UDP, NUMBERS)
    );
    assert_eq!((inner.total_len, inner.upper_offset), (32, 24));
    assert_eq!((inner.traffic_class, inner.hop_limit), (0xb9, 33));
    assert!(inner.dont_fragment);
    assert_eq!(inner.fragment, Fragment::No);
    assert_eq!(next_header(&packet), Some(protocol::IPV4));
}

#[test]
fn fragments_but_the_first_have_no_ports() {
    for (flags, fragment, ports) in [
        (0x2000, Fragment::First, NUMBERS),
        (0x2001, Fragment::Later, None),
        (0x0001, Fragment::Later, None),
    ] {
        let inner = parse(&v4(TCP, flags, &[], &PORTS)).unwrap();
        assert_eq!((inner.fragment, inner.selectors.ports), (fragment, ports));
    }
    assert_eq!(
        parse(&v4(TCP, 0x1fff, &[], &[0; 8])),
        Err(PacketError::Invalid)
    );
    assert!(parse(&v4(TCP, 0x1fff, &[], &[0; 7])).is_ok());
}

#[test]
fn ports_only_where_a_protocol_has_them() {
    for (protocol, ports) in [(TCP, NUMBERS), (SCTP, NUMBERS), (50, None), (47, None)] {
        assert_eq!(
            parse(&v4(protocol, 0, &[], &PORTS))
                .unwrap()
                .selectors
                .ports,
            ports
        );
    }
    let icmp = parse(&v4(ICMP, 0, &[], &[8, 3, 0, 0])).unwrap();
    assert_eq!(icmp.selectors.ports, Some((0x803, 0x803)));
    assert_eq!(
        parse(&v4(TCP, 0, &[], &[1, 2, 3])).unwrap().selectors.ports,
        None
    );
    assert_eq!(
        parse(&v4(ICMP, 0, &[], &[1])).unwrap().selectors.ports,
        None
    );
}

#[test]
fn malformed_ipv4() {
    let good = v4(UDP, 0, &[1; 4], &PORTS);
    for len in 0..good.len() {
        assert_eq!(parse(&good[..len]), Err(PacketError::Truncated), "{len}");
    }
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        parse(&packet)
    };
    assert_eq!(with(0, 0x44), Err(PacketError::Invalid));
    assert_eq!(with(3, 23), Err(PacketError::Invalid));
    assert_eq!(with(3, 33), Err(PacketError::Truncated));
    assert_eq!(with(0, 0x56), Err(PacketError::Version(5)));
}

#[test]
fn ipv6_extension_headers() {
    let plain = parse(&v6(UDP, &PORTS)).unwrap();
    assert_eq!(
        (plain.traffic_class, plain.hop_limit, plain.dont_fragment),
        (0xb9, 33, true)
    );
    assert_eq!((plain.total_len, plain.upper_offset), (48, 40));
    assert_eq!(plain.selectors.ports, NUMBERS);
    assert_eq!(
        plain.selectors.destination,
        "2001:db8::2".parse::<IpAddr>().unwrap()
    );

    let hop_by_hop = [
        DESTINATION_OPTIONS,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let options = [AUTHENTICATION, 0, 0, 0, 0, 0, 0, 0];
    let authentication = [UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let chain = [&hop_by_hop[..], &options, &authentication, &PORTS].concat();
    let inner = parse(&v6(HOP_BY_HOP, &chain)).unwrap();
    assert_eq!(
        (inner.selectors.protocol, inner.selectors.ports),
        (UDP, NUMBERS)
    );
    assert_eq!(inner.upper_offset, 40 + 16 + 8 + 12);
}

#[test]
fn ipv6_fragments() {
    let fragment = |field: u16| {
        let [high, low] = field.to_be_bytes();
        parse(&v6(
            FRAGMENT,
            &[&[UDP, 0, high, low, 0, 0, 0, 9], &PORTS[..]].concat(),
        ))
        .unwrap()
    };
    for (field, expected, ports) in [
        (0, Fragment::No, NUMBERS),
        (1, Fragment::First, NUMBERS),
        (8, Fragment::Later, None),
        (9, Fragment::Later, None),
    ] {
        let inner = fragment(field);
        assert_eq!(
            (
                inner.fragment,
                inner.selectors.ports,
                inner.selectors.protocol
            ),
            (expected, ports, UDP)
        );
    }
}

#[test]
fn the_walk_is_bounded() {
    let chain = |count: usize| {
        [
            &[DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(count - 1)[..],
            &[UDP, 0, 0, 0, 0, 0, 0, 0],
            &PORTS,
        ]
        .concat()
    };
    assert_eq!(
        parse(&v6(DESTINATION_OPTIONS, &chain(8)))
            .unwrap()
            .selectors
            .ports,
        NUMBERS
    );
    assert_eq!(
        parse(&v6(DESTINATION_OPTIONS, &chain(9))),
        Err(PacketError::TooManyHeaders)
    );
    assert_eq!(
        parse(&v6(DESTINATION_OPTIONS, &[UDP, 1, 0, 0, 0, 0, 0, 0])),
        Err(PacketError::Truncated)
    );
    assert_eq!(parse(&v6(HOP_BY_HOP, &[])), Err(PacketError::Truncated));
}

/// Bytes that look enough like packets to get past the first check.
fn packet_like() -> impl Strategy<Value = Vec<u8>> {
    let next = prop_oneof![
        Just(0u8),
        Just(1),
        Just(6),
        Just(17),
        Just(43),
        Just(44),
        Just(51),
        Just(58),
        Just(60),
        any::<u8>()
    ];
    (
        proptest::collection::vec(any::<u8>(), 0..200),
        0..4u8,
        next,
        any::<bool>(),
    )
        .prop_map(|(mut bytes, kind, next, exact)| {
            let len = bytes.len();
            let [high, low] = u16::try_from(len).unwrap().to_be_bytes();
            if kind == 0 && len >= 20 {
                bytes[0] = 0x40 | (bytes[0] % 8);
                bytes[9] = next;
                if exact {
                    bytes[2..4].copy_from_slice(&[high, low]);
                }
            }
            if kind == 1 && len >= 48 {
                bytes[0] = 0x60 | (bytes[0] % 16);
                bytes[6] = next;
                bytes[40] = 6;
                bytes[41] %= 4;
                if exact {
                    bytes[4..6].copy_from_slice(&[0, low - 40]);
                }
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn nothing_panics(mut packet in packet_like(), number in 0..2000usize, class: u8) {
        if let Ok(inner) = parse(&packet) {
            prop_assert!(inner.total_len <= packet.len());
            prop_assert!(inner.upper_offset <= inner.total_len);
        }
        let _ = next_header(&packet);
        let _ = crate::icmp::too_big(&packet, number, "192.0.2.9".parse().unwrap());
        let _ = crate::icmp::too_big(&packet, number, "2001:db8::9".parse().unwrap());
        let _ = crate::fragment::ipv4(&packet, number);
        let _ = crate::mss::clamp(&mut packet.clone(), number);
        let _ = crate::tunnel::decapsulate(&mut packet.clone(), class, true);
        let _ = crate::udp::classify(&packet);
        set_traffic_class(&mut packet, class);
    }
}
