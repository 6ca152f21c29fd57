//! Network namespaces, links between them, addresses and routes, over netlink.

use super::topology::{
    CLUSTER_PREFIX, GATEWAY, INTERNET_PREFIX, OFFICE, OFFICE_PREFIX, PEER_PREFIX, ROUTER, Site,
    Topology,
};
use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
};

/// The device of a gateway on the internet segment.
pub(super) const OUTER_DEVICE: &str = "wan0";
/// The device of a gateway in its protected network.
pub(super) const INNER_DEVICE: &str = "lan0";
/// The device of a member in the network between members.
const CLUSTER_DEVICE: &str = "cluster0";
/// The bridge of a segment, and the device of a protected host.
const BRIDGE: &str = "br0";
/// Longest packet of every segment in bytes.
const MTU: u32 = 1500;

/// A network namespace. It is gone when the last copy is dropped and no process is left in it.
#[derive(Clone, Debug)]
pub(super) struct NetNs(Arc<File>);

impl NetNs {
    /// A new one, with its loopback device up.
    pub(super) fn new() -> Result<Self> {
        let file = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
            File::open("/proc/thread-self/ns/net").context("a network namespace cannot be opened")
        })?;
        let ns = Self(Arc::new(file));
        ns.netlink(async |netlink| netlink.up("lo").await)?;
        Ok(ns)
    }

    /// Moves the calling thread there, for good.
    pub(super) fn enter(&self) -> Result<()> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Does something there. Sockets that it makes stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            self.enter()?;
            work()
        })
    }

    fn netlink(&self, work: impl AsyncFnOnce(&Netlink) -> Result<()> + Send) -> Result<()> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                let connection = tokio::spawn(connection);
                let result = work(&Netlink(handle)).await;
                connection.abort();
                result
            })
        })
    }

    /// Adds a route by hand.
    #[cfg(test)]
    pub(super) fn route(&self, to: (Ipv4Addr, u8), gateway: Ipv4Addr) -> Result<()> {
        self.netlink(async |netlink| netlink.route(to, gateway).await)
    }

    fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
        })
    }
}

/// Namespaces belong to threads, so what changes them has a thread of its own.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let result = scope.spawn(work).join();
        result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
    })
}

/// A netlink socket in some namespace.
struct Netlink(Handle);

impl Netlink {
    async fn up(&self, device: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_index(index(device)?).up(), device)
            .await
    }

    async fn set(
        &self,
        change: rtnetlink::LinkMessageBuilder<LinkUnspec>,
        device: &str,
    ) -> Result<()> {
        let request = self.0.link().set(change.build());
        let result = request.execute().await;
        result.with_context(|| format!("cannot set up the device {device}"))
    }

    async fn bridge(&self) -> Result<()> {
        let bridge = LinkBridge::new(BRIDGE).mcast_snooping(false).mtu(MTU).up();
        let result = self.0.link().add(bridge.build()).execute().await;
        result.context("the kernel makes no bridge (module bridge)")
    }

    async fn address(&self, device: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let request = self.0.address().add(index(device)?, address.into(), prefix);
        let result = request.execute().await;
        result.with_context(|| format!("cannot add {address} to {device}"))
    }

    async fn route(&self, (to, prefix): (Ipv4Addr, u8), gateway: Ipv4Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, prefix)
            .gateway(gateway);
        let result = self.0.route().add(route.build()).execute().await;
        result.with_context(|| format!("cannot add a route to {to}/{prefix}"))
    }
}

fn index(device: &str) -> Result<u32> {
    if_nametoindex(device).with_context(|| format!("there is no device {device}"))
}

/// All namespaces.
#[derive(Debug)]
pub(super) struct Network {
    /// The internet segment: every frame between gateways crosses its bridge.
    pub(super) internet: NetNs,
    /// The host behind the members.
    pub(super) office: NetNs,
    /// The network between members. It exists as long as it is held.
    _cluster: Option<NetNs>,
    /// The members.
    pub(super) members: Vec<NetNs>,
    /// The peers.
    pub(super) peers: Vec<NetNs>,
    /// The hosts behind them.
    pub(super) peer_hosts: Vec<NetNs>,
}

