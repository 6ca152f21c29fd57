//! From the TUN device to the peers.

use crate::{
    DropReason, Encapsulation, Outer, Packet, PlaneEvent, TcpEnd,
    child::{Child, Way},
    counters::RateLimit,
    hold::Holds,
    sockets::{OuterSocket, Role},
    sys::{BATCH, Outgoing},
    tcp::Ends,
    userspace::{Clock, Shared},
};
use evergate_esp::{
    HEADROOM, TAILROOM, fragment, icmp, mss,
    packet::{self, Inner, PacketSelectors},
    tunnel::{self, OuterDscp},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Instant,
};

/// The largest inner packet.
const MAX_INNER: usize = 65_535;
/// IPv6 promises every packet of this size a way (RFC 8200 §5): where the path is narrower, outer packets are fragmented.
const MIN_MTU_V6: usize = 1280;

/// The thread that reads the TUN device.
pub(crate) struct Outbound {
    shared: Arc<Shared>,
    slots: Vec<Vec<u8>>,
    pending: Vec<Pending>,
    limit: RateLimit,
    clock: Clock,
}

/// A sealed packet.
struct Pending {
    child: Arc<Child>,
    /// Where it is: which slot, and which of its bytes.
    slot: usize,
    range: Range<usize>,
    inner_len: usize,
    to: Destination,
}

/// How a packet leaves.
#[derive(Clone, Copy)]
struct Destination {
    exit: Exit,
    remote: SocketAddr,
    local: IpAddr,
    traffic_class: u8,
    /// It is larger than the path, and goes in fragments.
    fragmentable: bool,
}

/// By what it leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// One of the outer sockets.
    Socket(usize),
    /// A TCP connection.
    Tcp(Ends, TcpEnd),
}

