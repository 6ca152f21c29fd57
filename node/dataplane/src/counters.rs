//! Counters, and the queue of events.

use crate::{DropReason, Drops, PlaneEvent, Totals, Transport};
use std::{
    cell::Cell,
    hash::{BuildHasher, Hash, RandomState},
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// A counter. Nothing is ordered by it.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Packets and bytes, in and out, and drops: of a Child SA, or of the plane.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets_in: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) packets_out: Counter,
    pub(crate) bytes_out: Counter,
    /// In a box, which most Child SAs never need.
    drops: OnceLock<Box<DropCounters>>,
}

type DropCounters = [Counter; DropReason::ALL.len()];

impl Traffic {
    pub(crate) fn received(&self, packets: usize, bytes: usize) {
        self.packets_in.add(packets as u64);
        self.bytes_in.add(bytes as u64);
    }

    pub(crate) fn sent(&self, packets: usize, bytes: usize) {
        self.packets_out.add(packets as u64);
        self.bytes_out.add(bytes as u64);
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    pub(crate) fn dropped_many(&self, reason: DropReason, packets: usize) {
        let drops = self.drops.get_or_init(Box::default);
        drops[reason as usize].add(packets as u64);
    }

    pub(crate) fn drops(&self) -> Drops {
        let drops = self.drops.get();
        Drops::from_counts(std::array::from_fn(|i| drops.map_or(0, |d| d[i].get())))
    }
}

thread_local! {
    /// Which of [`Lanes`] this thread counts in.
    static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What a whole plane counts: each of its threads by itself, so that they do not wait for each other's cache lines.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Box<[Lane]>,
    /// What other threads count.
    others: Arc<Traffic>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane(Traffic);

impl Lanes {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            others: Arc::default(),
        }
    }

    /// This thread counts here from now on.
    pub(crate) fn choose(lane: usize) {
        LANE.set(lane);
    }

    /// Where all count that have no lane.
    pub(crate) fn others(&self) -> &Arc<Traffic> {
        &self.others
    }

    /// What all have counted.
    pub(crate) fn sum(&self) -> Totals {
        let all = || self.lanes.iter().map(|l| &l.0).chain([&*self.others]);
        let sum = |count: fn(&Traffic) -> &Counter| all().map(|t| count(t).get()).sum();
        let drops = all().map(Traffic::drops);
        Totals {
            packets_in: sum(|t| &t.packets_in),
            bytes_in: sum(|t| &t.bytes_in),
            packets_out: sum(|t| &t.packets_out),
            bytes_out: sum(|t| &t.bytes_out),
            drops: drops.fold(Drops::default(), |sum, drops| sum.and(&drops)),
            ..Totals::default()
        }
    }
}

impl Deref for Lanes {
    type Target = Traffic;

    /// That of this thread.
    fn deref(&self) -> &Traffic {
        self.lanes.get(LANE.get()).map_or(&*self.others, |l| &l.0)
    }
}

/// What the plane counts of IKE.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) ike_in: Counter,
    pub(crate) ike_out: Counter,
    pub(crate) keepalives_in: Counter,
    pub(crate) keepalives_out: Counter,
}

/// The IKE header (RFC 7296 §3.1): nothing shorter is IKE.
const IKE_HEADER_LEN: usize = 28;

/// Hands an IKE message on, and counts it; else it is dropped and counted.
pub(crate) fn hand_on_ike(
    events: &Events,
    control: &Control,
    traffic: &Traffic,
    (local, remote, transport): (SocketAddr, SocketAddr, Transport),
    message: &[u8],
) {
    if message.len() < IKE_HEADER_LEN {
        return traffic.dropped(DropReason::IkeMalformed);
    }
    let event = PlaneEvent::Ike {
        local,
        remote,
        transport,
        bytes: message.to_vec(),
    };
    if events.tell(event) {
        control.ike_in.add(1);
    } else {
        traffic.dropped(DropReason::IkeQueueFull);
    }
}

/// The sending end of the queue of events.
pub(crate) struct Events(pub(crate) mpsc::Sender<PlaneEvent>);

impl Events {
    /// Tells it unless the queue is full (or nobody listens any more).
    #[must_use]
    pub(crate) fn tell(&self, event: PlaneEvent) -> bool {
        self.0.try_send(event).is_ok()
    }
}

/// Limits events that anybody can cause: each subject once a second, all together 100 a second. Memory is fixed; two subjects that
/// share a slot delay each other.
pub(crate) struct RateLimit {
    hasher: RandomState,
    slots: Vec<Option<(u64, Instant)>>,
    second: Instant,
    in_second: u32,
    per_second: u32,
}

impl RateLimit {
    const SLOTS: usize = 256;
    const PER_SECOND: u32 = 100;
    const PERIOD: Duration = Duration::from_secs(1);

    pub(crate) fn new(now: Instant) -> Self {
        Self {
            hasher: RandomState::new(),
            slots: vec![None; Self::SLOTS],
            second: now,
            in_second: 0,
            per_second: Self::PER_SECOND,
        }
    }

    /// One of so many that are limited together.
    pub(crate) fn share(now: Instant, of: usize) -> Self {
        let of = u32::try_from(of.max(1)).unwrap_or(u32::MAX);
        Self {
            per_second: (Self::PER_SECOND / of).max(1),
            ..Self::new(now)
        }
    }

    /// Whether an event with this subject may go out now.
    pub(crate) fn admit(&mut self, subject: impl Hash, now: Instant) -> bool {
        let hash = self.hasher.hash_one(subject);
        let slot = &mut self.slots[usize::from(hash.to_le_bytes()[0])];
        let recent = |at: Instant| now.saturating_duration_since(at) < Self::PERIOD;
        if matches!(slot, Some((h, at)) if *h == hash && recent(*at)) {
            return false;
        }
        if !recent(self.second) {
            (self.second, self.in_second) = (now, 0);
        }
        if self.in_second >= self.per_second {
            return false;
        }
        self.in_second += 1;
        *slot = Some((hash, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_limited_by_subject_and_in_total() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        assert!(limit.admit(1, start));
        assert!(!limit.admit(1, start + Duration::from_millis(999)));
        assert!(limit.admit(1, start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(10);
        let admitted = (0..10_000).filter(|i| limit.admit(i, later)).count();
        assert_eq!(admitted, 100);
        assert!(limit.admit(20_000, later + Duration::from_secs(1)));
    }

    #[test]
    fn drops_are_counted_by_reason() {
        let traffic = Traffic::default();
        traffic.dropped(DropReason::Replay);
        traffic.dropped(DropReason::Replay);
        traffic.dropped(DropReason::IkeMalformed);
        let drops = traffic.drops();
        assert_eq!(drops.get(DropReason::Replay), 2);
        assert_eq!(drops.get(DropReason::IkeMalformed), 1);
        assert_eq!(drops.total(), 3);
    }
}
