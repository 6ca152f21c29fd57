//! The functions of the C library by which a program learns of the world, or waits for it.
//!
//! The linker takes a function from the program before it looks into a library, so these stand in the place of those of the C library for all code of this program
//! (the C library itself uses its own). For threads that are not of a simulation they do what those do.

#![allow(unsafe_code, reason = "these are functions of the C library")]

use super::{
    core,
    threads::{self, NEVER, State},
};
use libc::{
    c_char, c_int, c_long, c_uint, c_void, clockid_t, pthread_attr_t, pthread_t, size_t, ssize_t,
    timespec,
};
use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
};

/// The real ones.
pub(super) mod real {
    use super::*;

    /// Looks a function of the C library up, once.
    macro_rules! real {
        ($name:ident: fn($($arg:ident: $type:ty),*) -> $result:ty) => {
            pub(in super::super) unsafe fn $name($($arg: $type),*) -> $result {
                static FOUND: AtomicUsize = AtomicUsize::new(0);
                let mut found = FOUND.load(Ordering::Relaxed);
                if found == 0 {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the name ends with a zero.
                    found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) } as usize;
                    FOUND.store(found, Ordering::Relaxed);
                }
                // SAFETY: it is the function of this name, which has this type.
                let function: unsafe extern "C" fn($($type),*) -> $result = unsafe { std::mem::transmute(found) };
                // SAFETY: the caller's business.
                unsafe { function($($arg),*) }
            }
        };
    }

    real!(syscall: fn(n: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long);
    real!(clock_gettime: fn(clock: clockid_t, at: *mut timespec) -> c_int);
    real!(clock_nanosleep: fn(clock: clockid_t, flags: c_int, span: *const timespec, left: *mut timespec) -> c_int);
    real!(getrandom: fn(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t);
    real!(epoll_wait: fn(fd: c_int, events: *mut libc::epoll_event, most: c_int, timeout: c_int) -> c_int);
    real!(write: fn(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t);
    real!(sched_yield: fn() -> c_int);
    real!(sched_getaffinity: fn(process: libc::pid_t, size: size_t, set: *mut libc::cpu_set_t) -> c_int);
    real!(pthread_create: fn(thread: *mut pthread_t, attributes: *const pthread_attr_t, start: Start, argument: *mut c_void) -> c_int);
    real!(pthread_join: fn(thread: pthread_t, value: *mut *mut c_void) -> c_int);

    pub(in super::super) unsafe fn futex_wait(word: &'static AtomicU32) {
        let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        let word = word.as_ptr() as c_long;
        // SAFETY: the word is there.
        unsafe { syscall(libc::SYS_futex, word, operation.into(), 0, 0, 0, 0) };
    }

    pub(in super::super) unsafe fn futex_wake(word: &'static AtomicU32) {
        let operation = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
        let word = word.as_ptr() as c_long;
        // SAFETY: the word is there.
        unsafe { syscall(libc::SYS_futex, word, operation.into(), 1, 0, 0, 0) };
    }
}

/// Processors of every simulated machine.
const PROCESSORS: usize = 2;

type Start = extern "C" fn(*mut c_void) -> *mut c_void;

fn fail(error: c_int) -> c_long {
    // SAFETY: it is this thread's.
    unsafe { *libc::__errno_location() = error };
    -1
}

fn simulated() -> bool {
    threads::me().is_some()
}

fn nanos(time: timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(super::SECOND).saturating_add(nanos)
}

/// # Safety
/// As for the system call.
#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    n: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if simulated() && n == libc::SYS_futex {
        // SAFETY: the caller's business.
        return unsafe { futex(a, b, c, d, f) };
    }
    if simulated() && n == libc::SYS_getrandom {
        let length = usize::try_from(b).unwrap_or_default();
        // SAFETY: the caller's business.
        return unsafe { getrandom(a as *mut c_void, length, 0) } as c_long;
    }
    // SAFETY: the caller's business.
    unsafe { real::syscall(n, a, b, c, d, e, f) }
}

