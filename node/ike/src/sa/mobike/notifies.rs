//! The notifies of RFC 4555 §4, read and written.

use super::super::turn::{find_notify, notify};
use crate::{
    config::Connection,
    selector::SelectorTemplate,
    wire::{Notify, NotifyType, Payload},
};
use std::net::{IpAddr, SocketAddr};

/// So many other addresses of a peer are kept, and so many of ours told: more than a host has uplinks.
pub(in crate::sa) const MAX_ADDRESSES: usize = 16;

/// Lengths of COOKIE2 (RFC 4555 §4.2.5).
const COOKIE: std::ops::RangeInclusive<usize> = 8..=64;

/// The answer to a request that is harmless by its shape: empty, or nothing but COOKIE2. It changes nothing.
pub(in crate::sa) fn harmless(payloads: &[Payload]) -> Option<Vec<Payload>> {
    match payloads {
        [] => Some(Vec::new()),
        [only] => cookie(std::slice::from_ref(only)).map(|c| vec![c]),
        _ => None,
    }
}

/// The request's COOKIE2, to be returned as it is (RFC 4555 §3.7).
pub(super) fn cookie(payloads: &[Payload]) -> Option<Payload> {
    let found = find_notify(payloads, NotifyType::COOKIE2)?;
    COOKIE
        .contains(&found.data.len())
        .then(|| notify(NotifyType::COOKIE2, found.data.clone()))
}

/// One notify for each address.
pub(super) fn additional(addresses: &[IpAddr]) -> impl Iterator<Item = Payload> + '_ {
    addresses.iter().map(|address| match address {
        IpAddr::V4(a) => notify(NotifyType::ADDITIONAL_IP4_ADDRESS, a.octets().to_vec()),
        IpAddr::V6(a) => notify(NotifyType::ADDITIONAL_IP6_ADDRESS, a.octets().to_vec()),
    })
}

/// The same where the list replaces another: an empty one has to be said, too (RFC 4555 §3.6).
pub(super) fn complete(addresses: &[IpAddr]) -> Vec<Payload> {
    match addresses {
        [] => vec![notify(NotifyType::NO_ADDITIONAL_ADDRESSES, Vec::new())],
        some => additional(some).collect(),
    }
}

/// The sender's other addresses, if the message says anything of them. What is no address is passed over.
pub(super) fn addresses(payloads: &[Payload]) -> Option<Vec<IpAddr>> {
    let mut found: Option<Vec<IpAddr>> = None;
    for payload in payloads {
        let Payload::Notify(n) = payload else {
            continue;
        };
        let address = match n.kind {
            NotifyType::ADDITIONAL_IP4_ADDRESS => array(n).map(|a: [u8; 4]| a.into()),
            NotifyType::ADDITIONAL_IP6_ADDRESS => array(n).map(|a: [u8; 16]| a.into()),
            NotifyType::NO_ADDITIONAL_ADDRESSES => None,
            _ => continue,
        };
        let list = found.get_or_insert_default();
        if let Some(address) = address.filter(usable)
            && list.len() < MAX_ADDRESSES
            && !list.contains(&address)
        {
            list.push(address);
        }
    }
    found
}

fn array<const N: usize>(n: &Notify) -> Option<[u8; N]> {
    n.data.as_slice().try_into().ok()
}

fn usable(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// Which of our addresses besides `used` a peer of the connection is told of: those that the connection is for, and that lie outside of what
/// it protects.
pub(super) fn others(own: &[IpAddr], used: IpAddr, connection: &Connection) -> Vec<IpAddr> {
    let inside = |address: &IpAddr| {
        let mut selectors = connection.children.iter().flat_map(|c| &c.local_ts);
        selectors.any(|t| {
            matches!(t, SelectorTemplate::Fixed(ts)
                if ts.start.is_ipv4() == address.is_ipv4() && ts.start <= *address && *address <= ts.end && ts.networks().iter().all(|n| n.prefix_len() > 0))
        })
    };
    let named = |address: &IpAddr| {
        let nets = &connection.local_addrs;
        nets.is_empty() || nets.iter().any(|n| n.contains(address))
    };
    let mut others: Vec<IpAddr> = own
        .iter()
        .copied()
        .filter(|a| *a != used && usable(a) && named(a) && !inside(a))
        .collect();
    others.sort_unstable();
    others.dedup();
    others.truncate(MAX_ADDRESSES);
    others
}

/// Whether a NAT changed the addresses of a request whose sender allows none (RFC 4555 §3.9).
pub(in crate::sa) fn unexpected_nat(
    payloads: &[Payload],
    local: SocketAddr,
    remote: SocketAddr,
) -> bool {
    let Some(given) = find_notify(payloads, NotifyType::NO_NATS_ALLOWED) else {
        return false;
    };
    let mut seen = Vec::new();
    for end in [remote, local] {
        match end.ip() {
            IpAddr::V4(a) => seen.extend(a.octets()),
            IpAddr::V6(a) => seen.extend(a.octets()),
        }
    }
    seen.extend(remote.port().to_be_bytes());
    seen.extend(local.port().to_be_bytes());
    given.data != seen
}
