//! Packets that are held back while a virtual gateway goes from one member to another.
//!
//! From the moment that its former owner may not send any more until its successor may, nobody can use a packet. So what comes for the
//! gateway meanwhile waits in a [`Hold`]; from the former owner it goes to the successor, and there through the plane as if it had come by that
//! one's own device and sockets.

use crate::{DropReason, PlaneError, TcpEnd, counters::Traffic};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

/// Packets that one plane holds back, of all virtual gateways: those of half a second at 1 Gbit/s.
const MAX_HELD: usize = 65_536;
/// Their bytes: the same time.
const MAX_HELD_BYTES: usize = 64 << 20;

/// A packet on its way in or out, before the plane has done anything with it.
#[derive(Clone, PartialEq, Eq)]
pub enum Packet {
    /// What the kernel routed into the device: an inner packet in the clear, which policy protects.
    Clear(Vec<u8>),
    /// What came by an outer socket.
    Outer(Datagram),
}

/// What came by an outer socket.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram {
    /// What it is.
    pub kind: DatagramKind,
    /// Where it was sent to; port 0 for plain ESP.
    pub local: SocketAddr,
    /// Where it came from; port 0 for plain ESP.
    pub remote: SocketAddr,
    /// The traffic class of its IP header.
    pub traffic_class: u8,
    /// The IKE message without the non-ESP marker, or the ESP packet.
    pub bytes: Vec<u8>,
}

/// What a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramKind {
    /// An IKE message.
    Ike,
    /// ESP in UDP (RFC 3948).
    EspInUdp,
    /// ESP right on IP.
    Esp,
    /// An IKE message in TCP (RFC 9329).
    IkeInTcp(TcpEnd),
    /// ESP in TCP.
    EspInTcp(TcpEnd),
}

impl Packet {
    /// How many bytes it has.
    pub fn size(&self) -> usize {
        match self {
            Self::Clear(bytes) => bytes.len(),
            Self::Outer(datagram) => datagram.bytes.len(),
        }
    }
}

impl fmt::Debug for Packet {
    /// Without what users say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clear(bytes) => write!(f, "Clear({} bytes)", bytes.len()),
            Self::Outer(datagram) => datagram.fmt(f),
        }
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local, remote, .. } = self;
        write!(
            f,
            "{:?}({remote} to {local}, {} bytes)",
            self.kind,
            self.bytes.len()
        )
    }
}

/// The bounds of all queues of one plane together.
#[derive(Debug, Default)]
pub(crate) struct Room {
    packets: AtomicUsize,
    bytes: AtomicUsize,
    traffic: Arc<Traffic>,
}

impl Room {
    pub(crate) fn new(traffic: Arc<Traffic>) -> Arc<Self> {
        Arc::new(Self {
            traffic,
            ..Self::default()
        })
    }

    /// Takes room for a packet, if there is enough.
    fn take(&self, size: usize) -> bool {
        let packets = self.packets.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(size, Ordering::Relaxed);
        let fits = packets < MAX_HELD && bytes.saturating_add(size) <= MAX_HELD_BYTES;
        if !fits {
            self.give(size);
        }
        fits
    }

    fn give(&self, size: usize) {
        self.packets.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(size, Ordering::Relaxed);
    }
}

/// A queue within the bounds of its plane.
#[derive(Debug)]
struct Queue {
    room: Arc<Room>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Packet>,
    /// Nobody takes anything out of it any more.
    closed: bool,
}

impl Queue {
    fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a packet at the end; else it is dropped and counted.
    fn push(&self, packet: Packet) {
        let mut waiting = self.waiting();
        if waiting.closed {
            self.room.traffic.dropped(DropReason::HandoverFailed);
        } else if self.room.take(packet.size()) {
            waiting.packets.push_back(packet);
        } else {
            self.room.traffic.dropped(DropReason::HoldFull);
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting().packets.is_empty()
    }

    /// Takes packets from the front, up to so many, and so many bytes if there is more than one.
    fn take(&self, most: usize, most_bytes: usize) -> Vec<Packet> {
        let mut waiting = self.waiting();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while taken.len() < most
            && let Some(next) = waiting.packets.front()
        {
            bytes += next.size();
            if bytes > most_bytes && !taken.is_empty() {
                break;
            }
            self.room.give(next.size());
            taken.extend(waiting.packets.pop_front());
        }
        taken
    }

    fn close(&self) {
        self.waiting().closed = true;
        for _ in self.take(usize::MAX, usize::MAX) {
            self.room.traffic.dropped(DropReason::HandoverFailed);
        }
    }
}

impl Drop for Queue {
    /// What nobody took is lost.
    fn drop(&mut self) {
        self.close();
    }
}

/// What is held back for a virtual gateway, in the order in which it came. Bounded together with all others of its plane.
#[derive(Debug)]
pub struct Hold {
    queue: Queue,
    news: Notify,
}

impl Default for Hold {
    /// One that belongs to no plane.
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Hold {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self {
            queue: Queue::new(room),
            news: Notify::new(),
        }
    }

