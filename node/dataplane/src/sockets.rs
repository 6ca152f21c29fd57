//! The outer sockets: IKE, ESP in UDP, ESP right on IP.
//!
//! Each is bound to the wildcard of its family and knows by packet information which address a datagram was sent to; replies name
//! their source likewise. All bear the mark that keeps outer packets out of the tunnel.
//!
//! **Fragments.** ESP goes out with DF (path MTU discovery), IKE must get through in fragments (RFC 7296 §2). Both share the NAT port, and
//! Linux has no DF per datagram, only per socket. So DF is on for sockets that carry ESP, and whoever has a datagram that may be
//! fragmented turns it off for the moment of that one call, under a lock. ESP that another thread sends at that moment goes without DF: at
//! worst it is fragmented, nothing is lost. The IKE port never sets DF. Datagrams so small that every path takes them skip all that.
//!
//! **Several workers** have a set of sockets each, but for the IKE port. Which of them a packet comes to depends on nothing but where it comes from
//! (and was sent to), so the packets of a peer stay in their order: at the NAT port and to packet sockets the kernel distributes them, ESP right on IP is
//! filtered by each raw socket.

use crate::{
    PlaneConfig, PlaneError,
    link::{self, Device},
    share::{Share, chooser},
    sys::{self, Fanout, RecvBatch, Ring},
};
use netlink_packet_core::Emitable;
use netlink_packet_xfrm as xfrm;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

/// Linux never believes in a path MTU below 552; headers taken off, this always fits.
const ALWAYS_FITS: usize = 500;
/// Receive and send buffers, in bytes: some milliseconds of traffic at full speed.
const BUFFER: usize = 4 << 20;
/// How long a full send buffer may hold the sending thread up.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Sockets that path MTUs are asked with: outer addresses that a member has, and more.
const MAX_ASKERS: usize = 256;
/// Of `linux/udp.h` and `linux/in.h`, `linux/in6.h`: what libc has no names for.
const UDP_ENCAP: i32 = 100;
const UDP_ENCAP_ESPINUDP: i32 = 2;
const IP_XFRM_POLICY: i32 = 17;
const IPV6_XFRM_POLICY: i32 = 35;
/// The non-ESP marker (RFC 3948 §2.2).
const NON_ESP_MARKER: &[u8] = &[0; 4];

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// IKE port.
    Ike,
    /// NAT port: IKE behind a marker, ESP, keepalives.
    Nat,
    /// ESP right on IP.
    Esp,
    /// The same by a packet socket of this interface ([`link`](crate::link)).
    Link(u32),
}

/// Who carries ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Esp {
    /// Whoever has the sockets.
    Ours,
    /// The kernel: it takes ESP out of UDP, and what remains on the sockets is IKE.
    Kernel,
}

impl Esp {
    fn roles(self) -> &'static [Role] {
        match self {
            Self::Ours => &[Role::Ike, Role::Nat, Role::Esp],
            Self::Kernel => &[Role::Ike, Role::Nat],
        }
    }
}

/// One socket.
pub(crate) struct OuterSocket {
    socket: Socket,
    pub(crate) role: Role,
    pub(crate) ipv4: bool,
    /// The local port; 0 for ESP right on IP.
    pub(crate) port: u16,
    /// Whether datagrams leave with DF, unless they may be fragmented.
    sets_df: bool,
    /// Held while DF is off.
    unset_df: Mutex<()>,
    /// Whether the kernel cuts several datagrams out of one message.
    cuts: AtomicBool,
    /// Whether errors come by a queue.
    queues_errors: bool,
    /// Where a packet socket has what it received.
    ring: Option<Mutex<Ring>>,
    /// How many datagrams the kernel has said that it had no room for.
    lost: AtomicU32,
}

