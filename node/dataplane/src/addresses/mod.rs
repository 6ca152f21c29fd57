//! Taking and leaving the addresses of virtual gateways.
//!
//! What this process has on the interfaces is made equal to what is wanted ([`Addresses::set`]); so what a former process left behind goes
//! with the first call, and an address that went away is made again with the next. Addresses of ours are marked by their origin
//! (`IFA_PROTO`, Linux 5.18); a kernel that knows no such marks has ours told by the list of all addresses of virtual gateways.

mod announce;

pub use announce::{ANNOUNCEMENTS, Announcer};

use crate::{PlaneError, netlink::refused, rtnl::Rtnl};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
    },
};
use std::{io, net::IpAddr};

/// Where addresses go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressesConfig {
    /// Interface of outer addresses. Unless given, it is the one with the longest prefix that the address is in.
    pub outer_interface: Option<String>,
    /// The same for inner addresses.
    pub inner_interface: Option<String>,
    /// The mark of addresses that are ours.
    pub origin: u8,
}

/// Which side of a virtual gateway an address is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Towards peers.
    Outer,
    /// Towards the protected network.
    Inner,
}

/// An address that this process has put on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The address.
    pub address: IpNet,
    /// Index of the interface.
    pub device: u32,
}

/// What [`Addresses::set`] did.
#[derive(Debug, Default)]
pub struct Changed {
    /// What was put on an interface, and should be announced.
    pub added: Vec<Taken>,
    /// What was taken away.
    pub removed: Vec<IpNet>,
    /// What did not work. The rest was done nevertheless.
    pub errors: Vec<PlaneError>,
}

/// Puts addresses on interfaces of the network namespace in which it was made, and takes them away.
pub struct Addresses {
    config: AddressesConfig,
    rtnl: Rtnl,
}

/// An address on an interface, as the kernel lists it.
struct Present {
    address: IpNet,
    device: u32,
    origin: Option<u8>,
}

impl AddressesConfig {
    /// The mark unless another is given: not in use by any well-known program.
    pub const ORIGIN: u8 = 0xe6;
}

