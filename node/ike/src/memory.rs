//! The allocator of the tests: how much memory something takes, and whether secrets are wiped before their memory is given back.

#![allow(unsafe_code)] // an allocator is nothing else

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// So much of a secret is looked for: more than chance could repeat.
const NEEDLE: usize = 16;

/// What is looked for in memory that is given back.
struct Needles {
    /// Bytes that one begins with, so that most places are passed over quickly.
    first: [bool; 256],
    all: Vec<[u8; NEEDLE]>,
}

thread_local! {
    /// Bytes that this thread holds, and the most that it held.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
    static NEEDLES: Cell<Option<&'static Needles>> = const { Cell::new(None) };
    /// Blocks that held one.
    static LEAKS: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// While a thread ends its counters are gone, and nobody asks for them.
fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.wrapping_add(change);
        held.set((now, most.max(now)));
    });
}

/// Looks at a block that is about to be given back.
fn look(needles: &Needles, block: &[u8]) {
    let holds_one = block
        .windows(NEEDLE)
        .any(|w| needles.first[usize::from(w[0])] && needles.all.iter().any(|n| n == w));
    if holds_one {
        let _ = LEAKS.try_with(|leaks| leaks.set(leaks.get() + 1));
    }
}

// SAFETY: all memory is the system allocator's, with the same layouts; what is added only counts and reads.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // So that what is read later was written once.
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Ok(Some(needles)) = NEEDLES.try_with(Cell::get) {
            // SAFETY: the block has this size, was zeroed when it was made, and nobody else has it any more.
            look(needles, unsafe {
                std::slice::from_raw_parts(block, layout.size())
            });
        }
        count(-layout.size().cast_signed());
        // SAFETY: as for `alloc`.
        unsafe { System.dealloc(block, layout) }
    }
    // The default `realloc` makes, copies and gives back: what grows leaves its former block behind.
}

/// Does something that may take so many bytes at once and no more.
#[track_caller]
pub(crate) fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let (before, _) = HELD.get();
    HELD.set((before, before));
    let result = work();
    let taken = HELD.get().1.wrapping_sub(before);
    assert!(
        taken <= bytes.cast_signed(),
        "{taken} bytes were taken at once, {bytes} are justified"
    );
    result
}

/// How many blocks with one of these secrets in them are given back during something.
pub(crate) fn leaks(secrets: &[Vec<u8>], work: impl FnOnce()) -> usize {
    let all: Vec<[u8; NEEDLE]> = secrets
        .iter()
        .filter_map(|s| s.first_chunk().copied())
        .collect();
    let mut first = [false; 256];
    all.iter().for_each(|n| first[usize::from(n[0])] = true);
    NEEDLES.set(Some(Box::leak(Box::new(Needles { first, all }))));
    LEAKS.set(0);
    work();
    NEEDLES.set(None);
    LEAKS.get()
}

#[test]
fn what_is_not_wiped_is_found() {
    use zeroize::Zeroizing;
    let secret: Vec<u8> = (0..32).collect();
    let found = leaks(std::slice::from_ref(&secret), || drop(secret.clone()));
    assert_eq!(found, 1);
    let wiped = leaks(std::slice::from_ref(&secret), || {
        drop(Zeroizing::new(secret.clone()));
    });
    assert_eq!(wiped, 0);
    // The first block is given back as it is when there is no room.
    let grown = leaks(std::slice::from_ref(&secret), || {
        let mut growing = Zeroizing::new(secret.clone());
        growing.extend([0; 4096]);
    });
    assert_eq!(grown, 1);
}

#[test]
#[should_panic(expected = "bytes were taken at once")]
fn what_takes_more_is_found() {
    within(1000, || drop(vec![0_u8; 1001]));
}
