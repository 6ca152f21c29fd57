//! Traffic selectors, as the data plane uses them (RFC 4301 §4.4.1).

use crate::packet::PacketSelectors;
use std::net::IpAddr;

/// One side of a selector: an inclusive range of addresses and ports, and a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    /// IP protocol; 0 is any.
    pub protocol: u8,
    /// First port; 0 with `end_port` 65535 is any; 65535 with `end_port` 0 is opaque: only packets whose ports
    /// are not visible. For ICMP, type and code make one number (RFC 4301 §4.4.1.1).
    pub start_port: u16,
    /// Last port.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address, of the same family.
    pub end: IpAddr,
}

/// The selectors of an SA or a policy: any of one side together with any of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selectors {
    /// Our side: source of what we send, destination of what we receive.
    pub local: Vec<Selector>,
    /// The peer's side.
    pub remote: Vec<Selector>,
}

impl Selector {
    /// Any protocol and port of the addresses from `start` to `end`.
    pub fn addresses(start: IpAddr, end: IpAddr) -> Self {
        Self {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start,
            end,
        }
    }

    /// Whether a packet with this address, protocol and port on this side is meant.
    pub fn matches(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        if self.protocol != 0 && self.protocol != protocol {
            return false;
        }
        // Comparing across families is safe: every IPv4 address sorts before every IPv6 address.
        if address < self.start || address > self.end {
            return false;
        }
        match (self.start_port, self.end_port, port) {
            (0, u16::MAX, _) => true,
            (u16::MAX, 0, port) => port.is_none(),
            (start, end, Some(port)) => (start..=end).contains(&port),
            (_, _, None) => false,
        }
    }
}

impl Selectors {
    /// Whether a packet that we would send is meant.
    pub fn match_outbound(&self, packet: &PacketSelectors) -> bool {
        let (source_port, destination_port) = packet.ports.unzip();
        any(&self.local, packet.source, packet.protocol, source_port)
            && any(
                &self.remote,
                packet.destination,
                packet.protocol,
                destination_port,
            )
    }

    /// Whether a packet that we received is meant.
    pub fn match_inbound(&self, packet: &PacketSelectors) -> bool {
        let (source_port, destination_port) = packet.ports.unzip();
        any(&self.remote, packet.source, packet.protocol, source_port)
            && any(
                &self.local,
                packet.destination,
                packet.protocol,
                destination_port,
            )
    }
}

/// The first pair of [`Selectors`], where it takes no pointer to look at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    local: Selector,
    remote: Selector,
}

impl First {
    pub(crate) fn of(selectors: &Selectors) -> Option<Self> {
        Some(Self {
            local: *selectors.local.first()?,
            remote: *selectors.remote.first()?,
        })
    }

    pub(crate) fn match_inbound(&self, packet: &PacketSelectors) -> bool {
        let (source_port, destination_port) = packet.ports.unzip();
        self.remote
            .matches(packet.source, packet.protocol, source_port)
            && self
                .local
                .matches(packet.destination, packet.protocol, destination_port)
    }
}

fn any(side: &[Selector], address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    side.iter()
        .any(|selector| selector.matches(address, protocol, port))
}

#[cfg(test)]
mod tests;
