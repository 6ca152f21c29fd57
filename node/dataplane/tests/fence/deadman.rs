use crate::{
    Link,
    hosts::{Capture, Host, PATIENCE, privileged},
    ip, mac,
};
use evergate_dataplane::{Addresses, AddressesConfig, Announcer, DeadMan, DeadManConfig, Taken};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const ADDRESS: &str = "192.0.2.100";
const ADDRESS6: &str = "2001:db8::100";
const LEASE: Duration = Duration::from_millis(300);

fn addresses() -> Vec<IpAddr> {
    vec![ip(ADDRESS), ip(ADDRESS6)]
}

fn install(host: &Host) -> DeadMan {
    host.run(|| {
        let config = DeadManConfig {
            table: "evergate-test".into(),
            devices: vec!["wire".into()],
        };
        DeadMan::install(config, &addresses()).unwrap()
    })
}

fn refresh(switch: &mut DeadMan, lease: Duration) {
    let live: Vec<_> = addresses().into_iter().map(|a| (a, lease)).collect();
    switch.refresh(&live).unwrap();
}

/// The first member has the addresses and their switch.
fn guarded() -> (Link, DeadMan) {
    let link = Link::new();
    let host = &link.members[0];
    host.address("192.0.2.100/24", "wire");
    host.address("2001:db8::100/64", "wire");
    let switch = install(host);
    assert!(switch.guards_packet_sockets(), "this kernel is too old");
    (link, switch)
}

/// What kinds of packets the neighbour gets from the addresses for so long.
fn heard(capture: &Capture, within: Duration) -> BTreeSet<&'static str> {
    let end = Instant::now() + within;
    let packets = capture.until(|_| Instant::now() >= end);
    packets.iter().filter_map(|p| spoken(p)).collect()
}

/// The same until it gets all of these, however slowly: `renew` is called now and then.
fn heard_all(
    capture: &Capture,
    wanted: &BTreeSet<&'static str>,
    mut renew: impl FnMut(),
) -> BTreeSet<&'static str> {
    let end = Instant::now() + PATIENCE;
    let mut all = BTreeSet::new();
    while !all.is_superset(wanted) && Instant::now() < end {
        renew();
        all.extend(heard(capture, LEASE / 10));
    }
    all
}

fn spoken(packet: &[u8]) -> Option<&'static str> {
    let v4 = [192, 0, 2, 100];
    let IpAddr::V6(v6) = ip(ADDRESS6) else {
        unreachable!()
    };
    let at = |from: usize, what: &[u8]| packet.get(from..from + what.len()) == Some(what);
    if at(0, &[0, 1, 8, 0, 6, 4]) && at(14, &v4) {
        return Some("arp");
    }
    if at(0, &[0x45]) && at(12, &v4) {
        return match packet.get(9) {
            Some(50) => Some("esp"),
            _ => Some("udp"),
        };
    }
    if packet.first().is_some_and(|b| b >> 4 == 6) {
        if packet.get(6) == Some(&58) && at(40, &[136]) && at(48, &v6.octets()) {
            return Some("advertisement");
        }
        if at(8, &v6.octets()) {
            return Some("udp6");
        }
    }
    None
}

/// Everything that a member says: IKE and ESP over UDP (4 and 6), raw ESP, announcements. What is refused is refused.
struct Voice {
    sockets: [UdpSocket; 2],
    raw: Socket,
    announcer: Announcer,
    device: u32,
}

impl Voice {
    /// Opened in the network namespace of the calling thread.
    fn open() -> Self {
        let bound = |address: &str| UdpSocket::bind((ip(address), 500)).unwrap();
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(50))).unwrap();
        raw.bind(&SockAddr::from(SocketAddr::new(ip(ADDRESS), 0)))
            .unwrap();
        Self {
            sockets: [bound(ADDRESS), bound(ADDRESS6)],
            raw,
            announcer: Announcer::open().unwrap(),
            device: nix::net::if_::if_nametoindex("wire").unwrap(),
        }
    }

    fn speak(&self) {
        let [v4, v6] = &self.sockets;
        let _ = v4.send_to(b"ike", "192.0.2.3:500");
        let _ = v6.send_to(b"ike", "[2001:db8::3]:500");
        let to: SocketAddr = "192.0.2.3:0".parse().unwrap();
        let _ = self.raw.send_to(&[7; 64], &to.into());
        for address in addresses() {
            let address = ipnet::IpNet::from(address);
            let device = self.device;
            let _ = self.announcer.announce(&Taken { address, device });
        }
    }
}

