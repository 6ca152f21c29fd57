//! The Encrypted payload (RFC 7296 §3.14): with AEADs (RFC 5282, RFC 7634), and with encryption and an integrity algorithm.

use super::{Associated, Cipher, Key};
use crate::{
    secret::Secret,
    wire::{self, HEADER_LEN, Header, ParseError, Payload, PayloadType, Protected},
};
use zeroize::Zeroizing;

/// Length of a generic payload header (RFC 7296 §3.2).
const GENERIC_LEN: usize = 4;
/// Length of Fragment Number and Total Fragments (RFC 7383 §2.5).
const FRAGMENT_LEN: usize = 4;
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

/// Seals `payloads` into one message. `iv` must never have been used with `key` for other bytes: it is the IV, or what the IV is made
/// from ([`Key::seal`]).
///
/// # Panics
/// If `key` is not key material of `cipher`, which no key schedule of ours yields.
pub fn seal(
    cipher: impl Into<Cipher>,
    key: &Secret,
    iv: [u8; 8],
    header: &Header,
    payloads: &[Payload],
) -> Vec<u8> {
    let (first, chain) = wire::emit_chain(payloads);
    seal_content(
        cipher.into(),
        key,
        iv,
        header,
        first,
        None,
        Zeroizing::new(chain),
    )
}

/// Seals one fragment of a message (RFC 7383 §2.5): `number` of `total`, from 1, with its part of the payloads, the first of which in all is
/// `first`. `iv` must never have been used with `key` for other bytes; each fragment has its own.
///
/// # Panics
/// As [`seal`].
pub fn seal_fragment(
    cipher: impl Into<Cipher>,
    key: &Secret,
    iv: [u8; 8],
    header: &Header,
    first: PayloadType,
    (number, total): (u16, u16),
    content: &[u8],
) -> Vec<u8> {
    // Only the first one says what the payloads begin with.
    let next = if number == 1 {
        first
    } else {
        PayloadType::NONE
    };
    let content = Zeroizing::new(content.to_vec());
    seal_content(
        cipher.into(),
        key,
        iv,
        header,
        next,
        Some((number, total)),
        content,
    )
}

/// How much of the payloads one fragment can carry in a message of `len` bytes.
pub fn fragment_capacity(cipher: impl Into<Cipher>, len: usize) -> usize {
    let cipher = cipher.into();
    let around = HEADER_LEN + GENERIC_LEN + FRAGMENT_LEN;
    let room = len.saturating_sub(around + cipher.iv_len() + cipher.icv_len());
    // Whole blocks, the last byte of which is the Pad Length.
    (room - room % cipher.block()).saturating_sub(1)
}

fn seal_content(
    cipher: Cipher,
    key: &Secret,
    iv: [u8; 8],
    header: &Header,
    first: PayloadType,
    fragment: Option<(u16, u16)>,
    mut content: Zeroizing<Vec<u8>>,
) -> Vec<u8> {
    let key =
        Key::new(cipher, key.expose()).expect("the key schedule yields keys of the suite's length");
    pad(&mut content, cipher.block());
    let (iv_len, icv_len) = (cipher.iv_len(), cipher.icv_len());
    let fields = fragment.map_or(0, |_| FRAGMENT_LEN);
    let payload_len = GENERIC_LEN + fields + iv_len + content.len() + icv_len;
    let mut message = wire::emit(header, &[]);
    message[NEXT_PAYLOAD] = match fragment {
        None => PayloadType::SK.0,
        Some(_) => PayloadType::SKF.0,
    };
    message[LENGTH..LENGTH + 4]
        .copy_from_slice(&saturate_u32(HEADER_LEN + payload_len).to_be_bytes());
    message.reserve(payload_len);
    message.extend_from_slice(&[first.0, 0]);
    message.extend_from_slice(&saturate_u16(payload_len).to_be_bytes());
    if let Some((number, total)) = fragment {
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&total.to_be_bytes());
    }

    let head_len = message.len();
    message.resize(head_len + iv_len, 0);
    message.extend_from_slice(&content);
    message.resize(message.len() + icv_len, 0);
    let (head, rest) = message.split_at_mut(head_len);
    let (explicit_iv, rest) = rest.split_at_mut(iv_len);
    let (text, icv) = rest.split_at_mut(content.len());
    key.seal(
        u64::from_be_bytes(iv),
        &associated(head),
        explicit_iv,
        text,
        icv,
    );
    message
}

