//! Messages and chains of payloads (RFC 7296 §3.1, §3.2, §3.14; RFC 7383 §2.5).

mod body;
mod sa;
mod ts;

use super::{
    HEADER_LEN, Header, MAX_PAYLOADS, Message, ParseError, Payload, PayloadType, Protected,
    cursor::{Cursor, with_length},
    header::RawHeader,
};

/// Length of a generic payload header.
const GENERIC_LEN: usize = 4;
/// The critical bit in a generic payload header.
const CRITICAL: u8 = 0x80;

impl<'a> Message<'a> {
    /// Parses a whole datagram, without a non-ESP marker.
    ///
    /// # Errors
    /// If it is anything but exactly one message.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, ParseError> {
        let RawHeader {
            header,
            first,
            length,
            ..
        } = RawHeader::parse_v2(datagram)?;
        check_length(datagram.len(), length)?;
        let mut payloads = Vec::new();
        let mut cursor = Cursor::new(&datagram[HEADER_LEN..], HEADER_LEN);
        let mut kind = first;
        while kind != PayloadType::NONE {
            check_count(payloads.len())?;
            let (next, mut body) = generic(&mut cursor, kind)?;
            if is_encrypted(kind) {
                let protected = protected(datagram, kind, next, body)?;
                cursor.finish("data after the Encrypted payload")?;
                return Ok(Self {
                    header,
                    payloads,
                    protected: Some(protected),
                });
            }
            payloads.push(body::parse(kind, &mut body)?);
            kind = next;
        }
        cursor.finish("data after the last payload")?;
        Ok(Self {
            header,
            payloads,
            protected: None,
        })
    }
}

/// A message without protection.
///
/// # Panics
/// As [`emit_chain`].
pub fn emit(header: &Header, payloads: &[Payload]) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    emit_into(&mut out, payloads);
    let length = u32::try_from(out.len()).expect("a message is shorter than 4 GiB");
    out[..HEADER_LEN].copy_from_slice(&header.to_bytes(first_kind(payloads), length));
    out
}

/// A chain of payloads, as it stands inside an Encrypted payload, and the type of the first.
///
/// Reserved fields are sent as zero. Attributes of transforms that we do not know were not kept and
/// are not emitted: a transform that had any is never accepted, so it is never sent back.
///
/// # Panics
/// If a payload is longer than 65,535 bytes or a list in it than 255 elements. What was parsed
/// never is.
pub fn emit_chain(payloads: &[Payload]) -> (PayloadType, Vec<u8>) {
    let mut out = Vec::new();
    emit_into(&mut out, payloads);
    (first_kind(payloads), out)
}

/// Parses a chain of payloads as it stands inside an Encrypted payload. Offsets in errors count
/// from the start of `bytes`.
///
/// # Errors
/// If it is malformed.
pub fn parse_chain(first: PayloadType, bytes: &[u8]) -> Result<Vec<Payload>, ParseError> {
    let mut payloads = Vec::new();
    let mut cursor = Cursor::new(bytes, 0);
    let mut kind = first;
    while kind != PayloadType::NONE {
        check_count(payloads.len())?;
        let offset = cursor.offset();
        let (next, mut body) = generic(&mut cursor, kind)?;
        if is_encrypted(kind) {
            return Err(nested(offset));
        }
        payloads.push(body::parse(kind, &mut body)?);
        kind = next;
    }
    cursor.finish("data after the last payload")?;
    Ok(payloads)
}

/// The length field says exactly how long the datagram is.
fn check_length(actual: usize, length: u32) -> Result<(), ParseError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length < HEADER_LEN {
        return Err(ParseError::Invalid {
            what: "message length",
            offset: 24,
        });
    }
    match actual.cmp(&length) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(ParseError::Truncated {
            what: "message",
            offset: 0,
        }),
        std::cmp::Ordering::Greater => Err(ParseError::Invalid {
            what: "data after the message",
            offset: length,
        }),
    }
}

/// There may be one payload more.
fn check_count(payloads: usize) -> Result<(), ParseError> {
    if payloads < MAX_PAYLOADS {
        Ok(())
    } else {
        Err(ParseError::TooMany { what: "payloads" })
    }
}

/// Reads a generic payload header (RFC 7296 §3.2): the type of the next payload, and this one's body.
/// The critical bit counts only where the type is unknown (RFC 7296 §2.5).
fn generic<'a>(
    cursor: &mut Cursor<'a>,
    kind: PayloadType,
) -> Result<(PayloadType, Cursor<'a>), ParseError> {
    const WHAT: &str = "payload header";
    let offset = cursor.offset();
    let truncated = |_| ParseError::Truncated { what: WHAT, offset };
    let next = PayloadType(cursor.u8(WHAT).map_err(truncated)?);
    let critical = cursor.u8(WHAT).map_err(truncated)? & CRITICAL != 0;
    let length = usize::from(cursor.u16(WHAT).map_err(truncated)?);
    let Some(body) = length.checked_sub(GENERIC_LEN) else {
        return Err(ParseError::Invalid {
            what: "payload length",
            offset,
        });
    };
    if cursor.remaining() < body {
        return Err(ParseError::Truncated {
            what: "payload",
            offset,
        });
    }
    if critical && !body::is_known(kind) && !is_encrypted(kind) {
        return Err(ParseError::UnknownCritical(kind.0));
    }
    Ok((next, cursor.sub(body, "payload")?))
}

fn is_encrypted(kind: PayloadType) -> bool {
    matches!(kind, PayloadType::SK | PayloadType::SKF)
}

fn nested(offset: usize) -> ParseError {
    ParseError::Invalid {
        what: "Encrypted payload inside an Encrypted payload",
        offset,
    }
}

/// Delimits an Encrypted payload. `associated` ends where the IV begins: after the generic header
/// (RFC 5282 §5.1), in a fragment after its own fields (RFC 7383 §2.5).
fn protected<'a>(
    datagram: &'a [u8],
    kind: PayloadType,
    first: PayloadType,
    mut body: Cursor<'a>,
) -> Result<Protected<'a>, ParseError> {
    let offset = body.offset();
    if is_encrypted(first) {
        return Err(nested(offset - GENERIC_LEN));
    }
    let fragment = if kind == PayloadType::SKF {
        let (number, total) = (body.u16("fragment number")?, body.u16("total fragments")?);
        if number == 0 || number > total {
            return Err(ParseError::Invalid {
                what: "fragment number",
                offset,
            });
        }
        Some((number, total))
    } else {
        None
    };
    Ok(Protected {
        first,
        associated: &datagram[..body.offset()],
        body: body.rest(),
        fragment,
    })
}

fn first_kind(payloads: &[Payload]) -> PayloadType {
    payloads.first().map_or(PayloadType::NONE, Payload::kind)
}

fn emit_into(out: &mut Vec<u8>, payloads: &[Payload]) {
    for (i, payload) in payloads.iter().enumerate() {
        let next = first_kind(&payloads[i + 1..]);
        with_length(out, &[next.0, 0, 0, 0], 2, |out| body::emit(out, payload));
    }
}
