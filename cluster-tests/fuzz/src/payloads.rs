//! What a peer with the keys can say: payloads that are authentic and mean anything, to SAs in every state.

use crate::{
    allocations::within,
    message::lossy,
    sa::{Pair, States},
};
use arbitrary::Unstructured;
use evergate_ike::wire::{PayloadType, emit_chain, parse_chain};

/// See [`crate::message`].
const EXPANSION: usize = 128;
const BASE: usize = 512;

/// The first bytes choose the SA, exchange and Message ID; the rest is what the message protects.
///
/// # Panics
/// If the SA does what it never should.
pub fn payloads(input: &[u8]) {
    let mut choice = Unstructured::new(input);
    let (Ok(state), Ok(exchange), Ok(id), Ok(first)) = (
        choice.arbitrary::<u8>(),
        choice.arbitrary::<u8>(),
        choice.arbitrary::<u8>(),
        choice.arbitrary::<u8>(),
    ) else {
        return;
    };
    let content = choice.take_rest();
    let parsed = within(BASE + EXPANSION * content.len(), || {
        parse_chain(PayloadType(first), content)
    });
    if let Ok(payloads) = parsed
        && !lossy(&payloads)
    {
        let (first, bytes) = emit_chain(&payloads);
        assert_eq!(parse_chain(first, &bytes), Ok(payloads));
    }
    States::with(state, |pair: &mut Pair, to_b| {
        pair.say(to_b, exchange, id, PayloadType(first), content);
        pair.settle();
        pair.check();
    });
}
