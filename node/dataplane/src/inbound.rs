//! From the peers to the TUN device, and IKE to the server.

use crate::{
    Datagram, DatagramKind, DropReason, Packet, PlaneEvent, Transport,
    child::Child,
    counters::RateLimit,
    hold::Holds,
    sockets::{OuterSocket, Role},
    sys::{BATCH, Received, RecvBatch},
    userspace::{Clock, Shared},
};
use evergate_esp::{OpenError, mss, packet, spi_of, tunnel, udp};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often SAs are looked through whose grace may be over.
const SWEEP: Duration = Duration::from_millis(100);
/// The IKE header (RFC 7296 §3.1): nothing shorter is IKE.
const IKE_HEADER_LEN: usize = 28;

/// The thread that reads the outer sockets.
pub(crate) struct Inbound {
    shared: Arc<Shared>,
    batch: RecvBatch,
    limit: RateLimit,
    clock: Clock,
    swept: Instant,
}

/// Where an outer packet came from.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) traffic_class: u8,
}

/// What is needed to work on a batch of datagrams.
pub(crate) struct Turn<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) limit: &'a mut RateLimit,
    pub(crate) clock: &'a Clock,
    pub(crate) holds: &'a Holds,
}

/// What a packet says of whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is a peer.
    Authentic,
    /// That is not known here.
    Open,
    /// Nothing good.
    Meaningless,
}

impl Inbound {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let clock = shared.clock();
        Self {
            batch: RecvBatch::new(),
            limit: RateLimit::new(clock.instant),
            swept: clock.instant,
            clock,
            shared,
        }
    }

    /// Runs until the plane stops.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let sockets = shared.sockets.all();
        let mut fds: Vec<&dyn AsFd> = sockets.iter().map(|s| s as &dyn AsFd).collect();
        fds.push(&shared.outer);
        while let Some(ready) = shared.wait(&fds, Some(SWEEP)) {
            self.clock = shared.clock();
            shared.outer.calm();
            self.fed(&shared.holds());
            for (index, socket) in sockets.iter().enumerate() {
                if ready & (1 << index) != 0 {
                    self.read(socket);
                }
            }
            self.sweep();
        }
    }

    /// What was held back comes before what the sockets have.
    fn fed(&mut self, holds: &Holds) {
        loop {
            let packets = self.shared.outer.take(BATCH);
            if packets.is_empty() {
                return;
            }
            for packet in packets {
                let Packet::Outer(mut datagram) = packet else {
                    continue;
                };
                let origin = Origin {
                    local: datagram.local,
                    remote: datagram.remote,
                    traffic_class: datagram.traffic_class,
                };
                let mut turn = Turn {
                    shared: &self.shared,
                    limit: &mut self.limit,
                    clock: &self.clock,
                    holds,
                };
                turn.take(datagram.kind, &origin, &mut datagram.bytes);
            }
        }
    }

    /// One batch: whoever has more is called again, and does not keep the others waiting.
    fn read(&mut self, socket: &OuterSocket) {
        if socket.queues_errors() {
            self.batch.discard_errors(socket.as_fd());
        }
        let count = match self.batch.recv(socket.as_fd()) {
            Ok(count) => count,
            // Nothing there, or an error that belongs to a datagram that we sent: nothing is lost.
            Err(error) => {
                tracing::trace!(role = ?socket.role, %error, "nothing received");
                return;
            }
        };
        let shared = Arc::clone(&self.shared);
        let holds = shared.holds();
        self.fed(&holds);
        let mut turn = Turn {
            shared: &shared,
            limit: &mut self.limit,
            clock: &self.clock,
            holds: &holds,
        };
        for i in 0..count {
            let Some((received, datagram)) = self.batch.get(i) else {
                continue;
            };
            let origin = origin(socket, &received);
            match socket.role {
                Role::Ike => {
                    turn.take(DatagramKind::Ike, &origin, datagram);
                }
                Role::Nat => match udp::classify(datagram) {
                    udp::Datagram::Keepalive => shared.control.keepalives_in.add(1),
                    udp::Datagram::Ike(message) => {
                        let marker = datagram.len() - message.len();
                        let message = datagram.get_mut(marker..).unwrap_or_default();
                        turn.take(DatagramKind::Ike, &origin, message);
                    }
                    udp::Datagram::Esp(_) => {
                        turn.take(DatagramKind::EspInUdp, &origin, datagram);
                    }
                    udp::Datagram::Unknown => shared.traffic.dropped(DropReason::MalformedOuter),
                },
                Role::Esp => {
                    let header = if socket.ipv4 {
                        ipv4_header_len(datagram)
                    } else {
                        0
                    };
                    let packet = datagram.get_mut(header..).unwrap_or_default();
                    turn.take(DatagramKind::Esp, &origin, packet);
                }
            }
        }
    }

    fn sweep(&mut self) {
        let now = self.clock.instant;
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        if self.shared.tables().is_due(now) {
            self.shared.tables_mut().sweep(now);
        }
    }
}

