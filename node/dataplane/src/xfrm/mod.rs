//! The plane in the kernel: its IPsec (`xfrm`) carries the packets, and this tells it how.
//!
//! Protected prefixes are routed to an XFRM interface, as the user-space plane routes them to its TUN device. Everything that is ours in the
//! kernel bears the interface's number (`if_id`): only packets that are routed there meet our policies, and nothing else that uses the
//! kernel's IPsec is touched.
//!
//! - [`children`], [`child`]: the Child SAs, and the states that they have; [`half`]: what these have carried; [`offload`]: with a network card
//! - [`numbers`]: why a state uses no sequence number twice
//! - [`spd`], [`flows`], [`policies`], [`rules`], [`kinds`]: who sends and receives what; [`gates`]: and who may send now
//! - [`monitor`]: what the kernel tells by itself
//! - [`thresholds`]: which policies the kernel hashes
//! - [`leftovers`]: what a former process left

mod algorithms;
mod child;
mod children;
mod flows;
mod gates;
mod half;
mod ike;
mod kernel;
mod kinds;
mod leftovers;
mod monitor;
mod numbers;
mod offload;
mod policies;
mod rules;
mod spd;
mod states;
mod statistics;
mod thresholds;
mod trap;

use crate::{
    Capabilities, ChildSa, ChildStats, DataPlane, DatagramKind, DropReason, Drops, Hold, Mark,
    Outer, Packet, PlaneConfig, PlaneError, PlaneEvent, Protected, TcpEnd, Totals, Transport,
    counters::{Control, Events, Traffic},
    hold::{Holds, Room},
    local,
    netlink::{Carried, Netlink, refused},
    protection::{Device, Protection},
    sockets::{Esp, Sockets},
    stop::Stop,
};
use child::Child;
use children::Children;
use ipnet::IpNet;
use kernel::Kernel;
use leftovers::Leftovers;
use monitor::Monitor;
use states::StateId;
use statistics::Statistics;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc;

/// What ours are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    /// Of policies and states.
    if_id: u32,
    /// Of packets when they leave: they do not take the routes into the tunnel again.
    mark: Mark,
}

/// The plane in the kernel.
///
/// Needs Linux 5.8 with `CONFIG_XFRM_INTERFACE`. Forwarding between the protected network and the device is the operator's.
pub struct Xfrm {
    shared: Arc<Shared>,
    protection: Mutex<Protection>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    statistics: Mutex<Option<Statistics>>,
    room: Arc<Room>,
    /// What the device had carried before.
    before: Carried,
    /// Of all outer packets.
    outer_mark: Mark,
}

/// What the threads share.
struct Shared {
    sockets: Sockets,
    traffic: Arc<Traffic>,
    control: Control,
    events: Events,
    /// Taken by whoever tells the kernel of states and policies, so that they are told in the order in which they are thought.
    children: Mutex<Children>,
    /// Read for as long as a message is handed on.
    holds: RwLock<Holds>,
    stop: Stop,
}

