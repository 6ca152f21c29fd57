//! What happens once a change is committed.

use super::{Message, Worker};
use crate::{children, clock::millis, counters::IkeDrop, drills, shared::Shared};
use evergate_dataplane::PlaneError;
use evergate_ike::{
    env::UnixMillis,
    record::{Phase, Record, SaId, Transport},
    sa::{Command, Effect, Event},
    wire::Header,
};
use evergate_state::State;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tracing::{debug, error};

/// How long the answer to a Delete waits where we have just sent on the Child SA that goes. In a peer, ESP and IKE go different ways, and with our answer it drops
/// what still waits for that SA: the last packets before another SA took over. Far less than a peer waits for an answer (RFC 7296 §2.1).
const SETTLES: Duration = Duration::from_millis(200);

/// Whether an IKE SA besides this one has a virtual address from the same or another peer.
fn has_another(state: &State, id: SaId, address: IpAddr) -> bool {
    state.sas().any(|record| match &record.phase {
        Phase::Established(e) => record.id != id && e.our_vips.contains(&address),
        _ => false,
    })
}

impl Shared {
    /// When the data plane last received an authentic packet of this SA's peer.
    pub(super) fn last_inbound(&self, record: &Record) -> Option<UnixMillis> {
        let times = record
            .children()
            .iter()
            .filter_map(|c| self.plane.stats(c.spi_in)?.last_inbound);
        times.max().map(millis)
    }

    /// Whether what was sent on a Child SA may not have reached the peer yet.
    fn is_settling(&self, spi_in: u32) -> bool {
        let sent = self.plane.stats(spi_in).and_then(|s| s.last_outbound);
        let ago = sent.and_then(|at| SystemTime::now().duration_since(at).ok());
        ago.is_some_and(|ago| ago < SETTLES)
    }

    /// Whether a response may still be asked for. It may not once Message IDs were synchronised (RFC 6311 §5.1): then the peer has begun its request again.
    pub(super) fn still_answers(&self, id: SaId, response: &[u8]) -> bool {
        let Ok(header) = Header::parse(response) else {
            return false;
        };
        self.read(|state| {
            let record = state.sa(id);
            let known = record.and_then(|r| r.inbound.response(header.message_id));
            known.is_some_and(|all| all.iter().any(|one| one[..] == *response))
        })
    }

    /// Sends an IKE message. One that the kernel does not take is repeated by whoever waits for it.
    fn send_message(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        datagram: &[u8],
    ) {
        if let Err(e) = self.send_ike(local, remote, transport, datagram) {
            self.dropped(IkeDrop::SendFailed, local, remote, &e);
            return;
        }
        if let Ok(header) = Header::parse(datagram) {
            let point = match header.is_response {
                false => "request-sent",
                true => "response-sent",
            };
            drills::pass(point, Some(header.exchange));
        }
    }
}

impl Worker {
    /// Carries out effects, in their order.
    pub(super) fn perform(&mut self, id: SaId, effects: Vec<Effect>) {
        let mut settling = false;
        for effect in effects {
            match effect {
                Effect::RemoveChild { spi_in, .. } => {
                    settling |= self.shared.is_settling(spi_in);
                    self.effect(id, effect);
                }
                Effect::Send {
                    datagram,
                    local,
                    remote,
                    transport,
                } if settling && Header::parse(&datagram).is_ok_and(|h| h.is_response) => {
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(async move {
                        tokio::time::sleep(SETTLES).await;
                        if shared.still_answers(id, &datagram) {
                            shared.send_message(local, remote, transport, &datagram);
                        }
                    });
                }
                other => self.effect(id, other),
            }
        }
    }

