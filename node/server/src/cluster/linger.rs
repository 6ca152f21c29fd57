//! A gateway that was handed over, as long as packets for it still come here.
//!
//! Neighbours learn by an announcement where its addresses are now, and until the last one has, packets come to the former owner. So
//! that keeps the addresses for a while, which the dead-man switch has silenced, and relays what it receives.

use super::relay::Relay;
use crate::{children, shared::Shared};
use evergate_dataplane::Hold;
use evergate_ike::record::{Phase, Record};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, block_in_place};
use tokio_util::sync::CancellationToken;

/// So long packets are relayed: the first four announcements of the successor are over by then, and what was under way has come.
const LINGER: Duration = Duration::from_secs(1);

/// What is held back for a gateway, and for which of its outer addresses.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) hold: Arc<Hold>,
    addresses: Vec<IpAddr>,
}

impl Held {
    /// Nothing is held back yet.
    pub(super) fn new(shared: &Shared) -> Self {
        let policy = shared.policy.load();
        let gateways = policy.gateways.iter().filter(|g| g.id == shared.gateway);
        let outer = gateways.flat_map(|g| g.outer.iter().map(ipnet::IpNet::addr));
        Self {
            hold: shared.plane.queue(),
            addresses: outer.collect(),
        }
    }

    /// IKE messages that the plane has received already wait from now on.
    pub(super) fn ike(&self, shared: &Shared) {
        shared
            .handovers
            .hold(shared.gateway, shared.epoch, &self.hold);
    }

    /// All packets wait from now on, and none is being worked on when this returns.
    pub(super) fn packets(&self, shared: &Shared) {
        block_in_place(|| shared.plane.hold(&self.addresses, &self.hold));
    }

    /// The gateway is served: what waits goes through.
    pub(super) fn resume(&self, shared: &Shared) {
        block_in_place(|| {
            let resume = |hold: &Arc<Hold>| shared.plane.resume(&self.addresses, hold);
            shared.handovers.open(shared.gateway, shared.epoch, resume);
        });
    }

    /// Nothing is held back any more.
    fn end(&self, shared: &Shared) {
        block_in_place(|| shared.plane.unhold(&self.addresses, &self.hold));
        shared.handovers.end(shared.gateway, shared.epoch);
    }

    /// The gateway is lost: what waits is dropped.
    pub(super) fn give_up(&self, shared: &Shared) {
        self.end(shared);
        self.hold.close();
    }
}

/// A gateway that was handed over.
pub(super) struct Linger {
    shared: Arc<Shared>,
    held: Held,
    /// Its SAs at the end: the plane still has their Child SAs, so that it knows whose packets are.
    records: Vec<Arc<Record>>,
    /// When it ends.
    pub(super) until: Instant,
    stop: CancellationToken,
    relay: JoinHandle<()>,
}

impl Linger {
    /// Begins to relay what is held back.
    pub(super) fn start(
        shared: Arc<Shared>,
        held: Held,
        records: Vec<Arc<Record>>,
        relay: Relay,
    ) -> Self {
        let stop = CancellationToken::new();
        let relay = relay.run(
            Arc::clone(&shared.plane),
            Arc::clone(&held.hold),
            stop.clone(),
        );
        Self {
            records,
            shared,
            held,
            until: Instant::now() + LINGER,
            stop,
            relay: tokio::spawn(relay),
        }
    }

    /// The gateway comes back: what waits is for this process itself.
    pub(super) fn turn_back(self, held: &Held) {
        for packet in self.held.hold.take(usize::MAX) {
            held.hold.push(packet);
        }
        drop(self.end());
    }

    /// Ends it. What this yields is over when the successor has all that came.
    pub(super) fn end(self) -> JoinHandle<()> {
        self.held.end(&self.shared);
        self.stop.cancel();
        remove_children(&self.shared, &self.records);
        self.relay
    }
}

/// The SAs of a gateway.
pub(super) fn records(shared: &Shared) -> Vec<Arc<Record>> {
    shared.read(|state| {
        let own = state.sas().filter(|r| r.gateway == shared.gateway);
        own.cloned().collect()
    })
}

/// Takes the Child SAs of a gateway out of the data plane.
pub(super) fn remove_children(shared: &Shared, records: &[Arc<Record>]) {
    for record in records {
        shared.plane.disclaim(record.id.0);
        for child in record.children() {
            let _ = children::remove(shared, child.spi_in, Duration::ZERO);
        }
        if let Phase::Established(established) = &record.phase {
            for address in &established.our_vips {
                let _ = shared.plane.release_address(*address);
            }
        }
    }
}
