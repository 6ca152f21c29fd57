//! Sockets to the responder: pairs of one for IKE and one for IKE and ESP in UDP.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
};

/// Asked of the kernel for each socket: answers to many requests may come at once.
const BUFFER: usize = 4 << 20;

/// What precedes IKE where ESP is encapsulated (RFC 3948 §2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// One end of the load's: an address with two ports.
#[derive(Debug)]
pub(super) struct Link {
    ike: Port,
    nat: Port,
}

#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    local: SocketAddr,
    remote: SocketAddr,
}

/// An IKE message that came in, and from where to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Length; the message is at `start` of the buffer.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Where both sockets of a pair lead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) local: IpAddr,
    /// Ports of ours; zero is any.
    pub(super) local_ports: (u16, u16),
    pub(super) remote: SocketAddr,
    pub(super) remote_nat_port: u16,
}

impl Link {
    /// Opens a pair of sockets.
    pub(super) fn open(ends: Ends) -> io::Result<Self> {
        let remote_nat = SocketAddr::new(ends.remote.ip(), ends.remote_nat_port);
        Ok(Self {
            ike: Port::open(ends.local, ends.local_ports.0, ends.remote)?,
            nat: Port::open(ends.local, ends.local_ports.1, remote_nat)?,
        })
    }

    /// Our port for IKE.
    pub(super) fn ike_port(&self) -> u16 {
        self.ike.local.port()
    }

    /// Our port for IKE and ESP in UDP.
    pub(super) fn nat_port(&self) -> u16 {
        self.nat.local.port()
    }

    /// Sends an IKE message from one of our ports.
    pub(super) fn send(&self, local_port: u16, message: &[u8]) -> io::Result<()> {
        if local_port == self.nat_port() {
            let datagram = [&NON_ESP_MARKER, message].concat();
            self.nat.socket.send(&datagram).map(drop)
        } else {
            self.ike.socket.send(message).map(drop)
        }
    }

    /// Keeps a NAT's mapping (RFC 3948 §2.3).
    pub(super) fn send_keepalive(&self) -> io::Result<()> {
        self.nat.socket.send(&[0xff]).map(drop)
    }

    /// Sends ESP in UDP (RFC 3948 §2.1).
    pub(super) fn send_esp(&self, packet: &[u8]) -> io::Result<()> {
        self.nat.socket.send(packet).map(drop)
    }

    /// Receives an IKE message if one is there. ESP and keepalives are dropped.
    #[cfg(test)]
    fn receive(&self, buffer: &mut [u8]) -> Option<Received> {
        self.receive_with(buffer, &mut |_| {})
    }

    /// Receives an IKE message if one is there. ESP that comes before it is shown, and keepalives are dropped.
    pub(super) fn receive_with(
        &self,
        buffer: &mut [u8],
        esp: &mut dyn FnMut(&mut [u8]),
    ) -> Option<Received> {
        self.ike
            .receive(buffer, false, esp)
            .or_else(|| self.nat.receive(buffer, true, esp))
    }

    /// What to wait for.
    pub(super) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.ike.socket.as_fd(), self.nat.socket.as_fd()]
    }
}

impl Port {
    fn open(local: IpAddr, port: u16, remote: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(remote);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // As far as the kernel allows: what does not fit is lost and repeated, which the report shows.
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind(&SocketAddr::new(local, port).into())?;
        socket.connect(&remote.into())?;
        let socket = UdpSocket::from(socket);
        Ok(Self {
            local: socket.local_addr()?,
            socket,
            remote,
        })
    }

    fn receive(
        &self,
        buffer: &mut [u8],
        marked: bool,
        esp: &mut dyn FnMut(&mut [u8]),
    ) -> Option<Received> {
        // What is not IKE is passed over, but not for ever: a flood of ESP must not starve the rest.
        const MOST: usize = 64;
        for _ in 0..MOST {
            let end = match self.socket.recv(buffer) {
                Ok(end) => end,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => continue, // an ICMP error about something sent before: retransmission deals with it
            };
            let start = if marked { NON_ESP_MARKER.len() } else { 0 };
            let is_ike = !marked || buffer[..end].starts_with(&NON_ESP_MARKER);
            if is_ike {
                return Some(Received {
                    start,
                    end,
                    local: self.local,
                    remote: self.remote,
                });
            }
            esp(&mut buffer[..end]);
        }
        None
    }
}

/// The address from which this machine reaches `remote`.
pub(super) fn local_address(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn pair() -> (Link, UdpSocket, UdpSocket) {
        let (ike, nat) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        let link = Link::open(Ends {
            local: "127.0.0.1".parse().unwrap(),
            local_ports: (0, 0),
            remote: ike.local_addr().unwrap(),
            remote_nat_port: nat.local_addr().unwrap().port(),
        })
        .unwrap();
        (link, ike, nat)
    }

    #[test]
    fn only_what_leaves_from_the_nat_port_is_marked() {
        let (link, ike, nat) = pair();
        let mut buffer = [0; 16];
        link.send(link.ike_port(), b"one").unwrap();
        let n = ike.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"one");
        link.send(link.nat_port(), b"two").unwrap();
        let n = nat.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"\0\0\0\0two");
    }

    #[test]
    fn esp_and_keepalives_are_passed_over() {
        let (link, _ike, nat) = pair();
        let to = ("127.0.0.1", link.nat_port());
        nat.send_to(b"\x01\0\0\0esp", to).unwrap();
        nat.send_to(b"\xff", to).unwrap();
        nat.send_to(b"\0\0\0\0ike", to).unwrap();
        let mut buffer = [0; 16];
        // The kernel may deliver them a little later.
        let end = Instant::now() + Duration::from_secs(20);
        let got = loop {
            if let Some(got) = link.receive(&mut buffer) {
                break got;
            }
            assert!(Instant::now() < end, "nothing comes");
            std::thread::yield_now();
        };
        assert_eq!(&buffer[got.start..got.end], b"ike");
        assert_eq!(got.local.port(), link.nat_port());
        assert!(link.receive(&mut buffer).is_none());
    }
}
