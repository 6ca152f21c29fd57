//! Whole members in one process: their workers, dispatchers and logs are real, wires and data planes are not.

use crate::{
    clock::Clock,
    cluster::Membership,
    config::{Limits, parse},
    gateway::{self, GATEWAY},
    node::{Node, Ports, Setup},
    shared::Shared,
};
use evergate_cluster::{
    ClusterKey, Config, Replica,
    lease::Timing,
    raft::RaftConfig,
    store::{Disk, Storage},
};
use evergate_dataplane::{
    Capabilities, ChildSa, ChildStats, DataPlane, Gate, Hold, Outer, Packet, PlaneError,
    PlaneEvent, Protected, Totals,
};
use evergate_ike::record::{Record, SaId};
use evergate_state::Command;
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) const A: &str = "192.0.2.1";
pub(super) const B: &str = "192.0.2.2";

type Check = Box<dyn Fn(&[u8]) + Send + Sync>;

/// A wire between members. Nothing is lost on it.
#[derive(Default)]
pub(super) struct Net {
    ends: Mutex<HashMap<IpAddr, mpsc::Sender<PlaneEvent>>>,
    /// Everything that was sent: from, to, what.
    pub(super) sent: Mutex<Vec<Message>>,
    /// Looks at what a member sends, at the moment when it leaves.
    checks: Mutex<HashMap<IpAddr, Check>>,
    /// Whose next message arrives after the one behind it, and that message.
    swaps: Mutex<HashMap<IpAddr, Option<Message>>>,
}

/// From, to, what.
type Message = (SocketAddr, SocketAddr, Vec<u8>);

impl Net {
    pub(super) fn check(&self, from: &str, check: impl Fn(&[u8]) + Send + Sync + 'static) {
        self.checks
            .lock()
            .unwrap()
            .insert(from.parse().unwrap(), Box::new(check));
    }

    pub(super) fn sent_by(&self, from: &str) -> Vec<Vec<u8>> {
        let from: IpAddr = from.parse().unwrap();
        self.sent
            .lock()
            .unwrap()
            .iter()
            .filter(|(f, ..)| f.ip() == from)
            .map(|(_, _, m)| m.clone())
            .collect()
    }

    /// Puts a message on the wire.
    pub(super) fn send(&self, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
        if let Some(check) = self.checks.lock().unwrap().get(&local.ip()) {
            check(message);
        }
        self.sent
            .lock()
            .unwrap()
            .push((local, remote, message.to_vec()));
        let mut swaps = self.swaps.lock().unwrap();
        let first = match swaps.get_mut(&local.ip()) {
            Some(swap @ None) => {
                *swap = Some((local, remote, message.to_vec()));
                return;
            }
            Some(_) => swaps.remove(&local.ip()).flatten(),
            None => None,
        };
        self.deliver(local, remote, message);
        if let Some((local, remote, message)) = first {
            self.deliver(local, remote, &message);
        }
    }

    /// The next message of this member is overtaken by the one behind it.
    pub(super) fn swap_next(&self, from: &str) {
        let mut swaps = self.swaps.lock().unwrap();
        swaps.insert(from.parse().unwrap(), None);
    }

    fn deliver(&self, local: SocketAddr, remote: SocketAddr, message: &[u8]) {
        if let Some(end) = self.ends.lock().unwrap().get(&remote.ip()) {
            let _ = end.try_send(PlaneEvent::Ike {
                local: remote,
                remote: local,
                transport: evergate_dataplane::Transport::Udp,
                bytes: message.to_vec(),
            });
        }
    }
}

/// A data plane that only remembers.
#[derive(Default)]
pub(super) struct Plane {
    net: Arc<Net>,
    pub(super) children: Mutex<BTreeMap<u32, ChildSa>>,
    /// The virtual addresses that are ours.
    pub(super) addresses: Mutex<BTreeSet<IpAddr>>,
    /// Every reservation that a Child SA was ever installed or extended with.
    pub(super) reservations: Mutex<Vec<(u32, Range<u64>)>>,
}

