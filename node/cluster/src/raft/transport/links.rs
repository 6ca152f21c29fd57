//! What connections between members are made of. Everything above (TLS, gRPC) is the same whatever carries the bytes.

use futures::{FutureExt, future::BoxFuture};
use socket2::SockRef;
use std::{fmt, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time,
};

/// How long to wait for a connection, before another attempt: TCP by itself repeats its first segment after a second, and until then calls
/// would wait for it although the network is there again.
const DIAL: Duration = Duration::from_millis(250);

/// How long what was sent may stay unacknowledged before a connection is given up. On a network that was cut, TCP waits longer and longer
/// between its attempts, and would go on long after the network is there again; a new connection is there at once.
const UNACKNOWLEDGED: Duration = Duration::from_millis(1000);

/// A connection: bytes both ways, in order.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection of whatever kind.
pub type BoxStream = Box<dyn Stream>;

/// Makes and takes connections between members.
pub trait Links: fmt::Debug + Send + Sync {
    /// The next connection that another member has made. It is not polled again before it has answered.
    fn accept(&self) -> BoxFuture<'_, io::Result<BoxStream>>;

    /// Makes a connection to a member that is reached there (`host:port`), within a bounded time.
    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>>;
}

/// TCP.
#[derive(Debug)]
pub(crate) struct Tcp(TcpListener);

impl Tcp {
    /// Takes connections from this listener. Belongs to the runtime on which it is called.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener).map(Self)
    }
}

impl Links for Tcp {
    fn accept(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        let accepted = async {
            let (tcp, _) = self.0.accept().await?;
            // What cannot be prepared is dead, and shows it when it is used.
            let _ = prepare(&tcp);
            Ok(Box::new(tcp) as BoxStream)
        };
        accepted.boxed()
    }

    fn dial(&self, address: String) -> BoxFuture<'static, io::Result<BoxStream>> {
        let dialled = async move {
            let tcp = time::timeout(DIAL, TcpStream::connect(&address)).await??;
            prepare(&tcp)?;
            Ok(Box::new(tcp) as BoxStream)
        };
        dialled.boxed()
    }
}

/// What every connection between members gets.
fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}