impl Xfrm {
    /// Opens sockets, makes the device, removes what a former process left of states and policies, and starts the threads, all in the network
    /// namespace of the calling thread. Needs `CAP_NET_ADMIN` there. Protection that a former process left stays until
    /// [`DataPlane::protect`] replaces it.
    ///
    /// # Errors
    /// If a port is taken, another device has the name, the kernel has no XFRM interfaces or too old ones, or a capability is missing.
    pub fn start(
        config: &PlaneConfig,
    ) -> Result<(Arc<Self>, mpsc::Receiver<PlaneEvent>), PlaneError> {
        let tag = Tag {
            if_id: config.mark,
            mark: Mark {
                value: config.mark,
                mask: config.mark_mask,
            },
        };
        let mut netlink = Netlink::open(config)?;
        netlink.add_rules()?;
        let sockets = Sockets::open(config, Esp::Kernel, &[], 1)?;
        let kernel = Kernel::open(tag).map_err(|e| refused("open an XFRM socket", e))?;
        let children = begin(kernel, tag, config.nat_port)?;
        netlink.make_xfrm_interface(&config.tun_name, tag.if_id)?;
        let device = netlink.bring_up(&config.tun_name, config.tun_mtu)?;
        let before = netlink.carried(device);
        let protection = Protection::new(netlink, device, config.route_metric)?;
        let (sender, receiver) = mpsc::channel(config.event_queue.max(1));
        let traffic = Arc::<Traffic>::default();
        let shared = Arc::new(Shared {
            sockets,
            traffic: Arc::clone(&traffic),
            control: Control::default(),
            events: Events(sender),
            children: Mutex::new(children),
            holds: RwLock::default(),
            stop: Stop::new().map_err(|e| failed("make an eventfd", e))?,
        });
        let statistics = Statistics::open();
        if let Err(error) = &statistics {
            tracing::info!(%error, "the kernel does not count what it drops");
        }
        let plane = Arc::new(Self {
            protection: Mutex::new(protection),
            threads: Mutex::default(),
            statistics: Mutex::new(statistics.ok()),
            room: Room::new(traffic),
            before,
            outer_mark: tag.mark,
            shared,
        });
        let monitor = Monitor::open(Arc::clone(&plane.shared));
        let monitor = monitor.map_err(|e| refused("listen to the kernel's IPsec", e))?;
        let receiver_of_ike = ike::Receiver::new(Arc::clone(&plane.shared));
        plane.spawn("evergate-xfrm", move || monitor.run())?;
        plane.spawn("evergate-ike", move || receiver_of_ike.run())?;
        Ok((plane, receiver))
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), PlaneError> {
        let thread = thread::Builder::new().name(name.into()).spawn(work);
        let thread = thread.map_err(|e| failed("start a thread", e))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Lets routes follow the sources that Child SAs ask for. Only the host's own packets profit: no reason to fail.
    fn follow_hint(followed: Result<(), PlaneError>) {
        if let Err(error) = followed {
            tracing::warn!(%error, "routes do not follow the Child SAs");
        }
    }
}

/// Removes what a former process left, and has packets told of for which there is no Child SA.
fn begin(mut kernel: Kernel, tag: Tag, nat_port: u16) -> Result<Children, PlaneError> {
    let leftovers = Leftovers::clear(&mut kernel, tag);
    let leftovers = leftovers.map_err(|e| refused("remove old states and policies", e))?;
    if let Err(error) = thresholds::choose(&mut kernel) {
        tracing::warn!(%error, "many peers take long to install: the kernel does not hash their policies");
    }
    let mut children = Children::new(kernel, tag, nat_port, leftovers);
    children.arm(trap::number(crate::boot_time()))?;
    Ok(children)
}

impl DataPlane for Xfrm {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "xfrm",
            encryption: algorithms::ENCRYPTION,
            esn: true,
            max_replay_window: states::MAX_WINDOW,
            udp_encapsulation: true,
            plain_esp: true,
            transport_mode: false,
            tcp: false,
            marks: true,
            offload: true,
        }
    }

    fn install(&self, child: ChildSa) -> Result<(), PlaneError> {
        child.marks.within(Some(self.outer_mark))?;
        let hint = child.source_hint.map(|s| (child.remote_ts.clone(), s));
        self.shared.children().install(child, Instant::now())?;
        if let Some((remote, source)) = hint {
            Self::follow_hint(lock(&self.protection).add_hint(&remote, source));
        }
        Ok(())
    }

    fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        self.shared.children().set_outbound(spi_in, active)
    }

    fn move_child(&self, spi_in: u32, outer: Outer) -> Result<(), PlaneError> {
        self.shared.children().move_to(spi_in, outer)
    }

    fn remove(&self, spi_in: u32, grace: Duration) -> Result<(), PlaneError> {
        let now = Instant::now();
        let until = now.checked_add(grace).unwrap_or(now);
        let hint = self.shared.children().remove(spi_in, until, now)?;
        if let Some((remote, source)) = hint {
            Self::follow_hint(lock(&self.protection).remove_hint(&remote, source));
        }
        Ok(())
    }

    fn extend(&self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError> {
        self.shared.children().extend(spi_in, range)
    }

    fn stats(&self, spi_in: u32) -> Option<ChildStats> {
        stats(&mut self.shared.children(), spi_in)
    }

    fn replay_edges(&self) -> Vec<(u32, u64)> {
        let children = self.shared.children();
        let received = children.iter().filter(|(_, c)| c.edge > 0);
        received.map(|(spi, c)| (spi, c.edge)).collect()
    }

    fn totals(&self) -> Totals {
        let (control, before) = (&self.shared.control, &self.before);
        let now = {
            let mut protection = lock(&self.protection);
            let Device { netlink, index } = protection.device();
            netlink.carried(*index)
        };
        let mut counts = self.shared.traffic.drops();
        if let Some(statistics) = lock(&self.statistics).as_mut() {
            counts = counts.plus(statistics.drops());
        }
        Totals {
            packets_in: now.packets_in.saturating_sub(before.packets_in),
            bytes_in: now.bytes_in.saturating_sub(before.bytes_in),
            packets_out: now.packets_out.saturating_sub(before.packets_out),
            bytes_out: now.bytes_out.saturating_sub(before.bytes_out),
            ike_in: control.ike_in.get(),
            ike_out: control.ike_out.get(),
            keepalives_in: control.keepalives_in.get(),
            keepalives_out: control.keepalives_out.get(),
            tcp_connections: 0,
            drops: counts,
        }
    }

    fn protect(&self, prefixes: Vec<Protected>) -> Result<(), PlaneError> {
        lock(&self.protection).protect(&prefixes)
    }

    fn open_up(&self) -> Result<(), PlaneError> {
        lock(&self.protection).open_up()
    }

    fn protect_more(&self, prefixes: &[Protected]) -> Result<(), PlaneError> {
        lock(&self.protection).protect_more(prefixes)
    }

    fn unprotect(&self, prefixes: &[IpNet]) -> Result<(), PlaneError> {
        lock(&self.protection).unprotect(prefixes)
    }

    fn assign_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        let assigned = lock(&self.protection).assign(address);
        local::changed();
        assigned
    }

    fn release_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        let released = lock(&self.protection).release(address);
        local::changed();
        released
    }

    fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        message: &[u8],
    ) -> Result<(), PlaneError> {
        if transport != Transport::Udp {
            return Err(PlaneError::Unsupported(
                "the kernel's data plane has no TCP connections",
            ));
        }
        let sent = self.shared.sockets.send_ike(local, remote, message);
        sent.map_err(|e| failed(&format!("send IKE from {local} to {remote}"), e))?;
        self.shared.control.ike_out.add(1);
        Ok(())
    }

    /// There are no TCP connections.
    fn claim(&self, _: u64, _: SocketAddr, _: SocketAddr, _: TcpEnd) {}

    fn disclaim(&self, _: u64) {}

    fn keepalive(&self, local: SocketAddr, remote: SocketAddr) -> Result<(), PlaneError> {
        let sent = self.shared.sockets.keepalive(local, remote);
        sent.map_err(|e| failed(&format!("send keepalive from {local} to {remote}"), e))?;
        self.shared.control.keepalives_out.add(1);
        Ok(())
    }

    fn queue(&self) -> Arc<Hold> {
        Arc::new(Hold::new(Arc::clone(&self.room)))
    }

    /// IKE is held back. ESP cannot be: the states end, so that what comes now is dropped, and what came before is known.
    fn hold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        self.shared.holds_mut().insert(addresses, hold);
        self.shared.children().hold(addresses);
    }

    fn unhold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        self.shared.holds_mut().remove(addresses, hold);
        self.shared.children().unhold(addresses);
    }

    fn resume(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        {
            let mut children = self.shared.children();
            children.unhold(addresses);
            children.look_at_gates(crate::boot_time());
        }
        let mut holds = self.shared.holds_mut();
        holds.remove(addresses, hold);
        self.feed(hold.take(usize::MAX));
    }

    /// IKE goes through. ESP, which another plane held back, has no way into the kernel.
    fn feed(&self, packets: Vec<Packet>) {
        for packet in packets {
            match packet {
                Packet::Outer(d) if d.kind == DatagramKind::Ike => {
                    ike::deliver(&self.shared, d.local, d.remote, &d.bytes);
                }
                _ => self.lost_in_handover(1),
            }
        }
    }

    fn lost_in_handover(&self, packets: usize) {
        let traffic = &self.shared.traffic;
        traffic.dropped_many(DropReason::HandoverFailed, packets);
    }

    fn source_to(&self, from: Option<IpAddr>, to: IpAddr) -> Option<IpAddr> {
        self.shared.sockets.source_to(from, to).ok()
    }

    fn shutdown(&self) {
        let threads: Vec<_> = lock(&self.threads).drain(..).collect();
        if threads.is_empty() {
            return;
        }
        if let Err(error) = self.shared.stop.stop() {
            tracing::error!(%error, "cannot stop the plane's threads");
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the plane had panicked");
            }
        }
        if let Err(error) = self.shared.children().clear() {
            tracing::error!(%error, "cannot remove states and policies");
        }
        let mut protection = lock(&self.protection);
        let Device { netlink, index } = protection.device();
        if let Err(error) = netlink.remove_device(*index) {
            tracing::error!(%error, "cannot remove the device");
        }
    }
}

