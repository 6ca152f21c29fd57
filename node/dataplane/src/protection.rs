//! Brings routes and inner addresses into the kernel, and remembers what is there.

use crate::{
    PlaneError, Protected, Selector,
    netlink::{Netlink, refused},
    prefix::PrefixMap,
    routes::{self, Hints, Installed, Route, Said, Target},
};
use ipnet::IpNet;
use std::{collections::BTreeSet, io, net::IpAddr};

/// The kernel's side: makes and removes routes and addresses.
pub(crate) trait Kernel {
    /// Makes a route, in place of another with the same prefix and metric.
    fn add_route(&mut self, route: &Route) -> io::Result<()>;
    /// Removes a route; one that is not there is no error.
    fn remove_route(&mut self, route: &Route) -> io::Result<()>;
    /// Takes an address; one that is there is no error.
    fn add_address(&mut self, address: IpAddr) -> Result<(), PlaneError>;
    /// Gives an address up; one that is not there is no error.
    fn remove_address(&mut self, address: IpAddr) -> Result<(), PlaneError>;
}

/// The kernel, with the plane's device.
pub(crate) struct Device {
    pub(crate) netlink: Netlink,
    pub(crate) index: u32,
}

impl Kernel for Device {
    fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.netlink.add_route(route, self.index)
    }

    fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        self.netlink.remove_route(route, self.index)
    }

    fn add_address(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        self.netlink.add_address(address, self.index)
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        self.netlink.remove_address(address, self.index)
    }
}

/// What the kernel has for us.
pub(crate) struct Protection<K = Device> {
    kernel: K,
    metric: u32,
    protected: PrefixMap<Said>,
    hints: Hints,
    installed: Installed,
    /// What a former process left stays until protection is first set.
    set: bool,
    /// Something failed: the next change tries everything again.
    incomplete: bool,
}

impl Protection {
    /// Takes over what a former process left.
    pub(crate) fn new(mut netlink: Netlink, device: u32, metric: u32) -> Result<Self, PlaneError> {
        let routes = netlink.own_routes()?;
        let kernel = Device {
            netlink,
            index: device,
        };
        Ok(Self::over(kernel, routes, metric))
    }

    /// The device that prefixes are routed to.
    pub(crate) fn device(&mut self) -> &mut Device {
        &mut self.kernel
    }

    /// Protects nothing any more, and removes the rules that lead here: first the routes, so that nothing is left for them to find.
    pub(crate) fn open_up(&mut self) -> Result<(), PlaneError> {
        self.protect(&[])?;
        self.kernel.netlink.remove_rules()
    }
}

impl<K: Kernel> Protection<K> {
    fn over(kernel: K, left: Vec<Route>, metric: u32) -> Self {
        Self {
            kernel,
            metric,
            protected: PrefixMap::default(),
            hints: Hints::default(),
            installed: left
                .into_iter()
                .map(|r| ((r.prefix, r.metric), r.target))
                .collect(),
            set: false,
            incomplete: false,
        }
    }

    /// Protects these prefixes, and no others.
    pub(crate) fn protect(&mut self, prefixes: &[Protected]) -> Result<(), PlaneError> {
        self.protected = routes::said(prefixes);
        self.set = true;
        self.apply_all()
    }

    /// Says something of these prefixes, in place of what was said of them before.
    pub(crate) fn protect_more(&mut self, prefixes: &[Protected]) -> Result<(), PlaneError> {
        let said = routes::said(prefixes);
        for (prefix, said) in said.iter() {
            self.protected.insert(prefix, *said);
        }
        self.apply(said.iter().map(|(prefix, _)| prefix).collect())
    }

    /// Says nothing of these prefixes any more.
    pub(crate) fn unprotect(&mut self, prefixes: &[IpNet]) -> Result<(), PlaneError> {
        for prefix in prefixes {
            self.protected.remove(*prefix);
        }
        self.apply(prefixes.iter().map(IpNet::trunc).collect())
    }

    /// A Child SA wants this source for the host's own packets to its peer's side.
    pub(crate) fn add_hint(
        &mut self,
        remote: &[Selector],
        source: IpAddr,
    ) -> Result<(), PlaneError> {
        let news = self.hints.add(remote, source);
        self.follow(&news)
    }

