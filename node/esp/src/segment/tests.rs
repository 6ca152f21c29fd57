use super::*;
use crate::packet;
use proptest::prelude::*;

/// A packet with right checksums.
#[derive(Clone, Debug)]
struct Case {
    ipv4: bool,
    kind: Kind,
    id: u16,
    sequence: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Case {
    fn upper(&self) -> usize {
        if self.ipv4 { 20 } else { 40 }
    }

    fn header_len(&self) -> usize {
        self.upper() + if self.kind == Kind::Tcp { 32 } else { 8 }
    }

    fn packet(&self) -> Vec<u8> {
        let mut out = vec![0; self.header_len()];
        out.extend_from_slice(&self.payload);
        let protocol = if self.kind == Kind::Tcp { 6 } else { 17 };
        if self.ipv4 {
            out[..2].copy_from_slice(&[0x45, 0x02]);
            put_u16(&mut out, 4, self.id);
            out[6] = 0x40;
            out[8..10].copy_from_slice(&[64, protocol]);
            out[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
        } else {
            out[..8].copy_from_slice(&[0x60, 0x20, 0, 7, 0, 0, protocol, 64]);
            out[8] = 0xfd;
            out[39] = 9;
        }
        let upper = self.upper();
        out[upper..upper + 4].copy_from_slice(&[0x13, 0x88, 0x01, 0xbb]);
        if self.kind == Kind::Tcp {
            out[upper + 4..upper + 8].copy_from_slice(&self.sequence.to_be_bytes());
            out[upper + 8..upper + 12].copy_from_slice(&[9, 8, 7, 6]);
            out[upper + 12] = 0x80;
            out[upper + 13] = self.flags;
            out[upper + 20..upper + 24].copy_from_slice(&[1, 1, 8, 10]);
        }
        put_lengths(&mut out, self.ipv4, upper, self.kind);
        let sum = fold(pseudo_sum(&out, self.ipv4, self.kind, out.len() - upper));
        put_u16(&mut out, upper + self.kind.checksum_offset(), sum);
        complete_checksum(&mut out, upper, self.kind.checksum_offset()).unwrap();
        out
    }

    /// The same as a kernel leaves it to the device.
    fn unfinished(&self) -> Vec<u8> {
        let mut out = self.packet();
        let sum = fold(pseudo_sum(
            &out,
            self.ipv4,
            self.kind,
            out.len() - self.upper(),
        ));
        put_u16(&mut out, self.upper() + self.kind.checksum_offset(), sum);
        out
    }

    /// What it is cut into.
    fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let large = self.unfinished();
        let inner = packet::parse(&large).unwrap();
        let segments = Segments::new(&large, &inner, self.kind, size).unwrap();
        let all = (0..segments.count()).map(|i| {
            let mut out = vec![0xaa; segments.len(i)];
            segments.write(i, &mut out);
            out
        });
        all.collect()
    }
}

fn case() -> impl Strategy<Value = Case> {
    (
        any::<bool>(),
        prop_oneof![Just(Kind::Tcp), Just(Kind::Udp)],
        any::<u16>(),
        any::<u32>(),
        prop_oneof![Just(ACK), Just(ACK | PSH)],
        proptest::collection::vec(any::<u8>(), 1..9000),
    )
        .prop_map(|(ipv4, kind, id, sequence, flags, payload)| Case {
            ipv4,
            kind,
            id,
            sequence,
            flags,
            payload,
        })
}

fn begin(packet: &[u8]) -> Option<Large> {
    Large::begin(packet, &packet::parse(packet).unwrap())
}

/// Puts together as many as go together.
fn join(packets: &[Vec<u8>]) -> (Large, Vec<u8>) {
    let mut first = packets[0].clone();
    let mut large = begin(&first).unwrap();
    let mut behind = Vec::new();
    for packet in &packets[1..] {
        let inner = packet::parse(packet).unwrap();
        let Some(payload) = large.follow(&first, packet, &inner) else {
            break;
        };
        behind.extend_from_slice(&packet[payload]);
    }
    large.finish(&mut first);
    first.extend_from_slice(&behind);
    (large, first)
}

proptest! {
    #[test]
    fn segments_are_the_packets_that_would_have_been_sent(case in case(), size in 200usize..1400) {
        let cut = case.cut(size);
        let mut sent = 0;
        for (i, segment) in cut.iter().enumerate() {
            let payload = &case.payload[sent..case.payload.len().min(sent + size)];
            let last = i + 1 == cut.len();
            let expected = Case {
                id: case.id.wrapping_add(u16::try_from(i).unwrap()),
                sequence: case.sequence.wrapping_add(u32::try_from(sent).unwrap()),
                flags: if last { case.flags } else { case.flags & !PSH },
                payload: payload.to_vec(),
                ..case.clone()
            };
            prop_assert_eq!(segment, &expected.packet());
            sent += payload.len();
        }
        prop_assert_eq!(sent, case.payload.len());
    }

    #[test]
    fn what_was_cut_is_put_together_again(case in case(), size in 200usize..1400) {
        let (large, joined) = join(&case.cut(size));
        prop_assert_eq!(large.count(), case.payload.len().div_ceil(size));
        prop_assert_eq!(large.size(), size.min(case.payload.len()));
        prop_assert_eq!(joined, case.unfinished());
    }

    /// Whatever bytes come, nothing panics.
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120), size in 0usize..200, flip in any::<(usize, u8)>(), case in case()) {
        let mut real = case.packet();
        let at = flip.0 % real.len().min(80);
        real[at] ^= flip.1;
        for packet in [bytes, real] {
            let Ok(inner) = packet::parse(&packet) else { continue };
            for kind in [Kind::Tcp, Kind::Udp] {
                let Ok(segments) = Segments::new(&packet, &inner, kind, size) else { continue };
                for i in 0..segments.count() {
                    segments.write(i, &mut vec![0; segments.len(i)]);
                }
            }
            let packet = &packet[..inner.total_len];
            if let Some(mut large) = Large::begin(packet, &inner) {
                let _ = large.follow(packet, packet, &inner);
                large.finish(&mut packet.to_vec());
            }
            let _ = complete_checksum(&mut packet.to_vec(), flip.0 % 200, size);
        }
    }
}

