//! How a replica of a cluster is set up.

use super::{
    token::JoinToken,
    transport::{Credentials, Links},
};
use crate::{
    Config,
    raft::types::Node,
    seal::SealError,
    store::{Storage, StoreError},
};
use evergate_state::SnapshotError;
use std::{io, sync::Arc, time::Duration};

/// How a member of a cluster works.
#[derive(Debug)]
pub struct RaftConfig {
    /// What a replica needs in any case. The key must be the same on all members.
    pub replica: Config,
    /// Where the log and the snapshots are.
    pub storage: Storage,
    /// This member's name. It must be among the members, and in the certificate.
    pub name: String,
    /// Where connections with other members come from; `None` on a member that is alone.
    pub links: Option<LinkSource>,
    /// The members that form the cluster, in the same order and with the same addresses on each of them. A member whose log is empty
    /// waits until it has asked all others: if none is part of a cluster yet they form one, else it joins theirs. Who is a member is Raft's to know
    /// from then on.
    pub members: Vec<Node>,
    /// How a member whose log is empty comes into a cluster that it has not been part of.
    pub entrance: Option<Entrance>,
    /// What members prove themselves with; `None` on a member that is alone.
    pub credentials: Option<Credentials>,
    /// The pace.
    pub timing: Timing,
}

/// How a member comes into a cluster.
#[derive(Debug)]
pub struct Entrance {
    /// Members to ask, `host:port`.
    pub addresses: Vec<String>,
    /// What it may join with. Without one it must have been a member, and have lost what it had.
    pub token: Option<JoinToken>,
}

/// Where connections with other members come from.
#[derive(Debug)]
pub enum LinkSource {
    /// TCP; other members are listened for here.
    Tcp(std::net::TcpListener),
    /// Something else.
    Other(Arc<dyn Links>),
}

/// The pace of elections. A leader that died is missed after `election_max` plus a random time between the other two, and replaced
/// a few round trips and disk writes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The leader tells the others this often that it is there; whoever does not answer as fast is not counted.
    pub heartbeat: Duration,
    /// The shortest time after which a member stands for election.
    pub election_min: Duration,
    /// The longest; also how long a member believes in a leader that it does not hear.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(20),
            election_min: Duration::from_millis(60),
            election_max: Duration::from_millis(100),
        }
    }
}

/// Why a member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its log or its snapshots.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No key can be made.
    #[error("sealing: {0}")]
    Seal(#[from] SealError),
    /// The snapshot cannot be opened.
    #[error("snapshot {number}: {source}")]
    Snapshot {
        /// How many entries are in it.
        number: u64,
        /// Why.
        source: SealError,
    },
    /// The snapshot was opened, but cannot be understood.
    #[error("snapshot {number}: {source}")]
    SnapshotContent {
        /// How many entries are in it.
        number: u64,
        /// Why.
        source: SnapshotError,
    },
    /// The log cannot be applied, or no longer be written.
    #[error("{0}")]
    Log(Arc<str>),
    /// Its credentials.
    #[error(transparent)]
    Tls(#[from] super::TlsError),
    /// Its configuration contradicts itself, or what is stored.
    #[error("cluster configuration: {0}")]
    Config(String),
    /// The cluster does not let it in.
    #[error("the cluster refuses this member: {0}")]
    Refused(String),
    /// There is a later generation of the cluster, and what this member has is of a former one.
    #[error(
        "generation {later} of this cluster has begun, and this member is of generation {own}: what it has is out of date, and it serves nothing with it. To take \
         part again it needs a token (`evergate ctl member add`) and an empty state_dir; if `evergate recover` did not come to its end here, run that again"
    )]
    Superseded {
        /// The number of its own.
        own: u64,
        /// The number of the later one.
        later: u64,
    },
    /// The system refuses something.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    /// Raft does not start.
    #[error("raft: {0}")]
    Raft(String),
}

impl RaftConfig {
    /// A member that is alone.
    pub fn single(replica: Config, storage: Storage, name: &str) -> Self {
        Self {
            replica,
            storage,
            name: name.to_owned(),
            links: None,
            members: vec![Node {
                name: name.to_owned(),
                address: String::new(),
            }],
            entrance: None,
            credentials: None,
            // Nobody listens to its heartbeats, and it elects itself at once: nothing waits for this.
            timing: Timing {
                heartbeat: Duration::from_millis(100),
                election_min: Duration::from_millis(300),
                election_max: Duration::from_millis(600),
            },
        }
    }

    /// Whether it forms a cluster without asking anybody, which others may join later.
    pub(super) fn founds_alone(&self) -> bool {
        self.credentials.is_some() && self.members.len() == 1 && self.entrance.is_none()
    }

    pub(super) fn check(&self) -> Result<(), JoinError> {
        let wrong = |what: String| Err(JoinError::Config(what));
        let own = self.members.iter().filter(|n| n.name == self.name).count();
        if let Some(entrance) = &self.entrance {
            if self.links.is_none() || self.credentials.is_none() {
                return wrong("to join a cluster needs links and credentials".into());
            }
            if entrance.addresses.is_empty() {
                return wrong("to join a cluster needs the address of a member".into());
            }
        } else if own != 1 {
            return wrong(format!("{:?} must be among the members once", self.name));
        }
        let mut names: Vec<_> = self.members.iter().map(|n| &n.name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("two members have one name".into());
        }
        if self.members.len() > 1 && (self.links.is_none() || self.credentials.is_none()) {
            return wrong("several members need links and credentials".into());
        }
        Ok(())
    }

    pub(super) fn raft(&self) -> Result<openraft::Config, JoinError> {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let entries = self.replica.snapshot_entries.max(1);
        openraft::Config {
            cluster_name: "evergate".into(),
            heartbeat_interval: millis(self.timing.heartbeat),
            election_timeout_min: millis(self.timing.election_min),
            election_timeout_max: millis(self.timing.election_max),
            enable_pre_vote: Some(true),
            install_snapshot_timeout: 60_000,
            max_payload_entries: 1024,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(entries),
            // For members that lag a little.
            max_in_snapshot_log_to_keep: if self.credentials.is_some() {
                entries.min(1000)
            } else {
                0
            },
            replication_lag_threshold: entries.saturating_mul(2),
            // The log is read from memory and written by one thread: a few big writes are enough.
            max_append_entries: Some(1024),
            broadcast_submitted_on_append: Some(true),
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|e| JoinError::Config(e.to_string()))
    }
}