impl OuterSocket {
    fn open(
        role: Role,
        esp: Esp,
        ipv4: bool,
        share: Share,
        devices: &[Device],
        config: &PlaneConfig,
    ) -> io::Result<Self> {
        let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let (kind, protocol, port) = match role {
            Role::Ike => (Type::DGRAM, Protocol::UDP, config.ike_port),
            Role::Nat => (Type::DGRAM, Protocol::UDP, config.nat_port),
            Role::Esp => (Type::RAW, Protocol::from(libc::IPPROTO_ESP), 0),
            Role::Link(index) => {
                let device = devices.iter().find(|d| d.index == index);
                let device = device.ok_or(io::ErrorKind::NotFound)?;
                return Self::open_link(device, ipv4, config);
            }
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_mark(config.mark)?;
        enlarge(&socket);
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let (level, options) = if ipv4 {
            (libc::IPPROTO_IP, [libc::IP_PKTINFO, libc::IP_RECVTOS])
        } else {
            if role != Role::Esp {
                // Raw sockets are of one family anyway.
                socket.set_only_v6(true)?;
            }
            (
                libc::IPPROTO_IPV6,
                [libc::IPV6_RECVPKTINFO, libc::IPV6_RECVTCLASS],
            )
        };
        for option in options {
            sys::set_option(socket.as_fd(), level, option, 1)?;
        }
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        let opened = Self {
            socket,
            role,
            ipv4,
            port,
            sets_df: role != Role::Ike && esp == Esp::Ours,
            unset_df: Mutex::new(()),
            cuts: AtomicBool::new(false),
            queues_errors: role == Role::Esp && (!ipv4 || !config.link_devices.is_empty()),
            ring: None,
            lost: AtomicU32::new(0),
        };
        match (role, esp) {
            (Role::Nat, Esp::Ours) => opened.take_together(),
            (Role::Nat, Esp::Kernel) => opened.leave_esp_to_kernel()?,
            _ => {}
        }
        opened.set_df(opened.sets_df)?;
        if esp == Esp::Kernel {
            opened.pass_policies()?;
        }
        if opened.queues_errors {
            let option = if ipv4 {
                libc::IP_RECVERR
            } else {
                libc::IPV6_RECVERR
            };
            sys::set_option(opened.as_fd(), level, option, 1)?;
        }
        if role == Role::Esp && share.of > 1 {
            opened.socket.attach_filter(&share.filter(ipv4))?;
        }
        if role != Role::Esp {
            opened.bind(share)?;
        }
        Ok(opened)
    }

    /// Takes its port, which the NAT ports of several workers share.
    fn bind(&self, share: Share) -> io::Result<()> {
        let shares_port = self.role == Role::Nat && share.of > 1;
        if shares_port && share.part > 0 {
            self.socket.set_reuse_port(true)?;
        }
        let any: IpAddr = if self.ipv4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let address = SocketAddr::new(any, self.port);
        self.socket.bind(&SockAddr::from(address))?;
        if shares_port && share.part == 0 {
            // Only now, so that the port is not taken from somebody else who shares it.
            self.socket.set_reuse_port(true)?;
        }
        Ok(())
    }

    /// A packet socket for ESP of one family on an interface.
    fn open_link(device: &Device, ipv4: bool, config: &PlaneConfig) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_mark(config.mark)?;
        enlarge(&socket);
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        // Before it is bound: it receives nothing yet.
        socket.attach_filter(&link::filter(ipv4))?;
        let ring = Ring::new(socket.as_fd(), device.mtu as usize)?;
        sys::bind_link(socket.as_fd(), link::ethertype(ipv4), device.index)?;
        Ok(Self {
            socket,
            role: Role::Link(device.index),
            ipv4,
            port: 0,
            sets_df: false,
            unset_df: Mutex::new(()),
            cuts: AtomicBool::new(false),
            queues_errors: false,
            ring: Some(Mutex::new(ring)),
            lost: AtomicU32::new(0),
        })
    }

