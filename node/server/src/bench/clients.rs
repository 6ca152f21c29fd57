//! The clients that the load pretends to be: one configuration, many identities.

use evergate_ike::{
    config::{
        ChildConfig, Childless, Connection, FRAGMENT_SIZE, Fragmentation, Policy, Retransmit,
        SharedSecret, StartAction, Unique, Volume,
    },
    env::Entropy,
    identity::{IdPattern, Identity, IdentityError},
    proposal::{EspProposal, IkeProposal},
    record::SaId,
    sa::SpiSource,
    secret::Secret,
    selector::SelectorTemplate,
    wire::TrafficSelector,
};
use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

/// Names of the only connection and its only child.
pub(super) const CONNECTION: &str = "bench";
pub(super) const CHILD: &str = "bench";

/// Waits of 1, 1.8, 3.2, 5.8, 10 and 19 seconds: short enough that one lost datagram shows, and a responder that is only slow is not
/// buried in repetitions.
const RETRANSMIT: Retransmit = Retransmit {
    timeout: Duration::from_secs(1),
    growth_percent: 180,
    tries: 5,
};

/// Identities by number: a text with `%d` in it.
#[derive(Clone, Debug)]
pub(super) struct IdTemplate {
    before: String,
    after: String,
}

impl FromStr for IdTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (before, after) = text
            .split_once("%d")
            .ok_or("it has no %d, where the number of the client belongs")?;
        let template = Self {
            before: before.to_owned(),
            after: after.to_owned(),
        };
        template.identity(0).map_err(|e| e.to_string())?;
        Ok(template)
    }
}

impl IdTemplate {
    fn identity(&self, number: u32) -> Result<Identity, IdentityError> {
        format!("{}{number}{}", self.before, self.after).parse()
    }
}

/// What all clients have in common.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) local: IpAddr,
    pub(super) remote: SocketAddr,
    pub(super) psk: Secret,
    pub(super) ids: IdTemplate,
    pub(super) remote_id: IdPattern,
    pub(super) proposals: Vec<IkeProposal>,
    pub(super) esp_proposals: Vec<EspProposal>,
    pub(super) remote_ts: Vec<SelectorTemplate>,
    /// Each client's traffic is that of its own address in this network, if there is one, and of its outer address otherwise.
    pub(super) local_net: Option<IpNet>,
    /// Ask for a virtual address.
    pub(super) vip: bool,
}

/// The configuration of one client at a time: tens of thousands would take more memory than their SAs do.
#[derive(Debug)]
pub(super) struct Clients {
    common: Common,
    policy: Policy,
}

