//! Which prefixes the data plane protects: what the policy says, whether a Child SA is up or not, and besides that what Child SAs
//! of peers at unforeseen addresses negotiated, while they are there.
//!
//! A selector that is limited to a protocol or port protects its whole prefix: routes know no ports, and what does not match
//! a Child SA is dropped rather than let out (fail closed).

use evergate_dataplane::{DataPlane, PlaneError, Protected, prefix::PrefixMap};
use evergate_ike::{
    config::{Connection, Policy, Pool},
    selector::SelectorTemplate,
    wire::TrafficSelector,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tracing::error;

/// What is protected, and why.
#[derive(Debug, Default)]
pub(crate) struct Protection {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By policy: the prefix, and whether it is an exception from a wider one.
    policy: PrefixMap<bool>,
    /// By Child SAs, named by our SPIs.
    children: HashMap<u32, Vec<IpNet>>,
    /// How many Child SAs hold each of these prefixes, whether the policy covers it or not.
    held: BTreeMap<IpNet, usize>,
}

impl Protection {
    /// Protects what a policy wants, in place of what the one before wanted.
    pub(crate) fn set_policy(&self, plane: &Arc<dyn DataPlane>, policy: &Policy) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.policy = wanted(policy);
        report(plane.protect(inner.all()));
    }

    /// Protects the peer's side of a Child SA as long as it is there, where the policy does not.
    pub(crate) fn hold(
        &self,
        plane: &Arc<dyn DataPlane>,
        spi_in: u32,
        remote_ts: &[TrafficSelector],
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let more = inner.hold(spi_in, remote_ts);
        if !more.is_empty() {
            report(plane.protect_more(&more));
        }
    }

    /// The Child SA is gone.
    pub(crate) fn release(&self, plane: &Arc<dyn DataPlane>, spi_in: u32) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Released { again, gone } = inner.release(spi_in);
        if !again.is_empty() {
            report(plane.protect_more(&again));
        }
        if !gone.is_empty() {
            report(plane.unprotect(&gone));
        }
    }
}

/// What a Child SA alone had protected.
#[derive(Debug, Default)]
struct Released {
    /// What the policy says of prefixes of its own.
    again: Vec<Protected>,
    /// Of these it says nothing.
    gone: Vec<IpNet>,
}

impl Inner {
    /// Whether the policy protects a prefix: the narrowest one that contains it decides.
    fn covered(&self, net: &IpNet) -> bool {
        let narrowest = self.policy.around(*net).next();
        narrowest.is_some_and(|(_, bypass)| !bypass)
    }

    /// Notes what a Child SA needs. Yields what was not protected so far. What the policy covers today is noted too: another policy may not.
    fn hold(&mut self, spi_in: u32, remote_ts: &[TrafficSelector]) -> Vec<Protected> {
        if self.children.contains_key(&spi_in) {
            return Vec::new();
        }
        let needed: BTreeSet<IpNet> = remote_ts
            .iter()
            .flat_map(TrafficSelector::networks)
            .collect();
        self.children
            .insert(spi_in, needed.iter().copied().collect());
        let mut more = Vec::new();
        for prefix in needed {
            let holders = self.held.entry(prefix).or_insert(0);
            *holders += 1;
            if *holders == 1 && !self.covered(&prefix) {
                more.push(entry(prefix, false));
            }
        }
        more
    }

    fn release(&mut self, spi_in: u32) -> Released {
        let mut released = Released::default();
        for prefix in self.children.remove(&spi_in).unwrap_or_default() {
            if let Some(holders) = self.held.get_mut(&prefix).filter(|n| **n > 1) {
                *holders -= 1;
                continue;
            }
            self.held.remove(&prefix);
            match self.policy.get(prefix) {
                _ if self.covered(&prefix) => {}
                Some(bypass) => released.again.push(entry(prefix, *bypass)),
                None => released.gone.push(prefix),
            }
        }
        released
    }

