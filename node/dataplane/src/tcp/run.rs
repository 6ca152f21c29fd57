//! The thread that accepts, dials and reads.

use super::{
    Connection, Ends, Tcp,
    stream::{Corrupt, Stream},
};
use crate::{
    DatagramKind, DropReason, PlaneEvent, TcpEnd,
    counters::RateLimit,
    delivery::Delivery,
    inbound::{Origin, Turn, Verdict},
    userspace::{Clock, Direction, Shared},
};
use evergate_esp::udp;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// The originator has so long to say that the stream is one of IKE.
const PREFIX_TIME: Duration = Duration::from_secs(5);
/// So long a connection is kept that no IKE SA claims: setting one up takes no longer.
const UNCLAIMED: Duration = Duration::from_secs(30);
/// So long one that none claims any more (RFC 9329 §6.1: a few seconds).
const DISCLAIMED: Duration = Duration::from_secs(5);
/// So long one attempt to connect takes. The kernel's own repetitions come later and later, and a successor that has just taken the address
/// should not have to wait for the next.
const CONNECT: Duration = Duration::from_secs(1);
/// One that lived for so long was good: the next attempt is not counted with those before.
const GOOD: Duration = Duration::from_secs(5);
/// How often connections and dials are looked through.
const SWEEP: Duration = Duration::from_millis(100);
/// After so many messages in a row that mean nothing the stream is corrupt (RFC 9329 §6.1).
const MEANINGLESS: u32 = 32;
/// Bytes that are read from one connection before the others get their turn.
const AT_ONCE: usize = 256 << 10;
/// Bytes of one read.
const BUFFER: usize = 64 << 10;
/// Events of one wait.
const EVENTS: usize = 128;

const STOP: u64 = 0;
const WAKE: u64 = 1;
const LISTENERS: u64 = 2;
const FIRST_CONNECTION: u64 = 16;

/// The thread's own.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    readers: HashMap<u64, Reader>,
    next_token: u64,
    /// Those that have more than they were allowed to give.
    busy: Vec<u64>,
    buffer: Vec<u8>,
    limit: RateLimit,
    clock: Clock,
    swept: Instant,
}

/// The inbound side of a connection.
struct Reader {
    connection: Arc<Connection>,
    stream: Stream,
    opened: Instant,
    /// Since when nobody claims it.
    unclaimed: Option<Instant>,
    was_claimed: bool,
    /// Messages in a row that meant nothing.
    meaningless: u32,
    attempts: u32,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the other end has closed it")]
    ByPeer,
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("its stream is corrupt: {0}")]
    Corrupt(#[from] Corrupt),
    #[error("nothing that came by it means anything")]
    Meaningless,
    #[error("no IKE SA uses it")]
    Unclaimed,
    #[error("it did not say in time that it is for IKE")]
    NoPrefix,
    #[error("the peer did not answer")]
    NoAnswer,
}

impl Ended {
    /// Whether the other end should not take it for an orderly end.
    fn is_abrupt(&self) -> bool {
        !matches!(self, Self::ByPeer | Self::Unclaimed)
    }
}

