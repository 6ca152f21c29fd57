//! How sealed packets leave: by which socket or connection, to whom, and how long they may be.

use crate::{
    Encapsulation, TcpEnd,
    child::Child,
    link::Hop,
    path::Path,
    sockets::Role,
    tcp::Ends,
    userspace::{Clock, Shared},
};
use std::net::{IpAddr, SocketAddr};

/// How a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) exit: Exit,
    pub(crate) remote: SocketAddr,
    pub(crate) local: IpAddr,
    pub(crate) traffic_class: u8,
    /// It is larger than the path, and goes in fragments.
    pub(crate) fragmentable: bool,
    /// The neighbour that it goes to, by a packet socket.
    pub(crate) hop: Option<Hop>,
}

/// By what it leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// One of the worker's outer sockets.
    Socket(usize),
    /// A TCP connection.
    Tcp(Ends, TcpEnd),
}

/// The way for an inner packet of this traffic class. `None` if there is no socket of the family.
pub(crate) fn destination(
    shared: &Shared,
    worker: usize,
    child: &Child,
    path: &Path,
    class: u8,
    clock: &Clock,
) -> Option<Destination> {
    let outer = &path.outer;
    let (mut remote, mut hop) = (outer.remote, None);
    let socket = |role| {
        shared
            .sockets
            .of(worker)
            .index(role, outer.remote.is_ipv4())
    };
    let exit = match outer.encapsulation {
        Encapsulation::Udp => Exit::Socket(socket(Role::Nat)?),
        Encapsulation::None => {
            // In raw sockets a port would be a protocol.
            remote.set_port(0);
            hop = shared.links.as_ref().and_then(|l| l.hop(path, clock.ms));
            let link = hop.and_then(|hop| socket(Role::Link(hop.device)));
            match link {
                Some(link) => Exit::Socket(link),
                None => {
                    hop = None;
                    Exit::Socket(socket(Role::Esp)?)
                }
            }
        }
        Encapsulation::Tcp(end) => Exit::Tcp(
            Ends {
                local: outer.local,
                remote,
            },
            end,
        ),
    };
    Some(Destination {
        exit,
        remote,
        local: outer.local.ip(),
        traffic_class: match child.transport {
            None => child.headers.outwards(class),
            // The header is that of the packet.
            Some(_) => class,
        },
        fragmentable: false,
        hop,
    })
}

impl Destination {
    /// The same for a packet that may be fragmented: IP does that. `None` if there is no socket of the family.
    pub(crate) fn fragmentable(self, shared: &Shared, worker: usize) -> Option<Self> {
        let exit = match self.hop {
            None => self.exit,
            Some(_) => {
                let sockets = shared.sockets.of(worker);
                Exit::Socket(sockets.index(Role::Esp, self.remote.is_ipv4())?)
            }
        };
        Some(Self {
            exit,
            fragmentable: true,
            hop: None,
            ..self
        })
    }
}

/// Without an answer the path is taken to be as wide as the narrowest Ethernet; the next error asks again.
pub(crate) fn ask_path_mtu(shared: &Shared, path: &Path) -> u32 {
    let (from, to) = (path.outer.local.ip(), path.outer.remote.ip());
    shared.sockets.path_mtu(from, to).unwrap_or_else(|error| {
        tracing::debug!(%to, %error, "path MTU is not known");
        1500
    })
}
