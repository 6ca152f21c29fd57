//! The peer's requests about addresses (RFC 4555 §3.5 to §3.9), and peers that are followed without being told (RFC 7296 §2.23).

use super::{
    super::{
        Event, Failure, nat,
        turn::{Refused, Turn, find_notify, header, notify},
    },
    notifies,
};
use crate::{
    record::{Path, Transport},
    wire::{ExchangeType, NotifyType, Payload},
};
use std::net::SocketAddr;

impl Turn<'_, '_> {
    /// Refuses an IKE_AUTH request whose sender allows no NAT, if there is one (RFC 4555 §3.9).
    pub(in crate::sa) fn unexpected_nat(&self, payloads: &[Payload]) -> Result<(), Refused> {
        let path = self.record.path;
        // By TCP it does not count (RFC 9329 §7.1).
        if !path.transport.is_tcp() && notifies::unexpected_nat(payloads, path.local, path.remote) {
            let kind = NotifyType::UNEXPECTED_NAT_DETECTED;
            return Err(Refused::new(kind, Failure::UnexpectedNat));
        }
        Ok(())
    }

    /// Does what the INFORMATIONAL request `id` says of addresses, and yields what to answer.
    pub(in crate::sa) fn mobike_request(&mut self, id: u32, payloads: &[Payload]) -> Vec<Payload> {
        let (Some((local, remote)), true) = (self.arrived, self.mobike().is_some()) else {
            return notifies::cookie(payloads).into_iter().collect();
        };
        let mut answer = match self.addresses_from_peer(id, payloads, (local, remote)) {
            Ok(()) if nat::supported(payloads) => self.nat_answer(local, remote),
            Ok(()) => Vec::new(),
            Err((kind, failure)) => {
                self.fail(failure);
                vec![notify(kind, Vec::new())]
            }
        };
        answer.extend(notifies::cookie(payloads));
        answer
    }

