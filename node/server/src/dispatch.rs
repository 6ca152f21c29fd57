//! From the data plane to the workers: finds out whose an IKE message is, and serves what the plane wants itself.

use crate::{
    counters::IkeDrop,
    node::Node,
    shared::Shared,
    transport, trap,
    worker::{Message, worker_of},
};
use evergate_dataplane::PlaneEvent;
use evergate_ike::{
    record::{SaId, Transport},
    sa,
    wire::{ExchangeType, Header},
};
use evergate_state::{Command, Outcome};
use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, trace, warn};

/// The major version of IKE that we speak.
const VERSION: u8 = 2;

/// The least that a reservation is extended by.
const LEAST_EXTENSION: u64 = 1 << 16;

/// A reservation is extended by what so many seconds at twice the observed peak rate need.
const EXTENSION_SECONDS: u64 = 10;

/// A 32-bit space of sequence numbers that has less than this left is rekeyed.
const SPACE_LEFT: u64 = 1 << 30;

/// Reads the data plane's events until it ends.
pub(crate) struct Dispatcher {
    node: Arc<Node>,
}

/// Where an IKE message goes.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// A first message: to the worker that its sender and SPI choose.
    Init(Header),
    /// To the SA that has this SPI of ours.
    Sa(SaId),
    /// A request of another major version.
    OtherVersion,
    /// Nowhere.
    Drop(IkeDrop, &'static str),
}

impl Way {
    fn of(bytes: &[u8]) -> Self {
        let Ok((version, header)) = Header::parse_any_version(bytes) else {
            return Self::Drop(IkeDrop::Malformed, "shorter than an IKE header");
        };
        if version != VERSION {
            return if header.is_response {
                Self::Drop(IkeDrop::Version, "a response of another major version")
            } else {
                Self::OtherVersion
            };
        }
        if header.initiator_spi == 0 {
            return Self::Drop(IkeDrop::Malformed, "the initiator's SPI is zero");
        }
        let first = header.exchange == ExchangeType::IKE_SA_INIT
            && !header.is_response
            && header.from_initiator;
        if first {
            return match (header.responder_spi, header.message_id) {
                (0, 0) => Self::Init(header),
                _ => Self::Drop(
                    IkeDrop::Malformed,
                    "an IKE_SA_INIT request with a responder's SPI or a Message ID",
                ),
            };
        }
        // The I flag says that the sender is the original initiator: then the responder's SPI is ours (RFC 7296 §3.1).
        let ours = if header.from_initiator {
            header.responder_spi
        } else {
            header.initiator_spi
        };
        if ours == 0 {
            return Self::Drop(IkeDrop::Malformed, "our SPI is zero");
        }
        Self::Sa(SaId(ours))
    }
}

