//! From the TUN device to the peers.

use crate::{
    DropReason, Packet, PlaneEvent,
    child::Child,
    counters::RateLimit,
    departure,
    exit::{Destination, ask_path_mtu, destination},
    hold::Holds,
    intake::Intake,
    sender::Claims,
    tap::{MaybeTapped, Note, Tapped},
    train::Train,
    userspace::{Clock, Direction, Shared},
    virtio::{self, Left},
};
use evergate_esp::{
    SequenceNumber, SequenceNumbers, fragment, icmp, mss,
    packet::{self, Fragment, Inner, PacketSelectors},
    protocol,
    reassembly::{Added, Reassembler},
    segment::{self, Kind, Segments},
    transport,
};
use std::{io, mem, net::IpAddr, sync::Arc};

/// Packets that are read from the device before the clock is read again and whoever wants to hold them back gets a turn. A large one counts once.
const READS: usize = 64;
/// Packets that were held back and are taken at a time.
const FED: usize = 32;
/// IPv6 promises every packet of this size a way (RFC 8200 §5): where the path is narrower, outer packets are fragmented.
const MIN_MTU_V6: usize = 1280;

/// The thread that reads a queue of the TUN device.
pub(crate) struct Outbound {
    shared: Arc<Shared>,
    worker: usize,
    /// The packets that were read.
    intake: Intake,
    train: Train,
    claims: Claims,
    /// Packets for transport mode of which the kernel has made fragments.
    fragments: Reassembler,
    limit: RateLimit,
    clock: Clock,
    /// The captures of this batch.
    tapped: Option<Tapped>,
}

/// What came of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
enum Attempt {
    /// It is seen to: on its way, held back or counted.
    Done,
    /// Its Child SA sends no more, and another has taken its place since: it goes by that.
    Overtaken,
}

/// Where a packet goes, and how long it may be.
struct Exits {
    child: Arc<Child>,
    to: Destination,
    limit: usize,
}

impl Outbound {
    pub(crate) fn new(shared: Arc<Shared>, worker: usize) -> Self {
        let clock = shared.clock();
        Self {
            intake: Intake::new(),
            train: Train::new(),
            claims: Claims::new(worker),
            fragments: Reassembler::default(),
            limit: RateLimit::share(clock.instant, shared.workers),
            clock,
            tapped: None,
            worker,
            shared,
        }
    }

