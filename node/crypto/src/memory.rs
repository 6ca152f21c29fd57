//! Memory, which is waited for where there are many SAs.

/// What processors that we know fetch at a time, in bytes.
const LINE: usize = 64;

/// Begins to fetch a value into the cache, and does not wait for it. Nothing but time depends on it.
pub fn prefetch<T>(value: &T) {
    prefetch_some(value, size_of::<T>());
}

/// The same for its first so many bytes.
#[allow(unsafe_code)]
pub fn prefetch_some<T>(value: &T, most: usize) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    let before = start.addr() % LINE;
    for offset in (0..before + size_of::<T>().min(most)).step_by(LINE) {
        let line = start.wrapping_sub(before).wrapping_add(offset);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: it is a hint, which reads nothing that a program could see and faults at no address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: see above.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    }
}
