//! Which thread runs.

use super::{SECOND, core, interpose::real, random::Random};
use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, Ordering},
};

/// A process of the simulation.
pub(crate) type Pid = usize;

/// The process that plays the rest of the world.
pub(crate) const WORLD: Pid = 0;

/// Unix time at which every simulation begins: 1 March 2026.
const EPOCH: u64 = 1_772_323_200 * SECOND;

/// The machines have been up for so long then.
const UPTIME: u64 = 100_000 * SECOND;

/// Who reads a clock so often without waiting for anything keeps others from their work.
const GREEDY: u32 = 2_000;

/// Not a time.
pub(super) const NEVER: u64 = u64::MAX;

thread_local! {
    /// The index of this thread, plus one; zero if it is not one of the simulation.
    static ME: Cell<usize> = const { Cell::new(0) };
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs, or could.
    Ready,
    /// It waits for a futex.
    Futex { address: usize, mask: u32 },
    /// It waits until a descriptor of epoll has something.
    Poll { fd: i32 },
    /// It waits for a time only.
    Sleep,
    /// It waits for the end of a thread.
    Join(usize),
    /// It is over.
    Over,
}

struct Thread {
    process: Pid,
    state: State,
    /// When it goes on at the latest.
    deadline: u64,
    /// That time has come.
    timed_out: bool,
    /// Becomes 1 when it may run.
    go: &'static AtomicU32,
    handle: libc::pthread_t,
}

/// How clocks go, from a moment on.
#[derive(Clone, Copy)]
struct Clock {
    since: u64,
    reading: u64,
    ppm: i64,
    wall: i64,
}

impl Clock {
    fn monotonic(&self, now: u64) -> u64 {
        let elapsed = i128::from(now - self.since);
        let drift = elapsed * i128::from(self.ppm) / 1_000_000;
        self.reading + u64::try_from(elapsed + drift).unwrap_or_default()
    }

    /// When it will show this.
    fn when(&self, reading: u64) -> u64 {
        let span = i128::from(reading.saturating_sub(self.reading));
        let rate = 1_000_000 + i128::from(self.ppm);
        let real = (span * 1_000_000 + rate - 1) / rate;
        self.since
            .saturating_add(u64::try_from(real).unwrap_or(NEVER))
    }
}

struct Process {
    dead: bool,
    paused_until: u64,
    clock: Clock,
}

/// All threads and processes.
pub(super) struct Core {
    pub(super) now: u64,
    pub(super) digest: u64,
    /// Whose the thread is that is made next, if it is not of who makes it.
    pub(super) spawn_as: Option<Pid>,
    /// Descriptors may have become ready.
    pub(super) dirty: bool,
    order: Random,
    entropy: Random,
    /// How often a clock was read since another thread had its turn.
    looks: u32,
    threads: Vec<Thread>,
    /// Those that are not over, nor of a dead process.
    live: Vec<usize>,
    processes: Vec<Process>,
    ready: Vec<usize>,
    fds: Vec<libc::pollfd>,
    polled: Vec<usize>,
}

/// This thread is the one with this index from now on.
pub(super) fn adopt(index: usize) {
    ME.set(index + 1);
}

/// The index of this thread, if it is one of the simulation.
pub(super) fn me() -> Option<usize> {
    ME.get().checked_sub(1)
}

impl Core {
    pub(super) fn new(seed: u64) -> Self {
        let mut seeds = Random::new(seed);
        let mut core = Self {
            now: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            spawn_as: None,
            dirty: false,
            order: Random::new(seeds.next()),
            entropy: Random::new(seeds.next()),
            looks: 0,
            threads: Vec::new(),
            live: Vec::new(),
            processes: Vec::new(),
            ready: Vec::new(),
            fds: Vec::new(),
            polled: Vec::new(),
        };
        core.new_process();
        core.enter(WORLD);
        core
    }

