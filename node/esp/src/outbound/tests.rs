//! Sealing and opening against known packets: RFC 7634 Appendix A, and packets that another implementation made.

use super::*;
use crate::{
    Cipher, Encryption, HEADROOM, InboundSa, Integrity, OpenError, ReplayWindow, Replayed,
    Selectors, TAILROOM, protocol,
};
use proptest::prelude::*;

const SPI: u32 = 0xdead_beef;

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

/// Header and IV, and ICV, of AES-GCM and ChaCha20-Poly1305.
const HEAD: usize = 16;
const ICV: usize = 16;

fn key(cipher: impl Into<Cipher>, first: u8) -> Key {
    let cipher = cipher.into();
    let encryption = cipher.encryption;
    let len = u8::try_from(encryption.key_len()).unwrap();
    let material: Vec<u8> = (first..first + len)
        .chain((0xa0..).take(encryption.salt_len()))
        .chain((0..=0xff).rev().take(cipher.integrity_key_len()))
        .collect();
    Key::new(cipher, &material).unwrap()
}

fn inbound(spi: u32, key: Key, esn: bool) -> InboundSa {
    InboundSa::new(spi, key, esn, Selectors::default(), ReplayWindow::new(1024))
}

/// Seals with room to spare around, and shows that nothing beyond the packet was touched.
fn seal(sa: &OutboundSa, seq: u64, next_header: u8, inner: &[u8]) -> Vec<u8> {
    let start = HEADROOM + 3;
    let mut buf = vec![0xee; start + inner.len() + TAILROOM + 5];
    buf[start..start + inner.len()].copy_from_slice(inner);
    let seq = SequenceNumber::for_test(seq);
    let range = sa
        .seal(seq, next_header, &mut buf, start..start + inner.len())
        .unwrap();
    assert!(
        buf[..range.start]
            .iter()
            .chain(&buf[range.end..])
            .all(|&byte| byte == 0xee)
    );
    buf[range].to_vec()
}

const RFC7634_INNER: &str = "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637";
/// With the outer IPv4 header.
const RFC7634_PACKET: &str = "4500008c234500004032de5bcb007199cb0071050102030400000005101112131415161724039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43";

#[test]
fn rfc7634_example() {
    let inner = hex(RFC7634_INNER);
    let expected = &hex(RFC7634_PACKET)[20..];
    let sa = OutboundSa::new(0x0102_0304, key(Encryption::ChaCha20Poly1305, 0x80), false);
    let mut buf = [&[0; HEADROOM], &inner[..], &[0; TAILROOM]].concat();
    let range = sa
        .seal_numbered(
            5,
            0x1011_1213_1415_1617,
            protocol::IPV4,
            &mut buf,
            HEADROOM..HEADROOM + inner.len(),
        )
        .unwrap();
    assert_eq!(&buf[range], expected);

    let sa = inbound(0x0102_0304, key(Encryption::ChaCha20Poly1305, 0x80), false);
    let mut packet = expected.to_vec();
    let opened = sa.open(&mut packet).unwrap();
    assert_eq!((opened.next_header, opened.seq), (protocol::IPV4, 5));
    assert_eq!(packet[opened.payload], inner);
}