    /// Runs until the plane stops.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut fds = vec![shared.tun.queue(self.worker)];
        if self.worker == 0 {
            fds.push(&shared.clear);
        }
        while shared.wait(&fds, None).is_some() {
            self.clock = shared.clock();
            if self.worker == 0 {
                shared.clear.calm();
            }
            if let Err(error) = self.batch() {
                tracing::error!(%error, "cannot read the TUN device: this worker sends nothing any more");
                return;
            }
        }
    }

    /// What was held back comes before what the device has.
    fn fed(&mut self, shared: &Shared, holds: &Holds) {
        shared.clear.empty(FED, |packets| {
            for packet in packets {
                match packet {
                    Packet::Clear(mut bytes) => self.packet(&mut bytes, holds),
                    Packet::Outer(_) => shared.traffic.dropped(DropReason::MalformedInner),
                }
            }
            self.depart();
        });
    }

    fn batch(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let holds = shared.enter(Direction::Out, self.worker);
        self.tapped = shared.taps.now();
        self.fed(&shared, &holds);
        let read = self.read(&holds);
        self.depart();
        read
    }

    fn read(&mut self, holds: &Holds) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let (mut left, mut more) = (READS, Ok(true));
        while left > 0 && matches!(more, Ok(true)) {
            // Out of the way of the packets in it.
            let mut intake = mem::take(&mut self.intake);
            more = intake.fill(&shared.tun, self.worker, left);
            intake.look_ahead(&shared.tables);
            left -= intake.len();
            for (header, packet) in intake.packets() {
                self.arrived(header, packet, holds);
            }
            self.intake = intake;
        }
        more.map(|_| ())
    }

    /// A packet as the device gave it.
    fn arrived(&mut self, header: &[u8; virtio::LEN], packet: &mut [u8], holds: &Holds) {
        match virtio::parse(header) {
            Some(Left::Nothing) => self.packet(packet, holds),
            Some(Left::Checksum { start, offset }) => {
                match segment::complete_checksum(packet, start, offset) {
                    Ok(()) => self.packet(packet, holds),
                    Err(_) => self.shared.traffic.dropped(DropReason::MalformedInner),
                }
            }
            Some(Left::Segments(kind, size)) => self.large(packet, kind, size, holds),
            None => self.shared.traffic.dropped(DropReason::MalformedInner),
        }
    }

    /// The Child SA for a packet, unless it waits or must not go; then `held` is told so, or it was counted so many times.
    fn exits(
        &mut self,
        bytes: &[u8],
        inner: &Inner,
        count: usize,
        holds: &Holds,
        held: impl FnOnce(&crate::Hold),
    ) -> Option<Exits> {
        let tables = &self.shared.tables;
        let child = tables.outbound(&inner.selectors).or_else(|| {
            // An error goes the way of what answers the packet that it is about (RFC 4301 §6.2).
            let answers = icmp::answers(bytes, inner)?;
            tables.outbound(&answers)
        });
        let Some(child) = child else {
            self.no_child(&inner.selectors, count);
            return None;
        };
        let path = child.path.load();
        if let Some(hold) = holds.of(path.outer.local.ip()) {
            held(hold);
            return None;
        }
        if !child.gate.is_open(self.clock.boot) {
            self.refused(&child, DropReason::NoLease, count, bytes);
            return None;
        }
        let ask = || ask_path_mtu(&self.shared, &path);
        let path_mtu = self.shared.paths.mtu(&path, self.clock.ms, ask);
        let Some(to) = destination(
            &self.shared,
            self.worker,
            &child,
            &path,
            inner.traffic_class,
            &self.clock,
        ) else {
            self.refused(&child, DropReason::SendFailed, count, bytes);
            return None;
        };
        let limit = child.max_inner(&path.outer, path_mtu);
        drop(path);
        self.claim(&child);
        Some(Exits { child, to, limit })
    }

    /// From now on until what is sealed departs, nobody else sends on this Child SA.
    fn claim(&mut self, child: &Arc<Child>) {
        if self.shared.workers > 1 && !self.claims.claim(child) {
            self.depart();
            self.claims.wait(child, &self.shared.waiters);
        }
    }

    fn packet(&mut self, bytes: &mut [u8], holds: &Holds) {
        self.packet_of(bytes, holds, false);
    }

    /// A fragment that is for transport mode. Once the packet is whole it goes on, and may be cut again behind ESP.
    fn fragment(&mut self, bytes: &[u8], inner: &Inner, holds: &Holds) {
        let (added, given_up) = self.fragments.add(bytes, inner);
        if given_up {
            self.shared.traffic.dropped(DropReason::NotTransportable);
        }
        match added {
            Added::Waits => {}
            Added::Lost => self.shared.traffic.dropped(DropReason::NotTransportable),
            Added::Whole(mut packet) => self.packet_of(&mut packet, holds, true),
        }
    }

    /// `was_cut`: the kernel had made fragments of it, and so may we.
    fn packet_of(&mut self, bytes: &mut [u8], holds: &Holds, was_cut: bool) {
        let Ok(inner) = packet::parse(bytes) else {
            return self.shared.traffic.dropped(DropReason::MalformedInner);
        };
        while self.attempt(bytes, &inner, holds, was_cut) == Attempt::Overtaken {}
    }

    /// Sends a packet by the Child SA that is for it now, or sees to what becomes of it otherwise.
    fn attempt(
        &mut self,
        bytes: &mut [u8],
        inner: &Inner,
        holds: &Holds,
        was_cut: bool,
    ) -> Attempt {
        if self.fragments.waits_for(bytes, inner) {
            self.fragment(bytes, inner, holds);
            return Attempt::Done;
        }
        let hold = |hold: &crate::Hold| hold.push(Packet::Clear(bytes.to_vec()));
        let Some(exits) = self.exits(bytes, inner, 1, holds, hold) else {
            return Attempt::Done;
        };
        let Exits {
            child,
            mut to,
            limit,
        } = exits;
        if child.transport.is_some() && inner.fragment != Fragment::No {
            self.fragment(bytes, inner, holds);
            return Attempt::Done;
        }
        if mss::concerns(bytes, inner) {
            mss::clamp(bytes, limit.min(self.shared.config.tun_mtu as usize));
        }
        let ipv6 = inner.selectors.destination.is_ipv6();
        let fragmentable = may_be_cut(&child)
            || inner.total_len > limit
                && match ipv6 {
                    true => was_cut || inner.total_len <= MIN_MTU_V6,
                    // Transport mode covers whole packets: they are cut behind it, not before (RFC 4303 §3.3.4).
                    false => child.transport.is_some() && !inner.dont_fragment,
                };
        let bytes = &bytes[..inner.total_len];
        if fragmentable {
            match to.fragmentable(&self.shared, self.worker) {
                Some(other) => to = other,
                None => {
                    self.refused(&child, DropReason::SendFailed, 1, bytes);
                    return Attempt::Done;
                }
            }
        }
        if inner.total_len > limit && !to.fragmentable {
            let limit = if ipv6 { limit.max(MIN_MTU_V6) } else { limit };
            return self.too_big(bytes, &child, inner, limit, to);
        }
        match covered(&child, bytes, inner) {
            Ok(covered) => self.seal_one(&child, to, &covered, inner),
            Err(reason) => {
                self.refused(&child, reason, 1, bytes);
                Attempt::Done
            }
        }
    }

    /// A packet that stands for many.
    fn large(&mut self, bytes: &[u8], kind: Kind, size: usize, holds: &Holds) {
        let parsed = packet::parse(bytes);
        let segments = parsed.map(|inner| (inner, Segments::new(bytes, &inner, kind, size)));
        let Ok((inner, Ok(segments))) = segments else {
            return self.shared.traffic.dropped(DropReason::MalformedInner);
        };
        let each = |from: usize, take: &mut dyn FnMut(Vec<u8>)| {
            for i in from..segments.count() {
                let mut packet = vec![0; segments.len(i)];
                segments.write(i, &mut packet);
                take(packet);
            }
        };
        let hold = |hold: &crate::Hold| each(0, &mut |packet| hold.push(Packet::Clear(packet)));
        let Some(exits) = self.exits(bytes, &inner, segments.count(), holds, hold) else {
            return;
        };
        let alone = exits.child.transport.is_some() || may_be_cut(&exits.child);
        if segments.max_len() > exits.limit || alone {
            // Seldom: the path is narrower than the device says, and its senders are about to be told; or the headers stay outside, or have no DF.
            return each(0, &mut |mut packet| self.packet(&mut packet, holds));
        }
        let (mut next, next_header) = (0, packet::next_header(bytes));
        let (spi_in, tapped) = (exits.child.spi_in, self.tapped.clone());
        while next < segments.count() {
            let left = segments.count() - next;
            let Some(numbers) = self.numbers(&exits.child, left) else {
                if self.no_number(&exits.child, &inner.selectors, left, bytes) == Attempt::Overtaken
                {
                    return each(next, &mut |mut packet| self.packet(&mut packet, holds));
                }
                return;
            };
            for number in numbers {
                let put = |room: &mut [u8]| {
                    segments.write(next, room);
                    tapped.clear(spi_in, true, room, None);
                };
                let len = segments.len(next);
                self.seal(&exits.child, exits.to, number, (len, len), next_header, put);
                next += 1;
            }
        }
    }

    /// So many packets of a Child SA go no further. Of those in a large packet a capture has it instead.
    fn refused(&self, child: &Child, reason: DropReason, count: usize, packet: &[u8]) {
        child.dropped_many(reason, count, &self.shared.traffic);
        let note = Some(Note::Dropped(reason));
        self.tapped.clear(child.spi_in, true, packet, note);
    }

    fn no_child(&mut self, packet: &PacketSelectors, count: usize) {
        let traffic = &self.shared.traffic;
        traffic.dropped_many(DropReason::NoChild, count);
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
        bytes: &[u8],
        child: &Arc<Child>,
        inner: &Inner,
        limit: usize,
        to: Destination,
    ) -> Attempt {
        if inner.dont_fragment {
            self.refused(child, DropReason::TooBig, 1, bytes);
            // In the destination's name: that passes the reverse path filter, and no host cares which router speaks.
            let source = inner.selectors.destination;
            if let Some(message) = icmp::too_big(bytes, limit, source)
                && let Err(error) = self.shared.tun.write(&message)
            {
                tracing::debug!(%error, "cannot tell the sender that its packet is too big");
            }
            return Attempt::Done;
        }
        let Ok(fragments) = fragment::ipv4(bytes, limit) else {
            self.refused(child, DropReason::TooBig, 1, bytes);
            return Attempt::Done;
        };
        for fragment in fragments {
            let covered = Covered {
                bytes: &fragment,
                packet: &fragment,
                next_header: protocol::IPV4,
                inner_len: fragment.len(),
            };
            // Then those that are under way go again, which hurts nobody.
            if self.seal_one(child, to, &covered, inner) == Attempt::Overtaken {
                return Attempt::Overtaken;
            }
        }
        Attempt::Done
    }

    /// Takes sequence numbers, up to so many. `None` if there is not one.
    fn numbers(&self, child: &Child, most: usize) -> Option<SequenceNumbers> {
        let numbers = child.outbound.next_seqs(most).ok()?;
        if let Some(remaining) = child.reserve.used(numbers.len() as u64, self.clock.ms) {
            self.low(child, remaining);
        }
        Some(numbers)
    }

    /// There is no number for so many packets: they are lost, unless the Child SA was replaced since they were given to it.
    fn no_number(
        &self,
        child: &Arc<Child>,
        packet: &PacketSelectors,
        count: usize,
        bytes: &[u8],
    ) -> Attempt {
        let sends_now = self.shared.tables.outbound(packet);
        if sends_now.is_some_and(|other| !Arc::ptr_eq(&other, child)) {
            return Attempt::Overtaken;
        }
        self.refused(child, DropReason::Exhausted, count, bytes);
        if child.reserve.should_tell() {
            self.low(child, 0);
        }
        Attempt::Done
    }

    fn low(&self, child: &Child, remaining: u64) {
        let event = PlaneEvent::LowReservation {
            spi_in: child.spi_in,
            remaining,
            rate: child.reserve.peak(),
        };
        if !self.shared.events.tell(event) {
            child.reserve.not_told();
        }
    }

    fn seal_one(
        &mut self,
        child: &Arc<Child>,
        to: Destination,
        covered: &Covered<'_>,
        inner: &Inner,
    ) -> Attempt {
        let Some(number) = self.numbers(child, 1).and_then(|mut n| n.next()) else {
            return self.no_number(child, &inner.selectors, 1, covered.packet);
        };
        self.tapped.clear(child.spi_in, true, covered.packet, None);
        let put = |room: &mut [u8]| room.copy_from_slice(covered.bytes);
        let lens = (covered.bytes.len(), covered.inner_len);
        self.seal(child, to, number, lens, Some(covered.next_header), put);
        Attempt::Done
    }

    /// Puts so many bytes, which are or stand for an inner packet of this length, behind the others and encrypts them there.
    fn seal(
        &mut self,
        child: &Arc<Child>,
        to: Destination,
        number: SequenceNumber,
        (len, inner_len): (usize, usize),
        next_header: Option<u8>,
        put: impl FnOnce(&mut [u8]),
    ) {
        if self.train.is_full() {
            self.depart();
        }
        let (buffer, inner) = self.train.room(child.outbound.head_len(), len);
        put(&mut buffer[inner.clone()]);
        let sealed = next_header.and_then(|h| child.outbound.seal(number, h, buffer, inner).ok());
        match sealed {
            Some(sealed) => self.train.add(child, to, sealed, inner_len),
            None => child.dropped(DropReason::MalformedInner, &self.shared.traffic),
        }
    }

    /// Sends what is sealed.
    fn depart(&mut self) {
        let (train, unix_ms) = (&self.train, self.clock.unix_ms);
        departure::depart(&self.shared, self.worker, train, &self.tapped, unix_ms);
        self.train.clear();
        self.claims.release(&self.shared.waiters);
    }
}

/// Whether its packets may be cut on their way, whatever those inside say.
fn may_be_cut(child: &Child) -> bool {
    !child.headers.df && child.transport.is_none()
}

/// What ESP covers of a packet, and what that is.
struct Covered<'b> {
    bytes: &'b [u8],
    /// The whole packet.
    packet: &'b [u8],
    next_header: u8,
    inner_len: usize,
}

/// What ESP covers of a packet that goes by this Child SA.
fn covered<'b>(child: &Child, packet: &'b [u8], inner: &Inner) -> Result<Covered<'b>, DropReason> {
    let (range, next_header) = match child.transport {
        None => {
            let next_header = packet::next_header(packet).ok_or(DropReason::MalformedInner)?;
            (0..inner.total_len, next_header)
        }
        Some(_) => transport::covered(packet, inner).map_err(|_| DropReason::NotTransportable)?,
    };
    Ok(Covered {
        bytes: &packet[range],
        packet: &packet[..inner.total_len],
        next_header,
        inner_len: inner.total_len,
    })
}

/// Whether nobody would want a tunnel for it: neighbour and group management that the kernel sends by itself.
fn is_housekeeping(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_link_local(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
    }
}
