//! The whole state as bytes.
//!
//! The bytes hold secrets in the clear: whoever stores or sends them seals them first, and wipes them afterwards.

use crate::{
    enrolment::Enrolments,
    level::Level,
    state::{Body, Second, State},
};

/// What every snapshot begins with.
const MAGIC: [u8; 4] = *b"EVGS";

/// The format of what all levels have. Others are refused: a member never guesses at state.
const VERSION: u16 = 10;

/// Why bytes are not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// They are something else.
    #[error("not a snapshot")]
    NotASnapshot,
    /// Another version of the program wrote them.
    #[error("snapshot format {0} is not known here, only {VERSION}")]
    UnknownVersion(u16),
    /// The cluster writes a later level of the format.
    #[error("the state is written in {0} of the replicated format, this program knows up to {latest}", latest = Level::LATEST)]
    UnknownLevel(Level),
    /// They are damaged.
    #[error("snapshot is damaged: {0}")]
    Damaged(&'static str),
}

impl State {
    /// The whole state. Equal states give equal bytes.
    ///
    /// # Panics
    /// Never: all that the state holds can be encoded.
    pub fn to_snapshot(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_be_bytes());
        let mut out = postcard::to_extend(&self.body, out).expect("plain values into memory");
        if self.level() >= Level(2) {
            out = postcard::to_extend(&self.second, out).expect("plain values into memory");
        }
        if self.level() >= Level::MEMBERS {
            out = postcard::to_extend(&self.enrolments, out).expect("plain values into memory");
        }
        out
    }

    /// The state that a snapshot holds.
    ///
    /// # Errors
    /// If the bytes are not a whole snapshot of the known format, or contradict themselves.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(SnapshotError::NotASnapshot)?;
        let (version, rest) = rest
            .split_first_chunk()
            .ok_or(SnapshotError::NotASnapshot)?;
        let version = u16::from_be_bytes(*version);
        if version != VERSION {
            return Err(SnapshotError::UnknownVersion(version));
        }
        let undecodable = |_| SnapshotError::Damaged("it cannot be decoded");
        let (mut body, mut rest) = postcard::take_from_bytes::<Body>(rest).map_err(undecodable)?;
        if body.level > Level::LATEST {
            return Err(SnapshotError::UnknownLevel(body.level));
        }
        let mut second = Second::default();
        if body.level >= Level(2) {
            (second, rest) = postcard::take_from_bytes(rest).map_err(undecodable)?;
        }
        let mut enrolments = Enrolments::default();
        if body.level >= Level::MEMBERS {
            (enrolments, rest) = postcard::take_from_bytes(rest).map_err(undecodable)?;
        }
        if !rest.is_empty() {
            return Err(SnapshotError::Damaged("bytes follow its end"));
        }
        body.leases.reindex();
        let mut state = Self {
            body,
            second,
            enrolments,
            ..Self::default()
        };
        state.reindex()?;
        Ok(state)
    }

    /// Makes anew what follows from the records.
    fn reindex(&mut self) -> Result<(), SnapshotError> {
        for record in self.body.sas.values() {
            self.peers.add(record);
            for used in crate::apply::spis_of(record) {
                let owner = self.spis.insert(used.spi, record.id);
                if owner.is_some_and(|o| o != record.id) {
                    return Err(SnapshotError::Damaged("two SAs have one SPI"));
                }
                if used.esn.is_some() && !self.body.reservations.contains_key(&used.spi) {
                    return Err(SnapshotError::Damaged("a Child SA has no reservation"));
                }
            }
        }
        Ok(())
    }
}
