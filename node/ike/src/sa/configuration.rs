//! The configuration payload (RFC 7296 §2.19, §3.15): virtual addresses and DNS servers.

use crate::{
    config::{Connection, Policy},
    wire::{CfgAttrType, CfgAttribute, CfgType, Configuration},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The configuration for a peer: its addresses, and the DNS servers of the pools that they are from.
pub(super) fn reply(
    policy: &Policy,
    connection: &Connection,
    addresses: &[IpAddr],
) -> Configuration {
    let mut attributes = Vec::new();
    for address in addresses {
        attributes.push(match address {
            IpAddr::V4(a) => attribute(CfgAttrType::INTERNAL_IP4_ADDRESS, &a.octets()),
            IpAddr::V6(a) => attribute(
                CfgAttrType::INTERNAL_IP6_ADDRESS,
                &[&a.octets()[..], &[128]].concat(),
            ),
        });
    }
    let pools = policy
        .pools
        .iter()
        .filter(|p| connection.pools.contains(&p.name));
    for pool in pools.filter(|p| addresses.iter().any(|a| p.first.is_ipv4() == a.is_ipv4())) {
        attributes.extend(pool.dns.iter().map(|dns| match dns {
            IpAddr::V4(a) => attribute(CfgAttrType::INTERNAL_IP4_DNS, &a.octets()),
            IpAddr::V6(a) => attribute(CfgAttrType::INTERNAL_IP6_DNS, &a.octets()),
        }));
    }
    Configuration {
        kind: CfgType::REPLY,
        attributes,
    }
}

fn attribute(kind: CfgAttrType, value: &[u8]) -> CfgAttribute {
    CfgAttribute {
        kind,
        value: value.to_vec(),
    }
}

/// Whether any virtual address is asked for.
pub(super) fn wants_address(request: &Configuration) -> bool {
    let kinds = [
        CfgAttrType::INTERNAL_IP4_ADDRESS,
        CfgAttrType::INTERNAL_IP6_ADDRESS,
    ];
    request.attributes.iter().any(|a| kinds.contains(&a.kind))
}

/// The address that a request names, the unspecified one if it names none; `None` if it asks for none of this kind.
pub(super) fn wished(request: &Configuration, kind: CfgAttrType) -> Option<IpAddr> {
    request.attributes.iter().find(|a| a.kind == kind).map(|a| {
        address(a).unwrap_or(match kind {
            CfgAttrType::INTERNAL_IP4_ADDRESS => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        })
    })
}

/// The address in an attribute.
fn address(a: &CfgAttribute) -> Option<IpAddr> {
    match a.kind {
        CfgAttrType::INTERNAL_IP4_ADDRESS | CfgAttrType::INTERNAL_IP4_DNS => {
            <[u8; 4]>::try_from(&a.value[..]).ok().map(IpAddr::from)
        }
        CfgAttrType::INTERNAL_IP6_ADDRESS | CfgAttrType::INTERNAL_IP6_DNS => a
            .value
            .get(..16)
            .and_then(|v| <[u8; 16]>::try_from(v).ok())
            .map(IpAddr::from),
        _ => None,
    }
}

/// Addresses and DNS servers that a reply gives us.
pub(super) fn assigned(reply: &Configuration) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let of = |kinds: [CfgAttrType; 2]| {
        reply
            .attributes
            .iter()
            .filter(|a| kinds.contains(&a.kind))
            .filter_map(address)
            .collect()
    };
    (
        of([
            CfgAttrType::INTERNAL_IP4_ADDRESS,
            CfgAttrType::INTERNAL_IP6_ADDRESS,
        ]),
        of([CfgAttrType::INTERNAL_IP4_DNS, CfgAttrType::INTERNAL_IP6_DNS]),
    )
}

/// Asks for these virtual addresses.
pub(super) fn request(vips: &[IpAddr]) -> Configuration {
    let mut attributes = Vec::new();
    for vip in vips {
        let (kind, dns) = match vip {
            IpAddr::V4(_) => (
                CfgAttrType::INTERNAL_IP4_ADDRESS,
                CfgAttrType::INTERNAL_IP4_DNS,
            ),
            IpAddr::V6(_) => (
                CfgAttrType::INTERNAL_IP6_ADDRESS,
                CfgAttrType::INTERNAL_IP6_DNS,
            ),
        };
        let value = match vip {
            any if any.is_unspecified() => Vec::new(),
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => [&a.octets()[..], &[128]].concat(),
        };
        attributes.push(CfgAttribute { kind, value });
        attributes.push(CfgAttribute {
            kind: dns,
            value: Vec::new(),
        });
    }
    Configuration {
        kind: CfgType::REQUEST,
        attributes,
    }
}
