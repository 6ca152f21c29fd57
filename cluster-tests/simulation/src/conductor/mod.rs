//! Runs the threads of many processes one at a time, in an order that follows from a seed, and in virtual time.
//!
//! The processes of a simulation are not processes of the system: their threads are ordinary threads of this one, and the code that they run is the product's own,
//! unchanged. What they would learn of the real world goes through a few functions of the C library, and those are ours (`interpose`): clocks, waiting for a
//! futex, for a descriptor or for time, random numbers, and the creation of threads. A thread that waits hands over to another, so that at any moment exactly one
//! runs; which one is next is drawn from the seed. When all wait, virtual time jumps to what is due next.
//!
//! So a process can be *killed* between any two of its system calls (its threads are never continued, and nothing of it is destroyed, as with `kill -9`), *paused*
//! for as long as one likes, and given clocks of its own that drift and jump.

mod interpose;
mod random;
mod threads;

pub(crate) use random::Random;
pub(crate) use threads::{Pid, WORLD};

use std::cell::UnsafeCell;
use threads::Core;

/// A second of virtual time.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// A millisecond of virtual time.
pub(crate) const MILLI: u64 = 1_000_000;
/// A microsecond of virtual time.
pub(crate) const MICRO: u64 = 1_000;

struct Shared(UnsafeCell<Option<Core>>);

// SAFETY: only the one thread that may run looks at it, and handing over is a release and an acquire.
#[allow(unsafe_code)]
unsafe impl Sync for Shared {}

static CORE: Shared = Shared(UnsafeCell::new(None));

/// The state of the conductor. Only for threads of the simulation, and not across anything that may hand over.
#[allow(unsafe_code)]
fn core() -> &'static mut Core {
    // SAFETY: see `Shared`. No reference is held while another thread runs.
    let core = unsafe { &mut *CORE.0.get() };
    core.as_mut().expect("a simulation runs")
}

/// Begins a simulation on this thread, which is the first of the process [`WORLD`].
#[allow(unsafe_code)]
pub(crate) fn begin(seed: u64) {
    // SAFETY: nothing else of a simulation runs yet.
    unsafe { *CORE.0.get() = Some(Core::new(seed)) };
    threads::adopt(0);
}

/// Virtual time, in nanoseconds since the simulation began.
pub(crate) fn now() -> u64 {
    core().now
}

/// A digest of all that has happened: which thread ran when.
pub(crate) fn digest() -> u64 {
    core().digest
}

/// Something that happened, for the digest.
pub(crate) fn note(bytes: &[u8]) {
    for byte in bytes {
        core().fold(u64::from(*byte));
    }
}

/// The process of this thread.
pub(crate) fn process() -> Pid {
    core().process()
}

/// A new process, whose clocks are right.
pub(crate) fn new_process() -> Pid {
    core().new_process()
}

/// Starts the first thread of a process.
pub(crate) fn spawn(process: Pid, name: String, work: impl FnOnce() + Send + 'static) {
    core().spawn_as = Some(process);
    let spawned = std::thread::Builder::new().name(name).spawn(work);
    drop(spawned.expect("a thread"));
}

/// Ends a process at once. Does not return if it is the caller's own.
pub(crate) fn kill(process: Pid) {
    core().kill(process);
    if core().process() == process {
        threads::hand_over();
        unreachable!("a dead thread was continued");
    }
}

/// Stops all threads of a process until a time; its clocks go on.
pub(crate) fn pause(process: Pid, until: u64) {
    core().pause(process, until);
}

/// Another thread may run here.
pub(crate) fn point() {
    threads::maybe_hand_over();
}

/// Sets how fast the clocks of a process go from now on, in millionths of what is right.
pub(crate) fn drift(process: Pid, ppm: i64) {
    core().drift(process, ppm);
}

/// Moves the wall clock of a process by so many nanoseconds.
pub(crate) fn jump(process: Pid, by: i64) {
    core().jump(process, by);
}

/// Waits until a virtual time, or until [`wake_world`].
pub(crate) fn sleep_until(at: u64) {
    threads::sleep_until(at);
}

/// The first thread of the world wakes no later than this.
pub(crate) fn wake_world(at: u64) {
    core().wake_world(at);
}

/// How long a span of the clocks of a process really takes.
pub(crate) fn real_span(process: Pid, span: u64) -> u64 {
    core().real_span(process, span)
}

/// What the clocks of a process show: since its machine started, and Unix time, in nanoseconds.
pub(crate) fn clocks_of(process: Pid) -> (u64, u64) {
    core().clocks_of(process)
}

/// How long ago a process was last paused, if it ever was.
pub(crate) fn since_pause(process: Pid) -> Option<u64> {
    core().since_pause(process)
}

/// Until when a process is paused, if it is.
pub(crate) fn paused_until(process: Pid) -> Option<u64> {
    core().paused_until(process)
}
