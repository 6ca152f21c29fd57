//! How sealed packets leave: by which socket or connection, to whom, and how long they may be.

use crate::{
    Encapsulation, Outer, TcpEnd, child::Child, path::Path, sockets::Role, tcp::Ends,
    userspace::Shared,
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
    outer: &Outer,
    class: u8,
) -> Option<Destination> {
    let mut remote = outer.remote;
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
            Exit::Socket(socket(Role::Esp)?)
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
    })
}

/// Without an answer the path is taken to be as wide as the narrowest Ethernet; the next error asks again.
pub(crate) fn ask_path_mtu(shared: &Shared, path: &Path) -> u32 {
    let (from, to) = (path.outer.local.ip(), path.outer.remote.ip());
    shared.sockets.path_mtu(from, to).unwrap_or_else(|error| {
        tracing::debug!(%to, %error, "path MTU is not known");
        1500
    })
}
