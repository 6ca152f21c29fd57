//! Exchanges between two ends, on virtual time, each end committing as a member would.

mod basics;
mod bench;
mod collisions;
mod hybrid;
mod initiation;
mod mobike;
mod suites;
mod takeover;
