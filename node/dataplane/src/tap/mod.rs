//! Captures: copies of the packets of chosen SAs, for whoever asks for them.
//!
//! The threads of the plane look once in a batch whether there is any. What a capture's reader does not take in time is missing from the
//! capture, and counted; traffic never waits for it.

mod outer;

use crate::{DropReason, PlaneError, Transport};
use arc_swap::ArcSwap;
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};
use tokio::sync::mpsc;

/// Captures at a time: each copies packets, and is asked for by a person.
pub const MAX_CAPTURES: usize = 8;
/// Packets that wait for the reader of a capture: some milliseconds of a busy tunnel.
pub const CAPTURE_QUEUE: usize = 4096;
/// Their bytes.
pub const CAPTURE_QUEUE_BYTES: usize = 8 << 20;

/// Which SAs a capture is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// Child SAs, by their inbound SPIs: their packets in the clear and as ESP.
    pub children: HashSet<u32>,
    /// IKE SAs, by either of their SPIs: their messages as they are sent and received.
    pub ike: HashSet<u64>,
}

/// A packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it passed.
    pub at: SystemTime,
    /// On which side of the encryption.
    pub side: Side,
    /// To the peer; otherwise from there.
    pub outbound: bool,
    /// A whole IP packet, or the beginning of one.
    pub bytes: Vec<u8>,
    /// How long the packet was.
    pub len: usize,
    /// What is remarkable about it.
    pub note: Option<Note>,
}

/// A side of the encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Packets of the protected networks.
    Clear,
    /// ESP and IKE. The outer IP header, which the kernel makes and takes off, is made again from what is known of it: addresses, ports, traffic class and lengths are
    /// those of the wire; identification, time to live and DF are not.
    Encrypted,
}

/// What is remarkable about a packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// It went no further.
    Dropped(DropReason),
    /// It was in a TCP connection (RFC 9329), and is shown as it would be in UDP.
    InTcp,
}

/// A capture that is under way. It ends when this is dropped.
pub struct Capture {
    tap: Arc<Tap>,
    frames: mpsc::Receiver<Frame>,
    taps: Arc<Taps>,
}

/// The plane's end of a capture.
struct Tap {
    subjects: ArcSwap<Subjects>,
    /// Bytes of each packet that are kept.
    snaplen: usize,
    frames: mpsc::Sender<Frame>,
    waiting_bytes: AtomicUsize,
    lost: AtomicU64,
}

/// All captures of a plane.
#[derive(Default)]
pub(crate) struct Taps {
    /// Whether there is any.
    any: AtomicBool,
    all: ArcSwap<Vec<Arc<Tap>>>,
    change: Mutex<()>,
}

/// The captures that there were when a batch began.
#[derive(Clone)]
pub(crate) struct Tapped(Arc<Vec<Arc<Tap>>>);

impl Capture {
    /// The next packet; waits for it.
    pub async fn next(&mut self) -> Option<Frame> {
        let frame = self.frames.recv().await?;
        let len = frame.bytes.len();
        self.tap.waiting_bytes.fetch_sub(len, Ordering::Relaxed);
        Some(frame)
    }

    /// It is of these SAs from now on.
    pub fn follow(&self, subjects: Subjects) {
        if **self.tap.subjects.load() != subjects {
            self.tap.subjects.store(Arc::new(subjects));
        }
    }

    /// How many packets are missing because they were not read in time.
    pub fn lost(&self) -> u64 {
        self.tap.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let tap = &self.tap;
        self.taps
            .change(|all| all.retain(|other| !Arc::ptr_eq(other, tap)));
    }
}

