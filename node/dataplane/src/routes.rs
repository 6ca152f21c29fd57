//! Which routes protect the prefixes of policy. Pure; [`crate::netlink`] brings them into the kernel.
//!
//! They stand in a table of their own, which a rule looks up before the main table for everything without the mark of outer packets.
//! So a protected prefix may contain the peer's outer address. Each prefix has a route into the TUN device, which goes away with it,
//! and a blackhole with a worse metric, which stays: a killed process leaves nothing that lets protected packets out.

use crate::{
    Protected,
    prefix::{PrefixMap, covering},
};
use evergate_esp::Selector;
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

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

/// What policy says of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It is protected, and the host's own packets to it should have this source.
    Protect(Option<IpAddr>),
    /// It is not, though a wider one is.
    Bypass,
}

impl Said {
    /// What an entry says, and the prefix of which it does.
    pub(crate) fn of(entry: &Protected) -> (IpNet, Self) {
        let same_family = |a: &IpAddr| a.is_ipv4() == entry.prefix.addr().is_ipv4();
        let said = if entry.bypass {
            Self::Bypass
        } else {
            Self::Protect(entry.source.filter(same_family))
        };
        (entry.prefix.trunc(), said)
    }

    /// Of several entries for a prefix a protecting one wins, and one with a source.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Protect(a), Self::Protect(b)) => Self::Protect(a.or(b)),
            (Self::Protect(a), Self::Bypass) | (Self::Bypass, Self::Protect(a)) => Self::Protect(a),
            (Self::Bypass, Self::Bypass) => Self::Bypass,
        }
    }
}

/// What these entries say together.
pub(crate) fn said(entries: &[Protected]) -> PrefixMap<Said> {
    let mut all = PrefixMap::default();
    for (prefix, said) in entries.iter().map(Said::of) {
        let together = all
            .get(prefix)
            .map_or(said, |before: &Said| before.and(said));
        all.insert(prefix, together);
    }
    all
}

/// The routes for a prefix, the blackhole first: by the time that another leads elsewhere, it is closed.
pub(crate) fn desired(prefix: IpNet, said: Said, hints: &Hints, metric: u32) -> Vec<Route> {
    let route = |metric, target| Route {
        prefix,
        metric,
        target,
    };
    match said {
        Said::Bypass => vec![route(metric, Target::Bypass)],
        Said::Protect(source) => {
            let source = source.or_else(|| hints.source(prefix));
            let worse = metric.saturating_add(BLACKHOLE_METRIC);
            vec![
                route(worse, Target::Blackhole),
                route(metric, Target::Tun(source)),
            ]
        }
    }
}

/// Wishes of Child SAs for source addresses: of the host's own packets to where their remote selectors are. Equal wishes are counted.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    /// By the narrowest prefix that contains the selector's addresses.
    by_prefix: PrefixMap<Vec<Wish>>,
}

#[derive(Debug)]
struct Wish {
    start: IpAddr,
    end: IpAddr,
    source: IpAddr,
    count: usize,
}

impl Wish {
    fn is(&self, selector: &Selector, source: IpAddr) -> bool {
        (self.start, self.end, self.source) == (selector.start, selector.end, source)
    }
}

/// The selectors for which this source is of use, each with its covering prefix.
fn useful(remote: &[Selector], source: IpAddr) -> impl Iterator<Item = (IpNet, &Selector)> {
    remote
        .iter()
        .filter(move |s| s.start.is_ipv4() == source.is_ipv4())
        .filter_map(|s| Some((covering(s.start, s.end)?, s)))
}

impl Hints {
    /// Adds a wish. Yields prefixes: what is around them or within them may have another source now.
    pub(crate) fn add(&mut self, remote: &[Selector], source: IpAddr) -> Vec<IpNet> {
        let mut news = Vec::new();
        for (prefix, selector) in useful(remote, source) {
            let wishes = self.by_prefix.or_default(prefix);
            if let Some(wish) = wishes.iter_mut().find(|w| w.is(selector, source)) {
                wish.count += 1;
                continue;
            }
            // Most have one and keep it.
            wishes.reserve_exact(1);
            wishes.push(Wish {
                start: selector.start,
                end: selector.end,
                source,
                count: 1,
            });
            news.push(prefix);
        }
        news
    }

    /// Takes back a wish that was added. Yields prefixes as [`Self::add`] does.
    pub(crate) fn remove(&mut self, remote: &[Selector], source: IpAddr) -> Vec<IpNet> {
        let mut news = Vec::new();
        for (prefix, selector) in useful(remote, source) {
            let Some(wishes) = self.by_prefix.get_mut(prefix) else {
                continue;
            };
            let Some(at) = wishes.iter().position(|w| w.is(selector, source)) else {
                continue;
            };
            wishes[at].count -= 1;
            if wishes[at].count > 0 {
                continue;
            }
            wishes.remove(at);
            if wishes.is_empty() {
                self.by_prefix.remove(prefix);
            }
            news.push(prefix);
        }
        news
    }

    /// The source for a prefix: of the narrowest selector around it, else of one within it; of the last that was added.
    pub(crate) fn source(&self, prefix: IpNet) -> Option<IpAddr> {
        let (first, last) = (prefix.network(), prefix.broadcast());
        let overlaps = |w: &&Wish| w.start <= last && first <= w.end;
        let newest = |wishes: &Vec<Wish>| wishes.iter().rev().find(overlaps).map(|w| w.source);
        self.by_prefix
            .around(prefix)
            .find_map(|(_, wishes)| newest(wishes))
            .or_else(|| {
                self.by_prefix
                    .within(prefix)
                    .find_map(|(_, wishes)| newest(wishes))
            })
    }
}

/// What the kernel has, by prefix and metric, as it knows routes.
pub(crate) type Installed = BTreeMap<(IpNet, u32), Target>;

#[cfg(test)]
#[path = "routes/tests.rs"]
mod tests;
