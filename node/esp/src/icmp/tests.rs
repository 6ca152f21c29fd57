use super::*;

fn v4(protocol: u8, flags: u8, len: u16, destination: [u8; 4], upper: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; usize::from(len)];
    packet[..2].copy_from_slice(&[0x45, 0]);
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[6] = flags;
    packet[8..10].copy_from_slice(&[64, protocol]);
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&destination);
    packet[20..20 + upper.len()].copy_from_slice(upper);
    packet
}

fn v6(protocol: u8, len: u16, destination: &str, upper: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40 + usize::from(len)];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet[6..8].copy_from_slice(&[protocol, 64]);
    packet[8..24].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    packet[24..40].copy_from_slice(&destination.parse::<Ipv6Addr>().unwrap().octets());
    packet[40..40 + upper.len()].copy_from_slice(upper);
    packet
}

const DF: u8 = 0x40;
const HOST: [u8; 4] = [192, 0, 2, 5];

fn gateway() -> IpAddr {
    "192.0.2.254".parse().unwrap()
}

fn gateway6() -> IpAddr {
    "2001:db8::fe".parse().unwrap()
}

#[test]
fn fragmentation_needed() {
    let packet = v4(17, DF, 1500, HOST, &[1, 2, 3, 4]);
    let message = too_big(&packet, 1400, gateway()).unwrap();
    let parsed = packet::parse(&message).unwrap();
    assert_eq!(parsed.total_len, message.len());
    assert_eq!(message.len(), 576);
    assert_eq!(parsed.selectors.source, gateway());
    assert_eq!(
        parsed.selectors.destination,
        "10.0.0.1".parse::<IpAddr>().unwrap()
    );
    assert_eq!(parsed.selectors.ports, Some((0x0304, 0x0304)));
    assert_eq!(message[26..28], 1400u16.to_be_bytes());
    assert_eq!(message[28..], packet[..548]);
    assert_eq!(checksum(&message[..20], 0), 0);
    assert_eq!(checksum(&message[20..], 0), 0);
}

#[test]
fn packet_too_big() {
    let packet = v6(6, 1460, "2001:db8::2", &[1, 2, 3, 4]);
    let message = too_big(&packet, 1400, gateway6()).unwrap();
    let parsed = packet::parse(&message).unwrap();
    assert_eq!(parsed.total_len, message.len());
    assert_eq!(message.len(), 1280);
    assert_eq!(parsed.selectors.ports, Some((0x0200, 0x0200)));
    assert_eq!(message[44..48], 1400u32.to_be_bytes());
    assert_eq!(message[48..], packet[..1232]);
    let pseudo = [&message[8..40], &[0, 0, 4, 0xd8, 0, 0, 0, 58]].concat();
    assert_eq!(message.len() - 40, 0x4d8);
    assert_eq!(checksum(&[&pseudo, &message[40..]].concat(), 0), 0);
}

#[test]
fn a_short_packet_is_quoted_whole() {
    let packet = v4(17, DF, 200, HOST, &[]);
    let message = too_big(&packet, 100, gateway()).unwrap();
    assert_eq!(message[28..], packet);
}

#[test]
fn minimum_mtus_are_respected() {
    let message = too_big(&v4(17, DF, 200, HOST, &[]), 20, gateway()).unwrap();
    assert_eq!(message[26..28], 68u16.to_be_bytes());
    let message = too_big(&v6(17, 1300, "2001:db8::2", &[]), 600, gateway6()).unwrap();
    assert_eq!(message[44..48], 1280u32.to_be_bytes());
    assert_eq!(
        too_big(&v6(17, 1240, "2001:db8::2", &[]), 600, gateway6()),
        None
    );
}

#[test]
fn nothing_about_what_must_not_be_answered() {
    let silent = |packet: &[u8]| assert_eq!(too_big(packet, 1280, gateway()), None);
    silent(&v4(17, 0, 1500, HOST, &[])); // may be fragmented
    silent(&v4(17, DF, 1280, HOST, &[])); // fits
    silent(&v4(17, DF | 0x20, 1500, [224, 0, 0, 1], &[]));
    silent(&v4(17, DF, 1500, [255, 255, 255, 255], &[]));
    for kind in [3, 4, 5, 11, 12] {
        silent(&v4(1, DF, 1500, HOST, &[kind, 0]));
    }
    let mut later = v4(17, DF, 1500, HOST, &[]);
    later[7] = 1;
    silent(&later);
    let mut from_nobody = v4(17, DF, 1500, HOST, &[]);
    from_nobody[12..16].fill(0);
    silent(&from_nobody);
    assert!(too_big(&v4(1, DF, 1500, HOST, &[8, 0]), 1280, gateway()).is_some());
    assert_eq!(
        too_big(&v4(17, DF, 1500, HOST, &[]), 1280, gateway6()),
        None
    );
}

