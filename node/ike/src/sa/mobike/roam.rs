//! Our own addresses and routes change (RFC 4555 §3.5, §3.6), or the way to the peer is broken.

use super::{
    super::{Effect, Event, tcp, turn::Turn},
    Ways, notifies,
};
use crate::{
    config::{Connection, EnableTcp},
    env::UnixMillis,
    record::{Path, Phase, Record, TcpEnd, Transport},
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// After so many unanswered sendings another way is looked for.
pub(in crate::sa) const UNANSWERED: u32 = 3;

/// So many ways that did not work are remembered; then they are tried again.
const MAX_TRIED: usize = 64;

/// ESP from elsewhere is followed no more often than this.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// What only the member that serves the SA knows of addresses.
#[derive(Debug, Default)]
pub(in crate::sa) struct Roaming {
    /// Other outer addresses of ours that the peer should know of, if that was found out.
    others: Option<Vec<IpAddr>>,
    /// Ways that did not work since the last one that did.
    tried: Vec<Way>,
    /// The pairs that there were then: with others, all are worth a try again.
    pairs: Vec<(IpAddr, IpAddr)>,
    /// Where the peer's newest ESP came from, if it is still to be followed.
    esp: Option<SocketAddr>,
    not_before: UnixMillis,
}

/// A way to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    local: IpAddr,
    remote: IpAddr,
    transport: Transport,
}

impl Way {
    /// The one that a path goes.
    fn of(path: &Path) -> Self {
        Self {
            local: path.local.ip(),
            remote: path.remote.ip(),
            transport: path.transport,
        }
    }

    /// All between these pairs, in the order in which they are tried: UDP comes before TCP (RFC 9329 §7.1). Who does not decide, or has lost its
    /// configuration, keeps its transport.
    fn all(
        pairs: &[(IpAddr, IpAddr)],
        decides: bool,
        connection: Option<&Connection>,
        present: Transport,
    ) -> Vec<Self> {
        let tcp = Transport::Tcp(TcpEnd::Originator);
        let transports = match connection.filter(|_| decides).map(|c| c.enable_tcp) {
            None => vec![present],
            Some(EnableTcp::No) => vec![Transport::Udp],
            Some(EnableTcp::Fallback) => vec![Transport::Udp, tcp],
            Some(EnableTcp::Yes) => vec![tcp],
        };
        let by = |transport| {
            pairs.iter().map(move |&(local, remote)| Self {
                local,
                remote,
                transport,
            })
        };
        transports.into_iter().flat_map(by).collect()
    }
}

impl Roaming {
    /// Our other addresses, if they are known and the SA may tell of them.
    pub(super) fn others(&self, record: &Record) -> Option<Vec<IpAddr>> {
        let used = record.path.local.ip();
        let others = self.others.as_ref()?;
        Some(others.iter().copied().filter(|a| *a != used).collect())
    }

    /// A way works.
    pub(in crate::sa) fn settled(&mut self) {
        self.tried.clear();
    }

    pub(super) fn esp_came_from(&mut self, remote: SocketAddr) {
        self.esp = Some(remote);
    }

    /// The addresses were decided on otherwise: what ESP said before is old.
    pub(super) fn forget_esp(&mut self) {
        self.esp = None;
    }

    /// When ESP is to be followed.
    pub(in crate::sa) fn follow_at(&self) -> Option<UnixMillis> {
        self.esp.map(|_| self.not_before)
    }

    /// Where to follow ESP to, if it is time.
    pub(super) fn follow(&mut self, now: UnixMillis) -> Option<SocketAddr> {
        if now < self.not_before {
            return None;
        }
        let remote = self.esp.take()?;
        self.not_before = now + FOLLOW_AGAIN;
        Some(remote)
    }
}