impl DataPlane for Plane {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "none",
            encryption: &[],
            esn: true,
            max_replay_window: 4096,
            udp_encapsulation: true,
            plain_esp: true,
            transport_mode: true,
            tcp: true,
            marks: false,
            offload: false,
        }
    }
    fn install(&self, child: ChildSa) -> Result<(), PlaneError> {
        self.reservations
            .lock()
            .unwrap()
            .push((child.spi_in, child.reservation.clone()));
        match self.children.lock().unwrap().insert(child.spi_in, child) {
            None => Ok(()),
            Some(before) => Err(PlaneError::SpiInUse(before.spi_in)),
        }
    }
    fn set_outbound(&self, spi_in: u32, active: bool) -> Result<(), PlaneError> {
        let mut children = self.children.lock().unwrap();
        children
            .get_mut(&spi_in)
            .ok_or(PlaneError::NoSuchChild(spi_in))?
            .outbound_active = active;
        Ok(())
    }
    fn move_child(&self, spi_in: u32, outer: Outer) -> Result<(), PlaneError> {
        let mut children = self.children.lock().unwrap();
        children
            .get_mut(&spi_in)
            .ok_or(PlaneError::NoSuchChild(spi_in))?
            .outer = outer;
        Ok(())
    }
    fn remove(&self, spi_in: u32, _: Duration) -> Result<(), PlaneError> {
        let removed = self.children.lock().unwrap().remove(&spi_in);
        removed.map(drop).ok_or(PlaneError::NoSuchChild(spi_in))
    }
    fn extend(&self, spi_in: u32, range: Range<u64>) -> Result<(), PlaneError> {
        self.reservations.lock().unwrap().push((spi_in, range));
        Ok(())
    }
    fn replay_edges(&self) -> Vec<(u32, u64)> {
        Vec::new()
    }
    fn stats(&self, spi_in: u32) -> Option<ChildStats> {
        self.children
            .lock()
            .unwrap()
            .get(&spi_in)
            .map(|_| ChildStats::default())
    }
    fn totals(&self) -> Totals {
        Totals::default()
    }
    fn protect(&self, _: Vec<Protected>) -> Result<(), PlaneError> {
        Ok(())
    }
    fn protect_more(&self, _: &[Protected]) -> Result<(), PlaneError> {
        Ok(())
    }
    fn unprotect(&self, _: &[IpNet]) -> Result<(), PlaneError> {
        Ok(())
    }
    fn assign_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        self.addresses.lock().unwrap().insert(address);
        Ok(())
    }
    fn release_address(&self, address: IpAddr) -> Result<(), PlaneError> {
        self.addresses.lock().unwrap().remove(&address);
        Ok(())
    }
    fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        _: evergate_dataplane::Transport,
        message: &[u8],
    ) -> Result<(), PlaneError> {
        self.net.send(local, remote, message);
        Ok(())
    }
    fn keepalive(&self, _: SocketAddr, _: SocketAddr) -> Result<(), PlaneError> {
        Ok(())
    }
    fn claim(&self, _: u64, _: SocketAddr, _: SocketAddr, _: evergate_dataplane::TcpEnd) {}
    fn disclaim(&self, _: u64) {}
    fn queue(&self) -> Arc<Hold> {
        Arc::default()
    }
    fn hold(&self, _: &[IpAddr], _: &Arc<Hold>) {}
    fn unhold(&self, _: &[IpAddr], _: &Arc<Hold>) {}
    fn resume(&self, _: &[IpAddr], _: &Arc<Hold>) {}
    fn feed(&self, _: Vec<Packet>) {}
    fn lost_in_handover(&self, _: usize) {}
    fn source_to(&self, from: Option<IpAddr>, _: IpAddr) -> Option<IpAddr> {
        from
    }
    fn shutdown(&self) {}
}