    /// ESP in UDP goes through the kernel's states (RFC 3948), and does not come here.
    fn leave_esp_to_kernel(&self) -> io::Result<()> {
        sys::set_option(self.as_fd(), libc::SOL_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
    }

    /// IKE goes in the clear, whatever the kernel's policies say.
    fn pass_policies(&self) -> io::Result<()> {
        let (level, name) = if self.ipv4 {
            (libc::IPPROTO_IP, IP_XFRM_POLICY)
        } else {
            (libc::IPPROTO_IPV6, IPV6_XFRM_POLICY)
        };
        for direction in [xfrm::XFRM_POLICY_IN, xfrm::XFRM_POLICY_OUT] {
            let mut policy = xfrm::UserPolicyInfo {
                direction,
                action: xfrm::XFRM_POLICY_ALLOW,
                ..xfrm::UserPolicyInfo::default()
            };
            policy.selector.family = if self.ipv4 {
                xfrm::AF_INET
            } else {
                xfrm::AF_INET6
            };
            let mut bytes = [0; xfrm::XFRM_USER_POLICY_INFO_LEN];
            policy.emit(&mut bytes);
            sys::set_option_bytes(self.as_fd(), level, name, &bytes)?;
        }
        Ok(())
    }

    /// Datagrams of one flow come and go together where the kernel can do that (Linux 4.18 and 5.0).
    fn take_together(&self) {
        let option = |name, value| sys::set_option(self.as_fd(), libc::SOL_UDP, name, value);
        self.cuts
            .store(option(libc::UDP_SEGMENT, 0).is_ok(), Ordering::Relaxed);
        if let Err(error) = option(libc::UDP_GRO, 1) {
            tracing::info!(%error, "datagrams come one by one");
        }
    }

    /// Where the socket has what it received, if not in its queue. One thread reads it.
    pub(crate) fn ring(&self) -> Option<MutexGuard<'_, Ring>> {
        let ring = self.ring.as_ref()?;
        Some(ring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many more datagrams the kernel has had no room for, now that it has told so with a batch.
    pub(crate) fn newly_lost(&self, batch: &RecvBatch) -> usize {
        let Some(all) = batch.lost() else {
            return 0;
        };
        let before = self.lost.swap(all, Ordering::Relaxed);
        usize::try_from(all.wrapping_sub(before)).unwrap_or(0)
    }

    /// Whether several datagrams may be given to the kernel as one message.
    pub(crate) fn cuts(&self) -> bool {
        self.cuts.load(Ordering::Relaxed)
    }

    /// The kernel refused several datagrams in one message. What cannot be otherwise the next time is not tried again.
    pub(crate) fn could_not_cut(&self, error: &io::Error) {
        // The device that the route leads to has no checksum offload.
        if error.raw_os_error() == Some(libc::EIO) {
            self.cuts.store(false, Ordering::Relaxed);
            tracing::info!(%error, "datagrams leave one by one");
        }
    }

    fn set_df(&self, on: bool) -> io::Result<()> {
        let (level, name, value) = match (self.ipv4, on) {
            (true, true) => (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DO,
            ),
            (true, false) => (
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_DONT,
            ),
            (false, true) => (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DO,
            ),
            (false, false) => (
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_DONT,
            ),
        };
        sys::set_option(self.as_fd(), level, name, value)
    }

    /// Whether errors come by a queue, to be discarded. Only so does the kernel believe a "packet too big" about what went out by a raw IPv6
    /// socket; elsewhere it does without, but tells of it what packet sockets would not be told.
    pub(crate) fn queues_errors(&self) -> bool {
        self.queues_errors
    }

    /// Sends what must not be fragmented; how many datagrams the kernel took. An error is about the first.
    pub(crate) fn send(&self, messages: &[sys::Outgoing<'_>]) -> io::Result<usize> {
        let sent = sys::send(self.as_fd(), messages, true);
        if sent.is_err() && self.queues_errors() {
            // That may have been about another datagram, sent long ago. Told once, it is gone.
            return sys::send(self.as_fd(), messages, true);
        }
        sent
    }

    /// Sends a datagram that may be fragmented.
    pub(crate) fn send_fragmentable(&self, message: sys::Outgoing<'_>) -> io::Result<()> {
        let len = message.prefix.len() + message.data.len();
        if !self.sets_df || len <= ALWAYS_FITS {
            return sys::send(self.as_fd(), &[message], false).map(|_| ());
        }
        let _turn = self.unset_df.lock().unwrap_or_else(PoisonError::into_inner);
        self.set_df(false)?;
        let sent = sys::send(self.as_fd(), &[message], false);
        self.set_df(true)?;
        sent.map(|_| ())
    }
}

impl AsFd for OuterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Bounded by the kernel's limits without the privilege; then buffers are what the kernel gives.
fn enlarge(socket: &Socket) {
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = sys::set_option(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        i32::try_from(BUFFER).expect("a small constant"),
    );
    let _ = socket.set_send_buffer_size(BUFFER);
}

/// The outer sockets of a worker.
pub(crate) struct SocketSet(Vec<OuterSocket>);

impl SocketSet {
    fn open(
        esp: Esp,
        devices: &[Device],
        share: Share,
        config: &PlaneConfig,
    ) -> Result<Self, PlaneError> {
        let mut all = Vec::new();
        for ipv4 in [true, false] {
            let links = devices.iter().map(|device| Role::Link(device.index));
            for role in esp.roles().iter().copied().chain(links) {
                if role == Role::Ike && share.part > 0 {
                    continue;
                }
                match OuterSocket::open(role, esp, ipv4, share, devices, config) {
                    Ok(socket) => all.push(socket),
                    Err(e) if !ipv4 && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                        tracing::warn!("no IPv6 on this host");
                    }
                    Err(source) => {
                        let family = if ipv4 { "IPv4" } else { "IPv6" };
                        let what = format!("open {family} socket for {role:?}");
                        return Err(PlaneError::Io { what, source });
                    }
                }
            }
        }
        Ok(Self(all))
    }

    /// Every socket.
    pub(crate) fn all(&self) -> &[OuterSocket] {
        &self.0
    }

    /// The place in [`Self::all`] of the socket for this use.
    pub(crate) fn index(&self, role: Role, ipv4: bool) -> Option<usize> {
        self.0.iter().position(|s| s.role == role && s.ipv4 == ipv4)
    }
}

/// Has the kernel hand what packet sockets receive to one of them each, however many there are.
fn spread(sets: &[SocketSet]) -> io::Result<()> {
    let Some((first, others)) = sets.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Ok(());
    };
    let of = u32::try_from(sets.len()).map_err(io::Error::other)?;
    let links = first.0.iter().filter(|s| matches!(s.role, Role::Link(_)));
    for socket in links {
        let group = Fanout::new(socket.as_fd(), &chooser(socket.ipv4, of))?;
        for set in others {
            let same = set.index(socket.role, socket.ipv4);
            group.join(set.0[same.ok_or(io::ErrorKind::NotFound)?].as_fd())?;
        }
    }
    Ok(())
}

/// All outer sockets.
pub(crate) struct Sockets {
    sets: Vec<SocketSet>,
    ike_port: u16,
    nat_port: u16,
    mark: u32,
    /// What the kernel is asked for path MTUs with: one socket for each of our addresses, whatever the number of peers.
    askers: Mutex<HashMap<IpAddr, Socket>>,
}

impl Sockets {
    /// Opens them all in the network namespace of the calling thread, for so many workers, with packet sockets on these interfaces. A host without IPv6 has only those for IPv4.
    pub(crate) fn open(
        config: &PlaneConfig,
        esp: Esp,
        devices: &[Device],
        workers: usize,
    ) -> Result<Self, PlaneError> {
        let of = u32::try_from(workers).unwrap_or(1);
        let sets = (0..of).map(|part| SocketSet::open(esp, devices, Share { part, of }, config));
        let sets: Vec<_> = sets.collect::<Result<_, _>>()?;
        spread(&sets).map_err(|source| PlaneError::Io {
            what: "spread what packet sockets receive over the workers".into(),
            source,
        })?;
        Ok(Self {
            sets,
            ike_port: config.ike_port,
            nat_port: config.nat_port,
            mark: config.mark,
            askers: Mutex::default(),
        })
    }

