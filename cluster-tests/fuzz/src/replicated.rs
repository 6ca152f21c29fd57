//! What comes from the log, from a snapshot or from another member: after it was opened, so nobody without the cluster's key can say it, but
//! it may be of another version, or damaged.

use evergate_ike::record::Record;
use evergate_state::{Entry, State};

/// Reads bytes as a snapshot, as an entry of the log, and as a record.
///
/// # Panics
/// If what was read is not what is written, or applying is not deterministic.
pub fn replicated(input: &[u8]) {
    if let Ok((record, _)) = postcard::take_from_bytes::<Record>(input) {
        let bytes = postcard::to_stdvec(&record).expect("plain values");
        assert_eq!(postcard::from_bytes(&bytes), Ok(record));
    }
    let mut state = State::new();
    if let Ok(read) = State::from_snapshot(input) {
        let bytes = read.to_snapshot();
        let again = State::from_snapshot(&bytes).expect("we read what we write");
        assert_eq!(again.to_snapshot(), bytes);
        state = read;
    }
    let Ok((entry, _)) = postcard::take_from_bytes::<Entry>(input) else {
        return;
    };
    let mut other = State::from_snapshot(&state.to_snapshot()).expect("we read what we write");
    assert_eq!(state.apply(&entry), other.apply(&entry), "other outcomes");
    assert_eq!(state.to_snapshot(), other.to_snapshot(), "other states");
}