/// A member.
pub(super) struct Host {
    pub(super) shared: Arc<Shared>,
    pub(super) plane: Arc<Plane>,
    pub(super) disk: Disk,
    address: &'static str,
    text: String,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Host {
    /// Starts a member with a configuration, on an empty disk.
    pub(super) async fn start(net: &Arc<Net>, address: &'static str, text: &str) -> Self {
        Self::on(net, address, text, Disk::new()).await
    }

    async fn on(net: &Arc<Net>, address: &'static str, text: &str, disk: Disk) -> Self {
        let clock = Arc::new(Clock::new());
        let of_replica = Arc::clone(&clock);
        let config = Config::new(ClusterKey::from_bytes([7; 32]), move || of_replica.now());
        let raft = RaftConfig::single(config, Storage::Memory(disk.clone()), "m");
        let replica = Replica::join(raft).await.unwrap();
        let me = gateway::take_all(&replica, "m").await.unwrap();
        let epoch = replica.read(|s| s.epoch_of(GATEWAY, &me)).unwrap();
        let membership = Arc::new(Membership::new(&replica, me, Timing::ALONE));
        let config = parse(text, std::path::Path::new(".")).unwrap();
        let version = replica.read(evergate_state::State::policy_version);
        let set = Command::SetPolicy {
            expected: version,
            policy: Arc::new(config.policy),
        };
        gateway::commit(&replica, set).await.unwrap();
        let plane = Arc::new(Plane {
            net: Arc::clone(net),
            ..Plane::default()
        });
        let (sender, events) = mpsc::channel(1024);
        net.ends
            .lock()
            .unwrap()
            .insert(address.parse().unwrap(), sender);
        let node = Node::new(Setup {
            member: "m".into(),
            replica,
            plane: Arc::clone(&plane) as Arc<dyn DataPlane>,
            cookies: gateway::fresh_cookies(None),
            clock,
            ports: Ports {
                ike: 500,
                nat: 4500,
            },
            addresses: vec![address.parse().unwrap()],
            limits: config.limits,
            workers: 3,
            membership,
            state_dir: std::env::temp_dir(),
        });
        let shared = Shared::new(&node, GATEWAY, epoch, Gate::default());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        gateway::prepare(&shared).run(&stop, &tasks);
        gateway::serve_process(&node, events, &stop, &stop, &tasks);
        Self {
            shared,
            plane,
            disk,
            address,
            text: text.to_owned(),
            stop,
            tasks,
        }
    }

    /// Kills the member.
    pub(super) async fn kill(&self, net: &Net) {
        // From here on the old process cannot commit, and what it sends nobody gets: that is what being dead means.
        net.ends
            .lock()
            .unwrap()
            .remove(&self.address.parse().unwrap());
        self.shared.passive.cancel();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Kills the member and starts it again: only what is on its disk remains.
    pub(super) async fn killed_and_started(self, net: &Arc<Net>) -> Self {
        self.kill(net).await;
        Self::on(net, self.address, &self.text, self.disk).await
    }

    /// The records of established SAs.
    pub(super) fn established(&self) -> Vec<Arc<Record>> {
        let usable = |r: &&Arc<Record>| matches!(&r.phase, evergate_ike::record::Phase::Established(e) if e.replaced_by.is_none());
        self.shared
            .read(|s| s.sas().filter(usable).cloned().collect())
    }

    /// The only established SA, and its only child's SPI.
    pub(super) fn only(&self) -> (SaId, u32) {
        let all = self.established();
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(all[0].children().len(), 1, "{all:?}");
        (all[0].id, all[0].children()[0].spi_in)
    }

    /// SPIs in and out of the Child SAs that are installed and send.
    pub(super) fn sending(&self) -> Vec<(u32, u32)> {
        let children = self.plane.children.lock().unwrap();
        children
            .values()
            .filter(|c| c.outbound_active)
            .map(|c| (c.spi_in, c.spi_out))
            .collect()
    }
}

/// A configuration of one end: who it is, and who the other is.
pub(super) fn config(local: &str, remote: &str, more: &str) -> String {
    let (id, peer) = if local == A {
        ("a.test", "b.test")
    } else {
        ("b.test", "a.test")
    };
    format!(
        "[connections.c]\nlocal_addrs = ['{local}']\nremote_addrs = ['{remote}']\nproposals = ['aes256gcm16-prfsha256-x25519']\n\
         local.id = '{id}'\nremote.id = '{peer}'\n{more}\n\
         [connections.c.children.x]\nlocal_ts = ['{local}']\nremote_ts = ['{remote}']\n\
         [secrets.s]\nids = ['a.test', 'b.test']\nsecret = 'secret'\n"
    )
}

/// Limits of half-open SAs.
pub(super) fn limits(cookie_threshold: usize, block_threshold: usize) -> String {
    let all = Limits::default().half_open;
    format!(
        "[limits]\ncookie_threshold = {cookie_threshold}\ncookie_threshold_ip = 0\nblock_threshold = {block_threshold}\nhalf_open = {all}\n"
    )
}

/// Waits until something holds.
#[track_caller]
pub(super) fn until(
    what: &'static str,
    mut holds: impl FnMut() -> bool,
) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "{caller}: not within 20 s: {what}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
