//! One TCP connection.

use super::{
    Ends,
    stream::{MAX_MESSAGE, PREFIX, frame, framed},
};
use crate::{TcpEnd, sys};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::{
    io::{self, Read},
    net::{IpAddr, Shutdown, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

/// Bytes that the kernel holds of a connection without having sent them: more would only be delay.
const NOT_SENT: i32 = 128 << 10;
/// Bytes that wait here for the kernel to have room. A reader that is slower loses packets.
pub(super) const WAITING: usize = 64 << 10;
/// The same for IKE, which is not lost because of ESP: a whole message more.
pub(super) const WAITING_IKE: usize = WAITING + MAX_MESSAGE;
/// What of that stays when it is empty.
const SHRUNK: usize = 2 << 10;
/// A connection is dead when what was sent is not acknowledged for so long. Its originator makes another.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// The kernel asks whether the other end still knows an idle connection. The originator asks soon: so it learns of a takeover, which the peer cannot tell it
/// (RFC 9329 §7.4).
const IDLE_ORIGINATOR: Duration = Duration::from_secs(3);
const IDLE_RESPONDER: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(1);
const QUESTIONS: u32 = 5;

/// How far it is: the peer has not answered, it can be used, nothing more is sent by it.
const CONNECTING: u8 = 0;
const OPEN: u8 = 1;
const FINISHED: u8 = 2;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// What it is called by; see [`Ends`].
    pub(super) ends: Ends,
    /// Which of them we are.
    pub(super) end: TcpEnd,
    socket: Socket,
    state: AtomicU8,
    out: Mutex<Vec<u8>>,
}

impl Connection {
    /// One that somebody made to us.
    pub(super) fn accepted(socket: Socket, ends: Ends) -> io::Result<Self> {
        let connection = Self::new(socket, ends, TcpEnd::Responder)?;
        connection.state.store(OPEN, Ordering::Release);
        Ok(connection)
    }

    /// Begins to make one. It leaves from the port that it is called by, if that is free.
    pub(super) fn dial(ends: Ends, mark: u32) -> io::Result<Self> {
        let domain = Domain::for_address(ends.remote);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(mark)?;
        socket.set_reuse_address(true)?;
        let connection = Self::new(socket, ends, TcpEnd::Originator)?;
        let named = connection.connect_from(ends.local.port());
        if matches!(&named, Err(e) if is_taken(e)) {
            return Self::dial_from_any_port(ends, mark);
        }
        named.map(|()| connection)
    }

    fn dial_from_any_port(ends: Ends, mark: u32) -> io::Result<Self> {
        let domain = Domain::for_address(ends.remote);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_mark(mark)?;
        let connection = Self::new(socket, ends, TcpEnd::Originator)?;
        connection.connect_from(0).map(|()| connection)
    }

    fn new(socket: Socket, ends: Ends, end: TcpEnd) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        let idle = match end {
            TcpEnd::Originator => IDLE_ORIGINATOR,
            TcpEnd::Responder => IDLE_RESPONDER,
        };
        let keepalive = TcpKeepalive::new().with_time(idle);
        let keepalive = keepalive.with_interval(ASK_AGAIN).with_retries(QUESTIONS);
        socket.set_tcp_keepalive(&keepalive)?;
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
        sys::set_option(socket.as_fd(), level, name, NOT_SENT)?;
        Ok(Self {
            ends,
            end,
            socket,
            state: AtomicU8::new(CONNECTING),
            out: Mutex::default(),
        })
    }

    fn connect_from(&self, port: u16) -> io::Result<()> {
        let local = SocketAddr::new(self.ends.local.ip(), port);
        self.socket.bind(&SockAddr::from(local))?;
        match self.socket.connect(&SockAddr::from(self.ends.remote)) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether something can be sent by it.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Whether the peer has not answered yet.
    pub(super) fn is_connecting(&self) -> bool {
        self.state.load(Ordering::Acquire) == CONNECTING
    }

    /// It is there, or it is not: sends what every stream begins with.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn complete(&self) -> io::Result<()> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        // Tells apart a connection that is still being made.
        self.socket.peer_addr()?;
        let mut out = self.out();
        out.extend(PREFIX);
        self.state.store(OPEN, Ordering::Release);
        self.write(&mut out);
        Ok(())
    }

    /// Sends messages, each with the marker before it. How many were taken: the rest found no room, as it would on the way of a datagram.
    pub(super) fn send<'m>(
        &self,
        marker: &[u8],
        messages: impl Iterator<Item = &'m [u8]>,
        room: usize,
    ) -> usize {
        if !self.is_open() {
            return 0;
        }
        let mut out = self.out();
        let mut taken = 0;
        for message in messages {
            let len = framed(marker, message);
            if out.len() + len > room {
                self.write(&mut out);
            }
            let fits = out.is_empty() || out.len() + len <= room;
            if !fits || !frame(&mut out, marker, message) {
                break;
            }
            taken += 1;
        }
        self.write(&mut out);
        taken
    }

    /// The kernel has room.
    pub(super) fn flush(&self) {
        if self.is_open() {
            self.write(&mut self.out());
        }
    }

    /// Writes as much as the kernel takes. If it takes nothing any more, the thread that reads sees the end, and closes.
    fn write(&self, out: &mut Vec<u8>) {
        let mut written = 0;
        while written < out.len() {
            match self
                .socket
                .send_with_flags(&out[written..], libc::MSG_NOSIGNAL)
            {
                Ok(count) => written += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(remote = %self.ends.remote, %error, "cannot write to a TCP connection");
                    self.state.store(FINISHED, Ordering::Release);
                    let _ = self.socket.shutdown(Shutdown::Both);
                    written = out.len();
                }
            }
        }
        out.drain(..written);
        if out.is_empty() {
            // Connections that are idle hold little memory.
            out.shrink_to(SHRUNK);
        }
    }

    /// Reads what there is; nothing at the end of the stream.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.socket).read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Says that nothing more will come by it. What the peer still sends is read.
    pub(super) fn finish(&self) {
        self.flush();
        self.state.store(FINISHED, Ordering::Release);
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// It will end with a reset.
    pub(super) fn will_reset(&self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    /// Whose it is, for the limit.
    pub(super) fn peer(&self) -> IpAddr {
        self.ends.remote.ip()
    }

    fn out(&self) -> MutexGuard<'_, Vec<u8>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Another connection has the port, or had it a moment ago.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::stream::Stream;
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::fd::OwnedFd,
    };

    /// A connection, and its other end as a plain socket.
    fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, remote) = listener.accept().unwrap();
        let local = accepted.local_addr().unwrap();
        let socket = Socket::from(OwnedFd::from(accepted));
        (
            Connection::accepted(socket, Ends { local, remote }).unwrap(),
            other,
        )
    }

    #[test]
    fn a_reader_that_does_not_read_costs_packets_and_no_memory() {
        let (connection, mut other) = connected();
        let packet = [7; 1400];
        let batch = || (0..32).map(|_| &packet[..]);
        let mut sent = 0;
        loop {
            let taken = connection.send(&[], batch(), WAITING);
            sent += taken;
            if taken == 0 {
                break;
            }
            assert!(sent < 100_000, "it takes whatever there is");
        }
        assert!(connection.out().len() <= WAITING);
        // There is still room for IKE.
        let ike = [1; 5000];
        assert_eq!(
            connection.send(&[0; 4], [&ike[..]].into_iter(), WAITING_IKE),
            1
        );
        // What was taken arrives whole.
        other.set_nonblocking(true).unwrap();
        let (mut stream, mut buffer) = (Stream::new(false), vec![0; 1 << 16]);
        let mut arrived = Vec::new();
        while arrived.len() < sent + 1 {
            connection.flush();
            if let Ok(len) = other.read(&mut buffer) {
                stream.put(&buffer[..len]);
            }
            while let Some(message) = stream.next().unwrap() {
                arrived.push(message.len());
            }
        }
        assert_eq!(arrived.pop(), Some(5004));
        assert!(arrived.iter().all(|len| *len == 1400));
        assert!(connection.out().is_empty());
    }

    #[test]
    fn nothing_is_sent_by_one_that_is_finished() {
        let (connection, mut other) = connected();
        connection.finish();
        assert_eq!(connection.send(&[], [&[1][..]].into_iter(), WAITING), 0);
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
        // But the other end may go on.
        other.write_all(b"abc").unwrap();
        let mut buffer = [0; 8];
        let len = loop {
            match connection.read(&mut buffer) {
                Ok(len) => break len,
                Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!(&buffer[..len], b"abc");
    }
}
