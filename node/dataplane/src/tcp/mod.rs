//! IKE and ESP in TCP (RFC 9329).
//!
//! A connection is known by its two ends, as the records of IKE SAs have them, and belongs to the IKE SAs that *claim* it. Nobody opens one: it is made when
//! something is to be sent by one that is ours to make, and made again as long as an IKE SA claims it. One that nobody claims is closed after a
//! while, so strangers hold little, and not for long. What cannot be sent at once is lost, as with datagrams; memory is bounded per connection,
//! and so are connections, in all and per address.
//!
//! One thread ([`run`]) accepts, dials and reads; what it reads goes the same way as what sockets have, holds included. Sending is done by whoever
//! has something to send.

mod connection;
mod run;
mod stream;

pub(crate) use run::Runner;

use crate::{PlaneConfig, PlaneError, TcpEnd};
use connection::{Connection, WAITING, WAITING_IKE};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    eventfd::{EfdFlags, EventFd},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// The non-ESP marker (RFC 9329 §3.1).
const NON_ESP_MARKER: &[u8] = &[0; 4];
/// Waits between attempts: of the first, which span a takeover, and of the others.
const DIAL_AGAIN: Duration = Duration::from_millis(250);
const DIAL_SELDOM: Duration = Duration::from_secs(5);
/// How many are the first.
const SOON: u32 = 40;

/// The two ends of a connection, ours first. Of one that we make, our port is the one that it should have, and need not be the one that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// All connections of a plane.
pub(crate) struct Tcp {
    listeners: Vec<Socket>,
    epoll: Epoll,
    /// Readable when there is something for the thread to do.
    wake: EventFd,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<Ends, Arc<Connection>>,
    /// Which connection each IKE SA claims, and how many claim it.
    claims: HashMap<u64, Ends>,
    claimed: HashMap<Ends, usize>,
    /// Those that are to be made, until they are in `connections`: ends are in one of the two, so that nobody makes them twice.
    dials: HashMap<Ends, Dial>,
    per_address: HashMap<IpAddr, usize>,
}

/// A connection that is to be made.
#[derive(Clone, Copy, Debug)]
struct Dial {
    at: Instant,
    /// How often it was tried in vain.
    attempts: u32,
}

impl Tcp {
    /// Opens the listeners, if there is to be any, in the network namespace of the calling thread.
    pub(crate) fn open(config: &PlaneConfig) -> Result<Self, PlaneError> {
        let failed = |what: &str, source: io::Error| PlaneError::Io {
            what: what.to_owned(),
            source,
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|e| failed("make an epoll instance", e.into()))?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| failed("make an eventfd", e.into()))?;
        let mut listeners = Vec::new();
        for ipv4 in [true, false] {
            let Some(port) = config.tcp_port else { break };
            match listen(ipv4, port, config.mark) {
                Ok(socket) => listeners.push(socket),
                Err(e) if !ipv4 && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(e) => return Err(failed(&format!("listen on TCP port {port}"), e)),
            }
        }
        Ok(Self {
            listeners,
            epoll,
            wake,
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, fd: impl AsFd, token: u64, flags: EpollFlags) -> io::Result<()> {
        let event = EpollEvent::new(flags, token);
        self.epoll.add(fd, event).map_err(io::Error::from)
    }

    fn wake(&self) {
        // Fails only when the counter is at its end: then it is readable.
        let _ = self.wake.write(1);
    }

    /// The connection, if there is one. If it is ours to make, it will be there soon.
    fn connection(&self, ends: Ends, end: TcpEnd) -> Option<Arc<Connection>> {
        let mut table = self.table();
        if let Some(connection) = table.connections.get(&ends) {
            return Some(Arc::clone(connection));
        }
        if end == TcpEnd::Originator && table.dial(ends) {
            self.wake();
        }
        None
    }

    /// Sends an IKE message.
    ///
    /// # Errors
    /// If there is no connection, or it takes no more.
    pub(crate) fn send_ike(&self, ends: Ends, end: TcpEnd, message: &[u8]) -> io::Result<()> {
        let connection = self
            .connection(ends, end)
            .filter(|c| c.is_open())
            .ok_or(io::ErrorKind::NotConnected)?;
        match connection.send(NON_ESP_MARKER, [message].into_iter(), WAITING_IKE) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }

    /// Sends ESP packets. How many were taken; `None` if there is no connection.
    pub(crate) fn send_esp<'p>(
        &self,
        ends: Ends,
        end: TcpEnd,
        packets: impl Iterator<Item = &'p [u8]>,
    ) -> Option<usize> {
        let connection = self.connection(ends, end).filter(|c| c.is_open())?;
        Some(connection.send(&[], packets, WAITING))
    }

