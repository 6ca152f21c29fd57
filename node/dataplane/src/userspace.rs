//! The plane in user space: a TUN device, sockets, and threads between them: for each worker one in each direction.

use crate::{
    Capabilities, Capture, ChildSa, ChildStats, DataPlane, DropReason, Encryption, Hold,
    MAX_WORKERS, Outer, Packet, PlaneConfig, PlaneError, PlaneEvent, Protected, Subjects, TcpEnd,
    Totals, Transport,
    counters::{Control, Events, Lanes},
    early::Early,
    hold::{Holds, Inbox, Room},
    inbound::Inbound,
    link::{self, Links},
    local,
    netlink::{Netlink, refused},
    outbound::Outbound,
    passage::{Pass, Passage},
    path::Paths,
    protection::Protection,
    sender::Waiters,
    sockets::{Esp, Sockets},
    stop::Stop,
    tables::Tables,
    tap::{MaybeTapped, Taps},
    tcp::{self, Ends, Tcp},
    tun::Tun,
};
use evergate_esp::ReplayWindow;
use ipnet::IpNet;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc;

static ENCRYPTION: &[Encryption] = &[
    Encryption::AesGcm16 { key_bits: 256 },
    Encryption::AesGcm12 { key_bits: 256 },
    Encryption::AesGcm8 { key_bits: 256 },
    Encryption::AesCcm16 { key_bits: 256 },
    Encryption::AesCcm12 { key_bits: 256 },
    Encryption::AesCcm8 { key_bits: 256 },
    Encryption::ChaCha20Poly1305,
    Encryption::AesGcm16Iiv { key_bits: 256 },
    Encryption::AesCcm8Iiv { key_bits: 256 },
    Encryption::ChaCha20Poly1305Iiv,
    Encryption::AesCtr { key_bits: 256 },
    Encryption::AesCbc { key_bits: 256 },
];

/// The plane in user space: a TUN device and sockets.
///
/// Where a protected prefix contains a peer's outer address, the reverse path filter of the outer interface must not be strict
/// (`rp_filter` 0 or 2): what it looks up bears no mark. Forwarding between the protected network and the device is the operator's.
pub struct Userspace {
    shared: Arc<Shared>,
    protection: Mutex<Protection>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads share.
pub(crate) struct Shared {
    pub(crate) config: PlaneConfig,
    pub(crate) tun: Tun,
    pub(crate) sockets: Sockets,
    pub(crate) tcp: Tcp,
    pub(crate) traffic: Lanes,
    /// How many there are.
    pub(crate) workers: usize,
    pub(crate) control: Control,
    pub(crate) events: Events,
    pub(crate) tables: Tables,
    pub(crate) paths: Paths,
    /// Where plain ESP goes by packet sockets.
    pub(crate) links: Option<Links>,
    /// What came before its Child SA.
    early: Mutex<Early>,
    passage: Passage,
    pub(crate) taps: Arc<Taps>,
    /// Workers that wait to send.
    pub(crate) waiters: Waiters,
    room: Arc<Room>,
    /// What is to go through as if the device had it.
    pub(crate) clear: Inbox,
    /// What is to go through as if the sockets had it.
    pub(crate) outer: Inbox,
    started: Instant,
    /// Readable from the moment that the plane stops.
    stop: Stop,
}

/// What a thread of the plane does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the device to the peers.
    Out,
    /// From the peers to the device.
    In,
    /// The same for those that come by TCP. There is one such thread.
    Tcp,
}

/// The time, read once for a batch.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) instant: Instant,
    /// Since the plane started.
    pub(crate) ms: u64,
    /// Since the Unix epoch.
    pub(crate) unix_ms: u64,
    /// Since the machine started.
    pub(crate) boot: Duration,
}