    pub(super) fn fold(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3);
        self.digest ^= self.digest >> 29;
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        self.entropy.fill(bytes);
    }

    pub(super) fn process(&self) -> Pid {
        self.threads[me().unwrap_or_default()].process
    }

    pub(super) fn new_process(&mut self) -> Pid {
        self.processes.push(Process {
            dead: false,
            paused_until: 0,
            clock: Clock {
                since: self.now,
                reading: UPTIME + self.now,
                ppm: 0,
                wall: 0,
            },
        });
        self.processes.len() - 1
    }

    /// A thread that will run when it is its turn.
    pub(super) fn enter(&mut self, process: Pid) -> usize {
        let index = self.threads.len();
        self.threads.push(Thread {
            process,
            state: State::Ready,
            deadline: NEVER,
            timed_out: false,
            go: Box::leak(Box::new(AtomicU32::new(0))),
            handle: 0,
        });
        self.live.push(index);
        index
    }

    /// What says that it is a thread's turn.
    pub(super) fn turn_of(&self, index: usize) -> &'static AtomicU32 {
        self.threads[index].go
    }

    pub(super) fn set_handle(&mut self, index: usize, handle: libc::pthread_t) {
        self.threads[index].handle = handle;
    }

    pub(super) fn by_handle(&self, handle: libc::pthread_t) -> Option<usize> {
        // The latest: handles are used again.
        self.threads.iter().rposition(|t| t.handle == handle)
    }

    pub(super) fn is_over(&self, index: usize) -> bool {
        self.threads[index].state == State::Over
    }

    pub(super) fn kill(&mut self, process: Pid) {
        self.processes[process].dead = true;
        let threads = &self.threads;
        self.live.retain(|i| threads[*i].process != process);
    }

    pub(super) fn pause(&mut self, process: Pid, until: u64) {
        let paused = &mut self.processes[process].paused_until;
        *paused = until.max(*paused);
    }

    pub(super) fn drift(&mut self, process: Pid, ppm: i64) {
        let now = self.now;
        let clock = &mut self.processes[process].clock;
        clock.reading = clock.monotonic(now);
        (clock.since, clock.ppm) = (now, ppm);
    }

    pub(super) fn jump(&mut self, process: Pid, by: i64) {
        self.processes[process].clock.wall += by;
    }

    /// What the clocks of this thread's process show: since the machine started, and Unix time.
    pub(super) fn clocks(&mut self) -> (u64, u64) {
        // Reading a clock takes time, so that who waits by looking at it gets on.
        self.now += 60;
        self.looks += 1;
        self.clocks_of(self.process())
    }

    /// Whether this thread does nothing but look at the clock, as far as one can see: others have a turn, too.
    pub(super) fn is_greedy(&self) -> bool {
        self.looks > GREEDY
    }

    pub(super) fn clocks_of(&self, process: Pid) -> (u64, u64) {
        let clock = self.processes[process].clock;
        let monotonic = clock.monotonic(self.now);
        let wall = i128::from(EPOCH - UPTIME + monotonic) + i128::from(clock.wall);
        (monotonic, u64::try_from(wall).unwrap_or_default())
    }

    pub(super) fn real_span(&self, process: Pid, span: u64) -> u64 {
        let ppm = i128::from(self.processes[process].clock.ppm);
        let real = i128::from(span) * 1_000_000 / (1_000_000 + ppm);
        u64::try_from(real).unwrap_or(NEVER)
    }

    pub(super) fn paused_until(&self, process: Pid) -> Option<u64> {
        let until = self.processes[process].paused_until;
        (until > self.now).then_some(until)
    }

    pub(super) fn since_pause(&self, process: Pid) -> Option<u64> {
        let until = self.processes[process].paused_until;
        (until != 0).then(|| self.now.saturating_sub(until))
    }

    /// When the monotonic clock of this thread's process will show a time.
    pub(super) fn when(&self, monotonic: u64) -> u64 {
        self.processes[self.process()].clock.when(monotonic)
    }

    /// Makes up to so many ready that wait for a futex.
    pub(super) fn wake(&mut self, address: usize, mask: u32, most: u32) -> u32 {
        let mut woken = 0;
        for at in 0..self.live.len() {
            let index = self.live[at];
            let State::Futex {
                address: a,
                mask: m,
            } = self.threads[index].state
            else {
                continue;
            };
            if a == address && m & mask != 0 && woken < most {
                self.make_ready(index, false);
                woken += 1;
            }
        }
        woken
    }

    pub(super) fn wake_world(&mut self, at: u64) {
        let world = &mut self.threads[0];
        if world.state == State::Sleep {
            world.deadline = world.deadline.min(at);
        }
    }

    fn make_ready(&mut self, index: usize, timed_out: bool) {
        let thread = &mut self.threads[index];
        thread.state = State::Ready;
        thread.timed_out = timed_out;
        thread.deadline = NEVER;
    }

    /// Notes that this thread is over, and who waited for that goes on.
    pub(super) fn over(&mut self, index: usize) {
        self.threads[index].state = State::Over;
        self.live.retain(|i| *i != index);
        for at in 0..self.live.len() {
            let waiting = self.live[at];
            if self.threads[waiting].state == State::Join(index) {
                self.make_ready(waiting, false);
            }
        }
    }

    /// The thread that runs next.
    fn next(&mut self) -> usize {
        loop {
            if self.dirty {
                self.look_at_descriptors();
            }
            let soonest = self.expire();
            if self.ready.is_empty() && !self.look_at_descriptors() {
                if soonest == NEVER {
                    self.stuck();
                }
                self.now = self.now.max(soonest);
                continue;
            }
            if self.ready.is_empty() {
                continue;
            }
            self.looks = 0;
            let at = self.order.below(self.ready.len() as u64);
            let index = self.ready[usize::try_from(at).unwrap_or_default()];
            self.now += self.order.range(300, 2_000);
            self.fold(self.now);
            self.fold(index as u64);
            return index;
        }
    }

    /// Collects who may run now, and returns when somebody else may.
    fn expire(&mut self) -> u64 {
        self.ready.clear();
        let mut soonest = NEVER;
        for at in 0..self.live.len() {
            let index = self.live[at];
            let paused = self.processes[self.threads[index].process].paused_until;
            let waits = self.threads[index].state != State::Ready;
            let due = if waits {
                self.threads[index].deadline
            } else {
                0
            };
            let due = if due == NEVER { NEVER } else { due.max(paused) };
            if due > self.now {
                soonest = soonest.min(due);
                continue;
            }
            if waits {
                self.make_ready(index, true);
            }
            self.ready.push(index);
        }
        soonest
    }

    /// Looks which threads wait for a descriptor that has something. Whether there is any.
    #[allow(unsafe_code)]
    fn look_at_descriptors(&mut self) -> bool {
        self.dirty = false;
        self.fds.clear();
        self.polled.clear();
        for index in &self.live {
            if let State::Poll { fd } = self.threads[*index].state {
                self.fds.push(libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                });
                self.polled.push(*index);
            }
        }
        // SAFETY: the array is as long as it says.
        let found = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as u64, 0) };
        for at in 0..self.fds.len() {
            if self.fds[at].revents != 0 {
                self.make_ready(self.polled[at], false);
            }
        }
        found > 0
    }

    #[allow(unsafe_code)]
    fn stuck(&self) -> ! {
        let waiting: Vec<_> = self
            .live
            .iter()
            .map(|i| (self.threads[*i].process, self.threads[*i].state))
            .collect();
        crate::trace::fatal(&format!("all threads wait for each other: {waiting:?}"));
    }
}