/// Padding and Pad Length: as much as the cipher needs. AEADs and counter mode need none (RFC 5282 §3, RFC 5930 §2).
fn pad(content: &mut Vec<u8>, block: usize) {
    let pad_len = (content.len() + 1).next_multiple_of(block) - content.len() - 1;
    content.resize(content.len() + pad_len, 0);
    content.push(u8::try_from(pad_len).expect("less than a block"));
}

/// Everything before the IV is authenticated (RFC 5282 §5.1, RFC 7296 §3.14).
fn associated(head: &[u8]) -> Associated<'_> {
    Associated {
        aead: head,
        before: head,
        after: &[],
    }
}

/// Opens the protected part of a message in one piece. Of fragments (RFC 7383) only one that is a whole message is opened; for others there is
/// [`open_content`].
///
/// # Errors
/// See [`OpenError`].
pub fn open(
    cipher: impl Into<Cipher>,
    key: &Secret,
    protected: &Protected<'_>,
) -> Result<Vec<Payload>, OpenError> {
    let content = open_content(cipher, key, protected)?;
    if protected.fragment.is_some_and(|(_, total)| total != 1) {
        return Err(invalid("fragment", 0));
    }
    Ok(parse_content(protected.first, &content)?)
}

/// Opens the protected part of a message, or of one fragment, and leaves the payloads in it as bytes.
///
/// # Errors
/// See [`OpenError`].
pub fn open_content(
    cipher: impl Into<Cipher>,
    key: &Secret,
    protected: &Protected<'_>,
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let cipher = cipher.into();
    let key = Key::new(cipher, key.expose()).map_err(|_| OpenError::Integrity)?;
    let (iv, sealed) = protected
        .body
        .split_at_checked(cipher.iv_len())
        .ok_or(OpenError::Integrity)?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    key.open(0, &associated(protected.associated), iv, &mut buffer)
        .map_err(|_| OpenError::Integrity)?;
    let content = &buffer[..buffer.len() - cipher.icv_len()];
    let len = strip_padding(content)?.len();
    buffer.truncate(len);
    Ok(buffer)
}

/// The payloads of an opened message.
///
/// # Errors
/// If they are malformed.
pub fn parse_content(first: PayloadType, content: &[u8]) -> Result<Vec<Payload>, ParseError> {
    if first == PayloadType::NONE && content.is_empty() {
        return Ok(Vec::new());
    }
    wire::parse_chain(first, content)
}

/// A message of ours up to the generic header of its Encrypted payload; the lengths are not right yet.
pub fn associated_data(header: &Header, first: PayloadType) -> Vec<u8> {
    let mut bytes = wire::emit(header, &[]);
    bytes[NEXT_PAYLOAD] = PayloadType::SK.0;
    bytes.extend_from_slice(&[first.0, 0, 0, 0]);
    bytes
}

/// What AUTH covers of an IKE_INTERMEDIATE message: everything up to the generic header of the Encrypted payload, with lengths as if nothing were
/// encrypted, and the payloads (RFC 9242 §3.3.2).
pub fn intermediate_octets(associated: &[u8], content: &[u8]) -> Vec<u8> {
    let mut octets = [associated, content].concat();
    let total = saturate_u32(octets.len());
    octets[LENGTH..LENGTH + 4].copy_from_slice(&total.to_be_bytes());
    let payload = saturate_u16(GENERIC_LEN + content.len());
    octets[associated.len() - 2..associated.len()].copy_from_slice(&payload.to_be_bytes());
    octets
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

/// A message beyond these lengths could not leave in a datagram anyway, so that saturating loses nothing.
fn saturate_u16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn saturate_u32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