    /// Everything that is to be protected: where a Child SA is, an exception does not count.
    fn all(&self) -> Vec<Protected> {
        let policy = self
            .policy
            .iter()
            .map(|(prefix, bypass)| entry(prefix, *bypass));
        policy
            .chain(
                self.held
                    .keys()
                    .filter(|prefix| !self.covered(prefix))
                    .map(|prefix| entry(*prefix, false)),
            )
            .collect()
    }
}

fn entry(prefix: IpNet, bypass: bool) -> Protected {
    Protected {
        prefix,
        source: None,
        bypass,
    }
}

fn report(done: Result<(), PlaneError>) {
    if let Err(e) = done {
        error!(
            event = "protect-failed",
            "cannot set up routes of protected prefixes: {e}"
        );
    }
}

/// What a policy protects, and the exceptions.
fn wanted(policy: &Policy) -> PrefixMap<bool> {
    let mut protected = BTreeSet::new();
    let mut own = BTreeSet::new();
    for connection in &policy.connections {
        for child in &connection.children {
            for template in &child.remote_ts {
                match template {
                    SelectorTemplate::Fixed(ts) => protected.extend(ts.networks()),
                    SelectorTemplate::Dynamic { .. } => {
                        protected.extend(dynamic(policy, connection))
                    }
                }
            }
            own.extend(child.local_ts.iter().flat_map(|t| match t {
                SelectorTemplate::Fixed(ts) => ts.networks(),
                SelectorTemplate::Dynamic { .. } => Vec::new(),
            }));
        }
    }
    let mut wanted: PrefixMap<bool> = protected.into_iter().map(|net| (net, false)).collect();
    // Our own networks are an exception where the peer's side contains them, as in 0.0.0.0/0.
    let exceptions: Vec<IpNet> = own
        .into_iter()
        .filter(|net| wanted.get(*net).is_none() && wanted.around(*net).next().is_some())
        .collect();
    for net in exceptions {
        wanted.insert(net, true);
    }
    wanted
}

/// What `dynamic` may stand for on the peer's side: addresses of its pools, else its outer address where it is known.
fn dynamic(policy: &Policy, connection: &Connection) -> Vec<IpNet> {
    let pools = policy
        .pools
        .iter()
        .filter(|p| connection.pools.contains(&p.name));
    let leased: Vec<IpNet> = pools.flat_map(pool_networks).collect();
    if connection.pools.is_empty() {
        let hosts = connection.remote_addrs.iter();
        return hosts
            .filter(|n| n.prefix_len() == n.max_prefix_len())
            .copied()
            .collect();
    }
    leased
}

