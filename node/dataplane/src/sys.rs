//! What the standard library has no safe call for: batches of datagrams with their control messages, socket options, the TUN ioctl.
//!
//! The only module of the crate with unsafe code, with what is below it.
#![allow(unsafe_code)]

mod fanout;
mod ring;

pub(crate) use fanout::Fanout;
pub(crate) use ring::{Frames, Ring};
use socket2::SockAddr;
use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// Datagrams in one system call.
pub(crate) const BATCH: usize = 32;
/// The largest datagram.
const MAX_DATAGRAM: usize = 65_536;
/// Room for the control messages of one datagram: packet information, traffic class, length of segments, how many were lost; aligned as `cmsghdr`.
type Control = [u64; 16];

/// Sets an integer socket option.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option_bytes(fd, level, name, &value.to_ne_bytes())
}

/// Sets a socket option whose value is a structure, given as it lies in memory.
pub(crate) fn set_option_bytes(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the pointer is to so many live bytes, which the kernel copies.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    check(result).map(|_| ())
}

/// Reads an integer socket option.
pub(crate) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    option_bytes(fd, level, name).map(i32::from_ne_bytes)
}

/// Reads a socket option of so many bytes, as it lies in memory.
fn option_bytes<const N: usize>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut len = socklen::<[u8; N]>();
    // SAFETY: both pointers are to live values, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    check(result).map(|_| value)
}

/// Which of a device's queues it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// There is no other.
    Only,
    /// It makes the device.
    First,
    /// It joins the device.
    Another,
}

/// From now on the device gives no packets to this queue. It takes them all the same.
pub(crate) fn detach_tun_queue(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(low_half(libc::IFF_DETACH_QUEUE));
    // SAFETY: TUNSETQUEUE reads one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &mut request) }).map(|_| ())
}

/// Makes an open `/dev/net/tun` the device with this name, for IP packets with a `virtio_net_hdr` before each.
///
/// With `queue` it is one queue of several: the first of them makes the device, which must not be there, and others join it.
pub(crate) fn attach_tun(fd: BorrowedFd<'_>, name: &str, queue: Queue) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN
        | libc::IFF_NO_PI
        | libc::IFF_VNET_HDR
        | match queue {
            Queue::Only => libc::IFF_TUN_EXCL,
            Queue::First => libc::IFF_TUN_EXCL | libc::IFF_MULTI_QUEUE,
            Queue::Another => libc::IFF_MULTI_QUEUE,
        };
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(low_half(flags));
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) }).map(|_| ())
}

/// Says what we do for the kernel with packets that we read: complete checksums, cut TCP, and cut UDP if `udp`.
pub(crate) fn set_tun_offload(fd: BorrowedFd<'_>, udp: bool) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let udp = if udp {
        libc::TUN_F_USO4 | libc::TUN_F_USO6
    } else {
        0
    };
    let what = libc::c_ulong::from(tcp | udp);
    // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, what) }).map(|_| ())
}

fn low_half(flags: i32) -> [u8; 2] {
    let bytes = (flags & 0xffff).to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]]).to_ne_bytes()
}

/// Lets a packet socket receive packets of this Ethernet type from this interface, and from no other.
pub(crate) fn bind_link(fd: BorrowedFd<'_>, ethertype: u16, device: u32) -> io::Result<()> {
    let address = link_address(ethertype, device, [0; 6])?;
    // SAFETY: the pointer is to a live address of the stated length.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len()) }).map(|_| ())
}

/// An address of a link: where a packet socket sends.
pub(crate) fn link_address(ethertype: u16, device: u32, mac: [u8; 6]) -> io::Result<SockAddr> {
    let mut link = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(device).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    link.sll_addr[..6].copy_from_slice(&mac);
    // SAFETY: the storage is larger than any socket address and is aligned for it; what is written is a whole sockaddr_ll of that length.
    let made = unsafe {
        SockAddr::try_init(|storage, len| {
            storage.cast::<libc::sockaddr_ll>().write(link);
            *len = socklen::<libc::sockaddr_ll>();
            Ok(())
        })
    };
    made.map(|((), address)| address)
}

/// A datagram that came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// How many bytes of the buffer it fills.
    pub(crate) len: usize,
    /// Where it came from; unspecified if a packet socket received it.
    pub(crate) remote: SocketAddr,
    /// The address that it was sent to.
    pub(crate) local: Option<IpAddr>,
    /// Traffic class of its IP header.
    pub(crate) traffic_class: u8,
    /// Several datagrams of one flow came together: each but the last has so many bytes.
    pub(crate) segment: Option<usize>,
}

