//! Traffic selectors as the kernel can match them: prefixes, and ports with a mask.

use crate::{ChildSa, Mark, PlaneError, Selector};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netlink_packet_xfrm as xfrm;
use std::net::IpAddr;

/// The traffic of a Child SA may take so many policies in each direction: its selectors are what peers propose, and each is memory of the kernel.
pub(super) const MAX_FLOWS: usize = 256;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// What one policy is for, in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Flow {
    pub(super) local: IpNet,
    pub(super) remote: IpNet,
    /// 0 is any.
    pub(super) protocol: u8,
    /// Of ICMP: the type.
    pub(super) local_port: Ports,
    /// Of ICMP: the code.
    pub(super) remote_port: Ports,
    /// What its packets must have.
    pub(super) mark: Mark,
}

/// What a Child SA sends and what it receives: the same selectors, but marks of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flows {
    pub(super) sent: Vec<Flow>,
    pub(super) received: Vec<Flow>,
}

impl Flows {
    pub(super) fn of(sa: &ChildSa) -> Result<Self, PlaneError> {
        let all = flows(&sa.local_ts, &sa.remote_ts)?;
        let marked = |mark| all.iter().map(|f| Flow { mark, ..*f }).collect();
        Ok(Self {
            sent: marked(sa.marks.outbound),
            received: marked(sa.marks.inbound),
        })
    }
}

/// Ports that are equal under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ports {
    value: u16,
    mask: u16,
}

impl Ports {
    pub(super) const ANY: Self = Self { value: 0, mask: 0 };

    fn one(value: u16) -> Self {
        Self {
            value,
            mask: u16::MAX,
        }
    }
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Direction {
    Out,
    /// To this host.
    In,
    /// To others behind it.
    Forward,
}

impl Direction {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Out => xfrm::XFRM_POLICY_OUT,
            Self::In => xfrm::XFRM_POLICY_IN,
            Self::Forward => xfrm::XFRM_POLICY_FWD,
        }
    }
}

impl Flow {
    /// All of one family.
    pub(super) fn everything(ipv4: bool) -> Self {
        let any = match ipv4 {
            true => IpNet::V4(ipnet::Ipv4Net::default()),
            false => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        Self {
            local: any,
            remote: any,
            protocol: 0,
            local_port: Ports::ANY,
            remote_port: Ports::ANY,
            mark: Mark::default(),
        }
    }

    /// The narrower, the lower, which goes first; a mark counts least.
    pub(super) fn priority(&self) -> u32 {
        let lens = u32::from(self.local.prefix_len()) + u32::from(self.remote.prefix_len());
        let ports = self.local_port.mask.count_ones() + self.remote_port.mask.count_ones();
        let protocol = u32::from(self.protocol != 0);
        let marked = u32::from(!self.mark.is_none());
        LOWEST_PRIORITY - 1 - (lens * 132 + protocol * 66 + ports * 2 + marked)
    }

    pub(super) fn selector(&self, direction: Direction) -> xfrm::Selector {
        let (source, destination) = match direction {
            Direction::Out => (self.local, self.remote),
            Direction::In | Direction::Forward => (self.remote, self.local),
        };
        // Type and code stand in this order, whichever way the message goes.
        let (source_port, destination_port) = match direction {
            _ if is_icmp(self.protocol) => (self.local_port, self.remote_port),
            Direction::Out => (self.local_port, self.remote_port),
            Direction::In | Direction::Forward => (self.remote_port, self.local_port),
        };
        xfrm::Selector {
            saddr: xfrm::Address::from_ip(&source.network()),
            daddr: xfrm::Address::from_ip(&destination.network()),
            prefixlen_s: source.prefix_len(),
            prefixlen_d: destination.prefix_len(),
            sport: source_port.value,
            sport_mask: source_port.mask,
            dport: destination_port.value,
            dport_mask: destination_port.mask,
            family: family(source.addr()),
            proto: self.protocol,
            ..xfrm::Selector::default()
        }
    }
}

/// Behind the last that a flow can have: for what no Child SA is there.
pub(super) const LOWEST_PRIORITY: u32 = 1 << 16;

/// The kernel's number of an address family.
pub(super) fn family(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => xfrm::AF_INET,
        IpAddr::V6(_) => xfrm::AF_INET6,
    }
}

