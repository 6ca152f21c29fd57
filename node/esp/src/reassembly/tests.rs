use super::*;
use crate::{
    fragment, packet,
    transport::{Ends, restore},
};
use proptest::prelude::*;

const UDP: u8 = 17;

/// A whole packet with this payload.
fn whole(payload: &[u8], v6: bool) -> Vec<u8> {
    let (local, remote) = match v6 {
        true => ("2001:db8::2", "2001:db8::1"),
        false => ("192.0.2.2", "192.0.2.1"),
    };
    let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
    let ends = Ends {
        local,
        remote,
        local_there: local,
        remote_there: remote,
    };
    restore(payload, UDP, &ends, 0x28).unwrap()
}

/// The fragments of a packet, of so many bytes of payload.
fn cut(packet: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    if packet[0] >> 4 == 4 {
        let mut packet = packet.to_vec();
        packet[4..6].copy_from_slice(&u16::try_from(id).unwrap().to_be_bytes());
        return fragment::ipv4(&packet, 20 + size).unwrap();
    }
    let payload = &packet[40..];
    let parts = payload.chunks(size).enumerate().map(|(n, bytes)| {
        let mut out = packet[..40].to_vec();
        out[4..6].copy_from_slice(&u16::try_from(8 + bytes.len()).unwrap().to_be_bytes());
        out[6] = FRAGMENT;
        let more = u16::from((n + 1) * size < payload.len());
        let field = u16::try_from(n * size).unwrap() | more;
        out.extend_from_slice(&[UDP, 0]);
        out.extend_from_slice(&field.to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(bytes);
        out
    });
    parts.collect()
}

fn add(reassembler: &mut Reassembler, packet: &[u8]) -> Added {
    let inner = packet::parse(packet).unwrap();
    reassembler.add(packet, &inner).0
}

/// What counts of a packet: all but identification and checksum of IPv4.
fn essence(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        assert_eq!(checksum::checksum(&packet[..20], 0), 0);
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn a_packet_is_whole_with_its_last_fragment() {
    for v6 in [false, true] {
        let packet = whole(&[0x33; 3008], v6);
        let parts = cut(&packet, 7, 1200);
        assert_eq!(parts.len(), 3);
        let mut reassembler = Reassembler::default();
        for part in &parts[..2] {
            assert_eq!(add(&mut reassembler, part), Added::Waits);
        }
        let Added::Whole(again) = add(&mut reassembler, &parts[2]) else {
            panic!("it is not whole");
        };
        assert_eq!(essence(&again), essence(&packet));
        assert_eq!(packet::parse(&again).unwrap().fragment, Fragment::No);
        assert!(reassembler.unfinished.is_empty());
    }
}

#[test]
fn packets_are_told_apart() {
    let mut reassembler = Reassembler::default();
    let (one, two) = (whole(&[1; 100], false), whole(&[2; 100], false));
    let (a, b) = (cut(&one, 1, 64), cut(&two, 2, 64));
    assert_eq!(add(&mut reassembler, &a[0]), Added::Waits);
    assert_eq!(add(&mut reassembler, &b[0]), Added::Waits);
    for (part, packet) in [(&a[1], &one), (&b[1], &two)] {
        let inner = packet::parse(part).unwrap();
        assert!(reassembler.waits_for(part, &inner));
        match add(&mut reassembler, part) {
            Added::Whole(again) => assert_eq!(essence(&again), essence(packet)),
            other => panic!("{other:?}"),
        }
        assert!(!reassembler.waits_for(part, &inner));
    }
}

#[test]
fn a_hole_ends_a_packet() {
    let parts = cut(&whole(&[1; 300], true), 1, 64);
    let mut reassembler = Reassembler::default();
    assert_eq!(add(&mut reassembler, &parts[1]), Added::Lost);
    assert_eq!(add(&mut reassembler, &parts[0]), Added::Waits);
    assert_eq!(add(&mut reassembler, &parts[2]), Added::Lost);
    assert_eq!(add(&mut reassembler, &parts[1]), Added::Lost);
    assert!(reassembler.unfinished.is_empty());
}

#[test]
fn what_is_never_finished_is_given_up_in_time() {
    let mut reassembler = Reassembler::default();
    let packet = whole(&[1; 100], false);
    let mut given_up = 0;
    for id in 0..100 {
        let first = cut(&packet, id, 64).remove(0);
        let inner = packet::parse(&first).unwrap();
        given_up += usize::from(reassembler.add(&first, &inner).1);
    }
    assert_eq!(
        (reassembler.unfinished.len(), given_up),
        (UNFINISHED, 100 - UNFINISHED)
    );
}

#[test]
fn no_packet_grows_beyond_what_a_header_can_say() {
    let mut reassembler = Reassembler::default();
    let first = cut(&whole(&[1; 100], false), 1, 64).remove(0);
    assert_eq!(add(&mut reassembler, &first), Added::Waits);
    let mut so_far = 64;
    loop {
        // Fragments that go on and on.
        let mut next = whole(&[2; 1024], false);
        next[4..6].copy_from_slice(&[0, 1]);
        let field = 0x2000 | u16::try_from(so_far / 8).unwrap();
        next[6..8].copy_from_slice(&field.to_be_bytes());
        let Ok(inner) = packet::parse(&next) else {
            break; // such a fragment is refused before
        };
        match reassembler.add(&next, &inner).0 {
            Added::Waits => so_far += 1024,
            Added::Lost => break,
            Added::Whole(_) => panic!("it was not the last"),
        }
    }
    assert!(so_far + 20 <= MAX_LEN);
}

proptest! {
    #[test]
    fn any_packet_comes_together(payload in proptest::collection::vec(any::<u8>(), 17..3000), eighths in 6..100usize, v6: bool) {
        let size = eighths * 8;
        prop_assume!(payload.len() > size);
        let packet = whole(&payload, v6);
        let parts = cut(&packet, 9, size);
        let mut reassembler = Reassembler::default();
        let (last, others) = parts.split_last().unwrap();
        for part in others {
            prop_assert_eq!(add(&mut reassembler, part), Added::Waits);
        }
        match add(&mut reassembler, last) {
            Added::Whole(again) => prop_assert_eq!(essence(&again), essence(&packet)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn whatever_comes_as_a_fragment_is_survived(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 20..120), 1..20)) {
        let mut reassembler = Reassembler::default();
        for mut packet in packets {
            packet[0] = if packet[0] & 1 == 0 { 0x45 } else { 0x60 };
            let len = u16::try_from(packet.len()).unwrap();
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            if let Ok(inner) = packet::parse(&packet) {
                let _ = reassembler.add(&packet, &inner);
            }
        }
        prop_assert!(reassembler.unfinished.len() <= UNFINISHED);
    }
}
