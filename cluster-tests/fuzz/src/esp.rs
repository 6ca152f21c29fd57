//! ESP packets and what is in them.

use arbitrary::Unstructured;
use evergate_esp::{
    Cipher, Encryption, HEADROOM, InboundSa, Integrity, Key, OutboundSa, ReplayWindow, Selectors,
    TAILROOM, fragment, icmp, mss, packet, protocol, spi_of, transport, tunnel, udp,
};

const SPI: u32 = 0x0102_0304;

/// The first byte chooses cipher and sequence numbers; the rest is a packet: as ESP, as the content of ESP, and as an inner packet.
///
/// # Panics
/// If a forged packet is accepted, an own one is not, or one is accepted twice.
pub fn esp(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else {
        return;
    };
    let esn = choice & 1 == 1;
    let make = || {
        Key::new(cipher(choice >> 1), &material(cipher(choice >> 1))).expect("the length is right")
    };
    let sa = InboundSa::new(
        SPI,
        make(),
        esn,
        Selectors::default(),
        ReplayWindow::new(64),
    );
    let edge = u64::from(choice) << 28;
    sa.resume_from(edge);
    let _ = (spi_of(bytes), udp::classify(bytes));
    assert!(
        sa.open(&mut bytes.to_vec()).is_err(),
        "a packet that nobody sealed is accepted"
    );
    let outbound = OutboundSa::new(SPI, make(), esn);
    if outbound.extend(edge + 1..edge + 9).is_ok() {
        round(&outbound, &sa, bytes);
    }
    inner(bytes);
}

/// Seals the bytes as a packet, and opens them twice; changed ones in between.
fn round(outbound: &OutboundSa, sa: &InboundSa, bytes: &[u8]) {
    let mut buffer = [&[0; HEADROOM], bytes, &[0; TAILROOM]].concat();
    let seq = outbound.next_seq().expect("there is a reservation");
    let range = outbound
        .seal(
            seq,
            protocol::IPV4,
            &mut buffer,
            HEADROOM..HEADROOM + bytes.len(),
        )
        .expect("there is room");
    let sealed = &buffer[range];
    let mut forged = sealed.to_vec();
    let at = bytes.len() % forged.len();
    forged[at] ^= 1 << (bytes.len() % 8);
    assert!(
        sa.open(&mut forged).is_err(),
        "a changed packet is accepted"
    );
    let mut packet = sealed.to_vec();
    let opened = sa.open(&mut packet).expect("our own packet");
    assert_eq!(&packet[opened.payload], bytes);
    assert!(
        sa.open(&mut sealed.to_vec()).is_err(),
        "a packet is accepted twice"
    );
}

fn inner(bytes: &[u8]) {
    let mut copy = bytes.to_vec();
    packet::set_traffic_class(&mut copy, 0xb8);
    mss::clamp(&mut copy, 1280);
    if let Ok(parsed) = packet::parse(bytes) {
        assert!(parsed.total_len <= bytes.len() && parsed.upper_offset <= parsed.total_len);
    }
    let mut choice = Unstructured::new(bytes);
    let mtu = usize::from(choice.arbitrary::<u16>().unwrap_or(1280));
    if let Ok(fragments) = fragment::ipv4(bytes, mtu) {
        assert!(fragments.iter().all(|fragment| fragment.len() <= mtu));
    }
    let source = "192.0.2.1".parse().expect("an address");
    let _ = icmp::too_big(bytes, mtu, source);
    let mut copy = bytes.to_vec();
    let _ = tunnel::decapsulate(&mut copy, 0xff, bytes.len() % 2 == 0);
    transported(bytes);
}

/// The bytes as what came inside ESP in transport mode, and as a packet that is to go so.
fn transported(bytes: &[u8]) {
    let address = |text: &str| text.parse().expect("an address");
    for (local, remote) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
        let ends = transport::Ends {
            local: address(local),
            remote: address(remote),
            local_there: address("10.0.0.2"),
            remote_there: address("fd00::1"),
        };
        let next_header = bytes.first().copied().unwrap_or_default();
        let Ok(restored) = transport::restore(bytes, next_header, &ends, 0) else {
            continue;
        };
        let parsed = packet::parse(&restored).expect("a packet");
        assert_eq!(
            parsed.selectors.source, ends.remote,
            "a packet of somebody else"
        );
        if let Ok((range, _)) = transport::covered(&restored, &parsed) {
            assert_eq!(
                range.len(),
                bytes.len(),
                "more or less is covered than came"
            );
        }
    }
    if let Ok(parsed) = packet::parse(bytes)
        && let Ok((range, _)) = transport::covered(bytes, &parsed)
    {
        assert!(range.end == parsed.total_len && range.start <= range.end);
    }
}

fn cipher(choice: u8) -> Cipher {
    let (encryption, integrity) = match choice % 5 {
        0 => (Encryption::AesGcm16 { key_bits: 256 }, None),
        1 => (Encryption::ChaCha20Poly1305Iiv, None),
        2 => (
            Encryption::AesCbc { key_bits: 128 },
            Some(Integrity::HmacSha256),
        ),
        3 => (
            Encryption::AesCtr { key_bits: 128 },
            Some(Integrity::AesCmac),
        ),
        _ => (Encryption::AesCcm8 { key_bits: 128 }, None),
    };
    Cipher {
        encryption,
        integrity,
    }
}

fn material(cipher: Cipher) -> Vec<u8> {
    (0..cipher.material_len()).map(|n| n as u8).collect()
}