/// What the standard library needs of futex(2).
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
unsafe fn futex(
    address: c_long,
    operation: c_long,
    value: c_long,
    timeout: c_long,
    mask: c_long,
) -> c_long {
    let command = operation as c_int & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let by_bits = command == libc::FUTEX_WAIT_BITSET || command == libc::FUTEX_WAKE_BITSET;
    let mask = if by_bits { mask as u32 } else { u32::MAX };
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            // SAFETY: the caller says that there is a futex.
            let word = unsafe { &*(address as *const AtomicU32) };
            if word.load(Ordering::SeqCst) != value as u32 {
                return fail(libc::EAGAIN);
            }
            let timeout = timeout as *const timespec;
            // SAFETY: the caller's, if it is not null.
            let deadline = unsafe { timeout.as_ref() }.map_or(NEVER, |t| match command {
                libc::FUTEX_WAIT => core().now.saturating_add(nanos(*t)),
                // By the monotonic clock: nobody here waits by another.
                _ => core().when(nanos(*t)),
            });
            let address = address as usize;
            match threads::wait_for(State::Futex { address, mask }, deadline) {
                true => fail(libc::ETIMEDOUT),
                false => 0,
            }
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let woken = core().wake(address as usize, mask, value as u32);
            threads::maybe_hand_over();
            c_long::from(woken)
        }
        _ => fail(libc::ENOSYS),
    }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, at: *mut timespec) -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::clock_gettime(clock, at) };
    }
    if core().is_greedy() {
        threads::hand_over();
    }
    let (monotonic, wall) = core().clocks();
    let time = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => wall,
        _ => monotonic,
    };
    let time = timespec {
        tv_sec: i64::try_from(time / super::SECOND).unwrap_or_default(),
        tv_nsec: i64::try_from(time % super::SECOND).unwrap_or_default(),
    };
    // SAFETY: the caller's business.
    unsafe { at.write(time) };
    0
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    span: *const timespec,
    left: *mut timespec,
) -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::clock_nanosleep(clock, flags, span, left) };
    }
    // SAFETY: the caller's business.
    let span = nanos(unsafe { *span });
    let until = match flags & libc::TIMER_ABSTIME {
        0 => core().now.saturating_add(span),
        _ => core().when(span),
    };
    threads::sleep_until(until);
    0
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(span: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's business.
    unsafe { clock_nanosleep(libc::CLOCK_MONOTONIC, 0, span, left) }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::getrandom(buffer, length, flags) };
    }
    if length > 0 {
        // SAFETY: the caller says that there are so many bytes.
        core().fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), length) });
    }
    ssize_t::try_from(length).unwrap_or(ssize_t::MAX)
}

unsafe extern "C" {
    #[link_name = "__real_aws_lc_0_47_0_RAND_bytes"]
    fn real_rand_bytes(buffer: *mut u8, length: size_t) -> c_int;
}

/// In the place of the generator of the cryptographic library.
///
/// # Safety
/// As for that.
#[unsafe(export_name = "__wrap_aws_lc_0_47_0_RAND_bytes")]
unsafe extern "C" fn rand_bytes(buffer: *mut u8, length: size_t) -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real_rand_bytes(buffer, length) };
    }
    // SAFETY: the caller's business.
    unsafe { getrandom(buffer.cast(), length, 0) };
    1
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    fd: c_int,
    events: *mut libc::epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::epoll_wait(fd, events, most, timeout) };
    }
    let span = u64::try_from(timeout).map(|ms| ms.saturating_mul(super::MILLI));
    let deadline = span.map_or(NEVER, |span| core().now.saturating_add(span));
    loop {
        // SAFETY: the caller's business.
        let found = unsafe { real::epoll_wait(fd, events, most, 0) };
        if found != 0 || timeout == 0 {
            return found;
        }
        if threads::wait_for(State::Poll { fd }, deadline) {
            // SAFETY: the caller's business.
            return unsafe { real::epoll_wait(fd, events, most, 0) };
        }
    }
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t {
    // SAFETY: the caller's business.
    let written = unsafe { real::write(fd, bytes, length) };
    // Wakers write numbers. What goes to the terminal changes nothing.
    if simulated() && length == size_of::<u64>() {
        core().dirty = true;
        threads::maybe_hand_over();
    }
    written
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn sched_yield() -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::sched_yield() };
    }
    threads::hand_over();
    0
}

