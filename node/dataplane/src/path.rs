//! The paths to the peers, and how large a packet may be on them (RFC 1191, RFC 8201).
//!
//! The kernel knows the MTU of a path: that of the route, or less if a router said so. It is asked once for a path (from one of our addresses to
//! one of a peer's), for all Child SAs that take it; each notes the answer where its packets find it without a lock.

use crate::{Outer, link::Way};
use arc_swap::ArcSwapOption;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What was learnt of a path is believed for so many seconds (RFC 8201 §4: at least five minutes, ten recommended).
pub(crate) const PATH_MTU_LIFETIME: u64 = 600;
/// No path has less (RFC 1122 §3.3.2, RFC 8200 §5).
pub(crate) const MIN_PATH_MTU_V4: u32 = 576;
const MIN_PATH_MTU_V6: u32 = 1280;
/// No packet is longer.
const MAX_PATH_MTU: u32 = 65_535;
/// Paths of which something is known: as many as there can be Child SAs. Beyond that all is asked again.
const MAX_PATHS: usize = 1 << 20;
/// So many paths are kept without looking which of them are out of date.
const FEW_PATHS: usize = 1024;

/// What is between a Child SA and its peer. A Child SA that moves gets another.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) outer: Outer,
    /// What was learnt last, see [`Note`].
    mtu: AtomicU64,
    /// Where the last authentic packet came from, by UDP or TCP.
    seen: ArcSwapOption<SocketAddr>,
    /// The next hop, where plain ESP goes by packet sockets.
    pub(crate) way: Way,
}

impl Path {
    pub(crate) fn new(outer: Outer) -> Arc<Self> {
        Arc::new(Self {
            outer,
            mtu: AtomicU64::new(0),
            seen: ArcSwapOption::empty(),
            way: Way::default(),
        })
    }

    /// Notes where an authentic packet came from. Yields whether that is news, and not where the peer is thought to be.
    pub(crate) fn saw(&self, remote: SocketAddr) -> bool {
        if self.seen.load().as_deref() == Some(&remote) {
            return false;
        }
        let before = self.seen.swap(Some(Arc::new(remote)));
        before.as_deref() != Some(&remote) && remote != self.outer.remote
    }

    /// Where the last authentic packet came from.
    pub(crate) fn seen(&self) -> Option<SocketAddr> {
        self.seen.load().as_deref().copied()
    }

    /// The MTU that was learnt last, whether or not it is still believed.
    pub(crate) fn last_mtu(&self) -> Option<u32> {
        Note::read(self.mtu.load(Ordering::Relaxed)).map(|note| note.mtu)
    }

    fn ends(&self) -> (IpAddr, IpAddr) {
        (self.outer.local.ip(), self.outer.remote.ip())
    }
}

/// What was learnt of a path. In one word, so that it is read and written whole: 16 bits of MTU, 16 of the round, 32 of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    mtu: u32,
    /// The [round](Paths::round) in which it was learnt.
    round: u64,
    /// Until when it is believed, in seconds since the plane started.
    until: u64,
}

impl Note {
    fn word(self) -> u64 {
        let mtu = u64::from(self.mtu.min(MAX_PATH_MTU));
        mtu << 48 | (self.round & 0xffff) << 32 | self.until.min(u64::from(u32::MAX))
    }

    /// `None` if nothing was ever noted.
    fn read(word: u64) -> Option<Self> {
        let mtu = u32::from((word >> 48) as u16);
        (mtu > 0).then_some(Self {
            mtu,
            round: word >> 32 & 0xffff,
            until: word & u64::from(u32::MAX),
        })
    }
}

/// What is known of all paths.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    known: Mutex<Known>,
    /// Grows when a path turns out to be narrower than was known. Whatever a Child SA has noted before is looked up again then.
    round: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    mtus: HashMap<(IpAddr, IpAddr), Note>,
    /// How many there may be before those that are out of date are looked for.
    enough: usize,
}

impl Paths {
    /// The MTU of a path at `now_ms` since the plane started. `ask` asks the kernel; what that says cannot be below what every path has.
    pub(crate) fn mtu(&self, path: &Path, now_ms: u64, ask: impl FnOnce() -> u32) -> u32 {
        let noted = self.noted(path, now_ms);
        noted.unwrap_or_else(|| self.learn(path, now_ms / 1000, ask))
    }

    /// What is noted of a path and still believed.
    pub(crate) fn noted(&self, path: &Path, now_ms: u64) -> Option<u32> {
        let note = Note::read(path.mtu.load(Ordering::Relaxed))?;
        let round = self.round.load(Ordering::Relaxed) & 0xffff;
        (note.round == round && now_ms / 1000 < note.until).then_some(note.mtu)
    }

    /// The other Child SAs of the path may have asked before.
    fn learn(&self, path: &Path, now: u64, ask: impl FnOnce() -> u32) -> u32 {
        let round = self.round.load(Ordering::Relaxed);
        let known = self.known().mtus.get(&path.ends()).copied();
        let mut note = known.filter(|known| now < known.until).unwrap_or_else(|| {
            let least = if path.outer.remote.is_ipv4() {
                MIN_PATH_MTU_V4
            } else {
                MIN_PATH_MTU_V6
            };
            let note = Note {
                mtu: ask().clamp(least, MAX_PATH_MTU),
                round,
                until: now + PATH_MTU_LIFETIME,
            };
            self.known().note(path.ends(), note, now);
            note
        });
        note.round = round;
        path.mtu.store(note.word(), Ordering::Relaxed);
        note.mtu
    }

    /// A packet was too big after all: the kernel is to be asked again, for all Child SAs of the path.
    pub(crate) fn forget(&self, path: &Path) {
        self.known().mtus.remove(&path.ends());
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// Some path may be narrower than was known: the kernel is to be asked again, for all of them.
    pub(crate) fn forget_all(&self) {
        self.known().mtus.clear();
        self.round.fetch_add(1, Ordering::Relaxed);
    }

    /// Every operation leaves it whole.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn note(&mut self, ends: (IpAddr, IpAddr), note: Note, now: u64) {
        if self.mtus.len() >= self.enough {
            self.mtus.retain(|_, note| now < note.until);
            if self.mtus.len() >= MAX_PATHS {
                self.mtus.clear();
            }
            self.enough = (self.mtus.len() * 2).clamp(FEW_PATHS, MAX_PATHS);
        }
        self.mtus.insert(ends, note);
    }
}

#[cfg(test)]
mod tests;
