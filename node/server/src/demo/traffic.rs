//! Numbered packets between protected hosts, and what became of them.

use super::{checker::MARKER, network::NetNs};
use anyhow::{Result, ensure};
use std::{
    collections::HashSet,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// One packet in each direction so often.
pub(super) const INTERVAL: Duration = Duration::from_millis(1);
/// Bytes of a packet's content.
const LENGTH: usize = 128;
/// The port of the first flow.
const PORT: u16 = 40_000;
/// How often a thread looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// Where packets of a flow come from and go to.
#[derive(Clone, Debug)]
pub(super) struct Host {
    /// Its namespace.
    pub(super) ns: NetNs,
    /// Its address.
    pub(super) address: Ipv4Addr,
}

/// Nanoseconds since the traffic began.
type Nanos = u64;

/// A packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Arrival {
    number: u64,
    sent: Nanos,
    at: Nanos,
}

/// One direction of a flow.
#[derive(Debug, Default)]
struct Direction {
    sent: AtomicU64,
    arrivals: Mutex<Vec<Arrival>>,
    damaged: AtomicU64,
}

/// All flows.
pub(super) struct Traffic {
    begin: Instant,
    directions: Vec<Arc<Direction>>,
    senders: Switch,
    receivers: Switch,
}

/// Threads that run until they are told to end.
#[derive(Default)]
struct Switch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of all packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    /// Whose content was not what was sent.
    pub(super) damaged: u64,
}

impl Traffic {
    /// Starts a flow both ways for each pair of hosts.
    pub(super) fn start(pairs: &[(Host, Host)]) -> Result<Self> {
        let mut traffic = Self {
            begin: Instant::now(),
            directions: Vec::new(),
            senders: Switch::default(),
            receivers: Switch::default(),
        };
        for (port, (a, b)) in (PORT..).zip(pairs) {
            let ends = [a, b].map(|host| -> Result<_> {
                let address = SocketAddr::from((host.address, port));
                let socket = host.ns.run(|| Ok(UdpSocket::bind(address)?))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Ok((Arc::new(socket), address))
            });
            let [a, b] = ends;
            let (a, b) = (a?, b?);
            traffic.direction(a.clone(), b.clone())?;
            traffic.direction(b, a)?;
        }
        Ok(traffic)
    }

    fn direction(
        &mut self,
        (from, source): (Arc<UdpSocket>, SocketAddr),
        (to, destination): (Arc<UdpSocket>, SocketAddr),
    ) -> Result<()> {
        let direction = Arc::new(Direction::default());
        self.directions.push(direction.clone());
        let begin = self.begin;
        let theirs = direction.clone();
        self.receivers
            .spawn(move |stop| theirs.receive(&to, source, begin, stop))?;
        self.senders
            .spawn(move |stop| direction.send(&from, destination, begin, stop))
    }

    /// The time that all others here are measured in.
    pub(super) fn now(&self) -> Nanos {
        nanos(self.begin)
    }

