//! Puts the simulation between the program and what it would otherwise learn of the real world.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The `getrandom` crate looks this function up while it runs, so the dynamic symbol table must have ours.
    println!("cargo:rustc-link-arg-bin=simulate=-Wl,--export-dynamic-symbol=getrandom");
    // The cryptographic library has a generator of its own. Its symbols carry its version.
    println!("cargo:rustc-link-arg-bin=simulate=-Wl,--wrap=aws_lc_0_47_0_RAND_bytes");
}
