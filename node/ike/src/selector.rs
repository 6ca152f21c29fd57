//! Traffic selectors: their algebra and how they are narrowed (RFC 7296 §2.9).

use crate::wire::TrafficSelector;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// A traffic selector in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SelectorTemplate {
    /// These addresses.
    Fixed(TrafficSelector),
    /// The address of the end in question: its virtual address if it has one, its outer address otherwise (`dynamic`).
    Dynamic {
        /// IP protocol; 0 is any.
        protocol: u8,
        /// First port.
        start_port: u16,
        /// Last port.
        end_port: u16,
    },
}

/// Why a text is not a traffic selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a traffic selector")]
pub struct SelectorError(pub String);

impl FromStr for SelectorTemplate {
    type Err = SelectorError;
    /// swanctl's forms: `10.1.0.0/16`, `10.1.0.1`, `10.1.0.1-10.1.0.9`, `dynamic`, each with an optional `[proto/port]`, as in
    /// `10.1.0.1[tcp/http]`, `[udp/5000-6000]`, `[/53]`, `[icmp]`.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let _ = text;
        todo!()
    }
}

impl SelectorTemplate {
    /// The selectors that this stands for when the end in question has these addresses.
    pub fn resolve(&self, addresses: &[IpAddr]) -> Vec<TrafficSelector> {
        let _ = addresses;
        todo!()
    }
}

impl TrafficSelector {
    /// Every port and protocol of a network.
    pub fn network(net: IpNet) -> Self {
        let _ = net;
        todo!()
    }

    /// Whether every packet of `other` is one of ours too.
    pub fn contains(&self, other: &Self) -> bool {
        let _ = other;
        todo!()
    }

    /// What both have in common.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let _ = other;
        todo!()
    }

    /// The networks that the address range consists of, smallest number of them.
    pub fn networks(&self) -> Vec<IpNet> {
        todo!()
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}

/// The intersection of what was offered with what is allowed, without parts that others contain, in the order of the offer.
/// At most 64 selectors come out.
pub fn narrow(offered: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let _ = (offered, allowed);
    todo!()
}
