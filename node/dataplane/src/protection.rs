//! Brings routes and inner addresses into the kernel, and remembers what is there.

use crate::{
    PlaneError, Protected,
    netlink::{Netlink, refused},
    routes::{self, Route, SourceHint, Target},
};
use std::{collections::BTreeSet, io, net::IpAddr};

/// What the kernel has for us.
pub(crate) struct Protection {
    netlink: Netlink,
    device: u32,
    metric: u32,
    /// `None` until it is first set: what a former process left stays until then.
    protected: Option<Vec<Protected>>,
    installed: BTreeSet<Route>,
}

impl Protection {
    /// Takes over what a former process left.
    pub(crate) fn new(mut netlink: Netlink, device: u32, metric: u32) -> Result<Self, PlaneError> {
        let installed = netlink.own_routes()?.into_iter().collect();
        Ok(Self {
            netlink,
            device,
            metric,
            protected: None,
            installed,
        })
    }

    pub(crate) fn protect(
        &mut self,
        prefixes: Vec<Protected>,
        hints: &[SourceHint],
    ) -> Result<(), PlaneError> {
        self.protected = Some(prefixes);
        self.apply(hints)
    }

    /// Brings the routes in line with policy and hints. New ones come before old ones go: there is no moment without protection.
    pub(crate) fn apply(&mut self, hints: &[SourceHint]) -> Result<(), PlaneError> {
        let Some(protected) = &self.protected else {
            return Ok(());
        };
        let desired = routes::desired(protected, hints, self.metric);
        let mut result = Ok(());
        // From the end: a blackhole comes before the route above it.
        let missing: Vec<_> = desired.difference(&self.installed).copied().collect();
        for route in missing.iter().rev() {
            match self.add(*route) {
                Ok(added) => {
                    self.installed.retain(|r| key(r) != key(&added));
                    self.installed.insert(added);
                }
                Err(e) => result = result.and(Err(refused(&describe(route), e))),
            }
        }
        let kept: BTreeSet<_> = desired.iter().map(key).collect();
        let stale = |r: &&Route| !kept.contains(&key(r));
        for route in self.installed.clone().iter().filter(stale) {
            match self.netlink.remove_route(route, self.device) {
                Ok(()) => {
                    self.installed.remove(route);
                }
                Err(e) => {
                    result = result.and(Err(refused(&format!("remove {}", describe(route)), e)));
                }
            }
        }
        result
    }

    /// A source that this host does not have (yet, or any more) must not keep the route away.
    fn add(&mut self, route: Route) -> io::Result<Route> {
        let Err(error) = self.netlink.add_route(&route, self.device) else {
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
        self.netlink.add_route(&plain, self.device)?;
        Ok(plain)
    }

    pub(crate) fn assign(
        &mut self,
        address: IpAddr,
        hints: &[SourceHint],
    ) -> Result<(), PlaneError> {
        self.netlink.add_address(address, self.device)?;
        self.apply(hints)
    }

    /// The kernel removes routes whose source goes; they are made again without it.
    pub(crate) fn release(
        &mut self,
        address: IpAddr,
        hints: &[SourceHint],
    ) -> Result<(), PlaneError> {
        self.netlink.remove_address(address, self.device)?;
        self.installed
            .retain(|r| r.target != Target::Tun(Some(address)));
        self.apply(hints)
    }
}

/// What the kernel knows a route by.
fn key(route: &Route) -> (ipnet::IpNet, u32) {
    (route.prefix, route.metric)
}

fn describe(route: &Route) -> String {
    let kind = match route.target {
        Target::Tun(_) => "route into the tunnel for",
        Target::Blackhole => "blackhole for",
        Target::Bypass => "bypass for",
    };
    format!("{kind} {}", route.prefix)
}
