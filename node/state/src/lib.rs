//! The replicated state of a cluster: commands go in, in one order, and every member computes the same state.
//!
//! Pure: time comes with the entry, nothing is random, nothing does I/O. [`State::apply`] is the only way in, and
//! each command of an [`Entry`] is carried out whole or refused without any effect.

mod abilities;
mod apply;
mod carried;
mod command;
mod document;
mod enrolment;
mod generation;
mod intervals;
mod keys;
mod lease;
mod level;
mod limits;
mod ownership;
mod peers;
mod reservation;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use abilities::Abilities;
pub use carried::{Carried, CarriedTogether};
pub use command::*;
pub use enrolment::{Enrolment, Place, Stage};
pub use keys::{KeyId, MemberKeys};
pub use lease::{Lease, PENDING_LEASE};
pub use level::Level;
pub use limits::*;
pub use reservation::Reservation;
pub use snapshot::SnapshotError;
pub use state::{Gateway, Member, Owner, State};
