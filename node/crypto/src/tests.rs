//! Known answers: RFC 3566 §4 and RFC 4434 §5 (XCBC), RFC 4493 §4 and RFC 4615 §4 (CMAC), RFC 3602 §4 (CBC), RFC 3686 §6 (counter mode),
//! RFC 4868 §2.7.2 (HMAC), and CCM as another implementation seals.

use super::{integrity::Mac, *};
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2));
    let digit = |d: u8| u8::try_from(char::from(d).to_digit(16).unwrap()).unwrap();
    let (pairs, _) = digits.as_chunks::<2>();
    pairs
        .iter()
        .map(|p| digit(p[0]) << 4 | digit(p[1]))
        .collect()
}

/// 0, 1, 2, …
fn count(len: u8) -> Vec<u8> {
    (0..len).collect()
}

#[test]
fn xcbc_of_rfc3566_and_rfc4434() {
    for (len, expected) in [
        (0, "75f0251d528ac01c4573dfd584d79f29"),
        (3, "5b376580ae2f19afe7219ceef172756f"),
        (16, "d2a246fa349b68a79998a4394ff7a263"),
        (20, "47f51b4564966215b8985c63055ed308"),
        (32, "f54f0ec8d2b9f3d36807734bd5283fd4"),
        (34, "becbb3bccdb518a30677d5481fb6b4d8"),
    ] {
        let message = count(len);
        assert_eq!(
            xcbc(&count(16), &[&message]).to_vec(),
            hex(expected),
            "{len}"
        );
        for cut in 0..message.len() {
            let (a, b) = message.split_at(cut);
            assert_eq!(xcbc(&count(16), &[a, b]).to_vec(), hex(expected));
        }
    }
    let message = count(20);
    let short = xcbc(&count(10), &[&message]);
    assert_eq!(short.to_vec(), hex("0fa087af7d866e7653434e602fdde835"));
    let long = xcbc(&[count(16), vec![0xed, 0xcb]].concat(), &[&message]);
    assert_eq!(long.to_vec(), hex("8cd3c93ae598a9803006ffb67c40e9e4"));
}

#[test]
fn cmac_of_rfc4493_and_rfc4615() {
    let key = hex("2b7e151628aed2a6abf7158809cf4f3c");
    let empty = cmac(&key, &[]);
    assert_eq!(empty.to_vec(), hex("bb1d6929e95937287fa37d129b756746"));
    let block = hex("6bc1bee22e409f96e93d7e117393172a");
    for parts in [[&block[..], &[]], [&block[..5], &block[5..]]] {
        let mac = cmac(&key, &parts);
        assert_eq!(mac.to_vec(), hex("070a16b46b4d4144f79bdd9dd04a287c"));
    }
    for (key, expected) in [
        (
            [count(16), vec![0xed, 0xcb]].concat(),
            "84a348a4a45d235babfffc0d2b4da09a",
        ),
        (count(16), "980ae87b5f4c9c5214f5b6a8455e4c2d"),
        (count(10), "290d9e112edb09ee141fcf64c0b72f3d"),
    ] {
        assert_eq!(cmac(&key, &[&count(20)]).to_vec(), hex(expected));
    }
}

#[test]
fn cbc_of_rfc3602() {
    let long = (0xa0..0xe0).collect::<Vec<u8>>();
    for (key, iv, text, expected) in [
        (
            "06a9214036b8a15b512e03d534120006",
            "3dafba429d9eb430b422da802c9fac41",
            b"Single block msg".to_vec(),
            "e353779c1079aeb82708942dbe77181a",
        ),
        (
            "c286696d887c9aa0611bbb3e2025a45a",
            "562e17996d093d28ddb3ba695a2e6f58",
            count(32),
            "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
        ),
        (
            "56e47a38c5598974bc46903dba290349",
            "8ce82eefbea0da3c44699ed7db51b7d9",
            long,
            "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55",
        ),
    ] {
        let cipher = modes::cbc(&hex(key)).unwrap();
        let iv = hex(iv).try_into().unwrap();
        let mut buffer = text.clone();
        cipher.encrypt(&iv, &mut buffer);
        assert_eq!(buffer, hex(expected));
        cipher.decrypt(&iv, &mut buffer);
        assert_eq!(buffer, text);
    }
}

/// Seals with counter mode under `key`, nonce and IV, and yields the ciphertext.
fn counter_mode(key: &str, nonce: &str, iv: &str, text: &[u8]) -> Vec<u8> {
    let material = [hex(key), hex(nonce), vec![7; 32]].concat();
    let key_bits = u16::try_from(hex(key).len() * 8).unwrap();
    let cipher = Cipher {
        encryption: Encryption::AesCtr { key_bits },
        integrity: Some(Integrity::HmacSha256),
    };
    let number = u64::from_be_bytes(hex(iv).try_into().unwrap());
    let sealed = seal(&Key::new(cipher, &material).unwrap(), number, b"", text);
    assert_eq!(sealed[..8], hex(iv));
    sealed[8..8 + text.len()].to_vec()
}

