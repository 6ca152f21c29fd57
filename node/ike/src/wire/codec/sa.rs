//! Proposals, transforms and their attributes (RFC 7296 §3.3).

use crate::wire::{
    MAX_PROPOSALS, MAX_TRANSFORM_ATTRIBUTES, MAX_TRANSFORMS, ParseError, Proposal, Protocol,
    Transform, TransformType,
    cursor::{Cursor, count_u8, with_length},
};

/// "Last Substruc" of the last proposal and of the last transform.
const LAST: u8 = 0;
/// "Last Substruc" of a proposal that another follows.
const MORE_PROPOSALS: u8 = 2;
/// "Last Substruc" of a transform that another follows.
const MORE_TRANSFORMS: u8 = 3;
/// Type of the Key Length attribute (RFC 7296 §3.3.5).
const KEY_LENGTH: u16 = 14;
/// The bit that says that an attribute's value is the two bytes after its type.
const SHORT_FORMAT: u16 = 0x8000;

fn invalid<T>(what: &'static str, offset: usize) -> Result<T, ParseError> {
    Err(ParseError::Invalid { what, offset })
}

/// Parses the body of an SA payload: at least one proposal. Several are numbered from 1 without a
/// gap; a single one may have any number but zero, because it may be the answer to an offer.
pub(super) fn parse(c: &mut Cursor<'_>) -> Result<Vec<Proposal>, ParseError> {
    let mut proposals: Vec<Proposal> = Vec::new();
    loop {
        if proposals.len() == MAX_PROPOSALS {
            return Err(ParseError::TooMany { what: "proposals" });
        }
        let offset = c.offset();
        let (more, mut body) = substructure(c, MORE_PROPOSALS, "proposal", "length of a proposal")?;
        let proposal = parse_proposal(&mut body)?;
        let follows = match proposals.last() {
            None => proposal.number == 1 || (proposal.number > 1 && !more),
            Some(last) => last.number.checked_add(1) == Some(proposal.number),
        };
        if !follows {
            return invalid("proposal number", offset + 4);
        }
        proposals.push(proposal);
        if !more {
            break;
        }
    }
    c.finish("data after the last proposal")?;
    Ok(proposals)
}

/// Reads what proposals and transforms begin with: whether another follows, a reserved byte, and
/// the length; the rest of the substructure comes back.
fn substructure<'a>(
    c: &mut Cursor<'a>,
    more: u8,
    what: &'static str,
    length_of: &'static str,
) -> Result<(bool, Cursor<'a>), ParseError> {
    let offset = c.offset();
    let truncated = |_| ParseError::Truncated { what, offset };
    let last = c.u8(what).map_err(truncated)?;
    c.u8(what).map_err(truncated)?;
    let length = usize::from(c.u16(what).map_err(truncated)?);
    if last != LAST && last != more {
        return invalid("last substructure flag", offset);
    }
    let Some(body) = length.checked_sub(4) else {
        return invalid(length_of, offset + 2);
    };
    Ok((last == more, c.sub(body, what).map_err(truncated)?))
}

/// Parses a proposal after its length.
fn parse_proposal(c: &mut Cursor<'_>) -> Result<Proposal, ParseError> {
    let number = c.u8("proposal number")?;
    let protocol = Protocol(c.u8("protocol of a proposal")?);
    let offset = c.offset();
    let spi_len = c.u8("SPI size of a proposal")?;
    let count = usize::from(c.u8("number of transforms")?);
    let fits = match protocol {
        Protocol::IKE => matches!(spi_len, 0 | 8),
        Protocol::AH | Protocol::ESP => spi_len == 4,
        // A protocol that we do not know is skipped when we choose; how long its SPI is, is not ours.
        _ => true,
    };
    if !fits {
        return invalid("SPI size of a proposal", offset);
    }
    let spi = c.take(usize::from(spi_len), "SPI of a proposal")?.to_vec();
    if count == 0 {
        return invalid("number of transforms", offset + 1);
    }
    if count > MAX_TRANSFORMS {
        return Err(ParseError::TooMany { what: "transforms" });
    }
    let transforms = parse_transforms(c, count)?;
    c.finish("data after the last transform")?;
    Ok(Proposal {
        number,
        protocol,
        spi,
        transforms,
    })
}

/// Parses exactly `count` transforms, the last of which says that it is the last.
fn parse_transforms(c: &mut Cursor<'_>, count: usize) -> Result<Vec<Transform>, ParseError> {
    let mut transforms = Vec::new();
    for i in 1..=count {
        let offset = c.offset();
        let (more, mut body) =
            substructure(c, MORE_TRANSFORMS, "transform", "length of a transform")?;
        if more != (i < count) {
            return invalid("last substructure flag", offset);
        }
        transforms.push(parse_transform(&mut body)?);
    }
    Ok(transforms)
}

/// Parses a transform after its length.
fn parse_transform(c: &mut Cursor<'_>) -> Result<Transform, ParseError> {
    let kind = TransformType(c.u8("transform type")?);
    c.u8("reserved field of a transform")?;
    let id = c.u16("transform ID")?;
    let (mut key_bits, mut unknown_attribute) = (None, false);
    let mut count = 0;
    while !c.is_empty() {
        if count == MAX_TRANSFORM_ATTRIBUTES {
            return Err(ParseError::TooMany {
                what: "transform attributes",
            });
        }
        count += 1;
        match parse_attribute(c)? {
            Some(bits) if key_bits.is_none() => key_bits = Some(bits),
            // A second key length contradicts the first.
            _ => unknown_attribute = true,
        }
    }
    Ok(Transform {
        kind,
        id,
        key_bits,
        unknown_attribute,
    })
}

/// Parses an attribute: a key length, or nothing that we know. A key length in the long format is
/// not one (RFC 7296 §3.3.5: its format is fixed).
fn parse_attribute(c: &mut Cursor<'_>) -> Result<Option<u16>, ParseError> {
    const WHAT: &str = "transform attribute";
    let kind = c.u16(WHAT)?;
    let value = c.u16(WHAT)?;
    if kind & SHORT_FORMAT == 0 {
        c.take(usize::from(value), WHAT)?;
        return Ok(None);
    }
    Ok((kind == SHORT_FORMAT | KEY_LENGTH).then_some(value))
}

/// Writes the body of an SA payload.
pub(super) fn emit(out: &mut Vec<u8>, proposals: &[Proposal]) {
    for (i, proposal) in proposals.iter().enumerate() {
        let last = if i + 1 == proposals.len() {
            LAST
        } else {
            MORE_PROPOSALS
        };
        let head = [
            last,
            0,
            0,
            0,
            proposal.number,
            proposal.protocol.0,
            count_u8(proposal.spi.len()),
            count_u8(proposal.transforms.len()),
        ];
        with_length(out, &head, 2, |out| {
            out.extend_from_slice(&proposal.spi);
            emit_transforms(out, &proposal.transforms);
        });
    }
}

fn emit_transforms(out: &mut Vec<u8>, transforms: &[Transform]) {
    for (i, transform) in transforms.iter().enumerate() {
        let last = if i + 1 == transforms.len() {
            LAST
        } else {
            MORE_TRANSFORMS
        };
        let id = transform.id.to_be_bytes();
        let head = [last, 0, 0, 0, transform.kind.0, 0, id[0], id[1]];
        with_length(out, &head, 2, |out| {
            if let Some(bits) = transform.key_bits {
                out.extend_from_slice(&(SHORT_FORMAT | KEY_LENGTH).to_be_bytes());
                out.extend_from_slice(&bits.to_be_bytes());
            }
        });
    }
}