/// A member that speaks every few milliseconds until this is dropped.
struct Speaker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    fn on(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let voice = host.run(Voice::open);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                voice.speak();
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

const EVERYTHING: [&str; 5] = ["advertisement", "arp", "esp", "udp", "udp6"];

#[test]
fn all_falls_silent_by_itself() {
    privileged("deadman::all_falls_silent_by_itself", || {
        let (link, mut switch) = guarded();
        let _speaker = Speaker::on(&link.members[0]);
        let capture = link.neighbour.capture("wire");
        let (nothing, everything) = (BTreeSet::new(), BTreeSet::from(EVERYTHING));
        assert_eq!(heard(&capture, LEASE), nothing, "before any lease");
        for _ in 0..2 {
            let fresh = link.neighbour.capture("wire");
            // More than one lease, renewed in time.
            for _ in 0..10 {
                refresh(&mut switch, LEASE);
                thread::sleep(Duration::from_millis(40));
            }
            let all = heard_all(&fresh, &everything, || refresh(&mut switch, LEASE));
            assert_eq!(all, everything);
            thread::sleep(LEASE + LEASE / 3);
            let after = link.neighbour.capture("wire");
            assert_eq!(heard(&after, LEASE), nothing, "after the lease");
        }
        refresh(&mut switch, Duration::from_secs(3600));
        let fresh = link.neighbour.capture("wire");
        assert_eq!(heard_all(&fresh, &everything, || ()), everything);
        // A shorter time takes the place of a longer one, and zero ends it.
        refresh(&mut switch, LEASE);
        thread::sleep(LEASE + LEASE / 3);
        let after = link.neighbour.capture("wire");
        assert_eq!(heard(&after, LEASE), nothing);
        refresh(&mut switch, Duration::from_secs(3600));
        switch.silence(&addresses()).unwrap();
        let after = link.neighbour.capture("wire");
        assert_eq!(heard(&after, LEASE), nothing);
    });
}

/// Whether the neighbour can find out who has an address. That takes it no time, but perhaps the machine.
fn resolves(link: &Link, address: &str) -> bool {
    resolves_within(link, address, PATIENCE)
}

/// Whether it cannot.
fn is_silent(link: &Link, address: &str) -> bool {
    !resolves_within(link, address, Duration::from_millis(700))
}

fn resolves_within(link: &Link, address: &str, within: Duration) -> bool {
    link.neighbour.ip("neigh flush dev wire");
    let any = if address.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let client = link.neighbour.udp(any);
    let end = Instant::now() + within;
    let found = Some(mac(&link.members[0]));
    while Instant::now() < end && link.cached(address) != found {
        let _ = client.send_to(b"?", (ip(address), 7));
        thread::sleep(Duration::from_millis(10));
    }
    link.cached(address) == found
}

#[test]
fn the_kernel_answers_for_an_address_only_during_the_lease() {
    privileged(
        "deadman::the_kernel_answers_for_an_address_only_during_the_lease",
        || {
            let (link, mut switch) = guarded();
            for address in [ADDRESS, ADDRESS6] {
                assert!(is_silent(&link, address), "{address} without a lease");
                refresh(&mut switch, 2 * PATIENCE);
                assert!(resolves(&link, address), "{address} with a lease");
                refresh(&mut switch, LEASE);
                thread::sleep(LEASE + LEASE / 3);
                assert!(is_silent(&link, address), "{address} after its lease");
            }
            // Its own addresses are its own.
            assert!(resolves(&link, "192.0.2.1"));
            assert!(resolves(&link, "2001:db8::1"));
        },
    );
}

/// What [`a_stopped_process_is_silent_when_it_goes_on`] has stopped: refreshes and speaks; once it was stopped it knows that its lease is over, but
/// speaks on, as a thread may that had looked just before. It stops itself when its input ends: another would now and then stop it just before a
/// refresh, which it would then go on with.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let config = DeadManConfig {
        table: "evergate-test".into(),
        devices: vec!["wire".into()],
    };
    let mut switch = DeadMan::install(config, &addresses()).unwrap();
    let voice = Voice::open();
    let told = thread::spawn(|| std::io::stdin().read_line(&mut String::new()));
    let mut stopped = false;
    // The test ends it long before.
    let end = Instant::now() + 6 * PATIENCE;
    while Instant::now() < end {
        if !stopped {
            refresh(&mut switch, LEASE);
        }
        voice.speak();
        if !stopped && told.is_finished() {
            stopped = true;
            raise(Signal::SIGSTOP).unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
}

const CHILD: &str = "FENCE_TEST_CHILD";

#[test]
fn a_stopped_process_is_silent_when_it_goes_on() {
    privileged(
        "deadman::a_stopped_process_is_silent_when_it_goes_on",
        || {
            let (link, switch) = guarded();
            drop(switch);
            let mut child = link.members[0].run(|| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["deadman::child", "--exact"])
                    .env(CHILD, "1")
                    .stdin(std::process::Stdio::piped())
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap()
            });
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            let capture = link.neighbour.capture("wire");
            let everything = BTreeSet::from(EVERYTHING);
            let all = heard_all(&capture, &everything, || ());
            // The end of its input tells it to stop.
            drop(child.stdin.take());
            let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
            thread::sleep(LEASE * 2);
            let unanswered = is_silent(&link, ADDRESS) && is_silent(&link, ADDRESS6);
            let fresh = link.neighbour.capture("wire");
            kill(pid, Signal::SIGCONT).unwrap();
            let after = heard(&fresh, Duration::from_secs(1));
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(all, everything, "before it was stopped");
            assert!(unanswered, "while it was stopped");
            assert_eq!(after, BTreeSet::new(), "after it was stopped");
            // The tables outlive it, and the next process makes its own in their place.
            let mut switch = install(&link.members[0]);
            assert!(is_silent(&link, ADDRESS));
            refresh(&mut switch, 2 * PATIENCE);
            assert!(resolves(&link, ADDRESS));
        },
    );
}