#[test]
fn counter_mode_of_rfc3686() {
    let single = counter_mode(
        "AE6852F8121067CC4BF7A5765577F39E",
        "00000030",
        "0000000000000000",
        b"Single block msg",
    );
    assert_eq!(single, hex("E4095D4FB7A7B3792D6175A3261311B8"));
    let three = counter_mode(
        "7691BE035E5020A8AC6E618529F9A0DC",
        "00E0017B",
        "27777F3F4A1786F0",
        &count(36),
    );
    let expected = "C1CF48A89F2FFDD9CF4652E9EFDB72D74540A42BDE6D7836D59A5CEAAEF3105325B2072F";
    assert_eq!(three, hex(expected));
    let with_192 = counter_mode(
        "7C5CB2401B3DC33C19E7340819E0F69C678C3DB8E6F6A91A",
        "0096B03B",
        "020C6EADC2CB500D",
        &count(32),
    );
    let expected = "453243FC609B23327EDFAAFA7131CD9F8490701C5AD4A79CFC1FE0FF42F4FB00";
    assert_eq!(with_192, hex(expected));
    let with_256 = counter_mode(
        "FF7A617CE69148E4F1726E2F43581DE2AA62D9F805532EDFF1EED687FB54153D",
        "001CC5B7",
        "51A51D70A1C11148",
        &count(36),
    );
    let expected = "EB6C52821D0BBBF7CE7594462ACA4FAAB407DF866569FD07F48CC0B583D6071F1EC0E6B8";
    assert_eq!(with_256, hex(expected));
}

#[test]
fn truncated_hmacs_of_rfc4868() {
    let mut icv = [0; 16];
    Mac::new(Integrity::HmacSha256, &[0x0b; 32]).compute(&[b"Hi ", b"There"], &mut icv);
    assert_eq!(icv.to_vec(), hex("198a607eb44bfbc69903a0f1cf2bbdc5"));
}

#[test]
fn ccm_of_another_implementation() {
    let of = |bits: u16, icv| match icv {
        8 => Encryption::AesCcm8 { key_bits: bits },
        12 => Encryption::AesCcm12 { key_bits: bits },
        _ => Encryption::AesCcm16 { key_bits: bits },
    };
    for (bits, icv, expected) in [
        (
            128,
            8,
            "8211189b209ab102e71349d6a8b83daec46a1f6849c8ce86cc0ccce843c7cb",
        ),
        (
            192,
            8,
            "553ef60ac761242da89b9d5fcbf188b6ab9841fc7785ae2195bfaa96687884",
        ),
        (
            256,
            12,
            "5ef47d36a2a2acc004a0735f1534c3b407bd33747e61fafcd85e1a605b48a10b02044e",
        ),
        (
            128,
            16,
            "8211189b209ab102e71349d6a8b83daec46a1f6849c8ce90781136428756e212b882467b13809c",
        ),
        (
            192,
            16,
            "553ef60ac761242da89b9d5fcbf188b6ab9841fc7785aec67bfbeb62ede4d8cbae9ef310e06534",
        ),
        (
            256,
            16,
            "5ef47d36a2a2acc004a0735f1534c3b407bd33747e61faa0ecb1e05a7946d461b5f6856e47f26f",
        ),
    ] {
        let encryption = of(bits, icv);
        let material = [
            count(u8::try_from(bits / 8).unwrap()),
            vec![0xa0, 0xa1, 0xa2],
        ]
        .concat();
        let key = Key::new(encryption.into(), &material).unwrap();
        let sealed = seal(
            &key,
            0x0102_0304_0506_0708,
            b"associated",
            b"a packet that is sealed",
        );
        assert_eq!(sealed[8..].to_vec(), hex(expected), "{encryption:?}");
    }
}

#[test]
fn short_tags_of_gcm_are_the_beginning_of_whole_ones() {
    for bits in [128, 192, 256] {
        let sealed = |encryption: Encryption| {
            let key = key(encryption.into());
            seal(&key, 77, b"associated", b"a packet")
        };
        let whole = sealed(Encryption::AesGcm16 { key_bits: bits });
        let twelve = sealed(Encryption::AesGcm12 { key_bits: bits });
        let eight = sealed(Encryption::AesGcm8 { key_bits: bits });
        assert_eq!(twelve, whole[..whole.len() - 4]);
        assert_eq!(eight, whole[..whole.len() - 8]);
    }
}

