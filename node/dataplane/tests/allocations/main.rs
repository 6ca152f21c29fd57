//! The threads of a plane take no memory for a packet: all that they need was taken before, and is used again.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../tunnel/gateways.rs"]
mod gateways;
#[path = "../tunnel/hosts.rs"]
mod hosts;

use gateways::{Case, Pair, exchange};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Whether it counts.
static COUNTING: AtomicBool = AtomicBool::new(false);
/// How often a thread of a plane asked for memory meanwhile.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts what planes ask for.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is left to the system's allocator; what is done beside it takes no memory.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note();
        // SAFETY: see above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

fn note() {
    if COUNTING.load(Ordering::Relaxed) && is_of_a_plane() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

/// By the name that the kernel has for it: asking Rust for it might take memory.
fn is_of_a_plane() -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: it writes at most 16 bytes.
    #[allow(unsafe_code)]
    let got = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    got == 0 && name.starts_with(b"evergate-")
}

/// Packets that are counted, one way.
const PACKETS: u32 = 4000;
/// A list may still grow with the first batch that is larger than all before.
const GROWTH: usize = 8;

#[test]
fn a_packet_takes_no_memory() {
    hosts::privileged("a_packet_takes_no_memory", || {
        for case in [Case::IN_UDP, Case::PLAIN] {
            let count = allocations(case);
            assert!(
                count <= GROWTH,
                "{count} in {} packets, {case:?}",
                2 * PACKETS
            );
        }
    });
}

fn allocations(case: Case) -> usize {
    let pair = Pair::new();
    pair.connect(0x1000, case);
    let a = pair.a.host.udp("10.1.0.1:7000");
    let b = pair.b.host.udp("10.2.0.1:7000");
    // Keys are expanded, and buffers have grown.
    exchange(&a, &b, 500);
    exchange(&b, &a, 500);
    COUNT.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::Relaxed);
    exchange(&a, &b, PACKETS);
    exchange(&b, &a, PACKETS);
    COUNTING.store(false, Ordering::Relaxed);
    COUNT.load(Ordering::Relaxed)
}
