//! The clients that the load pretends to be: one configuration, many identities.

use crate::config;
use evergate_ike::{
    config::{Policy, Retransmit, SharedSecret},
    env::Entropy,
    identity::{IdPattern, Identity, IdentityError},
    record::SaId,
    sa::SpiSource,
    secret::Secret,
    selector::SelectorTemplate,
    wire::TrafficSelector,
};
use ipnet::IpNet;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use toml::Value;

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

/// Identities by number: a text with `%d` in it, or one identity for all.
#[derive(Clone, Debug)]
pub(super) struct IdTemplate {
    before: String,
    /// What follows the number, if it is in there.
    after: Option<String>,
}

impl FromStr for IdTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (before, after) = match text.split_once("%d") {
            Some((before, after)) => (before, Some(after.to_owned())),
            None => (text, None),
        };
        let template = Self {
            before: before.to_owned(),
            after,
        };
        template.identity(0).map_err(|e| e.to_string())?;
        Ok(template)
    }
}

impl IdTemplate {
    fn identity(&self, number: u32) -> Result<Identity, IdentityError> {
        match &self.after {
            Some(after) => format!("{}{number}{after}", self.before).parse(),
            None => self.before.parse(),
        }
    }

    /// Whether each client has an identity of its own.
    pub(super) fn is_numbered(&self) -> bool {
        self.after.is_some()
    }
}

/// How both ends authenticate.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    /// All clients have the same pre-shared key.
    Psk(Secret),
    /// All have the same certificate.
    Certificate {
        /// It, and those between it and a root.
        chain: PathBuf,
        /// Its private key.
        key: PathBuf,
        /// Who issued that of the responder.
        authority: PathBuf,
    },
}

/// What all clients have in common.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) local: IpAddr,
    pub(super) remote: SocketAddr,
    pub(super) proof: Proof,
    pub(super) ids: IdTemplate,
    pub(super) remote_id: IdPattern,
    pub(super) proposals: Vec<String>,
    pub(super) esp_proposals: Vec<String>,
    pub(super) remote_ts: Vec<SelectorTemplate>,
    /// Each client's traffic is that of its own address in this network, if there is one, and of its outer address otherwise.
    pub(super) local_net: Option<IpNet>,
    /// Ask for a virtual address.
    pub(super) vip: bool,
}

impl Common {
    /// A configuration file for all of them, but for their identities and a pre-shared key.
    fn document(&self) -> String {
        let any = match self.local {
            IpAddr::V4(_) => "0.0.0.0",
            IpAddr::V6(_) => "::",
        };
        let vips = list(self.vip.then_some(any));
        let (auth, certs, cacerts, secret) = match &self.proof {
            Proof::Psk(_) => ("psk", list(None::<&str>), list(None::<&str>), String::new()),
            Proof::Certificate {
                chain,
                key,
                authority,
            } => (
                "pubkey",
                list([chain.display()]),
                list([authority.display()]),
                format!("[secrets.key]\nfile = {}\n", text(key.display())),
            ),
        };
        format!(
            "[connections.{CONNECTION}]\n\
            local_addrs = {}\nremote_addrs = {}\nremote_port = {}\nproposals = {}\nvips = {vips}\n\
            rekey_time = \"0s\"\nmobike = false\nmessage_id_sync = false\nunique = \"never\"\nsend_cert = \"always\"\n\
            [connections.{CONNECTION}.local]\nauth = \"{auth}\"\ncerts = {certs}\n\
            [connections.{CONNECTION}.remote]\nauth = \"{auth}\"\nid = {}\ncacerts = {cacerts}\n\
            [connections.{CONNECTION}.children.{CHILD}]\n\
            remote_ts = {}\nesp_proposals = {}\nrekey_time = \"0s\"\n{secret}",
            list([self.local]),
            list([self.remote.ip()]),
            self.remote.port(),
            list(&self.proposals),
            text(&self.remote_id),
            list(&self.remote_ts),
            list(&self.esp_proposals),
        )
    }
}

fn text(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> Value {
    Value::Array(values.into_iter().map(text).collect())
}

/// The configuration of one client at a time: tens of thousands would take more memory than their SAs do.
#[derive(Debug)]
pub(super) struct Clients {
    common: Common,
    policy: Policy,
}

impl Clients {
    /// # Errors
    /// If what is asked for makes no configuration: files that cannot be read, most of all.
    pub(super) fn new(common: Common) -> anyhow::Result<Self> {
        let document = common.document();
        let directory = Path::new(".");
        let mut policy = config::parse(&document, directory)
            .map_err(|problems| anyhow::anyhow!(config::render("the clients", &problems)))?
            .policy;
        policy.retransmit = RETRANSMIT;
        if let Proof::Psk(secret) = &common.proof {
            policy.secrets = vec![SharedSecret {
                name: CONNECTION.to_owned(),
                ids: vec![],
                secret: secret.clone(),
            }];
        }
        Ok(Self { common, policy })
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

    /// All ask whether the responder is there so long after they heard it; zero for never.
    pub(super) fn check_every(&mut self, delay: Duration) {
        for connection in &mut self.policy.connections {
            connection.dpd_delay = delay;
        }
    }

    /// The configuration of the client that was asked for last: its timers are those of all.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
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
        assert!(template.is_numbered());
        let same: IdTemplate = "client.test".parse().unwrap();
        assert!(!same.is_numbered());
        assert_eq!(same.identity(1).unwrap(), same.identity(2).unwrap());
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
