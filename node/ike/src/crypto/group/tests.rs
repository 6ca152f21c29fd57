//! Known answers: RFC 5903 §8, RFC 7748 §6, and powers of two and ML-KEM keys computed with other implementations.

use super::*;

/// Yields the given bytes, then counts up.
struct Scripted(Vec<u8>, u8);

impl Entropy for Scripted {
    fn fill(&mut self, buf: &mut [u8]) {
        for byte in buf {
            *byte = if self.0.is_empty() {
                self.1 = self.1.wrapping_add(1);
                self.1
            } else {
                self.0.remove(0)
            };
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    crate::crypto::tests::hex(text)
}

fn pair(group: Group, private: &str) -> KeyPair {
    KeyPair::from_private(group, &hex(private)).expect("a valid private value")
}

#[test]
fn numbers_are_those_of_iana() {
    for (group, id) in [
        (Group::Modp2048, 14),
        (Group::Modp3072, 15),
        (Group::Modp4096, 16),
        (Group::Modp6144, 17),
        (Group::Modp8192, 18),
        (Group::Ecp256, 19),
        (Group::Ecp384, 20),
        (Group::Ecp521, 21),
        (Group::Curve25519, 31),
        (Group::Curve448, 32),
        (Group::MlKem512, 35),
        (Group::MlKem768, 36),
        (Group::MlKem1024, 37),
    ] {
        assert_eq!(group.id(), id);
        assert_eq!(Group::from_id(id), Some(group));
    }
    assert_eq!(Group::from_id(2), None);
}

#[test]
fn rfc5903_256_bit_example() {
    let i = pair(
        Group::Ecp256,
        "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
    );
    let r = pair(
        Group::Ecp256,
        "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
    );
    assert_eq!(
        i.public(),
        hex(
            "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180\
             5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3"
        )
    );
    assert_eq!(
        r.public(),
        hex(
            "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63\
             56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB"
        )
    );
    let shared = Secret::new(hex(
        "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE",
    ));
    assert_eq!(i.agree(r.public()), Ok(shared.clone()));
    assert_eq!(r.agree(i.public()), Ok(shared));
}

#[test]
fn rfc5903_384_bit_example() {
    let i = pair(
        Group::Ecp384,
        "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655E35B538041E649EE3FAEF896783AB194",
    );
    let r = pair(
        Group::Ecp384,
        "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942E0308312916B8ED2960E4BD55A7448FC",
    );
    assert_eq!(
        i.public(),
        hex(
            "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6DE3AC808ACB4BDB4C88732AEE95F41AA\
             9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38EEB9FCFF3C2C947DAE69B4C634573A81C"
        )
    );
    assert_eq!(
        r.public(),
        hex(
            "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D0D1AC43A0336DEF96FDA41D0774A3571\
             DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FFF83FA40142209DFF5EAAD96DB9E6386C"
        )
    );
    let shared = Secret::new(hex(
        "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4D603135569B9E9D09CF5D4A270F59746",
    ));
    assert_eq!(i.agree(r.public()), Ok(shared.clone()));
    assert_eq!(r.agree(i.public()), Ok(shared));
}

#[test]
fn rfc5903_521_bit_example() {
    let i = pair(
        Group::Ecp521,
        "0037ADE9319A89F4DABDB3EF411AACCCA5123C61ACAB57B5393DCE47608172A095AA85A30FE1C2952C6771D937BA9777\
         F5957B2639BAB072462F68C27A57382D4A52",
    );
    let r = pair(
        Group::Ecp521,
        "0145BA99A847AF43793FDD0E872E7CDFA16BE30FDC780F97BCCC3F078380201E9C677D600B343757A3BDBF2A3163E4C2\
         F869CCA7458AA4A4EFFC311F5CB151685EB9",
    );
    assert_eq!(
        i.public(),
        hex(
            "0015417E84DBF28C0AD3C278713349DC7DF153C897A1891BD98BAB4357C9ECBEE1E3BF42E00B8E380AEAE57C2D107564\
             941885942AF5A7F4601723C4195D176CED3E017CAE20B6641D2EEB695786D8C946146239D099E18E1D5A514C739D7CB4\
             A10AD8A788015AC405D7799DC75E7B7D5B6CF2261A6A7F1507438BF01BEB6CA3926F9582"
        )
    );
    assert_eq!(
        r.public(),
        hex(
            "00D0B3975AC4B799F5BEA16D5E13E9AF971D5E9B984C9F39728B5E5739735A219B97C356436ADC6E95BB0352F6BE64A6\
             C2912D4EF2D0433CED2B6171640012D9460F015C68226383956E3BD066E797B623C27CE0EAC2F551A10C2C724D985207\
             7B87220B6536C5C408A1D2AEBB8E86D678AE49CB57091F4732296579AB44FCD17F0FC56A"
        )
    );
    let shared = Secret::new(hex(
        "01144C7D79AE6956BC8EDB8E7C787C4521CB086FA64407F97894E5E6B2D79B04D1427E73CA4BAA240A34786859810C06\
         B3C715A3A8CC3151F2BEE417996D19F3DDEA",
    ));
    assert_eq!(i.agree(r.public()), Ok(shared.clone()));
    assert_eq!(r.agree(i.public()), Ok(shared));
}

#[test]
fn rfc7748_448_bit_example() {
    let alice = pair(
        Group::Curve448,
        "9a8f4925d1519f5775cf46b04b5800d4ee9ee8bae8bc5565d498c28dd9c9baf574a9419744897391006382a6f127ab1d9ac2d8c0a598726b",
    );
    let bob = pair(
        Group::Curve448,
        "1c306a7ac2a0e2e0990b294470cba339e6453772b075811d8fad0d1d6927c120bb5ee8972b0d3e21374c9c921b09d1b0366f10b65173992d",
    );
    assert_eq!(
        alice.public(),
        hex(
            "9b08f7cc31b7e3e67d22d5aea121074a273bd2b83de09c63faa73d2c22c5d9bbc836647241d953d40c5b12da88120d53177f80e532c41fa0"
        )
    );
    assert_eq!(
        bob.public(),
        hex(
            "3eb7a829b0cd20f5bcfc0b599b6feccf6da4627107bdb0d4f345b43027d8b972fc3e34fb4232a13ca706dcb57aec3dae07bdc1c67bf33609"
        )
    );
    let shared = Secret::new(hex(
        "07fff4181ac6cc95ec1c16a94a0f74d12da232ce40a77552281d282bb60c0b56fd2464c335543936521c24403085d59a449a5037514a879d",
    ));
    assert_eq!(alice.agree(bob.public()), Ok(shared.clone()));
    assert_eq!(bob.agree(alice.public()), Ok(shared));
    let mut one = vec![0; 56];
    one[0] = 1;
    for small in [vec![0; 56], one] {
        assert_eq!(alice.agree(&small), Err(BadPublicValue(Group::Curve448)));
    }
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .to_vec()
}

#[test]
fn powers_in_the_larger_modp_groups() {
    // Hashes of g^x, and of 0x1234567890abcdef^x.
    for (group, public, shared) in [
        (
            Group::Modp3072,
            "6323b1f995bb845494c1bac8f3d078ada8e3229cee4bfc0fdfef0439f011112c",
            "27f61be5308254ccc99931b8fbac772619ae5563d6deaf35ea544776f1f2b017",
        ),
        (
            Group::Modp4096,
            "59f29c85fd7b290cc8277dd8253e3bfc23330c7ea13dffe1d78f7276225af635",
            "949790fd89e495f8d480ede6bcf42f6c6a258cd3d1590325063a175bcffd26b8",
        ),
        (
            Group::Modp6144,
            "f25d1f920d60b4bda6c4a22a49b664bfecdfcbd1eb36977647dff8c13df0b417",
            "54b3f5c586826a8587c18699178c21b2a5f181dc1739f44537134a84c0484fad",
        ),
        (
            Group::Modp8192,
            "3f3550877d634986227afea318cba656c680c105bc7f34b4d92d1223698beba9",
            "106acc05cbfeb825914383e4c7b976645afbe882c33087a33443307fd719c319",
        ),
    ] {
        let exponent: Vec<u8> = (0..group.private_len())
            .map(|i| u8::try_from((1 + 5 * i) % 256).unwrap())
            .collect();
        let pair = KeyPair::from_private(group, &exponent).unwrap();
        assert_eq!(sha256(pair.public()), hex(public), "{group:?}");
        let mut peer = vec![0; group.public_len() - 8];
        peer.extend(0x1234_5678_90ab_cdef_u64.to_be_bytes());
        let secret = pair.agree(&peer).unwrap();
        assert_eq!(sha256(secret.expose()), hex(shared), "{group:?}");
    }
}

#[test]
fn ml_kem_keys_are_those_of_their_seed() {
    let seed: Vec<u8> = (0..64).collect();
    for (group, hash) in [
        (
            Group::MlKem768,
            "0b7934c83125c788995e2ba6bd761e33046b3e40571be53e023309a29f398cc9",
        ),
        (
            Group::MlKem1024,
            "c7b8fa0aa471d5ae18922d6ccad5b31e1d84f92ae723abfd13747018740a8530",
        ),
    ] {
        let pair = KeyPair::from_private(group, &seed).unwrap();
        assert_eq!(sha256(pair.public()), hex(hash), "{group:?}");
    }
}

#[test]
fn ml_kem_refuses_what_is_no_key_and_hides_what_is_no_ciphertext() {
    for group in [Group::MlKem512, Group::MlKem768, Group::MlKem1024] {
        let rng = &mut Scripted(vec![], 0);
        let pair = KeyPair::generate(group, rng);
        // Coefficients beyond the modulus (FIPS 203 §7.2).
        assert_eq!(
            group.answer(&vec![0xff; group.public_len()], rng),
            Err(BadPublicValue(group))
        );
        let (mut ciphertext, shared) = group.answer(pair.public(), rng).unwrap();
        assert_eq!(pair.agree(&ciphertext), Ok(shared.clone()));
        ciphertext[5] ^= 1;
        let other = pair.agree(&ciphertext).unwrap();
        assert_eq!(other.len(), 32);
        assert_ne!(other, shared);
    }
}

#[test]
fn rfc7748_example() {
    let alice = pair(
        Group::Curve25519,
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    );
    let bob = pair(
        Group::Curve25519,
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    );
    assert_eq!(
        alice.public(),
        hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    );
    assert_eq!(
        bob.public(),
        hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    );
    let shared = Secret::new(hex(
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    ));
    assert_eq!(alice.agree(bob.public()), Ok(shared.clone()));
    assert_eq!(bob.agree(alice.public()), Ok(shared));
}

#[test]
fn modp_powers_of_a_fixed_exponent() {
    let a = pair(
        Group::Modp2048,
        "01060b10151a1f24292e33383d42474c51565b60656a6f74797e83888d92979ca1a6abb0b5babfc4c9ced3d8dde2e7ecf1f6fb00050a0f14191e23282d32373c",
    );
    let b = pair(
        Group::Modp2048,
        "c8d1dae3ecf5fe071019222b343d464f58616a737c858e97a0a9b2bbc4cdd6dfe8f1fa030c151e273039424b545d666f78818a939ca5aeb7c0c9d2dbe4edf6ff",
    );
    assert_eq!(
        a.public(),
        hex(
            "3542eab0d0615e1cda5a94c57ac7e35530a38de89e908f94fc97109b0d5973e8fbf3645a33bfe1c812deb8b8f41be62a91e44083291d6c69a3ff758c40decfee4d01728bf535a94448fa65701eb7a8c612c2e5646c674dbfa5ac101cfe258d875d536b31d9a2a9bfca639e2f5c0e4ed56d9e71e7aeddaaa3450517a590d46bbe1ed9a81010f962252894a15d50158c2466cc49badfa11095c94d6495b85ac251077f0fca00eb673386647260004cf713a4b764be5ec540e53911886ecd27f1a4a94bcf433fd1c072677f8ac031fc4667ecc354393b79952e50f1eb0b17b4ae8b972898a00c37b75d8eaf8a2dfe2e778f858d43180932b772c719228143f71c7a"
        )
    );
    assert_eq!(
        b.public(),
        hex(
            "7d31879a5e25d4f68f8835d49c8d939fa084abeeb4098f1cbe4725bb8176eb0983deac809ade75a25364ba5e5a4c84788c09819b4dbb8dc77b1b1cea81187adb00beee4b8a89b3e7cc53704f59a0ebd784818d8c21bf97513161060b313df216ca32945732ae21f6b8ea826544b029cb2e2a81d5953841ad555e67746238e34d5fb933dd8a9381ae1ad8ccf4be157de8cedd5c1fe3373aab2e2773c672df324d2f3e7f4b7aa7a7a0f7e72ad3500b06daca951a532dd783c654141b7f4250390fa4889b3c16924c511a987cd41e794d0f3e863398ada906bff2d300461577e65bfed485bca59c93b7907a9534c052b2a15a735cb8abdb1f4e1c2809446826cd42"
        )
    );
    let shared = Secret::new(hex(
        "da8be33195a4187f6eddcd8902cfa495d3e669950260734da753150ab533611102bc994c0ef6b150b41e82141df2df9263b6500e39c1004dd691d679e797f8f2e54527a8a640756267006759c559bcfb8c63151c9c6df593229e21fdd1792486438c72f43e4f2669dd079215d47c6d31211bc8db4378efea56ee65fd8d0817ff61ab1aac389e10a03e2de4870f021bb7657087ace1a49af071915fa1878774a1218020aa553d49a2cbc067493b2082d181bdc842d1e4b21da855199f8f316528e4feecc26a2fd0bb97219572db163c664f41ddc9f262b8153462b687a1af962ff5dce83582e85664a89f465787a97c248631d50d989478d21a03127a69248e7d",
    ));
    assert_eq!(a.agree(b.public()), Ok(shared.clone()));
    assert_eq!(b.agree(a.public()), Ok(shared));
}

#[test]
fn modp_values_are_padded_on_the_left() {
    let pair = pair(
        Group::Modp2048,
        "800000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000003f4",
    );
    assert_eq!(pair.public().len(), 256);
    assert_eq!(pair.public()[0], 0);
    assert_eq!(
        pair.public(),
        hex(
            "00ecb51d7a96774c1dc76a5fa65f07b18ef525f434309de5aa78f40394c857654484b00cf36c6bdddd17b6151b3d2a5adfd294b1206456f5ff57acebd97020171ea49e6ad82cf457fc6217dff93f26be6120075b1bd8fc53324047fa29543289afcf71751cb02783605a7e72bb5f1aab34f692fad6b21b0b88a79dfbaa6df4d4e466858cd65bc1923fb73ca6aa3050acd27bab1465ad1b29ef61661243bbd5860096acd8067c58a909b1b31c99ee346d075aaed45215e044bbd0708a8774554642d88828630278115a6abfc378f1d07ddc2aac4f9f01b5d1398a2a1ddac73609718fc3281465d38c6acf9590094351c980f504dbf70e7c522ec79de0f91315af"
        )
    );
}

#[test]
fn fresh_pairs_agree_and_can_be_stored() {
    for group in Group::ALL {
        let a = KeyPair::generate(group, &mut Scripted(vec![], 0));
        let b = KeyPair::generate(group, &mut Scripted(vec![], 77));
        assert_ne!(a.public(), b.public());
        assert_eq!(a, KeyPair::generate(group, &mut Scripted(vec![], 0)));
        assert_eq!(a.public().len(), group.public_len());
        let (answer, shared) = group.answer(a.public(), &mut Scripted(vec![], 9)).unwrap();
        assert_eq!(answer.len(), group.answer_len());
        let stored: KeyPair = postcard::from_bytes(&postcard::to_allocvec(&a).unwrap()).unwrap();
        assert_eq!(stored.agree(&answer), Ok(shared.clone()), "{group:?}");
        assert_ne!(b.agree(&answer), Ok(shared));
    }
}

#[test]
fn a_scalar_beyond_the_order_is_drawn_again() {
    let pair = KeyPair::generate(Group::Ecp256, &mut Scripted(vec![0xff; 32], 0));
    let expected = KeyPair::generate(Group::Ecp256, &mut Scripted(vec![], 0));
    assert_eq!(pair, expected);
    let pair = KeyPair::generate(Group::Ecp256, &mut Scripted(vec![0; 64], 0));
    assert_eq!(pair, expected);
}

#[test]
fn bad_public_values_are_refused() {
    for group in Group::ALL {
        let rng = &mut Scripted(vec![], 0);
        let pair = KeyPair::generate(group, rng);
        let bad = Err(BadPublicValue(group));
        let (asked, answered) = (group.public_len(), group.answer_len());
        for len in [0, 1, answered - 1, answered + 1, 4 * answered] {
            assert_eq!(pair.agree(&vec![9; len]), bad, "{group:?} {len}");
        }
        for len in [0, 1, asked - 1, asked + 1, 4 * asked] {
            assert!(group.answer(&vec![9; len], rng).is_err(), "{group:?} {len}");
        }
        let kem = [Group::MlKem512, Group::MlKem768, Group::MlKem1024].contains(&group);
        if !kem {
            assert_eq!(pair.agree(&vec![0; answered]), bad);
        }
    }
}

#[test]
fn modp_edges_are_refused() {
    let pair = KeyPair::generate(Group::Modp2048, &mut Scripted(vec![], 0));
    let prime = "ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7edee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3be39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497cea956ae515d2261898fa051015728e5a8aacaa68ffffffffffffffff";
    let with_last = |from: &str, last: u8| {
        let mut bytes = hex(from);
        bytes[255] = last;
        bytes
    };
    let zero = "00".repeat(256);
    let bad = [
        with_last(&zero, 0),
        with_last(&zero, 1),
        with_last(prime, 0xfe),
        with_last(prime, 0xff),
        vec![0xff; 256],
    ];
    for y in bad {
        assert_eq!(pair.agree(&y), Err(BadPublicValue(Group::Modp2048)));
    }
    assert!(pair.agree(&with_last(&zero, 2)).is_ok());
    assert!(pair.agree(&with_last(prime, 0xfd)).is_ok());
}

#[test]
fn points_off_the_curve_and_of_small_order_are_refused() {
    let pair = KeyPair::generate(Group::Ecp256, &mut Scripted(vec![], 0));
    let mut off = KeyPair::generate(Group::Ecp256, &mut Scripted(vec![], 9))
        .public()
        .to_vec();
    off[63] ^= 1;
    assert_eq!(pair.agree(&off), Err(BadPublicValue(Group::Ecp256)));

    let pair = KeyPair::generate(Group::Curve25519, &mut Scripted(vec![], 0));
    let mut one = vec![0; 32];
    one[0] = 1;
    let order8 = hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
    for small in [one, order8] {
        assert_eq!(pair.agree(&small), Err(BadPublicValue(Group::Curve25519)));
    }
}
