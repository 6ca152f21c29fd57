//! The two forms of ECDSA signatures: `r` and `s` one after the other, each as long as the field (RFC 4754 §7), and ASN.1 (RFC 3279 §2.2.3).

use super::KeyKind;
use x509_cert::der::{Decode, Encode, Sequence, asn1::UintRef};

#[derive(Sequence)]
struct Pair<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// Length of `r` and of `s` in bytes.
pub(super) fn field_len(key: KeyKind) -> Option<usize> {
    match key {
        KeyKind::P256 => Some(32),
        KeyKind::P384 => Some(48),
        KeyKind::P521 => Some(66),
        KeyKind::Rsa | KeyKind::Ed25519 => None,
    }
}

/// From the fixed form to ASN.1.
pub(super) fn to_asn1(fixed: &[u8], field_len: usize) -> Option<Vec<u8>> {
    if fixed.len() != 2 * field_len {
        return None;
    }
    let (r, s) = fixed.split_at(field_len);
    let pair = Pair {
        r: UintRef::new(r).ok()?,
        s: UintRef::new(s).ok()?,
    };
    pair.to_der().ok()
}

/// From ASN.1 to the fixed form.
pub(super) fn to_fixed(asn1: &[u8], field_len: usize) -> Option<Vec<u8>> {
    let pair = Pair::from_der(asn1).ok()?;
    let mut fixed = Vec::with_capacity(2 * field_len);
    for number in [pair.r, pair.s] {
        let bytes = number.as_bytes();
        fixed.resize(fixed.len() + field_len.checked_sub(bytes.len())?, 0);
        fixed.extend(bytes);
    }
    Some(fixed)
}