    /// Those of a worker.
    pub(crate) fn of(&self, worker: usize) -> &SocketSet {
        &self.sets[worker]
    }

    pub(crate) fn send_ike(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        message: &[u8],
    ) -> io::Result<()> {
        let (role, prefix) = match local.port() {
            p if p == self.nat_port => (Role::Nat, NON_ESP_MARKER),
            p if p == self.ike_port => (Role::Ike, &[][..]),
            _ => return Err(io::Error::from(io::ErrorKind::AddrNotAvailable)),
        };
        self.send_control(role, local, remote, prefix, message)
    }

    /// RFC 3948 §2.3: one byte 0xff.
    pub(crate) fn keepalive(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
        self.send_control(Role::Nat, local, remote, &[], &[0xff])
    }

    fn send_control(
        &self,
        role: Role,
        local: SocketAddr,
        remote: SocketAddr,
        prefix: &'static [u8],
        data: &[u8],
    ) -> io::Result<()> {
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // The first worker has one for every use.
        let set = self.of(0);
        let socket = set
            .index(role, remote.is_ipv4())
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        set.all()[socket].send_fragmentable(sys::Outgoing {
            data,
            prefix,
            to: sys::To::Host(remote),
            from: local.ip(),
            traffic_class: None,
            segment: None,
        })
    }

    /// The address from which the kernel sends to a peer; from another only if it can.
    pub(crate) fn source_to(&self, from: Option<IpAddr>, to: IpAddr) -> io::Result<IpAddr> {
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_mark(self.mark)?;
        if let Some(from) = from {
            socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
        }
        socket.connect(&SockAddr::from(SocketAddr::new(to, self.nat_port)))?;
        let local = socket.local_addr()?.as_socket();
        local
            .map(|a| a.ip())
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// The MTU of the path from here to there as the kernel knows it: of the route, or less if a router said so (RFC 1191, RFC 8201).
    pub(crate) fn path_mtu(&self, from: IpAddr, to: IpAddr) -> io::Result<u32> {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = askers.get(&from) {
            if let Ok(mtu) = self.ask(socket, to) {
                return Ok(mtu);
            }
            // The address may have been away meanwhile.
            askers.remove(&from);
        }
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_mark(self.mark)?;
        if from.is_unspecified() {
            // It would keep the source that the kernel chooses for this peer.
            return self.ask(&socket, to);
        }
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
        let mtu = self.ask(&socket, to)?;
        if askers.len() >= MAX_ASKERS {
            askers.clear();
        }
        askers.insert(from, socket);
        Ok(mtu)
    }

    fn ask(&self, socket: &Socket, to: IpAddr) -> io::Result<u32> {
        socket.connect(&SockAddr::from(SocketAddr::new(to, self.nat_port)))?;
        let (level, name) = if to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU)
        };
        let mtu = sys::option(socket.as_fd(), level, name)?;
        Ok(u32::try_from(mtu).unwrap_or(0))
    }
}