impl Runner {
    /// Registers what is to be waited for.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let tcp = &shared.tcp;
        tcp.watch(shared.stopped(), STOP, EpollFlags::EPOLLIN)?;
        tcp.watch(&tcp.wake, WAKE, EpollFlags::EPOLLIN)?;
        for (token, listener) in (LISTENERS..).zip(&tcp.listeners) {
            tcp.watch(listener, token, EpollFlags::EPOLLIN)?;
        }
        let clock = shared.clock();
        Ok(Self {
            readers: HashMap::new(),
            next_token: FIRST_CONNECTION,
            busy: Vec::new(),
            buffer: vec![0; BUFFER],
            limit: RateLimit::new(clock.instant),
            swept: clock.instant,
            clock,
            shared,
        })
    }

    fn tcp(&self) -> &Tcp {
        &self.shared.tcp
    }

    /// Runs until the plane stops.
    pub(crate) fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.tcp().epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for TCP connections: there are none any more");
                    return;
                }
            };
            self.clock = self.shared.clock();
            for event in &events[..count] {
                match event.data() {
                    STOP => return,
                    WAKE => {
                        // There is nothing to read if it was read already.
                        let _ = self.tcp().wake.read();
                    }
                    token if token < FIRST_CONNECTION => self.accept(token - LISTENERS),
                    token => self.ready(token, event.events()),
                }
            }
            for token in std::mem::take(&mut self.busy) {
                self.read(token);
            }
            self.dial();
            self.sweep();
        }
    }

    /// Without connections there is nothing to look through.
    fn timeout(&self) -> EpollTimeout {
        if !self.busy.is_empty() {
            return EpollTimeout::ZERO;
        }
        if self.readers.is_empty() && self.tcp().table().dials.is_empty() {
            return EpollTimeout::NONE;
        }
        EpollTimeout::try_from(SWEEP).unwrap_or(EpollTimeout::ZERO)
    }

    fn accept(&mut self, listener: u64) {
        let shared = Arc::clone(&self.shared);
        let Some(listener) = usize::try_from(listener)
            .ok()
            .and_then(|i| shared.tcp.listeners.get(i))
        else {
            return;
        };
        loop {
            let accepted = match listener.accept() {
                Ok((socket, remote)) => (socket.local_addr(), remote.as_socket(), socket),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // One that ended already, or no descriptors: others wait in the kernel.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a TCP connection");
                    return;
                }
            };
            let (Ok(local), Some(remote), socket) = accepted else {
                continue;
            };
            let Some(local) = local.as_socket() else {
                continue;
            };
            let ends = Ends { local, remote };
            match Connection::accepted(socket, ends) {
                Ok(connection) if self.has_room(remote) => {
                    if let Err(error) = self.admit(connection, 0) {
                        tracing::debug!(%remote, %error, "cannot watch a TCP connection");
                    }
                }
                Ok(connection) => {
                    shared.traffic.dropped(DropReason::TcpRefused);
                    connection.will_reset();
                }
                Err(error) => tracing::debug!(%remote, %error, "a TCP connection cannot be used"),
            }
        }
    }

    fn has_room(&self, remote: SocketAddr) -> bool {
        let config = &self.shared.config;
        let table = self.tcp().table();
        let of_address = table.per_address.get(&remote.ip()).copied().unwrap_or(0);
        table.connections.len() < config.tcp_connections
            && of_address < config.tcp_connections_per_address
    }

    fn admit(&mut self, connection: Connection, attempts: u32) -> io::Result<()> {
        let token = self.next_token;
        self.next_token += 1;
        let connection = Arc::new(connection);
        let all = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.tcp().watch(&*connection, token, all)?;
        self.tcp().table().insert(&connection);
        let reader = Reader {
            stream: Stream::new(connection.end == TcpEnd::Responder),
            connection,
            opened: self.clock.instant,
            unclaimed: Some(self.clock.instant),
            was_claimed: false,
            meaningless: 0,
            attempts,
        };
        self.readers.insert(token, reader);
        Ok(())
    }

    fn ready(&mut self, token: u64, what: EpollFlags) {
        let Some(reader) = self.readers.get(&token) else {
            return;
        };
        let connection = Arc::clone(&reader.connection);
        let settled = EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        if connection.is_connecting() && what.intersects(settled) {
            match connection.complete() {
                Ok(()) => self.connected(token),
                Err(error) => return self.close(token, &error.into()),
            }
        } else if what.contains(EpollFlags::EPOLLOUT) {
            connection.flush();
        }
        if what.intersects(settled | EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            self.read(token);
        }
    }

    /// A connection of our own is there.
    fn connected(&mut self, token: u64) {
        let Some(reader) = self.readers.get_mut(&token) else {
            return;
        };
        let Ends { local, remote } = reader.connection.ends;
        reader.opened = self.clock.instant;
        tracing::debug!(%local, %remote, "TCP connection made");
        // If the queue is full, the next repetition of a request goes by it all the same.
        let _ = self
            .shared
            .events
            .tell(PlaneEvent::Connected { local, remote });
    }

    fn read(&mut self, token: u64) {
        let shared = Arc::clone(&self.shared);
        let Some(reader) = self.readers.get_mut(&token) else {
            return;
        };
        let holds = shared.enter(Direction::Tcp, 0);
        let mut turn = Turn::new(&shared, &mut self.limit, &self.clock, &holds);
        let mut left = AT_ONCE;
        let ended = loop {
            if left == 0 {
                self.busy.push(token);
                return;
            }
            match reader.connection.read(&mut self.buffer) {
                Ok(0) => break Ended::ByPeer,
                Ok(len) => {
                    left = left.saturating_sub(len);
                    if let Err(ended) = reader.take(&self.buffer[..len], &mut turn) {
                        break ended;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => break error.into(),
            }
        };
        drop(holds);
        self.close(token, &ended);
    }

    fn close(&mut self, token: u64, why: &Ended) {
        let Some(Reader {
            connection,
            opened,
            attempts,
            ..
        }) = self.readers.remove(&token)
        else {
            return;
        };
        let Ends { local, remote } = connection.ends;
        tracing::debug!(%local, %remote, "TCP connection closed: {why}");
        if matches!(
            why,
            Ended::Corrupt(_) | Ended::Meaningless | Ended::NoPrefix
        ) {
            self.shared.traffic.dropped(DropReason::TcpCorrupt);
        }
        if why.is_abrupt() {
            connection.will_reset();
        }
        let _ = self.tcp().epoll.delete(&*connection);
        let mut table = self.tcp().table();
        table.remove(&connection);
        if connection.end == TcpEnd::Originator {
            let was_good = self.clock.instant.saturating_duration_since(opened) >= GOOD;
            let attempts = if was_good { 0 } else { attempts + 1 };
            table.dial_again(connection.ends, attempts, self.clock.instant);
        }
    }

    /// Makes connections that are due. Ours come from addresses of virtual gateways: while one is handed over nothing is begun.
    fn dial(&mut self) {
        let now = self.clock.instant;
        let due: Vec<(Ends, u32)> = {
            let holds = self.shared.enter(Direction::Tcp, 0);
            let table = self.tcp().table();
            let due = table
                .due(now)
                .filter(|(ends, _)| holds.of(ends.local.ip()).is_none());
            due.collect()
        };
        for (ends, attempts) in due {
            let made = Connection::dial(ends, self.shared.config.mark)
                .and_then(|connection| self.admit(connection, attempts));
            if let Err(error) = made {
                tracing::debug!(remote = %ends.remote, %error, "cannot make a TCP connection");
                self.tcp().table().dial_again(ends, attempts + 1, now);
            }
        }
    }

    /// Closes what is over.
    fn sweep(&mut self) {
        let now = self.clock.instant;
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let shared = Arc::clone(&self.shared);
        let mut over = Vec::new();
        {
            let table = shared.tcp.table();
            for (token, reader) in &mut self.readers {
                if let Some(why) = reader.over(table.is_claimed(&reader.connection.ends), now) {
                    over.push((*token, why));
                }
            }
        }
        for (token, why) in over {
            self.close(token, &why);
        }
    }
}

impl Reader {
    /// Takes what came.
    fn take(&mut self, bytes: &[u8], turn: &mut Turn<'_>) -> Result<(), Ended> {
        let Ends { local, remote } = self.connection.ends;
        let origin = Origin {
            local,
            remote,
            // Not known of a stream: as if not congested (RFC 9329 §9.5).
            traffic_class: 0,
        };
        let end = self.connection.end;
        self.stream.put(bytes);
        while let Some(message) = self.stream.next()? {
            // One by one: the next message may lie where this one did.
            let mut delivery = Delivery::default();
            let verdict = match udp::classify(message) {
                udp::Datagram::Keepalive => {
                    turn.shared.control.keepalives_in.add(1);
                    Verdict::Open
                }
                udp::Datagram::Ike(ike) => {
                    let marker = message.len() - ike.len();
                    let kind = DatagramKind::IkeInTcp(end);
                    turn.take(kind, &origin, &mut message[marker..], &mut delivery)
                }
                udp::Datagram::Esp(_) => {
                    turn.take(DatagramKind::EspInTcp(end), &origin, message, &mut delivery)
                }
                udp::Datagram::Unknown => {
                    turn.shared.traffic.dropped(DropReason::MalformedOuter);
                    Verdict::Meaningless
                }
            };
            delivery.finish(turn.shared);
            match verdict {
                Verdict::Authentic => self.meaningless = 0,
                Verdict::Open => {}
                Verdict::Meaningless => self.meaningless += 1,
            }
            if self.meaningless >= MEANINGLESS {
                return Err(Ended::Meaningless);
            }
        }
        Ok(())
    }

    /// Why it is over, if it is.
    fn over(&mut self, claimed: bool, now: Instant) -> Option<Ended> {
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.connection.is_connecting() && since(self.opened) >= CONNECT {
            return Some(Ended::NoAnswer);
        }
        if self.stream.prefix_due() && since(self.opened) >= PREFIX_TIME {
            return Some(Ended::NoPrefix);
        }
        // What is finished waits for the other end to finish, too, but not for ever.
        let finished = !self.connection.is_open() && !self.connection.is_connecting();
        if claimed && !finished {
            (self.unclaimed, self.was_claimed) = (None, true);
            return None;
        }
        let unclaimed = *self.unclaimed.get_or_insert(now);
        let patience = if self.was_claimed || finished {
            DISCLAIMED
        } else {
            UNCLAIMED
        };
        (since(unclaimed) >= patience).then_some(Ended::Unclaimed)
    }
}
