//! From the peers to the TUN device, and IKE to the server.

use crate::{
    Datagram, DatagramKind, DropReason, Packet, PlaneEvent, Transport,
    child::Child,
    counters::{RateLimit, hand_on_ike},
    delivery::{Delivery, Stock, deliver},
    hold::Holds,
    link,
    sockets::{OuterSocket, Role},
    sys::{BATCH, Frames, Received, RecvBatch},
    tap::{MaybeTapped, Tapped},
    userspace::{Clock, Direction, Shared},
};
use evergate_esp::{
    AHEAD, OpenError, icmp, mss,
    packet::{self, Inner},
    spi_of, transport, udp,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Behind a turn with so many packets of a ring there are more to come...
const BUSY: usize = 4;
/// ... and they are waited for, as a network card waits before it interrupts: whoever takes each by itself spends more on taking than on opening, and what
/// leaves for the device one by one costs the kernel as much again as ten together. The kernel adds up to as much.
const COALESCE: Duration = Duration::from_micros(50);
/// How often SAs are looked through whose grace may be over.
const SWEEP: Duration = Duration::from_millis(100);

/// The thread that reads a worker's outer sockets.
pub(crate) struct Inbound {
    shared: Arc<Shared>,
    worker: usize,
    batch: RecvBatch,
    stock: Stock,
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
    limit: &'a mut RateLimit,
    clock: &'a Clock,
    holds: &'a Holds,
    /// The captures that there are.
    tapped: Option<Tapped>,
    /// Whose packet was the last: most often that is whose the next is.
    last: Option<Last>,
    /// An address of ours that a packet was for: most often the next is, too.
    local: Option<IpAddr>,
}

/// A Child SA that was looked up in this turn.
#[derive(Clone)]
struct Last {
    child: Arc<Child>,
    /// Where its peer was seen in this turn.
    remote: Option<SocketAddr>,
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
    pub(crate) fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let clock = shared.clock();
        Self {
            worker,
            batch: RecvBatch::new(),
            stock: Stock::default(),
            limit: RateLimit::share(clock.instant, shared.workers),
            swept: clock.instant,
            clock,
            shared,
        }
    }

    /// Runs until the plane stops.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let sockets = shared.sockets.of(self.worker).all();
        let mut fds: Vec<&dyn AsFd> = sockets.iter().map(|s| s as &dyn AsFd).collect();
        // What is for all is done by the first.
        let sweep = (self.worker == 0).then_some(SWEEP);
        if self.worker == 0 {
            fds.push(&shared.outer);
        }
        while let Some(ready) = shared.wait(&fds, sweep) {
            self.clock = shared.clock();
            if self.worker == 0 {
                shared.outer.calm();
                self.fed(&shared.enter(Direction::In, self.worker));
            }
            let mut busy = false;
            for (index, socket) in sockets.iter().enumerate() {
                if ready & (1 << index) != 0 {
                    busy |= self.read(socket);
                }
            }
            if self.worker == 0 {
                self.sweep();
            }
            if busy {
                thread::sleep(COALESCE);
            }
        }
    }

    /// What was held back comes before what the sockets have.
    fn fed(&mut self, holds: &Holds) {
        let (shared, stock) = (&self.shared, &mut self.stock);
        shared.outer.empty(BATCH, |mut packets| {
            let mut turn = Turn::new(shared, &mut self.limit, &self.clock, holds);
            let mut delivery = stock.take();
            for packet in &mut packets {
                let Packet::Outer(datagram) = packet else {
                    continue;
                };
                let origin = Origin {
                    local: datagram.local,
                    remote: datagram.remote,
                    traffic_class: datagram.traffic_class,
                };
                turn.take(datagram.kind, &origin, &mut datagram.bytes, &mut delivery);
            }
            *stock = delivery.finish(shared);
        });
    }

    /// One batch: whoever has more is called again, and does not keep the others waiting. Yields whether it is worth while to let more come first.
    fn read(&mut self, socket: &OuterSocket) -> bool {
        let Some(mut ring) = socket.ring() else {
            self.read_queue(socket);
            return false;
        };
        let mut frames = ring.take();
        match frames.lost(socket.as_fd()) {
            Ok(lost) => self.overrun(lost as usize),
            Err(error) => tracing::debug!(%error, "how many packets were lost is not known"),
        }
        self.frames(socket, &mut frames);
        let busy = frames.count() >= BUSY;
        if frames.may_be_queued() {
            self.read_queue(socket);
        }
        busy
    }

    /// What a packet socket has in its ring.
    fn frames(&mut self, socket: &OuterSocket, frames: &mut Frames<'_>) {
        let shared = Arc::clone(&self.shared);
        let holds = shared.enter(Direction::In, self.worker);
        self.fed(&holds);
        look_ahead(&shared, socket, frames.peek());
        let mut turn = Turn::new(&shared, &mut self.limit, &self.clock, &holds);
        let mut delivery = self.stock.take();
        for packet in frames.packets() {
            turn.frame(packet, &mut delivery);
        }
        self.stock = delivery.finish(&shared);
    }

    /// What a socket has in its queue.
    fn read_queue(&mut self, socket: &OuterSocket) {
        if socket.queues_errors() && self.batch.discard_errors(socket.as_fd()) {
            self.shared.narrower(&self.clock);
        }
        // Nothing there, or an error that belongs to a datagram that we sent: nothing is lost.
        if let Err(error) = self.batch.recv(socket.as_fd()) {
            tracing::trace!(role = ?socket.role, %error, "nothing received");
            return;
        }
        let shared = Arc::clone(&self.shared);
        let holds = shared.enter(Direction::In, self.worker);
        self.fed(&holds);
        look_ahead(&shared, socket, self.batch.peek());
        let mut turn = Turn::new(&shared, &mut self.limit, &self.clock, &holds);
        let mut delivery = self.stock.take();
        for (received, bytes) in self.batch.arrived() {
            let origin = origin(socket, &received);
            let each = received.segment.unwrap_or(bytes.len()).max(1);
            let (first, others) = bytes.split_at_mut(each.min(bytes.len()));
            turn.datagram(socket, &origin, first, &mut delivery);
            for datagram in others.chunks_mut(each) {
                turn.datagram(socket, &origin, datagram, &mut delivery);
            }
        }
        self.stock = delivery.finish(&shared);
        self.overrun(socket.newly_lost(&self.batch));
    }

    /// So many packets came too fast.
    fn overrun(&self, packets: usize) {
        let traffic = &self.shared.traffic;
        traffic.dropped_many(DropReason::Overrun, packets);
    }

    fn sweep(&mut self) {
        let now = self.clock.instant;
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        if self.shared.tables.is_due(now) {
            self.shared.tables.sweep(now);
        }
    }
}

