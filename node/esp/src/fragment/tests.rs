use super::*;
use proptest::prelude::*;

fn packet(field: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = 20 + options.len();
    let mut packet = vec![
        0x45, 0x28, 0, 0, 0xbe, 0xef, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    packet[0] = 0x40 | u8::try_from(len / 4).unwrap();
    packet.extend(options);
    packet.extend(payload);
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[6..8].copy_from_slice(&field.to_be_bytes());
    let check = checksum(&packet[..len], 0);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

fn field(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[6], packet[7]])
}

fn header_len(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

#[test]
fn what_must_not_be_fragmented_is_not() {
    let df = packet(0x4000, &[], &[0; 100]);
    assert_eq!(ipv4(&df, 100), Err(FragmentError::DontFragment));
    assert_eq!(ipv4(&df, 120), Ok(vec![df.clone()]));
    assert_eq!(
        ipv4(&packet(0, &[], &[0; 100]), 67),
        Err(FragmentError::MtuTooSmall)
    );
    assert_eq!(ipv4(&df[..50], 40), Err(FragmentError::NotIpv4));
    let mut v6 = vec![0; 40];
    v6[0] = 0x60;
    assert_eq!(ipv4(&v6, 1500), Err(FragmentError::NotIpv4));
}

#[test]
fn options_are_copied_as_their_flag_says() {
    // Record route (not copied), a no-operation, and router alert (copied).
    let options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0];
    let out = ipv4(&packet(0, &options, &[5; 200]), 120).unwrap();
    assert_eq!(header_len(&out[0]), 32);
    assert_eq!(out[0][20..32], options);
    for later in &out[1..] {
        assert_eq!(header_len(later), 24);
        assert_eq!(later[20..24], [0x94, 4, 0, 0]);
    }
}

#[test]
fn a_fragment_can_be_cut_again() {
    let out = ipv4(&packet(MORE | 100, &[], &[1; 160]), 100).unwrap();
    assert_eq!(
        out.iter().map(|f| field(f)).collect::<Vec<_>>(),
        [MORE | 100, MORE | 110]
    );
    let out = ipv4(&packet(100, &[], &[1; 160]), 100).unwrap();
    assert_eq!(
        out.iter().map(|f| field(f)).collect::<Vec<_>>(),
        [MORE | 100, 110]
    );
}

proptest! {
    #[test]
    fn fragments_make_the_packet_again(
        payload in proptest::collection::vec(any::<u8>(), 0..5000),
        mtu in 68..1600usize,
        with_options: bool,
    ) {
        let options: &[u8] = if with_options { &[7, 3, 4, 0x94, 4, 0, 0, 0] } else { &[] };
        let whole = packet(0, options, &payload);
        let out = ipv4(&whole, mtu).unwrap();
        let mut together = Vec::new();
        for (i, piece) in out.iter().enumerate() {
            let parsed = packet::parse(piece).unwrap();
            prop_assert!(piece.len() <= mtu);
            prop_assert_eq!(parsed.total_len, piece.len());
            prop_assert_eq!(checksum(&piece[..header_len(piece)], 0), 0);
            prop_assert_eq!(usize::from(field(piece) & OFFSET) * 8, together.len());
            prop_assert_eq!(field(piece) & MORE != 0, i + 1 < out.len());
            prop_assert_eq!(&piece[4..6], &whole[4..6]);
            together.extend_from_slice(&piece[header_len(piece)..]);
        }
        prop_assert_eq!(together, payload);
    }
}