#[test]
fn nothing_about_what_must_not_be_answered_in_ipv6() {
    let silent = |packet: &[u8]| assert_eq!(too_big(packet, 1280, gateway6()), None);
    silent(&v6(17, 1240, "2001:db8::2", &[]));
    silent(&v6(17, 1460, "ff02::1", &[]));
    for kind in [1, 2, 3, 4, 127, 137] {
        silent(&v6(58, 1460, "2001:db8::2", &[kind, 0]));
    }
    silent(&v6(44, 1460, "2001:db8::2", &[17, 0, 0, 8]));
    assert!(too_big(&v6(58, 1460, "2001:db8::2", &[128, 0]), 1280, gateway6()).is_some());
    assert!(
        too_big(
            &v6(44, 1460, "2001:db8::2", &[17, 0, 0, 1]),
            1280,
            gateway6()
        )
        .is_some()
    );
}

mod about {
    use super::super::*;

    /// A UDP datagram from port 1000 to port 53.
    fn datagram(v6: bool, len: usize) -> Vec<u8> {
        let udp = [&[0x03, 0xe8, 0, 53][..], &vec![7; len]].concat();
        let total = u16::try_from(udp.len()).unwrap();
        match v6 {
            false => {
                let [high, low] = (total + 20).to_be_bytes();
                let header = [
                    0x45, 0, high, low, 0, 0, 0x40, 0, 1, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 6,
                ];
                [&header[..], &udp].concat()
            }
            true => {
                let [high, low] = total.to_be_bytes();
                let mut header = vec![0x60, 0, 0, 0, high, low, 17, 1];
                header.extend("fd01::5".parse::<Ipv6Addr>().unwrap().octets());
                header.extend("fd02::6".parse::<Ipv6Addr>().unwrap().octets());
                [header, udp].concat()
            }
        }
    }

    /// An ICMP message to the sender of a datagram, of which it quotes so many bytes.
    fn message(v6: bool, kind: u8, datagram: &[u8], quoted: usize) -> Vec<u8> {
        let mut message = match v6 {
            false => {
                let router = "192.0.2.9".parse().unwrap();
                message_v4(
                    &datagram[..quoted],
                    1400,
                    router,
                    "10.1.0.5".parse().unwrap(),
                )
            }
            true => {
                let router = "2001:db8::9".parse().unwrap();
                message_v6(
                    &datagram[..quoted],
                    1400,
                    router,
                    "fd01::5".parse().unwrap(),
                )
            }
        };
        message[if v6 { 40 } else { 20 }] = kind;
        message
    }

    fn answered(packet: &[u8]) -> Option<PacketSelectors> {
        answers(packet, &packet::parse(packet).unwrap())
    }

    #[test]
    fn an_error_is_about_a_packet_that_its_receiver_has_sent() {
        for (v6, kinds) in [(false, [3, 11]), (true, [1, 3])] {
            let datagram = datagram(v6, 1000);
            let sent = packet::parse(&datagram).unwrap().selectors;
            for kind in kinds {
                let header = if v6 { 40 } else { 20 };
                // Eight bytes of the datagram are always quoted (RFC 792), so its ports are.
                for quoted in [header + 8, 500] {
                    let reversed = answered(&message(v6, kind, &datagram, quoted)).unwrap();
                    assert_eq!(reversed.source, sent.destination);
                    assert_eq!(reversed.destination, sent.source);
                    assert_eq!((reversed.protocol, reversed.ports), (17, Some((53, 1000))));
                }
            }
        }
    }

    #[test]
    fn other_packets_are_about_none() {
        let datagram = datagram(false, 100);
        assert_eq!(answered(&datagram), None);
        let echo = message(false, 8, &datagram, 100);
        assert_eq!(answered(&echo), None);
        let redirect = message(false, 5, &datagram, 100);
        assert_eq!(answered(&redirect), None);
        let mut elsewhere = message(false, 3, &datagram, 100);
        elsewhere[19] = 99;
        assert_eq!(answered(&elsewhere), None, "its receiver has not sent that");
        for quoted in 0..20 {
            assert_eq!(answered(&message(false, 3, &datagram, quoted)), None);
        }
        let v6 = super::about::datagram(true, 100);
        for quoted in 0..40 {
            assert_eq!(answered(&message(true, 1, &v6, quoted)), None);
        }
    }
}