fn pool_networks(pool: &Pool) -> Vec<IpNet> {
    let whole = TrafficSelector {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: pool.first,
        end: pool.last,
    };
    whole.networks()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::path::Path;

    fn policy(text: &str) -> Policy {
        parse(text, Path::new(".")).unwrap().policy
    }

    fn shown(policy: &Policy) -> Vec<String> {
        wanted(policy)
            .iter()
            .map(|(net, bypass)| format!("{}{net}", if *bypass { "!" } else { "" }))
            .collect()
    }

    #[test]
    fn fixed_selectors_pools_and_known_peers_are_protected() {
        let p = policy(
            "[connections.a]\npools = ['p']\n[connections.a.children.x]\nlocal_ts = ['10.1.0.0/16']\n\
             [connections.b]\nremote_addrs = ['192.0.2.2', '198.51.100.0/24']\n[connections.b.children.x]\n\
             [connections.b.children.y]\nremote_ts = ['10.2.0.0/16[tcp/80]']\n\
             [pools.p]\naddrs = '10.9.0.4-10.9.0.7'\n[secrets.s]\nsecret = 'k'",
        );
        assert_eq!(shown(&p), ["10.2.0.0/16", "10.9.0.4/30", "192.0.2.2/32"]);
    }

    #[test]
    fn our_own_networks_are_exceptions_where_the_peer_has_everything() {
        let p = policy(
            "[connections.a.children.x]\nlocal_ts = ['10.1.0.0/16']\nremote_ts = ['0.0.0.0/0']\n[secrets.s]\nsecret = 'k'",
        );
        assert_eq!(shown(&p), ["0.0.0.0/0", "!10.1.0.0/16"]);
        let inner = Inner {
            policy: wanted(&p),
            ..Inner::default()
        };
        assert!(inner.covered(&"10.2.0.0/16".parse().unwrap()));
        assert!(!inner.covered(&"10.1.2.0/24".parse().unwrap()));
        assert!(!inner.covered(&"2001:db8::/64".parse().unwrap()));
    }

    fn range(first: &str, last: &str) -> TrafficSelector {
        TrafficSelector {
            protocol: 0,
            start_port: 0,
            end_port: u16::MAX,
            start: first.parse().unwrap(),
            end: last.parse().unwrap(),
        }
    }

    fn text(entries: &[Protected]) -> Vec<String> {
        let shown = |p: &Protected| format!("{}{}", if p.bypass { "!" } else { "" }, p.prefix);
        entries.iter().map(shown).collect()
    }

    #[test]
    fn another_policy_does_not_open_what_a_child_sa_needs() {
        let p = policy(
            "[connections.a.children.x]\nlocal_ts = ['10.1.0.0/16']\nremote_ts = ['10.0.0.0/8']\n[secrets.s]\nsecret = 'k'",
        );
        let mut inner = Inner {
            policy: wanted(&p),
            ..Inner::default()
        };
        inner.hold(1, &[range("10.2.0.0", "10.2.0.7")]);
        assert_eq!(text(&inner.all()), ["10.0.0.0/8", "!10.1.0.0/16"]);
        inner.policy = PrefixMap::default();
        assert_eq!(text(&inner.all()), ["10.2.0.0/29"]);
        assert_eq!(inner.release(1).gone, ["10.2.0.0/29".parse().unwrap()]);
        assert!(inner.all().is_empty() && inner.held.is_empty());
    }

    #[test]
    fn what_child_sas_share_is_protected_until_the_last_goes() {
        let p = policy(
            "[connections.a.children.x]\nlocal_ts = ['10.1.0.0/16']\nremote_ts = ['10.0.0.0/8']\n[secrets.s]\nsecret = 'k'",
        );
        let mut inner = Inner {
            policy: wanted(&p),
            ..Inner::default()
        };
        let host = range("192.0.2.9", "192.0.2.9");
        assert_eq!(text(&inner.hold(1, &[host, host])), ["192.0.2.9/32"]);
        assert_eq!(text(&inner.hold(1, &[host])), [""; 0], "has it already");
        assert_eq!(text(&inner.hold(2, &[host])), [""; 0], "is protected");
        assert_eq!(
            text(&inner.hold(3, &[range("10.2.0.0", "10.2.0.7")])),
            [""; 0],
            "by the policy"
        );
        // A Child SA wins over an exception as long as it is there.
        let ours = range("10.1.0.0", "10.1.255.255");
        assert_eq!(text(&inner.hold(4, &[ours])), ["10.1.0.0/16"]);
        assert_eq!(
            text(&inner.all()),
            ["10.0.0.0/8", "!10.1.0.0/16", "10.1.0.0/16", "192.0.2.9/32"]
        );
        let released = inner.release(1);
        assert!(released.gone.is_empty() && released.again.is_empty());
        assert_eq!(inner.release(2).gone, ["192.0.2.9/32".parse().unwrap()]);
        let released = inner.release(4);
        assert_eq!(text(&released.again), ["!10.1.0.0/16"]);
        assert!(released.gone.is_empty());
        for spi in 1..5 {
            assert!(inner.release(spi).gone.is_empty(), "is gone already");
        }
        assert!(inner.held.is_empty() && inner.children.is_empty());
    }
}
