//! The drills: what a person would try on a lab bench, against real processes.

mod addresses;
mod algorithms;
mod certificates;
mod cluster_cut;
mod cluster_exchanges;
mod cluster_many;
mod cluster_operators;
mod cluster_roaming;
mod cluster_takeover;
mod datagrams;
mod decryption;
mod documents;
mod establish;
mod flood;
mod initiation;
mod liveness;
mod mobike;
mod nat;
mod refusals;
mod rekey;
mod replay;
mod restart;
mod selfcheck;
mod sizes;
