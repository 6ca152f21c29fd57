//! A Child SA in the plane, and the tables that lead to it.

use crate::{
    ChildSa, ChildStats, DropReason, Encapsulation, Ends, Gate, Mode, Outer, PlaneError,
    counters::{Counter, Traffic},
    reserve::Reserve,
};
use evergate_esp::{
    Action, Entry, InboundSa, Key, OutboundSa, PolicyId, ReplayWindow, Sad, Selectors, Spd, mtu,
    packet::PacketSelectors,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// What was learnt of a path is believed for so long (RFC 8201 §4: at least five minutes, ten recommended).
const PATH_MTU_LIFETIME: Duration = Duration::from_secs(600);
/// No path has less (RFC 1122 §3.3.2, RFC 8200 §5).
const MIN_PATH_MTU_V4: u32 = 576;
const MIN_PATH_MTU_V6: u32 = 1280;
/// Length of a TCP header with timestamps, and of the length before each message (RFC 9329 §3).
const TCP_AND_LENGTH: usize = 20 + 12 + 2;
/// How many Child SAs there can be: several times what one member is to carry.
const MAX_CHILDREN: usize = 1 << 20;

/// A Child SA.
pub(crate) struct Child {
    pub(crate) spi_in: u32,
    pub(crate) inbound: InboundSa,
    pub(crate) outbound: OutboundSa,
    pub(crate) copy_dscp: bool,
    /// The ends, in transport mode; apart, because few have any.
    pub(crate) transport: Option<Box<Ends>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) traffic: Traffic,
    pub(crate) reserve: Reserve,
    /// Unix milliseconds; 0 for never.
    pub(crate) last_inbound: Counter,
    /// Unix milliseconds; 0 for never.
    pub(crate) last_outbound: Counter,
    /// Another Child SA sends in its place, as long as there is one.
    gives_way: AtomicBool,
    /// The source that routes to its peer's side should have.
    pub(crate) source_hint: Option<IpAddr>,
    path: Mutex<Path>,
}

#[derive(Clone, Copy, Debug)]
struct Path {
    outer: Outer,
    /// And until when it is believed.
    mtu: Option<(u32, Instant)>,
    /// Where the last authentic packet came from, by UDP or TCP.
    seen: Option<SocketAddr>,
    /// Counts moves, so that what was learnt of the old path is not taken for the new.
    version: u64,
}

/// What sending needs of a path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) outer: Outer,
    /// `None` if it is to be asked from the kernel.
    pub(crate) mtu: Option<u32>,
    version: u64,
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
            copy_dscp: sa.copy_dscp,
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
            path: Mutex::new(Path {
                outer: sa.outer,
                mtu: None,
                seen: None,
                version: 0,
            }),
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

    pub(crate) fn move_to(&self, outer: Outer) {
        let mut path = self.path();
        *path = Path {
            outer,
            mtu: None,
            seen: None,
            version: path.version + 1,
        };
    }

    pub(crate) fn way(&self, now: Instant) -> Way {
        let path = *self.path();
        let mtu = path.mtu.filter(|(_, until)| now < *until);
        Way {
            outer: path.outer,
            mtu: mtu.map(|(mtu, _)| mtu),
            version: path.version,
        }
    }

    /// Notes the path MTU that the kernel named. It cannot be below what every path has. Yields it so.
    pub(crate) fn learn_mtu(&self, way: &Way, mtu: u32, now: Instant) -> u32 {
        let floor = if way.outer.remote.is_ipv4() {
            MIN_PATH_MTU_V4
        } else {
            MIN_PATH_MTU_V6
        };
        let mtu = mtu.max(floor);
        let mut path = self.path();
        if path.version == way.version {
            path.mtu = Some((mtu, now + PATH_MTU_LIFETIME));
        }
        mtu
    }

    /// A packet was too big after all: the kernel is to be asked again.
    pub(crate) fn forget_mtu(&self) {
        self.path().mtu = None;
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

    /// Notes where an authentic packet came from. Yields whether that is news, and not where the peer is thought to be.
    pub(crate) fn saw(&self, remote: SocketAddr) -> bool {
        let mut path = self.path();
        let news = path.seen.replace(remote) != Some(remote);
        news && remote != path.outer.remote
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
        let path = *self.path();
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
            path_mtu: path.mtu.map(|(mtu, _)| mtu),
            outbound_active,
            seen_remote: path.seen,
            drops: self.traffic.drops(),
        }
    }

    fn path(&self) -> MutexGuard<'_, Path> {
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time(unix_ms: u64) -> Option<SystemTime> {
    (unix_ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms))
}

/// From packets to Child SAs.
#[derive(Default)]
pub(crate) struct Tables {
    sad: Sad<Child>,
    spd: Spd<Child>,
    /// The policy of each Child SA that sends.
    sending: HashMap<u32, PolicyId>,
    /// Those that only receive any more, and until when.
    leaving: HashMap<u32, Instant>,
    /// The same in the order of time.
    ends: BTreeSet<(Instant, u32)>,
    /// Those that give way to others, and until when.
    behind: BTreeSet<(Instant, u32)>,
    activations: u64,
}

