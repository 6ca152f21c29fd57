//! Numbered datagrams both ways between two hosts, and what became of them.

use crate::checker::MARKER;
use crate::drops::{Dropped, Queues};
use crate::lab::Lab;
use crate::{Result, millis, patience, secs, until};
use anyhow::ensure;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One end of a flow: the host and its address.
pub type End<'a> = (&'a str, &'a str);

/// Traffic that runs until it is stopped.
#[derive(Debug)]
pub struct Flow {
    sides: [Side; 2],
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<()>>,
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    started: Instant,
    interval: Duration,
    /// Of the hosts at both ends.
    queues: [Queues; 2],
}

/// What one end sent, and what the other end received of it.
#[derive(Debug, Clone, Default)]
struct Side {
    sent: Arc<Mutex<Vec<Duration>>>,
    arrived: Arc<Mutex<Vec<(u64, Duration)>>>,
    refused: Arc<Mutex<Vec<String>>>,
    strangers: Arc<AtomicU64>,
}

/// One direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Direction {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// What the sender's kernel said of those that it refused, and when since the start of the flow.
    pub refused: Vec<String>,
    /// Different datagrams that arrived.
    pub received: u64,
    /// Sent, and never arrived.
    pub lost: u64,
    /// Packets that the kernels of both ends threw away meanwhile, because a queue was full ([`crate::drops`]); of this flow or of another.
    pub dropped_at_ends: u64,
    /// Arrivals of a datagram that had arrived before.
    pub duplicated: u64,
    /// Arrivals with a lower number than one before.
    pub reordered: u64,
    /// Arrivals from another address than the sender's, or with wrong contents.
    pub strangers: u64,
    /// The longest time without an arrival, up to the end.
    pub longest_gap: Duration,
    /// The same without the time in which the sender did not send, though it should have: then the machine had stalled.
    pub longest_outage: Duration,
    /// When the lost ones were sent, since the start of the flow.
    pub lost_at: Vec<Duration>,
    /// When the last arrived, since the start of the flow.
    pub last_arrival: Duration,
}

/// Both directions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From the first end to the second.
    pub forth: Direction,
    /// From the second end to the first.
    pub back: Direction,
}

static PORT: AtomicU16 = AtomicU16::new(7000);

impl Flow {
    /// Starts datagrams of `size` bytes every `interval`, or [`patience`] times that, both ways.
    pub fn start(
        lab: &Lab,
        a: End<'_>,
        b: End<'_>,
        interval: Duration,
        size: usize,
    ) -> Result<Self> {
        ensure!(size >= HEADER, "a datagram needs {HEADER} bytes");
        let interval = interval * patience();
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let queues = [
            Queues::of(&lab.namespace(a.0))?,
            Queues::of(&lab.namespace(b.0))?,
        ];
        let mut flow = Self {
            queues,
            sides: [Side::default(), Side::default()],
            senders: Vec::new(),
            receivers: Vec::new(),
            stop_sending: Arc::default(),
            stop_receiving: Arc::default(),
            started,
            interval,
        };
        let at =
            |end: End<'_>| -> Result<SocketAddr> { Ok((end.1.parse::<IpAddr>()?, port).into()) };
        let addresses = [at(a)?, at(b)?];
        // Both listen before either sends.
        let open = |host: &str, own| lab.on(host, move || Ok(UdpSocket::bind(own)?));
        let sockets = [open(a.0, addresses[0])?, open(b.0, addresses[1])?];
        for (index, socket) in sockets.into_iter().enumerate() {
            let other = addresses[1 - index];
            socket.set_read_timeout(Some(millis(50)))?;
            let receiving = socket.try_clone()?;
            let (sends, receives) = (flow.sides[index].clone(), flow.sides[1 - index].clone());
            let stop = Arc::clone(&flow.stop_sending);
            flow.senders.push(std::thread::spawn(move || {
                send(&socket, other, interval, size, &sends, &stop, started);
            }));
            let stop = Arc::clone(&flow.stop_receiving);
            flow.receivers.push(std::thread::spawn(move || {
                receive(&receiving, other, size, &receives, &stop, started);
            }));
        }
        Ok(flow)
    }

    /// How many datagrams have arrived by now, forth and back.
    #[must_use]
    pub fn arrived(&self) -> (usize, usize) {
        let count = |side: &Side| lock(&side.arrived).len();
        (count(&self.sides[0]), count(&self.sides[1]))
    }

    /// Waits until `more` further datagrams have arrived each way.
    pub fn runs(&self, more: usize, timeout: Duration) -> Result<()> {
        let (forth, back) = self.arrived();
        until(timeout, "traffic arrives both ways", || {
            let now = self.arrived();
            if now.0 >= forth + more && now.1 >= back + more {
                return Ok(true);
            }
            anyhow::bail!("{forth}/{back} at first, now {}/{}", now.0, now.1)
        })
    }

