//! Questions to netlink, one at a time.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{io, marker::PhantomData, os::fd::AsFd};
use zeroize::Zeroizing;

/// How long the kernel may take to answer, in milliseconds. It answers within the call that asks; this only bounds a fault.
const TIMEOUT_MS: u16 = 2_000;

/// A netlink socket, bound and connected to the kernel, in the network namespace of the thread that calls.
pub(crate) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A socket that hears what the kernel tells these multicast groups, in the network namespace of the thread that calls. It does not wait.
pub(crate) fn listen(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    socket.set_non_blocking(true)?;
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

/// A socket on which messages of one family are asked.
pub(crate) struct Requests<M> {
    socket: Socket,
    sequence: u32,
    family: PhantomData<fn() -> M>,
}

/// A socket for links, addresses, routes and rules.
pub(crate) type Rtnl = Requests<RouteNetlinkMessage>;

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable> Requests<M> {
    pub(crate) fn open_for(protocol: isize) -> io::Result<Self> {
        Ok(Self {
            socket: open(protocol)?,
            sequence: 0,
            family: PhantomData,
        })
    }

    /// Has something done.
    pub(crate) fn ask(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.ask_with(message, flags, |_| {})
    }

    /// Has something done; what was asked is given back, so that what is secret in it can be wiped.
    pub(crate) fn ask_with(
        &mut self,
        message: M,
        flags: u16,
        back: impl FnOnce(&mut M),
    ) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags, back)?;
        self.answers().map(|_| ())
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: M) -> io::Result<Option<M>> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK, |_| {})?;
        self.answers().map(|answers| answers.into_iter().next())
    }

    /// Has something listed.
    pub(crate) fn dump(&mut self, message: M) -> io::Result<Vec<M>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP, |_| {})?;
        self.answers()
    }

    fn send(&mut self, message: M, flags: u16, back: impl FnOnce(&mut M)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let header = NetlinkHeader::default();
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        // There may be keys in it.
        let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
        message.serialize(&mut bytes);
        if let NetlinkPayload::InnerMessage(message) = &mut message.payload {
            back(message);
        }
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Collects what answers the last request, until its end or error. Late answers to a former one are skipped.
    fn answers(&mut self) -> io::Result<Vec<M>> {
        let mut collected = Vec::new();
        loop {
            wait_readable(&self.socket)?;
            let (datagram, _) = self.socket.recv_from_full()?;
            let datagram = Zeroizing::new(datagram);
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let message = NetlinkMessage::<M>::deserialize(rest)
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