impl Drop for Xfrm {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn children(&self) -> MutexGuard<'_, Children> {
        lock(&self.children)
    }

    fn holds(&self) -> RwLockReadGuard<'_, Holds> {
        self.holds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds_mut(&self) -> RwLockWriteGuard<'_, Holds> {
        self.holds.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a Child SA did, as its states say now.
fn stats(children: &mut Children, spi_in: u32) -> Option<ChildStats> {
    let child = children.get(spi_in)?;
    let (id_in, id_out) = (StateId::inbound(&child.sa), StateId::outbound(&child.sa));
    let (in_is_there, out_is_there) = (child.inbound.is_there, child.outbound.is_there);
    let mut ask = |id, is_there: bool| match is_there {
        true => children.kernel.state(id).ok().flatten(),
        false => None,
    };
    let (told_in, told_out) = (ask(id_in, in_is_there), ask(id_out, out_is_there));
    let child = children.get_mut(spi_in)?;
    if let Some(told) = &told_in {
        child.edge = child.edge.max(told.edge);
        monitor::note_inbound(child, told.packets);
    }
    let (received, sent) = (
        child.inbound.carried(told_in.as_ref()),
        child.outbound.carried(told_out.as_ref()),
    );
    note_outbound(child, sent.packets);
    let counted = told_out.as_ref().map_or(u64::MAX, |told| told.packets);
    Some(ChildStats {
        packets_in: received.packets,
        bytes_in: received.bytes,
        packets_out: sent.packets,
        bytes_out: sent.bytes,
        last_inbound: child.last_inbound,
        last_outbound: child.last_outbound,
        next_sequence: child.numbers.next(counted),
        remaining: child.numbers.left(counted),
        replay_edge: child.edge,
        path_mtu: None,
        outbound_active: child.active,
        seen_remote: child.seen,
        drops: Drops::of(&[
            (DropReason::Replay, received.replayed),
            (DropReason::NotAuthentic, received.forged),
        ]),
    })
}

/// Notes when a Child SA has last sent something: as nobody tells, it is when that is first seen.
fn note_outbound(child: &mut Child, packets: u64) {
    if packets > child.sent_then {
        child.sent_then = packets;
        child.last_outbound = Some(SystemTime::now());
    }
}

fn failed(what: &str, source: io::Error) -> PlaneError {
    PlaneError::Io {
        what: what.to_owned(),
        source,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