    /// The time since the start, in which the report is written.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Stops sending, lets the last datagrams arrive, and reports.
    #[must_use]
    pub fn stop(mut self) -> Report {
        self.stop_sending.store(true, Ordering::Relaxed);
        for thread in self.senders.drain(..) {
            let _ = thread.join();
        }
        let end = self.started.elapsed();
        std::thread::sleep(millis(500) * patience());
        // On a machine that stalls they are on their way for longer. Where the last was lost for good, this is in vain.
        let arrive = until(secs(3), "the last datagrams arrive", || {
            Ok(self.sides.iter().all(Side::has_all_behind))
        });
        arrive.ok();
        // While the sockets are there.
        let dropped = self
            .queues
            .each_ref()
            .map(|q| q.dropped().unwrap_or_default());
        self.stop_receiving.store(true, Ordering::Relaxed);
        for thread in self.receivers.drain(..) {
            let _ = thread.join();
        }
        let [forth, back] = &self.sides;
        let [first, second] = dropped;
        let at = |sender: Dropped, receiver: Dropped| sender.by_devices + receiver.by_sockets;
        let stall = STALL + 2 * self.interval;
        Report {
            forth: Direction {
                dropped_at_ends: at(first, second),
                ..forth.direction(end, stall)
            },
            back: Direction {
                dropped_at_ends: at(second, first),
                ..back.direction(end, stall)
            },
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::Relaxed);
        self.stop_receiving.store(true, Ordering::Relaxed);
        for thread in self.senders.drain(..).chain(self.receivers.drain(..)) {
            let _ = thread.join();
        }
    }
}

impl Direction {
    /// How often something was lost: what was sent less than this after a lost one, and was lost too, counts with it.
    pub fn losses(&self, apart: Duration) -> usize {
        let follows = |pair: &&[Duration]| pair[1] - pair[0] < apart;
        self.lost_at.len() - self.lost_at.windows(2).filter(follows).count()
    }
}

impl Report {
    /// Fails if something was lost more often than this, on either way ([`Direction::losses`]). Again, the full queues of the ends are not the member's.
    pub fn lost_at_most(&self, times: usize, apart: Duration) -> Result<()> {
        for (name, way) in [("forth", &self.forth), ("back", &self.back)] {
            let losses = way.losses(apart);
            ensure!(
                losses as u64 <= times as u64 + way.dropped_at_ends,
                "{name}: {losses} times something was lost, where {times} would be right: {:?}",
                way.lost_at
            );
        }
        Ok(())
    }

    /// Fails unless every datagram arrived exactly once. What the kernels of the two ends dropped in full queues is not held against the member.
    pub fn is_lossless(&self) -> Result<()> {
        for (name, way) in [("forth", &self.forth), ("back", &self.back)] {
            ensure!(
                way.sent > 0 && way.lost <= way.dropped_at_ends && way.refused.is_empty(),
                "{name}: {} sent, {} received, refused: {:?}, {} dropped in full queues of the ends; lost at {:?}",
                way.sent,
                way.received,
                first(&way.refused),
                way.dropped_at_ends,
                first(&way.lost_at)
            );
        }
        self.has_no_duplicate()
    }

    /// Fails if a datagram arrived twice, or not as it was sent.
    pub fn has_no_duplicate(&self) -> Result<()> {
        for (name, way) in [("forth", &self.forth), ("back", &self.back)] {
            ensure!(
                way.duplicated == 0,
                "{name}: {} arrived twice",
                way.duplicated
            );
            ensure!(
                way.strangers == 0,
                "{name}: {} changed on the way",
                way.strangers
            );
        }
        Ok(())
    }
}

/// A sender that is late by more than this was kept from sending.
const STALL: Duration = millis(50);

/// Marker, number.
const HEADER: usize = MARKER.len() + 8;

fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    interval: Duration,
    size: usize,
    side: &Side,
    stop: &AtomicBool,
    started: Instant,
) {
    let mut datagram = vec![0x5a; size];
    datagram[..MARKER.len()].copy_from_slice(MARKER);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = lock(&side.sent).len() as u64;
        datagram[MARKER.len()..HEADER].copy_from_slice(&number.to_be_bytes());
        let now = started.elapsed();
        match socket.send_to(&datagram, to) {
            Ok(_) => lock(&side.sent).push(now),
            Err(error) => lock(&side.refused).push(format!("{now:?}: {error}")),
        }
        // After a stall of the machine no burst makes up for it: that would
        // overflow queues, and is another test.
        next = (next + interval).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn receive(
    socket: &UdpSocket,
    from: SocketAddr,
    size: usize,
    side: &Side,
    stop: &AtomicBool,
    started: Instant,
) {
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, source)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let datagram = &buffer[..length];
        let intact = length == size
            && datagram.starts_with(MARKER)
            && datagram[HEADER..].iter().all(|&byte| byte == 0x5a);
        if source != from || !intact {
            side.strangers.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let mut number = [0; 8];
        number.copy_from_slice(&datagram[MARKER.len()..HEADER]);
        lock(&side.arrived).push((u64::from_be_bytes(number), started.elapsed()));
    }
}

