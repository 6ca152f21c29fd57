//! What is held back for virtual gateways that come or go.

use evergate_dataplane::{Datagram, DatagramKind, Hold, Packet, Transport};
use evergate_ike::record::GatewayId;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// The gateways of this process, from the moment that it gets them until nothing more comes for them.
#[derive(Debug, Default)]
pub(crate) struct Handovers {
    entries: Mutex<BTreeMap<GatewayId, Entry>>,
    changed: watch::Sender<()>,
}

/// A gateway in an epoch of this process.
#[derive(Debug)]
struct Entry {
    epoch: u32,
    /// Where packets wait: before it is served, and after.
    hold: Option<Arc<Hold>>,
}

/// What became of relayed packets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Relayed {
    /// They go through, or wait until they may.
    Taken,
    /// This process does not know yet that it has the gateway in that epoch.
    Early(Vec<Packet>),
    /// It had it, or never will: it has a later one.
    Late(Vec<Packet>),
}

impl Handovers {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<GatewayId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, packets for a gateway wait here.
    pub(crate) fn hold(&self, gateway: GatewayId, epoch: u32, hold: &Arc<Hold>) {
        let hold = Some(Arc::clone(hold));
        self.entries().insert(gateway, Entry { epoch, hold });
        self.changed.send_replace(());
    }

    /// The gateway is served: what waits goes through, by `resume`, before what comes later.
    pub(crate) fn open(&self, gateway: GatewayId, epoch: u32, resume: impl FnOnce(&Arc<Hold>)) {
        let mut entries = self.entries();
        let entry = entries.get_mut(&gateway).filter(|e| e.epoch == epoch);
        if let Some(hold) = entry.and_then(|e| e.hold.take()) {
            resume(&hold);
        }
    }

    /// Nothing more comes for the gateway in this epoch, or nobody cares.
    pub(crate) fn end(&self, gateway: GatewayId, epoch: u32) {
        let mut entries = self.entries();
        if entries.get(&gateway).is_some_and(|e| e.epoch == epoch) {
            entries.remove(&gateway);
        }
    }

    /// Holds an IKE message back. Yields it if the gateway is served, or is none of ours.
    pub(crate) fn hold_back(
        &self,
        gateway: GatewayId,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let entries = self.entries();
        let Some(hold) = entries.get(&gateway).and_then(|e| e.hold.as_ref()) else {
            return Some(bytes);
        };
        hold.push(Packet::Outer(Datagram {
            kind: match transport {
                Transport::Udp => DatagramKind::Ike,
                Transport::Tcp(end) => DatagramKind::IkeInTcp(end),
            },
            local,
            remote,
            traffic_class: 0,
            bytes,
        }));
        None
    }

    /// Whether this process has a gateway in a later epoch than this.
    pub(crate) fn is_past(&self, gateway: GatewayId, epoch: u32) -> bool {
        self.entries()
            .get(&gateway)
            .is_some_and(|e| e.epoch > epoch)
    }

    /// Takes packets that another member held back for this process, which has the gateway in that epoch. If it is served they go through, by `feed`.
    pub(crate) fn relayed(
        &self,
        gateway: GatewayId,
        epoch: u32,
        packets: Vec<Packet>,
        feed: impl FnOnce(Vec<Packet>),
    ) -> Relayed {
        let entries = self.entries();
        match entries.get(&gateway) {
            Some(entry) if entry.epoch > epoch => Relayed::Late(packets),
            Some(Entry { epoch: own, hold }) if *own == epoch => {
                match hold {
                    Some(hold) => packets.into_iter().for_each(|p| hold.push(p)),
                    None => feed(packets),
                }
                Relayed::Taken
            }
            _ => Relayed::Early(packets),
        }
    }

    /// Is told when this process gets a gateway.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GatewayId = GatewayId(7);

    fn packet() -> Vec<Packet> {
        vec![Packet::Clear(vec![1])]
    }

    fn never(_: Vec<Packet>) {
        panic!("nothing may go through")
    }

    #[test]
    fn relayed_packets_wait_until_the_gateway_is_served_in_their_epoch() {
        let all = Handovers::default();
        let early = || Relayed::Early(packet());
        assert_eq!(all.relayed(G, 5, packet(), never), early());
        let hold = Arc::<Hold>::default();
        all.hold(G, 5, &hold);
        assert_eq!(all.relayed(G, 6, packet(), never), early());
        assert_eq!(
            all.relayed(G, 4, packet(), never),
            Relayed::Late(packet()),
            "of an epoch that is over"
        );
        assert_eq!(all.relayed(G, 5, packet(), never), Relayed::Taken);
        all.open(G, 4, |_| panic!("another epoch"));
        let mut waited = Vec::new();
        all.open(G, 5, |hold| waited = hold.take(usize::MAX));
        assert_eq!(waited, packet());
        let mut fed = Vec::new();
        let relayed = all.relayed(G, 5, packet(), |packets| fed = packets);
        assert_eq!((relayed, fed), (Relayed::Taken, packet()));
        all.end(G, 4);
        assert!(all.is_past(G, 4) && !all.is_past(G, 5));
        all.end(G, 5);
        assert_eq!(all.relayed(G, 5, packet(), never), early());
    }

    #[test]
    fn ike_waits_only_while_a_gateway_comes_or_goes() {
        let all = Handovers::default();
        let (local, remote) = (
            "192.0.2.2:500".parse().unwrap(),
            "192.0.2.1:500".parse().unwrap(),
        );
        let message = |n| all.hold_back(G, local, remote, Transport::Udp, vec![n]);
        assert_eq!(message(1), Some(vec![1]));
        let hold = Arc::<Hold>::default();
        all.hold(G, 5, &hold);
        assert_eq!(message(2), None);
        all.open(G, 5, |_| {});
        assert_eq!(message(3), Some(vec![3]));
        // It is handed over.
        all.hold(G, 5, &hold);
        assert_eq!(message(4), None);
        all.end(G, 5);
        assert_eq!(message(5), Some(vec![5]));
        let held = hold.take(usize::MAX).into_iter().map(|p| match p {
            Packet::Outer(datagram) => datagram.bytes[0],
            Packet::Clear(_) => 0,
        });
        assert_eq!(held.collect::<Vec<_>>(), [2, 4]);
    }
}