impl Taps {
    /// Begins a capture.
    pub(crate) fn begin(
        self: &Arc<Self>,
        subjects: Subjects,
        snaplen: usize,
    ) -> Result<Capture, PlaneError> {
        let (sender, frames) = mpsc::channel(CAPTURE_QUEUE);
        let tap = Arc::new(Tap {
            subjects: ArcSwap::from_pointee(subjects),
            snaplen,
            frames: sender,
            waiting_bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        });
        let begun = self.change(|all| {
            let room = all.len() < MAX_CAPTURES;
            if room {
                all.push(Arc::clone(&tap));
            }
            room
        });
        if !begun {
            return Err(PlaneError::Limit("captures at a time"));
        }
        Ok(Capture {
            tap,
            frames,
            taps: Arc::clone(self),
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Tap>>) -> T) -> T {
        let _lock = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::clone(&self.all.load());
        let changed = change(&mut all);
        self.any.store(!all.is_empty(), Ordering::Relaxed);
        self.all.store(Arc::new(all));
        changed
    }

    /// The captures that there are now: most often none.
    pub(crate) fn now(&self) -> Option<Tapped> {
        let any = self.any.load(Ordering::Relaxed);
        any.then(|| Tapped(self.all.load_full()))
    }
}

/// What the threads of the plane tell, whether or not somebody wants to know. Ends are ours and the peer's.
pub(crate) trait MaybeTapped {
    /// Captures a packet of a Child SA in the clear.
    fn clear(&self, spi_in: u32, outbound: bool, packet: &[u8], note: Option<Note>);
    /// A copy of an ESP packet of a Child SA that is about to be opened in its place; `None` if nobody wants it.
    fn before_opening(
        &self,
        spi_in: u32,
        ends: (SocketAddr, SocketAddr),
        traffic_class: u8,
        by: Option<Transport>,
        packet: &[u8],
    ) -> Option<Closed>;
    /// Captures an ESP packet that was sent.
    fn sent(
        &self,
        spi_in: u32,
        ends: (SocketAddr, SocketAddr),
        traffic_class: u8,
        by: Option<Transport>,
        packet: &[u8],
    );
    /// Captures an IKE message.
    fn ike(
        &self,
        outbound: bool,
        ends: (SocketAddr, SocketAddr),
        nat_port: u16,
        by: Transport,
        message: &[u8],
    );
}

/// An ESP packet as it came, and what will be known of it once it is opened.
pub(crate) struct Closed {
    spi_in: u32,
    packet: Vec<u8>,
    at: SystemTime,
    in_tcp: bool,
}

impl Closed {
    /// It is open, or was dropped.
    pub(crate) fn opened(self, tapped: Option<&Tapped>, dropped: Option<DropReason>) {
        let Some(tapped) = tapped else {
            return;
        };
        let in_tcp = self.in_tcp.then_some(Note::InTcp);
        let note = dropped.map(Note::Dropped).or(in_tcp);
        for tap in tapped.of_child(self.spi_in) {
            tap.put(Side::Encrypted, false, self.at, &self.packet, note);
        }
    }
}

impl Tapped {
    fn of_child(&self, spi_in: u32) -> impl Iterator<Item = &Tap> {
        let wanted = move |tap: &&Arc<Tap>| tap.subjects.load().children.contains(&spi_in);
        self.0.iter().filter(wanted).map(|tap| &**tap)
    }
}

impl MaybeTapped for Option<Tapped> {
    fn clear(&self, spi_in: u32, outbound: bool, packet: &[u8], note: Option<Note>) {
        let Some(tapped) = self else {
            return;
        };
        for tap in tapped.of_child(spi_in) {
            tap.put(Side::Clear, outbound, SystemTime::now(), packet, note);
        }
    }

    fn before_opening(
        &self,
        spi_in: u32,
        (local, remote): (SocketAddr, SocketAddr),
        traffic_class: u8,
        by: Option<Transport>,
        packet: &[u8],
    ) -> Option<Closed> {
        self.as_ref()?.of_child(spi_in).next()?;
        let ports = by.map(|_| (remote.port(), local.port()));
        Some(Closed {
            spi_in,
            packet: outer::wrap((remote.ip(), local.ip()), ports, traffic_class, &[], packet)?,
            at: SystemTime::now(),
            in_tcp: matches!(by, Some(Transport::Tcp(_))),
        })
    }

    fn sent(
        &self,
        spi_in: u32,
        (local, remote): (SocketAddr, SocketAddr),
        traffic_class: u8,
        by: Option<Transport>,
        packet: &[u8],
    ) {
        let Some(tapped) = self else {
            return;
        };
        let ports = by.map(|_| (local.port(), remote.port()));
        let note = matches!(by, Some(Transport::Tcp(_))).then_some(Note::InTcp);
        for tap in tapped.of_child(spi_in) {
            let ips = (local.ip(), remote.ip());
            let Some(whole) = outer::wrap(ips, ports, traffic_class, &[], packet) else {
                continue;
            };
            tap.put(Side::Encrypted, true, SystemTime::now(), &whole, note);
        }
    }

    fn ike(
        &self,
        outbound: bool,
        (local, remote): (SocketAddr, SocketAddr),
        nat_port: u16,
        by: Transport,
        message: &[u8],
    ) {
        let Some(tapped) = self else {
            return;
        };
        // The SPIs of initiator and responder begin the header (RFC 7296 §3.1).
        let (spis, _) = message.as_chunks::<8>();
        let Some([spi_i, spi_r]) = spis.first_chunk::<2>() else {
            return;
        };
        let spis = [spi_i, spi_r].map(|spi| u64::from_be_bytes(*spi));
        let in_tcp = matches!(by, Transport::Tcp(_));
        let marker: &[u8] = match in_tcp || local.port() == nat_port {
            true => &[0; 4],
            false => &[],
        };
        let (from, to) = match outbound {
            true => (local, remote),
            false => (remote, local),
        };
        for tap in tapped.0.iter() {
            let subjects = tap.subjects.load();
            if !spis.iter().any(|spi| subjects.ike.contains(spi)) {
                continue;
            }
            let ports = Some((from.port(), to.port()));
            let Some(whole) = outer::wrap((from.ip(), to.ip()), ports, 0, marker, message) else {
                continue;
            };
            let note = in_tcp.then_some(Note::InTcp);
            tap.put(Side::Encrypted, outbound, SystemTime::now(), &whole, note);
        }
    }
}

impl Tap {
    fn put(&self, side: Side, outbound: bool, at: SystemTime, packet: &[u8], note: Option<Note>) {
        let bytes = &packet[..packet.len().min(self.snaplen)];
        let waiting = self.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let room = match waiting + bytes.len() <= CAPTURE_QUEUE_BYTES {
            true => self.frames.try_reserve().ok(),
            false => None,
        };
        let Some(room) = room else {
            self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        room.send(Frame {
            at,
            side,
            outbound,
            bytes: bytes.to_vec(),
            len: packet.len(),
            note,
        });
    }
}

#[cfg(test)]
mod tests;
