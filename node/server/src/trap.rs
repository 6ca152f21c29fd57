//! Packets that had no Child SA, and the Child SAs that are made because of them (`trap`).
//!
//! The packet itself was dropped: what protocols repeat comes when the tunnel is there.

use crate::node::{Node, gateway_of};
use evergate_ike::{
    config::{ChildConfig, Connection, StartAction},
    selector::SelectorTemplate,
    wire::TrafficSelector,
};
use std::net::IpAddr;

/// What is known of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    /// Inner source.
    pub(crate) src: IpAddr,
    /// Inner destination.
    pub(crate) dst: IpAddr,
    /// IP protocol.
    pub(crate) protocol: u8,
    /// Source and destination port, where they are known.
    pub(crate) ports: Option<(u16, u16)>,
}

/// A packet had no Child SA: the first one that is set to be trapped and would have been for it is wanted now, if its gateway is served here.
pub(crate) fn sprung(node: &Node, packet: &Packet) {
    let policy = node.policy.load_full();
    let found = policy.connections.iter().find_map(|connection| {
        let mut trapped = connection.children.iter().filter(|c| traps(c));
        let child = trapped.find(|child| is_for(connection, child, packet))?;
        Some((connection, child))
    });
    let Some((connection, child)) = found else {
        return;
    };
    let service = node.service(gateway_of(&policy, connection));
    if let Some(service) = service.filter(|s| s.may_send()) {
        let target = (connection.name.clone(), child.name.clone());
        service.wishes.traffic(target);
    }
}

/// Whether a Child SA may be waiting for traffic.
fn traps(child: &ChildConfig) -> bool {
    [child.start_action, child.close_action, child.dpd_action].contains(&StartAction::Trap)
}

fn is_for(connection: &Connection, child: &ChildConfig, packet: &Packet) -> bool {
    let (from, to) = packet.ports.unzip();
    let ours = |t: &SelectorTemplate| match t {
        SelectorTemplate::Fixed(ts) => covers(ts, packet.src, packet.protocol, from),
        // Our own address, or a virtual one that we do not have yet.
        SelectorTemplate::Dynamic { .. } => true,
    };
    let theirs = |t: &SelectorTemplate| match t {
        SelectorTemplate::Fixed(ts) => covers(ts, packet.dst, packet.protocol, to),
        SelectorTemplate::Dynamic { .. } => connection.remote_hosts().any(|a| a == packet.dst),
    };
    child.local_ts.iter().any(ours) && child.remote_ts.iter().any(theirs)
}

fn covers(ts: &TrafficSelector, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    let family = ts.start.is_ipv4() == address.is_ipv4();
    let all_ports = ts.start_port == 0 && ts.end_port == u16::MAX;
    let port = all_ports || port.is_some_and(|p| ts.start_port <= p && p <= ts.end_port);
    family
        && ts.start <= address
        && address <= ts.end
        && (ts.protocol == 0 || ts.protocol == protocol)
        && port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::path::Path;

    fn connection(child: &str) -> Connection {
        let text = format!(
            "[connections.c]\nremote_addrs = ['192.0.2.1']\n[connections.c.children.x]\n{child}"
        );
        parse(&text, Path::new("."))
            .unwrap()
            .policy
            .connections
            .remove(0)
    }

    fn packet(src: &str, dst: &str, port: u16) -> Packet {
        Packet {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol: 6,
            ports: Some((50_000, port)),
        }
    }

    #[test]
    fn a_packet_finds_the_child_that_it_is_for() {
        let c = connection(
            "local_ts = ['10.2.0.0/16']\nremote_ts = ['10.1.0.0/16[tcp/443]', '2001:db8::/64']\nstart_action = 'trap'",
        );
        let child = &c.children[0];
        assert!(traps(child));
        let fits = |src, dst, port| is_for(&c, child, &packet(src, dst, port));
        assert!(fits("10.2.0.1", "10.1.0.1", 443));
        assert!(!fits("10.2.0.1", "10.1.0.1", 80));
        assert!(!fits("10.3.0.1", "10.1.0.1", 443));
        assert!(!fits("10.2.0.1", "10.4.0.1", 443));
    }

    #[test]
    fn dynamic_selectors_are_for_the_addresses_of_both_ends() {
        let c = connection("start_action = 'trap'");
        let fits = |dst| is_for(&c, &c.children[0], &packet("192.0.2.2", dst, 80));
        assert!(fits("192.0.2.1"));
        assert!(!fits("192.0.2.3"));
    }

    #[test]
    fn only_what_waits_for_traffic_is_trapped() {
        assert!(!traps(&connection("start_action = 'start'").children[0]));
        assert!(traps(&connection("dpd_action = 'trap'").children[0]));
    }
}
