//! What a batch of proposals is in the log, before it is sealed: a version, the time, and the commands.

use crate::{
    queue::Proposal,
    seal::{Kind, Place, SealError, Sealer},
};
use evergate_ike::env::UnixMillis;
use evergate_state::Entry;

/// What an entry begins with.
pub(crate) const FORMAT: u8 = 1;

/// An entry with these proposals, sealed.
pub(crate) fn seal(
    sealer: &mut Sealer,
    place: Place,
    at: UnixMillis,
    proposals: &[Proposal],
) -> Result<Vec<u8>, SealError> {
    let count = proposals.iter().map(|p| p.commands.len()).sum::<usize>();
    let head = postcard::to_stdvec(&(FORMAT, at, count)).expect("plain numbers into memory");
    sealer.seal(Kind::Entry, place, |out| {
        out.reserve(head.len() + proposals.iter().map(|p| p.encoded.len()).sum::<usize>() + 64);
        out.extend(&head);
        proposals.iter().for_each(|p| out.extend(p.encoded.iter()));
    })
}

/// What was sealed; `None` if another version of the program wrote it.
pub(crate) fn decode(plain: &[u8]) -> Option<Entry> {
    let (&format, rest) = plain.split_first()?;
    let (entry, rest) = postcard::take_from_bytes(rest).ok()?;
    (format == FORMAT && rest.is_empty()).then_some(entry)
}
