//! Whether libFuzzer is told what values are compared, which is how it finds magic numbers in what it reads.

use std::sync::atomic::{AtomicU64, Ordering};

// SAFETY: LLVM defines it in everything that it instruments, as a 64-bit number that is zero (`-sanitizer-coverage-gated-trace-callbacks`).
unsafe extern "C" {
    static __sancov_should_track: AtomicU64;
}

/// From now on it is told.
///
/// The target `sa` does without: of what is compared there little comes out of the input, and telling it is a third of all work.
pub fn trace() {
    // SAFETY: it lives as long as the program, and whoever reads it takes any value.
    let gate = unsafe { &__sancov_should_track };
    gate.store(1, Ordering::Relaxed);
}
