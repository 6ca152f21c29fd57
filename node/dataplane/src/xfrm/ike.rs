//! IKE, which comes by sockets as everywhere.

use super::Shared;
use crate::{
    Datagram, DatagramKind, DropReason, Packet, Transport,
    counters::hand_on_ike,
    sockets::{OuterSocket, Role},
    sys::RecvBatch,
};
use evergate_esp::udp;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
};

/// The thread that reads the sockets.
pub(super) struct Receiver {
    shared: Arc<Shared>,
    batch: RecvBatch,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            batch: RecvBatch::new(),
        }
    }

    /// Runs until the plane stops.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let sockets = shared.sockets.of(0).all();
        let fds: Vec<&dyn AsFd> = sockets.iter().map(|s| s as &dyn AsFd).collect();
        while let Some(ready) = shared.stop.wait(&fds, None) {
            for (index, socket) in sockets.iter().enumerate() {
                if ready & (1 << index) != 0 {
                    self.read(socket);
                }
            }
        }
    }

    fn read(&mut self, socket: &OuterSocket) {
        if let Err(error) = self.batch.recv(socket.as_fd()) {
            tracing::trace!(role = ?socket.role, %error, "nothing received");
            return;
        }
        let lost = socket.newly_lost(&self.batch);
        let traffic = &self.shared.traffic;
        traffic.dropped_many(DropReason::Overrun, lost);
        let any: IpAddr = match socket.ipv4 {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        for (received, bytes) in self.batch.arrived() {
            let local = SocketAddr::new(received.local.unwrap_or(any), socket.port);
            let message = match socket.role {
                Role::Nat => match udp::classify(bytes) {
                    udp::Datagram::Ike(message) => message,
                    // ESP that is here was not for the kernel's states: it has counted it.
                    udp::Datagram::Keepalive => {
                        self.shared.control.keepalives_in.add(1);
                        continue;
                    }
                    udp::Datagram::Esp(_) | udp::Datagram::Unknown => {
                        self.shared.traffic.dropped(DropReason::MalformedOuter);
                        continue;
                    }
                },
                _ => bytes,
            };
            let held = self.shared.holds();
            match held.of(local.ip()) {
                Some(hold) => hold.push(Packet::Outer(Datagram {
                    kind: DatagramKind::Ike,
                    local,
                    remote: received.remote,
                    traffic_class: received.traffic_class,
                    bytes: message.to_vec(),
                })),
                None => deliver(&self.shared, local, received.remote, message),
            }
        }
    }
}

/// Hands an IKE message on.
pub(super) fn deliver(shared: &Shared, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
    let way = (local, remote, Transport::Udp);
    hand_on_ike(
        &shared.events,
        &shared.control,
        &shared.traffic,
        way,
        message,
    );
}
