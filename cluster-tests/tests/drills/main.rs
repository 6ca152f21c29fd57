//! The drills: what a person would try on a lab bench, against real processes.

mod addresses;
mod datagrams;
mod decryption;
mod establish;
mod liveness;
mod refusals;
mod rekey;
mod restart;
mod selfcheck;
mod sizes;
