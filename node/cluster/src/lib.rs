//! The durable log and the commit pipeline of a member.
//!
//! [`Replica`] is all that a server sees: it proposes commands, is told what became of them once they are durable and
//! applied, and reads the state. Behind it stand a [`store::Store`] (log and snapshots of this member) and the sealing of all
//! that leaves memory ([`seal`]).

pub mod failpoint;
mod key;
pub mod lease;
mod pipeline;
pub mod pki;
pub mod placement;
mod queue;
pub mod raft;
mod recovery;
mod replica;
pub mod seal;
pub mod store;
#[cfg(test)]
mod tests;

pub use key::{ClusterKey, KeyError};
pub use queue::ProposeError;
pub use recovery::OpenError;
pub use replica::{Config, Replica, Stats};