impl Side {
    /// Whether what was sent last has arrived.
    fn has_all_behind(&self) -> bool {
        let Some(last) = (lock(&self.sent).len() as u64).checked_sub(1) else {
            return true;
        };
        let arrived = lock(&self.arrived);
        arrived.iter().rev().any(|(number, _)| *number == last)
    }

    /// When the sender paused for longer than `stall`.
    fn stalls(&self, stall: Duration) -> Vec<(Duration, Duration)> {
        let sent = lock(&self.sent);
        let pauses = sent.windows(2).map(|two| (two[0], two[1]));
        pauses.filter(|(from, to)| *to - *from > stall).collect()
    }

    fn direction(&self, end: Duration, stall: Duration) -> Direction {
        let stalls = self.stalls(stall);
        let outage = |from: Duration, to: Duration| {
            let within = |&(begun, over): &(Duration, Duration)| {
                over.min(to).saturating_sub(begun.max(from))
            };
            let stalled: Duration = stalls.iter().map(within).sum();
            to.saturating_sub(from).saturating_sub(stalled)
        };
        let (sent, arrived) = (lock(&self.sent), lock(&self.arrived));
        let mut seen = HashSet::new();
        let (mut duplicated, mut reordered, mut highest) = (0, 0, None);
        let (mut last, mut longest_gap) = (Duration::ZERO, Duration::ZERO);
        let mut longest_outage = Duration::ZERO;
        for &(number, at) in arrived.iter() {
            if !seen.insert(number) {
                duplicated += 1;
            } else if Some(number) < highest {
                reordered += 1;
            }
            highest = highest.max(Some(number));
            longest_gap = longest_gap.max(at.saturating_sub(last));
            longest_outage = longest_outage.max(outage(last, at));
            last = at;
        }
        let lost_at: Vec<Duration> = (0_u64..)
            .zip(sent.iter())
            .filter(|(number, _)| !seen.contains(number))
            .map(|(_, &at)| at)
            .collect();
        Direction {
            sent: sent.len() as u64,
            refused: lock(&self.refused).clone(),
            received: seen.len() as u64,
            lost: lost_at.len() as u64,
            dropped_at_ends: 0,
            duplicated,
            reordered,
            strangers: self.strangers.load(Ordering::Relaxed),
            longest_gap: longest_gap.max(end.saturating_sub(last)),
            longest_outage: longest_outage.max(outage(last, end)),
            lost_at,
            last_arrival: last,
        }
    }
}

/// So many are enough to see what it is.
fn first<T>(list: &[T]) -> &[T] {
    &list[..list.len().min(10)]
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_duplicates_and_gaps_are_counted() {
        let side = Side::default();
        lock(&side.sent).extend((0..6).map(|n| millis(n * 10)));
        lock(&side.arrived).extend([
            (0, millis(1)),
            (2, millis(21)),
            (1, millis(22)),
            (2, millis(23)),
            (5, millis(90)),
        ]);
        let way = side.direction(millis(100), STALL);
        assert_eq!((way.sent, way.received, way.lost), (6, 4, 2));
        assert_eq!((way.duplicated, way.reordered), (1, 1));
        assert_eq!(way.lost_at, [millis(30), millis(40)]);
        assert_eq!((way.losses(millis(11)), way.losses(millis(10))), (1, 2));
        assert_eq!(way.longest_gap, millis(67));
    }

    #[test]
    fn a_flow_that_stopped_arriving_has_a_gap_up_to_its_end() {
        let side = Side::default();
        lock(&side.sent).push(millis(0));
        lock(&side.arrived).push((0, millis(1)));
        let way = side.direction(millis(500), STALL);
        assert_eq!(way.longest_gap, millis(499));
        assert_eq!(way.longest_outage, millis(499));
    }

    #[test]
    fn when_the_sender_stalls_nothing_is_out() {
        let side = Side::default();
        lock(&side.sent).extend([0, 10, 20, 1000, 1010].map(millis));
        let arrived = [(0, 1), (1, 11), (2, 21), (3, 1002), (4, 1012)];
        lock(&side.arrived).extend(arrived.map(|(number, at)| (number, millis(at))));
        let way = side.direction(millis(1020), STALL);
        assert_eq!(way.longest_gap, millis(981));
        assert_eq!(way.longest_outage, millis(10));
        assert!(side.has_all_behind());
        // While it goes on to send, all of it counts.
        lock(&side.sent).extend((102..152).map(|n| millis(n * 10)));
        let way = side.direction(millis(1520), STALL);
        assert_eq!(way.longest_outage, millis(508));
        assert!(!side.has_all_behind());
    }
}
