//! Traffic selectors as text, in swanctl's forms.

use super::{ANY, OPAQUE, SelectorError, SelectorTemplate};
use crate::wire::TrafficSelector;
use ipnet::IpNet;
use std::{fmt, net::IpAddr, str::FromStr};

/// Protocols whose "port" is a message type and a code (RFC 4301 §4.4.1.1).
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Names of protocols; the first of a number is the one that we write.
const PROTOCOLS: [(&str, u8); 17] = [
    ("icmp", ICMP),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("ipv6", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", ICMPV6),
    ("icmp6", ICMPV6),
    ("icmpv6", ICMPV6),
    ("ospf", 89),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// Names of services. The machine's own list is not read: every member must understand the same.
const SERVICES: [(&str, u16); 23] = [
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("http", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("ntp", 123),
    ("imap", 143),
    ("snmp", 161),
    ("bgp", 179),
    ("ldap", 389),
    ("https", 443),
    ("isakmp", 500),
    ("syslog", 514),
    ("l2tp", 1701),
    ("radius", 1812),
    ("ipsec-nat-t", 4500),
    ("sip", 5060),
];

impl FromStr for SelectorTemplate {
    type Err = SelectorError;
    /// swanctl's forms: `10.1.0.0/16`, `10.1.0.1`, `10.1.0.1-10.1.0.9`, `dynamic`, each with an optional `[proto/port]`, as in
    /// `10.1.0.1[tcp/http]`, `[udp/5000-6000]`, `[/53]`, `[icmp]`.
    ///
    /// Ports are numbers, names, ranges, `any` or `opaque`; for ICMP they are types, as in `[icmp/8]`,
    /// or a type with its code, as in `[icmp/3(4)]`.
    fn from_str(text: &str) -> Result<Self, SelectorError> {
        parse(text).ok_or_else(|| SelectorError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<SelectorTemplate> {
    let (addresses, (protocol, (start_port, end_port))) = match text.strip_suffix(']') {
        Some(text) => {
            let (addresses, restriction) = text.split_once('[')?;
            (addresses, parse_restriction(restriction)?)
        }
        None if text.is_empty() => return None,
        None => (text, (0, ANY)),
    };
    if matches!(addresses, "" | "dynamic") {
        return Some(SelectorTemplate::Dynamic {
            protocol,
            start_port,
            end_port,
        });
    }
    let (start, end) = parse_addresses(addresses)?;
    Some(SelectorTemplate::Fixed(TrafficSelector {
        protocol,
        start_port,
        end_port,
        start,
        end,
    }))
}

/// A network (bits of the host are ignored), an address, or a range.
fn parse_addresses(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some((net.network(), net.broadcast()));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip, ip));
    }
    let (start, end) = text.split_once('-')?;
    let (start, end) = (start.parse::<IpAddr>().ok()?, end.parse::<IpAddr>().ok()?);
    (start.is_ipv4() == end.is_ipv4() && start <= end).then_some((start, end))
}

/// `proto`, `proto/port` or `/port`.
fn parse_restriction(text: &str) -> Option<(u8, (u16, u16))> {
    if text.is_empty() {
        return None;
    }
    let (protocol, ports) = text.split_once('/').unwrap_or((text, ""));
    let protocol = match protocol {
        "" | "any" | "%any" => 0,
        name => lookup(&PROTOCOLS, name).or_else(|| name.parse().ok())?,
    };
    let ports = match ports {
        "" | "any" | "%any" => ANY,
        "opaque" | "%opaque" => OPAQUE,
        ports => parse_ports(protocol, ports)?,
    };
    Some((protocol, ports))
}

fn parse_ports(protocol: u8, text: &str) -> Option<(u16, u16)> {
    // A name may have a dash in it, so it is looked for first.
    if let Some(one) = parse_port(protocol, text) {
        return Some(one);
    }
    let (start, end) = text.split_once('-')?;
    let (start, end) = (parse_port(protocol, start)?.0, parse_port(protocol, end)?.1);
    (start <= end).then_some((start, end))
}

/// The range that one port stands for: itself, or for an ICMP type all its codes.
fn parse_port(protocol: u8, text: &str) -> Option<(u16, u16)> {
    if !has_types(protocol) {
        let port = lookup(&SERVICES, text).or_else(|| text.parse().ok())?;
        return Some((port, port));
    }
    if let Some((kind, code)) = text.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let port = u16::from_be_bytes([kind.parse().ok()?, code.parse().ok()?]);
        return Some((port, port));
    }
    match text.parse::<u16>().ok()? {
        kind @ 0..=255 => Some((kind << 8, kind << 8 | 0xff)),
        both => Some((both, both)),
    }
}

fn has_types(protocol: u8) -> bool {
    matches!(protocol, ICMP | ICMPV6)
}

fn lookup<T: Copy>(names: &[(&str, T)], name: &str) -> Option<T> {
    names
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, number)| *number)
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.networks()[..] {
            [net] => write!(f, "{net}")?,
            _ => write!(f, "{}-{}", self.start, self.end)?,
        }
        Restriction(self.protocol, self.ports()).fmt(f)
    }
}

impl fmt::Display for SelectorTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Fixed(selector) => selector.fmt(f),
            Self::Dynamic {
                protocol,
                start_port,
                end_port,
            } => {
                f.write_str("dynamic")?;
                Restriction(protocol, (start_port, end_port)).fmt(f)
            }
        }
    }
}

/// A protocol and ports in brackets; nothing if there is no restriction.
struct Restriction(u8, (u16, u16));

impl fmt::Display for Restriction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(protocol, ports) = *self;
        if protocol == 0 && ports == ANY {
            return Ok(());
        }
        f.write_str("[")?;
        match PROTOCOLS.iter().find(|(_, number)| *number == protocol) {
            _ if protocol == 0 => {}
            Some((name, _)) => f.write_str(name)?,
            None => write!(f, "{protocol}")?,
        }
        match ports {
            ANY => {}
            OPAQUE => f.write_str("/opaque")?,
            (start, end) if has_types(protocol) => write_types(f, start, end)?,
            (start, end) if start == end => write!(f, "/{start}")?,
            (start, end) => write!(f, "/{start}-{end}")?,
        }
        f.write_str("]")
    }
}

fn write_types(f: &mut fmt::Formatter<'_>, start: u16, end: u16) -> fmt::Result {
    let ([kind, first], [last_kind, last]) = (start.to_be_bytes(), end.to_be_bytes());
    if (kind, first, last) == (last_kind, 0, 0xff) {
        write!(f, "/{kind}")
    } else if start == end {
        write!(f, "/{kind}({first})")
    } else {
        write!(f, "/{kind}({first})-{last_kind}({last})")
    }
}