    /// Packets sent, and packets that arrived, until now.
    pub(super) fn counts(&self) -> (u64, u64) {
        let count =
            |d: &Arc<Direction>| (d.sent.load(Ordering::Relaxed), d.arrivals().len() as u64);
        let all = self.directions.iter().map(count);
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// For how long some direction has been silent.
    pub(super) fn silence(&self) -> Duration {
        let last = |d: &Arc<Direction>| d.arrivals().last().map_or(0, |a| a.at);
        let oldest = self.directions.iter().map(last).min().unwrap_or(0);
        Duration::from_nanos(self.now().saturating_sub(oldest))
    }

    /// Whether so many packets that were sent after `since` have arrived in each direction.
    pub(super) fn flows(&self, since: Nanos, packets: usize) -> bool {
        self.directions.iter().all(|d| {
            let arrivals = d.arrivals();
            let recent = arrivals.iter().rev().take_while(|a| a.at >= since);
            recent.filter(|a| a.sent >= since).take(packets).count() == packets
        })
    }

    /// When each direction had its first packet that was sent after `since`: the last of these times.
    pub(super) fn first_packets(&self, since: Nanos) -> Option<Nanos> {
        let first = |d: &Arc<Direction>| first_after(&d.arrivals(), since);
        self.directions
            .iter()
            .map(first)
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .max()
    }

    /// The longest time without a packet in some direction, from `since` on.
    pub(super) fn longest_gap(&self, since: Nanos) -> Duration {
        let gap = |d: &Arc<Direction>| longest_gap(&d.arrivals(), since);
        Duration::from_nanos(self.directions.iter().map(gap).max().unwrap_or(0))
    }

    /// No packet is sent any more. Those under way still arrive.
    pub(super) fn stop_sending(&mut self) -> Result<()> {
        self.senders.end()
    }

    /// The end of it.
    pub(super) fn finish(mut self) -> Result<Totals> {
        self.senders.end()?;
        self.receivers.end()?;
        let mut totals = Totals::default();
        for direction in &self.directions {
            let arrivals = direction.arrivals();
            let different: HashSet<u64> = arrivals.iter().map(|a| a.number).collect();
            let (sent, different, all) = (
                direction.sent.load(Ordering::Relaxed),
                different.len() as u64,
                arrivals.len() as u64,
            );
            totals.sent += sent;
            totals.lost += sent.saturating_sub(different);
            totals.duplicated += all - different;
            totals.damaged += direction.damaged.load(Ordering::Relaxed);
        }
        Ok(totals)
    }
}

impl Switch {
    fn spawn(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<()> {
        let stop = self.stop.clone();
        let name = "traffic".to_owned();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || work(&stop))?;
        self.threads.push(thread);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            ensure!(thread.join().is_ok(), "a thread of the traffic panicked");
        }
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Direction {
    fn arrivals(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, socket: &UdpSocket, to: SocketAddr, begin: Instant, stop: &AtomicBool) {
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let number = self.sent.fetch_add(1, Ordering::Relaxed);
            // A packet that cannot even be sent is one that was lost.
            let _ = socket.send_to(&content(number, nanos(begin)), to);
            next += INTERVAL;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn receive(&self, socket: &UdpSocket, from: SocketAddr, begin: Instant, stop: &AtomicBool) {
        // Longer than what is expected, so that more than that is noticed.
        let mut buffer = [0; 2 * LENGTH];
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((length, source)) => {
                    let at = nanos(begin);
                    match numbers(&buffer[..length]) {
                        Some((number, sent)) if source == from => {
                            self.arrivals().push(Arrival { number, sent, at });
                        }
                        _ => {
                            self.damaged.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
                Err(_) => thread::sleep(INTERVAL),
            }
        }
    }
}

fn nanos(begin: Instant) -> Nanos {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Marker, number, time, and bytes that follow from the number.
fn content(number: u64, sent: Nanos) -> [u8; LENGTH] {
    let filler = number.to_le_bytes()[0];
    let mut bytes = [filler; LENGTH];
    bytes[..16].copy_from_slice(&MARKER);
    bytes[16..24].copy_from_slice(&number.to_be_bytes());
    bytes[24..32].copy_from_slice(&sent.to_be_bytes());
    bytes
}

/// Number and time, if the content is as it was sent.
fn numbers(bytes: &[u8]) -> Option<(u64, Nanos)> {
    let field = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let (number, sent) = (field(16)?, field(24)?);
    (bytes == content(number, sent)).then_some((number, sent))
}

fn first_after(arrivals: &[Arrival], since: Nanos) -> Option<Nanos> {
    let begin = arrivals.partition_point(|a| a.at < since);
    let first = arrivals[begin..].iter().find(|a| a.sent >= since);
    first.map(|a| a.at)
}

/// The longest time between two arrivals, of which the second came after `since`.
fn longest_gap(arrivals: &[Arrival], since: Nanos) -> Nanos {
    let begin = arrivals.partition_point(|a| a.at < since);
    let pairs = arrivals[begin.saturating_sub(1)..].windows(2);
    pairs.map(|pair| pair[1].at - pair[0].at).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(number: u64, sent: Nanos, at: Nanos) -> Arrival {
        Arrival { number, sent, at }
    }

    #[test]
    fn gaps_are_those_after_the_given_time() {
        let arrivals =
            [(0, 0), (1, 900), (2, 1000), (3, 1500), (4, 1510)].map(|(n, at)| arrival(n, at, at));
        assert_eq!(longest_gap(&arrivals, 0), 900);
        assert_eq!(longest_gap(&arrivals, 950), 500);
        assert_eq!(longest_gap(&arrivals, 1200), 500);
        assert_eq!(longest_gap(&arrivals, 1505), 10);
        assert_eq!(longest_gap(&arrivals, 2000), 0);
        assert_eq!(longest_gap(&[], 0), 0);
    }

    #[test]
    fn what_was_sent_before_is_no_sign_of_life() {
        let arrivals = [
            arrival(0, 10, 20),
            arrival(1, 90, 120),
            arrival(2, 130, 140),
        ];
        assert_eq!(first_after(&arrivals, 100), Some(140));
        assert_eq!(first_after(&arrivals, 131), None);
    }

    #[test]
    fn damaged_contents_have_no_number() {
        let good = content(513, 7);
        assert_eq!(numbers(&good), Some((513, 7)));
        for i in 0..LENGTH {
            let mut bad = good;
            bad[i] ^= 1;
            // A changed time is a time; everything else is noticed.
            assert_eq!(
                numbers(&bad).is_some(),
                (16..23).contains(&i) || (24..32).contains(&i),
                "{i}"
            );
        }
        assert_eq!(numbers(&good[..LENGTH - 1]), None);
        assert_eq!(numbers(&[]), None);
    }

    /// What becomes of packets over loopback, and of a copy and something else behind them.
    fn over_loopback() -> Totals {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let address = socket.local_addr().unwrap();
            (Arc::new(socket), address)
        };
        let (a, b) = (socket(), socket());
        let mut traffic = Traffic {
            begin: Instant::now(),
            directions: Vec::new(),
            senders: Switch::default(),
            receivers: Switch::default(),
        };
        traffic.direction(a.clone(), b.clone()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !traffic.flows(0, 20) && Instant::now() < deadline {
            thread::sleep(PATIENCE);
        }
        assert!(traffic.flows(0, 20));
        assert!(!traffic.flows(traffic.now() + 1_000_000_000, 1));
        a.0.send_to(&content(3, 0), b.1).unwrap();
        a.0.send_to(b"something else", b.1).unwrap();
        let totals = traffic.finish().unwrap();
        assert!(totals.sent >= 20);
        totals
    }

    #[test]
    fn packets_over_loopback_all_arrive_and_a_copy_is_noticed() {
        let is_right = |t: &Totals| (t.lost, t.duplicated, t.damaged) == (0, 1, 1);
        let mut all = Vec::new();
        // A machine that stood still sends what it has missed at once, which is more than a socket holds: that is no test, and there is another.
        while !all.last().is_some_and(is_right) {
            assert!(all.len() < 5, "{all:?}");
            all.push(over_loopback());
        }
    }
}
