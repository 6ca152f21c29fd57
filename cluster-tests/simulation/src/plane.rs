//! A data plane that keeps to the contract, and encrypts nothing: a packet says which key and which sequence number it would have.

use crate::{
    conductor::{self, Pid, Random},
    network::HostId,
    secrecy,
    world::{Datagram, world},
};
use evergate_dataplane::{
    Capabilities, ChildSa, ChildStats, DataPlane, DatagramKind, Hold, Outer, Packet, PlaneError,
    PlaneEvent, Protected, Selector, TcpEnd, Totals, Transport,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;

/// With less than this left more is asked for.
const LOW: u64 = 1 << 14;

/// The highest share of a packet in sequence numbers: as if so many had been sent at once.
const BURST: u64 = 3000;

/// What an ESP packet carries, in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Esp {
    pub(crate) spi: u32,
    /// Names the key.
    pub(crate) key: u64,
    pub(crate) sequence: u64,
    /// Names the inner packet.
    pub(crate) id: u64,
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
}

impl Esp {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.spi.to_be_bytes().to_vec();
        for word in [self.sequence, self.key, self.id] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            spi: half(0)?,
            sequence: word(4)?,
            key: word(12)?,
            id: word(20)?,
            from: half(28)?.into(),
            to: half(32)?.into(),
        })
    }
}

