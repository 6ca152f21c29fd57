//! Not a target: writes real inputs for every target into `target/fuzz/work/seeds`, and the certificate that `certificates` trusts into `trust`. It is
//! instrumented like the targets, so libFuzzer has to be its main function, too.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        if let Err(error) = evergate_fuzz::seeds::write(root) {
            panic!("seeds: {error}");
        }
    },
    |_input: &[u8]| {}
);