#[test]
fn addresses_are_guarded_while_they_should_be() {
    privileged(
        "deadman::addresses_are_guarded_while_they_should_be",
        || {
            let (link, mut switch) = guarded();
            switch.release(&addresses()).unwrap();
            switch.release(&addresses()).unwrap();
            assert!(resolves(&link, ADDRESS) && resolves(&link, ADDRESS6));
            switch.guard(&addresses()).unwrap();
            switch.guard(&addresses()).unwrap();
            assert!(is_silent(&link, ADDRESS) && is_silent(&link, ADDRESS6));
            switch.remove().unwrap();
            assert!(resolves(&link, ADDRESS) && resolves(&link, ADDRESS6));
        },
    );
}

/// Whoever ends in good order takes the switch along, but not from an address that is still there.
#[test]
fn the_switch_goes_when_no_guarded_address_is_left() {
    privileged(
        "deadman::the_switch_goes_when_no_guarded_address_is_left",
        || {
            let (link, switch) = guarded();
            let host = &link.members[0];
            let remove = |switch: DeadMan| {
                host.run(move || {
                    let mut addresses = Addresses::open(AddressesConfig::default()).unwrap();
                    switch.remove_after(&mut addresses).unwrap()
                })
            };
            let left: BTreeSet<IpAddr> = remove(switch).into_iter().collect();
            assert_eq!(left, addresses().into_iter().collect());
            assert!(is_silent(&link, ADDRESS) && is_silent(&link, ADDRESS6));
            host.ip("addr del 2001:db8::100/64 dev wire");
            assert_eq!(remove(install(host)), [ip(ADDRESS)]);
            assert!(is_silent(&link, ADDRESS));
            host.ip("addr del 192.0.2.100/24 dev wire");
            assert!(remove(install(host)).is_empty());
            // Nothing guards them any more.
            host.address("192.0.2.100/24", "wire");
            host.address("2001:db8::100/64", "wire");
            assert!(resolves(&link, ADDRESS) && resolves(&link, ADDRESS6));
        },
    );
}

#[test]
fn an_absent_interface_is_an_error_and_leaves_no_table() {
    privileged(
        "deadman::an_absent_interface_is_an_error_and_leaves_no_table",
        || {
            let host = Host::new();
            let made = host.run(|| {
                let config = DeadManConfig {
                    table: "evergate-test".into(),
                    devices: vec!["absent".into()],
                };
                DeadMan::install(config, &addresses()).map(|s| s.guards_packet_sockets())
            });
            assert!(made.is_err(), "{made:?}");
        },
    );
}

#[test]
#[ignore = "a measurement: how long a refresh takes"]
fn measure() {
    privileged("deadman::measure", || {
        let (_link, mut switch) = guarded();
        let many: Vec<IpAddr> = (0..24u8).map(|n| IpAddr::from([198, 51, 100, n])).collect();
        switch.guard(&many).unwrap();
        for count in [1, 4, 12, 24] {
            let live: Vec<_> = many[..count].iter().map(|a| (*a, LEASE)).collect();
            let start = Instant::now();
            for _ in 0..500 {
                switch.refresh(&live).unwrap();
            }
            eprintln!("{count} addresses: {:?} a refresh", start.elapsed() / 500);
        }
    });
}

#[test]
fn without_the_egress_hook_only_packet_sockets_escape() {
    privileged(
        "deadman::without_the_egress_hook_only_packet_sockets_escape",
        || {
            let (link, switch) = guarded();
            switch.remove().unwrap();
            let mut switch = link.members[0].run(|| {
                let config = DeadManConfig {
                    table: "evergate-test".into(),
                    devices: vec![],
                };
                DeadMan::install(config, &addresses()).unwrap()
            });
            assert!(!switch.guards_packet_sockets());
            assert!(is_silent(&link, ADDRESS) && is_silent(&link, ADDRESS6));
            let speaker = Speaker::on(&link.members[0]);
            let capture = link.neighbour.capture("wire");
            let escaping = BTreeSet::from(["advertisement", "arp"]);
            let mut all = heard_all(&capture, &escaping, || ());
            all.extend(heard(&capture, LEASE));
            assert_eq!(all, escaping);
            drop(speaker);
            refresh(&mut switch, 4 * PATIENCE);
            assert!(resolves(&link, ADDRESS) && resolves(&link, ADDRESS6));
        },
    );
}
