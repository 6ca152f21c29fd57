//! Two gateways with planes, and Child SAs between them.

use crate::hosts::{Host, PATIENCE, wire};
use evergate_dataplane::{
    ChildSa, ChildStats, Cipher, DataPlane, Encapsulation, Encryption, HeaderPolicy, Marks, Mode,
    Offload, Outer, PlaneConfig, PlaneEvent, Protected, Selector, Userspace,
};
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

pub(crate) struct Gateway {
    pub(crate) host: Host,
    pub(crate) plane: Arc<Userspace>,
    pub(crate) events: mpsc::Receiver<PlaneEvent>,
}

impl Gateway {
    pub(crate) fn start(host: Host, config: PlaneConfig) -> Self {
        // What an ended plane had open, children that other tests start have, too, until they come to executing their programs.
        let end = Instant::now() + PATIENCE;
        let (plane, events) = host.run(move || {
            loop {
                match Userspace::start(config.clone()) {
                    Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                    started => return started.unwrap(),
                }
            }
        });
        Self {
            host,
            plane,
            events,
        }
    }

    /// Ends the plane, and waits until its device is gone: children of other tests keep that, too.
    pub(crate) fn end(self) -> Host {
        let Self {
            host,
            plane,
            events,
        } = self;
        plane.shutdown();
        drop((plane, events));
        let device = PlaneConfig::default().tun_name;
        eventually("the end of the device", || {
            !host.ip_output("link show").contains(&device)
        });
        host
    }

    /// The next event that is meant; others are skipped.
    pub(crate) fn event(&mut self, meant: impl Fn(&PlaneEvent) -> bool) -> PlaneEvent {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.events.try_recv() {
                Ok(event) if meant(&event) => return event,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        panic!("the event did not come");
    }

    /// Events that are there already.
    pub(crate) fn events_now(&mut self) -> Vec<PlaneEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    pub(crate) fn stats(&self, spi_in: u32) -> ChildStats {
        self.plane.stats(spi_in).unwrap()
    }
}

/// Gateways `a` (192.0.2.1, 2001:db8::1, inside 10.1.0.1, fd01::1) and `b` (the same with 2).
pub(crate) struct Pair {
    pub(crate) a: Gateway,
    pub(crate) b: Gateway,
    /// The router between them, if any: it lives as long as they do.
    pub(crate) router: Option<Host>,
}

impl Pair {
    /// On one wire.
    pub(crate) fn new() -> Self {
        Self::with(PlaneConfig::default())
    }

    pub(crate) fn with(config: PlaneConfig) -> Self {
        let (a, b) = (inside(1), inside(2));
        wire(&a, "wire", &b, "wire");
        for (host, n) in [(&a, 1), (&b, 2)] {
            host.address(&format!("192.0.2.{n}/24"), "wire");
            host.address(&format!("2001:db8::{n}/64"), "wire");
        }
        Self::start(a, b, None, config)
    }

    /// With a router between them, whose link to `b` has this MTU.
    pub(crate) fn routed(mtu: u32) -> Self {
        Self::routed_with(mtu, PlaneConfig::default())
    }

    pub(crate) fn routed_with(mtu: u32, config: PlaneConfig) -> Self {
        let (a, b, router) = (inside(1), inside(2), Host::new());
        for (host, n) in [(&a, 1), (&b, 2)] {
            let to = format!("to{n}");
            wire(host, "wire", &router, &to);
            router.address(&format!("192.0.2.{}/30", n * 64 + 1), &to);
            router.address(&format!("2001:db8:{n}::ff/64"), &to);
            host.address(&format!("192.0.2.{}/30", n * 64 + 2), "wire");
            host.address(&format!("2001:db8:{n}::1/64"), "wire");
            host.ip(&format!(
                "route add default via 192.0.2.{} dev wire",
                n * 64 + 1
            ));
            host.ip(&format!(
                "-6 route add default via 2001:db8:{n}::ff dev wire"
            ));
            // What the cases call the gateways by.
            host.address(&format!("192.0.2.{n}/32"), "lo");
            router.ip(&format!(
                "route add 192.0.2.{n}/32 via 192.0.2.{} dev {to}",
                n * 64 + 2
            ));
            host.address(&format!("2001:db8::{n}/128"), "lo");
            router.ip(&format!(
                "-6 route add 2001:db8::{n}/128 via 2001:db8:{n}::1 dev {to}"
            ));
        }
        router.sysctl("ipv4/ip_forward", "1");
        router.sysctl("ipv6/conf/all/forwarding", "1");
        router.ip(&format!("link set to2 mtu {mtu}"));
        b.ip(&format!("link set wire mtu {mtu}"));
        Self::start(a, b, Some(router), config)
    }

    fn start(a: Host, b: Host, router: Option<Host>, config: PlaneConfig) -> Self {
        let pair = Self {
            a: Gateway::start(a, config.clone()),
            b: Gateway::start(b, config),
            router,
        };
        pair.a
            .plane
            .protect(protected(&["10.2.0.0/16", "fd02::/16"]))
            .unwrap();
        pair.b
            .plane
            .protect(protected(&["10.1.0.0/16", "fd01::/16"]))
            .unwrap();
        pair
    }

