#![no_main]

mod compares;

libfuzzer_sys::fuzz_target!(init: compares::trace(), |input: &[u8]| evergate_fuzz::replicated(input));