impl Userspace {
    /// Opens device and sockets and starts the threads, all in the network namespace of the calling thread. Needs `CAP_NET_ADMIN` and
    /// `CAP_NET_RAW` there. Protection that a former process left stays until [`DataPlane::protect`] replaces it.
    ///
    /// # Errors
    /// If a port is taken, the device exists already, or a capability is missing.
    pub fn start(
        config: PlaneConfig,
    ) -> Result<(Arc<Self>, mpsc::Receiver<PlaneEvent>), PlaneError> {
        let mut netlink = Netlink::open(&config)?;
        netlink.add_rules()?;
        let workers = config.workers.clamp(1, MAX_WORKERS);
        let links = Links::open(&config)?;
        let devices = links.as_ref().map_or(&[][..], Links::devices);
        let sockets = Sockets::open(&config, Esp::Ours, devices, workers)?;
        let tcp = Tcp::open(&config)?;
        let tun = Tun::create(&config.tun_name, workers)?;
        let device = netlink.bring_up(&config.tun_name, config.tun_mtu)?;
        let protection = Protection::new(netlink, device, config.route_metric)?;
        let stop = Stop::new().map_err(|e| failed("make an eventfd", e))?;
        let (sender, receiver) = mpsc::channel(config.event_queue.max(1));
        let traffic = Lanes::new(2 * workers + 1);
        let room = Room::new(Arc::clone(traffic.others()));
        let shared = Arc::new(Shared {
            config,
            tun,
            sockets,
            tcp,
            traffic,
            workers,
            control: Control::default(),
            events: Events(sender),
            tables: Tables::default(),
            paths: Paths::default(),
            links,
            early: Mutex::default(),
            passage: Passage::new(2 * workers + 1),
            taps: Arc::default(),
            waiters: Waiters::default(),
            clear: Inbox::new(Arc::clone(&room))?,
            outer: Inbox::new(Arc::clone(&room))?,
            room,
            started: Instant::now(),
            stop,
        });
        let plane = Arc::new(Self {
            protection: Mutex::new(protection),
            threads: Mutex::default(),
            shared,
        });
        let tcp = tcp::Runner::new(Arc::clone(&plane.shared));
        let tcp = tcp.map_err(|e| failed("wait for TCP connections", e))?;
        plane.spawn(Direction::Tcp, 0, move || tcp.run())?;
        if plane.shared.links.is_some() {
            let watch = link::Watch::open(Arc::clone(&plane.shared));
            let watch = watch.map_err(|e| refused("listen to changes of the network", e))?;
            plane.spawn_named("evergate-link", move || watch.run())?;
        }
        for worker in 0..workers {
            let outbound = Outbound::new(Arc::clone(&plane.shared), worker);
            plane.spawn(Direction::Out, worker, move || outbound.run())?;
            let inbound = Inbound::new(Arc::clone(&plane.shared), worker);
            plane.spawn(Direction::In, worker, move || inbound.run())?;
        }
        Ok((plane, receiver))
    }

    fn spawn(
        &self,
        direction: Direction,
        worker: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), PlaneError> {
        let lane = self.shared.lane(direction, worker);
        let name = match direction {
            Direction::Out => format!("evergate-out{worker}"),
            Direction::In => format!("evergate-in{worker}"),
            Direction::Tcp => "evergate-tcp".to_owned(),
        };
        self.spawn_named(&name, move || {
            Lanes::choose(lane);
            work();
        })
    }

