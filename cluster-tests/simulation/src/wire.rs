//! Connections between members: streams of bytes as TCP makes them, over the network of the simulation. TLS and gRPC on them are real.

use crate::{
    conductor::{self, MILLI, Pid, SECOND},
    network::HostId,
    world::{Event, World, world},
};
use evergate_cluster::raft::{BoxStream, Links};
use futures::{FutureExt, future::BoxFuture};
use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So long what was sent may stay unacknowledged before the connection is given up, as the real one has it.
const UNACKNOWLEDGED: u64 = SECOND;

/// How often TCP tries again.
const AGAIN: u64 = 25 * MILLI;

/// How long it is tried to make a connection.
const DIAL: Duration = Duration::from_millis(250);

/// One direction of a connection.
#[derive(Default)]
struct Way {
    /// Sent, and not yet there.
    under_way: VecDeque<Vec<u8>>,
    /// There, and not yet read.
    arrived: VecDeque<u8>,
    /// The sender has closed it; that comes after what is under way.
    closed: bool,
    /// The receiver knows that.
    ended: bool,
    reader: Option<Waker>,
    /// When the last part is due.
    last_due: u64,
    /// Since when nothing gets through.
    stalled: Option<u64>,
}

struct Both {
    ways: [Way; 2],
    broken: bool,
}

/// A connection.
pub(crate) struct Connection {
    ends: [(HostId, Pid); 2],
    both: Mutex<Both>,
}

impl Connection {
    fn both(&self) -> MutexGuard<'_, Both> {
        self.both.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a process has one of its ends.
    pub(crate) fn concerns(&self, process: Pid) -> bool {
        self.ends.iter().any(|end| end.1 == process)
    }

    pub(crate) fn is_over(&self) -> bool {
        let both = self.both();
        both.broken || both.ways.iter().all(|way| way.ended)
    }

    /// Sends, by the end `side`; nothing is the end.
    fn send(self: &Arc<Self>, side: usize, bytes: Vec<u8>, world: &World) {
        crate::secrecy::search("what a member sends to another", &bytes);
        let delay = world.member_delay();
        let mut both = self.both();
        let way = &mut both.ways[side];
        if bytes.is_empty() {
            if way.closed {
                return;
            }
            way.closed = true;
        }
        way.under_way.push_back(bytes);
        let due = (conductor::now() + delay).max(way.last_due + 1);
        way.last_due = due;
        drop(both);
        world.schedule(due, Event::Part(Arc::clone(self), side));
    }

    /// The next part of what `side` has sent arrives, if it can.
    pub(crate) fn arrive(self: &Arc<Self>, side: usize, world: &World) {
        let (from, to) = (self.ends[side], self.ends[1 - side]);
        // Acknowledgements go the other way.
        let cut = world.is_cut(from.0, to.0) || world.is_cut(to.0, from.0);
        let reachable = !cut && !world.is_off(to);
        let now = conductor::now();
        let mut both = self.both();
        if both.broken {
            return;
        }
        if !reachable {
            let since = *both.ways[side].stalled.get_or_insert(now);
            drop(both);
            if now - since > UNACKNOWLEDGED {
                self.break_off();
            } else {
                world.schedule(now + AGAIN, Event::Part(Arc::clone(self), side));
            }
            return;
        }
        let way = &mut both.ways[side];
        way.stalled = None;
        match way.under_way.pop_front() {
            Some(bytes) if bytes.is_empty() => way.ended = true,
            Some(bytes) => way.arrived.extend(bytes),
            None => {}
        }
        let waker = way.reader.take();
        drop(both);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Both ends find that it is no more.
    fn break_off(&self) {
        let mut both = self.both();
        both.broken = true;
        let wakers = [0, 1].map(|side| both.ways[side].reader.take());
        drop(both);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// The process of an end has died. Its kernel says so, unless that died, too.
    pub(crate) fn died(self: &Arc<Self>, process: Pid, kernel_lives: bool, world: &World) {
        for side in [0, 1] {
            if self.ends[side].1 != process {
                continue;
            }
            // Nothing of a dead process is touched, also not to drop it.
            let reader = self.both().ways[1 - side].reader.take();
            std::mem::forget(reader);
            if kernel_lives {
                self.send(side, Vec::new(), world);
            }
        }
    }
}

/// One end of a connection.
struct End {
    connection: Arc<Connection>,
    side: usize,
}

impl Drop for End {
    fn drop(&mut self) {
        self.connection.send(self.side, Vec::new(), world());
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut both = self.connection.both();
        let broken = both.broken;
        let way = &mut both.ways[1 - self.side];
        if !way.arrived.is_empty() {
            let count = way.arrived.len().min(buf.remaining());
            let bytes: Vec<u8> = way.arrived.drain(..count).collect();
            buf.put_slice(&bytes);
            return Poll::Ready(Ok(()));
        }
        if broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if way.ended {
            return Poll::Ready(Ok(()));
        }
        way.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        {
            let both = self.connection.both();
            if both.broken || both.ways[self.side].closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
        }
        if !bytes.is_empty() {
            self.connection.send(self.side, bytes.to_vec(), world());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.send(self.side, Vec::new(), world());
        Poll::Ready(Ok(()))
    }
}

/// Where connections to a process wait until it takes them.
#[derive(Default)]
pub(crate) struct Door(Mutex<(VecDeque<BoxStream>, Option<Waker>)>);

impl Door {
    fn put(&self, stream: BoxStream) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.0.push_back(stream);
        let waker = waiting.1.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<BoxStream>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = waiting.0.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        waiting.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The connections of one process.
pub(crate) struct Wires {
    pub(crate) host: HostId,
    pub(crate) process: Pid,
    pub(crate) door: Arc<Door>,
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wires({})", self.host)
    }
}

impl Links for Wires {
    fn accept(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        std::future::poll_fn(|cx| self.door.poll(cx)).boxed()
    }

    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>> {
        let own = (self.host, self.process);
        let dialled = async move {
            let world = world();
            let trip = Duration::from_nanos(2 * world.member_delay());
            tokio::time::sleep(trip).await;
            let Some((host, process, door)) = world.door_at(&address) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            if world.is_cut(own.0, host)
                || world.is_cut(host, own.0)
                || world.is_off((host, process))
            {
                tokio::time::sleep(DIAL).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            let connection = Arc::new(Connection {
                ends: [own, (host, process)],
                both: Mutex::new(Both {
                    ways: Default::default(),
                    broken: false,
                }),
            });
            world.connected(&connection);
            let end = |side| {
                Box::new(End {
                    connection: Arc::clone(&connection),
                    side,
                }) as BoxStream
            };
            door.put(end(1));
            Ok(end(0))
        };
        dialled.boxed()
    }
}
