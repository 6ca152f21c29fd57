//! Addresses that move between hosts, and the dead-man switch, between network namespaces.
#![allow(clippy::unwrap_used)]

mod addresses;
mod deadman;
#[path = "../tunnel/hosts.rs"]
#[allow(dead_code)]
mod hosts;

use hosts::{Host, wire};

/// Two hosts and a neighbour on one link, each with addresses of its own: `192.0.2.N/24` and `2001:db8::N/64`.
pub(crate) struct Link {
    pub(crate) members: [Host; 2],
    pub(crate) neighbour: Host,
    _bridge: Host,
}

impl Link {
    pub(crate) fn new() -> Self {
        let bridge = Host::new();
        bridge.ip("link add br0 type bridge mcast_snooping 0 forward_delay 0");
        bridge.ip("link set br0 up");
        let hosts = [Host::new(), Host::new(), Host::new()];
        for (n, host) in (1..).zip(&hosts) {
            host.sysctl("ipv6/conf/default/accept_dad", "0");
            let port = format!("p{n}");
            wire(&bridge, &port, host, "wire");
            bridge.ip(&format!("link set {port} master br0"));
            host.address(&format!("192.0.2.{n}/24"), "wire");
            host.address(&format!("2001:db8::{n}/64"), "wire");
        }
        let [a, b, neighbour] = hosts;
        Self {
            members: [a, b],
            neighbour,
            _bridge: bridge,
        }
    }

    /// The Ethernet address that the neighbour has for an address, if it has one.
    pub(crate) fn cached(&self, address: &str) -> Option<String> {
        let text = self
            .neighbour
            .ip_output(&format!("neigh show {address} dev wire"));
        let mut words = text.split_whitespace();
        words.find(|w| *w == "lladdr")?;
        words.next().map(str::to_owned)
    }
}

/// The Ethernet address of a host.
pub(crate) fn mac(host: &Host) -> String {
    let text = host.ip_output("link show dev wire");
    let mut words = text.split_whitespace();
    words.find(|w| *w == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}

pub(crate) fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}