/// Cipher, ESN, sequence number, length of the inner packet, Next Header, ESP packet.
#[rustfmt::skip]
const KNOWN: [(Encryption, bool, u64, usize, u8, &str); 12] = [
    (Encryption::AesGcm16 { key_bits: 128 }, false, 0x1, 20, 4, "deadbeef000000010000000000000001526606ef4ca75179ab437422e33faa2755b553ce97f782a67a93dbee50f9082750921997313d33c6"),
    (Encryption::AesGcm16 { key_bits: 128 }, false, 0xffffffff, 21, 4, "deadbeefffffffff00000000ffffffff3f6c874ab38a6f8c0473c32ed18529cb89bc3cb6022f8accb71987009dc509f18736dbced5cde843"),
    (Encryption::AesGcm16 { key_bits: 128 }, true, 0x100000002, 22, 41, "deadbeef00000002000000010000000257134da670ab941a43a93d7d6f6ccae8af9fc27f4747afcfe5ea050a53ce3605dc5013fc3693f87e"),
    (Encryption::AesGcm16 { key_bits: 128 }, true, 0xfffffffffffffffe, 23, 41, "deadbeeffffffffefffffffffffffffef6800b8d0989ad4983cca00285893bc6c88e6b56c0ab88e9f733c1f9274c932d97501c372fc9f6ecf0c7da56"),
    (Encryption::AesGcm16 { key_bits: 256 }, false, 0x1, 20, 4, "deadbeef000000010000000000000001a4b8a2934c57e09d37f59f5f435033cb095dd31069621e29dee63e18239596e88c7b20de0c0a64df"),
    (Encryption::AesGcm16 { key_bits: 256 }, false, 0xffffffff, 21, 4, "deadbeefffffffff00000000ffffffffa07a6287bd50adca5665dfc0b21c811b07c062736862f4bbe0e0c0edc4eeb9b59b3a7005f677966b"),
    (Encryption::AesGcm16 { key_bits: 256 }, true, 0x100000002, 22, 41, "deadbeef000000020000000100000002b18fd99f490fc84bb409b668ea77a8fb404784995be4daf76e0aa3782bc8d8e053ad9b57fac43504"),
    (Encryption::AesGcm16 { key_bits: 256 }, true, 0xfffffffffffffffe, 23, 41, "deadbeeffffffffefffffffffffffffef30a11337e5ebb3ef223cb690047378c17aadf106b0e1dba51eacf51ec59824e49a2ec823c801be55e51c96f"),
    (Encryption::ChaCha20Poly1305, false, 0x1, 20, 4, "deadbeef00000001000000000000000133cb2fd37a967c5925bcf92124f2feef818444bd19bdfe0fb3a550346907d664892c82c7ad391f20"),
    (Encryption::ChaCha20Poly1305, false, 0xffffffff, 21, 4, "deadbeefffffffff00000000ffffffffd21c660442df8f4053c628c66ddc71dbcfd97e9a8e3740c895354b8df6672a6107af984646f97323"),
    (Encryption::ChaCha20Poly1305, true, 0x100000002, 22, 41, "deadbeef00000002000000010000000245d92d01a558314f3a61a6038fb734620081233f139995f662130f49c81bda7937c627ee0f43e067"),
    (Encryption::ChaCha20Poly1305, true, 0xfffffffffffffffe, 23, 41, "deadbeeffffffffefffffffffffffffe9e4749fdccf7e798fe27f39c9e6b3a4ae28a4d72efd4df032d2277af1d15d4a1f1abece8f9b1da32111cf74b"),
];

fn known_inner(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((3 * i + len) % 256).unwrap())
        .collect()
}

#[test]
fn packets_of_another_implementation() {
    for (cipher, esn, seq, len, next_header, expected) in KNOWN {
        let inner = known_inner(len);
        let sa = OutboundSa::new(SPI, key(cipher, 0), esn);
        let packet = seal(&sa, seq, next_header, &inner);
        assert_eq!(packet, hex(expected), "{cipher:?} {seq:#x}");
        assert_eq!(packet.len(), crate::mtu::esp_len(len, cipher.into()));

        let sa = inbound(SPI, key(cipher, 0), esn);
        if esn {
            sa.resume_from(seq - 1);
        }
        let mut packet = hex(expected);
        let opened = sa.open(&mut packet).unwrap();
        assert_eq!((opened.next_header, opened.seq), (next_header, seq));
        assert_eq!(packet[opened.payload.clone()], inner);
        assert_eq!(sa.right_edge(), seq);
        let again = sa.open(&mut hex(expected));
        assert_eq!(again, Err(OpenError::Replayed(Replayed::Duplicate)));
    }
}

#[test]
fn a_changed_byte_is_noticed_and_moves_no_window() {
    for (cipher, esn, seq, _, _, expected) in KNOWN {
        let sa = inbound(SPI, key(cipher, 0), esn);
        if esn {
            sa.resume_from(seq - 1);
        }
        let edge = sa.right_edge();
        for at in 0..hex(expected).len() {
            let mut packet = hex(expected);
            packet[at] ^= 0x80;
            assert!(sa.open(&mut packet).is_err(), "byte {at}");
            assert_eq!(sa.right_edge(), edge);
        }
        assert!(sa.open(&mut hex(expected)).is_ok());
    }
}

