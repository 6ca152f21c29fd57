//! SPIs: those of a worker are congruent to its index, so that a message finds the worker of its SA by the SPI alone, and no
//! two workers choose the same one.

use crate::shared::Shared;
use evergate_ike::{env::Entropy, record::SaId, sa::SpiSource};
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// So many SPIs are remembered as given out, until they must have come into the state or have been abandoned.
const REMEMBERED: usize = 8192;

/// The smallest SPI of a Child SA (RFC 4303 §2.1).
const FIRST_CHILD: u32 = 256;

/// The SPIs that one worker gives out.
pub(super) struct Spis {
    shared: Arc<Shared>,
    index: usize,
    recent: HashSet<u64>,
    order: VecDeque<u64>,
}

/// Where the messages of an SA go, among `workers`.
pub(crate) fn worker_of(sa: SaId, workers: usize) -> usize {
    let workers = u64::try_from(workers).expect("a number of workers fits");
    usize::try_from(sa.0 % workers).expect("smaller than the number of workers")
}

impl Spis {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self {
            shared,
            index,
            recent: HashSet::new(),
            order: VecDeque::new(),
        }
    }

    fn index(&self) -> u64 {
        u64::try_from(self.index).expect("an index of a worker fits")
    }

    fn workers(&self) -> u64 {
        u64::try_from(self.shared.worker_count).expect("a number of workers fits")
    }

    /// Whether there may soon be an IKE SA of this name.
    pub(super) fn is_coming(&self, sa: SaId) -> bool {
        self.recent.contains(&sa.0)
    }

    /// That IKE SA was there, and is no more.
    pub(super) fn gone(&mut self, sa: SaId) {
        self.recent.remove(&sa.0);
    }

    /// Remembers an SPI as given out; false if it was given out just before.
    pub(super) fn take(&mut self, spi: u64) -> bool {
        if !self.recent.insert(spi) {
            return false;
        }
        self.order.push_back(spi);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.recent.remove(&oldest);
        }
        true
    }
}

impl SpiSource for Spis {
    fn ike(&mut self, rng: &mut dyn Entropy) -> SaId {
        loop {
            let drawn = rng.next_u64();
            // Cut to a multiple of the number of workers; what would overflow is drawn again.
            let Some(spi) = (drawn - drawn % self.workers()).checked_add(self.index()) else {
                continue;
            };
            let id = SaId(spi);
            // The upper half is never zero, so that no SPI for IKE is taken for one of a Child SA in what is remembered.
            let fresh = spi >> 32 != 0 && self.shared.read(|state| state.sa(id).is_none());
            if fresh && self.take(spi) {
                return id;
            }
        }
    }

    fn child(&mut self, rng: &mut dyn Entropy) -> u32 {
        loop {
            let drawn = u64::from(rng.next_u32());
            let candidate = drawn - drawn % self.workers() + self.index();
            let Ok(spi) = u32::try_from(candidate) else {
                continue;
            };
            let fresh = spi >= FIRST_CHILD
                && !self.shared.read(|state| state.spi_in_use(spi))
                // The data plane may still receive for one that the state has forgotten.
                && self.shared.plane.stats(spi).is_none();
            if fresh && self.take(u64::from(spi)) {
                return spi;
            }
        }
    }
}
