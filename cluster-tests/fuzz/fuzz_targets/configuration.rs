#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| evergate_fuzz::configuration(input));