    fn spawn_named(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), PlaneError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
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

impl DataPlane for Userspace {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "userspace",
            encryption: ENCRYPTION,
            esn: true,
            max_replay_window: u32::try_from(ReplayWindow::MAX_SIZE).unwrap_or(u32::MAX),
            udp_encapsulation: true,
            plain_esp: true,
            transport_mode: true,
            tcp: true,
            marks: false,
            offload: false,
        }
    }

    fn install(&self, child: ChildSa) -> Result<(), PlaneError> {
        child.marks.within(None)?;
        child.offload.within(false)?;
        self.shared.tables.install(&child, Instant::now())?;
        // What comes from now on finds it; what came before waits here.
        let waited = self.shared.early().take(child.spi_in);
        self.feed(waited.into_iter().map(Packet::Outer).collect());
        if let Some(source) = child.source_hint {
            Self::follow_hint(lock(&self.protection).add_hint(&child.remote_ts, source));
        }
        Ok(())
    }

    fn expect(&self, spi_in: u32) {
        self.shared.early().expect(spi_in, Instant::now());
    }

    fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        self.shared.tables.set_outbound(spi_in, active)
    }

    fn move_child(&self, spi_in: u32, outer: Outer) -> Result<(), PlaneError> {
        self.shared.tables.staying(spi_in)?.move_to(outer);
        Ok(())
    }

    fn remove(&self, spi_in: u32, grace: Duration) -> Result<(), PlaneError> {
        let now = Instant::now();
        let until = now.checked_add(grace).unwrap_or(now);
        let removed = self.shared.tables.remove(spi_in, until)?;
        self.shared.tables.sweep(now);
        if let Some(child) = removed
            && let Some(source) = child.source_hint
        {
            let remote = &child.inbound.selectors().remote;
            Self::follow_hint(lock(&self.protection).remove_hint(remote, source));
        }
        Ok(())
    }

    fn extend(&self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError> {
        self.shared.tables.staying(spi_in)?.extend(range)
    }

    fn stats(&self, spi_in: u32) -> Option<ChildStats> {
        let child = self.shared.tables.inbound(spi_in)?;
        Some(child.stats(self.shared.tables.is_sending(spi_in)))
    }

    fn replay_edges(&self) -> Vec<(u32, u64)> {
        self.shared.tables.replay_edges()
    }

    fn totals(&self) -> Totals {
        let control = &self.shared.control;
        Totals {
            ike_in: control.ike_in.get(),
            ike_out: control.ike_out.get(),
            keepalives_in: control.keepalives_in.get(),
            keepalives_out: control.keepalives_out.get(),
            tcp_connections: self.shared.tcp.count(),
            ..self.shared.traffic.sum()
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
        let shared = &self.shared;
        let sent = match transport {
            Transport::Udp => shared.sockets.send_ike(local, remote, message),
            Transport::Tcp(end) => shared.tcp.send_ike(Ends { local, remote }, end, message),
        };
        sent.map_err(|e| failed(&format!("send IKE from {local} to {remote}"), e))?;
        shared.control.ike_out.add(1);
        let nat_port = shared.config.nat_port;
        let tapped = shared.taps.now();
        tapped.ike(true, (local, remote), nat_port, transport, message);
        Ok(())
    }

    fn claim(&self, owner: u64, local: SocketAddr, remote: SocketAddr, end: TcpEnd) {
        self.shared.tcp.claim(owner, Ends { local, remote }, end);
    }

    fn disclaim(&self, owner: u64) {
        self.shared.tcp.disclaim(owner);
    }

    fn keepalive(&self, local: SocketAddr, remote: SocketAddr) -> Result<(), PlaneError> {
        let sent = self.shared.sockets.keepalive(local, remote);
        sent.map_err(|e| failed(&format!("send keepalive from {local} to {remote}"), e))?;
        self.shared.control.keepalives_out.add(1);
        Ok(())
    }

    fn queue(&self) -> Arc<Hold> {
        Arc::new(Hold::new(Arc::clone(&self.shared.room)))
    }

    fn hold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let insert = |holds: &mut Holds| holds.insert(addresses, hold);
        self.shared.passage.change(insert, || {});
        self.shared.tcp.farewell(addresses);
    }

    fn unhold(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let remove = |holds: &mut Holds| holds.remove(addresses, hold);
        self.shared.passage.change(remove, || {});
    }

    fn resume(&self, addresses: &[IpAddr], hold: &Arc<Hold>) {
        let remove = |holds: &mut Holds| holds.remove(addresses, hold);
        // The threads look there first, once they go on.
        let feed = || self.feed(hold.take(usize::MAX));
        self.shared.passage.change(remove, feed);
    }

    fn feed(&self, packets: Vec<Packet>) {
        for packet in packets {
            let inbox = match packet {
                Packet::Clear(_) => &self.shared.clear,
                Packet::Outer(_) => &self.shared.outer,
            };
            inbox.push(packet);
        }
    }

    fn lost_in_handover(&self, packets: usize) {
        for _ in 0..packets {
            self.shared.traffic.dropped(DropReason::HandoverFailed);
        }
    }

    fn source_to(&self, from: Option<IpAddr>, to: IpAddr) -> Option<IpAddr> {
        self.shared.sockets.source_to(from, to).ok()
    }

    fn capture(&self, subjects: Subjects, snaplen: usize) -> Result<Capture, PlaneError> {
        self.shared.taps.begin(subjects, snaplen)
    }

    fn shutdown(&self) {
        if let Err(error) = self.shared.stop.stop() {
            tracing::error!(%error, "cannot stop the plane's threads");
            return;
        }
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the plane had panicked");
            }
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    pub(crate) fn early(&self) -> MutexGuard<'_, Early> {
        lock(&self.early)
    }

    /// Held during a batch of packets.
    pub(crate) fn enter(&self, direction: Direction, worker: usize) -> Pass<'_> {
        self.passage.enter(self.lane(direction, worker))
    }

    fn lane(&self, direction: Direction, worker: usize) -> usize {
        match direction {
            Direction::Out => worker,
            Direction::In => self.workers + worker,
            Direction::Tcp => 2 * self.workers,
        }
    }

    /// Readable from the moment that the plane stops.
    pub(crate) fn stopped(&self) -> &Stop {
        &self.stop
    }

    pub(crate) fn clock(&self) -> Clock {
        let instant = Instant::now();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Clock {
            instant,
            ms: ms(instant.saturating_duration_since(self.started)),
            unix_ms: unix.map_or(0, ms),
            boot: crate::boot_time(),
        }
    }

    /// Waits until one of at most 63 descriptors has something to read; which of them, as bits. `None` once the plane stops.
    /// Somebody on the way has said something of plain ESP: perhaps that a packet was too large. Who sends by packet sockets is not told when they send.
    pub(crate) fn narrower(&self, clock: &Clock) {
        if self
            .links
            .as_ref()
            .is_some_and(|l| l.may_look_again(clock.ms))
        {
            self.paths.forget_all();
        }
    }

    pub(crate) fn wait(&self, fds: &[&dyn AsFd], timeout: Option<Duration>) -> Option<u64> {
        self.stop.wait(fds, timeout)
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