/// What came in, and its bytes.
pub(crate) type Arrived<'b> = (Received, &'b mut [u8]);

/// Buffers for datagrams that come in together.
pub(crate) struct RecvBatch {
    data: Vec<u8>,
    names: Vec<libc::sockaddr_storage>,
    control: Vec<Control>,
    received: Vec<Option<Received>>,
    lost: Option<u32>,
}

impl RecvBatch {
    pub(crate) fn new() -> Self {
        // SAFETY: sockaddr_storage is plain data, for which zeros are valid.
        let name: libc::sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            data: vec![0; BATCH * MAX_DATAGRAM],
            names: vec![name; BATCH],
            control: vec![[0; 16]; BATCH],
            received: Vec::with_capacity(BATCH),
            lost: None,
        }
    }

    /// Receives what is there, without waiting; how many datagrams.
    pub(crate) fn recv(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.recv_flags(fd, libc::MSG_DONTWAIT)
    }

    /// Empties a socket's queue of errors, as far as one batch goes. Yields whether there was any.
    pub(crate) fn discard_errors(&mut self, fd: BorrowedFd<'_>) -> bool {
        let found = self.recv_flags(fd, libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE);
        self.received.clear();
        found.is_ok_and(|count| count > 0)
    }

    fn recv_flags(&mut self, fd: BorrowedFd<'_>, flags: i32) -> io::Result<usize> {
        self.received.clear();
        self.lost = None;
        // SAFETY: both are plain data with pointers and lengths, for which zeros are valid.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for (i, buffer) in self.data.chunks_exact_mut(MAX_DATAGRAM).enumerate() {
            vectors[i].iov_base = buffer.as_mut_ptr().cast();
            vectors[i].iov_len = buffer.len();
            let header = &mut headers[i].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[i]).cast();
            header.msg_namelen = socklen::<libc::sockaddr_storage>();
            header.msg_iov = &mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = self.control[i].as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>();
        }
        // SAFETY: every pointer in the headers is to memory of the stated length that lives until the call returns.
        let count = check(unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                headers.as_mut_ptr(),
                u32::try_from(BATCH).expect("a small constant"),
                flags,
                ptr::null_mut(),
            )
        })?;
        let count = usize::try_from(count).unwrap_or(0);
        for (i, header) in headers.iter().take(count).enumerate() {
            let remote = self.remote(i, header.msg_hdr.msg_namelen);
            let told = control_messages(&header.msg_hdr);
            self.received.push(remote.map(|remote| Received {
                len: (header.msg_len as usize).min(MAX_DATAGRAM),
                remote,
                local: told.local,
                traffic_class: told.traffic_class,
                segment: told.segment,
            }));
            self.lost = told.lost.or(self.lost);
        }
        Ok(count)
    }

    /// The datagrams of the last call; without those whose source is no IP address.
    pub(crate) fn arrived(&mut self) -> impl Iterator<Item = Arrived<'_>> {
        let buffers = self.data.chunks_exact_mut(MAX_DATAGRAM);
        let both = self.received.iter().zip(buffers);
        both.filter_map(|(received, buffer)| {
            let received = (*received)?;
            Some((received, &mut buffer[..received.len]))
        })
    }

    /// The bytes of each datagram of the last call; of those that came together, all.
    pub(crate) fn peek(&self) -> impl Iterator<Item = &[u8]> {
        let buffers = self.data.chunks_exact(MAX_DATAGRAM);
        let both = self.received.iter().zip(buffers);
        both.filter_map(|(received, buffer)| received.map(|received| &buffer[..received.len]))
    }

    /// How many datagrams the socket of the last call has had no room for since it was opened. `None` if none, or if it is not to say so.
    pub(crate) fn lost(&self) -> Option<u32> {
        self.lost
    }

    fn remote(&self, i: usize, len: libc::socklen_t) -> Option<SocketAddr> {
        if libc::c_int::from(self.names[i].ss_family) == libc::AF_PACKET {
            return Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        }
        // SAFETY: `SockAddrStorage` has the layout of sockaddr_storage, which the kernel filled up to `len`; the rest is
        // initialised. socket2 looks at the family before it reads more.
        let address = unsafe {
            let storage =
                mem::transmute::<libc::sockaddr_storage, socket2::SockAddrStorage>(self.names[i]);
            SockAddr::new(storage, len)
        };
        address.as_socket()
    }
}