    /// Installs the two ends of a Child SA; their SPIs are `spi` at `a` and `spi + 1` at `b`.
    pub(crate) fn connect(&self, spi: u32, case: Case) {
        self.a.plane.install(case.end(1, spi)).unwrap();
        self.b.plane.install(case.end(2, spi)).unwrap();
    }
}

fn inside(n: u32) -> Host {
    let host = Host::new();
    host.sysctl("ipv4/conf/all/rp_filter", "0");
    host.address(&format!("10.{n}.0.1/32"), "lo");
    host.address(&format!("fd0{n}::1/128"), "lo");
    host
}

pub(crate) fn protected(prefixes: &[&str]) -> Vec<Protected> {
    let protect = |p: &&str| Protected {
        prefix: p.parse().unwrap(),
        source: None,
        bypass: false,
    };
    prefixes.iter().map(protect).collect()
}

pub(crate) fn range(first: &str, last: &str) -> Selector {
    Selector::addresses(first.parse().unwrap(), last.parse().unwrap())
}

/// What differs between Child SAs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) outer_v6: bool,
    pub(crate) encapsulated: bool,
    pub(crate) cipher: Cipher,
    pub(crate) esn: bool,
    pub(crate) first: u64,
}

impl Case {
    pub(crate) const PLAIN: Self = Self {
        outer_v6: false,
        encapsulated: false,
        cipher: Cipher {
            encryption: Encryption::AesGcm16 { key_bits: 256 },
            integrity: None,
        },
        esn: true,
        first: 1,
    };
    pub(crate) const IN_UDP: Self = Self {
        encapsulated: true,
        ..Self::PLAIN
    };

    /// The end at gateway `n`.
    pub(crate) fn end(self, n: u8, spi: u32) -> ChildSa {
        let peer = 3 - n;
        let key = |n: u8| Zeroizing::new(vec![n; self.cipher.material_len()]);
        let networks = |n: u8| {
            vec![
                range(&format!("10.{n}.0.0"), &format!("10.{n}.255.255")),
                range(&format!("fd0{n}::"), &format!("fd0{n}:ffff::")),
            ]
        };
        ChildSa {
            spi_in: spi + u32::from(n - 1),
            spi_out: spi + u32::from(peer - 1),
            cipher: self.cipher,
            key_in: key(n),
            key_out: key(peer),
            esn: self.esn,
            replay_window: 1024,
            // Far from the beginning the receiver must know about where (RFC 4303, Appendix A2).
            replay_edge: (self.first > 1).then(|| self.first - 1),
            mode: Mode::Tunnel,
            outer: Outer {
                local: self.outer_address(n),
                remote: self.outer_address(peer),
                encapsulation: match self.encapsulated {
                    true => Encapsulation::Udp,
                    false => Encapsulation::None,
                },
            },
            local_ts: networks(n),
            remote_ts: networks(peer),
            outbound_active: true,
            gives_way: Duration::ZERO,
            reservation: self.first..self.first + 10_000,
            headers: HeaderPolicy::default(),
            marks: Marks::default(),
            offload: Offload::No,
            source_hint: Some(format!("10.{n}.0.1").parse().unwrap()),
            gate: Arc::default(),
        }
    }

    pub(crate) fn outer_address(self, n: u8) -> SocketAddr {
        let address: IpAddr = if self.outer_v6 {
            format!("2001:db8::{n}").parse().unwrap()
        } else {
            format!("192.0.2.{n}").parse().unwrap()
        };
        SocketAddr::new(address, 4500)
    }
}

/// Sends numbered datagrams and checks that each arrives once, in order, unchanged.
pub(crate) fn exchange(from: &UdpSocket, to: &UdpSocket, count: u32) {
    for i in 0..count {
        from.send_to(&datagram(i), to.local_addr().unwrap())
            .unwrap();
        // The first of each few answers for the socket's buffer.
        if i % 16 == 15 || i + 1 == count {
            for expected in (i / 16 * 16)..=i {
                let mut buffer = [0; 2048];
                let received = uninterrupted(|| to.recv_from(&mut buffer));
                let (len, source) = received.expect("it arrives");
                assert_eq!(source, from.local_addr().unwrap());
                assert_eq!(buffer[..len], datagram(expected));
            }
        }
    }
    assert_silent(to);
}

fn datagram(i: u32) -> Vec<u8> {
    let mut bytes = i.to_be_bytes().to_vec();
    bytes.resize(4 + (i as usize * 37) % 1300, i.to_le_bytes()[0]);
    bytes
}

/// Nothing more is there.
pub(crate) fn assert_silent(socket: &UdpSocket) {
    socket.set_nonblocking(true).unwrap();
    assert!(
        socket.recv_from(&mut [0; 2048]).is_err(),
        "nothing more comes"
    );
    socket.set_nonblocking(false).unwrap();
}

/// Tries again when the wait was interrupted, as it may be without any signal handler.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}
