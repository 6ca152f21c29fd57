//! What a member has of the machine that it runs on. The simulation puts a machine of its own in the place of the real one; everything else of a member is
//! the same there.

use crate::{
    cluster,
    config::{Config, Member, PlaneKind},
    reload,
};
use anyhow::Context;
use evergate_cluster::{
    raft::{Credentials, LinkSource},
    store::Storage,
};
use evergate_dataplane::{
    AddressesConfig, DataPlane, PlaneConfig, PlaneError, PlaneEvent, Userspace, Xfrm,
};
use evergate_ike::{config::Policy, record::GatewayId};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A data plane, and what it tells.
pub type Plane = (Arc<dyn DataPlane>, mpsc::Receiver<PlaneEvent>);

/// What moves addresses, and the dead-man switch where there is one.
pub type Fronts = (Box<dyn Front>, Option<Box<dyn Switch>>);

/// What a member has of its machine. Called while it starts, in this order.
pub trait Machine: Send + Sync {
    /// Where its log and its snapshots are.
    fn storage(&self) -> Storage;

    /// How it meets other members; `None` if there are none.
    ///
    /// # Errors
    /// If credentials cannot be read, or the address cannot be listened on.
    fn links(&self) -> anyhow::Result<Option<(LinkSource, Credentials)>>;

    /// What carries packets.
    ///
    /// # Errors
    /// What the system refuses.
    fn plane(&self) -> Result<Plane, PlaneError>;

    /// Addresses that a peer could use.
    fn addresses(&self) -> Vec<IpAddr>;

    /// What moves the addresses of virtual gateways, and keeps them silent without a lease. A member that is `alone` needs no switch if no address moves.
    ///
    /// # Errors
    /// What the system refuses.
    fn front(&self, policy: &Policy, alone: bool) -> anyhow::Result<Fronts>;
}

/// Moves the addresses of virtual gateways.
pub trait Front: Send {
    /// Takes the addresses of a gateway, and tells the neighbours; again from time to time, until `stop`.
    fn take(&mut self, policy: &Policy, gateway: GatewayId, stop: &CancellationToken);

    /// Gives the addresses of a gateway up.
    fn leave(&mut self, policy: &Policy, gateway: GatewayId);
}

/// The dead-man switch: addresses that it guards speak only for as long as they were last allowed to.
pub trait Switch: Send {
    /// Guards more addresses.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn guard(&mut self, addresses: &[IpAddr]) -> Result<(), PlaneError>;

    /// Lets addresses speak for so long from now on; none at all with zero.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn refresh(&mut self, changes: &[(IpAddr, Duration)]) -> Result<(), PlaneError>;

    /// Takes the switch away, if none of its addresses is left here.
    fn close(self: Box<Self>);
}

/// The real machine.
pub(crate) struct Kernel<'a> {
    config: &'a Config,
    member: &'a Member,
}

impl<'a> Kernel<'a> {
    /// As the configuration wants it.
    pub(crate) fn new(config: &'a Config, member: &'a Member) -> Self {
        Self { config, member }
    }

    fn plane_config(&self) -> PlaneConfig {
        let (config, member) = (self.config, self.member);
        PlaneConfig {
            tun_name: config.dataplane.tun.clone(),
            tun_mtu: u32::from(config.dataplane.mtu),
            workers: config.dataplane.workers,
            ike_port: member.ike_port,
            nat_port: member.nat_port,
            tcp_port: member.listen_tcp.then_some(member.tcp_port),
            tcp_connections: config.limits.tcp_connections,
            tcp_connections_per_address: config.limits.tcp_connections_per_address,
            mark: config.dataplane.mark.0.value,
            mark_mask: config.dataplane.mark.0.mask,
            route_table: config.dataplane.route_table,
            link_devices: config.dataplane.link_devices.clone(),
            rule_priority: config.dataplane.route_table,
            ..PlaneConfig::default()
        }
    }
}

impl Machine for Kernel<'_> {
    fn storage(&self) -> Storage {
        Storage::Directory(self.member.state_dir.clone())
    }

    fn links(&self) -> anyhow::Result<Option<(LinkSource, Credentials)>> {
        let Some(config) = &self.config.cluster else {
            return Ok(None);
        };
        let listener = std::net::TcpListener::bind(config.listen)
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        Ok(Some((
            LinkSource::Tcp(listener),
            reload::credentials(config)?,
        )))
    }

    fn plane(&self) -> Result<Plane, PlaneError> {
        let settings = self.plane_config();
        Ok(match self.config.dataplane.kind {
            PlaneKind::Userspace => {
                let (plane, events) = Userspace::start(settings)?;
                (plane, events)
            }
            PlaneKind::Xfrm => {
                let (plane, events) = Xfrm::start(&settings)?;
                (plane, events)
            }
        })
    }

    fn addresses(&self) -> Vec<IpAddr> {
        evergate_dataplane::host_addresses(&self.config.dataplane.tun)
    }

    fn front(&self, policy: &Policy, alone: bool) -> anyhow::Result<Fronts> {
        let addresses = AddressesConfig {
            outer_interface: self.member.outer_interface.clone(),
            inner_interface: self.member.inner_interface.clone(),
            origin: AddressesConfig::ORIGIN,
        };
        let links = &self.config.dataplane.link_devices;
        cluster::open_front(addresses, links, policy, alone)
    }
}
