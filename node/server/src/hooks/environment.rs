//! What a program is told by its environment: the names that scripts for other implementations know, and some of our own.

use crate::{shared::Shared, worker::reason_name};
use evergate_ike::{
    record::{Child, CloseReason, Established, Mode, Record},
    wire::TrafficSelector,
};
use std::net::{IpAddr, SocketAddr};

/// What happened to a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// It was set up.
    Up,
    /// It is gone.
    Down(CloseReason),
    /// This process serves it now, and has not set it up.
    Takeover,
    /// This process does not serve it any more; it is not gone.
    Release,
}

/// An end of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    first: IpAddr,
    net: String,
    protocol: u8,
    port: u16,
}

/// Both ends of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    mine: Client,
    peer: Client,
}

/// What is the same for all pairs of ends of a Child SA.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) connection: String,
    pub(super) child: String,
    /// Ours and the peer's.
    pub(super) spis: (u32, u32),
    ike: u64,
    mode: Mode,
    member: String,
    gateway: u32,
    epoch: u32,
    local: SocketAddr,
    remote: SocketAddr,
    local_id: String,
    remote_id: String,
    our_vips: Vec<IpAddr>,
    peer_vips: Vec<IpAddr>,
    encapsulated: bool,
}

impl Ends {
    pub(super) fn new(mine: &TrafficSelector, peer: &TrafficSelector) -> Self {
        Self {
            mine: Client::new(mine),
            peer: Client::new(peer),
        }
    }

    pub(super) fn of_one_family(&self) -> bool {
        self.mine.first.is_ipv4() == self.peer.first.is_ipv4()
    }
}

impl Client {
    /// The smallest network around it, as a script can use it for a route or a rule.
    fn new(ts: &TrafficSelector) -> Self {
        Self {
            first: ts.start,
            net: around(ts.start, ts.end),
            protocol: ts.protocol,
            port: match (ts.start_port, ts.end_port) {
                (port, end) if port == end => port,
                _ => 0,
            },
        }
    }
}

/// The smallest network that has both addresses.
fn around(start: IpAddr, end: IpAddr) -> String {
    let common = |a: u128, b: u128, unused: u32| (a ^ b).leading_zeros().saturating_sub(unused);
    let (bits, len) = match (start, end) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (common(a.to_bits().into(), b.to_bits().into(), 96), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (common(a.to_bits(), b.to_bits(), 0), 128),
        _ => (0, 0),
    };
    let prefix = u8::try_from(bits.min(len)).unwrap_or(0);
    ipnet::IpNet::new_assert(start, prefix).trunc().to_string()
}

impl Verb {
    /// `PLUTO_VERB`: with the kind of our end.
    fn name(self, ends: &Ends, local: IpAddr) -> String {
        let what = match self {
            Self::Up => "up",
            Self::Down(_) => "down",
            Self::Takeover => "takeover",
            Self::Release => "release",
        };
        let host = ipnet::IpNet::from(local).to_string() == ends.mine.net;
        let kind = if host { "host" } else { "client" };
        let family = if ends.mine.first.is_ipv4() { "" } else { "-v6" };
        format!("{what}-{kind}{family}")
    }
}

impl Facts {
    pub(super) fn new(shared: &Shared, record: &Record, ike: &Established, child: &Child) -> Self {
        let path = record.children_path();
        Self {
            connection: record.connection.clone(),
            child: child.name.clone(),
            spis: (child.spi_in, child.spi_out),
            ike: record.id.0,
            mode: child.mode,
            member: shared.member.clone(),
            gateway: shared.gateway.0,
            epoch: shared.epoch,
            local: path.local,
            remote: path.remote,
            local_id: ike.local_id.to_string(),
            remote_id: ike.remote_id.to_string(),
            our_vips: ike.our_vips.clone(),
            peer_vips: ike.peer_vips.clone(),
            encapsulated: path.encapsulated(),
        }
    }