impl Network {
    /// Makes them, and everything between them.
    pub(super) fn new(topology: &Topology) -> Result<Self> {
        let internet = segment(Some((ROUTER, INTERNET_PREFIX)))?;
        let office = segment(Some((OFFICE, OFFICE_PREFIX)))?;
        let cluster = topology.is_cluster().then(|| segment(None)).transpose()?;
        let (mut members, mut peers, mut peer_hosts) = (Vec::new(), Vec::new(), Vec::new());
        for member in &topology.members {
            let ns = gateway(member, &internet, &office)?;
            if let (Some(segment), Some(address)) = (&cluster, member.cluster) {
                connect(&ns, CLUSTER_DEVICE, segment, &member.name)?;
                ns.netlink(async |netlink| {
                    netlink
                        .address(CLUSTER_DEVICE, address, CLUSTER_PREFIX)
                        .await
                })?;
            }
            members.push(ns);
        }
        for peer in &topology.peers {
            let host = segment(Some((peer.host, PEER_PREFIX)))?;
            let ns = gateway(peer, &internet, &host)?;
            default_route(&host, peer.inner)?;
            peers.push(ns);
            peer_hosts.push(host);
        }
        default_route(&office, GATEWAY.1)?;
        Ok(Self {
            internet,
            office,
            _cluster: cluster,
            members,
            peers,
            peer_hosts,
        })
    }
}

/// A namespace with a bridge, and an address on it if somebody is there.
fn segment(address: Option<(Ipv4Addr, u8)>) -> Result<NetNs> {
    let ns = NetNs::new()?;
    ns.netlink(async |netlink| {
        netlink.bridge().await?;
        match address {
            Some((address, prefix)) => netlink.address(BRIDGE, address, prefix).await,
            None => Ok(()),
        }
    })?;
    Ok(ns)
}

/// The namespace of a gateway, connected to both of its segments. It forwards, and its default route leads out.
fn gateway(site: &Site, internet: &NetNs, inside: &NetNs) -> Result<NetNs> {
    let ns = NetNs::new()?;
    // Inherited from the host; here packets come in where the main table does not expect them.
    ns.sysctl("ipv4/conf/all/rp_filter", "0")?;
    ns.sysctl("ipv4/conf/default/rp_filter", "0")?;
    ns.sysctl("ipv4/ip_forward", "1")?;
    connect(&ns, OUTER_DEVICE, internet, &site.name)?;
    connect(&ns, INNER_DEVICE, inside, &site.name)?;
    ns.netlink(async |netlink| {
        netlink
            .address(OUTER_DEVICE, site.outer, INTERNET_PREFIX)
            .await?;
        netlink.address(INNER_DEVICE, site.inner, site.prefix).await
    })?;
    default_route(&ns, ROUTER)?;
    Ok(ns)
}

fn default_route(ns: &NetNs, gateway: Ipv4Addr) -> Result<()> {
    let everything = (Ipv4Addr::UNSPECIFIED, 0);
    ns.netlink(async |netlink| netlink.route(everything, gateway).await)
}

/// A cable from `device` of `ns` to the bridge of `segment`.
fn connect(ns: &NetNs, device: &str, segment: &NetNs, port: &str) -> Result<()> {
    const END: &str = "end0";
    // The checker wants the packets as they would be on a wire, not several in one.
    let plain = || LinkAttribute::GsoMaxSegs(1);
    segment.netlink(async |netlink| {
        let cable = LinkVeth::new(port, END).mtu(MTU).build();
        let result = netlink.0.link().add(cable).execute().await;
        result.context("the kernel makes no pair of devices (module veth)")?;
        let end = LinkUnspec::new_with_index(index(END)?)
            .name(device)
            .setns_by_fd(ns.0.as_raw_fd());
        netlink.set(end, END).await?;
        let port_up = LinkUnspec::new_with_index(index(port)?)
            .controller(index(BRIDGE)?)
            .append_extra_attribute(plain())
            .up();
        netlink.set(port_up, port).await
    })?;
    ns.netlink(async |netlink| {
        let end = LinkUnspec::new_with_index(index(device)?)
            .append_extra_attribute(plain())
            .mtu(MTU)
            .up();
        netlink.set(end, device).await
    })
}
