//! How much of everything a message may hold. Whoever can send a datagram can fill it, so each
//! list has a bound of its own, above what real peers send and far below what hurts.

/// Payloads in one chain. IKE_AUTH with a long certificate chain and its notifies has about 30.
pub const MAX_PAYLOADS: usize = 64;
/// Proposals in one SA payload. Peers that offer every suite apart have about 20.
pub const MAX_PROPOSALS: usize = 32;
/// Transforms in one proposal. strongSwan's longest default has about 35.
pub const MAX_TRANSFORMS: usize = 64;
/// Attributes of one transform. Only one type exists (RFC 7296 §3.3.5); the rest is room.
pub const MAX_TRANSFORM_ATTRIBUTES: usize = 8;
/// Traffic selectors in one TS payload; also what narrowing yields at most.
pub const MAX_SELECTORS: usize = 64;
/// Attributes in one CP payload. Split tunnelling lists a sub-network in each.
pub const MAX_CFG_ATTRIBUTES: usize = 64;
/// SPIs in one Delete payload: far more Child SAs than one IKE SA may have here.
pub const MAX_DELETE_SPIS: usize = 256;
/// Bytes of an identity, which is stored and logged: names are below 256, distinguished names
/// below 1,000 in practice.
pub const MAX_ID_LEN: usize = 2048;
/// Shortest nonce (RFC 7296 §3.9).
pub const MIN_NONCE_LEN: usize = 16;
/// Longest nonce (RFC 7296 §3.9).
pub const MAX_NONCE_LEN: usize = 256;