    /// An IKE SA uses this connection from now on, and no other.
    pub(crate) fn claim(&self, owner: u64, ends: Ends, end: TcpEnd) {
        let mut table = self.table();
        if table.claims.get(&owner) != Some(&ends) {
            table.disclaim(owner);
            table.claims.insert(owner, ends);
            *table.claimed.entry(ends).or_default() += 1;
        }
        let made = table.connections.contains_key(&ends);
        if end == TcpEnd::Originator && !made && table.dial(ends) {
            self.wake();
        }
    }

    /// An IKE SA uses none any more.
    pub(crate) fn disclaim(&self, owner: u64) {
        self.table().disclaim(owner);
    }

    /// Tells the peers of connections of these addresses of ours that nothing more will come by them.
    pub(crate) fn farewell(&self, addresses: &[IpAddr]) {
        let table = self.table();
        let all = table.connections.values();
        for connection in all.filter(|c| addresses.contains(&c.ends.local.ip())) {
            connection.finish();
        }
    }

    /// How many connections there are.
    pub(crate) fn count(&self) -> usize {
        self.table().connections.len()
    }
}

impl Table {
    /// A connection is to be made. Whether that is news.
    fn dial(&mut self, ends: Ends) -> bool {
        let now = Dial {
            at: Instant::now(),
            attempts: 0,
        };
        let before = self.dials.len();
        self.dials.entry(ends).or_insert(now);
        self.dials.len() > before
    }

    /// Those that are due, and how often they were tried in vain.
    fn due(&self, now: Instant) -> impl Iterator<Item = (Ends, u32)> {
        let due = self.dials.iter().filter(move |(_, dial)| dial.at <= now);
        due.map(|(ends, dial)| (*ends, dial.attempts))
    }

    /// There is none, or no longer: it is to be made after a while, if an IKE SA claims it.
    fn dial_again(&mut self, ends: Ends, attempts: u32, now: Instant) {
        if self.is_claimed(&ends) {
            let at = now + pause(attempts);
            self.dials.insert(ends, Dial { at, attempts });
        } else {
            self.dials.remove(&ends);
        }
    }

    fn disclaim(&mut self, owner: u64) {
        let Some(ends) = self.claims.remove(&owner) else {
            return;
        };
        if let Some(count) = self.claimed.get_mut(&ends) {
            *count -= 1;
            if *count == 0 {
                self.claimed.remove(&ends);
                self.dials.remove(&ends);
            }
        }
    }

    fn is_claimed(&self, ends: &Ends) -> bool {
        self.claimed.contains_key(ends)
    }

    fn insert(&mut self, connection: &Arc<Connection>) {
        self.dials.remove(&connection.ends);
        *self.per_address.entry(connection.peer()).or_default() += 1;
        self.connections
            .insert(connection.ends, Arc::clone(connection));
    }

    fn remove(&mut self, connection: &Arc<Connection>) {
        let same = |other: &Arc<Connection>| Arc::ptr_eq(other, connection);
        if self.connections.get(&connection.ends).is_some_and(same) {
            self.connections.remove(&connection.ends);
        }
        if let Some(count) = self.per_address.get_mut(&connection.peer()) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&connection.peer());
            }
        }
    }
}

/// How long to wait before an attempt.
fn pause(attempts: u32) -> Duration {
    match attempts {
        0 => Duration::ZERO,
        1..=SOON => DIAL_AGAIN,
        _ => DIAL_SELDOM,
    }
}

fn listen(ipv4: bool, port: u16, mark: u32) -> io::Result<Socket> {
    let (domain, any): (_, IpAddr) = match ipv4 {
        true => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        false => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    socket.set_reuse_address(true)?;
    if !ipv4 {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(SocketAddr::new(any, port)))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends that nothing listens at.
    fn ends() -> Ends {
        let loopback = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        Ends {
            local: loopback(4500),
            remote: loopback(9),
        }
    }

    #[test]
    fn what_is_being_made_is_not_made_again() {
        let (mut table, ends) = (Table::default(), ends());
        assert!(table.dial(ends));
        let now = Instant::now();
        assert_eq!(table.due(now).collect::<Vec<_>>(), [(ends, 0)]);
        // Another message is to be sent before the connection is in the table.
        assert!(!table.dial(ends));
        let connection = Connection::dial(ends, 0).unwrap();
        table.insert(&Arc::new(connection));
        assert_eq!(table.due(now).count(), 0);
    }

    #[test]
    fn what_nobody_claims_is_not_tried_again() {
        let (mut table, ends) = (Table::default(), ends());
        table.dial(ends);
        let now = Instant::now();
        table.dial_again(ends, 1, now);
        assert_eq!(table.due(now + DIAL_SELDOM).count(), 0);
        table.claimed.insert(ends, 1);
        table.dial_again(ends, 1, now);
        assert_eq!(table.due(now).count(), 0);
        let later = now + DIAL_AGAIN;
        assert_eq!(table.due(later).collect::<Vec<_>>(), [(ends, 1)]);
    }
}
