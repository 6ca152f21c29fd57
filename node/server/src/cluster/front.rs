//! The addresses of virtual gateways.

use crate::machine::{Front, Fronts, Switch};
use anyhow::{Context, bail, ensure};
use evergate_dataplane::{
    ANNOUNCEMENTS, Addresses, AddressesConfig, Announcer, DeadMan, DeadManConfig, PlaneError, Side,
    Taken,
};
use evergate_ike::{config::Policy, record::GatewayId};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

/// The table of the dead-man switch.
const TABLE: &str = "evergate";

/// The addresses of the virtual gateways that this process serves.
struct KernelFront {
    addresses: Addresses,
    announcer: Arc<Announcer>,
    /// What it has.
    held: BTreeMap<GatewayId, Vec<(IpNet, Side)>>,
}

/// All addresses of virtual gateways.
pub(super) fn addresses(policy: &Policy) -> impl Iterator<Item = IpNet> + '_ {
    let of = |g: &'_ evergate_ike::config::GatewayConfig| {
        g.outer.iter().chain(&g.inner).copied().collect::<Vec<_>>()
    };
    policy.gateways.iter().flat_map(of)
}

/// The addresses of one virtual gateway.
fn of(policy: &Policy, gateway: GatewayId) -> Vec<(IpNet, Side)> {
    let config = policy.gateways.iter().find(|g| g.id == gateway);
    let config = config.into_iter();
    config
        .flat_map(|g| {
            let outer = g.outer.iter().map(|n| (*n, Side::Outer));
            outer.chain(g.inner.iter().map(|n| (*n, Side::Inner)))
        })
        .collect()
}

impl Switch for DeadMan {
    fn guard(&mut self, addresses: &[IpAddr]) -> Result<(), PlaneError> {
        Self::guard(self, addresses)
    }

    fn refresh(&mut self, changes: &[(IpAddr, Duration)]) -> Result<(), PlaneError> {
        Self::refresh(self, changes)
    }

    fn close(self: Box<Self>) {
        close(*self);
    }
}

/// Takes the dead-man switch away, once nothing of this process speaks any more and all its addresses are gone. Where one is left, which may
/// be a failure of ours or another program's doing, it stays, and the address silent.
fn close(switch: DeadMan) {
    let removed = Addresses::open(AddressesConfig::default())
        .and_then(|mut addresses| switch.remove_after(&mut addresses));
    match removed {
        Ok(left) if left.is_empty() => {
            info!(
                event = "switch-removed",
                "no address of a gateway is left here; the dead-man switch is removed"
            );
        }
        Ok(left) => warn!(
            event = "switch-kept",
            ?left,
            "addresses of gateways are still on an interface: the dead-man switch stays, and keeps them silent"
        ),
        Err(e) => warn!(event = "switch-kept", "the dead-man switch stays: {e}"),
    }
}

/// Gives up what a former process of this member left behind, and puts the dead-man switch in front of all addresses of virtual gateways. A member
/// that is `alone` needs no switch if no address moves.
///
/// # Errors
/// If there is no netlink or no packet socket; or no nf_tables, and there are addresses that move; or it does not see what leaves by one of the `links`, which are
/// interfaces with packet sockets.
pub(crate) fn open(
    config: AddressesConfig,
    links: &[String],
    policy: &Policy,
    alone: bool,
) -> anyhow::Result<Fronts> {
    let mut all = Addresses::open(config).context("cannot move addresses")?;
    let mut devices = BTreeSet::new();
    for gateway in policy.gateway_ids() {
        for (address, side) in of(policy, gateway) {
            let index = all
                .interface(address, side)
                .with_context(|| format!("no interface for {address}"))?;
            let name = nix::net::if_::if_indextoname(index)
                .with_context(|| format!("no interface for {address}"))?;
            devices.insert(name.to_string_lossy().into_owned());
        }
    }
    let unseen = links.iter().find(|link| !devices.contains(*link)).cloned();
    let guarded: Vec<_> = addresses(policy).map(|n| n.addr()).collect();
    let config = DeadManConfig {
        table: TABLE.to_owned(),
        devices: devices.into_iter().collect(),
    };
    // Fail closed: where nothing stops a process that was stopped itself, two could speak from one address.
    let switch = (!alone || !guarded.is_empty())
        .then(|| DeadMan::install(config, &guarded).context("cannot make the dead-man switch"))
        .transpose()?;
    if let Some(switch) = switch.as_ref().filter(|_| !links.is_empty()) {
        ensure!(
            switch.guards_packet_sockets(),
            "link_devices: this kernel does not stop what packet sockets send (it takes Linux 5.16), so a member that is stopped itself could send beside its successor"
        );
        if let Some(link) = unseen {
            bail!(
                "link_devices: no address of a virtual gateway is on {link}, so nothing would stop what leaves there from a member that is stopped itself"
            );
        }
    }
    let announcer = Announcer::open().context("cannot announce addresses")?;
    let mut front = KernelFront {
        addresses: all,
        announcer: Arc::new(announcer),
        held: BTreeMap::new(),
    };
    front.set(policy);
    let switch = switch.map(|s| Box::new(s) as Box<dyn Switch>);
    Ok((Box::new(front), switch))
}

impl Front for KernelFront {
    fn take(&mut self, policy: &Policy, gateway: GatewayId, stop: &CancellationToken) {
        let places = of(policy, gateway);
        let stayed = self.held.insert(gateway, places.clone()).is_some();
        let mut taken = self.set(policy);
        if stayed {
            // Another member may have had them meanwhile: the neighbours are told of all.
            taken = self.places(&places);
        }
        for address in &taken {
            if let Err(e) = self.announcer.announce(address) {
                warn!(event = "announce-failed", address = %address.address, "cannot announce: {e}");
            }
        }
        let (announcer, stop) = (Arc::clone(&self.announcer), stop.clone());
        tokio::spawn(async move {
            let repeated = repeat(&announcer, &taken);
            stop.run_until_cancelled(repeated).await;
        });
    }

    fn leave(&mut self, policy: &Policy, gateway: GatewayId) {
        if self.held.remove(&gateway).is_some() {
            self.set(policy);
        }
    }
}

impl KernelFront {
    /// Where addresses are.
    fn places(&mut self, addresses: &[(IpNet, Side)]) -> Vec<Taken> {
        let mut place = |&(address, side): &(IpNet, Side)| {
            let device = self.addresses.interface(address, side).ok()?;
            Some(Taken { address, device })
        };
        addresses.iter().filter_map(&mut place).collect()
    }

    /// Makes the kernel have what is held.
    fn set(&mut self, policy: &Policy) -> Vec<Taken> {
        let wanted: Vec<(IpNet, Side)> = self.held.values().flatten().copied().collect();
        let all: Vec<IpNet> = addresses(policy).collect();
        match self.addresses.set(&wanted, &all) {
            Ok(changed) => {
                for e in &changed.errors {
                    error!(event = "address-failed", "an address of a gateway: {e}");
                }
                changed.added
            }
            Err(e) => {
                error!(event = "address-failed", "addresses of gateways: {e}");
                Vec::new()
            }
        }
    }
}

/// Announces again for those that missed it.
async fn repeat(announcer: &Announcer, taken: &[Taken]) {
    let mut before = Duration::ZERO;
    for at in ANNOUNCEMENTS.iter().skip(1) {
        tokio::time::sleep(at.saturating_sub(before)).await;
        before = *at;
        for address in taken {
            if let Err(e) = announcer.announce(address) {
                debug!(event = "announce-failed", address = %address.address, "cannot announce again: {e}");
            }
        }
    }
}
