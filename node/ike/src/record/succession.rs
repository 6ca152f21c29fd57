//! A new authentication that takes the place of an IKE SA while that goes on (make before break).

use super::SaId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What an IKE SA takes over from another one by a new authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    /// The IKE SA whose place it takes.
    pub old: SaId,
    /// The Child SAs that it must have before the other one goes, by their names in the configuration.
    pub children: Vec<String>,
    /// The virtual addresses that we have from the peer: it is asked for the same.
    pub addresses: Vec<IpAddr>,
}
