//! What the fuzz targets do with their input, one function each. `run` builds and runs them.
//!
//! A target returns if all is well and panics if not: libFuzzer takes a panic as a finding.

// The configuration's source, which is part of this crate, refers to types of these crates by their names.
extern crate self as evergate_cluster;
extern crate self as evergate_dataplane;

mod allocations;
mod certificates;
mod configuration;
mod esp;
mod message;
mod ocsp;
mod payloads;
mod replicated;
mod sa;
pub mod seeds;

pub use certificates::certificates;
use configuration::keys as credentials;
pub use configuration::plane::{MAX_WORKERS, PlaneConfig};
pub use configuration::{lease, raft};
pub use esp::esp;
pub use message::message;
pub use ocsp::ocsp;
pub use payloads::payloads;
pub use replicated::replicated;
pub use sa::sa;

/// What is read of a configuration.
pub fn configuration(input: &[u8]) {
    configuration::configuration(input);
}
