//! Who works on packets, and how to know that nobody does.
//!
//! Each thread of the plane has a lane of its own, and goes through its gate for each batch of packets: a lock that nobody else wants, unless what is
//! held back changes. Whoever changes that closes all lanes first, and so knows that no packet is half-way under the old rule.

use crate::hold::Holds;
use arc_swap::{ArcSwap, Guard};
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The lanes of all threads, and what they have to hold back.
pub(crate) struct Passage {
    lanes: Box<[Lane]>,
    holds: ArcSwap<Holds>,
}

/// Alone in its cache lines: its thread takes it all the time.
#[derive(Default)]
#[repr(align(128))]
struct Lane(Mutex<()>);

/// A thread works on a batch, as long as it has this.
pub(crate) struct Pass<'p> {
    holds: Guard<Arc<Holds>>,
    _lane: MutexGuard<'p, ()>,
}

impl Deref for Pass<'_> {
    type Target = Holds;

    fn deref(&self) -> &Holds {
        &self.holds
    }
}

impl Passage {
    pub(crate) fn new(lanes: usize) -> Self {
        Self {
            lanes: (0..lanes).map(|_| Lane::default()).collect(),
            holds: ArcSwap::default(),
        }
    }

    /// Lets the thread of this lane through. What is held back stays as it is meanwhile.
    pub(crate) fn enter(&self, lane: usize) -> Pass<'_> {
        let lane = lock(&self.lanes[lane].0);
        Pass {
            // After the lane was taken: whoever closes all lanes changes it before it opens them.
            holds: self.holds.load(),
            _lane: lane,
        }
    }

    /// Changes what is held back, while no thread works on packets; it waits for those that do. What `then` does is done before they go on.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Holds), then: impl FnOnce()) {
        // All in the same order, so that two of these do not wait for each other.
        let _closed: Vec<_> = self.lanes.iter().map(|lane| lock(&lane.0)).collect();
        let mut holds = Holds::clone(&self.holds.load());
        change(&mut holds);
        self.holds.store(Arc::new(holds));
        then();
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hold;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn nobody_works_under_the_old_rule_when_the_new_one_is_set() {
        let (passage, address) = (Passage::new(3), "192.0.2.1".parse().unwrap());
        let (under_old, hold) = (AtomicUsize::new(0), Arc::new(Hold::default()));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for lane in 0..3 {
                let (passage, under_old, stop) = (&passage, &under_old, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let pass = passage.enter(lane);
                        if pass.of(address).is_none() {
                            under_old.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            under_old.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            for _ in 0..200 {
                passage.change(|holds| holds.insert(&[address], &hold), || {});
                assert_eq!(under_old.load(Ordering::SeqCst), 0);
                let idle = || assert_eq!(under_old.load(Ordering::SeqCst), 0);
                passage.change(|holds| holds.remove(&[address], &hold), idle);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
