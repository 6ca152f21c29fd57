//! Traffic selectors (RFC 7296 §3.13).

use crate::wire::{
    MAX_SELECTORS, ParseError, TrafficSelector,
    cursor::{Cursor, count_u8, with_length},
};
use std::net::IpAddr;

/// TS_IPV4_ADDR_RANGE.
const IPV4_RANGE: u8 = 7;
/// TS_IPV6_ADDR_RANGE.
const IPV6_RANGE: u8 = 8;
/// Length of a selector's type, protocol and length fields.
const HEAD_LEN: usize = 4;

fn invalid<T>(what: &'static str, offset: usize) -> Result<T, ParseError> {
    Err(ParseError::Invalid { what, offset })
}

/// Parses the body of a TS payload. Selectors of an unknown type are left out (RFC 7296 §2.9), so
/// the list may be empty; then nothing in it is acceptable.
pub(super) fn parse(c: &mut Cursor<'_>) -> Result<Vec<TrafficSelector>, ParseError> {
    let offset = c.offset();
    let count = usize::from(c.u8("number of traffic selectors")?);
    c.array::<3>("reserved field of Traffic Selector")?;
    if count == 0 {
        return invalid("number of traffic selectors", offset);
    }
    if count > MAX_SELECTORS {
        return Err(ParseError::TooMany {
            what: "traffic selectors",
        });
    }
    let mut selectors = Vec::new();
    for _ in 0..count {
        selectors.extend(parse_selector(c)?);
    }
    c.finish("data after the last traffic selector")?;
    Ok(selectors)
}

fn parse_selector(c: &mut Cursor<'_>) -> Result<Option<TrafficSelector>, ParseError> {
    const WHAT: &str = "traffic selector";
    let offset = c.offset();
    let truncated = |_| ParseError::Truncated { what: WHAT, offset };
    let kind = c.u8(WHAT).map_err(truncated)?;
    let protocol = c.u8(WHAT).map_err(truncated)?;
    let length = usize::from(c.u16(WHAT).map_err(truncated)?);
    let address_len = match kind {
        IPV4_RANGE => Some(4),
        IPV6_RANGE => Some(16),
        _ => None,
    };
    let fits = address_len.map_or(length >= HEAD_LEN, |a| length == HEAD_LEN + 4 + 2 * a);
    if !fits {
        return invalid("length of a traffic selector", offset + 2);
    }
    let mut body = c.sub(length - HEAD_LEN, WHAT).map_err(truncated)?;
    if address_len.is_none() {
        return Ok(None);
    }
    let (start_port, end_port) = (body.u16(WHAT)?, body.u16(WHAT)?);
    let (start, end) = (address(&mut body, kind)?, address(&mut body, kind)?);
    let opaque = start_port == u16::MAX && end_port == 0;
    if start_port > end_port && !opaque {
        return invalid("ports of a traffic selector", offset + HEAD_LEN);
    }
    if start > end {
        return invalid("addresses of a traffic selector", offset + HEAD_LEN + 4);
    }
    Ok(Some(TrafficSelector {
        protocol,
        start_port,
        end_port,
        start,
        end,
    }))
}

fn address(c: &mut Cursor<'_>, kind: u8) -> Result<IpAddr, ParseError> {
    const WHAT: &str = "address of a traffic selector";
    Ok(if kind == IPV4_RANGE {
        c.array::<4>(WHAT)?.into()
    } else {
        c.array::<16>(WHAT)?.into()
    })
}

/// Writes the body of a TS payload.
pub(super) fn emit(out: &mut Vec<u8>, selectors: &[TrafficSelector]) {
    out.extend_from_slice(&[count_u8(selectors.len()), 0, 0, 0]);
    for ts in selectors {
        let kind = if ts.start.is_ipv4() {
            IPV4_RANGE
        } else {
            IPV6_RANGE
        };
        with_length(out, &[kind, ts.protocol, 0, 0], 2, |out| {
            out.extend_from_slice(&ts.start_port.to_be_bytes());
            out.extend_from_slice(&ts.end_port.to_be_bytes());
            for address in [ts.start, ts.end] {
                match address {
                    IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
                    IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
                }
            }
        });
    }
}
