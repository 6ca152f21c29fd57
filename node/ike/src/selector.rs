//! Traffic selectors: their algebra and how they are narrowed (RFC 7296 §2.9).

#[cfg(test)]
mod tests;
mod text;

use crate::wire::{MAX_SELECTORS, TrafficSelector};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Every port, whether known or not.
const ANY: (u16, u16) = (0, u16::MAX);
/// Only packets whose ports are not known, such as fragments (RFC 4301 §4.4.1.1).
const OPAQUE: (u16, u16) = (u16::MAX, 0);

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

impl SelectorTemplate {
    /// The selectors that this stands for when the end in question has these addresses.
    pub fn resolve(&self, addresses: &[IpAddr]) -> Vec<TrafficSelector> {
        match *self {
            Self::Fixed(selector) => vec![selector],
            Self::Dynamic {
                protocol,
                start_port,
                end_port,
            } => addresses
                .iter()
                .map(|ip| TrafficSelector {
                    protocol,
                    start_port,
                    end_port,
                    start: *ip,
                    end: *ip,
                })
                .collect(),
        }
    }
}

impl TrafficSelector {
    /// Every port and protocol of a network.
    pub fn network(net: IpNet) -> Self {
        Self {
            protocol: 0,
            start_port: ANY.0,
            end_port: ANY.1,
            start: net.network(),
            end: net.broadcast(),
        }
    }

    /// Whether every packet of `other` is one of ours too.
    pub fn contains(&self, other: &Self) -> bool {
        self.same_family(other)
            && (self.protocol == 0 || self.protocol == other.protocol)
            && (self.start <= other.start && other.end <= self.end)
            && common_ports(self.ports(), other.ports()) == Some(other.ports())
    }

    /// What both have in common.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (a, b) if a == b => a,
            _ => return None,
        };
        let (start_port, end_port) = common_ports(self.ports(), other.ports())?;
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (self.same_family(other) && start <= end).then_some(Self {
            protocol,
            start_port,
            end_port,
            start,
            end,
        })
    }

    /// The networks that the address range consists of, smallest number of them: at most 62 of IPv4,
    /// 254 of IPv6.
    pub fn networks(&self) -> Vec<IpNet> {
        match (self.start, self.end) {
            (IpAddr::V4(start), IpAddr::V4(end)) => {
                let net = |bits: u128, prefix| {
                    let bits = u32::try_from(bits).expect("an IPv4 address has 32 bits");
                    Ipv4Net::new(Ipv4Addr::from_bits(bits), prefix).map(IpNet::V4)
                };
                cover(start.to_bits().into(), end.to_bits().into(), 32, net)
            }
            (IpAddr::V6(start), IpAddr::V6(end)) => {
                let net =
                    |bits, prefix| Ipv6Net::new(Ipv6Addr::from_bits(bits), prefix).map(IpNet::V6);
                cover(start.to_bits(), end.to_bits(), 128, net)
            }
            _ => Vec::new(),
        }
    }

    fn ports(&self) -> (u16, u16) {
        (self.start_port, self.end_port)
    }

    /// Addresses of different families compare, but mean nothing to each other.
    fn same_family(&self, other: &Self) -> bool {
        let v4 = self.start.is_ipv4();
        [self.end, other.start, other.end]
            .iter()
            .all(|ip| ip.is_ipv4() == v4)
    }
}

/// What two port ranges have in common. ANY includes OPAQUE (RFC 7296 §3.13.1); no other range does.
fn common_ports(a: (u16, u16), b: (u16, u16)) -> Option<(u16, u16)> {
    match (a, b) {
        (ANY, other) | (other, ANY) => Some(other),
        (OPAQUE, OPAQUE) => Some(OPAQUE),
        (OPAQUE, _) | (_, OPAQUE) => None,
        _ => {
            let (start, end) = (a.0.max(b.0), a.1.min(b.1));
            (start <= end).then_some((start, end))
        }
    }
}

/// Covers `start..=end` with the largest aligned blocks from its beginning on, which is the smallest
/// number of them. `width` is the number of bits in an address.
fn cover<E: std::fmt::Debug>(
    start: u128,
    end: u128,
    width: u8,
    net: impl Fn(u128, u8) -> Result<IpNet, E>,
) -> Vec<IpNet> {
    let mut networks = Vec::new();
    let mut next = (start <= end).then_some(start);
    while let Some(at) = next {
        // As many low bits may vary as are zero in the first address, and as fit before the end.
        let aligned = at.trailing_zeros();
        let fitting = (end - at).checked_add(1).map_or(128, u128::ilog2);
        let host_bits = aligned.min(fitting).min(width.into());
        let prefix = u32::from(width) - host_bits;
        let prefix = u8::try_from(prefix).expect("a prefix is at most 128 bits");
        networks.push(net(at, prefix).expect("a prefix is at most as long as the address"));
        let last = at | u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
        next = (last < end).then(|| last + 1);
    }
    networks
}

/// The intersection of what was offered with what is allowed, without parts that others contain, in the order of the offer.
/// At most 64 selectors come out.
pub fn narrow(offered: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut out: Vec<TrafficSelector> = Vec::new();
    let pairs = offered
        .iter()
        .flat_map(|o| allowed.iter().map(move |a| (o, a)));
    for part in pairs.filter_map(|(offered, allowed)| offered.intersect(allowed)) {
        if out.iter().any(|other| other.contains(&part)) {
            continue;
        }
        out.retain(|other| !part.contains(other));
        if out.len() < MAX_SELECTORS {
            out.push(part);
        }
    }
    out
}
