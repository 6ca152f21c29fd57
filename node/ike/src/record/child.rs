//! Child SAs: pairs of ESP SAs.

use crate::{crypto::EspSuite, env::UnixMillis, secret::Secret, wire::TrafficSelector};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A Child SA: a pair of ESP SAs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// Name in the configuration.
    pub name: String,
    /// Our SPI: of packets to us. Unique in the cluster.
    pub spi_in: u32,
    /// The peer's SPI: of packets to the peer.
    pub spi_out: u32,
    /// The suite.
    pub suite: EspSuite,
    /// Key and salt for packets to us.
    pub key_in: Secret,
    /// Key and salt for packets to the peer.
    pub key_out: Secret,
    /// How it carries packets.
    pub mode: Mode,
    /// Our side's traffic.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side's traffic.
    pub remote_ts: Vec<TrafficSelector>,
    /// When it was made.
    pub created: UnixMillis,
    /// When to rekey it, if ever.
    pub rekey_at: Option<UnixMillis>,
    /// When to delete it, if ever.
    pub expires_at: Option<UnixMillis>,
    /// Whether we initiated the exchange that made it.
    pub initiated: bool,
    /// The lower one of the two nonces that made it (RFC 7296 §2.8.1), if it was made to replace another: nothing else can have a rival.
    pub lowest_nonce: Vec<u8>,
    /// Our inbound SPI of the Child SA that it replaces, while that one exists.
    pub replaces: Option<u32>,
    /// How far it is.
    pub fate: Fate,
}

/// How a Child SA carries packets (RFC 4303 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Whole, with an IP header of their own.
    Tunnel,
    /// Without their IP header. The selectors of either side have one address, that of the end as we have it.
    Transport(Seen),
}

/// The addresses of both ends as the peer has them, which are others behind a NAT (RFC 7296 §2.23.1). Checksums of the peer are made with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Ours.
    pub local: IpAddr,
    /// The peer's own.
    pub remote: IpAddr,
}

/// How far a Child SA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Receives; does not send yet, because the peer, who made it to replace another, has not deleted that yet (RFC 7296 §2.8).
    Standby,
    /// Sends and receives.
    Live,
    /// Was replaced: receives, no longer sends, will be deleted.
    Replaced,
}
