//! The AlgorithmIdentifiers of signature schemes in DER (RFC 7427 Appendix A, RFC 8420 Appendix A).

use super::{Hash, Scheme};

const SEQUENCE: u8 = 0x30;
const NULL: &[u8] = &[0x05, 0x00];
/// 1.2.840.113549.1.1 (PKCS #1) without its last arc.
const PKCS1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4.3 (ECDSA with SHA-2) without its last arc.
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
/// 2.16.840.1.101.3.4.2 (hash algorithms of NIST) without its last arc.
const NIST_HASHES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
/// 1.3.101.112.
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

const ALL: [Scheme; 10] = [
    Scheme::RsaPkcs1(Hash::Sha256),
    Scheme::RsaPkcs1(Hash::Sha384),
    Scheme::RsaPkcs1(Hash::Sha512),
    Scheme::RsaPss(Hash::Sha256),
    Scheme::RsaPss(Hash::Sha384),
    Scheme::RsaPss(Hash::Sha512),
    Scheme::Ecdsa(Hash::Sha256),
    Scheme::Ecdsa(Hash::Sha384),
    Scheme::Ecdsa(Hash::Sha512),
    Scheme::Ed25519,
];

/// The identifier of a scheme, as we send it.
pub(super) fn of(scheme: Scheme) -> Vec<u8> {
    write(scheme, NULL)
}

/// The scheme of an identifier. Where RSA wants NULL parameters they may be absent (RFC 4055 §2.1, §5).
pub(super) fn parse(der: &[u8]) -> Option<Scheme> {
    ALL.into_iter()
        .find(|scheme| [NULL, &[]].iter().any(|null| write(*scheme, null) == der))
}

fn write(scheme: Scheme, null: &[u8]) -> Vec<u8> {
    match scheme {
        Scheme::RsaPkcs1(hash) => {
            let arc = match hash {
                Hash::Sha256 => 11,
                Hash::Sha384 => 12,
                Hash::Sha512 | Hash::Identity => 13,
            };
            tlv(SEQUENCE, &[&oid(PKCS1, &[arc]), null])
        }
        Scheme::RsaPss(hash) => pss(hash, null),
        Scheme::Ecdsa(hash) => {
            let arc = match hash {
                Hash::Sha256 => 2,
                Hash::Sha384 => 3,
                Hash::Sha512 | Hash::Identity => 4,
            };
            tlv(SEQUENCE, &[&oid(ECDSA, &[arc])])
        }
        Scheme::Ed25519 => tlv(SEQUENCE, &[&oid(ED25519, &[])]),
    }
}

/// RSASSA-PSS with its parameters (RFC 4055 §3.1): the hash, MGF1 with the same one, and a salt as long as its output.
fn pss(hash: Hash, null: &[u8]) -> Vec<u8> {
    let (arc, salt) = match hash {
        Hash::Sha256 => (1, 32),
        Hash::Sha384 => (2, 48),
        Hash::Sha512 | Hash::Identity => (3, 64),
    };
    let hash = tlv(SEQUENCE, &[&oid(NIST_HASHES, &[arc]), null]);
    let mgf = tlv(SEQUENCE, &[&oid(PKCS1, &[8]), &hash]);
    let salt = tlv(0x02, &[&[salt]]);
    let parameters = [tlv(0xa0, &[&hash]), tlv(0xa1, &[&mgf]), tlv(0xa2, &[&salt])].concat();
    let parameters = tlv(SEQUENCE, &[&parameters]);
    tlv(SEQUENCE, &[&oid(PKCS1, &[10]), &parameters])
}

fn oid(start: &[u8], end: &[u8]) -> Vec<u8> {
    tlv(0x06, &[start, end])
}

/// Tag, length, value. All values here are shorter than 128 bytes.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let value = parts.concat();
    let len = u8::try_from(value.len()).unwrap_or_default();
    debug_assert!(len < 0x80 && usize::from(len) == value.len());
    [&[tag, len], &value[..]].concat()
}
