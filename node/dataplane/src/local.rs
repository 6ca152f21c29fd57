//! Addresses of this host.

use crate::Selector;
use std::{
    cell::RefCell,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The kernel is asked again after this time: asking takes as long as a good part of a handshake.
const LIFETIME: Duration = Duration::from_secs(1);

/// Counts changes that this process made.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// What the kernel said.
struct Known {
    addresses: Vec<IpAddr>,
    asked: Instant,
    changes: u64,
}

thread_local! {
    /// Of each thread, because each can be in a network namespace of its own.
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// The addresses of this host are others now: nobody should believe the old ones.
pub(crate) fn changed() {
    CHANGES.fetch_add(1, Ordering::Release);
}

/// An address of this host, of the named family, that lies within the selectors; loopback and link-local addresses do not count.
///
/// What others than the data plane changed in the last second may not be seen yet. A thread that moves to another network namespace
/// waits as long.
pub fn local_address_within(selectors: &[Selector], ipv6: bool) -> Option<IpAddr> {
    KNOWN.with_borrow_mut(|known| {
        let (now, changes) = (Instant::now(), CHANGES.load(Ordering::Acquire));
        let fresh =
            |k: &Known| k.changes == changes && now.saturating_duration_since(k.asked) < LIFETIME;
        if !known.as_ref().is_some_and(fresh) {
            *known = Some(Known {
                addresses: ask()?,
                asked: now,
                changes,
            });
        }
        let within = |a: &IpAddr| selectors.iter().any(|s| s.start <= *a && *a <= s.end);
        let mut addresses = known.as_ref()?.addresses.iter();
        addresses
            .find(|a| a.is_ipv6() == ipv6 && within(a))
            .copied()
    })
}

/// The addresses of this host that others could reach, except those of the device `without`; loopback and link-local addresses do not count.
pub fn host_addresses(without: &str) -> Vec<IpAddr> {
    addresses(|device| device != without).unwrap_or_default()
}

/// The number of the device that has this address.
pub(crate) fn device_with(address: IpAddr) -> Option<u32> {
    let mut interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let has = |i: &nix::ifaddrs::InterfaceAddress| of(i) == Some(address);
    let found = interfaces.find(has)?;
    nix::net::if_::if_nametoindex(found.interface_name.as_str()).ok()
}

fn of(interface: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
    v4.or(v6)
}

/// All addresses that count.
fn ask() -> Option<Vec<IpAddr>> {
    addresses(|_| true)
}

fn addresses(device: impl Fn(&str) -> bool) -> Option<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let interfaces = interfaces.filter(|i| device(&i.interface_name));
    let addresses = interfaces.filter_map(|interface| of(&interface));
    let counts = |a: &IpAddr| {
        let link_local = match a {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        !a.is_loopback() && !link_local
    };
    Some(addresses.filter(counts).collect())
}
