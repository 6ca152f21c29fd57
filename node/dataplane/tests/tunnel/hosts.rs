//! Hosts in network namespaces, as threads of this process, and what they are wired with.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

type Job = Box<dyn FnOnce() + Send>;

/// How long what is to come is waited for: longer than a busy machine stands still.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A host: a thread in a network namespace of its own, which lives as long as this.
pub(crate) struct Host {
    tid: i32,
    jobs: mpsc::Sender<Job>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, tid) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("make a network namespace");
            ready.send(nix::unistd::gettid().as_raw()).expect("tell");
            for job in queue {
                job();
            }
        });
        let tid = tid.recv().expect("the host starts");
        let host = Self { tid, jobs };
        host.ip("link set lo up");
        host
    }

    /// Runs something on the host; what it opens belongs to the host.
    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.jobs
            .send(Box::new(move || {
                let _ = answer.send(f());
            }))
            .expect("the host lives");
        result.recv().expect("the job did not panic")
    }

    /// Runs `ip` with these arguments.
    pub(crate) fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(Into::into).collect();
        self.run(move || {
            let output = Command::new("ip").args(&arguments).output();
            let output = output.expect("iproute2 is installed");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {arguments:?}: {error}");
        });
    }

    /// What `ip` prints.
    pub(crate) fn ip_output(&self, arguments: &str) -> String {
        let arguments: Vec<String> = arguments.split(' ').map(Into::into).collect();
        self.run(move || {
            let output = Command::new("ip").args(&arguments).output();
            let output = output.expect("iproute2 is installed");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        let value = value.to_owned();
        self.run(move || std::fs::write(&path, value).expect("set a sysctl"));
    }

    /// Gives the host an address. IPv6 without waiting for duplicates.
    pub(crate) fn address(&self, address: &str, device: &str) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {device}{nodad}"));
    }

    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().expect("an address");
        self.run(move || {
            let socket = UdpSocket::bind(address).expect("bind");
            let timeout = Some(PATIENCE);
            socket.set_read_timeout(timeout).expect("set a timeout");
            socket
        })
    }

    /// Everything that passes a device of the host from now on.
    pub(crate) fn capture(&self, device: &'static str) -> Capture {
        self.run(move || {
            let all = i32::from(u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be());
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all)));
            let socket = socket.expect("open a packet socket");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("set a timeout");
            socket.set_recv_buffer_size(4 << 20).expect("set a buffer");
            let device = nix::net::if_::if_nametoindex(device).expect("find the device");
            Capture { socket, device }
        })
    }

    /// Sends a whole IPv4 packet as it is, but for the header checksum.
    pub(crate) fn inject(&self, packet: &[u8]) {
        let packet = packet.to_vec();
        self.run(move || {
            let raw = Protocol::from(libc::IPPROTO_RAW);
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(raw)).expect("open");
            let to: [u8; 4] = packet[16..20].try_into().expect("four bytes");
            let to = SocketAddr::new(IpAddr::from(to), 0);
            socket.send_to(&packet, &to.into()).expect("inject");
        });
    }
}

/// Wires two hosts.
pub(crate) fn wire(a: &Host, a_device: &str, b: &Host, b_device: &str) {
    a.ip(&format!(
        "link add {a_device} type veth peer name {b_device} netns {}",
        b.tid
    ));
    a.ip(&format!("link set {a_device} up"));
    b.ip(&format!("link set {b_device} up"));
}

/// IP packets that pass a device.
pub(crate) struct Capture {
    socket: Socket,
    device: u32,
}

impl Capture {
    /// The packets that pass until `enough` says so of them, or patience is at its end.
    pub(crate) fn until(&self, enough: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
        use nix::sys::socket::{LinkAddr, recvfrom};
        let end = Instant::now() + PATIENCE;
        let mut packets = Vec::new();
        let mut buffer = vec![0; 65_536];
        while Instant::now() < end && !enough(&packets) {
            let received = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer);
            let Ok((len, Some(from))) = received else {
                continue;
            };
            if from.ifindex() == self.device as usize {
                packets.push(buffer[..len].to_vec());
            }
        }
        packets
    }

    /// The first that is meant.
    pub(crate) fn first(&self, meant: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let found = self.until(|packets| packets.last().is_some_and(|p| meant(p)));
        let last = found.into_iter().next_back().filter(|p| meant(p));
        last.expect("the packet passes")
    }
}

/// Runs a test with the rights that it needs: as root right here, otherwise again as root of a user namespace. Where neither is possible
/// it says so and passes over.
pub(crate) fn privileged(test_name: &str, test: impl FnOnce()) {
    const INSIDE: &str = "DATAPLANE_TEST_IN_NAMESPACE";
    if nix::unistd::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]);
        command
    };
    let possible = unshare().arg("true").output();
    if !possible.is_ok_and(|o| o.status.success()) {
        eprintln!("{test_name}: skipped: neither root nor user namespaces");
        return;
    }
    let status = unshare()
        .arg(std::env::current_exe().expect("a path"))
        .args([test_name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("start again");
    assert!(status.success(), "{test_name} in a user namespace");
}
