//! The data plane's contract, and its implementations.
//!
//! [`DataPlane`] is the contract; [`Userspace`] carries packets between a TUN device and sockets. In front of both stands the
//! [`DeadMan`] switch, and [`Addresses`] moves the addresses of virtual gateways.

mod addresses;
mod child;
mod config;
mod contract;
mod counters;
mod deadman;
mod gate;
mod inbound;
mod netlink;
mod outbound;
pub mod prefix;
mod protection;
mod reserve;
mod routes;
mod rtnl;
mod sockets;
mod sys;
mod tun;
mod userspace;

pub use addresses::{ANNOUNCEMENTS, Addresses, AddressesConfig, Announcer, Changed, Side, Taken};
pub use config::UserspaceConfig;
pub use contract::{
    Capabilities, ChildSa, ChildStats, DataPlane, DropReason, Drops, Outer, PlaneError, PlaneEvent,
    Protected, Totals,
};
pub use deadman::{DeadMan, DeadManConfig};
pub use evergate_esp::{Cipher, Selector};
pub use gate::{Gate, boot_time};
pub use userspace::Userspace;

use std::net::IpAddr;

/// An address of this host, of the named family, that lies within the selectors; loopback and link-local addresses do not count.
pub fn local_address_within(selectors: &[Selector], ipv6: bool) -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let mut addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        v4.or(v6)
    });
    addresses.find(|a| {
        let link_local = match a {
            IpAddr::V4(a) => a.is_link_local(),
            IpAddr::V6(a) => a.is_unicast_link_local(),
        };
        let within = |s: &Selector| s.start <= *a && *a <= s.end;
        a.is_ipv6() == ipv6 && !a.is_loopback() && !link_local && selectors.iter().any(within)
    })
}
