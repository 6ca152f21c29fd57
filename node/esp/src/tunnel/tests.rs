use super::*;
use crate::checksum::checksum;

/// RFC 6040 §4.2, Figure 4: rows are the inner field, columns the outer one: Not-ECT, ECT(0), ECT(1), CE.
const TABLE: [(Ecn, [Option<Ecn>; 4]); 4] = {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
    ]
};
const COLUMNS: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

fn v4(traffic_class: u8) -> Vec<u8> {
    let mut packet = vec![
        0x45,
        traffic_class,
        0,
        20,
        1,
        2,
        0x40,
        0,
        64,
        59,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        0,
        2,
    ];
    let check = checksum(&packet, 0);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

fn v6(traffic_class: u8) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60 | traffic_class >> 4;
    packet[1] = traffic_class << 4 | 0x0a;
    packet[2..4].fill(0xbc);
    packet[6] = 59;
    packet
}

#[test]
fn ecn_is_combined_as_rfc6040_says() {
    for (inner, row) in TABLE {
        for (outer, expected) in COLUMNS.into_iter().zip(row) {
            assert_eq!(combine_ecn(inner, outer), expected, "{inner:?} {outer:?}");
        }
    }
}

#[test]
fn every_traffic_class_is_decapsulated() {
    for inner in 0..=255u8 {
        for outer in 0..=255u8 {
            let expected = combine_ecn(Ecn::of(inner), Ecn::of(outer));
            for copy in [false, true] {
                let dscp = if copy { outer } else { inner } & 0xfc;
                let expected = expected
                    .map(|ecn| dscp | ecn as u8)
                    .ok_or(DecapsulateError::CongestionLost);
                for make in [v4, v6] {
                    let mut packet = make(inner);
                    let result = decapsulate(&mut packet, outer, copy);
                    assert_eq!(result.map(|()| traffic_class(&packet).unwrap()), expected);
                    assert_eq!(
                        packet,
                        make(expected.unwrap_or(inner)),
                        "all else stays, and the checksum is right"
                    );
                }
            }
        }
    }
}

#[test]
fn the_outer_header_copies_ecn_and_dscp() {
    for inner in 0..=255u8 {
        assert_eq!(outer_traffic_class(inner, OuterDscp::Copy), inner);
        assert_eq!(
            outer_traffic_class(inner, OuterDscp::Fixed(46)),
            46 << 2 | inner & 3
        );
    }
}

#[test]
fn df_follows_the_policy() {
    let mut inner = packet::parse(&v4(0)).unwrap();
    assert!(inner.dont_fragment);
    assert!(outer_df(&inner, OuterDf::Copy));
    assert!(!outer_df(&inner, OuterDf::Clear));
    inner.dont_fragment = false;
    assert!(!outer_df(&inner, OuterDf::Copy));
    assert!(outer_df(&inner, OuterDf::Set));
}

#[test]
fn what_is_no_packet_stays_as_it_is() {
    for bytes in [vec![], vec![0x45], vec![0x10; 40]] {
        let mut packet = bytes.clone();
        assert_eq!(decapsulate(&mut packet, 3, true), Ok(()));
        assert_eq!(packet, bytes);
    }
}

#[test]
fn what_crosses_can_be_chosen() {
    let usual = HeaderPolicy::default();
    assert_eq!(usual.outwards(0xba), 0xba);
    let hidden = HeaderPolicy {
        dscp_out: false,
        ecn: false,
        ..usual
    };
    assert_eq!(hidden.outwards(0xbb), 0);
    let no_ecn = HeaderPolicy {
        ecn: false,
        ..usual
    };
    assert_eq!(no_ecn.outwards(0xbb), 0xb8);

    let v6 = |class: u8| {
        let mut packet = vec![0; 40];
        (packet[0], packet[1]) = (0x60 | class >> 4, class << 4);
        packet
    };
    let received = |policy: HeaderPolicy, inner: u8, outer: u8| {
        let mut packet = v6(inner);
        policy.inwards(&mut packet, outer).map(|()| packet)
    };
    let uniform = HeaderPolicy {
        dscp_in: true,
        ..usual
    };
    assert_eq!(received(usual, 0x02, 0xbb), Ok(v6(0x03)));
    assert_eq!(received(uniform, 0x02, 0xbb), Ok(v6(0xbb)));
    assert_eq!(received(no_ecn, 0x02, 0xbb), Ok(v6(0x02)));
    assert_eq!(
        received(no_ecn, 0x00, 0x03),
        Ok(v6(0x00)),
        "it is not looked at"
    );
    assert!(received(usual, 0x00, 0x03).is_err());
}