impl Outbound {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let clock = shared.clock();
        Self {
            slots: vec![vec![0; HEADROOM + MAX_INNER + TAILROOM]; BATCH],
            pending: Vec::with_capacity(BATCH),
            limit: RateLimit::new(clock.instant),
            clock,
            shared,
        }
    }

    /// Runs until the plane stops.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while shared.wait(&[&shared.tun, &shared.clear], None).is_some() {
            self.clock = shared.clock();
            shared.clear.calm();
            if let Err(error) = self.batch() {
                tracing::error!(%error, "cannot read the TUN device: nothing is sent any more");
                return;
            }
        }
    }

    /// What was held back comes before what the device has.
    fn fed(&mut self, shared: &Shared, holds: &Holds) {
        loop {
            let packets = shared.clear.take(BATCH);
            if packets.is_empty() {
                return;
            }
            for (slot, packet) in packets.into_iter().enumerate() {
                match packet {
                    Packet::Clear(bytes) if bytes.len() <= MAX_INNER => {
                        self.slots[slot][HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
                        self.packet(slot, bytes.len(), holds);
                    }
                    _ => shared.traffic.dropped(DropReason::MalformedInner),
                }
            }
            self.flush();
        }
    }

    fn batch(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let holds = shared.holds();
        self.fed(&shared, &holds);
        for slot in 0..BATCH {
            let room = HEADROOM..HEADROOM + MAX_INNER;
            let Some(len) = self.shared.tun.read(&mut self.slots[slot][room])? else {
                break;
            };
            self.packet(slot, len, &holds);
        }
        self.flush();
        Ok(())
    }

    fn packet(&mut self, slot: usize, len: usize, holds: &Holds) {
        let bytes = &mut self.slots[slot][HEADROOM..HEADROOM + len];
        let Ok(inner) = packet::parse(bytes) else {
            return self.shared.traffic.dropped(DropReason::MalformedInner);
        };
        let child = self.shared.tables().outbound(&inner.selectors).cloned();
        let Some(child) = child else {
            return self.no_child(&inner.selectors);
        };
        let way = child.way(self.clock.instant);
        if let Some(hold) = holds.of(way.outer.local.ip()) {
            return hold.push(Packet::Clear(bytes.to_vec()));
        }
        if !child.gate.is_open(self.clock.boot) {
            return child.dropped(DropReason::NoLease, &self.shared.traffic);
        }
        let path_mtu = way
            .mtu
            .unwrap_or_else(|| ask_path_mtu(&self.shared, &child, &way, self.clock.instant));
        let Some(mut to) = destination(&self.shared, &child, &way.outer, inner.traffic_class)
        else {
            return child.dropped(DropReason::SendFailed, &self.shared.traffic);
        };
        let limit = child.max_inner(&way.outer, path_mtu);
        mss::clamp(bytes, limit.min(self.shared.config.tun_mtu as usize));
        let ipv6 = inner.selectors.destination.is_ipv6();
        to.fragmentable = ipv6 && inner.total_len > limit && inner.total_len <= MIN_MTU_V6;
        if inner.total_len > limit && !to.fragmentable {
            let limit = if ipv6 { limit.max(MIN_MTU_V6) } else { limit };
            return self.too_big(slot, &child, &inner, limit, to);
        }
        let range = HEADROOM..HEADROOM + inner.total_len;
        let sealed = seal(
            &self.shared,
            &child,
            &mut self.slots[slot],
            range,
            &self.clock,
        );
        let Some(range) = sealed else { return };
        self.pending.push(Pending {
            child,
            slot,
            range,
            inner_len: inner.total_len,
            to,
        });
    }

    fn no_child(&mut self, packet: &PacketSelectors) {
        self.shared.traffic.dropped(DropReason::NoChild);
        let (src, dst) = (packet.source, packet.destination);
        if is_housekeeping(dst) || !self.limit.admit((src, dst), self.clock.instant) {
            return;
        }
        // Advisory: the next packet tells again.
        let _ = self.shared.events.tell(PlaneEvent::NoChild {
            src,
            dst,
            protocol: packet.protocol,
            ports: packet.ports,
        });
    }

    /// Tells the sender, or cuts the packet, before encryption (RFC 4301 §8).
    fn too_big(
        &mut self,
        slot: usize,
        child: &Arc<Child>,
        inner: &Inner,
        limit: usize,
        to: Destination,
    ) {
        let bytes = &self.slots[slot][HEADROOM..HEADROOM + inner.total_len];
        if inner.dont_fragment {
            child.dropped(DropReason::TooBig, &self.shared.traffic);
            // In the destination's name: that passes the reverse path filter, and no host cares which router speaks.
            let source = inner.selectors.destination;
            if let Some(message) = icmp::too_big(bytes, limit, source)
                && let Err(error) = self.shared.tun.write(&message)
            {
                tracing::debug!(%error, "cannot tell the sender that its packet is too big");
            }
            return;
        }
        let Ok(fragments) = fragment::ipv4(bytes, limit) else {
            return child.dropped(DropReason::TooBig, &self.shared.traffic);
        };
        // What came before goes before: then the slot is free for one fragment after the other.
        self.flush();
        for fragment in fragments {
            let range = HEADROOM..HEADROOM + fragment.len();
            self.slots[slot][range.clone()].copy_from_slice(&fragment);
            let sealed = seal(
                &self.shared,
                child,
                &mut self.slots[slot],
                range,
                &self.clock,
            );
            let Some(range) = sealed else { return };
            self.pending.push(Pending {
                child: Arc::clone(child),
                slot,
                range,
                inner_len: fragment.len(),
                to,
            });
            self.flush();
        }
    }

    /// Sends what is sealed, one system call per socket. The order within an SA stays: it uses one socket.
    fn flush(&mut self) {
        let sockets = self.shared.sockets.all();
        for (index, socket) in sockets.iter().enumerate() {
            let of_socket = |p: &&Pending| p.to.exit == Exit::Socket(index);
            let group: Vec<&Pending> = self.pending.iter().filter(of_socket).collect();
            // Runs of those that may be fragmented, which is rare, and of the others.
            for run in group.chunk_by(|a, b| a.to.fragmentable == b.to.fragmentable) {
                self.send(socket, run);
            }
        }
        for run in self.pending.chunk_by(|a, b| a.to.exit == b.to.exit) {
            if let Some(Exit::Tcp(ends, end)) = run.first().map(|p| p.to.exit) {
                self.send_by_tcp(ends, end, run);
            }
        }
        self.pending.clear();
    }

    /// Sends by a connection what it takes.
    fn send_by_tcp(&self, ends: Ends, end: TcpEnd, run: &[Pending]) {
        let packets = run.iter().map(|p| &self.slots[p.slot][p.range.clone()]);
        let taken = self.shared.tcp.send_esp(ends, end, packets);
        let (sent, lost) = run.split_at(taken.unwrap_or(0));
        for p in sent {
            self.sent(p);
        }
        let reason = match taken {
            Some(_) => DropReason::TcpFull,
            None => DropReason::NotConnected,
        };
        for p in lost {
            p.child.dropped(reason, &self.shared.traffic);
        }
    }

    fn send(&self, socket: &OuterSocket, group: &[&Pending]) {
        let messages: Vec<_> = group.iter().map(|p| self.outgoing(p)).collect();
        let mut next = 0;
        while next < messages.len() {
            let sent = if group[next].to.fragmentable {
                socket.send_fragmentable(messages[next]).map(|()| 1)
            } else {
                socket.send(&messages[next..])
            };
            match sent {
                Ok(count) => {
                    for p in &group[next..next + count] {
                        self.sent(p);
                    }
                    // A count of zero does not occur; if it did, nothing would go on.
                    next += count.max(1);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failed(group[next], &e);
                    next += 1;
                }
            }
        }
    }

    fn outgoing(&self, p: &Pending) -> Outgoing<'_> {
        Outgoing {
            data: &self.slots[p.slot][p.range.clone()],
            prefix: &[],
            to: p.to.remote,
            from: p.to.local,
            traffic_class: Some(p.to.traffic_class),
        }
    }

    fn sent(&self, p: &Pending) {
        p.child.traffic.sent(p.inner_len);
        p.child.last_outbound.set(self.clock.unix_ms);
        self.shared.traffic.sent(p.inner_len);
    }

    fn failed(&self, p: &Pending, error: &io::Error) {
        let reason = if error.raw_os_error() == Some(libc::EMSGSIZE) {
            // A router reported a smaller MTU since we asked. The packet is encrypted in its place, so it is lost; its sender
            // learns of the limit with the next one.
            p.child.forget_mtu();
            DropReason::TooBig
        } else {
            tracing::debug!(to = %p.to.remote, %error, "cannot send ESP");
            DropReason::SendFailed
        };
        p.child.dropped(reason, &self.shared.traffic);
    }
}