/// What control messages said of a datagram.
#[derive(Default)]
struct Told {
    local: Option<IpAddr>,
    traffic_class: u8,
    segment: Option<usize>,
    lost: Option<u32>,
}

fn control_messages(header: &libc::msghdr) -> Told {
    let mut told = Told::default();
    // SAFETY: the kernel filled the control buffer that the header points to, which is still alive; the macros stay inside the
    // length that it stated, and every value is read unaligned and only if the message is long enough.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            let len = (*message).cmsg_len - libc::CMSG_LEN(0) as usize;
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if len >= size_of::<libc::in_pktinfo>() => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                    let octets = info.ipi_addr.s_addr.to_ne_bytes();
                    told.local = Some(IpAddr::V4(Ipv4Addr::from(octets)));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
                    if len >= size_of::<libc::in6_pktinfo>() =>
                {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                    told.local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::IPPROTO_IP, libc::IP_TOS) if len >= 1 => told.traffic_class = *data,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) if len >= 4 => {
                    let value: libc::c_int = ptr::read_unaligned(data.cast());
                    told.traffic_class = u8::try_from(value).unwrap_or(0);
                }
                (libc::SOL_UDP, libc::UDP_GRO) if len >= 4 => {
                    let value: libc::c_int = ptr::read_unaligned(data.cast());
                    told.segment = usize::try_from(value).ok().filter(|&size| size > 0);
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if len >= 4 => {
                    told.lost = Some(ptr::read_unaligned(data.cast()));
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    told
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To {
    /// To a host.
    Host(SocketAddr),
    /// By a packet socket: to a neighbour with this address on an interface, as a packet of this Ethernet type.
    Neighbour(u16, u32, [u8; 6]),
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// Its bytes, behind what `prefix` is.
    pub(crate) data: &'a [u8],
    /// Bytes before them.
    pub(crate) prefix: &'a [u8],
    /// Where it goes.
    pub(crate) to: To,
    /// Source address; unspecified lets the kernel choose.
    pub(crate) from: IpAddr,
    /// Traffic class of its IP header; `None` for the socket's.
    pub(crate) traffic_class: Option<u8>,
    /// It is several datagrams, each but the last of so many bytes.
    pub(crate) segment: Option<usize>,
}

/// Sends at most [`BATCH`] datagrams; how many were taken. An error is about the first of them.
pub(crate) fn send(fd: BorrowedFd<'_>, messages: &[Outgoing<'_>], wait: bool) -> io::Result<usize> {
    let count = messages.len().min(BATCH);
    // SAFETY: all are plain data with pointers and lengths, for which zeros are valid.
    let (mut vectors, mut headers): ([[libc::iovec; 2]; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control: [Control; BATCH] = [[0; 16]; BATCH];
    let mut names: [Option<SockAddr>; BATCH] = [const { None }; BATCH];
    for (i, message) in messages.iter().take(count).enumerate() {
        let name = names[i].insert(match message.to {
            To::Host(host) => SockAddr::from(host),
            To::Neighbour(ethertype, device, mac) => link_address(ethertype, device, mac)?,
        });
        for (vector, bytes) in vectors[i].iter_mut().zip([message.prefix, message.data]) {
            vector.iov_base = bytes.as_ptr().cast_mut().cast();
            vector.iov_len = bytes.len();
        }
        let header = &mut headers[i].msg_hdr;
        header.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_namelen = name.len();
        header.msg_iov = vectors[i].as_mut_ptr();
        header.msg_iovlen = 2;
        let mut writer = ControlWriter {
            buffer: &mut control[i],
            len: 0,
        };
        writer.source(message.from);
        if let (Some(class), To::Host(host)) = (message.traffic_class, message.to) {
            writer.traffic_class(host.is_ipv4(), class);
        }
        if let Some(size) = message.segment.and_then(|size| u16::try_from(size).ok()) {
            writer.put(libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
        if writer.len > 0 {
            header.msg_controllen = writer.len;
            header.msg_control = control[i].as_mut_ptr().cast();
        }
    }
    // SAFETY: every pointer in the headers is to memory of the stated length that lives until the call returns; sending only
    // reads it.
    let sent = check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            u32::try_from(count).expect("a small number"),
            if wait { 0 } else { libc::MSG_DONTWAIT },
        )
    })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

/// Puts control messages into a buffer that is known to be large enough for one of each kind.
struct ControlWriter<'a> {
    buffer: &'a mut Control,
    len: usize,
}

impl ControlWriter<'_> {
    fn source(&mut self, from: IpAddr) {
        match from {
            a if a.is_unspecified() => {}
            IpAddr::V4(a) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(a.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            IpAddr::V6(a) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: a.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
    }

    fn traffic_class(&mut self, ipv4: bool, class: u8) {
        let class = libc::c_int::from(class);
        if ipv4 {
            self.put(libc::IPPROTO_IP, libc::IP_TOS, class);
        } else {
            self.put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
        }
    }

    fn put<T: Copy>(&mut self, level: i32, kind: i32, value: T) {
        let size = u32::try_from(size_of::<T>()).expect("a small type");
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
        let end = self.len + space as usize;
        assert!(end <= size_of::<Control>(), "one message of each kind fits");
        // SAFETY: the buffer is aligned for cmsghdr, every message ends at a multiple of that alignment (CMSG_SPACE), and it was
        // just checked that this one ends inside the buffer.
        unsafe {
            let header: *mut libc::cmsghdr = self
                .buffer
                .as_mut_ptr()
                .cast::<u8>()
                .add(self.len)
                .cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = len as usize;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), value);
        }
        self.len = end;
    }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a small type")
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::UdpSocket,
        os::fd::AsFd,
        time::{Duration, Instant},
    };

    /// Waits until a socket has something to read: the kernel may deliver what was sent a little later.
    fn await_readable(socket: &UdpSocket) {
        let mut fds = [nix::poll::PollFd::new(
            socket.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let mut polls = std::iter::repeat_with(|| nix::poll::poll(&mut fds, 30_000_u16));
        let ready = polls.find(|ready| *ready != Err(nix::errno::Errno::EINTR));
        assert_eq!(ready, Some(Ok(1)));
    }

    #[test]
    fn batch_keeps_bytes_source_and_traffic_class() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(server.as_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1).unwrap();
        set_option(server.as_fd(), libc::IPPROTO_IP, libc::IP_RECVTOS, 1).unwrap();
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        let from: IpAddr = "127.0.0.7".parse().unwrap();
        let message = |data, class| Outgoing {
            data,
            prefix: &[0; 4],
            to: To::Host(server.local_addr().unwrap()),
            from,
            segment: None,
            traffic_class: Some(class),
        };
        let sent = send(
            client.as_fd(),
            &[message(b"one", 0x01), message(b"two!", 0xb9)],
            true,
        );
        assert_eq!(sent.unwrap(), 2);
        await_readable(&server);
        let mut batch = RecvBatch::new();
        assert_eq!(batch.recv(server.as_fd()).unwrap(), 2);
        let mut arrived = batch.arrived();
        let (first, bytes) = arrived.next().unwrap();
        assert_eq!(bytes, b"\0\0\0\0one");
        assert_eq!((first.remote.ip(), first.traffic_class), (from, 0x01));
        assert_eq!(first.local, Some("127.0.0.1".parse().unwrap()));
        let (second, bytes) = arrived.next().unwrap();
        assert_eq!((bytes.len(), second.traffic_class), (8, 0xb9));
        assert!(arrived.next().is_none());
    }

    #[test]
    fn what_a_socket_has_no_room_for_is_told() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1).unwrap();
        // The least that there is: a datagram or two.
        set_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 0).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut batch = RecvBatch::new();
        let end = Instant::now() + Duration::from_secs(30);
        let (mut sent, mut arrived, mut lost) = (0, 0, 0);
        // What comes later says what was lost before it.
        while arrived + lost != sent || lost == 0 {
            assert!(Instant::now() < end, "{arrived} and {lost} lost of {sent}");
            for _ in 0..if sent == 0 { 100 } else { 1 } {
                client.send(&[0; 1000]).unwrap();
                sent += 1;
            }
            while let Ok(count) = batch.recv(server.as_fd()) {
                arrived += count;
                lost = batch.lost().map_or(lost, |n| n as usize);
            }
        }
    }

    #[test]
    fn datagrams_go_and_come_together() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_option(server.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let message = Outgoing {
            data: &[7; 2500],
            prefix: &[],
            to: To::Host(server.local_addr().unwrap()),
            from: client.local_addr().unwrap().ip(),
            segment: Some(1000),
            traffic_class: None,
        };
        assert_eq!(send(client.as_fd(), &[message], true).unwrap(), 1);
        await_readable(&server);
        let mut batch = RecvBatch::new();
        assert_eq!(batch.recv(server.as_fd()).unwrap(), 1);
        let (received, bytes) = batch.arrived().next().unwrap();
        assert_eq!((received.segment, bytes.len()), (Some(1000), 2500));
    }
}
