use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two hosts that see each other as they are.
fn plain(local: &str, remote: &str) -> Ends {
    Ends {
        local: ip(local),
        remote: ip(remote),
        local_there: ip(local),
        remote_there: ip(remote),
    }
}

/// What the peer has: the ends of `ours` from the other side.
fn there(ours: &Ends) -> Ends {
    Ends {
        local: ours.remote_there,
        remote: ours.local_there,
        local_there: ours.remote,
        remote_there: ours.local,
    }
}

/// The sum over a pseudo-header (RFC 768, RFC 8200 §8.1), not folded.
fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u64 {
    let words = [source, destination].into_iter().flat_map(words_of);
    words.map(u64::from).sum::<u64>() + u64::from(protocol) + len as u64
}

/// A segment or datagram with the checksum that `from` puts there.
fn upper(protocol: u8, from: &Ends, body: &[u8]) -> Vec<u8> {
    let (len, at) = match protocol {
        TCP => (20, 16),
        ICMPV6 => (4, 2),
        _ => (8, 6),
    };
    let mut bytes = vec![7; len];
    bytes[at..at + 2].fill(0);
    if protocol == UDP {
        bytes[4..6].copy_from_slice(&u16::try_from(8 + body.len()).unwrap().to_be_bytes());
    }
    bytes.extend_from_slice(body);
    let sum = pseudo(from.local, from.remote, protocol, bytes.len());
    let sum = match checksum::checksum(&bytes, sum) {
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Whether the checksum fits the header that it is behind.
fn is_right(packet: &[u8]) -> bool {
    let inner = packet::parse(packet).unwrap();
    let bytes = &packet[inner.upper_offset..inner.total_len];
    let s = inner.selectors;
    let sum = pseudo(s.source, s.destination, s.protocol, bytes.len());
    checksum::checksum(bytes, sum) == 0
}

#[test]
fn a_packet_comes_out_as_it_went_in() {
    for ends in [
        plain("192.0.2.2", "192.0.2.1"),
        plain("2001:db8::2", "2001:db8::1"),
    ] {
        for protocol in [TCP, UDP, UDP_LITE, DCCP, ICMPV6, 89] {
            let payload = upper(protocol, &there(&ends), b"what is said");
            let packet = restore(&payload, protocol, &ends, 0xb9).unwrap();
            let inner = packet::parse(&packet).unwrap();
            assert_eq!(inner.selectors.source, ends.remote);
            assert_eq!(inner.selectors.destination, ends.local);
            assert_eq!(inner.selectors.protocol, protocol);
            assert_eq!((inner.traffic_class, inner.total_len), (0xb9, packet.len()));
            assert_eq!(
                covered(&packet, &inner),
                Ok((packet.len() - payload.len()..packet.len(), protocol))
            );
            assert_eq!(&packet[inner.upper_offset..], payload);
        }
    }
}

#[test]
fn the_header_of_ipv4_has_its_checksum() {
    let packet = restore(b"x", 89, &plain("192.0.2.2", "192.0.2.1"), 3).unwrap();
    assert_eq!(checksum::checksum(&packet[..20], 0), 0);
}

#[test]
fn nats_at_both_ends_are_accounted_for() {
    let ends = Ends {
        local: ip("10.0.0.2"),
        remote: ip("198.51.100.1"),
        local_there: ip("198.51.100.2"),
        remote_there: ip("172.16.0.9"),
    };
    for protocol in [TCP, UDP, DCCP] {
        let payload = upper(protocol, &there(&ends), b"odd");
        let packet = restore(&payload, protocol, &ends, 0).unwrap();
        assert!(is_right(&packet), "protocol {protocol}");
    }
    // The same addresses do not make it right: the correction does.
    let same = Ends {
        local_there: ends.local,
        remote_there: ends.remote,
        ..ends
    };
    let payload = upper(TCP, &there(&ends), b"odd");
    assert!(!is_right(&restore(&payload, TCP, &same, 0).unwrap()));
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let ends = Ends {
        remote_there: ip("172.16.0.9"),
        ..plain("192.0.2.2", "192.0.2.1")
    };
    let mut payload = upper(UDP, &there(&ends), b"x");
    payload[6..8].fill(0);
    let packet = restore(&payload, UDP, &ends, 0).unwrap();
    assert_eq!(packet[26..28], [0, 0]);
}

#[test]
fn what_is_too_short_for_a_checksum_has_none() {
    let ends = Ends {
        remote_there: ip("172.16.0.9"),
        ..plain("192.0.2.2", "192.0.2.1")
    };
    for len in 0..20 {
        let packet = restore(&vec![9; len], TCP, &ends, 0).unwrap();
        assert_eq!(packet.len(), 20 + len);
    }
}

#[test]
fn fragments_and_options_cannot_be_covered() {
    let ends = plain("192.0.2.2", "192.0.2.1");
    let said = |packet: &[u8]| covered(packet, &packet::parse(packet).unwrap());
    let mut fragment = restore(&[0; 16], UDP, &ends, 0).unwrap();
    fragment[6] = 0x20;
    assert_eq!(said(&fragment), Err(TransportError::Fragment));
    let mut options = restore(&[0; 16], UDP, &ends, 0).unwrap();
    options[0] = 0x46;
    assert_eq!(said(&options), Err(TransportError::Options));
}

#[test]
fn destination_options_are_covered_and_headers_for_routers_refused() {
    let ends = plain("2001:db8::2", "2001:db8::1");
    let said = |first: u8, payload: &[u8]| {
        let packet = restore(payload, first, &ends, 0).unwrap();
        covered(&packet, &packet::parse(&packet).unwrap())
    };
    let options = [UDP, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(
        said(DESTINATION_OPTIONS, &options),
        Ok((40..56, DESTINATION_OPTIONS))
    );
    assert_eq!(said(HOP_BY_HOP, &options), Err(TransportError::Options));
    let mut routing = options;
    routing[0] = ROUTING;
    routing[8..16].copy_from_slice(&[UDP, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        said(DESTINATION_OPTIONS, &routing),
        Err(TransportError::Options)
    );
    let whole = [UDP, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(said(FRAGMENT, &whole), Err(TransportError::Options));
}

#[test]
fn no_packet_is_longer_than_its_length_can_say() {
    let long = vec![0; 65_535 - 19];
    let ends = plain("192.0.2.2", "192.0.2.1");
    assert_eq!(restore(&long, 89, &ends, 0), Err(TransportError::TooLong));
}

proptest! {
    #[test]
    fn whatever_a_peer_sends_is_a_packet_between_the_ends_or_refused(
        payload in proptest::collection::vec(any::<u8>(), 0..200), next_header: u8, v6: bool,
    ) {
        let ends = match v6 {
            true => Ends { remote_there: ip("fd00::9"), ..plain("2001:db8::2", "2001:db8::1") },
            false => Ends { remote_there: ip("10.0.0.9"), ..plain("192.0.2.2", "192.0.2.1") },
        };
        if let Ok(packet) = restore(&payload, next_header, &ends, 0) {
            let inner = packet::parse(&packet).unwrap();
            prop_assert_eq!((inner.selectors.source, inner.selectors.destination), (ends.remote, ends.local));
            let _ = covered(&packet, &inner);
        }
    }

    #[test]
    fn a_checksum_is_right_behind_any_nat(
        body in proptest::collection::vec(any::<u8>(), 0..50), a: u32, b: u32, c: u32, d: u32, tcp: bool,
    ) {
        let v4 = |n: u32| IpAddr::V4(n.into());
        let ends = Ends { local: v4(a), remote: v4(b), local_there: v4(c), remote_there: v4(d) };
        let protocol = if tcp { TCP } else { UDP };
        let packet = restore(&upper(protocol, &there(&ends), &body), protocol, &ends, 0).unwrap();
        prop_assert!(is_right(&packet));
    }
}