/// The way for an inner packet of this traffic class. `None` if there is no socket of the family.
fn destination(shared: &Shared, child: &Child, outer: &Outer, class: u8) -> Option<Destination> {
    let dscp = if child.copy_dscp {
        OuterDscp::Copy
    } else {
        OuterDscp::Fixed(0)
    };
    let mut remote = outer.remote;
    let socket = |role| shared.sockets.index(role, outer.remote.is_ipv4());
    let exit = match outer.encapsulation {
        Encapsulation::Udp => Exit::Socket(socket(Role::Nat)?),
        Encapsulation::None => {
            // In raw sockets a port would be a protocol.
            remote.set_port(0);
            Exit::Socket(socket(Role::Esp)?)
        }
        Encapsulation::Tcp(end) => Exit::Tcp(
            Ends {
                local: outer.local,
                remote,
            },
            end,
        ),
    };
    Some(Destination {
        exit,
        remote,
        local: outer.local.ip(),
        traffic_class: tunnel::outer_traffic_class(class, dscp),
        fragmentable: false,
    })
}

/// Takes a sequence number and encrypts. Yields where the ESP packet is.
fn seal(
    shared: &Shared,
    child: &Child,
    buffer: &mut [u8],
    inner: Range<usize>,
    clock: &Clock,
) -> Option<Range<usize>> {
    let low = |remaining| {
        let event = PlaneEvent::LowReservation {
            spi_in: child.spi_in,
            remaining,
            rate: child.reserve.peak(),
        };
        if !shared.events.tell(event) {
            child.reserve.not_told();
        }
    };
    let Ok(seq) = child.outbound.next_seq() else {
        child.dropped(DropReason::Exhausted, &shared.traffic);
        if child.reserve.should_tell() {
            low(0);
        }
        return None;
    };
    if let Some(remaining) = child.reserve.used(clock.ms) {
        low(remaining);
    }
    let next_header = packet::next_header(&buffer[inner.clone()]);
    let sealed = next_header.and_then(|h| child.outbound.seal(seq, h, buffer, inner).ok());
    if sealed.is_none() {
        child.dropped(DropReason::MalformedInner, &shared.traffic);
    }
    sealed
}

/// Without an answer the path is taken to be as wide as the narrowest Ethernet; the next error asks again.
fn ask_path_mtu(shared: &Shared, child: &Child, way: &Way, now: Instant) -> u32 {
    let (from, to) = (way.outer.local.ip(), way.outer.remote.ip());
    let mtu = shared.sockets.path_mtu(from, to).unwrap_or_else(|error| {
        tracing::debug!(%to, %error, "path MTU is not known");
        1500
    });
    child.learn_mtu(way, mtu, now)
}

/// Whether nobody would want a tunnel for it: neighbour and group management that the kernel sends by itself.
fn is_housekeeping(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_link_local(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
    }
}