impl Dispatcher {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Serves events until the plane ends or the member stops.
    pub(crate) async fn run(self, mut events: mpsc::Receiver<PlaneEvent>, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                () = self.node.failed.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Some(event) => self.event(event),
                None => return self.node.fail(&"the data plane ended"),
            }
        }
    }

    fn event(&self, event: PlaneEvent) {
        match event {
            PlaneEvent::Ike {
                local,
                remote,
                transport,
                bytes,
            } => self.message(local, remote, transport, bytes),
            PlaneEvent::LowReservation {
                spi_in,
                remaining,
                rate,
            } => {
                debug!(
                    event = "low-reservation",
                    spi_in = format_args!("{spi_in:08x}"),
                    remaining,
                    rate,
                    "extending a reservation"
                );
                if let Some(service) = self.node.service_of_child(spi_in) {
                    tokio::spawn(extend(service, spi_in, rate));
                }
            }
            PlaneEvent::Connected { local, remote } => self.connected(local, remote),
            PlaneEvent::PeerMoved {
                spi_in,
                remote,
                transport,
            } => {
                trace!(event = "esp-from-elsewhere", spi_in = format_args!("{spi_in:08x}"), peer = %remote, "ESP came from another address");
                self.esp_from(spi_in, remote, transport::of_record(transport));
            }
            PlaneEvent::UnknownSpi { spi, local, remote } => {
                debug!(event = "esp-unknown-spi", spi = format_args!("{spi:08x}"), %local, peer = %remote, "ESP with an unknown SPI");
            }
            PlaneEvent::NoChild {
                src,
                dst,
                protocol,
                ports,
            } => {
                debug!(event = "no-child", %src, %dst, "a protected packet had no Child SA and was dropped");
                trap::sprung(
                    &self.node,
                    &trap::Packet {
                        src,
                        dst,
                        protocol,
                        ports,
                    },
                );
            }
        }
    }

    fn message(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        by: evergate_dataplane::Transport,
        bytes: Vec<u8>,
    ) {
        let not_served = || {
            let why = "this process does not serve the address";
            self.node.dropped(IkeDrop::NotServed, local, remote, &why);
        };
        let Some(gateway) = self.node.gateway_at(local.ip()) else {
            return not_served();
        };
        let handovers = &self.node.handovers;
        let Some(bytes) = handovers.hold_back(gateway, local, remote, by, bytes) else {
            return;
        };
        let Some(service) = self.node.service(gateway) else {
            return not_served();
        };
        let transport = transport::of_record(by);
        let (worker, message) = match Way::of(&bytes) {
            Way::Init(header) => {
                let worker = self.worker_of_init(remote, header.initiator_spi);
                (
                    worker,
                    Message::Init {
                        bytes,
                        header,
                        local,
                        remote,
                        transport,
                    },
                )
            }
            Way::Sa(sa) => (
                worker_of(sa, self.node.worker_count),
                Message::Datagram {
                    sa,
                    bytes,
                    local,
                    remote,
                    transport,
                },
            ),
            Way::OtherVersion => {
                return other_version(&service, &bytes, local, remote, transport);
            }
            Way::Drop(reason, why) => return self.node.dropped(reason, local, remote, &why),
        };
        let busy = || {
            let why = "the queue of its worker is full";
            self.node.dropped(IkeDrop::WorkerBusy, local, remote, &why);
        };
        let Some(queue) = service.workers.get().and_then(|all| all.get(worker)) else {
            return busy();
        };
        match queue.try_send(message) {
            Ok(()) => {}
            // It has ended since we looked: the gateway is being handed over.
            Err(TrySendError::Closed(message)) => service.pass_on(message),
            Err(TrySendError::Full(_)) => busy(),
        }
    }

    /// The worker of the SA decides whether its peer is followed.
    fn esp_from(&self, spi_in: u32, remote: SocketAddr, transport: Transport) {
        let Some(sa) = self.node.read(|state| state.spi_owner(spi_in)) else {
            return;
        };
        let service = self.node.service_of_child(spi_in);
        if let Some(worker) = service.as_ref().and_then(|s| s.worker(sa)) {
            // If there is no room, the next IKE message or another address tells it again.
            let _ = worker.try_send(Message::EspFrom {
                sa,
                remote,
                transport,
            });
        }
    }

    /// Any worker of the gateway may have the SA whose connection it is. Only connections of our own are told of, so no stranger can cause this.
    fn connected(&self, local: SocketAddr, remote: SocketAddr) {
        let gateway = self.node.gateway_at(local.ip());
        let service = gateway.and_then(|g| self.node.service(g));
        let workers = service.as_ref().and_then(|s| s.workers.get());
        for worker in workers.into_iter().flatten() {
            // If there is no room, the next repetition goes by the connection.
            let _ = worker.try_send(Message::Connected { local, remote });
        }
    }

    /// First messages spread over the workers, and a repeated one comes to the same.
    fn worker_of_init(&self, remote: SocketAddr, spi_i: u64) -> usize {
        // Not secret: an attacker who fills one worker's queue is limited by cookies all the same.
        let mut hasher = DefaultHasher::new();
        (remote, spi_i).hash(&mut hasher);
        worker_of(SaId(hasher.finish()), self.node.worker_count)
    }
}

/// Says which version we speak (RFC 7296 §2.5): the header of the answer does.
fn other_version(
    service: &Shared,
    bytes: &[u8],
    local: SocketAddr,
    remote: SocketAddr,
    transport: Transport,
) {
    service.dropped(
        IkeDrop::Version,
        local,
        remote,
        &"a request of another major version",
    );
    service.answer_stray(bytes, local, remote, transport);
}

