//! Raft: the members agree on one log, and each applies it.
//!
//! - `log`: the log of a member, in memory and in its store. `writer` writes it, `meta` says how numbers are stored.
//! - `machine`: applies the log to the state; snapshots.
//! - `window`, `proposer`: the proposals of this process, until they are applied here.
//! - `transport`: how members talk. `acks`: who has answered. `liveness`: what makes elections short.
//! - `admission`: who may join, and `token` with what. `steward`: the leader brings members in and lets them go. `roster`: who may talk to this one.
//! - `founding`: how a later generation of a cluster begins. `succession`: what becomes of members of a former one.
//! - `member`: from the start of a member to its end. `cluster`: what others see of all this.
//!
//! A proposal is done when it is applied *here*, whoever leads. It goes to the leader as part of a sealed, numbered batch, and again
//! after each change of the leader, until it is seen applied; a batch that comes twice or too early is ignored by all members alike.
//!
//! A member that is alone is a cluster with one voter: it listens to nobody, needs no credentials, elects itself at once, and commits
//! what is durable on its own disk.

mod acks;
mod admission;
mod cluster;
mod config;
mod forming;
mod founding;
mod liveness;
mod log;
mod machine;
mod member;
mod meta;
mod proposer;
mod roster;
mod sealed;
mod steward;
mod succession;
mod token;
mod transport;
mod types;
mod window;
mod writer;

pub use cluster::{Cluster, ClusterError, Leader, MemberStatus};
pub use config::{Entrance, JoinError, LinkSource, RaftConfig, Timing};
pub use founding::{Estate, Heir};
pub use steward::MAX_VOTERS;
pub use token::{JoinToken, TokenError};
pub use transport::{
    BoxStream, Credentials, ForwardHandler, LeaseHandler, Links, RelayHandler, StepDownHandler,
    Stream, TlsError,
};
pub use types::{Node, NodeId};

pub(crate) use member::{Life, start};
pub(crate) use sealed::Sealed;
#[cfg(test)]
pub(crate) use {types::Entry, window::WIDTH};

#[cfg(test)]
mod tests;