/// Where packets are of many Child SAs, most of the time goes by until memory has what each needs: so all are asked for first.
fn look_ahead<'b>(
    shared: &Shared,
    socket: &OuterSocket,
    datagrams: impl Iterator<Item = &'b [u8]>,
) {
    let (mut spis, mut count) = ([0; AHEAD], 0);
    for datagram in datagrams {
        let header = match (socket.role, socket.ipv4) {
            (Role::Ike, _) => return,
            (Role::Esp, true) => ipv4_header_len(datagram),
            (Role::Link(_), true) => link::V4,
            (Role::Link(_), false) => link::V6,
            _ => 0,
        };
        let Some(spi) = datagram.get(header..).and_then(spi_of) else {
            continue;
        };
        if count < AHEAD && (count == 0 || spis[count - 1] != spi) {
            spis[count] = spi;
            count += 1;
        }
    }
    if count > 1 {
        shared.tables.look_ahead_in(&spis[..count]);
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

impl<'a> Turn<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        limit: &'a mut RateLimit,
        clock: &'a Clock,
        holds: &'a Holds,
    ) -> Self {
        Self {
            shared,
            limit,
            clock,
            holds,
            tapped: shared.taps.now(),
            last: None,
            local: None,
        }
    }

    /// Works on what came by a socket.
    fn datagram<'p>(
        &mut self,
        socket: &OuterSocket,
        origin: &Origin,
        datagram: &'p mut [u8],
        delivery: &mut Delivery<'p>,
    ) {
        match socket.role {
            Role::Ike => {
                self.take(DatagramKind::Ike, origin, datagram, delivery);
            }
            Role::Nat => match udp::classify(datagram) {
                udp::Datagram::Keepalive => self.shared.control.keepalives_in.add(1),
                udp::Datagram::Ike(message) => {
                    let marker = datagram.len() - message.len();
                    let message = datagram.get_mut(marker..).unwrap_or_default();
                    self.take(DatagramKind::Ike, origin, message, delivery);
                }
                udp::Datagram::Esp(_) => {
                    self.take(DatagramKind::EspInUdp, origin, datagram, delivery);
                }
                udp::Datagram::Unknown => {
                    self.shared.traffic.dropped(DropReason::MalformedOuter);
                }
            },
            Role::Link(_) => self.frame(datagram, delivery),
            Role::Esp => {
                let header = if socket.ipv4 {
                    ipv4_header_len(datagram)
                } else {
                    0
                };
                let packet = datagram.get_mut(header..).unwrap_or_default();
                self.take(DatagramKind::Esp, origin, packet, delivery);
            }
        }
    }

    /// Works on what a packet socket received.
    fn frame<'p>(&mut self, packet: &'p mut [u8], delivery: &mut Delivery<'p>) {
        let Some(parsed) = link::parse(packet) else {
            return self.shared.traffic.dropped(DropReason::MalformedOuter);
        };
        let origin = Origin {
            local: SocketAddr::new(parsed.destination, 0),
            remote: SocketAddr::new(parsed.source, 0),
            traffic_class: parsed.traffic_class,
        };
        let esp = packet.get_mut(parsed.start..parsed.end).unwrap_or_default();
        if self.is_ours(parsed.destination, esp) {
            self.take(DatagramKind::Esp, &origin, esp, delivery);
        }
    }

    /// Whether a packet is for this host, and not one to be forwarded. An address that has just come may not be known as ours yet; but then it is that of a
    /// Child SA.
    fn is_ours(&mut self, destination: IpAddr, esp: &[u8]) -> bool {
        if self.local == Some(destination) {
            return true;
        }
        let links = self.shared.links.as_ref();
        if links.is_some_and(|links| links.is_local(destination)) {
            self.local = Some(destination);
            return true;
        }
        spi_of(esp)
            .and_then(|spi| self.shared.tables.inbound(spi))
            .is_some_and(|child| child.path.load().outer.local.ip() == destination)
    }

    /// Works on a datagram, unless it is held back.
    pub(crate) fn take<'p>(
        &mut self,
        kind: DatagramKind,
        origin: &Origin,
        bytes: &'p mut [u8],
        delivery: &mut Delivery<'p>,
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
            DatagramKind::Ike => return self.ike(origin, Transport::Udp, bytes),
            DatagramKind::IkeInTcp(end) => return self.ike(origin, Transport::Tcp(end), bytes),
            DatagramKind::EspInUdp => Some(Transport::Udp),
            DatagramKind::EspInTcp(end) => Some(Transport::Tcp(end)),
            DatagramKind::Esp => None,
        };
        self.esp(origin, by, bytes, delivery)
    }

    fn ike(&self, origin: &Origin, transport: Transport, message: &[u8]) -> Verdict {
        let shared = self.shared;
        let ends = (origin.local, origin.remote);
        let nat_port = shared.config.nat_port;
        self.tapped.ike(false, ends, nat_port, transport, message);
        let way = (origin.local, origin.remote, transport);
        hand_on_ike(
            &shared.events,
            &shared.control,
            &shared.traffic,
            way,
            message,
        );
        Verdict::Open
    }

    /// ESP by UDP or TCP, or right on IP.
    fn esp<'p>(
        &mut self,
        origin: &Origin,
        by: Option<Transport>,
        packet: &'p mut [u8],
        delivery: &mut Delivery<'p>,
    ) -> Verdict {
        let shared = self.shared;
        let Some(spi) = spi_of(packet) else {
            shared.traffic.dropped(DropReason::MalformedOuter);
            return Verdict::Meaningless;
        };
        if self.last.as_ref().is_none_or(|l| l.child.spi_in != spi) {
            self.last = self.find(spi);
        }
        if self.last.is_none() {
            let kept = shared.early().keep(spi, || early(origin, by, packet));
            if kept {
                return Verdict::Open;
            }
            // It may just have been installed.
            self.last = self.find(spi);
        }
        let Some(last) = &mut self.last else {
            self.unknown(spi, origin);
            return Verdict::Meaningless;
        };
        let ends = (origin.local, origin.remote);
        let closed = self
            .tapped
            .before_opening(spi, ends, origin.traffic_class, by, packet);
        let opened = open(shared, last, self.clock, origin, by, packet);
        if let Some(closed) = closed {
            closed.opened(self.tapped.as_ref(), opened.as_ref().err().copied());
        }
        match opened {
            Ok((content, inner)) => {
                self.tapped.clear(spi, false, content.bytes(), None);
                if last.child.is_shown_to_be_there() {
                    shared.tables.bring_forward(&last.child);
                }
                match content {
                    Content::Inside(packet) => delivery.put(shared, &last.child, packet, &inner),
                    Content::Restored(packet) => deliver(shared, &last.child, &packet),
                }
                Verdict::Authentic
            }
            Err(reason) => {
                last.child.dropped(reason, &shared.traffic);
                match reason {
                    DropReason::NotAuthentic | DropReason::MalformedOuter => Verdict::Meaningless,
                    _ => Verdict::Open,
                }
            }
        }
    }

    fn find(&self, spi: u32) -> Option<Last> {
        let child = self.shared.tables.inbound(spi);
        child.map(|child| Last {
            child,
            remote: None,
        })
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

/// What an ESP packet holds.
enum Content<'p> {
    /// A whole packet.
    Inside(&'p mut [u8]),
    /// One whose IP header is not inside, and was made anew: transport mode.
    Restored(Vec<u8>),
}

impl Content<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Content::Inside(packet) => packet,
            Content::Restored(packet) => packet,
        }
    }
}

