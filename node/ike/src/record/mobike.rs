//! What MOBIKE (RFC 4555) adds to an established IKE SA.

use super::Path;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Addresses of an IKE SA whose ends both support MOBIKE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mobike {
    /// Whether we began the first IKE SA of this series: then we decide which addresses are used (RFC 4555 §1.3). A rekey does not change it.
    pub initiator: bool,
    /// The peer's addresses besides the one in use, as it last said.
    pub peer_addresses: Vec<IpAddr>,
    /// Ours besides the one in use, as the peer was last told. `None` if that has to be done anew.
    pub told: Option<Vec<IpAddr>>,
    /// The Child SAs go on using this path until the peer has answered from its new address (RFC 4555 §3.7).
    pub children_path: Option<Path>,
    /// The peer has to be told which addresses are used now (RFC 4555 §3.5).
    pub pending_update: bool,
    /// NAT_DETECTION_DESTINATION_IP of the peer's last response to an update: where it sees us (RFC 4555 §3.8).
    pub seen_as: Option<Vec<u8>>,
    /// The Message ID of the peer's newest request that said something of addresses: with a window, older ones may come after it (RFC 4555 §3.5).
    pub newest: Option<u32>,
}

impl Mobike {
    /// The same in an IKE SA with other SPIs, which what the peer said of NATs depends on, and other Message IDs.
    pub(crate) fn with_new_spis(mut self) -> Self {
        self.seen_as = None;
        self.newest = None;
        self
    }
}

/// A request of ours about addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MobikeRequest {
    /// What for.
    pub purpose: MobikePurpose,
    /// Our address and the peer's when it was first sent: an answer says something of these only.
    pub sent: (SocketAddr, SocketAddr),
    /// COOKIE2, which the peer returns if it sees the request.
    pub cookie: Option<Vec<u8>>,
    /// The other addresses that it tells of.
    pub told: Option<Vec<IpAddr>>,
}

/// What a request about addresses is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MobikePurpose {
    /// Says which addresses are used from now on (RFC 4555 §3.5).
    Update,
    /// Asks whether the peer receives at its new address (RFC 4555 §3.7).
    Check,
    /// Says which other addresses we have (RFC 4555 §3.6).
    Announce,
    /// Asks from where the peer sees us (RFC 4555 §3.8).
    NatProbe,
}