    fn effect(&mut self, id: SaId, effect: Effect) {
        match effect {
            Effect::Send {
                datagram,
                local,
                remote,
                transport,
            } => self.send(local, remote, transport, &datagram),
            Effect::Keepalive { local, remote } => {
                if let Err(e) = self.shared.keepalive(local, remote) {
                    debug!(event = "send-failed", sa = %id, peer = %remote, "cannot send a keepalive: {e}");
                }
            }
            Effect::InstallChild {
                ike,
                child,
                path,
                connection,
                ..
            } => {
                let done = children::install(&self.shared, &child, &path, &connection);
                self.plane_said(ike, "install", child.spi_in, done);
            }
            Effect::RemoveChild { spi_in, grace } => {
                let done = children::remove(&self.shared, spi_in, grace);
                self.plane_said(id, "remove", spi_in, done);
            }
            Effect::MoveChildren { spis_in, path } => {
                for spi_in in spis_in {
                    let done = self.shared.plane.move_child(spi_in, children::outer(&path));
                    self.plane_said(id, "move", spi_in, done);
                }
            }
            Effect::AssignAddresses { addresses, .. } => self.assign(id, &addresses),
            Effect::ReleaseAddresses { addresses } => {
                for address in addresses {
                    // Another IKE SA has it too when we have authenticated again.
                    if self.shared.read(|state| has_another(state, id, address)) {
                        continue;
                    }
                    if let Err(e) = self.shared.plane.release_address(address) {
                        error!(event = "address-failed", sa = %id, %address, "cannot give a virtual address up: {e}");
                    }
                }
            }
            Effect::Ask(question) => self.ask(id, question),
            Effect::Tell { sa, command } => self.tell(sa, command),
            Effect::FindWays => self.roam(id),
            Effect::Forget => self.forget(id),
            Effect::Report(event) => self.happened(id, &event),
        }
    }

    /// Sends an IKE message.
    pub(super) fn send(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
        datagram: &[u8],
    ) {
        self.shared.send_message(local, remote, transport, datagram);
    }

    fn plane_said(&self, id: SaId, what: &'static str, spi_in: u32, done: Result<(), PlaneError>) {
        match done {
            // What is gone needs no removing.
            Err(PlaneError::NoSuchChild(_)) if what == "remove" => {}
            Err(e) => {
                let spi_in = format_args!("{spi_in:08x}");
                error!(event = "plane-refused", sa = %id, spi_in, what, "the data plane refused a Child SA: {e}");
            }
            Ok(()) => {}
        }
    }

    /// Drops an SA for good.
    fn forget(&mut self, id: SaId) {
        self.forgotten.push(id);
        self.remove(id);
    }

    /// Something happened: a line in the log, and notice to who waits for it.
    fn happened(&mut self, id: SaId, event: &Event) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let record = slot.sa.record();
        super::report::report(&self.shared, record, event);
        self.shared.hooks.happened(&self.shared, record, event);
        slot.tell(Some(event));
        if let Event::ChildClosed { name, reason, .. } = event {
            let connection = slot.sa.record().connection.clone();
            self.shared
                .wishes
                .ended((connection, name.clone()), *reason);
        }
        if let Event::IkeRekeyed { by } | Event::OverTcp { by } = event {
            let watchers = slot.take_watchers();
            if let Some(successor) = self.slots.get_mut(by) {
                for watcher in watchers {
                    successor.watch(watcher);
                }
            }
        }
    }

    /// Gives another IKE SA a command.
    fn tell(&self, sa: SaId, command: Command) {
        let Some(worker) = self.shared.worker(sa).cloned() else {
            return;
        };
        let message = Message::Command {
            sa,
            command,
            watcher: None,
            reply: None,
        };
        tokio::spawn(async move { worker.send(message).await });
    }

    fn assign(&self, id: SaId, addresses: &[IpAddr]) {
        for address in addresses {
            if let Err(e) = self.shared.plane.assign_address(*address) {
                error!(event = "address-failed", sa = %id, %address, "cannot take a virtual address: {e}");
            }
        }
    }

    /// What an SA that this process has taken over has in the data plane: our virtual addresses, then its Child SAs.
    pub(super) fn install_all(&self, record: &Record) {
        if let Phase::Established(e) = &record.phase {
            self.assign(record.id, &e.our_vips);
        }
        record
            .offered_children()
            .for_each(|spi| self.shared.plane.expect(spi));
        let path = record.children_path();
        for child in record.children() {
            let done = children::install(&self.shared, child, &path, &record.connection);
            self.plane_said(record.id, "install", child.spi_in, done);
        }
    }

    /// Writes the keys of an SA to the key log of the drills, once.
    #[cfg(feature = "drills")]
    pub(super) fn log_keys(&mut self, id: SaId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.keys_logged = slot.keys_logged || crate::keylog::ike(slot.sa.record());
        }
    }

    /// There is no key log.
    #[cfg(not(feature = "drills"))]
    #[expect(clippy::unused_self, reason = "the drills' one needs it")]
    pub(super) fn log_keys(&mut self, _id: SaId) {}
}
