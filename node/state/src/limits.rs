//! Limits of the replicated state: nothing in it grows without one.

/// IKE SAs, tombstones and half-open ones included: ten times what one cluster is meant to serve, and about 4 GB of records.
pub const MAX_SAS: usize = 1_000_000;

/// Members: far more than a quorum is good for; members that are gone for good are removed.
pub const MAX_MEMBERS: usize = 256;

/// Former processes of a member that are remembered. A registration that is late by more restarts than that is not recognised.
pub const MAX_FORMER_INCARNATIONS: usize = 8;

/// The last epoch of a virtual gateway: the IVs of IKE messages have 24 bits for it.
pub const MAX_EPOCH: u32 = (1 << 24) - 1;

/// Virtual gateways: a few per member suffice, and each takeover walks over all of them.
pub const MAX_GATEWAYS: usize = 4096;

/// Child SAs of one IKE SA: far above what any peer needs; keeps one record from becoming an entry that is too big for the log.
pub const MAX_CHILDREN: usize = 4096;

/// Virtual addresses of one peer: RFC 7296 knows no more than a few per family.
pub const MAX_VIPS: usize = 16;

/// Leases that no record holds yet: as many peers may be between IKE_AUTH and its commit at once.
pub const MAX_PENDING_LEASES: usize = 65_536;

/// Identities whose former address is remembered; the one that was longest without a lease is forgotten first.
pub const MAX_FORMER: usize = 65_536;

/// Length in bytes of an identity whose former address is remembered: bounds what [`MAX_FORMER`] may cost.
pub const MAX_FORMER_IDENTITY: usize = 512;

/// Pending leases that one entry frees at most, so that no entry is slow after a long silence.
pub const MAX_EXPIRED_PER_ENTRY: usize = 1024;

/// Sequence numbers that one extension adds at most: seconds at the highest rate, so that what a takeover skips stays far below the
/// 2^32 that an ESN receiver can bridge (RFC 4303 appendix A2).
pub const MAX_EXTENSION: u64 = 1 << 26;

/// Cluster keys that a member has at a time: one, and during a rotation the one before.
pub const MAX_KEYS: usize = 4;

/// Tokens with which members may join: a cluster grows by a few.
pub const MAX_INVITATIONS: usize = 16;

/// Nodes that are remembered as removed, so that they are told when they come back.
pub const MAX_DISMISSED: usize = 64;

/// Length in bytes of the name, address or zone of a member: names of hosts have at most 255.
pub const MAX_NAME: usize = 320;

/// The greatest weight of a member: shares finer than that are none.
pub const MAX_WEIGHT: u32 = 10_000;
