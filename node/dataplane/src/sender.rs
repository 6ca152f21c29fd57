//! One worker at a time sends on a Child SA: from its first sequence number until its packets have left.
//!
//! Numbers are given to several without harm, but then packets would leave in another order than that of their numbers, by whole trains. Peers have
//! replay windows of 32 packets, and would drop what is overtaken.

use crate::child::Child;
use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Another worker waits for it.
const WANTED: u8 = 0x80;
/// A wake-up that was missed costs so much. A train takes less to leave.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Who sends: a worker's number plus one, or nobody, and whether another waits.
#[derive(Debug, Default)]
pub(crate) struct Sender(AtomicU8);

impl Sender {
    /// Becomes the one who sends. Yields whether it is; one that does not wait stands back behind those who do.
    fn claim(&self, me: u8, waits: bool) -> bool {
        let free = |now: u8| match (now & !WANTED == 0, now & WANTED != 0) {
            (true, false) => Some(me),
            (true, true) if waits => Some(me),
            (false, _) if waits => Some(now | WANTED),
            _ => None,
        };
        let before = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, free);
        before.is_ok_and(|before| before & !WANTED == 0)
    }

    fn is(&self, me: u8) -> bool {
        self.0.load(Ordering::Relaxed) & !WANTED == me
    }

    fn release(&self) {
        self.0.fetch_and(WANTED, Ordering::Release);
    }
}

/// The Child SAs that a worker sends on until its train leaves.
pub(crate) struct Claims {
    me: u8,
    children: Vec<Arc<Child>>,
}

/// Lets workers wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    count: AtomicUsize,
    lock: Mutex<()>,
    released: Condvar,
}

impl Claims {
    /// None, of this worker.
    pub(crate) fn new(worker: usize) -> Self {
        let me = u8::try_from(worker + 1).unwrap_or(!WANTED) & !WANTED;
        Self {
            me,
            children: Vec::new(),
        }
    }

    /// Makes this worker the one that sends on a Child SA, if no other is.
    pub(crate) fn claim(&mut self, child: &Arc<Child>) -> bool {
        // Only this worker writes its own number, and takes it away.
        if child.sender.is(self.me) {
            return true;
        }
        let claimed = child.sender.claim(self.me, false);
        if claimed {
            self.children.push(Arc::clone(child));
        }
        claimed
    }

    /// The same, and waits for the other. This worker has nothing claimed meanwhile, so that two do not wait for each other.
    pub(crate) fn wait(&mut self, child: &Arc<Child>, waiters: &Waiters) {
        debug_assert!(self.children.is_empty());
        waiters.count.fetch_add(1, Ordering::AcqRel);
        let mut lock = waiters.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Others may have waited for longer: they have the first chance.
            let waited = waiters.released.wait_timeout(lock, LOOK_AGAIN);
            lock = waited.unwrap_or_else(PoisonError::into_inner).0;
            if child.sender.claim(self.me, true) {
                break;
            }
        }
        drop(lock);
        waiters.count.fetch_sub(1, Ordering::AcqRel);
        self.children.push(Arc::clone(child));
    }

    /// Its packets have left.
    pub(crate) fn release(&mut self, waiters: &Waiters) {
        for child in self.children.drain(..) {
            child.sender.release();
        }
        if waiters.count.load(Ordering::Acquire) > 0 {
            let _lock = waiters.lock.lock().unwrap_or_else(PoisonError::into_inner);
            waiters.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::tests::child_sa;

    #[test]
    fn one_sends_at_a_time_and_everybody_gets_a_turn() {
        let (waiters, child) = (
            Waiters::default(),
            Arc::new(Child::new(&child_sa(0x1000)).unwrap()),
        );
        let at_it = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (waiters, child, at_it) = (&waiters, &child, &at_it);
                scope.spawn(move || {
                    let mut claims = Claims::new(worker);
                    for _ in 0..200 {
                        if !claims.claim(child) {
                            claims.wait(child, waiters);
                        }
                        assert!(claims.claim(child), "it is mine already");
                        assert_eq!(at_it.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        at_it.fetch_sub(1, Ordering::SeqCst);
                        claims.release(waiters);
                    }
                });
            }
        });
        assert!(child.sender.claim(1, true));
    }

    #[test]
    fn who_does_not_wait_stands_back() {
        let sender = Sender::default();
        assert!(sender.claim(1, false) && sender.is(1));
        assert!(!sender.claim(2, false) && !sender.claim(2, true));
        sender.release();
        assert!(!sender.claim(1, false), "2 waits");
        assert!(sender.claim(2, true) && sender.is(2));
        sender.release();
        assert!(sender.claim(1, false));
    }
}