fn origin(socket: &OuterSocket, received: &Received) -> Origin {
    let any: IpAddr = if socket.ipv4 {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let mut remote = received.remote;
    if socket.role == Role::Esp {
        // Raw sockets have the protocol there.
        remote.set_port(0);
    }
    Origin {
        local: SocketAddr::new(received.local.unwrap_or(any), socket.port),
        remote,
        traffic_class: received.traffic_class,
    }
}

/// Raw IPv4 sockets deliver the header too.
fn ipv4_header_len(datagram: &[u8]) -> usize {
    datagram.first().map_or(0, |b| usize::from(b & 0x0f) * 4)
}

fn ike(shared: &Shared, origin: &Origin, transport: Transport, message: &[u8]) {
    if message.len() < IKE_HEADER_LEN {
        return shared.traffic.dropped(DropReason::IkeMalformed);
    }
    let event = PlaneEvent::Ike {
        local: origin.local,
        remote: origin.remote,
        transport,
        bytes: message.to_vec(),
    };
    if shared.events.tell(event) {
        shared.control.ike_in.add(1);
    } else {
        shared.traffic.dropped(DropReason::IkeQueueFull);
    }
}

impl Turn<'_> {
    /// Works on a datagram, unless it is held back.
    pub(crate) fn take(
        &mut self,
        kind: DatagramKind,
        origin: &Origin,
        bytes: &mut [u8],
    ) -> Verdict {
        if let Some(hold) = self.holds.of(origin.local.ip()) {
            hold.push(Packet::Outer(Datagram {
                kind,
                local: origin.local,
                remote: origin.remote,
                traffic_class: origin.traffic_class,
                bytes: bytes.to_vec(),
            }));
            return Verdict::Open;
        }
        let by = match kind {
            DatagramKind::Ike => {
                ike(self.shared, origin, Transport::Udp, bytes);
                return Verdict::Open;
            }
            DatagramKind::IkeInTcp(end) => {
                ike(self.shared, origin, Transport::Tcp(end), bytes);
                return Verdict::Open;
            }
            DatagramKind::EspInUdp => Some(Transport::Udp),
            DatagramKind::EspInTcp(end) => Some(Transport::Tcp(end)),
            DatagramKind::Esp => None,
        };
        self.esp(origin, by, bytes)
    }

    /// ESP by UDP or TCP, or right on IP.
    fn esp(&mut self, origin: &Origin, by: Option<Transport>, packet: &mut [u8]) -> Verdict {
        let shared = self.shared;
        let Some(spi) = spi_of(packet) else {
            shared.traffic.dropped(DropReason::MalformedOuter);
            return Verdict::Meaningless;
        };
        let find = || shared.tables().inbound(spi).cloned();
        let mut child = find();
        if child.is_none() {
            let kept = shared.early().keep(spi, || early(origin, by, packet));
            if kept {
                return Verdict::Open;
            }
            // It may just have been installed.
            child = find();
        }
        let Some(child) = child else {
            self.unknown(spi, origin);
            return Verdict::Meaningless;
        };
        match deliver(shared, &child, self.clock, origin, by, packet) {
            Ok(bytes) => {
                if child.is_shown_to_be_there() {
                    shared.tables_mut().bring_forward(spi);
                }
                child.traffic.received(bytes);
                shared.traffic.received(bytes);
                Verdict::Authentic
            }
            Err(reason) => {
                child.dropped(reason, &shared.traffic);
                match reason {
                    DropReason::NotAuthentic | DropReason::MalformedOuter => Verdict::Meaningless,
                    _ => Verdict::Open,
                }
            }
        }
    }

    fn unknown(&mut self, spi: u32, origin: &Origin) {
        self.shared.traffic.dropped(DropReason::UnknownSpi);
        if self
            .limit
            .admit((spi, origin.remote.ip()), self.clock.instant)
        {
            // Advisory: the next packet tells again.
            let _ = self.shared.events.tell(PlaneEvent::UnknownSpi {
                spi,
                local: origin.local,
                remote: origin.remote,
            });
        }
    }
}

