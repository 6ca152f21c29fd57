//! TCP encapsulation (RFC 9329), as far as the state machine is concerned: which transport an SA uses, and which connection.
//!
//! A connection is no part of the record. It dies with the member that has it, and so does nothing else: its originator makes another, to the same
//! address, and says something there; the first authentic message makes that one the path.

use super::{Effect, Event, Failure, init_client::first_record, turn::Turn};
use crate::{
    config::{Connection, EnableTcp},
    env::Entropy,
    record::{CloseReason, Phase, TcpEnd, Transport},
};
use std::net::{IpAddr, SocketAddr};

/// The first port that clients use (RFC 6335 §6), and how many there are.
const FIRST_PORT: u16 = 49_152;
const PORTS: u16 = 16_384;

/// The ends of a connection of our own. Its port names it, since each IKE SA has one for itself (RFC 9329 §6.1).
pub(super) fn ends(
    config: &Connection,
    local: IpAddr,
    remote: IpAddr,
    rng: &mut dyn Entropy,
) -> (SocketAddr, SocketAddr) {
    let mut random = [0; 2];
    rng.fill(&mut random);
    let port = FIRST_PORT + u16::from_be_bytes(random) % PORTS;
    (
        SocketAddr::new(local, port),
        SocketAddr::new(remote, config.tcp_remote_port),
    )
}

impl Turn<'_, '_> {
    /// The peer was silent at all its addresses: they are tried once more by TCP, if the connection is for that. It is another IKE SA, since the first
    /// message and with it our SPI must be another (RFC 9329 §5.1).
    pub(super) fn fall_back_to_tcp(&mut self, failed: Failure) -> Result<(), Failure> {
        let policy = self.env.policy;
        let config = policy.connection(&self.record.connection);
        let (Some(config), Phase::InitSent(init)) = (config, &self.record.phase) else {
            return Err(failed);
        };
        let path = self.record.path;
        if failed != Failure::Silent
            || config.enable_tcp != EnableTcp::Fallback
            || path.transport.is_tcp()
        {
            return Err(failed);
        }
        let last = (path.local.ip(), path.remote.ip());
        let mut pairs = init.silent.iter().copied().chain([last]);
        let (local, remote) = pairs.next().unwrap_or(last);
        let others: Vec<_> = pairs.collect();
        let (child, alone) = (init.child.clone(), init.initial_contact);
        let way = (
            Transport::Tcp(TcpEnd::Originator),
            ends(config, local, remote, self.env.rng),
        );
        let gateway = self.record.gateway;
        let other = first_record(config, (&child, alone), way, &others, gateway, self.env)?;
        self.report(Event::OverTcp { by: other.id });
        self.created.push(other);
        self.close(CloseReason::SetupFailed);
        self.effects.push(Effect::Forget);
        Ok(())
    }

    /// A connection of ours is there, the first or another. A request that waits for its answer is sent there (RFC 9329 §6.2); else the peer is told
    /// something, so that it sends there: it cannot know otherwise.
    pub(super) fn connected(&mut self, local: SocketAddr, remote: SocketAddr) {
        let path = self.record.path;
        let ours = Transport::Tcp(TcpEnd::Originator);
        if (path.transport, path.local, path.remote) != (ours, local, remote) {
            return;
        }
        if !self.record.outbound.pending.is_empty() {
            let now = self.env.now;
            let repeats = self.session.repeats.values_mut();
            repeats.for_each(|repeat| repeat.at = now);
            return self.retransmit();
        }
        let Phase::Established(e) = &mut self.record.phase else {
            return;
        };
        match &mut e.mobike {
            Some(mobike) if mobike.initiator => {
                mobike.pending_update = true;
                self.commit();
            }
            _ => self.session.speak = true,
        }
    }

    /// The peer sent something new and authentic by this connection, so it gets what is for it there (RFC 9329 §6.1). Only the responder of connections
    /// lets itself be led.
    pub(super) fn follow_connection(&mut self, local: SocketAddr, remote: SocketAddr) {
        let path = self.record.path;
        let led = path.transport == Transport::Tcp(TcpEnd::Responder);
        if !led
            || (path.local, path.remote) == (local, remote)
            || !matches!(self.record.phase, Phase::Established(_))
        {
            return;
        }
        self.record.path.local = local;
        self.record.path.remote = remote;
        self.commit();
        self.move_children();
        self.repeat_at_once();
        self.report(Event::PeerMoved { to: remote });
    }
}
