//! Questions to rtnetlink, one at a time.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{io, os::fd::AsFd};

/// How long the kernel may take to answer, in milliseconds. It answers within the call that asks; this only bounds a fault.
const TIMEOUT_MS: u16 = 2_000;

/// A netlink socket, bound and connected to the kernel, in the network namespace of the thread that calls.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Waits until the kernel has answered something.
pub(crate) fn wait_readable(socket: &Socket) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, TIMEOUT_MS)? == 0 {
        return Err(io::Error::from(io::ErrorKind::TimedOut));
    }
    Ok(())
}

/// A socket for links, addresses, routes and rules.
pub(crate) struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: open(NETLINK_ROUTE)?,
            sequence: 0,
        })
    }

    /// Has something done.
    pub(crate) fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers().map(|_| ())
    }

    /// Has something listed.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.answers()
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Collects what answers the last request, until its end or error. Late answers to a former one are skipped.
    fn answers(&mut self) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut collected = Vec::new();
        loop {
            wait_readable(&self.socket)?;
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let len = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(len.max(16)..).unwrap_or(&[]);
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(collected),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(collected),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(m) => collected.push(m),
                    _ => {}
                }
            }
        }
    }
}
