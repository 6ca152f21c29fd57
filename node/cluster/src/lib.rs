//! The durable log of a member, and how members agree on it.
//!
//! [`Replica`] is all that a server sees: it proposes commands, is told what became of them once they are durable and
//! applied, and reads the state. Behind it stand [`raft`] (also for a member that is alone), a [`store`] (log and snapshots of this
//! member) and the sealing of all that leaves memory ([`seal`]).

mod backup;
mod entry;
pub mod failpoint;
mod generation;
mod key;
mod keyring;
mod latency;
pub mod lease;
mod level;
pub mod pki;
pub mod placement;
mod plant;
mod queue;
pub mod raft;
mod replica;
pub mod seal;
pub mod store;
#[cfg(test)]
mod tests;

pub use backup::{Backup, BackupError};
pub use generation::{Generation, NoGeneration};
pub use key::{ClusterKey, KeyError};
pub use keyring::{KeyRing, RingError};
pub use latency::Latencies;
pub use plant::Plant;
pub use queue::ProposeError;
pub use replica::{Config, Replica, Stats};