/// Opens a packet. Yields what it holds, ready for the kernel.
fn open<'p>(
    shared: &Shared,
    last: &mut Last,
    clock: &Clock,
    origin: &Origin,
    by: Option<Transport>,
    packet: &'p mut [u8],
) -> Result<(Content<'p>, Inner), DropReason> {
    let child = &last.child;
    let opened = child.inbound.open(packet).map_err(|e| match e {
        OpenError::Malformed => DropReason::MalformedOuter,
        OpenError::Replayed(_) => DropReason::Replay,
        OpenError::Integrity => DropReason::NotAuthentic,
        OpenError::Padding => DropReason::MalformedPayload,
    })?;
    child.last_inbound.set(clock.unix_ms);
    if let Some(transport) = by
        && last.remote != Some(origin.remote)
    {
        note_remote(shared, child, (origin.remote, transport), opened.seq);
        last.remote = Some(origin.remote);
    }
    if opened.is_dummy() {
        return Err(DropReason::Dummy);
    }
    let payload = &mut packet[opened.payload.clone()];
    if let Some(ends) = &child.transport {
        let (protocol, class) = (opened.next_header, origin.traffic_class);
        let restored = transport::restore(payload, protocol, ends, class);
        let mut restored = restored.map_err(|_| DropReason::MalformedPayload)?;
        let inner = packet::parse(&restored).map_err(|_| DropReason::MalformedPayload)?;
        if !admits(child, &restored, &inner) {
            return Err(DropReason::SelectorMismatch);
        }
        clamp(shared, child, clock, &mut restored, &inner);
        return Ok((Content::Restored(restored), inner));
    }
    if packet::next_header(payload) != Some(opened.next_header) {
        return Err(DropReason::MalformedPayload);
    }
    let inner = packet::parse(payload).map_err(|_| DropReason::MalformedPayload)?;
    // What is behind it is traffic flow confidentiality padding (RFC 4303 §2.7).
    let payload = &mut payload[..inner.total_len];
    if !admits(child, payload, &inner) {
        return Err(DropReason::SelectorMismatch);
    }
    let crossed = child.headers.inwards(payload, origin.traffic_class);
    crossed.map_err(|_| DropReason::Ecn)?;
    clamp(shared, child, clock, payload, &inner);
    Ok((Content::Inside(payload), inner))
}

