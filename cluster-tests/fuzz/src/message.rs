//! Any datagram on the IKE ports: the message parser, and what is answered before there is an SA.

use crate::{allocations::within, sa::Pair};
use evergate_ike::wire::{Header, Message, Payload, emit};

/// A message costs so many times its length: a payload of four bytes becomes a `Payload`, and a vector may have twice the room
/// that it needs, and once more while it grows.
const EXPANSION: usize = 128;

/// Errors and empty messages cost something, too.
const BASE: usize = 512;

/// Parses a datagram, and answers it as one that belongs to no SA.
///
/// # Panics
/// If emitting is not the inverse of parsing, or parsing takes more memory than the datagram justifies.
pub fn message(input: &[u8]) {
    let _ = Header::parse(input);
    let parsed = within(BASE + EXPANSION * input.len(), || Message::parse(input));
    if let Ok(message) = parsed {
        inverse(&message, input);
    }
    let _ = evergate_ike::sa::answer_stray(input);
    let mut pair = Pair::stranger();
    for demand_cookie in [true, false] {
        pair.first_message(input, demand_cookie);
    }
}

fn inverse(message: &Message<'_>, input: &[u8]) {
    if let Some(protected) = message.protected {
        let whole = [protected.associated, protected.body].concat();
        assert_eq!(whole, input, "the parts are not the whole");
    } else if !lossy(&message.payloads) {
        let again = emit(&message.header, &message.payloads);
        assert!(again.len() <= input.len(), "longer than it came");
        assert_eq!(Message::parse(&again).as_ref(), Ok(message));
    }
}

/// Whether something was left out by the parser, as RFC 7296 wants it, so that emitting cannot bring it back: transforms with attributes that
/// we do not know (§3.3.6), and traffic selectors of types that we do not know (§3.13).
pub(crate) fn lossy(payloads: &[Payload]) -> bool {
    payloads.iter().any(|payload| match payload {
        Payload::Sa(list) => list
            .iter()
            .flat_map(|proposal| &proposal.transforms)
            .any(|transform| transform.unknown_attribute),
        Payload::TsI(list) | Payload::TsR(list) => list.is_empty(),
        _ => false,
    })
}