/// Names a key.
fn name_of(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

struct Installed {
    sa: ChildSa,
    /// When it was installed or activated, among the others.
    order: u64,
    since: u64,
    numbers: VecDeque<Range<u64>>,
    told_low: bool,
    edge: u64,
    seen: BTreeSet<u64>,
    received: bool,
    stats: ChildStats,
    /// It receives until then, and does nothing else.
    removed: Option<u64>,
}

impl Installed {
    fn left(&self) -> u64 {
        self.numbers.iter().map(|r| r.end - r.start).sum()
    }

    /// The next sequence number, and some more are used up.
    fn take(&mut self, random: &mut Random) -> Option<u64> {
        let range = self.numbers.front_mut()?;
        let skip = random.below(BURST).min(range.end - range.start - 1);
        let number = range.start + skip;
        range.start = number + 1;
        if range.is_empty() {
            self.numbers.pop_front();
        }
        Some(number)
    }

    /// Whether a packet is new (RFC 4303 §3.4.3).
    fn admits(&mut self, sequence: u64) -> bool {
        let window = u64::from(self.sa.replay_window);
        if sequence + window <= self.edge || self.sa.replay_edge.is_some_and(|e| sequence <= e) {
            return false;
        }
        if !self.seen.insert(sequence) {
            return false;
        }
        self.edge = self.edge.max(sequence);
        let floor = self.edge.saturating_sub(window);
        self.seen = self.seen.split_off(&floor);
        true
    }

    fn covers(&self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        let within = |all: &[Selector], address: Ipv4Addr| {
            all.iter().any(|s| s.matches(address.into(), 17, Some(9)))
        };
        within(&self.sa.local_ts, from) && within(&self.sa.remote_ts, to)
    }
}

#[derive(Default)]
struct Content {
    children: BTreeMap<u32, Installed>,
    order: u64,
    holds: BTreeMap<IpAddr, Arc<Hold>>,
}

/// The data plane of one process.
pub(crate) struct Plane {
    host: HostId,
    process: Pid,
    events: mpsc::Sender<PlaneEvent>,
    content: Mutex<Content>,
}

impl Plane {
    pub(crate) fn new(host: HostId, process: Pid, events: mpsc::Sender<PlaneEvent>) -> Self {
        Self {
            host,
            process,
            events,
            content: Mutex::default(),
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wall_clock(&self) -> SystemTime {
        let (_, wall) = conductor::clocks_of(self.process);
        SystemTime::UNIX_EPOCH + Duration::from_nanos(wall)
    }

    fn boot_time(&self) -> Duration {
        Duration::from_nanos(conductor::clocks_of(self.process).0)
    }

    /// An inner packet of the protected network. What leaves, if any does.
    pub(crate) fn outbound(
        &self,
        (from, to): (Ipv4Addr, Ipv4Addr),
        id: u64,
        random: &mut Random,
    ) -> Option<Datagram> {
        let (boot, wall) = (self.boot_time(), self.wall_clock());
        let now = conductor::now();
        let mut content = self.content();
        let held = content.holds.clone();
        let mut sending: Vec<&mut Installed> = content
            .children
            .values_mut()
            .filter(|c| c.sa.outbound_active && c.removed.is_none() && c.covers(from, to))
            .collect();
        sending.sort_by_key(|c| {
            let gives_way = u64::try_from(c.sa.gives_way.as_nanos()).unwrap_or(u64::MAX);
            let yields = !c.received && now < c.since.saturating_add(gives_way);
            (yields, u64::MAX - c.order)
        });
        let child = sending.into_iter().next()?;
        if held.contains_key(&child.sa.outer.local.ip()) || !child.sa.gate.is_open(boot) {
            return None;
        }
        let sequence = child.take(random)?;
        child.stats.packets_out += 1;
        child.stats.last_outbound = Some(wall);
        let low = (child.left() < LOW && !child.told_low).then_some(child.sa.spi_in);
        child.told_low |= low.is_some();
        let remaining = child.left();
        let esp = Esp {
            spi: child.sa.spi_out,
            key: name_of(&child.sa.key_out),
            sequence,
            id,
            from,
            to,
        };
        let (local, remote) = (child.sa.outer.local, child.sa.outer.remote);
        drop(content);
        if let Some(spi_in) = low {
            self.tell(PlaneEvent::LowReservation {
                spi_in,
                remaining,
                rate: BURST,
            });
        }
        Some(Datagram {
            host: self.host,
            local,
            remote,
            esp: Some(esp),
            bytes: esp.to_bytes(),
        })
    }

    /// A datagram has come for one of our addresses.
    pub(crate) fn receive(&self, datagram: Datagram) {
        // The ends have changed sides.
        let (local, remote) = (datagram.remote, datagram.local);
        let is_esp = datagram.esp.is_some();
        let hold = self.content().holds.get(&local.ip()).cloned();
        if let Some(hold) = hold {
            let kind = if is_esp {
                DatagramKind::Esp
            } else {
                DatagramKind::Ike
            };
            return hold.push(Packet::Outer(evergate_dataplane::Datagram {
                kind,
                local,
                remote,
                traffic_class: 0,
                bytes: datagram.bytes,
            }));
        }
        match is_esp {
            true => self.esp(&datagram.bytes, local, remote),
            false => self.tell(PlaneEvent::Ike {
                local,
                remote,
                transport: Transport::Udp,
                bytes: datagram.bytes,
            }),
        }
    }

    fn tell(&self, event: PlaneEvent) {
        // As the contract says, what finds no room is dropped.
        let _ = self.events.try_send(event);
    }

    fn esp(&self, bytes: &[u8], local: SocketAddr, remote: SocketAddr) {
        let Some(esp) = Esp::parse(bytes) else { return };
        let (wall, now) = (self.wall_clock(), conductor::now());
        let mut content = self.content();
        content
            .children
            .retain(|_, c| c.removed.is_none_or(|until| now < until));
        let Some(child) = content.children.get_mut(&esp.spi) else {
            drop(content);
            return self.tell(PlaneEvent::UnknownSpi {
                spi: esp.spi,
                local,
                remote,
            });
        };
        let authentic = name_of(&child.sa.key_in) == esp.key;
        if !authentic || !child.admits(esp.sequence) || !child.covers(esp.to, esp.from) {
            return;
        }
        child.received = true;
        child.stats.packets_in += 1;
        child.stats.last_inbound = Some(wall);
        drop(content);
        world().delivered(self.host, esp);
    }

    fn with<T>(
        &self,
        spi_in: u32,
        work: impl FnOnce(&mut Installed, u64) -> T,
    ) -> Result<T, PlaneError> {
        let mut content = self.content();
        content.order += 1;
        let order = content.order;
        let child = content
            .children
            .get_mut(&spi_in)
            .filter(|c| c.removed.is_none());
        let child = child.ok_or(PlaneError::NoSuchChild(spi_in))?;
        Ok(work(child, order))
    }
}

impl DataPlane for Plane {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "simulation",
            encryption: &[],
            esn: true,
            max_replay_window: 4096,
            udp_encapsulation: true,
            plain_esp: true,
            transport_mode: true,
            tcp: false,
            marks: false,
            offload: false,
        }
    }

    fn install(&self, sa: ChildSa) -> Result<(), PlaneError> {
        conductor::point();
        let spi_in = sa.spi_in;
        secrecy::learn(&sa.key_out);
        secrecy::learn(&sa.key_in);
        world().reserved(self.host, name_of(&sa.key_out), &sa.reservation);
        let now = conductor::now();
        let mut content = self.content();
        let free = |c: &Installed| c.removed.is_some_and(|until| until <= now);
        if content.children.get(&spi_in).is_some_and(|c| !free(c)) {
            return Err(PlaneError::SpiInUse(spi_in));
        }
        content.order += 1;
        let numbers = match sa.reservation.is_empty() {
            true => VecDeque::new(),
            false => VecDeque::from([sa.reservation.clone()]),
        };
        let child = Installed {
            order: content.order,
            since: now,
            numbers,
            told_low: false,
            edge: sa.replay_edge.unwrap_or(0),
            seen: BTreeSet::new(),
            received: false,
            stats: ChildStats::default(),
            removed: None,
            sa,
        };
        content.children.insert(spi_in, child);
        Ok(())
    }

    fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        self.with(spi_in, |child, order| {
            if active && !child.sa.outbound_active {
                child.order = order;
            }
            child.sa.outbound_active = active;
        })
    }

    fn move_child(&self, spi_in: u32, outer: Outer) -> Result<(), PlaneError> {
        self.with(spi_in, |child, _| child.sa.outer = outer)
    }

    fn remove(&self, spi_in: u32, grace: Duration) -> Result<(), PlaneError> {
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let until = conductor::now().saturating_add(grace);
        self.with(spi_in, |child, _| {
            child.removed = Some(until);
            child.sa.outbound_active = false;
        })
    }

    fn extend(&self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError> {
        let key = self.with(spi_in, |child, _| {
            child.told_low = false;
            child.numbers.push_back(range.clone());
            name_of(&child.sa.key_out)
        })?;
        world().reserved(self.host, key, &range);
        Ok(())
    }

    fn stats(&self, spi_in: u32) -> Option<ChildStats> {
        let content = self.content();
        let child = content
            .children
            .get(&spi_in)
            .filter(|c| c.removed.is_none())?;
        Some(ChildStats {
            remaining: child.left(),
            next_sequence: child.numbers.front().map(|r| r.start),
            replay_edge: child.edge,
            outbound_active: child.sa.outbound_active,
            ..child.stats.clone()
        })
    }

    fn replay_edges(&self) -> Vec<(u32, u64)> {
        let content = self.content();
        let received = content.children.iter().filter(|(_, c)| c.received);
        received.map(|(spi, c)| (*spi, c.edge)).collect()
    }

    fn totals(&self) -> Totals {
        Totals::default()
    }

    fn protect(&self, _: Vec<Protected>) -> Result<(), PlaneError> {
        Ok(())
    }

    fn protect_more(&self, _: &[Protected]) -> Result<(), PlaneError> {
        Ok(())
    }

    fn unprotect(&self, _: &[IpNet]) -> Result<(), PlaneError> {
        Ok(())
    }

    fn assign_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        world().assigned(self.host, address, true);
        Ok(())
    }

    fn release_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        world().assigned(self.host, address, false);
        Ok(())
    }

    fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        _: Transport,
        message: &[u8],
    ) -> Result<(), PlaneError> {
        conductor::point();
        world().send(Datagram {
            host: self.host,
            local,
            remote,
            esp: None,
            bytes: message.to_vec(),
        });
        Ok(())
    }

    fn claim(&self, _: u64, _: SocketAddr, _: SocketAddr, _: TcpEnd) {}

    fn disclaim(&self, _: u64) {}

    fn keepalive(&self, _: SocketAddr, _: SocketAddr) -> Result<(), PlaneError> {
        Ok(())
    }

    fn queue(&self) -> Arc<Hold> {
        Arc::default()
    }

    fn hold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let mut content = self.content();
        for address in addresses {
            content.holds.insert(*address, Arc::clone(hold));
        }
    }

    fn unhold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let mut content = self.content();
        content
            .holds
            .retain(|a, h| !addresses.contains(a) || !Arc::ptr_eq(h, hold));
    }

    fn resume(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        self.unhold(addresses, hold);
        self.feed(hold.take(usize::MAX));
    }

    fn feed(&self, packets: Vec<Packet>) {
        for packet in packets {
            let Packet::Outer(datagram) = packet else {
                continue;
            };
            match datagram.kind {
                DatagramKind::Ike => self.tell(PlaneEvent::Ike {
                    local: datagram.local,
                    remote: datagram.remote,
                    transport: Transport::Udp,
                    bytes: datagram.bytes,
                }),
                _ => self.esp(&datagram.bytes, datagram.local, datagram.remote),
            }
        }
    }

    fn lost_in_handover(&self, _: usize) {}

    fn source_to(&self, from: Option<IpAddr>, _: IpAddr) -> Option<IpAddr> {
        from.or_else(|| world().address_of(self.host))
    }

    fn shutdown(&self) {}
}