/// Whether a packet is within the selectors of its Child SA, or is an error about one that went by it (RFC 4301 §6.2).
fn admits(child: &Child, packet: &[u8], inner: &Inner) -> bool {
    child.inbound.admits(&inner.selectors)
        || icmp::answers(packet, inner).is_some_and(|answers| child.inbound.admits(&answers))
}

/// The peer's segments are limited by what we announce, ours by what it does: both pass here.
fn clamp(shared: &Shared, child: &Child, clock: &Clock, packet: &mut [u8], inner: &Inner) {
    if mss::concerns(packet, inner) {
        let path = child.path.load();
        let mtu = shared.paths.noted(&path, clock.ms);
        let limit = mtu.map_or(usize::MAX, |mtu| child.max_inner(&path.outer, mtu));
        mss::clamp(packet, limit.min(shared.config.tun_mtu as usize));
    }
}

/// An old packet from a former address, overtaken on its way, is no news (RFC 7296 §2.23): only the newest counts.
fn note_remote(
    shared: &Shared,
    child: &Child,
    (remote, transport): (SocketAddr, Transport),
    seq: u64,
) {
    if seq < child.inbound.right_edge() || !child.path.load().saw(remote) {
        return;
    }
    // Advisory: liveness checks and the next move come from the same address.
    let _ = shared.events.tell(PlaneEvent::PeerMoved {
        spi_in: child.spi_in,
        remote,
        transport,
    });
}