impl Turn<'_, '_> {
    /// The ways to the peer may have changed.
    pub(in crate::sa) fn roam(&mut self, ways: Ways) {
        let Phase::Established(e) = &self.record.phase else {
            return;
        };
        let (Some(mobike), None) = (&e.mobike, e.replaced_by) else {
            return;
        };
        let initiator = mobike.initiator;
        let path = self.record.path;
        let current = Way::of(&path);
        let connection = self.env.policy.connection(&self.record.connection);
        if let Some(connection) = connection {
            let nobody = if current.local.is_ipv4() {
                IpAddr::from([0; 4])
            } else {
                IpAddr::from([0; 16])
            };
            let all = notifies::others(&ways.own, nobody, connection);
            self.session.roaming().others = Some(all);
        }
        let roaming = self.session.roaming();
        if roaming.pairs != ways.pairs {
            if !roaming.pairs.is_empty() {
                roaming.tried.clear();
            }
            roaming.pairs.clone_from(&ways.pairs);
        }
        let all = Way::all(&ways.pairs, initiator, connection, path.transport);
        // Who decides keeps a way as long as there is one; the other end keeps it as long as it has the address.
        let stays = match initiator {
            true => all.contains(&current) && !roaming.tried.contains(&current),
            false => ways.own.contains(&current.local),
        };
        // When all were tried it stays at the last: an SA whose peer is nowhere comes to its end. It does so by TCP, if that may be used at all.
        let mut others = all.iter().filter(|way| **way != current);
        let next = others.find(|way| !roaming.tried.contains(way));
        let last = all
            .last()
            .filter(|way| way.transport.is_tcp() && !current.transport.is_tcp());
        if let (false, Some(way)) = (stays, next.or(last)) {
            let (local, remote) = self.ends_of(*way);
            self.move_to(local, remote, way.transport);
        }
    }

    /// Addresses with ports.
    fn ends_of(&mut self, way: Way) -> (SocketAddr, SocketAddr) {
        let connection = self.env.policy.connection(&self.record.connection);
        if let (true, Some(connection)) = (way.transport.is_tcp(), connection) {
            return tcp::ends(connection, way.local, way.remote, self.env.rng);
        }
        let path = self.record.path;
        let remote_port = match path.remote.port() {
            _ if path.transport.is_tcp() => 4500,
            500 => 4500,
            port => port,
        };
        let local = SocketAddr::new(way.local, self.env.nat_port);
        (local, SocketAddr::new(way.remote, remote_port))
    }

    /// The IKE SA uses these addresses from now on. Who decides tells the peer with the next request; the other end says which addresses it has.
    pub(super) fn move_to(&mut self, local: SocketAddr, remote: SocketAddr, transport: Transport) {
        let before = self.record.children_path();
        if let Some(roaming) = &mut self.session.roaming {
            roaming.forget_esp();
        }
        self.record.path.transport = transport;
        self.record.path.local = local;
        self.record.path.remote = remote;
        let connection = self.env.policy.connection(&self.record.connection);
        let check = connection.is_none_or(|c: &Connection| c.return_routability);
        if let Some(mobike) = self.mobike() {
            mobike.pending_update = mobike.initiator;
            mobike.told = None;
        }
        if check && !transport.is_tcp() && remote.ip() != before.remote.ip() {
            if let Some(mobike) = self.mobike() {
                mobike.children_path = Some(before);
            }
        } else {
            self.move_children();
        }
        self.repeat_at_once();
        self.report(Event::Moved {
            local,
            remote,
            transport,
        });
        self.commit();
    }

    /// The way in use does not seem to work: others are looked for, if it is ours to choose (RFC 4555 §3.5).
    pub(in crate::sa) fn find_ways(&mut self) {
        if !self.mobike().is_some_and(|m| m.initiator) {
            return;
        }
        let way = Way::of(&self.record.path);
        let tried = &mut self.session.roaming().tried;
        if tried.len() >= MAX_TRIED {
            tried.clear();
        }
        if !tried.contains(&way) {
            tried.push(way);
        }
        self.effects.push(Effect::FindWays);
    }
}
