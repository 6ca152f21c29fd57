//! Groups of packet sockets, each of which is handed a part of what comes (`PACKET_FANOUT`).

use super::{check, option, set_option, socklen};
use socket2::SockFilter;
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// A group that a socket was the first of.
pub(crate) struct Fanout(i32);

impl Fanout {
    /// A new group of a socket that is bound. The program yields which member a packet is for: their number in the order in which they join, modulo how many there are.
    pub(crate) fn new(socket: BorrowedFd<'_>, program: &[SockFilter]) -> io::Result<Self> {
        let kind = libc::PACKET_FANOUT_CBPF | libc::PACKET_FANOUT_FLAG_UNIQUEID;
        // The kernel chooses a number for it.
        let value = (kind << 16).cast_signed();
        set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, value)?;
        let program = libc::sock_fprog {
            len: program.len().try_into().map_err(io::Error::other)?,
            filter: program.as_ptr().cast_mut().cast(),
        };
        // SAFETY: a `SockFilter` is laid out as a `sock_filter`; the program has so many, and lives until the call returns, which only reads it.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT_DATA,
                ptr::from_ref(&program).cast(),
                socklen::<libc::sock_fprog>(),
            )
        })?;
        option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT).map(Self)
    }

    /// Another socket that is bound to the same joins.
    pub(crate) fn join(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        set_option(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, self.0)
    }
}