    fn addresses_from_peer(
        &mut self,
        id: u32,
        payloads: &[Payload],
        (local, remote): (SocketAddr, SocketAddr),
    ) -> Result<(), (NotifyType, Failure)> {
        let updates = find_notify(payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some();
        let list = notifies::addresses(payloads);
        if (!updates && list.is_none()) || self.is_outdated(id) {
            return Ok(());
        }
        if !self.transport.is_tcp() && notifies::unexpected_nat(payloads, local, remote) {
            return Err((NotifyType::UNEXPECTED_NAT_DETECTED, Failure::UnexpectedNat));
        }
        let decides = self.mobike().is_some_and(|m| !m.initiator);
        if updates && decides {
            self.update_from_peer(payloads, local, remote)?;
        }
        if let Some(list) = list {
            self.list_from_peer(list, local, remote);
        }
        Ok(())
    }

    /// Whether the peer has said something newer of addresses; if not, this is the newest.
    fn is_outdated(&mut self, id: u32) -> bool {
        let Some(mobike) = self.mobike() else {
            return false;
        };
        let outdated = mobike.newest.is_some_and(|newest| newest > id);
        if !outdated {
            mobike.newest = Some(id);
        }
        outdated
    }

    /// The peer decides which addresses are used: those of its message (RFC 4555 §3.5).
    fn update_from_peer(
        &mut self,
        payloads: &[Payload],
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), (NotifyType, Failure)> {
        let connection = self.env.policy.connection(&self.record.connection);
        if connection.is_some_and(|c| !c.covers(local.ip(), remote.ip())) {
            let failure = Failure::UnacceptableAddresses {
                local: local.ip(),
                remote: remote.ip(),
            };
            return Err((NotifyType::UNACCEPTABLE_ADDRESSES, failure));
        }
        let before = self.record.path;
        let (mut nat_local, mut nat_remote) = (before.nat_local, before.nat_remote);
        if nat::supported(payloads) {
            let header = header(&self.record, ExchangeType::INFORMATIONAL, false, 0);
            (nat_local, nat_remote) = nat::detect(&header, payloads, local, remote);
            nat_local |= connection.is_some_and(|c| c.encap);
        }
        let path = Path {
            transport: self.transport,
            local,
            remote,
            nat_local,
            nat_remote,
        };
        if path == before {
            return Ok(());
        }
        let children = self.record.children_path();
        if let Some(roaming) = &mut self.session.roaming {
            roaming.forget_esp();
        }
        self.record.path = path;
        // A peer that sends by TCP has shown already that it receives there (RFC 9329 §7.1).
        let check = !path.transport.is_tcp() && connection.is_none_or(|c| c.return_routability);
        if check && (path.transport, remote) != (children.transport, children.remote) {
            // They follow when the peer has shown that it receives there.
            if let Some(mobike) = self.mobike() {
                mobike.children_path = Some(children);
            }
        } else {
            self.move_children();
        }
        if (path.transport, local, remote) != (before.transport, before.local, before.remote) {
            self.repeat_at_once();
            self.report(Event::PeerMoved { to: remote });
        }
        Ok(())
    }

    /// The peer's other addresses. If we decide, and the one in use is not its any more, we go where the message came from (RFC 4555 §3.5, §3.6).
    fn list_from_peer(
        &mut self,
        list: Vec<std::net::IpAddr>,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let used = self.record.path.remote.ip();
        let gone = used != remote.ip() && !list.contains(&used);
        let Some(mobike) = self.mobike() else {
            return;
        };
        mobike.peer_addresses = list;
        if gone && mobike.initiator {
            self.move_to(local, remote, self.transport);
        }
    }

    /// Where we see the peer, and where we think to be ourselves.
    fn nat_answer(&mut self, local: SocketAddr, remote: SocketAddr) -> Vec<Payload> {
        let connection = self.env.policy.connection(&self.record.connection);
        let encap = connection.is_some_and(|c| c.encap);
        let header = header(&self.record, ExchangeType::INFORMATIONAL, true, 0);
        nat::notifies(&header, local, remote, encap, self.env.rng).into()
    }

    /// A peer behind a NAT is followed to where its authentic, fresh requests come from (RFC 7296 §2.23). With MOBIKE it says itself when its
    /// address is another, and other requests move nothing (RFC 4555 §3.8).
    pub(in crate::sa) fn follow(&mut self, id: u32, local: SocketAddr, remote: SocketAddr) {
        // One that comes after a newer one may be from where the peer was.
        let newest = id >= self.record.inbound.end();
        let same = self.transport == self.record.path.transport;
        if newest && same && self.transport.is_tcp() {
            return self.follow_connection(local, remote);
        }
        if self.mobike().is_some() {
            let path = self.record.path;
            if (self.transport, local, remote) != (path.transport, path.local, path.remote) {
                self.commit();
            }
            return;
        }
        let path = self.record.path;
        if newest && same && path.nat_remote && path.remote != remote {
            self.follow_to(remote);
        }
    }

    /// The peer's newest authentic ESP packet came from there: its NAT has another mapping (RFC 7296 §2.23, RFC 4555 §3.8).
    pub(in crate::sa) fn esp_from(&mut self, remote: SocketAddr, transport: Transport) {
        if transport == self.record.path.transport {
            self.session.roaming().esp_came_from(remote);
            self.follow_esp();
        }
    }

    /// Follows ESP, but not more often than is good for the log: who can change addresses on the way could cause a commit with every packet.
    pub(in crate::sa) fn follow_esp(&mut self) {
        let now = self.env.now;
        let Some(remote) = self.session.roaming.as_mut().and_then(|r| r.follow(now)) else {
            return;
        };
        let path = self.record.path;
        if path.transport.is_tcp() {
            return self.follow_connection(path.local, remote);
        }
        // With MOBIKE another address is told; only the port may change without the peer's knowledge. So ESP that was late does not lead back.
        let may = match self.mobike() {
            Some(mobike) => !mobike.initiator && remote.ip() == path.remote.ip(),
            None => true,
        };
        let established = matches!(self.record.phase, crate::record::Phase::Established(_));
        if established
            && path.nat_remote
            && path.remote != remote
            && path.remote.is_ipv4() == remote.is_ipv4()
            && may
        {
            self.follow_to(remote);
            self.repeat_at_once();
        }
    }

    /// With MOBIKE it is checked, like an address that the peer has named, whether the peer receives there.
    fn follow_to(&mut self, remote: SocketAddr) {
        let before = self.record.children_path();
        let connection = self.env.policy.connection(&self.record.connection);
        let check = before.remote != remote && connection.is_none_or(|c| c.return_routability);
        self.record.path.remote = remote;
        self.commit();
        match self.mobike().filter(|_| check) {
            Some(mobike) => mobike.children_path = Some(before),
            None => self.move_children(),
        }
        self.report(Event::PeerMoved { to: remote });
    }
}
