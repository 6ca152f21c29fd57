//! A Child SA in the plane.

use crate::{
    ChildSa, ChildStats, DropReason, Encapsulation, Ends, Gate, HeaderPolicy, Mode, Outer,
    PlaneError,
    counters::{Counter, Traffic},
    path::Path,
    reserve::Reserve,
    sender::Sender,
    userspace::Direction,
};
use arc_swap::ArcSwap;
use evergate_esp::{
    InboundSa, Key, OutboundSa, ReplayWindow, Selectors, mtu, prefetch, prefetch_some,
};
use std::{
    mem::offset_of,
    net::IpAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Length of a TCP header with timestamps, and of the length before each message (RFC 9329 §3).
const TCP_AND_LENGTH: usize = 20 + 12 + 2;

/// A Child SA. What packets need lies together, in the order that is written here.
#[repr(C)]
pub(crate) struct Child {
    pub(crate) spi_in: u32,
    /// Another Child SA sends in its place, as long as there is one.
    pub(crate) gives_way: AtomicBool,
    pub(crate) sender: Sender,
    pub(crate) headers: HeaderPolicy,
    /// The ends, in transport mode; apart, because few have any.
    pub(crate) transport: Option<Box<Ends>>,
    pub(crate) path: ArcSwap<Path>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) traffic: Traffic,
    /// Unix milliseconds; 0 for never.
    pub(crate) last_inbound: Counter,
    /// Unix milliseconds; 0 for never.
    pub(crate) last_outbound: Counter,
    pub(crate) reserve: Reserve,
    pub(crate) outbound: OutboundSa,
    pub(crate) inbound: InboundSa,
    /// The source that routes to its peer's side should have.
    pub(crate) source_hint: Option<IpAddr>,
}

impl Child {
    pub(crate) fn new(sa: &ChildSa) -> Result<Self, PlaneError> {
        if sa.spi_in < 256 || sa.spi_out < 256 {
            return Err(PlaneError::SpiReserved(sa.spi_in.min(sa.spi_out)));
        }
        let key = |material: &[u8]| Key::new(sa.cipher, material).map_err(|_| PlaneError::Key);
        let window = ReplayWindow::new(sa.replay_window as usize);
        if let Some(edge) = sa.replay_edge {
            window.resume_from(edge);
        }
        let selectors = Selectors {
            local: sa.local_ts.clone(),
            remote: sa.remote_ts.clone(),
        };
        let child = Self {
            spi_in: sa.spi_in,
            inbound: InboundSa::new(sa.spi_in, key(&sa.key_in)?, sa.esn, selectors, window),
            outbound: OutboundSa::new(sa.spi_out, key(&sa.key_out)?, sa.esn),
            headers: sa.headers,
            transport: match sa.mode {
                Mode::Tunnel => None,
                Mode::Transport(ends) => Some(Box::new(ends)),
            },
            gate: Arc::clone(&sa.gate),
            traffic: Traffic::default(),
            reserve: Reserve::default(),
            last_inbound: Counter::default(),
            last_outbound: Counter::default(),
            gives_way: AtomicBool::new(false),
            source_hint: sa.source_hint,
            sender: Sender::default(),
            path: ArcSwap::new(Path::new(sa.outer)),
        };
        if !sa.reservation.is_empty() {
            child.extend(sa.reservation.clone())?;
        }
        Ok(child)
    }

    pub(crate) fn extend(&self, range: Range<u64>) -> Result<(), PlaneError> {
        if range.is_empty() {
            return Err(PlaneError::Reservation(range));
        }
        self.outbound
            .extend(range.clone())
            .map_err(|_| PlaneError::Reservation(range.clone()))?;
        self.reserve.extended(range.end - range.start);
        Ok(())
    }

    /// What was learnt of the path before is not taken for the new one.
    pub(crate) fn move_to(&self, outer: Outer) {
        self.path.store(Path::new(outer));
    }

    /// Has the memory of this fetched that packets in this direction need.
    pub(crate) fn fetch(&self, direction: Direction) {
        prefetch_some(self, offset_of!(Self, outbound));
        match direction {
            Direction::Out => self.outbound.fetch(),
            Direction::In | Direction::Tcp => self.inbound.fetch(),
        }
    }

    /// The same for what this points to.
    pub(crate) fn warm(&self, direction: Direction) {
        match direction {
            Direction::Out => self.outbound.warm(),
            Direction::In | Direction::Tcp => self.inbound.warm(),
        }
        prefetch(&**self.path.load());
    }

    /// The largest inner packet for this path MTU.
    pub(crate) fn max_inner(&self, outer: &Outer, path_mtu: u32) -> usize {
        // What transport mode carries is counted with the IP header that stays outside.
        let outside = match &self.transport {
            None => 0,
            Some(ends) if ends.local.is_ipv4() => mtu::Family::V4.header_len(),
            Some(_) => mtu::Family::V6.header_len(),
        };
        outside + self.max_covered(outer, path_mtu)
    }

    /// The largest payload of ESP for this path MTU.
    fn max_covered(&self, outer: &Outer, path_mtu: u32) -> usize {
        let family = if outer.remote.is_ipv4() {
            mtu::Family::V4
        } else {
            mtu::Family::V6
        };
        let cipher = self.outbound.key().cipher();
        let path_mtu = path_mtu as usize;
        match outer.encapsulation {
            Encapsulation::None => mtu::max_inner(path_mtu, cipher, family, false),
            Encapsulation::Udp => mtu::max_inner(path_mtu, cipher, family, true),
            // Whatever fits a segment: a stream takes more, but then one that is lost holds up two packets (RFC 9329 §9.4).
            Encapsulation::Tcp(_) => mtu::max_inner(
                path_mtu.saturating_sub(TCP_AND_LENGTH),
                cipher,
                family,
                false,
            ),
        }
    }

    /// Whether its peer sends on it while another sends to the peer: true once.
    pub(crate) fn is_shown_to_be_there(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed) && self.gives_way.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self, reason: DropReason, plane: &Traffic) {
        self.dropped_many(reason, 1, plane);
    }

    pub(crate) fn dropped_many(&self, reason: DropReason, packets: usize, plane: &Traffic) {
        self.traffic.dropped_many(reason, packets);
        plane.dropped_many(reason, packets);
    }

    /// The highest sequence number that was received.
    pub(crate) fn replay_edge(&self) -> u64 {
        self.inbound.right_edge()
    }

    pub(crate) fn stats(&self, outbound_active: bool) -> ChildStats {
        let path = self.path.load();
        let remaining = self.outbound.remaining();
        ChildStats {
            packets_in: self.traffic.packets_in.get(),
            bytes_in: self.traffic.bytes_in.get(),
            packets_out: self.traffic.packets_out.get(),
            bytes_out: self.traffic.bytes_out.get(),
            last_inbound: time(self.last_inbound.get()),
            last_outbound: time(self.last_outbound.get()),
            next_sequence: (remaining > 0).then(|| self.outbound.peek_seq()),
            remaining,
            replay_edge: self.replay_edge(),
            path_mtu: path.last_mtu(),
            outbound_active,
            seen_remote: path.seen(),
            drops: self.traffic.drops(),
        }
    }
}

fn time(unix_ms: u64) -> Option<SystemTime> {
    (unix_ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms))
}

#[cfg(test)]
#[path = "child/tests.rs"]
pub(crate) mod tests;
