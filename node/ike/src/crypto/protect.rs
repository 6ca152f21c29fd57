//! The Encrypted payload (RFC 7296 §3.14) with AEADs (RFC 5282, RFC 7634).

use super::Encryption;
use crate::{
    secret::Secret,
    wire::{self, HEADER_LEN, Header, ParseError, Payload, PayloadType, Protected},
};
use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use zeroize::Zeroizing;

/// Length of a generic payload header (RFC 7296 §3.2).
const GENERIC_LEN: usize = 4;
/// Length of the explicit IV.
const IV_LEN: usize = 8;
/// Length of the ICV.
const ICV_LEN: usize = 16;
/// Where the IKE header names the first payload.
const NEXT_PAYLOAD: usize = 16;
/// Where the IKE header holds the length of the message.
const LENGTH: usize = 24;

/// Why a protected message could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was not sealed with this key, or was changed on its way. Never answered.
    #[error("the integrity check failed")]
    Integrity,
    /// It is authentic, but its content is malformed.
    #[error("the protected payloads are malformed: {0}")]
    Content(#[from] ParseError),
}

/// Seals `payloads` into one message. `iv` must never have been used with `key` for other bytes.
///
/// # Panics
/// If `key` is not a key and salt of `encryption`, which no key schedule of ours yields.
pub fn seal(
    encryption: Encryption,
    key: &Secret,
    iv: [u8; 8],
    header: &Header,
    payloads: &[Payload],
) -> Vec<u8> {
    let (key, salt) =
        aead_key(encryption, key).expect("the key schedule yields keys of the suite's length");
    let (first, chain) = wire::emit_chain(payloads);
    let mut content = Zeroizing::new(chain);
    content.push(0); // Pad Length: AEADs need no padding (RFC 5282 §3).

    let body_len = IV_LEN + content.len() + ICV_LEN;
    let mut message = wire::emit(header, &[]);
    message[NEXT_PAYLOAD] = PayloadType::SK.0;
    message[LENGTH..LENGTH + 4]
        .copy_from_slice(&saturate_u32(HEADER_LEN + GENERIC_LEN + body_len).to_be_bytes());
    message.reserve(GENERIC_LEN + body_len);
    message.extend_from_slice(&[first.0, 0]);
    message.extend_from_slice(&saturate_u16(GENERIC_LEN + body_len).to_be_bytes());

    let icv = key
        .seal_in_place_separate_tag(nonce(salt, iv), Aad::from(message.as_slice()), &mut content)
        .expect("a message is far below the limits of the AEADs");
    message.extend_from_slice(&iv);
    message.extend_from_slice(&content);
    message.extend_from_slice(icv.as_ref());
    message
}

/// Opens the protected part of a message. Of fragments (RFC 7383) only a message in one piece is opened.
///
/// # Errors
/// See [`OpenError`].
pub fn open(
    encryption: Encryption,
    key: &Secret,
    protected: &Protected<'_>,
) -> Result<Vec<Payload>, OpenError> {
    let (key, salt) = aead_key(encryption, key).ok_or(OpenError::Integrity)?;
    let (iv, sealed) = protected
        .body
        .split_first_chunk::<IV_LEN>()
        .ok_or(OpenError::Integrity)?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let content = key
        .open_in_place(
            nonce(salt, *iv),
            Aad::from(protected.associated),
            &mut buffer,
        )
        .map_err(|_| OpenError::Integrity)?;
    let chain = strip_padding(content)?;
    if protected.fragment.is_some_and(|(_, total)| total != 1) {
        return Err(invalid("fragment", 0));
    }
    if protected.first == PayloadType::NONE && chain.is_empty() {
        return Ok(Vec::new());
    }
    Ok(wire::parse_chain(protected.first, chain)?)
}

/// The content without padding and Pad Length; any amount of padding is accepted (RFC 5282 §3).
fn strip_padding(content: &[u8]) -> Result<&[u8], OpenError> {
    let (&pad_len, rest) = content.split_last().ok_or_else(|| invalid("padding", 0))?;
    let len = rest
        .len()
        .checked_sub(usize::from(pad_len))
        .ok_or_else(|| invalid("padding", rest.len()))?;
    Ok(&rest[..len])
}

fn invalid(what: &'static str, offset: usize) -> OpenError {
    OpenError::Content(ParseError::Invalid { what, offset })
}

/// The cipher's key and the salt that follows it in the key material.
fn aead_key(encryption: Encryption, key: &Secret) -> Option<(LessSafeKey, [u8; 4])> {
    let algorithm = match encryption {
        Encryption::AesGcm16 { key_bits: 128 } => &AES_128_GCM,
        Encryption::AesGcm16 { key_bits: 256 } => &AES_256_GCM,
        Encryption::AesGcm16 { .. } => return None,
        Encryption::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let (key, salt) = key.expose().split_last_chunk::<4>()?;
    let key = UnboundKey::new(algorithm, key).ok()?;
    Some((LessSafeKey::new(key), *salt))
}

/// Salt and IV make the nonce (RFC 5282 §4, RFC 7634 §2).
fn nonce(salt: [u8; 4], iv: [u8; 8]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&salt);
    nonce[4..].copy_from_slice(&iv);
    Nonce::assume_unique_for_key(nonce)
}

/// A message beyond these lengths could not leave in a datagram anyway, so that saturating loses nothing.
fn saturate_u16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn saturate_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