/// Lets another thread run; returns when it is this one's turn again. Whether its deadline has passed.
pub(super) fn hand_over() -> bool {
    let Some(me) = me() else { return false };
    let next = core().next();
    if next != me {
        let own = core().threads[me].go;
        go(core().threads[next].go);
        wait(own);
    }
    std::mem::take(&mut core().threads[me].timed_out)
}

/// Lets another thread run, and never comes back.
pub(super) fn leave() {
    let next = core().next();
    go(core().threads[next].go);
}

/// Now and then lets another thread run.
pub(super) fn maybe_hand_over() {
    if me().is_some() && core().order.one_in(4) {
        hand_over();
    }
}

/// Waits for something, and no longer than until the deadline. Whether that has passed.
pub(super) fn wait_for(state: State, deadline: u64) -> bool {
    let Some(me) = me() else { return false };
    let thread = &mut core().threads[me];
    thread.state = state;
    thread.deadline = deadline;
    hand_over()
}

pub(super) fn sleep_until(at: u64) {
    wait_for(State::Sleep, at);
}

/// Waits for the first turn of a new thread, which is this one from then on.
pub(super) fn first_turn(index: usize, own: &'static AtomicU32) {
    wait(own);
    adopt(index);
}

#[allow(unsafe_code)]
fn go(turn: &'static AtomicU32) {
    turn.store(1, Ordering::Release);
    // SAFETY: the word lives for ever.
    unsafe { real::futex_wake(turn) };
}

#[allow(unsafe_code)]
fn wait(turn: &'static AtomicU32) {
    while turn.swap(0, Ordering::Acquire) == 0 {
        // SAFETY: the word lives for ever.
        unsafe { real::futex_wait(turn) };
    }
}
