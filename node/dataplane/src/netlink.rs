//! Addresses, routes and rules, by rtnetlink.

use crate::{
    PlaneConfig, PlaneError,
    routes::{Route, Target},
    rtnl::Rtnl,
};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoXfrm, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use std::{io, net::IpAddr};

/// What a device has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Packets that came out of it.
    pub(crate) packets_in: u64,
    /// Their bytes.
    pub(crate) bytes_in: u64,
    /// Packets that went into it.
    pub(crate) packets_out: u64,
    /// Their bytes.
    pub(crate) bytes_out: u64,
}

/// A socket to the kernel, and what the plane's own objects look like.
pub(crate) struct Netlink {
    rtnl: Rtnl,
    table: u32,
    rule_priority: u32,
    mark: u32,
    mark_mask: u32,
    protocol: RouteProtocol,
}

impl Netlink {
    /// Opens it in the network namespace of the calling thread.
    pub(crate) fn open(config: &PlaneConfig) -> Result<Self, PlaneError> {
        let rtnl = Rtnl::open().map_err(|source| refused("open netlink socket", source))?;
        Ok(Self {
            rtnl,
            table: config.route_table,
            rule_priority: config.rule_priority,
            mark: config.mark,
            mark_mask: config.mark_mask,
            protocol: config.route_protocol.into(),
        })
    }

