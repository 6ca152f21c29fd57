//! Where a packet for a peer goes next, as the kernel would have it: by which interface, and to which neighbour there.

use super::Device;
use crate::rtnl::Rtnl;
use netlink_packet_core::NLM_F_REPLACE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use std::{collections::HashSet, io, net::IpAddr};

/// The next hop of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The interface.
    pub(crate) device: u32,
    /// The neighbour's address there.
    pub(crate) mac: [u8; 6],
}

/// Whom the kernel is asked by.
pub(super) struct Asker {
    rtnl: Rtnl,
    /// The mark of outer packets: routes may depend on it.
    mark: u32,
}

impl Asker {
    /// One in the network namespace of the calling thread.
    pub(super) fn open(mark: u32) -> io::Result<Self> {
        Ok(Self {
            rtnl: Rtnl::open()?,
            mark,
        })
    }

    /// The next hop from one of our addresses to a peer. `None` if the kernel has no plain way there, or does not know the neighbour: then it is for the
    /// kernel to find it, as it does for packets that go through IP.
    pub(super) fn hop(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<Hop>> {
        let Some((device, neighbour)) = self.route(from, to)? else {
            return Ok(None);
        };
        self.neighbour(device, neighbour)
    }

    /// An interface. Fails unless it has the addresses of Ethernet.
    pub(super) fn ethernet(&mut self, index: u32) -> io::Result<Device> {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let Some(RouteNetlinkMessage::NewLink(link)) =
            self.rtnl.get(RouteNetlinkMessage::GetLink(question))?
        else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if link.header.link_layer_type != LinkLayerType::Ether {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it is no Ethernet",
            ));
        }
        let mtu = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        let is_bridge = link.attributes.iter().any(|a| match a {
            LinkAttribute::LinkInfo(all) => all.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => false,
        });
        Ok(Device {
            index,
            mtu: mtu.ok_or(io::ErrorKind::InvalidData)?,
            is_bridge,
        })
    }

    /// All addresses of this host.
    pub(super) fn locals(&mut self) -> io::Result<HashSet<IpAddr>> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut found = HashSet::new();
        for answer in self.rtnl.dump(all)? {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                continue;
            };
            // Of a point-to-point link the other is the peer's.
            let of = |own: bool| {
                message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Local(a) if own => Some(*a),
                    AddressAttribute::Address(a) if !own => Some(*a),
                    _ => None,
                })
            };
            found.extend(of(true).or_else(|| of(false)));
        }
        Ok(found)
    }

    /// The interface of the route, and whose turn it is there.
    fn route(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Option<(u32, IpAddr)>> {
        let mut question = RouteMessage::default();
        let bits = if to.is_ipv4() { 32 } else { 128 };
        question.header.address_family = family(to);
        question.header.destination_prefix_length = bits;
        question.header.source_prefix_length = bits;
        question.attributes = vec![
            RouteAttribute::Destination(route_address(to)),
            RouteAttribute::Source(route_address(from)),
            RouteAttribute::Mark(self.mark),
        ];
        let Some(RouteNetlinkMessage::NewRoute(route)) =
            self.rtnl.get(RouteNetlinkMessage::GetRoute(question))?
        else {
            return Ok(None);
        };
        if route.header.kind != RouteType::Unicast {
            return Ok(None);
        }
        let (mut device, mut neighbour) = (None, to);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(a)) => neighbour = (*a).into(),
                RouteAttribute::Gateway(RouteAddress::Inet6(a)) => neighbour = (*a).into(),
                // Something else than the packet itself would leave, or its neighbour is of another family.
                RouteAttribute::Encap(_) | RouteAttribute::Via(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(device.map(|device| (device, neighbour)))
    }

    fn neighbour(&mut self, device: u32, address: IpAddr) -> io::Result<Option<Hop>> {
        let question = || {
            let mut message = NeighbourMessage::default();
            message.header.family = family(address);
            message.header.ifindex = device;
            message.attributes = vec![NeighbourAttribute::Destination(match address {
                IpAddr::V4(a) => NeighbourAddress::Inet(a),
                IpAddr::V6(a) => NeighbourAddress::Inet6(a),
            })];
            message
        };
        let answer = match self.rtnl.get(RouteNetlinkMessage::GetNeighbour(question())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Some(RouteNetlinkMessage::NewNeighbour(found)) = answer else {
            return Ok(None);
        };
        let valid = [
            NeighbourState::Reachable,
            NeighbourState::Permanent,
            NeighbourState::Noarp,
            NeighbourState::Delay,
            NeighbourState::Probe,
            NeighbourState::Stale,
        ];
        if !valid.contains(&found.header.state) {
            return Ok(None);
        }
        if found.header.state == NeighbourState::Stale {
            // Nobody else tells the kernel that it is used, and so to be asked whether it is there still.
            let mut used = question();
            used.header.flags = NeighbourFlags::Use;
            let used = RouteNetlinkMessage::NewNeighbour(used);
            if let Err(error) = self.rtnl.ask(used, NLM_F_REPLACE) {
                tracing::debug!(%address, %error, "the kernel does not look whether a neighbour is there");
            }
        }
        let mac = found.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(&mac[..]).ok(),
            _ => None,
        });
        Ok(mac.map(|mac| Hop { device, mac }))
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}
