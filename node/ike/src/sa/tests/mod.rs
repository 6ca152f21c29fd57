//! Exchanges between two ends, on virtual time, each end committing as a member would.

mod basics;
mod bench;
mod certificates;
mod collisions;
mod fragments;
mod hybrid;
mod initiation;
mod mobike;
mod ppk;
mod reauthentication;
mod rounds;
mod secrets;
mod suites;
mod takeover;
mod tcp;
mod transport_mode;
mod under_way;
mod window;

/// The policy of one end, for other tests.
pub(crate) fn testing_policy() -> crate::config::Policy {
    bench::policy("b.test", "a.test", 2)
}