impl Addresses {
    /// Nothing is changed yet.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open(config: AddressesConfig) -> Result<Self, PlaneError> {
        let rtnl = Rtnl::open().map_err(|e| refused("open netlink socket", e))?;
        Ok(Self { config, rtnl })
    }

    /// The interface on which an address is or would be.
    ///
    /// # Errors
    /// If there is none.
    pub fn interface(&mut self, address: IpNet, side: Side) -> Result<u32, PlaneError> {
        let present = self.present()?;
        self.choose(address, side, &present)
    }

    /// Makes the addresses that this process has exactly these. First what is not wanted goes. `all` are the addresses of all virtual
    /// gateways: on kernels without marks, those of them that are there count as ours.
    ///
    /// # Errors
    /// If addresses cannot be listed. What fails for one address is in the result.
    pub fn set(&mut self, wanted: &[(IpNet, Side)], all: &[IpNet]) -> Result<Changed, PlaneError> {
        let mut changed = Changed::default();
        let present = self.present()?;
        // Every kernel that has marks has one on 127.0.0.1.
        let marks = present.iter().any(|p| p.origin.is_some());
        let origin = self.config.origin;
        let ours = |p: &Present| match p.origin {
            Some(mark) => mark == origin,
            None => !marks && all.iter().any(|a| a.addr() == p.address.addr()),
        };
        let mut places = Vec::new();
        for &(address, side) in wanted {
            match self.choose(address, side, &present) {
                Ok(device) => places.push(Taken { address, device }),
                Err(e) => changed.errors.push(e),
            }
        }
        for old in present.iter().filter(|p| ours(p)) {
            let stays = |t: &Taken| t.address == old.address && t.device == old.device;
            if places.iter().any(stays) {
                continue;
            }
            promote_secondaries(old.device);
            match self.remove(old) {
                Ok(()) => changed.removed.push(old.address),
                Err(e) => changed.errors.push(e),
            }
        }
        // The kernel may have removed more than was asked for.
        let left = self.present()?;
        for place in places {
            let there = |p: &Present| p.address == place.address && p.device == place.device;
            if left.iter().any(there) {
                continue;
            }
            match self.add(&place) {
                Ok(()) => changed.added.push(place),
                Err(e) => changed.errors.push(e),
            }
        }
        Ok(changed)
    }

    /// Which of these are on any interface, whoever put them there.
    ///
    /// # Errors
    /// If addresses cannot be listed.
    pub fn found(&mut self, of: &[IpAddr]) -> Result<Vec<IpAddr>, PlaneError> {
        let present = self.present()?;
        let there = |a: &&IpAddr| present.iter().any(|p| p.address.addr() == **a);
        Ok(of.iter().filter(there).copied().collect())
    }

    fn choose(&self, address: IpNet, side: Side, present: &[Present]) -> Result<u32, PlaneError> {
        let configured = match side {
            Side::Outer => &self.config.outer_interface,
            Side::Inner => &self.config.inner_interface,
        };
        if let Some(name) = configured {
            return nix::net::if_::if_nametoindex(name.as_str())
                .map_err(|e| refused(&format!("find interface {name}"), e.into()));
        }
        let own = |p: &&Present| p.origin != Some(self.config.origin);
        let best = present
            .iter()
            .filter(own)
            .filter(|p| p.address.contains(&address.addr()) && p.address.addr() != address.addr())
            .max_by_key(|p| p.address.prefix_len());
        best.map(|p| p.device).ok_or_else(|| {
            let what = format!("find an interface for {address}");
            refused(&what, io::Error::from(io::ErrorKind::NotFound))
        })
    }

    fn present(&mut self) -> Result<Vec<Present>, PlaneError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self
            .rtnl
            .dump(request)
            .map_err(|e| refused("list addresses", e))?;
        let found = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => parse(&message),
            _ => None,
        });
        Ok(found.collect())
    }

    fn add(&mut self, place: &Taken) -> Result<(), PlaneError> {
        let mut message = message(place.address, place.device);
        let origin = AddressProtocol::from(self.config.origin);
        message.attributes.push(AddressAttribute::Protocol(origin));
        if place.address.addr().is_ipv6() {
            // The former owner does not answer any more, and the address is needed now (RFC 4862 §5.4 would take a second).
            message.header.flags = AddressHeaderFlags::Nodad;
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(flags);
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        match self.rtnl.ask(request, NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(refused(&format!("add address {}", place.address), e))
            }
            _ => Ok(()),
        }
    }

    /// Removes an address; one that is gone by now is no error.
    fn remove(&mut self, old: &Present) -> Result<(), PlaneError> {
        let message = message(old.address, old.device);
        match self.rtnl.ask(RouteNetlinkMessage::DelAddress(message), 0) {
            Err(e) if e.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                Err(refused(&format!("remove address {}", old.address), e))
            }
            _ => Ok(()),
        }
    }
}

fn parse(message: &AddressMessage) -> Option<Present> {
    let (mut local, mut address, mut origin) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(*a),
            AddressAttribute::Address(a) => address = Some(*a),
            AddressAttribute::Protocol(p) => origin = Some(u8::from(*p)),
            _ => {}
        }
    }
    // On a point-to-point link, `address` is that of the other end.
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Present {
        address,
        device: message.header.index,
        origin,
    })
}

fn message(address: IpNet, device: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.index = device;
    let ip: IpAddr = address.addr();
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// When an address goes, others of its prefix shall stay. Where that cannot be set, they are made again.
fn promote_secondaries(device: u32) {
    if let Ok(name) = nix::net::if_::if_indextoname(device)
        && let Ok(name) = name.to_str()
    {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/promote_secondaries");
        if let Err(e) = std::fs::write(&path, "1") {
            tracing::debug!(path, error = %e, "addresses are not promoted");
        }
    }
}