    /// Holds a packet back. It is dropped and counted if there is no room, or the hold is closed.
    pub fn push(&self, packet: Packet) {
        self.queue.push(packet);
        self.news.notify_one();
    }

    /// Takes what waits, from the front, but not more than about so many bytes.
    pub fn take(&self, most_bytes: usize) -> Vec<Packet> {
        self.queue.take(usize::MAX, most_bytes)
    }

    /// Waits until there is something, and takes it. Nothing is lost if the future is dropped. One task may wait at a time.
    pub async fn next(&self, most_bytes: usize) -> Vec<Packet> {
        loop {
            let taken = self.take(most_bytes);
            if !taken.is_empty() {
                return taken;
            }
            self.news.notified().await;
        }
    }

    /// Nobody will take what is held back: it is dropped and counted, and so is what comes later.
    pub fn close(&self) {
        self.queue.close();
    }
}

/// Packets that go through the plane before anything that comes later: whichever of its threads has its turn next takes them all, and the others wait
/// for that.
pub(crate) struct Inbox {
    queue: Queue,
    event: EventFd,
    /// Something may wait, or be under way.
    news: AtomicBool,
    /// Had by the thread that takes them.
    taking: Mutex<()>,
}

impl Inbox {
    pub(crate) fn new(room: Arc<Room>) -> Result<Self, PlaneError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let event = event.map_err(|e| PlaneError::Io {
            what: "make an eventfd".to_owned(),
            source: e.into(),
        })?;
        Ok(Self {
            queue: Queue::new(room),
            event,
            news: AtomicBool::new(false),
            taking: Mutex::default(),
        })
    }

    pub(crate) fn push(&self, packet: Packet) {
        self.queue.push(packet);
        self.news.store(true, Ordering::Release);
        // Fails only when the counter is at its end: then it is readable.
        let _ = self.event.write(1);
    }

    /// Hands `work` all that waits, in portions of so many. When this returns there is nothing that waited, nor is another thread at it.
    pub(crate) fn empty(&self, portion: usize, mut work: impl FnMut(Vec<Packet>)) {
        if !self.news.load(Ordering::Acquire) {
            return;
        }
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let packets = self.queue.take(portion, usize::MAX);
            if packets.is_empty() {
                break;
            }
            work(packets);
        }
        self.news.store(false, Ordering::Release);
        if !self.queue.is_empty() {
            self.news.store(true, Ordering::Release);
        }
    }

    /// The descriptor is not readable any more until something comes. Before [`Inbox::empty`].
    pub(crate) fn calm(&self) {
        // There is nothing to read if it was not woken.
        let _ = self.event.read();
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// For which of our outer addresses packets are held back.
#[derive(Clone, Default)]
pub(crate) struct Holds(HashMap<IpAddr, Arc<Hold>>);

impl Holds {
    /// Where packets wait that go to or from this outer address.
    pub(crate) fn of(&self, local: IpAddr) -> Option<&Hold> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&local).map(|hold| &**hold)
    }

    pub(crate) fn insert(&mut self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let entries = addresses.iter().map(|a| (*a, Arc::clone(hold)));
        self.0.extend(entries);
    }

    /// Takes a hold away where another has not taken its place.
    pub(crate) fn remove(&mut self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let same = |other: &Arc<Hold>| Arc::ptr_eq(other, hold);
        for address in addresses {
            if self.0.get(address).is_some_and(same) {
                self.0.remove(address);
            }
        }
    }
}

#[cfg(test)]
#[path = "hold/tests.rs"]
mod tests;
