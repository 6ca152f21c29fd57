//! IKE SAs that both ends have authenticated.

use super::{Child, FollowUp, Mobike, Record, SaId};
use crate::{
    crypto::{IkeKeys, IkeSuite},
    env::UnixMillis,
    identity::Identity,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// An IKE SA that both ends have authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Established {
    /// The suite.
    pub suite: IkeSuite,
    /// The keys.
    pub keys: IkeKeys,
    /// What we called ourselves.
    pub local_id: Identity,
    /// What the peer called itself.
    pub remote_id: Identity,
    /// The peer said, when it authenticated, that it has no other IKE SA with us (RFC 7296 §2.4).
    pub initial_contact: bool,
    /// When both ends were authenticated; an IKE rekey does not change it.
    pub authenticated: UnixMillis,
    /// Whether we began the first IKE SA of this series: then authenticating again is ours to begin (RFC 4478 §2). A rekey does not change it.
    pub initiated: bool,
    /// When to authenticate again, if ever and if that is ours to begin; else, once the peer was asked to, when it may be asked again.
    pub reauth_at: Option<UnixMillis>,
    /// The IKE SA of ours that is to take the place of this one once it is authenticated ([`Record::succeeds`] is its side of it).
    pub successor: Option<SaId>,
    /// When to rekey it, if ever.
    pub rekey_at: Option<UnixMillis>,
    /// When to delete it, if ever.
    pub expires_at: Option<UnixMillis>,
    /// Virtual addresses that the peer has from our pools.
    pub peer_vips: Vec<IpAddr>,
    /// Virtual addresses and DNS servers that we have from the peer.
    pub our_vips: Vec<IpAddr>,
    /// Whether both ends support Message ID synchronisation (RFC 6311).
    pub message_id_sync: bool,
    /// Our synchronisation request that is not answered yet.
    pub sync_request: Option<Box<SyncRequest>>,
    /// The last synchronisation request of the peer, a cluster, and our answer.
    pub sync_answer: Option<Box<SyncAnswer>>,
    /// Addresses that may change, if both ends support MOBIKE (RFC 4555).
    pub mobike: Option<Box<Mobike>>,
    /// Its Child SAs.
    pub children: Vec<Child>,
    /// Each CREATE_CHILD_SA of the peer that waits for IKE_FOLLOWUP_KE: the newest, and no more than the peer may have requests under way.
    pub follow_ups: Vec<FollowUp>,
    /// The IKE SA that the peer made by a rekey while one of our own was under way (RFC 7296 §2.8.2): it waits here, complete, until it is
    /// clear which of the two remains.
    pub rival: Option<Box<Rival>>,
    /// The IKE SA that replaced this one. Only deletion is left to do then.
    pub replaced_by: Option<SaId>,
}

/// A Message ID synchronisation that we asked for (RFC 6311 §5.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    /// Its nonce, which the answer returns.
    pub nonce: [u8; 4],
    /// The Message ID that it announced; the next one must announce a higher one.
    pub send: u32,
    /// The whole message.
    pub datagram: Vec<u8>,
}

/// A Message ID synchronisation that the peer asked for, and our answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncAnswer {
    /// Its nonce.
    pub nonce: [u8; 4],
    /// The Message ID that it announced.
    pub send: u32,
    /// Our answer, whole.
    pub datagram: Vec<u8>,
}

/// See [`Established::rival`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// The peer's new IKE SA, without Child SAs.
    pub record: Record,
    /// The lower one of its two nonces.
    pub lowest_nonce: Vec<u8>,
}

impl Established {
    /// Whether a new authentication is under way: one of ours, or one that the peer was asked for a short while ago.
    pub fn reauthenticates(&self, now: UnixMillis) -> bool {
        let asked = !self.initiated && self.reauth_at.is_some_and(|at| at > now);
        asked || self.successor.is_some()
    }
}