/// An ESP packet as it came.
fn early(origin: &Origin, by: Option<Transport>, packet: &[u8]) -> Datagram {
    Datagram {
        kind: match by {
            Some(Transport::Udp) => DatagramKind::EspInUdp,
            Some(Transport::Tcp(end)) => DatagramKind::EspInTcp(end),
            None => DatagramKind::Esp,
        },
        local: origin.local,
        remote: origin.remote,
        traffic_class: origin.traffic_class,
        bytes: packet.to_vec(),
    }
}

/// Opens a packet and hands what it holds to the kernel; how many bytes.
fn deliver(
    shared: &Shared,
    child: &Child,
    clock: &Clock,
    origin: &Origin,
    by: Option<Transport>,
    packet: &mut [u8],
) -> Result<usize, DropReason> {
    let opened = child.inbound.open(packet).map_err(|e| match e {
        OpenError::Malformed => DropReason::MalformedOuter,
        OpenError::Replayed(_) => DropReason::Replay,
        OpenError::Integrity => DropReason::NotAuthentic,
        OpenError::Padding => DropReason::MalformedPayload,
    })?;
    child.last_inbound.set(clock.unix_ms);
    if let Some(transport) = by {
        note_remote(shared, child, (origin.remote, transport), opened.seq);
    }
    if opened.is_dummy() {
        return Err(DropReason::Dummy);
    }
    let payload = &mut packet[opened.payload.clone()];
    if packet::next_header(payload) != Some(opened.next_header) {
        return Err(DropReason::MalformedPayload);
    }
    let inner = packet::parse(payload).map_err(|_| DropReason::MalformedPayload)?;
    // What is behind it is traffic flow confidentiality padding (RFC 4303 §2.7).
    let payload = &mut payload[..inner.total_len];
    if !child.inbound.admits(&inner.selectors) {
        return Err(DropReason::SelectorMismatch);
    }
    tunnel::decapsulate(payload, origin.traffic_class, false).map_err(|_| DropReason::Ecn)?;
    // The peer's segments are limited by what we announce, ours by what it does: both pass here.
    let way = child.way(clock.instant);
    let limit = way
        .mtu
        .map_or(usize::MAX, |mtu| child.max_inner(&way.outer, mtu));
    mss::clamp(payload, limit.min(shared.config.tun_mtu as usize));
    shared.tun.write(payload).map_err(|error| {
        tracing::debug!(%error, "TUN device takes no packet");
        DropReason::TunFailed
    })?;
    Ok(payload.len())
}

/// An old packet from a former address, overtaken on its way, is no news (RFC 7296 §2.23): only the newest counts.
fn note_remote(
    shared: &Shared,
    child: &Child,
    (remote, transport): (SocketAddr, Transport),
    seq: u64,
) {
    if seq < child.inbound.right_edge() || !child.saw(remote) {
        return;
    }
    // Advisory: liveness checks and the next move come from the same address.
    let _ = shared.events.tell(PlaneEvent::PeerMoved {
        spi_in: child.spi_in,
        remote,
        transport,
    });
}