    /// Makes an XFRM interface, or takes one over that a former process left: what is routed into it is for the kernel's policies with the same
    /// `if_id`, and for no others.
    ///
    /// No packet comes to it that is more than one segment: the device behind it counts each as one packet, so packets and sequence numbers are
    /// the same number.
    pub(crate) fn make_xfrm_interface(&mut self, name: &str, if_id: u32) -> Result<(), PlaneError> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Xfrm),
                LinkInfo::Data(InfoData::Xfrm(vec![InfoXfrm::IfId(if_id)])),
            ]),
        ];
        let made = self.rtnl.ask(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        let what = format!("make XFRM interface {name}");
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.ensure_xfrm_interface(name, if_id)?;
            }
            other => other.map_err(|e| refused(&what, e))?,
        }
        let mut limit = LinkMessage::default();
        limit.header.index = nix::net::if_::if_nametoindex(name)
            .map_err(|e| refused(&format!("find device {name}"), e.into()))?;
        limit.attributes = vec![LinkAttribute::GsoMaxSegs(1)];
        self.rtnl
            .ask(RouteNetlinkMessage::SetLink(limit), 0)
            .map_err(|e| refused(&format!("limit {name} to single segments"), e))
    }

    /// That a device which is there is the one that we would make.
    fn ensure_xfrm_interface(&mut self, name: &str, if_id: u32) -> Result<(), PlaneError> {
        let mut question = LinkMessage::default();
        question.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let there = self.rtnl.get(RouteNetlinkMessage::GetLink(question));
        let there = there.map_err(|e| refused(&format!("look at device {name}"), e))?;
        let attributes = match there {
            Some(RouteNetlinkMessage::NewLink(link)) => link.attributes,
            _ => Vec::new(),
        };
        let ours = |info: &LinkInfo| matches!(info, LinkInfo::Data(InfoData::Xfrm(data)) if data.contains(&InfoXfrm::IfId(if_id)));
        let is_ours = attributes
            .iter()
            .any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(ours)));
        if is_ours {
            return Ok(());
        }
        let what =
            format!("make XFRM interface {name} with if_id {if_id}: another device has the name");
        Err(refused(&what, io::ErrorKind::AlreadyExists.into()))
    }

    /// What a device has carried; nothing if it is gone.
    pub(crate) fn carried(&mut self, index: u32) -> Carried {
        let mut question = LinkMessage::default();
        question.header.index = index;
        let answer = self.rtnl.get(RouteNetlinkMessage::GetLink(question));
        let Ok(Some(RouteNetlinkMessage::NewLink(link))) = answer else {
            return Carried::default();
        };
        let counts = link.attributes.iter().find_map(|a| match a {
            LinkAttribute::Stats64(s) => Some(Carried {
                packets_in: s.rx_packets,
                bytes_in: s.rx_bytes,
                packets_out: s.tx_packets,
                bytes_out: s.tx_bytes,
            }),
            _ => None,
        });
        counts.unwrap_or_default()
    }

    /// Removes a device; one that is not there is no error.
    pub(crate) fn remove_device(&mut self, index: u32) -> Result<(), PlaneError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        match self.rtnl.ask(RouteNetlinkMessage::DelLink(link), 0) {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
                Err(refused("remove the XFRM interface", e))
            }
            _ => Ok(()),
        }
    }

    /// The index of a device, after it was given its MTU and brought up. It gets no link-local address: the kernel would speak from it.
    pub(crate) fn bring_up(&mut self, name: &str, mtu: u32) -> Result<u32, PlaneError> {
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|e| refused(&format!("find device {name}"), e.into()))?;
        let mut quiet = LinkMessage::default();
        quiet.header.index = index;
        quiet
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]));
        if let Err(e) = self.rtnl.ask(RouteNetlinkMessage::SetLink(quiet), 0) {
            tracing::debug!(device = name, error = %e, "device keeps its link-local address");
        }
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.push(LinkAttribute::Mtu(mtu));
        self.rtnl
            .ask(RouteNetlinkMessage::SetLink(link), 0)
            .map_err(|e| refused(&format!("bring up {name} with MTU {mtu}"), e))?;
        Ok(index)
    }

    /// Makes the rules that lead to the protection table, where they are not there yet, in place of those for another mark.
    pub(crate) fn add_rules(&mut self) -> Result<(), PlaneError> {
        self.add_these_rules()?;
        self.remove_rules_of_other_marks()
    }

    /// A former process may have had another mark, and outer packets of ours are not to go by its rule.
    fn remove_rules_of_other_marks(&mut self) -> Result<(), PlaneError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RuleMessage::default();
            question.header.family = family;
            let found = match self.rtnl.dump(RouteNetlinkMessage::GetRule(question)) {
                Ok(found) => found,
                Err(e) if family == AddressFamily::Inet6 && is_absent_family(&e) => continue,
                Err(e) => return Err(refused("list rules", e)),
            };
            for answer in found {
                if let RouteNetlinkMessage::NewRule(rule) = answer
                    && self.is_of_another_mark(&rule)
                {
                    let removed = self.rtnl.ask(RouteNetlinkMessage::DelRule(rule), 0);
                    removed.map_err(|e| refused("remove the rule of a former mark", e))?;
                }
            }
        }
        Ok(())
    }

    fn is_of_another_mark(&self, rule: &RuleMessage) -> bool {
        let has = |attribute: &RuleAttribute| rule.attributes.contains(attribute);
        let ours = has(&RuleAttribute::Protocol(self.protocol))
            && has(&RuleAttribute::Table(self.table))
            && has(&RuleAttribute::Priority(self.rule_priority));
        let same =
            has(&RuleAttribute::FwMark(self.mark)) && has(&RuleAttribute::FwMask(self.mark_mask));
        ours && !same
    }

    fn add_these_rules(&mut self) -> Result<(), PlaneError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let rule = RouteNetlinkMessage::NewRule(self.rule(family));
            match self.rtnl.ask(rule, NLM_F_CREATE | NLM_F_EXCL) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) if family == AddressFamily::Inet6 && is_absent_family(&e) => {}
                Err(e) => return Err(refused("add rule for the protection table", e)),
            }
        }
        Ok(())
    }

    /// Removes them; one that is not there is no error.
    pub(crate) fn remove_rules(&mut self) -> Result<(), PlaneError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let rule = RouteNetlinkMessage::DelRule(self.rule(family));
            match self.rtnl.ask(rule, 0) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if family == AddressFamily::Inet6 && is_absent_family(&e) => {}
                Err(e) => return Err(refused("remove rule for the protection table", e)),
            }
        }
        Ok(())
    }

    fn rule(&self, family: AddressFamily) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = RuleAction::ToTable;
        rule.header.flags = RuleFlags::Invert;
        rule.header.table = u8::try_from(self.table).unwrap_or(0);
        rule.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.rule_priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mark_mask),
            RuleAttribute::Protocol(self.protocol),
        ];
        rule
    }

    /// The plane's own routes, as a former process may have left them.
    pub(crate) fn own_routes(&mut self) -> Result<Vec<Route>, PlaneError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let answers = self
                .rtnl
                .dump(RouteNetlinkMessage::GetRoute(request))
                .map_err(|e| refused("list routes", e))?;
            for answer in answers {
                if let RouteNetlinkMessage::NewRoute(message) = answer {
                    found.extend(self.own_route(&message));
                }
            }
        }
        Ok(found)
    }

    fn own_route(&self, message: &RouteMessage) -> Option<Route> {
        let header = &message.header;
        let mut table = u32::from(header.table);
        let mut address = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0; 4]),
            _ => IpAddr::from([0; 16]),
        };
        let (mut metric, mut source) = (0, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::Priority(p) => metric = *p,
                RouteAttribute::Destination(a) => address = ip(a)?,
                RouteAttribute::PrefSource(a) => source = ip(a),
                _ => {}
            }
        }
        if table != self.table || header.protocol != self.protocol {
            return None;
        }
        let target = match header.kind {
            RouteType::Unicast => Target::Tun(source),
            RouteType::BlackHole => Target::Blackhole,
            RouteType::Throw => Target::Bypass,
            _ => return None,
        };
        let prefix = IpNet::new(address, header.destination_prefix_length).ok()?;
        Some(Route {
            prefix,
            metric,
            target,
        })
    }

    /// Makes a route, in place of another with the same prefix and metric.
    pub(crate) fn add_route(&mut self, route: &Route, device: u32) -> io::Result<()> {
        let message = self.route_message(route, device);
        self.rtnl.ask(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Removes a route; one that is not there is no error.
    pub(crate) fn remove_route(&mut self, route: &Route, device: u32) -> io::Result<()> {
        let message = self.route_message(route, device);
        match self.rtnl.ask(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    fn route_message(&self, route: &Route, device: u32) -> RouteMessage {
        let ipv4 = route.prefix.addr().is_ipv4();
        let mut message = RouteMessage::default();
        message.header.address_family = family(ipv4);
        message.header.destination_prefix_length = route.prefix.prefix_len();
        message.header.protocol = self.protocol;
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Destination(RouteAddress::from(route.prefix.network())),
            RouteAttribute::Priority(route.metric),
        ];
        message.header.scope = RouteScope::Universe;
        message.header.kind = match route.target {
            Target::Tun(source) => {
                if ipv4 {
                    message.header.scope = RouteScope::Link;
                }
                message.attributes.push(RouteAttribute::Oif(device));
                if let Some(source) = source {
                    let source = RouteAddress::from(source);
                    message.attributes.push(RouteAttribute::PrefSource(source));
                }
                RouteType::Unicast
            }
            Target::Blackhole => RouteType::BlackHole,
            Target::Bypass => RouteType::Throw,
        };
        message
    }

    /// Gives the device an address of its own; one that it has is no error.
    pub(crate) fn add_address(&mut self, address: IpAddr, device: u32) -> Result<(), PlaneError> {
        let message = address_message(address, device);
        match self.rtnl.ask(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        ) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(refused(&format!("add address {address}"), e))
            }
            _ => Ok(()),
        }
    }

    /// Takes an address from the device; one that it does not have is no error.
    pub(crate) fn remove_address(
        &mut self,
        address: IpAddr,
        device: u32,
    ) -> Result<(), PlaneError> {
        let message = address_message(address, device);
        match self.rtnl.ask(RouteNetlinkMessage::DelAddress(message), 0) {
            Err(e) if e.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
                Err(refused(&format!("remove address {address}"), e))
            }
            _ => Ok(()),
        }
    }
}

fn address_message(address: IpAddr, device: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv4());
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.header.index = device;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if address.is_ipv6() {
        // Nobody else can have it on this device, and it is needed now.
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    message
}

fn family(ipv4: bool) -> AddressFamily {
    if ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn is_absent_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
    )
}

pub(crate) fn refused(what: &str, source: io::Error) -> PlaneError {
    PlaneError::Netlink {
        what: what.to_owned(),
        source,
    }
}