/// How many threads a process makes depends on the processors that it finds: they are as many on every machine.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn sched_getaffinity(
    process: libc::pid_t,
    size: size_t,
    set: *mut libc::cpu_set_t,
) -> c_int {
    // SAFETY: the caller's business.
    let outcome = unsafe { real::sched_getaffinity(process, size, set) };
    if simulated() && outcome == 0 {
        // SAFETY: it was just written to.
        let set = unsafe { &mut *set };
        // SAFETY: the numbers are those of processors that a set has room for.
        unsafe {
            libc::CPU_ZERO(set);
            (0..PROCESSORS).for_each(|processor| libc::CPU_SET(processor, set));
        }
    }
    outcome
}

/// What a new thread begins with.
struct Beginning {
    start: Start,
    argument: *mut c_void,
    index: usize,
    turn: &'static AtomicU32,
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    if !simulated() {
        // SAFETY: the caller's business.
        return unsafe { real::pthread_create(thread, attributes, start, argument) };
    }
    // Taken: whoever runs before the thread that asked for it goes on makes threads of its own process.
    let process = core().spawn_as.take();
    let process = process.unwrap_or_else(|| core().process());
    let index = core().enter(process);
    let turn = core().turn_of(index);
    let beginning = Box::new(Beginning {
        start,
        argument,
        index,
        turn,
    });
    // SAFETY: the caller's business; the new thread owns its beginning.
    let made =
        unsafe { real::pthread_create(thread, attributes, begin, Box::into_raw(beginning).cast()) };
    if made != 0 {
        core().over(index);
        return made;
    }
    // SAFETY: it was just written.
    core().set_handle(index, unsafe { *thread });
    threads::maybe_hand_over();
    0
}

extern "C" fn begin(beginning: *mut c_void) -> *mut c_void {
    // SAFETY: it is the one that was made for this thread.
    let beginning: Box<Beginning> = unsafe { Box::from_raw(beginning.cast()) };
    threads::first_turn(beginning.index, beginning.turn);
    at_exit(beginning.index);
    (beginning.start)(beginning.argument)
}

thread_local! {
    /// How often the destructor of `at_exit` has run.
    static ROUNDS: Cell<u32> = const { Cell::new(0) };
}

/// Another thread has its turn once this one is over with all its destructors. Those of the C library's keys run after those of Rust's variables.
fn at_exit(index: usize) {
    static KEY: AtomicU32 = AtomicU32::new(u32::MAX);
    if KEY.load(Ordering::Relaxed) == u32::MAX {
        let mut key = 0;
        // SAFETY: it only writes the key.
        let made = unsafe { libc::pthread_key_create(&raw mut key, Some(over)) };
        assert_eq!(made, 0, "no key for threads");
        KEY.store(key, Ordering::Relaxed);
    }
    // SAFETY: the key is there. Null would mean that there is nothing to destroy.
    unsafe { libc::pthread_setspecific(KEY.load(Ordering::Relaxed), (index + 1) as *const c_void) };
}

unsafe extern "C" fn over(value: *mut c_void) {
    let index = value as usize - 1;
    ROUNDS.set(ROUNDS.get() + 1);
    if ROUNDS.get() == 1 {
        // Once more, after the destructors of all other keys.
        return at_exit(index);
    }
    core().over(index);
    threads::leave();
}

/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: pthread_t, value: *mut *mut c_void) -> c_int {
    if simulated()
        && let Some(index) = core().by_handle(thread)
    {
        while !core().is_over(index) {
            threads::wait_for(State::Join(index), NEVER);
        }
    }
    // SAFETY: the caller's business.
    unsafe { real::pthread_join(thread, value) }
}
