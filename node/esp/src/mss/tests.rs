use super::*;
use crate::checksum::checksum;
use proptest::prelude::*;

/// A TCP packet with a right checksum.
fn packet(v6: bool, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let padded = options.len().next_multiple_of(4);
    let mut tcp = vec![
        0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0,
    ];
    tcp[12] = u8::try_from((20 + padded) / 4 * 16).unwrap();
    tcp.extend(options);
    tcp.resize(20 + padded, 0);
    tcp.extend(payload);
    let len = u16::try_from(tcp.len()).unwrap();
    let mut header = if v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, TCP, 64];
        header[4..6].copy_from_slice(&len.to_be_bytes());
        header.extend([0x20; 32]);
        header
    } else {
        let mut header = vec![
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 9, 8, 7,
        ];
        header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
        header
    };
    let check = full_checksum(&header, &tcp);
    tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&check.to_be_bytes());
    header.extend(tcp);
    header
}

fn full_checksum(ip: &[u8], tcp: &[u8]) -> u16 {
    let addresses = if ip.len() == 40 {
        &ip[8..40]
    } else {
        &ip[12..20]
    };
    let len = u16::try_from(tcp.len()).unwrap().to_be_bytes();
    checksum(&[addresses, &[0, TCP], &len, tcp].concat(), 0)
}

fn ip_len(v6: bool) -> usize {
    if v6 { 40 } else { 20 }
}

#[test]
fn a_large_mss_is_lowered() {
    for (v6, expected) in [(false, 1360u16), (true, 1340)] {
        let mut syn = packet(v6, SYN, &[2, 4, 0x05, 0xb4, 1, 3, 3, 7], &[]);
        let before = syn.clone();
        assert!(clamp(&mut syn, 1400));
        let at = ip_len(v6) + 22;
        assert_eq!(syn[at..at + 2], expected.to_be_bytes());
        let (ip, tcp) = syn.split_at(ip_len(v6));
        assert_eq!(full_checksum(ip, tcp), 0);
        let changed = (0..syn.len())
            .filter(|&i| syn[i] != before[i])
            .collect::<Vec<_>>();
        assert!(
            changed
                .iter()
                .all(|i| (at..at + 2).contains(i) || (at - 6..at - 4).contains(i)),
            "{changed:?}"
        );
        assert!(!clamp(&mut syn, 1400), "once is enough");
    }
}

#[test]
fn other_packets_stay() {
    let mss = [2, 4, 0x05, 0xb4];
    let unchanged = |mut packet: Vec<u8>, mtu| {
        let before = packet.clone();
        assert!(!clamp(&mut packet, mtu));
        assert_eq!(packet, before);
    };
    unchanged(packet(false, SYN, &mss, &[]), 1500);
    unchanged(packet(false, 0x10, &mss, &[]), 1000);
    unchanged(packet(false, SYN, &[], b"payload"), 1000);
    unchanged(packet(false, SYN, &[0, 0, 2, 4, 5, 0xb4], &[]), 1000); // behind the end of options
    unchanged(packet(false, SYN, &[3, 0, 2, 4, 5, 0xb4], &[]), 1000); // malformed option
    unchanged(packet(false, SYN, &[2, 3, 5, 0xb4], &[]), 1000);
    unchanged(packet(false, SYN, &mss, &[]), 40);
    unchanged(packet(false, SYN, &mss, &[]), 0);
    let mut later = packet(false, SYN, &mss, &[]);
    later[7] = 1;
    unchanged(later, 1000);
    let mut udp = packet(false, SYN, &mss, &[]);
    udp[9] = 17;
    unchanged(udp, 1000);
}

proptest! {
    #[test]
    fn the_checksum_is_what_computing_anew_yields(
        v6: bool,
        nops in 0..5usize,
        mss in 1..=u16::MAX,
        mtu in 100..9000usize,
        payload in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let [high, low] = mss.to_be_bytes();
        let options = [&[OPTION_NOP].repeat(nops)[..], &[2, 4, high, low]].concat();
        let mut syn = packet(v6, SYN | 0x10, &options, &payload);
        let limit = mtu - ip_len(v6) - 20;
        prop_assert_eq!(clamp(&mut syn, mtu), limit < usize::from(mss));
        let (ip, tcp) = syn.split_at(ip_len(v6));
        prop_assert_eq!(full_checksum(ip, tcp), 0);
        let at = 20 + nops + 2;
        let now = u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        prop_assert_eq!(usize::from(now), limit.min(usize::from(mss)));
    }
}
