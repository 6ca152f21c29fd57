//! What all parts of a process share that serve one virtual gateway.

use crate::{counters::IkeDrop, node::Node, transport, wishes::Wishes, worker::Message};
use evergate_cluster::Plant;
use evergate_dataplane::{Gate, PlaneError, boot_time};
use evergate_ike::{
    config::Policy,
    record::{GatewayId, SaId, Transport},
    sa::{self, IvCounter},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Instant,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// What all parts share that serve one virtual gateway in one epoch.
pub(crate) struct Shared {
    node: Arc<Node>,
    /// The virtual gateway.
    pub(crate) gateway: GatewayId,
    /// The epoch under which this process serves it.
    pub(crate) epoch: u32,
    /// The IVs of that epoch.
    pub(crate) ivs: IvCounter,
    /// Nothing is sent while it is closed.
    pub(crate) gate: Arc<Gate>,
    /// The queues of the workers, once they run.
    pub(crate) workers: OnceLock<Vec<mpsc::Sender<Message>>>,
    /// News of Child SAs that may be wanted up.
    pub(crate) wishes: Wishes,
    /// Another process has the gateway, or the log failed: nothing may be sent any more.
    pub(crate) passive: CancellationToken,
}

impl Deref for Shared {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Shared {
    /// What serves a gateway in an epoch of this process, before any part of it runs.
    pub(crate) fn new(node: &Arc<Node>, gateway: GatewayId, epoch: u32, gate: Gate) -> Arc<Self> {
        let of_ivs = if Plant::Iv.is_there() { 1 } else { epoch };
        Arc::new(Self {
            gateway,
            epoch,
            ivs: IvCounter::new(of_ivs),
            gate: Arc::new(gate),
            workers: OnceLock::new(),
            wishes: Wishes::default(),
            passive: node.failed.child_token(),
            node: Arc::clone(node),
        })
    }

    /// Our outer addresses: those of the virtual gateway, or, where none is configured, those of this host.
    pub(crate) fn outer_addresses(&self, policy: &Policy) -> Vec<IpAddr> {
        match policy.gateways.iter().find(|g| g.id == self.gateway) {
            Some(config) => config.outer.iter().map(ipnet::IpNet::addr).collect(),
            None => self.addresses.load().to_vec(),
        }
    }

    /// The process that it is part of.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Whether anything may be sent: the gateway is this process's, and its lease runs.
    pub(crate) fn may_send(&self) -> bool {
        !self.passive.is_cancelled() && self.gate.is_open(boot_time())
    }

    /// Sends an IKE message, if anything may be sent.
    ///
    /// # Errors
    /// What the plane says, or that there is no lease.
    pub(crate) fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        message: &[u8],
    ) -> Result<(), PlaneError> {
        if !self.may_send() {
            self.drops.count(IkeDrop::NoLease);
            return Err(PlaneError::Io {
                what: format!("send IKE from {local} to {remote}"),
                source: io::Error::new(io::ErrorKind::PermissionDenied, "there is no lease"),
            });
        }
        let by = transport::of_plane(transport);
        self.plane.send_ike(local, remote, by, message)
    }

    /// Sends a NAT keepalive, if anything may be sent.
    ///
    /// # Errors
    /// What the plane says.
    pub(crate) fn keepalive(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), PlaneError> {
        if !self.may_send() {
            return Ok(());
        }
        self.plane.keepalive(local, remote)
    }

    /// Tells the sender of a request that belongs to no SA (RFC 7296 §2.21.4), a few times a second. Only a process that holds the gateway's epoch
    /// may say so, and this one has had all SAs of the gateway since it took it.
    pub(crate) fn answer_stray(
        &self,
        bytes: &[u8],
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
    ) {
        if !self.may_send() || self.stray_answers.pass(Instant::now()).is_none() {
            return;
        }
        if let Some(answer) = sa::answer_stray(bytes) {
            let _ = self.send_ike(local, remote, transport, &answer);
        }
    }

    /// The worker that serves an SA; `None` before there are workers.
    pub(crate) fn worker(&self, sa: SaId) -> Option<&mpsc::Sender<Message>> {
        self.workers
            .get()?
            .get(crate::worker::worker_of(sa, self.worker_count))
    }

    /// A message that no worker takes any more: if the gateway is being handed over, its successor gets it.
    pub(crate) fn pass_on(&self, message: Message) {
        if let Message::Datagram {
            bytes,
            local,
            remote,
            transport,
            ..
        }
        | Message::Init {
            bytes,
            local,
            remote,
            transport,
            ..
        } = message
        {
            let by = transport::of_plane(transport);
            let left = self
                .handovers
                .hold_back(self.gateway, local, remote, by, bytes);
            if left.is_some() {
                let why = "its worker has ended";
                self.dropped(IkeDrop::NotServed, local, remote, &why);
            }
        }
    }

    /// Stops serving the gateway, for good: somebody else may have it.
    pub(crate) fn go_passive(&self, why: &dyn std::fmt::Display) {
        if !self.passive.is_cancelled() {
            error!(
                event = "passive",
                gateway = self.gateway.0,
                epoch = self.epoch,
                "no longer serving: {why}"
            );
            self.stop_sending();
        }
    }

    /// Sends nothing more under this epoch, and ends.
    pub(crate) fn stop_sending(&self) {
        self.gate.shut();
        self.passive.cancel();
    }
}