impl Clients {
    pub(super) fn new(common: Common) -> Self {
        let child = ChildConfig {
            name: CHILD.to_owned(),
            local_ts: vec![own_address()],
            remote_ts: common.remote_ts.clone(),
            esp_proposals: common.esp_proposals.clone(),
            rekey_time: Duration::ZERO,
            life_time: Duration::ZERO,
            rand_time: Duration::ZERO,
            bytes: Volume::default(),
            packets: Volume::default(),
            start_action: StartAction::None,
            close_action: StartAction::None,
            dpd_action: StartAction::None,
            replay_window: 1024,
            copy_dscp: true,
        };
        let any: IpAddr = match common.local {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let connection = Connection {
            name: CONNECTION.to_owned(),
            local_addrs: vec![common.local.into()],
            remote_addrs: vec![common.remote.ip().into()],
            remote_names: vec![],
            remote_port: common.remote.port(),
            proposals: common.proposals.clone(),
            local_id: None,
            remote_id: common.remote_id.clone(),
            auth: evergate_ike::config::Authentication::default(),
            encap: false,
            vips: if common.vip { vec![any] } else { vec![] },
            pools: vec![],
            rekey_time: Duration::ZERO,
            over_time: Duration::ZERO,
            rand_time: Duration::ZERO,
            dpd_delay: Duration::ZERO,
            message_id_sync: false,
            keyingtries: 0,
            mobike: false,
            return_routability: true,
            childless: Childless::Allow,
            unique: Unique::Never,
            fragmentation: Fragmentation::Yes,
            fragment_size: FRAGMENT_SIZE,
            children: vec![child],
        };
        let policy = Policy {
            connections: vec![connection],
            secrets: vec![SharedSecret {
                name: CONNECTION.to_owned(),
                ids: vec![],
                secret: common.psk.clone(),
            }],
            retransmit: RETRANSMIT,
            ..Policy::default()
        };
        Self { common, policy }
    }

    /// The configuration of a client.
    ///
    /// # Errors
    /// If there is no such client: the number makes no identity, or there is no address for it.
    pub(super) fn policy_of(&mut self, number: u32) -> anyhow::Result<&Policy> {
        let identity = self.common.ids.identity(number)?;
        for connection in &mut self.policy.connections {
            connection.local_id = Some(identity.clone());
            let Some(net) = &self.common.local_net else {
                continue;
            };
            let ip = nth(net, number)
                .ok_or_else(|| anyhow::anyhow!("{net} has no address for client {number}"))?;
            for child in &mut connection.children {
                child.local_ts = vec![SelectorTemplate::Fixed(all_of(ip))];
            }
        }
        Ok(&self.policy)
    }

    /// The configuration of the client that was asked for last: its timers are those of all.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }
}

/// All traffic of the client's own address.
fn own_address() -> SelectorTemplate {
    SelectorTemplate::Dynamic {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
    }
}

fn all_of(ip: IpAddr) -> TrafficSelector {
    TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: ip,
        end: ip,
    }
}

/// The address of a client in the clients' network: the first one is left out.
fn nth(net: &IpNet, number: u32) -> Option<IpAddr> {
    let ip: IpAddr = match net.network() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).checked_add(number.checked_add(1)?)?).into(),
        IpAddr::V6(ip) => {
            Ipv6Addr::from(u128::from(ip).checked_add(u128::from(number) + 1)?).into()
        }
    };
    net.contains(&ip).then_some(ip)
}

/// SPIs of one thread of the load. Those of Child SAs are counted, not drawn: among tens of thousands, two would be the same, and a
/// responder may refuse the second.
#[derive(Debug)]
pub(super) struct Spis {
    next_child: u32,
}

impl Spis {
    /// Bits that a thread counts in.
    const BITS: u32 = 24;

    /// The SPIs of a thread. All threads have the same random start, so that those of an earlier run are not met again.
    pub(super) fn new(start: u32, thread: u8) -> Self {
        Self {
            next_child: start.wrapping_add(u32::from(thread) << Self::BITS),
        }
    }
}

impl SpiSource for Spis {
    fn ike(&mut self, rng: &mut dyn Entropy) -> SaId {
        SaId(rng.next_u64() | 1)
    }

    fn child(&mut self, _: &mut dyn Entropy) -> u32 {
        self.next_child = self.next_child.wrapping_add(1).max(256); // RFC 4303 §2.1 reserves those below
        self.next_child
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_numbered_where_the_template_says() {
        let template: IdTemplate = "client-%d.test".parse().unwrap();
        assert_eq!(
            template.identity(17).unwrap(),
            Identity::Fqdn("client-17.test".to_owned())
        );
        assert!("client.test".parse::<IdTemplate>().is_err());
    }

    #[test]
    fn clients_have_addresses_of_their_own_and_none_outside_their_network() {
        let net: IpNet = "10.8.0.0/30".parse().unwrap();
        assert_eq!(nth(&net, 0), Some("10.8.0.1".parse().unwrap()));
        assert_eq!(nth(&net, 2), Some("10.8.0.3".parse().unwrap()));
        assert_eq!(nth(&net, 3), None);
        assert_eq!(nth(&"0.0.0.0/0".parse().unwrap(), u32::MAX), None);
        let net: IpNet = "fd00::/64".parse().unwrap();
        assert_eq!(nth(&net, 65_535), Some("fd00::1:0".parse().unwrap()));
    }
}
