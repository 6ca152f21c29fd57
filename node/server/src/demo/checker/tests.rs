use super::*;

const OUTER: ([u8; 4], [u8; 4]) = ([192, 0, 2, 1], [192, 0, 2, 2]);
const INSIDE: ([u8; 4], [u8; 4]) = ([10, 1, 0, 10], [10, 2, 0, 10]);

fn checker() -> Checker {
    Checker::new("10.0.0.0/8".parse().unwrap())
}

/// What a checker finds in these frames.
fn look(frames: &[Vec<u8>]) -> Findings {
    let mut checker = checker();
    for frame in frames {
        checker.frame(frame);
    }
    checker.findings()
}

fn header((from, to): ([u8; 4], [u8; 4]), protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&u16::try_from(20 + body.len()).unwrap().to_be_bytes());
    packet.extend(from);
    packet.extend(to);
    let sum = !checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(protocol: u8, body: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &header(OUTER, protocol, body))
}

fn udp_datagram(port: u16, body: &[u8]) -> Vec<u8> {
    let mut datagram = [port.to_be_bytes(), port.to_be_bytes()].concat();
    datagram.extend(u16::try_from(8 + body.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(body);
    datagram
}

fn esp(spi: u32, sequence: u32, iv: u64, text: &[u8]) -> Vec<u8> {
    let mut packet = [spi.to_be_bytes(), sequence.to_be_bytes()].concat();
    packet.extend(iv.to_be_bytes());
    packet.extend(text);
    packet
}

fn ike(spis: (u64, u64), exchange: u8, flags: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [spis.0.to_be_bytes(), spis.1.to_be_bytes()].concat();
    message.extend([kind, 0x20, exchange, flags, 0, 0, 0, 1]);
    let length = u16::try_from(4 + body.len()).unwrap();
    message.extend((28 + u32::from(length)).to_be_bytes());
    message.extend([0, 0]);
    message.extend(length.to_be_bytes());
    message.extend(body);
    message
}

#[test]
fn a_planted_reuse_in_plain_and_encapsulated_esp_is_found() {
    let first = esp(7, 1, 1, b"one ciphertext");
    let other = esp(7, 1, 1, b"two ciphertext");
    for wrap in [
        |p: &[u8]| ipv4(50, p),
        |p: &[u8]| ipv4(17, &udp_datagram(4500, p)),
    ] {
        let found = look(&[wrap(&first), wrap(&other)]);
        assert_eq!((found.iv_reuse, found.esp, found.frames), (1, 2, 2));
    }
    // The encapsulation does not change the key.
    let mixed = [ipv4(50, &first), ipv4(17, &udp_datagram(4500, &other))];
    assert_eq!(look(&mixed).iv_reuse, 1);
}

#[test]
fn another_sequence_number_does_not_excuse_an_iv() {
    let frames = [
        ipv4(50, &esp(7, 1, 1, b"text")),
        ipv4(50, &esp(7, 2, 1, b"text")),
    ];
    assert_eq!(look(&frames).iv_reuse, 1);
}

#[test]
fn a_repeated_packet_and_other_keys_are_no_reuse() {
    let packet = esp(7, 1, 1, b"one ciphertext");
    let found = look(&[
        ipv4(50, &packet),
        ipv4(50, &packet),
        ipv4(50, &esp(8, 1, 1, b"two ciphertext")),
        ipv4(50, &esp(7, 2, 2, b"two ciphertext")),
        ethernet(
            0x0800,
            &header((OUTER.1, OUTER.0), 50, &esp(7, 1, 1, b"other direction")),
        ),
    ]);
    assert_eq!((found.iv_reuse, found.repeated, found.esp), (0, 1, 5));
    assert_eq!((found.in_clear, found.unexplained), (0, 0));
}

#[test]
fn a_planted_reuse_in_ike_is_found_and_a_retransmission_is_none() {
    let sealed = |text: &[u8]| [&9_u64.to_be_bytes(), text].concat();
    let fragment = |n: u8, text: &[u8]| [&[0, n, 0, 2], &9_u64.to_be_bytes()[..], text].concat();
    let (a, b) = (
        ike((1, 2), 37, 0x08, 46, &sealed(b"aa")),
        ike((1, 2), 37, 0x08, 46, &sealed(b"bb")),
    );
    let on = |port, message: &[u8]| {
        let marker: &[u8] = if port == 4500 { &[0; 4] } else { &[] };
        ipv4(17, &udp_datagram(port, &[marker, message].concat()))
    };
    assert_eq!(look(&[on(500, &a), on(4500, &b)]).iv_reuse, 1);
    let again = look(&[on(4500, &a), on(4500, &a)]);
    assert_eq!((again.iv_reuse, again.repeated, again.ike), (0, 1, 2));
    // The other end has another key.
    let response = ike((1, 2), 37, 0x20, 46, &sealed(b"cc"));
    assert_eq!(look(&[on(4500, &a), on(4500, &response)]).iv_reuse, 0);
    let (one, two) = (
        ike((1, 2), 35, 8, 53, &fragment(1, b"x")),
        ike((1, 2), 35, 8, 53, &fragment(2, b"y")),
    );
    assert_eq!(look(&[on(4500, &one), on(4500, &two)]).iv_reuse, 1);
}

#[test]
fn handshakes_are_counted_once_each() {
    let request = |spi| {
        ipv4(
            17,
            &udp_datagram(500, &ike((spi, 0), 34, 0x08, 33, &[0; 4])),
        )
    };
    let response = ipv4(17, &udp_datagram(500, &ike((1, 5), 34, 0x20, 33, &[0; 4])));
    let found = look(&[request(1), request(1), response, request(2)]);
    assert_eq!((found.handshakes, found.unexplained), (2, 0));
}

#[test]
fn whatever_is_in_the_clear_is_found() {
    let inner = header(INSIDE, 17, &udp_datagram(9, b"hello"));
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend([2; 6]);
    arp.extend(INSIDE.0);
    arp.extend([0; 6]);
    arp.extend(OUTER.1);
    let leaks = [
        ethernet(0x0800, &inner),
        ipv4(4, &inner),
        ipv4(50, &esp(1, 1, 1, &inner)),
        ipv4(1, &[&[3, 3, 0, 0, 0, 0, 0, 0], &inner[..]].concat()),
        ipv4(50, &esp(1, 1, 2, &[b"..", &MARKER[..], b".."].concat())),
        ethernet(0x0806, &arp),
    ];
    for leak in leaks {
        assert_eq!(look(std::slice::from_ref(&leak)).in_clear, 1, "{leak:02x?}");
    }
}

#[test]
fn what_cannot_be_judged_is_said() {
    let mut fragment = ipv4(50, &esp(1, 1, 1, b"text"));
    fragment[20] = 0x20;
    let whole = ipv4(50, &esp(1, 1, 1, b"text"));
    for frame in [
        ipv4(17, &udp_datagram(53, b"what is this")),
        ipv4(6, &[0; 20]),
        ethernet(0x88cc, &[0; 40]),
        ipv4(50, &[1, 2, 3]),
        ipv4(17, &udp_datagram(500, &ike((1, 0), 34, 8, 33, &[])[..30])),
        fragment,
    ] {
        assert_eq!(
            look(std::slice::from_ref(&frame)).unexplained,
            1,
            "{frame:02x?}"
        );
    }
    for cut in 0..whole.len() - 1 {
        assert_eq!(look(&[whole[..cut].to_vec()]).unexplained, 1);
    }
    let keepalive = ipv4(17, &udp_datagram(4500, &[0xff]));
    let found = look(&[keepalive, whole]);
    assert_eq!((found.unexplained, found.esp), (0, 1));
}
