//! From what a store holds to a state.

use crate::{
    seal::{Kind, SealError, Sealer},
    store::{Recovered, StoreError},
};
use evergate_state::{Entry, SnapshotError, State};
use zeroize::Zeroize;

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No key can be made.
    #[error("sealing: {0}")]
    Seal(#[from] SealError),
    /// The snapshot cannot be opened.
    #[error("snapshot {index}: {source}")]
    Snapshot {
        /// The last entry in it.
        index: u64,
        /// Why.
        source: SealError,
    },
    /// The snapshot was opened, but cannot be understood.
    #[error("snapshot {index}: {source}")]
    SnapshotContent {
        /// The last entry in it.
        index: u64,
        /// Why.
        source: SnapshotError,
    },
    /// An entry cannot be opened.
    #[error("log entry {index}: {source}")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        source: SealError,
    },
    /// An entry was opened, but cannot be understood: another version of the program wrote it.
    #[error("log entry {0} cannot be understood; another version of the program wrote it")]
    EntryContent(u64),
    /// The system gives no thread.
    #[error("no thread for the log: {0}")]
    Thread(std::io::Error),
}

/// The state after the last entry.
pub(crate) fn replay(recovered: Recovered, sealer: &mut Sealer) -> Result<State, OpenError> {
    let mut state = match recovered.snapshot {
        Some((index, mut blob)) => {
            let plain = sealer
                .open(Kind::Snapshot, index, &mut blob)
                .map_err(|source| OpenError::Snapshot { index, source })?;
            let state = State::from_snapshot(plain);
            blob.zeroize();
            state.map_err(|source| OpenError::SnapshotContent { index, source })?
        }
        None => State::new(),
    };
    for (index, mut blob) in recovered.entries {
        let plain = sealer
            .open(Kind::Entry, index, &mut blob)
            .map_err(|source| OpenError::Entry { index, source })?;
        let entry = decode(plain);
        blob.zeroize();
        state.apply(&entry.ok_or(OpenError::EntryContent(index))?);
    }
    Ok(state)
}

/// What an entry in the log begins with.
pub(crate) const ENTRY_FORMAT: u8 = 1;

pub(crate) fn decode(plain: &[u8]) -> Option<Entry> {
    let (&format, rest) = plain.split_first()?;
    let (entry, rest) = postcard::take_from_bytes(rest).ok()?;
    (format == ENTRY_FORMAT && rest.is_empty()).then_some(entry)
}
