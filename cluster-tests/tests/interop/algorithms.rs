//! Each cipher, each group, each PRF.

use crate::scenario::{Scenario, Version};
use crate::series::{Row, Series};

/// Whose packets Wireshark can open: these have processes of their own.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let suite = |name, what, ike: &'static str, esp: &'static str| {
        Scenario::new(name, what).both(|c| {
            c.proposals = vec![ike.into()];
            c.esp = vec![esp.into()];
        })
    };
    vec![
        suite(
            "aes128gcm16_x25519",
            "AES-128-GCM, PRF HMAC-SHA2-256, Curve25519 in both SAs",
            "aes128gcm16-prfsha256-x25519",
            "aes128gcm16-x25519",
        ),
        suite(
            "aes256gcm16_ecp256",
            "AES-256-GCM, PRF HMAC-SHA2-384, ECP-256 in both SAs",
            "aes256gcm16-prfsha384-ecp256",
            "aes256gcm16-ecp256",
        ),
        suite(
            "aes256gcm16_modp2048",
            "AES-256-GCM, PRF HMAC-SHA2-512, MODP-2048 in both SAs",
            "aes256gcm16-prfsha512-modp2048",
            "aes256gcm16-modp2048",
        ),
        suite(
            "chacha20poly1305",
            "ChaCha20-Poly1305",
            "chacha20poly1305-prfsha256-x25519",
            "chacha20poly1305",
        )
        .opaque(),
    ]
}

const CIPHERS: [Row; 13] = [
    (
        "aes192gcm16",
        "AES-192-GCM",
        "aes192gcm16-prfsha256-x25519",
        "aes192gcm16",
    ),
    (
        "aes256gcm12",
        "AES-256-GCM with an ICV of 12 bytes",
        "aes256gcm12-prfsha256-x25519",
        "aes256gcm12",
    ),
    (
        "aes128gcm8",
        "AES-128-GCM with an ICV of 8 bytes",
        "aes128gcm8-prfsha256-x25519",
        "aes128gcm8",
    ),
    (
        "aes256ccm16",
        "AES-256-CCM with an ICV of 16 bytes",
        "aes256ccm16-prfsha256-x25519",
        "aes256ccm16",
    ),
    (
        "aes192ccm12",
        "AES-192-CCM with an ICV of 12 bytes",
        "aes192ccm12-prfsha256-x25519",
        "aes192ccm12",
    ),
    (
        "aes128ccm8",
        "AES-128-CCM with an ICV of 8 bytes",
        "aes128ccm8-prfsha256-x25519",
        "aes128ccm8",
    ),
    (
        "aes128_sha256",
        "AES-128-CBC, HMAC-SHA2-256",
        "aes128-sha256-x25519",
        "aes128-sha256",
    ),
    (
        "aes192_sha384",
        "AES-192-CBC, HMAC-SHA2-384",
        "aes192-sha384-x25519",
        "aes192-sha384",
    ),
    (
        "aes256_sha512",
        "AES-256-CBC, HMAC-SHA2-512",
        "aes256-sha512-x25519",
        "aes256-sha512",
    ),
    (
        "aes128_sha1",
        "AES-128-CBC, HMAC-SHA1",
        "aes128-sha1-x25519",
        "aes128-sha1",
    ),
    (
        "aes256_aesxcbc",
        "AES-256-CBC, AES-XCBC",
        "aes256-aesxcbc-x25519",
        "aes256-aesxcbc",
    ),
    (
        "aes128_aescmac",
        "AES-128-CBC, AES-CMAC",
        "aes128-aescmac-x25519",
        "aes128-aescmac",
    ),
    (
        "aes128ctr",
        "AES-128-CTR for the IKE SA",
        "aes128ctr-sha256-x25519",
        "aes128-sha256-esn-noesn",
    ),
];

const GROUPS: [Row; 7] = [
    (
        "modp3072",
        "MODP-3072 in both SAs",
        "aes256gcm16-prfsha384-modp3072",
        "aes256gcm16-modp3072",
    ),
    (
        "modp4096",
        "MODP-4096 in both SAs",
        "aes256gcm16-prfsha384-modp4096",
        "aes256gcm16-modp4096",
    ),
    (
        "modp6144",
        "MODP-6144",
        "aes256gcm16-prfsha384-modp6144",
        "aes256gcm16",
    ),
    (
        "modp8192",
        "MODP-8192",
        "aes256gcm16-prfsha384-modp8192",
        "aes256gcm16",
    ),
    (
        "ecp384",
        "ECP-384 in both SAs",
        "aes256gcm16-prfsha384-ecp384",
        "aes256gcm16-ecp384",
    ),
    (
        "ecp521",
        "ECP-521 in both SAs",
        "aes256gcm16-prfsha384-ecp521",
        "aes256gcm16-ecp521",
    ),
    (
        "x448",
        "Curve448 in both SAs",
        "aes256gcm16-prfsha384-x448",
        "aes256gcm16-x448",
    ),
];

const PRFS: [Row; 3] = [
    (
        "prfsha1",
        "PRF HMAC-SHA1",
        "aes128gcm16-prfsha1-x25519",
        "aes128gcm16-x25519",
    ),
    (
        "prfaesxcbc",
        "PRF AES-XCBC",
        "aes128gcm16-prfaesxcbc-x25519",
        "aes128gcm16-x25519",
    ),
    (
        "prfaescmac",
        "PRF AES-CMAC",
        "aes128gcm16-prfaescmac-x25519",
        "aes128gcm16-x25519",
    ),
];

const HYBRID: [Row; 5] = [
    (
        "x25519_mlkem768",
        "Curve25519 and ML-KEM-768 in both SAs",
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        "aes256gcm16-x25519-ke1_mlkem768",
    ),
    (
        "ecp256_mlkem512",
        "ECP-256 and ML-KEM-512 in both SAs",
        "aes256gcm16-prfsha384-ecp256-ke1_mlkem512",
        "aes256gcm16-ecp256-ke1_mlkem512",
    ),
    (
        "x448_mlkem1024",
        "Curve448 and ML-KEM-1024; ECP-521 and ML-KEM-1024 in the Child SA",
        "aes256gcm16-prfsha384-x448-ke1_mlkem1024",
        "aes256gcm16-ecp521-ke1_mlkem1024",
    ),
    (
        "four_exchanges",
        "Curve25519, ML-KEM-768, ECP-384 and Curve448, with AES-CBC",
        "aes256-sha384-x25519-ke1_mlkem768-ke2_ecp384-ke4_x448",
        "aes256-sha256-x25519-ke1_mlkem768-ke3_ecp384",
    ),
    (
        "mlkem768",
        "ML-KEM-768 alone in both SAs",
        "aes256gcm16-prfsha384-mlkem768",
        "aes256gcm16-mlkem768",
    ),
];

/// Those that are played one after the other on the same processes.
pub(crate) fn series() -> Vec<Series> {
    let of = |name, rows| Series {
        name,
        rows,
        changes_keys: false,
        without: None,
    };
    let hybrid = Series {
        changes_keys: true,
        without: Some((
            Version::V5_9,
            "strongSwan has ML-KEM and additional key exchanges since 6.0.",
        )),
        ..of("hybrid", &HYBRID)
    };
    vec![
        of("ciphers", &CIPHERS),
        of("groups", &GROUPS),
        of("prfs", &PRFS),
        hybrid,
    ]
}