    /// It wants it no more.
    pub(crate) fn remove_hint(
        &mut self,
        remote: &[Selector],
        source: IpAddr,
    ) -> Result<(), PlaneError> {
        let news = self.hints.remove(remote, source);
        self.follow(&news)
    }

    /// Lets routes follow changed hints.
    fn follow(&mut self, news: &[IpNet]) -> Result<(), PlaneError> {
        let concerned = news.iter().flat_map(|prefix| {
            let around = self.protected.around(*prefix);
            around.chain(self.protected.within(*prefix))
        });
        let concerned = concerned
            .filter(|(_, said)| **said == Said::Protect(None))
            .map(|(prefix, _)| prefix)
            .collect();
        self.apply(concerned)
    }

    /// Brings all routes in line with policy and hints.
    fn apply_all(&mut self) -> Result<(), PlaneError> {
        self.incomplete = false;
        let mut prefixes: BTreeSet<IpNet> = self.protected.iter().map(|(p, _)| p).collect();
        if self.set {
            prefixes.extend(self.installed.keys().map(|(prefix, _)| *prefix));
        }
        self.apply_to(&prefixes)
    }

    /// Brings the routes of these prefixes in line with policy and hints, and all if something failed before.
    fn apply(&mut self, prefixes: BTreeSet<IpNet>) -> Result<(), PlaneError> {
        if self.incomplete {
            return self.apply_all();
        }
        self.apply_to(&prefixes)
    }

    /// New routes come before old ones go: there is no moment without protection.
    fn apply_to(&mut self, prefixes: &BTreeSet<IpNet>) -> Result<(), PlaneError> {
        let mut result = Ok(());
        let mut stale = Vec::new();
        for &prefix in prefixes {
            let said = self.protected.get(prefix);
            let desired = said.map_or_else(Vec::new, |said| {
                routes::desired(prefix, *said, &self.hints, self.metric)
            });
            for route in &desired {
                let key = (prefix, route.metric);
                if self.installed.get(&key) == Some(&route.target) {
                    continue;
                }
                match self.add(*route) {
                    Ok(added) => {
                        self.installed.insert(key, added.target);
                    }
                    Err(e) => result = result.and(Err(refused(&describe(route), e))),
                }
            }
            let there = self.installed.range((prefix, 0)..=(prefix, u32::MAX));
            stale.extend(
                there
                    .filter(|((_, metric), _)| desired.iter().all(|d| d.metric != *metric))
                    .map(|(&(prefix, metric), &target)| Route {
                        prefix,
                        metric,
                        target,
                    }),
            );
        }
        for route in stale {
            match self.kernel.remove_route(&route) {
                Ok(()) => {
                    self.installed.remove(&(route.prefix, route.metric));
                }
                Err(e) => {
                    result = result.and(Err(refused(&format!("remove {}", describe(&route)), e)));
                }
            }
        }
        self.incomplete |= result.is_err();
        result
    }

    /// A source that this host does not have (yet, or any more) must not keep the route away.
    fn add(&mut self, route: Route) -> io::Result<Route> {
        let Err(error) = self.kernel.add_route(&route) else {
            return Ok(route);
        };
        let Target::Tun(Some(source)) = route.target else {
            return Err(error);
        };
        tracing::debug!(prefix = %route.prefix, %source, %error, "route goes without its source address");
        let plain = Route {
            target: Target::Tun(None),
            ..route
        };
        self.kernel.add_route(&plain)?;
        Ok(plain)
    }

    /// Routes that had to go without this source can have it now.
    pub(crate) fn assign(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        self.kernel.add_address(address)?;
        self.apply_all()
    }

    /// The kernel removes routes whose source goes; they are made again without it.
    pub(crate) fn release(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        self.kernel.remove_address(address)?;
        self.installed
            .retain(|_, target| *target != Target::Tun(Some(address)));
        self.apply_all()
    }
}

fn describe(route: &Route) -> String {
    let kind = match route.target {
        Target::Tun(_) => "route into the tunnel for",
        Target::Blackhole => "blackhole for",
        Target::Bypass => "bypass for",
    };
    format!("{kind} {}", route.prefix)
}

#[cfg(test)]
#[path = "protection/tests.rs"]
mod tests;
