//! Each cipher, each group, each PRF.

use crate::scenario::Scenario;

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
