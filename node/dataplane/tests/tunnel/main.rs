//! Two planes in network namespaces, with real packets between them.
#![allow(clippy::unwrap_used)]

mod control;
mod gateways;
mod handover;
mod headers;
mod hosts;
mod link;
mod packets;
mod policy;
mod sizes;
mod streams;
mod workers;