    /// All variables. Values may have been chosen by the peer (`PLUTO_PEER_ID` most of all).
    pub(super) fn environment(&self, verb: Verb, ends: &Ends) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: String| all.push((name.to_owned(), value));
        set("PLUTO_VERSION", "1.1".into());
        set("PLUTO_VERB", verb.name(ends, self.local.ip()));
        set("PLUTO_CONNECTION", self.child.clone());
        set("PLUTO_UNIQUEID", format!("{:016x}", self.ike));
        set("PLUTO_PROTO", "esp".into());
        set("PLUTO_ME", self.local.ip().to_string());
        set("PLUTO_MY_ID", self.local_id.clone());
        set("PLUTO_PEER", self.remote.ip().to_string());
        set("PLUTO_PEER_ID", self.remote_id.clone());
        for (who, client, vips) in [
            ("MY", &ends.mine, &self.our_vips),
            ("PEER", &ends.peer, &self.peer_vips),
        ] {
            set(&format!("PLUTO_{who}_CLIENT"), client.net.clone());
            set(
                &format!("PLUTO_{who}_PROTOCOL"),
                client.protocol.to_string(),
            );
            set(&format!("PLUTO_{who}_PORT"), client.port.to_string());
            let first = vips.iter().find(|a| a.is_ipv4() == client.first.is_ipv4());
            if let Some(first) = first {
                set(&format!("PLUTO_{who}_SOURCEIP"), first.to_string());
            }
            for (family, is_v4) in [(4, true), (6, false)] {
                let own = vips.iter().filter(|a| a.is_ipv4() == is_v4);
                for (number, address) in (1..).zip(own) {
                    let name = format!("PLUTO_{who}_SOURCEIP{family}_{number}");
                    set(&name, address.to_string());
                }
            }
        }
        if self.encapsulated {
            set("PLUTO_UDP_ENC", self.remote.port().to_string());
        }
        set("EVERGATE_MEMBER", self.member.clone());
        set("EVERGATE_GATEWAY", self.gateway.to_string());
        set("EVERGATE_EPOCH", self.epoch.to_string());
        set("EVERGATE_CONNECTION", self.connection.clone());
        set("EVERGATE_CHILD", self.child.clone());
        let mode = match self.mode {
            Mode::Tunnel => "tunnel",
            Mode::Transport(_) => "transport",
        };
        set("EVERGATE_MODE", mode.into());
        set("EVERGATE_SPI_IN", format!("0x{:08x}", self.spis.0));
        set("EVERGATE_SPI_OUT", format!("0x{:08x}", self.spis.1));
        if let Verb::Down(reason) = verb {
            set("EVERGATE_REASON", reason_name(reason).into());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(start: &str, end: &str) -> TrafficSelector {
        TrafficSelector {
            protocol: 17,
            start_port: 53,
            end_port: 53,
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
        }
    }

    fn facts() -> Facts {
        Facts {
            connection: "office".into(),
            child: "net".into(),
            spis: (1, 2),
            ike: 7,
            mode: Mode::Tunnel,
            member: "m1".into(),
            gateway: 3,
            epoch: 4,
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "192.0.2.2:4711".parse().unwrap(),
            local_id: "gw.test".into(),
            remote_id: "peer.test".into(),
            our_vips: vec![],
            peer_vips: vec!["10.9.0.1".parse().unwrap(), "fd09::1".parse().unwrap()],
            encapsulated: true,
        }
    }

    fn value(all: &[(String, String)], name: &str) -> Option<String> {
        let found = all.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone())
    }

    #[test]
    fn networks_are_around_their_ranges() {
        let net = |a: &str, b: &str| around(a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(net("10.1.0.0", "10.1.255.255"), "10.1.0.0/16");
        assert_eq!(net("10.1.0.7", "10.1.0.7"), "10.1.0.7/32");
        assert_eq!(net("10.1.0.7", "10.1.0.8"), "10.1.0.0/28");
        assert_eq!(net("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
        assert_eq!(net("fd01::", "fd01::ffff"), "fd01::/112");
        assert_eq!(net("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
    }

    #[test]
    fn scripts_for_others_find_their_names() {
        let ends = Ends::new(&ts("10.1.0.0", "10.1.255.255"), &ts("10.9.0.1", "10.9.0.1"));
        let all = facts().environment(Verb::Up, &ends);
        for (name, expected) in [
            ("PLUTO_VERB", "up-client"),
            ("PLUTO_CONNECTION", "net"),
            ("PLUTO_ME", "192.0.2.1"),
            ("PLUTO_PEER", "192.0.2.2"),
            ("PLUTO_PEER_ID", "peer.test"),
            ("PLUTO_MY_CLIENT", "10.1.0.0/16"),
            ("PLUTO_PEER_CLIENT", "10.9.0.1/32"),
            ("PLUTO_PEER_PROTOCOL", "17"),
            ("PLUTO_PEER_PORT", "53"),
            ("PLUTO_PEER_SOURCEIP", "10.9.0.1"),
            ("PLUTO_PEER_SOURCEIP6_1", "fd09::1"),
            ("PLUTO_UDP_ENC", "4711"),
            ("EVERGATE_SPI_IN", "0x00000001"),
            ("EVERGATE_EPOCH", "4"),
        ] {
            assert_eq!(value(&all, name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(value(&all, "PLUTO_MY_SOURCEIP"), None);
        assert_eq!(value(&all, "EVERGATE_REASON"), None);
    }

    #[test]
    fn verbs_say_what_happened_to_what() {
        let host = Ends::new(&ts("192.0.2.1", "192.0.2.1"), &ts("10.9.0.1", "10.9.0.1"));
        let v6 = Ends::new(&ts("fd01::", "fd01::ff"), &ts("fd02::1", "fd02::1"));
        let verb = |verb: Verb, ends: &Ends| value(&facts().environment(verb, ends), "PLUTO_VERB");
        assert_eq!(verb(Verb::Takeover, &host).unwrap(), "takeover-host");
        assert_eq!(verb(Verb::Release, &v6).unwrap(), "release-client-v6");
        let down = Verb::Down(CloseReason::PeerSilent);
        assert_eq!(verb(down, &v6).unwrap(), "down-client-v6");
        let reason = value(&facts().environment(down, &host), "EVERGATE_REASON");
        assert_eq!(reason.unwrap(), "peer-silent");
    }
}