impl Tables {
    pub(crate) fn install(&mut self, sa: &ChildSa, now: Instant) -> Result<(), PlaneError> {
        let child = Arc::new(Child::new(sa)?);
        if self.sad.get(sa.spi_in).is_some() {
            return Err(PlaneError::SpiInUse(sa.spi_in));
        }
        if self.sad.len() >= MAX_CHILDREN {
            return Err(PlaneError::Limit("Child SAs"));
        }
        self.sad.insert(sa.spi_in, Arc::clone(&child));
        match sa.outbound_active {
            true if self.goes_behind(&child, now, sa.gives_way) => {}
            true => self.activate(&child),
            false => {}
        }
        Ok(())
    }

    /// The Child SA that receives with this SPI.
    pub(crate) fn inbound(&self, spi: u32) -> Option<&Arc<Child>> {
        self.sad.get(spi)
    }

    /// All Child SAs that have received anything. The many that have not cost little.
    pub(crate) fn received(&self) -> Vec<Arc<Child>> {
        let all = self.sad.iter().map(|(_, child)| child);
        all.filter(|child| child.last_inbound.get() != 0)
            .cloned()
            .collect()
    }

    /// The Child SA that sends this packet.
    pub(crate) fn outbound(&self, packet: &PacketSelectors) -> Option<&Arc<Child>> {
        self.spd.lookup(packet)?.active()
    }

    pub(crate) fn is_sending(&self, spi_in: u32) -> bool {
        self.sending.contains_key(&spi_in)
    }

    pub(crate) fn set_outbound(&mut self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        let child = self.staying(spi_in)?;
        match (active, self.is_sending(spi_in)) {
            (true, false) => self.activate(&child),
            (true, true) if child.is_shown_to_be_there() => self.bring_forward(spi_in),
            (false, true) => self.deactivate(spi_in),
            _ => {}
        }
        Ok(())
    }

    /// A Child SA that is not about to go.
    pub(crate) fn staying(&self, spi_in: u32) -> Result<Arc<Child>, PlaneError> {
        let child = self
            .sad
            .get(spi_in)
            .filter(|_| !self.leaving.contains_key(&spi_in));
        child.cloned().ok_or(PlaneError::NoSuchChild(spi_in))
    }

    /// Stops sending at once, receiving at `until`; another call for the same can only bring that forward. Yields the Child SA the
    /// first time.
    pub(crate) fn remove(
        &mut self,
        spi_in: u32,
        until: Instant,
    ) -> Result<Option<Arc<Child>>, PlaneError> {
        let child = self.sad.get(spi_in).map(Arc::clone);
        let child = child.ok_or(PlaneError::NoSuchChild(spi_in))?;
        child.outbound.revoke();
        self.deactivate(spi_in);
        let before = self.leaving.get(&spi_in).copied();
        let until = before.map_or(until, |t| until.min(t));
        if let Some(before) = before {
            self.ends.remove(&(before, spi_in));
        }
        self.leaving.insert(spi_in, until);
        self.ends.insert((until, spi_in));
        Ok(before.is_none().then_some(child))
    }

    /// Whether [`Self::sweep`] has something to do.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let first = [self.ends.first(), self.behind.first()];
        first.into_iter().flatten().any(|(until, _)| *until <= now)
    }

    /// Forgets those whose grace is over, and lets those send that gave way for long enough.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let pop = |set: &mut BTreeSet<(Instant, u32)>| {
            let due = set.first().is_some_and(|(until, _)| *until <= now);
            due.then(|| set.pop_first()).flatten()
        };
        while let Some((_, spi_in)) = pop(&mut self.ends) {
            self.leaving.remove(&spi_in);
            self.sad.remove(spi_in);
        }
        while let Some((_, spi_in)) = pop(&mut self.behind) {
            self.bring_forward(spi_in);
        }
    }

    /// Puts a Child SA behind one that has the same selectors, if there is one: that goes on sending.
    fn goes_behind(&mut self, child: &Arc<Child>, now: Instant, wait: Duration) -> bool {
        let same = self.spd.same(child.inbound.selectors());
        let (Some(id), false) = (same, wait.is_zero()) else {
            return false;
        };
        child.gives_way.store(true, Ordering::Relaxed);
        self.behind
            .insert((now.checked_add(wait).unwrap_or(now), child.spi_in));
        self.sending.insert(child.spi_in, id);
        self.spd.add_behind(id, Arc::clone(child))
    }

    /// A Child SA that gave way sends from now on.
    pub(crate) fn bring_forward(&mut self, spi_in: u32) {
        if !self.is_sending(spi_in) {
            return;
        }
        self.deactivate(spi_in);
        if let Some(child) = self.sad.get(spi_in).cloned() {
            child.gives_way.store(false, Ordering::Relaxed);
            self.activate(&child);
        }
    }

    /// One policy per sending Child SA: among policies with the same selectors the lowest id wins, so ids count down.
    fn activate(&mut self, child: &Arc<Child>) {
        self.activations += 1;
        let id = u64::MAX - self.activations;
        let selectors = Arc::clone(child.inbound.selectors());
        let mut entry = Entry::new(id, Action::Protect, 0, selectors);
        entry.add(Arc::clone(child), true);
        self.spd.insert(entry);
        self.sending.insert(child.spi_in, id);
    }

    fn deactivate(&mut self, spi_in: u32) {
        let (Some(id), Some(child)) = (self.sending.remove(&spi_in), self.sad.get(spi_in)) else {
            return;
        };
        self.spd.remove_sa(id, child);
        if self.spd.get(id).is_some_and(|e| e.sas().next().is_none()) {
            self.spd.remove(id);
        }
    }
}

#[cfg(test)]
#[path = "child/tests.rs"]
pub(crate) mod tests;