#[test]
fn a_replay_is_refused_before_any_decryption() {
    let (cipher, esn, _, _, _, expected) = KNOWN[0];
    let sa = inbound(SPI, key(cipher, 0), esn);
    sa.open(&mut hex(expected)).unwrap();
    let mut forged = hex(expected);
    forged[HEAD] ^= 1;
    let before = forged.clone();
    assert_eq!(
        sa.open(&mut forged),
        Err(OpenError::Replayed(Replayed::Duplicate))
    );
    assert_eq!(forged, before);
}

#[test]
fn esn_is_authenticated() {
    let (cipher, _, seq, _, _, expected) = KNOWN[2];
    let sa = inbound(SPI, key(cipher, 0), true);
    sa.resume_from(seq - 1 + (1 << 32));
    assert_eq!(sa.open(&mut hex(expected)), Err(OpenError::Integrity));
    let sa = inbound(SPI, key(cipher, 0), false);
    assert_eq!(sa.open(&mut hex(expected)), Err(OpenError::Integrity));
}

#[test]
fn padding_of_authentic_packets_is_checked() {
    for packet in [
        "deadbeef000000070000000000000007cdf9d9f3b60597ddbcbfe659feb0f4370f054e8c257a6bae",
        "deadbeef000000070000000000000007ad9972930d91644001dca0de2e0cf6e3dfa6939a",
        "deadbeef000000070000000000000007af9f7c8fcccf881ed9502c703053386dc4b5",
    ] {
        let sa = inbound(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
        assert_eq!(sa.open(&mut hex(packet)), Err(OpenError::Padding));
        assert_eq!(sa.right_edge(), 7, "the packet was authentic");
    }
    let sa = inbound(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
    let mut packet = hex(
        "deadbeef000000070000000000000007cdf9d9f3be0e96dd2abe31e4f4fad8352196ff7dcf8851c278b63b4015efd6297a48c055d354013df4158139c07e3d5f9dfe1fb2ef9b507fa51b4d1c13b1b2c805d93f579d887f9e6dfa4caab06607c1d8c70578ee9420dbea3d90d5d17f13620cbbba841bd1dca1267203a72749d0ca66a78d7f041aaf8bfc90fef31f2060dc08ee1e86253af24c759e8179317fedffc48f5ed055fc192f84ded2f8259e9c33fa16994f2ea57a9f39190071cff14e73910371f284867d2012784714f40106529e7888fc6478bd0984210d718ebdf8d0f626989b16fa4ae260b3b9ae850ca8a20da6b78a28f6c31bd66168afc2383660f2a51a847735d1e965fe83583b33abb8baa8f26379ed64b41977b3956e788fcf297fa6cd37",
    );
    let opened = sa.open(&mut packet).unwrap();
    assert_eq!(&packet[opened.payload], b"abcd");
}

#[test]
fn short_and_foreign_packets_are_malformed() {
    let (cipher, esn, _, _, _, expected) = KNOWN[0];
    let sa = inbound(SPI, key(cipher, 0), esn);
    for len in 0..HEAD + 2 + ICV {
        let mut packet = hex(expected);
        packet.truncate(len);
        assert_eq!(sa.open(&mut packet), Err(OpenError::Malformed));
    }
    let other = inbound(SPI + 1, key(cipher, 0), esn);
    assert_eq!(other.open(&mut hex(expected)), Err(OpenError::Malformed));
}

#[test]
fn dummy_packets_are_recognised() {
    let sa = OutboundSa::new(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
    let mut packet = seal(&sa, 1, protocol::NO_NEXT_HEADER, &[]);
    let opened = inbound(SPI, key(Encryption::ChaCha20Poly1305, 0), false)
        .open(&mut packet)
        .unwrap();
    assert!(opened.is_dummy());
    assert!(opened.payload.is_empty());
}

#[test]
fn a_buffer_without_room_is_refused() {
    let sa = OutboundSa::new(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
    let mut buf = [0; HEAD + 20 + 5 + ICV];
    let mut seal = |inner| sa.seal(SequenceNumber::for_test(1), protocol::IPV4, &mut buf, inner);
    assert_eq!(seal(HEAD - 1..HEAD + 20), Err(SealError::NoRoom));
    assert_eq!(seal(HEAD..HEAD + 24), Err(SealError::NoRoom));
    assert_eq!(seal(1000..1010), Err(SealError::NoRoom));
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = 30..20;
    assert_eq!(seal(reversed), Err(SealError::NoRoom));
    assert!(seal(HEAD..HEAD + 20).is_ok());
}

#[test]
fn keys_do_not_show_and_wrong_lengths_are_refused() {
    let cipher = Encryption::AesGcm16 { key_bits: 256 }.into();
    let material = [0xab; 36];
    let shown = format!(
        "{:?}",
        OutboundSa::new(SPI, Key::new(cipher, &material).unwrap(), true)
    );
    assert!(
        !shown.contains("171") && !shown.contains("ab, ab"),
        "{shown}"
    );
    for len in [0, 20, 32, 35, 37] {
        assert!(Key::new(cipher, &vec![0; len]).is_err());
    }
    assert!(Key::new(Encryption::AesGcm16 { key_bits: 192 }.into(), &[0; 29]).is_err());
}

#[test]
fn next_seq_feeds_seal_in_order() {
    let sa = OutboundSa::new(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
    assert_eq!(sa.next_seq(), Err(Exhausted));
    sa.extend(1..3).unwrap();
    let peer = inbound(SPI, key(Encryption::ChaCha20Poly1305, 0), false);
    for expected in 1..3 {
        let seq = sa.next_seq().unwrap().get();
        let mut packet = seal(&sa, seq, protocol::IPV4, b"inner");
        assert_eq!(peer.open(&mut packet).unwrap().seq, expected);
    }
    assert_eq!(sa.next_seq(), Err(Exhausted));
}

/// One of each family, and each way to authenticate.
fn ciphers() -> Vec<Cipher> {
    let key_bits = 256;
    let alone = [
        Encryption::AesGcm16 { key_bits: 128 },
        Encryption::AesGcm16 { key_bits },
        Encryption::AesGcm12 { key_bits },
        Encryption::AesGcm8 { key_bits: 192 },
        Encryption::AesCcm16 { key_bits },
        Encryption::AesCcm8 { key_bits: 128 },
        Encryption::ChaCha20Poly1305,
        Encryption::AesGcm16Iiv { key_bits },
        Encryption::AesCcm8Iiv { key_bits },
        Encryption::ChaCha20Poly1305Iiv,
    ];
    let pairs = [
        (Encryption::AesCbc { key_bits: 128 }, Integrity::HmacSha256),
        (Encryption::AesCbc { key_bits }, Integrity::HmacSha384),
        (Encryption::AesCbc { key_bits: 192 }, Integrity::HmacSha512),
        (Encryption::AesCtr { key_bits }, Integrity::HmacSha1),
        (Encryption::AesCtr { key_bits }, Integrity::AesXcbc),
        (Encryption::AesCbc { key_bits }, Integrity::AesCmac),
    ];
    let pair = |(encryption, integrity)| Cipher {
        encryption,
        integrity: Some(integrity),
    };
    (alone.into_iter().map(Cipher::from))
        .chain(pairs.map(pair))
        .collect()
}

#[test]
fn every_cipher_notices_every_changed_byte() {
    for cipher in ciphers() {
        for esn in [false, true] {
            let sealed = seal(
                &OutboundSa::new(SPI, key(cipher, 0), esn),
                7,
                4,
                b"a packet",
            );
            let sa = inbound(SPI, key(cipher, 0), esn);
            for at in 0..sealed.len() {
                let mut packet = sealed.clone();
                packet[at] ^= 1;
                assert!(sa.open(&mut packet).is_err(), "{cipher:?} byte {at}");
            }
            for len in 0..sealed.len() {
                assert!(sa.open(&mut sealed[..len].to_vec()).is_err());
            }
            assert_eq!(sa.right_edge(), 0);
            assert!(sa.open(&mut sealed.clone()).is_ok(), "{cipher:?}");
        }
    }
}

#[test]
fn the_extended_sequence_number_is_authenticated_with_every_cipher() {
    for cipher in ciphers() {
        let seq = 7 | 3 << 32;
        let sealed = seal(
            &OutboundSa::new(SPI, key(cipher, 0), true),
            seq,
            4,
            b"a packet",
        );
        let open = |edge| {
            let sa = inbound(SPI, key(cipher, 0), true);
            sa.resume_from(edge);
            sa.open(&mut sealed.clone()).map(|opened| opened.seq)
        };
        assert_eq!(open(seq - 1), Ok(seq), "{cipher:?}");
        assert_eq!(open(seq - 1 + (1 << 32)), Err(OpenError::Integrity));
    }
}

#[test]
fn implicit_ivs_are_explicit_ones_left_out() {
    // RFC 8750 §4: the nonce is the same as if the IV were the sequence number.
    let key_bits = 256;
    for (explicit, implicit) in [
        (
            Encryption::AesGcm16 { key_bits },
            Encryption::AesGcm16Iiv { key_bits },
        ),
        (
            Encryption::ChaCha20Poly1305,
            Encryption::ChaCha20Poly1305Iiv,
        ),
    ] {
        for (esn, seq) in [(false, 7), (true, 7 | 3 << 32)] {
            let of = |encryption| {
                seal(
                    &OutboundSa::new(SPI, key(encryption, 0), esn),
                    seq,
                    4,
                    b"data",
                )
            };
            let mut shortened = of(explicit);
            shortened.drain(8..16);
            assert_eq!(shortened, of(implicit));
        }
    }
}

#[test]
fn ivs_of_cbc_are_all_different_and_tell_nothing_of_the_number() {
    let cipher = Cipher {
        encryption: Encryption::AesCbc { key_bits: 128 },
        integrity: Some(Integrity::HmacSha256),
    };
    let iv = |first, seq| {
        let sa = OutboundSa::new(SPI, key(cipher, first), true);
        let packet = seal(&sa, seq, 4, b"the same packet again");
        <[u8; 16]>::try_from(&packet[8..24]).unwrap()
    };
    let ivs: std::collections::BTreeSet<_> = (1..1000).map(|seq| iv(0, seq)).collect();
    assert_eq!(ivs.len(), 999);
    // Half of the bits differ between neighbours, give or take what chance does over 128 bits.
    let distance = |a: [u8; 16], b: [u8; 16]| -> u32 {
        a.iter().zip(b).map(|(x, y)| (x ^ y).count_ones()).sum()
    };
    for seq in 1..100 {
        assert!((24..=104).contains(&distance(iv(0, seq), iv(0, seq + 1))));
    }
    assert_ne!(iv(0, 5), iv(1, 5), "another key, other IVs");
    assert_eq!(
        iv(0, 5),
        iv(0, 5),
        "no state: whoever has the number has the IV"
    );
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(
        inner in proptest::collection::vec(any::<u8>(), 0..2000),
        seq in 1..u64::from(u32::MAX),
        high in 0..1000u64,
        esn: bool,
        cipher in proptest::sample::select(ciphers()),
    ) {
        let seq = if esn { seq | high << 32 } else { seq };
        let mut packet = seal(&OutboundSa::new(SPI, key(cipher, 0), esn), seq, protocol::IPV6, &inner);
        prop_assert_eq!(packet.len(), crate::mtu::esp_len(inner.len(), cipher));
        let sa = inbound(SPI, key(cipher, 0), esn);
        sa.resume_from(seq - 1);
        let opened = sa.open(&mut packet).unwrap();
        prop_assert_eq!(opened.seq, seq);
        prop_assert_eq!(&packet[opened.payload], &inner[..]);
    }

    #[test]
    fn opening_anything_never_panics(mut packet in proptest::collection::vec(any::<u8>(), 0..200), esn: bool) {
        packet.splice(..packet.len().min(4), SPI.to_be_bytes());
        prop_assert!(inbound(SPI, key(Encryption::ChaCha20Poly1305, 0), esn).open(&mut packet).is_err());
    }
}