/// Reserves more sequence numbers for a Child SA.
async fn extend(shared: Arc<Shared>, spi_in: u32, rate: u64) {
    let more = rate
        .saturating_mul(2 * EXTENSION_SECONDS)
        .max(LEAST_EXTENSION);
    let outcome = shared.propose(Command::ExtendReservations {
        gateway: shared.gateway,
        epoch: shared.epoch,
        children: vec![(spi_in, more)],
    });
    match outcome.await {
        Ok(Outcome::Reserved(ranges)) => {
            for (spi, range) in ranges {
                let end = range.end;
                if let Err(e) = shared.plane.extend(spi, range) {
                    warn!(
                        event = "extend-refused",
                        spi_in = format_args!("{spi:08x}"),
                        "sequence numbers were not taken: {e}"
                    );
                }
                rekey_if_short(&shared, spi, end).await;
            }
        }
        Ok(Outcome::Refused(refusal)) if refusal.is_loss() => shared.go_passive(&refusal),
        Ok(other) => warn!(
            event = "extend-refused",
            spi_in = format_args!("{spi_in:08x}"),
            "no sequence numbers were reserved: {other:?}"
        ),
        Err(failed) => shared.go_passive(&failed),
    }
}

/// A Child SA whose 32-bit space of sequence numbers comes to its end is replaced in time.
async fn rekey_if_short(shared: &Shared, spi_in: u32, end: u64) {
    let owner = shared.read(|state| {
        let sa = state.spi_owner(spi_in)?;
        let child = state
            .sa(sa)?
            .children()
            .iter()
            .find(|c| c.spi_in == spi_in)?;
        (!child.suite.esn && end + SPACE_LEFT > 1 << 32).then_some(sa)
    });
    if let Some(sa) = owner
        && let Some(worker) = shared.worker(sa)
    {
        info!(event = "sequence-space-short", %sa, spi_in = format_args!("{spi_in:08x}"), "rekeying before the sequence numbers end");
        let command = Message::Command {
            sa,
            command: sa::Command::RekeyChild(spi_in),
            watcher: None,
            reply: None,
        };
        let _ = worker.send(command).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_ike::wire::PayloadType;

    fn header(
        initiator_spi: u64,
        responder_spi: u64,
        from_initiator: bool,
        is_response: bool,
    ) -> Header {
        Header {
            initiator_spi,
            responder_spi,
            minor_version: 0,
            exchange: ExchangeType::INFORMATIONAL,
            from_initiator,
            is_response,
            higher_version: false,
            message_id: 0,
        }
    }

    fn way(header: Header) -> Way {
        Way::of(&header.to_bytes(PayloadType::NONE, 28))
    }

    #[test]
    fn messages_find_the_sa_by_our_spi_whichever_end_we_are() {
        assert_eq!(way(header(1, 2, true, false)), Way::Sa(SaId(2)));
        assert_eq!(way(header(1, 2, true, true)), Way::Sa(SaId(2)));
        assert_eq!(way(header(1, 2, false, false)), Way::Sa(SaId(1)));
        assert!(matches!(
            way(header(0, 2, true, false)),
            Way::Drop(IkeDrop::Malformed, _)
        ));
        assert!(matches!(
            way(header(1, 0, true, false)),
            Way::Drop(IkeDrop::Malformed, _)
        ));
    }

    #[test]
    fn first_messages_are_known_by_their_shape() {
        let init = Header {
            exchange: ExchangeType::IKE_SA_INIT,
            ..header(1, 0, true, false)
        };
        assert_eq!(way(init), Way::Init(init));
        // The response to our own first message belongs to its SA.
        assert_eq!(
            way(Header {
                responder_spi: 7,
                is_response: true,
                from_initiator: false,
                ..init
            }),
            Way::Sa(SaId(1))
        );
        assert!(matches!(
            way(Header {
                message_id: 1,
                ..init
            }),
            Way::Drop(IkeDrop::Malformed, _)
        ));
        assert!(matches!(
            way(Header {
                responder_spi: 7,
                ..init
            }),
            Way::Drop(IkeDrop::Malformed, _)
        ));
    }

    #[test]
    fn other_versions_and_fragments_of_headers_are_told_apart() {
        let mut bytes = header(1, 2, true, false).to_bytes(PayloadType::NONE, 28);
        bytes[17] = 0x10;
        assert_eq!(Way::of(&bytes), Way::OtherVersion);
        bytes[19] |= 0x20;
        assert!(matches!(Way::of(&bytes), Way::Drop(IkeDrop::Version, _)));
        for len in 0..28 {
            assert!(
                matches!(Way::of(&bytes[..len]), Way::Drop(IkeDrop::Malformed, _)),
                "{len}"
            );
        }
    }
}