fn tcp(sequence: u32, len: usize) -> Case {
    Case {
        ipv4: true,
        kind: Kind::Tcp,
        id: 7,
        sequence,
        flags: ACK,
        payload: vec![5; len],
    }
}

fn follows(first: &Case, second: &[u8]) -> bool {
    let first = first.packet();
    let inner = packet::parse(second).unwrap();
    let mut large = begin(&first).unwrap();
    large.follow(&first, second, &inner).is_some()
}

#[test]
fn only_what_goes_on_is_put_together() {
    let first = tcp(1000, 100);
    assert!(follows(&first, &tcp(1100, 100).packet()));
    assert!(
        follows(&first, &tcp(1100, 60).packet()),
        "a shorter last one"
    );
    assert!(!follows(&first, &tcp(1100, 101).packet()), "a longer one");
    assert!(!follows(&first, &tcp(1200, 100).packet()), "a gap");
    assert!(!follows(&first, &tcp(1000, 100).packet()), "the same again");
    let next = tcp(1100, 100).packet();
    // Ports, acknowledgement, window, options, TTL, DSCP.
    for at in [21, 28, 34, 50, 8, 1] {
        let mut other = next.clone();
        other[at] ^= 1;
        put_ipv4_checksum(&mut other, 20);
        let sum = fold(pseudo_sum(&other, true, Kind::Tcp, other.len() - 20));
        put_u16(&mut other, 36, sum);
        complete_checksum(&mut other, 20, 16).unwrap();
        assert!(!follows(&first, &other), "byte {at}");
    }
    let mut damaged = next.clone();
    damaged[60] ^= 1;
    assert!(!follows(&first, &damaged), "its checksum would be lost");
    for flags in [0x02, 0x11, 0x14, 0x12, 0x90] {
        let other = Case {
            flags,
            ..tcp(1100, 100)
        };
        assert!(!follows(&first, &other.packet()) && begin(&other.packet()).is_none());
    }
    assert!(begin(&tcp(1, 0).packet()).is_none(), "nothing in it");
}

#[test]
fn a_damaged_first_stays_alone() {
    let mut first = tcp(1000, 100).packet();
    first[70] ^= 1;
    let next = tcp(1100, 100).packet();
    let inner = packet::parse(&next).unwrap();
    assert!(
        begin(&first)
            .unwrap()
            .follow(&first, &next, &inner)
            .is_none()
    );
}

#[test]
fn identifications_go_on_where_routers_may_fragment() {
    let fragmentable = |case: Case| {
        let mut packet = case.packet();
        packet[6] = 0;
        put_ipv4_checksum(&mut packet, 20);
        packet
    };
    let first = fragmentable(tcp(1000, 100));
    for (id, together) in [(8, true), (9, false), (7, false)] {
        let next = fragmentable(Case {
            id,
            ..tcp(1100, 100)
        });
        let inner = packet::parse(&next).unwrap();
        let follows = begin(&first).unwrap().follow(&first, &next, &inner);
        assert_eq!(follows.is_some(), together, "{id}");
    }
}

#[test]
fn a_push_or_a_short_one_is_the_last() {
    for last in [
        Case {
            flags: ACK | PSH,
            ..tcp(1100, 100)
        },
        tcp(1100, 99),
    ] {
        let sequence = 1100 + u32::try_from(last.payload.len()).unwrap();
        let (large, _) = join(&[
            tcp(1000, 100).packet(),
            last.packet(),
            tcp(sequence, 50).packet(),
        ]);
        assert_eq!((large.count(), large.is_complete()), (2, true));
    }
}

#[test]
fn large_packets_are_bounded() {
    let packets: Vec<_> = (0..70).map(|i| tcp(i * 10, 10).packet()).collect();
    assert_eq!(join(&packets).0.count(), 64);
    let packets: Vec<_> = (0..70).map(|i| tcp(i * 1400, 1400).packet()).collect();
    assert_eq!(join(&packets).0.count(), 46);
}

#[test]
fn udp_without_a_checksum_stays_alone() {
    let mut packet = Case {
        kind: Kind::Udp,
        ..tcp(0, 100)
    }
    .packet();
    assert!(begin(&packet).is_some());
    put_u16(&mut packet, 26, 0);
    assert!(begin(&packet).is_none());
}

#[test]
fn what_is_not_of_its_kind_is_refused() {
    let packet = tcp(0, 100).unfinished();
    let inner = packet::parse(&packet).unwrap();
    assert_eq!(
        Segments::new(&packet, &inner, Kind::Udp, 10).err(),
        Some(NotLarge)
    );
    assert_eq!(
        Segments::new(&packet, &inner, Kind::Tcp, 0).err(),
        Some(NotLarge)
    );
    assert_eq!(complete_checksum(&mut [0; 10], 9, 0), Err(NotLarge));
    assert_eq!(complete_checksum(&mut [0; 10], 11, 0), Err(NotLarge));
    assert_eq!(
        complete_checksum(&mut [0; 10], 0, usize::MAX),
        Err(NotLarge)
    );
}
