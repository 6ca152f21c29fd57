//! The network between peers and members, and that between members: what is lost on it, and how long things take.

use crate::conductor::{MICRO, MILLI, Random};
use std::collections::BTreeMap;

/// One of the hosts.
pub(crate) type HostId = usize;

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// One in so many is lost; zero: none.
    pub(crate) loss: u64,
    /// One in so many comes twice.
    pub(crate) duplication: u64,
    /// One in so many comes much later, after others.
    pub(crate) late: u64,
    /// The longest time that a datagram usually takes, in nanoseconds.
    pub(crate) delay: u64,
}

impl Weather {
    pub(crate) const FINE: Self = Self {
        loss: 0,
        duplication: 0,
        late: 0,
        delay: MILLI,
    };

    /// When a datagram arrives, from now on: each time is one copy.
    pub(crate) fn arrivals(&self, random: &mut Random) -> Vec<u64> {
        let hit = |random: &mut Random, rate| rate != 0 && random.one_in(rate);
        if hit(random, self.loss) {
            return Vec::new();
        }
        let copies = if hit(random, self.duplication) { 2 } else { 1 };
        (0..copies)
            .map(|_| {
                let usual = random.range(100 * MICRO, self.delay.max(200 * MICRO));
                let late = hit(random, self.late);
                usual + if late { random.below(400 * MILLI) } else { 0 }
            })
            .collect()
    }
}

/// Which hosts hear which.
#[derive(Default)]
pub(crate) struct Cuts(BTreeMap<(HostId, HostId), u32>);

impl Cuts {
    /// One way between two hosts is cut, once more; or once less.
    pub(crate) fn set(&mut self, from: HostId, to: HostId, cut: bool) {
        let times = self.0.entry((from, to)).or_default();
        *times = if cut {
            *times + 1
        } else {
            times.saturating_sub(1)
        };
    }

    /// Nothing is cut any more.
    pub(crate) fn heal(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.0.get(&(from, to)).is_some_and(|times| *times > 0)
    }
}
