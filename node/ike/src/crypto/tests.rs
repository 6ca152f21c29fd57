//! Known answers: RFC 4231 (HMAC), RFC 7634 Appendix B (an IKE message), and a key schedule computed with another
//! implementation.

use super::*;
use crate::{
    secret::Secret,
    wire::{
        ExchangeType, HEADER_LEN, Header, Notify, NotifyType, Payload, PayloadType, Protected,
        Protocol,
    },
};

pub(super) fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn rfc4231_case_2() {
    let cases = [
        (
            Prf::HmacSha256,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            Prf::HmacSha384,
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
        (
            Prf::HmacSha512,
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ];
    for (prf, expected) in cases {
        let out = prf.compute(b"Jefe", &[b"what do ya want ", b"for nothing?"]);
        assert_eq!(out.expose(), hex(expected));
        assert_eq!(out.len(), prf.output_len());
    }
}

#[test]
fn rfc4231_case_6_key_longer_than_a_block() {
    let out = Prf::HmacSha256.compute(
        &[0xaa; 131],
        &[b"Test Using Larger Than Block-Size Key - Hash Key First"],
    );
    assert_eq!(
        out.expose(),
        hex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
    );
}

#[test]
fn expand_chains_outputs() {
    let out = Prf::HmacSha256.expand(b"key", &[b"se", b"ed"], 80);
    assert_eq!(
        out.expose(),
        hex(
            "a2392e429a99b173341b368bb5ce320bfd483d89567c14ec187c2d77e3c0a208ba45d21d42611712996c0cd4b329ac8681e093a8a5bbbbf0fb8c9d1cf674f7423fe3d2fbd6641ff544749daa37804f04"
        )
    );
    let block = |before: &[u8], n: u8| Prf::HmacSha256.compute(b"key", &[before, b"seed", &[n]]);
    let first = block(&[], 1);
    let second = block(first.expose(), 2);
    let third = block(second.expose(), 3);
    let chained = [first.expose(), second.expose(), third.expose()].concat();
    assert_eq!(out.expose(), &chained[..80]);
    for len in [0, 1, 32, 33, 255 * 32] {
        assert_eq!(Prf::HmacSha256.expand(b"key", &[b"seed"], len).len(), len);
    }
}

struct Expected {
    encryption: Encryption,
    prf: Prf,
    initial: &'static str,
    rekeyed: &'static str,
    child: &'static str,
    child_pfs: &'static str,
    auth: &'static str,
}

#[rustfmt::skip]
fn expected() -> [Expected; 3] {
    [
        Expected {
            encryption: Encryption::AesGcm16 { key_bits: 128 },
            prf: Prf::HmacSha256,
            initial: "02c8341448b2e3a9ceea7f11e3bf06da7d680ad61f7845cc6e170f8b5219d86381dd9efd9d29a8f65fcf94f7a10b0d632179cc41db4cb594ed88996c87fb3a883299f406ca999979de98b6464ae3ac3a226ffdbff08d7750053ef7c59881f39859932a41e78c4df6df3fe7acb9bbc87dc82feeed1d474fa4ffff47c718ab40e6ffa60b2f1ec555bb",
            rekeyed: "68e1c1bf6305a3ed86477643c10b918cc6da24e8fab330c9c6c0a9a0b07f7545c46ce69de500ab36074bfcdaf8c20e598a01bd9965574546b4dae4784f51639aee8d62b3ee3ec0190c36ebede240a19b03afeff93d1d1043ad86f04aa8a1cba55e0b7bfe8c5dbff526c06e8515d3a94ab48f9a63d9bc943069d6755ecc2a6d9ea24cb47d491d983c",
            child: "7af7fc656068188424ce5fc5ca85378c11dab91d418972011e6c055c4524e0988a6ffdda338b0ae0",
            child_pfs: "e39dfd2f56a774f12b46543a7643688d59dbd696c4814a9ddde4f5f71e10513ee3ef63d6f195f26c",
            auth: "9411ab058226ea86b8b80c038db5a87c4f73727b79ad65c9a7553c39ac357c6a",
        },
        Expected {
            encryption: Encryption::AesGcm16 { key_bits: 256 },
            prf: Prf::HmacSha384,
            initial: "7d483213e8c42995fe4b0739e60df2953ea45312de588b373f2925382d02fdb8dd894b1daa7ec185b4e237a0ac7721c767ed2b3670160c5aa3c2fdc51338006e428ad8e6422d4b7d3f6b0a24d24202d22d3d02169fe1e70f53d1b99d4cf8f0461721fd7388bd048c82035880cbfe0fcb37ed19bc1cda4f2b2650517f40346acd550d5ea3da6393cf373420bead86143d39ae31b0bcf8c83dda85d8e841e5a0be6f3ba57e180166795786ddc13c7d2f1c20bf17392f4a5b681331de3afc98b1b71feab1f7cc862118fd83b4e2240a19d73a458b8fea5ebdbc",
            rekeyed: "3cab44f1dde3302690ad89f96e2d61003a81d6401fd8f41ec91b1bac2e17f5cc31f56122b4a8d739bc9c4d914c40a519ad808a36dab9834818809cf21359aa5416483fc3f818dbd1312bf40a109ac87b9203b625d734203404165c6358705759991a914846b67fe02366ebad51088e211b27e157ab5eeec7d86480629b11de928c2f8116a0955be60af3ffcf4f78b5c672000b8de4b62a33a95443cd0a13101f1752fc63bddc6bd2776a9ba4d843105df4325b3e40c720e07f3131074797c4712789de79e32561521e327cb285ab1cf76d20363930ba82bd",
            child: "b38e699edb0c0d2b51e99df017e3de2fe91100d73bcd468fc63d0126db289f09904586024ecaa5e8fe6151742cdde819ce6a7bf39bcb67fb37c665a70765c910adce5f79068cc9f8",
            child_pfs: "624551de30f90cbc44b8a872dfb9f4b1cb5f3ddfb830c1ea02b19dbb81820864dda73c1a099fedcbab50eb956887db66449be40d117b4a030c4b208caf65698621b6ed2bd5774e5e",
            auth: "005e837ba4b65aad3bac83d4e2361513e74c527508f954aa5307b7fd8033f2e5459b30c5618c023226687f3043971478",
        },
        Expected {
            encryption: Encryption::ChaCha20Poly1305,
            prf: Prf::HmacSha512,
            initial: "264a497ca52ce3004782be3e2b848060bc1aea650328e2b6de950652ed9c917d3db287fb69c2983a509377c56f0594540a8eedcd05641e7a9238f6ca082921980e81fa06fa3c4dd3e86dc3c74d6c899361de22917f6a5e9cd8bbb869222e914a05ba9bb87e9ca10926e552385c0440304c94650386bf95e5a9a83daf5b656e80d340f68ff9e9e3b60a40f3a4db6ca99014a0fd82cc86910c15bdfaf6994a2f85308e0d7479eb497e2d8fb45a225e72b3f35b41773e827cef01ef0c1bccc43c16eb726b7324cb027e35008934fcb5773eec7fbf6ad772386e65ff5cde35fa8e02f10a0db44d18211c550ced54c4a02e62e92ee3845431b67d2d2c7d12a63a272ec618ab2927174977",
            rekeyed: "4885cb8e88117eaf59c60406fea1763bf2cbf37727a497835b4875a7cf3c6ca97fc6bfc18adde67cfa5420c3abc1bea1449199a9fe8dd44d9a1fe88d3a8b98361dde4ef88c87ed4de1c8486f73a1332a62af6cf6074065cb356b90152133dde5b7bdd6de5b72f750aeb5b349dd055c0f385900da22b30c08c45485b12f2c1790b3ac2d0c0849ac9238f5dee9b4ae20495efb17953072c3ae1b9b52867386aeca394ed7f6c4a73c7380c04b189bd1f210646d24d4a8b8fa483661b7d248e50952221f533f567247d15a210b23624dd9b3d33bc314335d62a955d94e48071d2d05d899375c5935ea96a096e689569f61a6188f00d45837d2cd1bc84cd9898c868af300a9db5337aef6",
            child: "b7a3b41f16edf9eea756980fd6e947af177371d8c0f61c19a5b0114fdb6dbd08a93b5583218df86d0fea91f1585cc75bc50d5a4f88f8406222b8f40b970903ff18e43b121ff85214",
            child_pfs: "100ba5122a5e1196aa3d07ab4f19a33bff794185b3b26e7c86438fdf1c6299522482f7443c120a6f8a14693480d7cab8e29451df8982621e28113b1c56f8ecfdcc9db3d0f8b5bc17",
            auth: "89b98b38405c97c8c7221262201ec114e3ca9ba5601ccf4541b7cec33cb61484b4154139dadfa6520b7aaec069bf9d2f171047e26895c54b40a8c2d87e0a0ed5",
        },
    ]
}

fn ike_keys(keys: &IkeKeys) -> Vec<u8> {
    [&keys.d, &keys.ei, &keys.er, &keys.pi, &keys.pr]
        .map(Secret::expose)
        .concat()
}

fn child_keys(keys: &ChildKeys) -> Vec<u8> {
    [
        keys.initiator_to_responder.expose(),
        keys.responder_to_initiator.expose(),
    ]
    .concat()
}

#[test]
fn key_schedule_matches_another_implementation() {
    let nonce_i: Vec<u8> = (0..32).collect();
    let nonce_r: Vec<u8> = (100..148).collect();
    let shared = Secret::new(
        (0..32u8)
            .map(|i| i.wrapping_mul(7).wrapping_add(3))
            .collect(),
    );
    let shared2 = Secret::new(
        (0..64u8)
            .map(|i| i.wrapping_mul(11).wrapping_add(5))
            .collect(),
    );
    let exchanged = Exchanged {
        nonce_i: &nonce_i,
        nonce_r: &nonce_r,
        spi_i: 0x0102_0304_0506_0708,
        spi_r: 0xf1f2_f3f4_f5f6_f7f8,
    };
    for case in expected() {
        let suite = IkeSuite {
            encryption: case.encryption,
            integrity: None,
            prf: case.prf,
            group: Group::Curve25519,
            additional: Additional::default(),
        };
        let keys = IkeKeys::initial(suite, &shared, exchanged);
        assert_eq!(ike_keys(&keys), hex(case.initial));
        assert_eq!(
            keys.ei.len(),
            case.encryption.key_len() + case.encryption.salt_len()
        );
        let rekeyed = IkeKeys::rekeyed(suite, case.prf, &keys.d, &[&shared2], exchanged);
        assert_eq!(ike_keys(&rekeyed), hex(case.rekeyed));

        let esp = EspSuite {
            encryption: case.encryption,
            integrity: None,
            group: None,
            additional: Additional::default(),
            esn: true,
        };
        let child = ChildKeys::derive(esp, case.prf, &keys.d, &[], &nonce_i, &nonce_r);
        assert_eq!(child_keys(&child), hex(case.child));
        let child = ChildKeys::derive(esp, case.prf, &keys.d, &[&shared2], &nonce_i, &nonce_r);
        assert_eq!(child_keys(&child), hex(case.child_pfs));

        let id = [&[2, 0, 0, 0], &b"gw.example.org"[..]].concat();
        let psk = Secret::new(b"pre-shared".to_vec());
        let message = b"the whole IKE_SA_INIT message";
        let octets = signed_octets(case.prf, message, &nonce_r, &keys.pi, &id, &[]);
        let auth = psk_auth(case.prf, &psk, &octets);
        assert_eq!(auth.expose(), hex(case.auth));
    }
}

const RFC7634: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029\
    1011121314151617610394701f8d017f7c129248896b71bfe25236efd7cdc67066906315b2";
const GCM_128: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e20250000000009000000452900002910111213141516179146c4ffacb89c2bc9f175a7fa300a7cc3736a7d6febaa1cde9ff2970d";
const GCM_256: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e20250000000009000000452900002910111213141516179440c4dcb893200cfb55f6fdcc30045d78376cd938f8f24d89b4ab48f2";
const PADDED: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e20250000000009000000482900002c1011121314151617610394701f8d017f7c129248238da07dca9bc9c72179fca3101f321d6f525db0";
const BAD_PADDING: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e2025000000000900000045290000291011121314151617610394701f8d017f7c12924884c6770e5bb5cb69bdc5f6cb6625fa658d";
const EMPTY: &str = "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e20250000000009000000390000001d101112131415161761b476cbab72627cbfbd116dc799604436";
const IV: [u8; 8] = [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17];

/// The key of RFC 7634, shortened to `len`, and its salt.
fn key(len: u8) -> Secret {
    Secret::new((0x80..0x80 + len).chain([0xa0, 0xa1, 0xa2, 0xa3]).collect())
}

fn header() -> Header {
    Header {
        initiator_spi: 0xc0c1_c2c3_c4c5_c6c7,
        responder_spi: 0xd0d1_d2d3_d4d5_d6d7,
        minor_version: 0,
        exchange: ExchangeType::INFORMATIONAL,
        from_initiator: false,
        is_response: false,
        higher_version: false,
        message_id: 9,
    }
}

fn window_size() -> Payload {
    Payload::Notify(Notify {
        protocol: Protocol::NONE,
        spi: vec![],
        kind: NotifyType::SET_WINDOW_SIZE,
        data: vec![0, 0, 0, 10],
    })
}

/// The protected part of a message that has nothing before it.
fn protected(message: &[u8]) -> Protected<'_> {
    Protected {
        first: PayloadType(message[HEADER_LEN]),
        associated: &message[..HEADER_LEN + 4],
        body: &message[HEADER_LEN + 4..],
        fragment: None,
    }
}

#[test]
fn known_messages_are_sealed_and_opened() {
    let cases = [
        (Encryption::ChaCha20Poly1305, 32, RFC7634.to_owned()),
        (
            Encryption::AesGcm16 { key_bits: 128 },
            16,
            GCM_128.to_owned(),
        ),
        (
            Encryption::AesGcm16 { key_bits: 256 },
            32,
            GCM_256.to_owned(),
        ),
    ];
    for (encryption, key_len, expected) in cases {
        let expected = hex(&expected);
        assert_eq!(
            seal(encryption, &key(key_len), IV, &header(), &[window_size()]),
            expected
        );
        assert_eq!(
            open(encryption, &key(key_len), &protected(&expected)),
            Ok(vec![window_size()])
        );
    }
}

#[test]
fn padding_is_stripped_and_checked() {
    let open = |text| {
        open(
            Encryption::ChaCha20Poly1305,
            &key(32),
            &protected(&hex(text)),
        )
    };
    assert_eq!(open(PADDED), Ok(vec![window_size()]));
    assert!(matches!(open(BAD_PADDING), Err(OpenError::Content(_))));
    assert_eq!(open(EMPTY), Ok(vec![]));
}

#[test]
fn an_empty_message_is_sealed() {
    let message = seal(Encryption::ChaCha20Poly1305, &key(32), IV, &header(), &[]);
    assert_eq!(message, hex(EMPTY));
}

#[test]
fn every_changed_byte_and_every_cut_is_noticed() {
    let message = hex(RFC7634);
    let key = key(32);
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        let opened = open(Encryption::ChaCha20Poly1305, &key, &protected(&changed));
        assert_eq!(opened, Err(OpenError::Integrity), "byte {at}");
    }
    for len in HEADER_LEN + 4..message.len() {
        let opened = open(
            Encryption::ChaCha20Poly1305,
            &key,
            &protected(&message[..len]),
        );
        assert_eq!(opened, Err(OpenError::Integrity), "{len} bytes");
    }
    let wrong_suite = open(
        Encryption::AesGcm16 { key_bits: 256 },
        &key,
        &protected(&message),
    );
    assert_eq!(wrong_suite, Err(OpenError::Integrity));
    let wrong_length = open(
        Encryption::AesGcm16 { key_bits: 128 },
        &key,
        &protected(&message),
    );
    assert_eq!(wrong_length, Err(OpenError::Integrity));
}

#[test]
fn a_piece_of_a_message_is_not_parsed() {
    let message = hex(EMPTY);
    let mut part = protected(&message);
    part.fragment = Some((1, 2));
    assert!(matches!(
        open(Encryption::ChaCha20Poly1305, &key(32), &part),
        Err(OpenError::Content(_))
    ));
    part.fragment = Some((1, 1));
    assert_eq!(
        open(Encryption::ChaCha20Poly1305, &key(32), &part),
        Ok(vec![])
    );
}

#[test]
fn secrets_do_not_show() {
    let pair = KeyPair::generate(Group::Curve25519, &mut Fixed(0xab));
    assert!(format!("{pair:?}").contains("Secret(32 bytes)"));
    assert!(!format!("{pair:?}").contains("171, 171"));
}

struct Fixed(u8);

impl crate::env::Entropy for Fixed {
    fn fill(&mut self, buf: &mut [u8]) {
        buf.fill(self.0);
    }
}
