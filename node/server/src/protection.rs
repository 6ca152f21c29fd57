//! Which prefixes the data plane protects: what the policy says, whether a Child SA is up or not, and besides that what Child SAs
//! of peers at unforeseen addresses negotiated, while they are there.
//!
//! A selector that is limited to a protocol or port protects its whole prefix: routes know no ports, and what does not match
//! a Child SA is dropped rather than let out (fail closed).

use evergate_dataplane::{DataPlane, Protected};
use evergate_ike::{
    config::{Connection, Policy, Pool},
    selector::SelectorTemplate,
    wire::TrafficSelector,
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
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
    policy: BTreeMap<IpNet, bool>,
    /// By Child SAs, named by our SPIs.
    children: BTreeMap<u32, Vec<IpNet>>,
}

impl Protection {
    /// Protects what a policy wants, in place of what the one before wanted.
    pub(crate) fn set_policy(&self, plane: &Arc<dyn DataPlane>, policy: &Policy) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.policy = wanted(policy);
        inner.apply(plane);
    }

    /// Protects the peer's side of a Child SA as long as it is there, where the policy does not.
    pub(crate) fn hold(
        &self,
        plane: &Arc<dyn DataPlane>,
        spi_in: u32,
        remote_ts: &[TrafficSelector],
    ) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let beyond: Vec<IpNet> = remote_ts
            .iter()
            .flat_map(TrafficSelector::networks)
            .filter(|n| !inner.covered(n))
            .collect();
        if !beyond.is_empty() {
            inner.children.insert(spi_in, beyond);
            inner.apply(plane);
        }
    }

    /// The Child SA is gone.
    pub(crate) fn release(&self, plane: &Arc<dyn DataPlane>, spi_in: u32) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.children.remove(&spi_in).is_some() {
            inner.apply(plane);
        }
    }
}

impl Inner {
    /// Whether the policy protects a prefix: the narrowest one that contains it decides.
    fn covered(&self, net: &IpNet) -> bool {
        let around = self.policy.iter().filter(|(p, _)| p.contains(net));
        around
            .max_by_key(|(p, _)| p.prefix_len())
            .is_some_and(|(_, bypass)| !bypass)
    }

    fn apply(&self, plane: &Arc<dyn DataPlane>) {
        let mut all = self.policy.clone();
        all.extend(self.children.values().flatten().map(|net| (*net, false)));
        let prefixes = all.into_iter().map(|(prefix, bypass)| Protected {
            prefix,
            source: None,
            bypass,
        });
        if let Err(e) = plane.protect(prefixes.collect()) {
            error!(
                event = "protect-failed",
                "cannot set up routes of protected prefixes: {e}"
            );
        }
    }
}

/// What a policy protects, and the exceptions.
fn wanted(policy: &Policy) -> BTreeMap<IpNet, bool> {
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
    // Our own networks are an exception where the peer's side contains them, as in 0.0.0.0/0.
    let exceptions: Vec<IpNet> = own
        .into_iter()
        .filter(|net| !protected.contains(net) && protected.iter().any(|p| p.contains(net)))
        .collect();
    let protected = protected.into_iter().map(|net| (net, false));
    protected
        .chain(exceptions.into_iter().map(|net| (net, true)))
        .collect()
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
}
