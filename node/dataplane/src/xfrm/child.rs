//! A Child SA: what it is to be, and what is known of it.

use super::{flows::Flows, half::Half, numbers::Numbers};
use crate::ChildSa;
use std::{
    net::SocketAddr,
    time::{Instant, SystemTime},
};

/// A Child SA.
pub(super) struct Child {
    pub(super) sa: ChildSa,
    pub(super) flows: Flows,
    pub(super) reqid: u32,
    pub(super) numbers: Numbers,
    pub(super) inbound: Half,
    pub(super) outbound: Half,
    /// The highest number received, as far as is known.
    pub(super) edge: u64,
    pub(super) last_inbound: Option<SystemTime>,
    /// And how much had been received then.
    pub(super) packets_then: u64,
    pub(super) last_outbound: Option<SystemTime>,
    /// And how much had been sent then.
    pub(super) sent_then: u64,
    /// Where the peer was seen, if elsewhere.
    pub(super) seen: Option<SocketAddr>,
    /// May send.
    pub(super) active: bool,
    /// Sends only if no other does, until then.
    pub(super) gives_way: Option<Instant>,
    /// Only receives any more, and only until then.
    pub(super) leaving: Option<Instant>,
    /// Has no states while its addresses are held.
    pub(super) held: bool,
    /// Sends nothing, because its states are being replaced.
    pub(super) closed: bool,
    /// It has asked for numbers, or is about to.
    pub(super) asks: bool,
}

impl Child {
    /// One of which the kernel has nothing yet.
    pub(super) fn new(sa: ChildSa, flows: Flows, reqid: u32, numbers: Numbers, edge: u64) -> Self {
        Self {
            reqid,
            flows,
            numbers,
            inbound: Half::default(),
            outbound: Half::default(),
            edge,
            last_inbound: None,
            packets_then: 0,
            last_outbound: None,
            sent_then: 0,
            seen: None,
            active: sa.outbound_active,
            gives_way: None,
            leaving: None,
            held: false,
            closed: false,
            asks: false,
            sa,
        }
    }
}
