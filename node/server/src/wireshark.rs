//! Keys of SAs as Wireshark's tables take them. It has none for a block of pcapng: keys of IKE and ESP are in files of a profile.

use evergate_ike::{
    crypto::{Encryption, IkeKeys, IkeSuite, Integrity},
    record::{Child, Path, Phase, Record, Role},
    secret::Secret,
};
use std::fmt::Write as _;

/// The name of the table with keys of IKE SAs.
pub(crate) const IKE_TABLE: &str = "ikev2_decryption_table";
/// The name of the table with keys of Child SAs.
pub(crate) const ESP_TABLE: &str = "esp_sa";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a key is made of: what encrypts with its salt, and what authenticates.
fn parts(key: &Secret, encryption: Encryption) -> (String, String) {
    let key = key.expose();
    let (encrypts, authenticates) = key
        .split_at_checked(encryption.key_len() + encryption.salt_len())
        .unwrap_or((key, &[]));
    (hex(encrypts), hex(authenticates))
}

/// Suite and keys of an IKE SA, as far as it has any.
pub(crate) fn ike_keys(record: &Record) -> Option<(IkeSuite, &IkeKeys)> {
    match &record.phase {
        Phase::HalfOpen(h) => Some((h.negotiated.suite, &h.negotiated.keys)),
        Phase::Intermediate(i) => Some((i.negotiated.suite, &i.negotiated.keys)),
        Phase::AuthSent(a) => Some((a.negotiated.suite, &a.negotiated.keys)),
        Phase::Established(e) => Some((e.suite, &e.keys)),
        Phase::InitSent(_) | Phase::Closed(_) => None,
    }
}

/// A line of [`IKE_TABLE`], if Wireshark knows the algorithms.
pub(crate) fn ike(record: &Record) -> Option<String> {
    let (suite, keys) = ike_keys(record)?;
    let encryption = match suite.encryption {
        Encryption::AesGcm16 { key_bits } => {
            format!("AES-GCM-{key_bits} with 16 octet ICV [RFC5282]")
        }
        Encryption::AesGcm12 { key_bits } => {
            format!("AES-GCM-{key_bits} with 12 octet ICV [RFC5282]")
        }
        Encryption::AesGcm8 { key_bits } => {
            format!("AES-GCM-{key_bits} with 8 octet ICV [RFC5282]")
        }
        Encryption::AesCbc { key_bits } => format!("AES-CBC-{key_bits} [RFC3602]"),
        _ => return None,
    };
    let integrity = match suite.integrity {
        None => "NONE [RFC4306]",
        Some(Integrity::HmacSha1) => "HMAC_SHA1_96 [RFC2404]",
        Some(Integrity::HmacSha256) => "HMAC_SHA2_256_128 [RFC4868]",
        Some(Integrity::HmacSha384) => "HMAC_SHA2_384_192 [RFC4868]",
        Some(Integrity::HmacSha512) => "HMAC_SHA2_512_256 [RFC4868]",
        Some(_) => return None,
    };
    let (spi_i, spi_r) = match record.role {
        Role::Initiator => (record.id.0, record.remote_spi),
        Role::Responder => (record.remote_spi, record.id.0),
    };
    let (ei, ai) = parts(&keys.ei, suite.encryption);
    let (er, ar) = parts(&keys.er, suite.encryption);
    Some(format!(
        "{spi_i:016x},{spi_r:016x},{ei},{er},\"{encryption}\",{ai},{ar},\"{integrity}\"\n"
    ))
}

/// Lines of [`ESP_TABLE`] for both directions, if Wireshark knows the algorithms. Addresses are left open: a NAT may change them on the way, and SPIs suffice.
pub(crate) fn child(child: &Child, path: &Path) -> Option<String> {
    let encryption = match child.suite.encryption {
        Encryption::AesGcm16 { .. } => "AES-GCM with 16 octet ICV [RFC4106]",
        Encryption::AesGcm12 { .. } => "AES-GCM with 12 octet ICV [RFC4106]",
        Encryption::AesGcm8 { .. } => "AES-GCM with 8 octet ICV [RFC4106]",
        Encryption::AesCbc { .. } => "AES-CBC [RFC3602]",
        Encryption::AesCtr { .. } => "AES-CTR [RFC3686]",
        _ => return None,
    };
    let integrity = match child.suite.integrity {
        None => "NULL",
        Some(Integrity::HmacSha1) => "HMAC-SHA-1-96 [RFC2404]",
        Some(Integrity::HmacSha256) => "HMAC-SHA-256-128 [RFC4868]",
        Some(Integrity::HmacSha384) => "HMAC-SHA-384-192 [RFC4868]",
        Some(Integrity::HmacSha512) => "HMAC-SHA-512-256 [RFC4868]",
        Some(_) => return None,
    };
    let family = if path.remote.is_ipv4() {
        "IPv4"
    } else {
        "IPv6"
    };
    let line = |spi: u32, key: &Secret| {
        let (key, integrity_key) = parts(key, child.suite.encryption);
        let integrity_key = match integrity_key.is_empty() {
            true => integrity_key,
            false => format!("0x{integrity_key}"),
        };
        format!(
            "\"{family}\",\"*\",\"*\",\"0x{spi:08x}\",\"{encryption}\",\"0x{key}\",\"{integrity}\",\"{integrity_key}\"\n"
        )
    };
    Some(line(child.spi_in, &child.key_in) + &line(child.spi_out, &child.key_out))
}
