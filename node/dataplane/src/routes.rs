//! Which routes protect the prefixes of policy. Pure; [`crate::netlink`] brings them into the kernel.
//!
//! They stand in a table of their own, which a rule looks up before the main table for everything without the mark of outer packets.
//! So a protected prefix may contain the peer's outer address. Each prefix has a route into the TUN device, which goes away with it,
//! and a blackhole with a worse metric, which stays: a killed process leaves nothing that lets protected packets out.

use crate::Protected;
use evergate_esp::Selector;
use ipnet::IpNet;
use std::{collections::BTreeMap, collections::BTreeSet, net::IpAddr};

/// How much worse the metric of a blackhole is.
const BLACKHOLE_METRIC: u32 = 1000;

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// Into the TUN device, the host's own packets with this source.
    Tun(Option<IpAddr>),
    /// Drops.
    Blackhole,
    /// Not in this table: what the next table says (`throw`).
    Bypass,
}

/// A route of the protection table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) prefix: IpNet,
    pub(crate) metric: u32,
    pub(crate) target: Target,
}

/// A wish for a source address: of the host's own packets to where these selectors are.
#[derive(Clone, Debug)]
pub(crate) struct SourceHint {
    pub(crate) remote: Vec<Selector>,
    pub(crate) source: IpAddr,
}

/// The routes for these prefixes. Of several entries for a prefix a protecting one wins, and one with a source.
pub(crate) fn desired(
    protected: &[Protected],
    hints: &[SourceHint],
    metric: u32,
) -> BTreeSet<Route> {
    let mut prefixes: BTreeMap<IpNet, Option<Option<IpAddr>>> = BTreeMap::new();
    for entry in protected {
        let slot = prefixes.entry(entry.prefix.trunc()).or_default();
        if !entry.bypass {
            let source = entry
                .source
                .filter(|a| a.is_ipv4() == entry.prefix.addr().is_ipv4());
            *slot = Some(slot.flatten().or(source));
        }
    }
    let mut routes = BTreeSet::new();
    for (prefix, protect) in prefixes {
        let Some(source) = protect else {
            routes.insert(Route {
                prefix,
                metric,
                target: Target::Bypass,
            });
            continue;
        };
        let source = source.or_else(|| hint(prefix, hints));
        routes.insert(Route {
            prefix,
            metric,
            target: Target::Tun(source),
        });
        routes.insert(Route {
            prefix,
            metric: metric.saturating_add(BLACKHOLE_METRIC),
            target: Target::Blackhole,
        });
    }
    routes
}

fn hint(prefix: IpNet, hints: &[SourceHint]) -> Option<IpAddr> {
    let first = prefix.network();
    let last = prefix.broadcast();
    let of_family = |a: &IpAddr| a.is_ipv4() == first.is_ipv4();
    let overlaps = |s: &Selector| of_family(&s.start) && s.start <= last && first <= s.end;
    hints
        .iter()
        .rev()
        .find(|h| of_family(&h.source) && h.remote.iter().any(overlaps))
        .map(|h| h.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protect(prefix: &str) -> Protected {
        Protected {
            prefix: prefix.parse().unwrap(),
            source: None,
            bypass: false,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_protected_prefix_has_a_blackhole_below() {
        let routes = desired(
            &[
                protect("10.1.2.3/16"),
                protect("10.1.0.0/16"),
                protect("fd00::/8"),
            ],
            &[],
            100,
        );
        let expected = ["10.1.0.0/16", "fd00::/8"].map(|p| p.parse::<IpNet>().unwrap());
        let expected: BTreeSet<_> = expected
            .into_iter()
            .flat_map(|prefix| {
                [(100, Target::Tun(None)), (1100, Target::Blackhole)].map(|(metric, target)| {
                    Route {
                        prefix,
                        metric,
                        target,
                    }
                })
            })
            .collect();
        assert_eq!(routes, expected);
    }

    #[test]
    fn protection_wins_over_bypass_of_the_same_prefix() {
        let bypass = Protected {
            bypass: true,
            ..protect("10.0.0.0/8")
        };
        let only = desired(&[bypass], &[], 1);
        assert_eq!(only.first().unwrap().target, Target::Bypass);
        for order in [
            [bypass, protect("10.0.0.0/8")],
            [protect("10.0.0.0/8"), bypass],
        ] {
            let routes = desired(&order, &[], 1);
            assert!(routes.iter().all(|r| r.target != Target::Bypass));
            assert_eq!(routes.len(), 2);
        }
    }

    #[test]
    fn source_comes_from_policy_before_hints_and_fits_the_family() {
        let hints = [SourceHint {
            remote: vec![Selector::addresses(ip("10.2.0.0"), ip("10.2.255.255"))],
            source: ip("10.9.0.1"),
        }];
        let source_of = |p: Protected| {
            let routes = desired(&[p], &hints, 1);
            match routes.first().unwrap().target {
                Target::Tun(source) => source,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(source_of(protect("0.0.0.0/0")), Some(ip("10.9.0.1")));
        assert_eq!(source_of(protect("10.2.3.0/24")), Some(ip("10.9.0.1")));
        assert_eq!(source_of(protect("10.3.0.0/16")), None);
        assert_eq!(source_of(protect("::/0")), None);
        let named = Protected {
            source: Some(ip("10.8.0.1")),
            ..protect("10.2.0.0/16")
        };
        assert_eq!(source_of(named), Some(ip("10.8.0.1")));
    }
}