#[test]
fn only_whole_ciphers_have_keys() {
    let cbc = Encryption::AesCbc { key_bits: 128 };
    let gcm = Encryption::AesGcm16 { key_bits: 128 };
    let with = |encryption, integrity| Cipher {
        encryption,
        integrity,
    };
    for cipher in [
        with(cbc, None),
        with(gcm, Some(Integrity::HmacSha256)),
        with(Encryption::AesGcm16 { key_bits: 129 }, None),
        with(Encryption::AesGcm8 { key_bits: 512 }, None),
    ] {
        assert!(Key::new(cipher, &vec![0; cipher.material_len()]).is_err());
    }
    for cipher in ciphers() {
        let len = cipher.material_len();
        assert!(Key::new(cipher, &vec![0; len]).is_ok());
        for bad in [0, len - 1, len + 1] {
            assert!(Key::new(cipher, &vec![0; bad]).is_err());
        }
    }
}

#[test]
fn keys_do_not_show() {
    for cipher in ciphers() {
        let key = Key::new(cipher, &vec![0xab; cipher.material_len()]).unwrap();
        seal(&key, 1, b"", &[0; 16]);
        let shown = format!("{key:?}");
        assert!(
            !shown.contains("171") && !shown.contains("ab, ab"),
            "{shown}"
        );
    }
}

/// Every cipher that there is.
fn ciphers() -> Vec<Cipher> {
    let mut all = vec![
        Encryption::ChaCha20Poly1305.into(),
        Encryption::ChaCha20Poly1305Iiv.into(),
    ];
    for key_bits in [128, 192, 256] {
        let aeads = [
            Encryption::AesGcm16 { key_bits },
            Encryption::AesGcm12 { key_bits },
            Encryption::AesGcm8 { key_bits },
            Encryption::AesCcm16 { key_bits },
            Encryption::AesCcm12 { key_bits },
            Encryption::AesCcm8 { key_bits },
            Encryption::AesGcm16Iiv { key_bits },
            Encryption::AesCcm8Iiv { key_bits },
        ];
        all.extend(aeads.map(Cipher::from));
        for encryption in [
            Encryption::AesCbc { key_bits },
            Encryption::AesCtr { key_bits },
        ] {
            let integrities = [
                Integrity::HmacSha1,
                Integrity::HmacSha256,
                Integrity::HmacSha384,
                Integrity::HmacSha512,
                Integrity::AesXcbc,
                Integrity::AesCmac,
            ];
            all.extend(integrities.map(|integrity| Cipher {
                encryption,
                integrity: Some(integrity),
            }));
        }
    }
    all
}

fn key(cipher: Cipher) -> Key {
    Key::new(cipher, &count(u8::try_from(cipher.material_len()).unwrap())).unwrap()
}

fn associated(bytes: &[u8]) -> Associated<'_> {
    Associated {
        aead: bytes,
        before: bytes,
        after: b"after",
    }
}

/// IV, ciphertext and ICV.
fn seal(key: &Key, number: u64, aad: &[u8], text: &[u8]) -> Vec<u8> {
    let cipher = key.cipher();
    let mut out = vec![0; cipher.iv_len() + text.len() + cipher.icv_len()];
    let (iv, rest) = out.split_at_mut(cipher.iv_len());
    let (sealed, icv) = rest.split_at_mut(text.len());
    sealed.copy_from_slice(text);
    key.seal(number, &associated(aad), iv, sealed, icv);
    out
}

fn open(key: &Key, number: u64, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Forged> {
    let cipher = key.cipher();
    let (iv, sealed) = sealed.split_at(cipher.iv_len());
    let mut buffer = sealed.to_vec();
    key.open(number, &associated(aad), iv, &mut buffer)?;
    buffer.truncate(buffer.len() - cipher.icv_len());
    Ok(buffer)
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened_and_any_change_is_noticed(
        cipher in proptest::sample::select(ciphers()),
        number: u64,
        aad in proptest::collection::vec(any::<u8>(), 0..40),
        mut text in proptest::collection::vec(any::<u8>(), 0..200),
        at: proptest::sample::Index,
        bit in 0..8u8,
    ) {
        let len = text.len().next_multiple_of(cipher.block());
        text.resize(len, 0);
        let key = key(cipher);
        let sealed = seal(&key, number, &aad, &text);
        prop_assert_eq!(open(&key, number, &aad, &sealed), Ok(text));
        let mut changed = sealed.clone();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        prop_assert_eq!(open(&key, number, &aad, &changed), Err(Forged));
        prop_assert_eq!(open(&key, number, &[&aad[..], b"x"].concat(), &sealed), Err(Forged));
        if cipher.encryption.implicit_iv() {
            prop_assert_eq!(open(&key, number ^ 1, &aad, &sealed), Err(Forged));
        }
    }
}
