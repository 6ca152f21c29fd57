//! By what, and between which addresses, an IKE SA and its Child SAs send.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What carries the messages of an IKE SA and the packets of its Child SAs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Transport {
    /// IKE in UDP; ESP in UDP, or right on IP.
    #[default]
    Udp,
    /// Both in one TCP connection (RFC 9329), of which we are this end. It is not part of the state: who takes an SA over has none, and its
    /// originator makes another.
    Tcp(TcpEnd),
}

/// An end of a TCP connection. Rekeys do not change it (RFC 9329 §1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TcpEnd {
    /// It makes the connection, and makes it again when it breaks. Its port in the record is the one that it would like to have: it may get another.
    Originator,
    /// It waits for connections.
    Responder,
}

impl Transport {
    /// Whether it is TCP.
    pub fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

/// Where messages go, and what is known of NATs between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// By what.
    pub transport: Transport,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// A NAT is in front of us.
    pub nat_local: bool,
    /// A NAT is in front of the peer.
    pub nat_remote: bool,
}

impl Path {
    /// Whether ESP is encapsulated in UDP (RFC 7296 §2.23).
    pub fn encapsulated(&self) -> bool {
        self.transport == Transport::Udp && (self.nat_local || self.nat_remote)
    }

    /// Whether a mapping of a NAT in front of us has to be kept open by keepalives; those of TCP last longer (RFC 9329 §6.6).
    pub fn wants_keepalives(&self) -> bool {
        self.transport == Transport::Udp && self.nat_local
    }
}