/// An address that the kernel tells.
pub(super) fn address(address: &xfrm::Address, family: u16) -> IpAddr {
    match family {
        xfrm::AF_INET => address.to_ipv4().into(),
        _ => address.to_ipv6().into(),
    }
}

/// The flows of these selectors: any of one side together with any of the other.
fn flows(local: &[Selector], remote: &[Selector]) -> Result<Vec<Flow>, PlaneError> {
    let mut all = Vec::new();
    for ours in local {
        for theirs in remote {
            pair(ours, theirs, &mut all)?;
        }
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

fn pair(ours: &Selector, theirs: &Selector, all: &mut Vec<Flow>) -> Result<(), PlaneError> {
    let protocol = match (ours.protocol, theirs.protocol) {
        (a, b) if a == b => a,
        (0, b) => b,
        (a, 0) => a,
        // Nothing is of both.
        _ => return Ok(()),
    };
    if ours.start.is_ipv4() != theirs.start.is_ipv4() {
        return Ok(());
    }
    let ports = match is_icmp(protocol) {
        true => vec![icmp(ours, theirs)?],
        false => {
            let theirs = ports(theirs)?;
            let both = ports(ours)?.into_iter();
            both.flat_map(|o| theirs.iter().map(move |t| (o, *t)).collect::<Vec<_>>())
                .collect()
        }
    };
    for local in networks(ours) {
        for remote in networks(theirs) {
            for &(local_port, remote_port) in &ports {
                if all.len() >= MAX_FLOWS {
                    return Err(PlaneError::Limit("policies of a Child SA"));
                }
                all.push(Flow {
                    local,
                    remote,
                    protocol,
                    local_port,
                    remote_port,
                    mark: Mark::default(),
                });
            }
        }
    }
    Ok(())
}

fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMP_V6)
}

/// The prefixes of a range of addresses; no more than are too many.
fn networks(selector: &Selector) -> Vec<IpNet> {
    match (selector.start, selector.end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => Ipv4Subnets::new(start, end, 0)
            .map(IpNet::from)
            .take(MAX_FLOWS + 1)
            .collect(),
        (IpAddr::V6(start), IpAddr::V6(end)) => Ipv6Subnets::new(start, end, 0)
            .map(IpNet::from)
            .take(MAX_FLOWS + 1)
            .collect(),
        _ => Vec::new(),
    }
}

/// A range of ports, as ports with masks.
fn ports(selector: &Selector) -> Result<Vec<Ports>, PlaneError> {
    let (start, end) = (selector.start_port, selector.end_port);
    if (start, end) == (0, u16::MAX) {
        return Ok(vec![Ports::ANY]);
    }
    if start > end {
        return Err(OPAQUE);
    }
    let (mut next, end) = (u32::from(start), u32::from(end));
    let mut all = Vec::new();
    while next <= end {
        let aligned = if next == 0 { 16 } else { next.trailing_zeros() };
        let fits = (end - next + 1).ilog2();
        let size = 1_u32 << aligned.min(fits);
        all.push(Ports {
            value: u16::try_from(next).unwrap_or(u16::MAX),
            mask: u16::try_from(u32::from(u16::MAX) + 1 - size).unwrap_or(0),
        });
        next += size;
    }
    Ok(all)
}

/// What is said of ports cannot be seen by the kernel.
const OPAQUE: PlaneError =
    PlaneError::Unsupported("the kernel has no policies for packets without visible ports");

/// Type and code (RFC 4301 §4.4.1.1): all, those of one type, or one. Which side's selector says it does not matter.
fn icmp(ours: &Selector, theirs: &Selector) -> Result<(Ports, Ports), PlaneError> {
    let any = |s: &Selector| (s.start_port, s.end_port) == (0, u16::MAX);
    let says = if any(ours) { theirs } else { ours };
    if any(says) {
        return Ok((Ports::ANY, Ports::ANY));
    }
    let [kind, first] = says.start_port.to_be_bytes();
    let [last_kind, last] = says.end_port.to_be_bytes();
    match (kind == last_kind, first, last) {
        (true, 0, u8::MAX) => Ok((Ports::one(kind.into()), Ports::ANY)),
        (true, a, b) if a == b => Ok((Ports::one(kind.into()), Ports::one(a.into()))),
        _ => Err(PlaneError::Unsupported(
            "the kernel has no policies for ranges of ICMP types",
        )),
    }
}

#[cfg(test)]
#[path = "tests/flows.rs"]
mod tests;
