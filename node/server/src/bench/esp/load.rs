//! Applications: what sends, and what receives.

use anyhow::{Context, bail};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const PORT: u16 = 7000;
const CHUNK: usize = 128 << 10;
/// Payload of a datagram in bytes.
const DATAGRAM: usize = 1350;
/// Datagrams are sent in portions, so often.
const PACE: Duration = Duration::from_millis(1);

/// What receives, for as long as the process lives.
pub(super) struct Sinks {
    received: Arc<AtomicU64>,
}

impl Sinks {
    pub(super) fn open() -> anyhow::Result<Self> {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
        let listener = TcpListener::bind(any).context("cannot listen")?;
        let socket = UdpSocket::bind(any).context("cannot receive datagrams")?;
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
        let received = Arc::<AtomicU64>::default();
        let count = Arc::clone(&received);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(len) = socket.recv(&mut buffer) {
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        let count = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                thread::spawn(move || swallow(stream, &count));
            }
        });
        Ok(Self { received })
    }

    /// Bytes of payload.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

fn swallow(mut stream: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        count.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// What sends until it is dropped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `tcp STREAMS` or `udp MBIT`.
    pub(super) fn start(what: &str, servers: &Arc<[IpAddr]>) -> anyhow::Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        match what.split_once(' ') {
            Some(("tcp", streams)) => {
                for i in 0..streams.parse()? {
                    let to = SocketAddr::new(servers[i % servers.len()], PORT);
                    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5));
                    let stream = stream.context("the first packets do not come through")?;
                    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
                    let stop = Arc::clone(&load.stop);
                    let pour = move || pour(&stream, &stop);
                    load.threads.push(thread::spawn(pour));
                }
            }
            Some(("udp", rate)) => {
                let bytes_per_second = rate.parse::<f64>()? * 1e6 / 8.0;
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                let (stop, servers) = (Arc::clone(&load.stop), Arc::clone(servers));
                let drip = move || drip(&socket, &servers, bytes_per_second, &stop);
                load.threads.push(thread::spawn(drip));
            }
            _ => bail!("no such load: {what}"),
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn pour(mut stream: &TcpStream, stop: &AtomicBool) {
    let bytes = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&bytes) {
            Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return,
            _ => {}
        }
    }
}

/// One after the other to each server.
fn drip(socket: &UdpSocket, servers: &[IpAddr], bytes_per_second: f64, stop: &AtomicBool) {
    let bytes = [0x5a; DATAGRAM];
    let (began, mut sent) = (Instant::now(), 0.0);
    let mut servers = servers.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        while sent < began.elapsed().as_secs_f64() * bytes_per_second {
            let Some(server) = servers.next() else { return };
            // What does not fit into the queue of the device is lost, as it would be with any sender.
            let _ = socket.send_to(&bytes, (*server, PORT));
            sent += DATAGRAM as f64;
        }
        thread::sleep(PACE);
    }
}
