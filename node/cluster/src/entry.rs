//! What a batch of proposals is in the log, before it is sealed: a version, the time, and the commands.

use crate::{
    queue::Proposal,
    seal::{Kind, Place, SealError, Sealer},
};
use evergate_ike::env::UnixMillis;
use evergate_state::{Entry, Level};

/// What an entry begins with.
pub(crate) const FORMAT: u8 = 2;

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

/// What was sealed; `None` if another version of the program wrote it, or it holds what is not known at a level of the format.
pub(crate) fn decode(plain: &[u8], known: Level) -> Option<Entry> {
    let (&format, rest) = plain.split_first()?;
    let (entry, rest): (Entry, _) = postcard::take_from_bytes(rest).ok()?;
    let all_known = entry.commands.iter().all(|c| c.level() <= known);
    (format == FORMAT && rest.is_empty() && all_known).then_some(entry)
}
