use crate::{
    Link,
    hosts::{Host, PATIENCE, privileged},
    ip, mac,
};
use evergate_dataplane::{Addresses, AddressesConfig, Announcer, Changed, Side};
use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

const V4: &str = "192.0.2.100/24";
const V6: &str = "2001:db8::100/64";

/// Makes the addresses of a host exactly these, as a process that starts now.
fn set(host: &Host, wanted: &[&str]) -> Changed {
    let wanted: Vec<_> = wanted
        .iter()
        .map(|a| (a.parse().unwrap(), Side::Outer))
        .collect();
    host.run(move || {
        let config = AddressesConfig {
            origin: AddressesConfig::ORIGIN,
            ..AddressesConfig::default()
        };
        Addresses::open(config).unwrap().set(&wanted, &[]).unwrap()
    })
}

/// Takes addresses, and says so.
fn take(host: &Host, wanted: &[&str]) {
    let changed = set(host, wanted);
    assert!(changed.errors.is_empty(), "{:?}", changed.errors);
    assert_eq!(changed.added.len(), wanted.len());
    host.run(move || {
        let announcer = Announcer::open().unwrap();
        for taken in &changed.added {
            announcer.announce(taken).unwrap();
        }
    });
}

fn has(host: &Host, address: &str) -> bool {
    let text = host.ip_output("addr show dev wire");
    text.contains(&format!(" {address} "))
}

/// Whether a datagram gets to whoever has the address, in good time.
fn reaches(link: &Link, member: usize, address: &str) -> bool {
    let server = link.members[member].udp(&format!("{address}:7"));
    let client = link.neighbour.udp(if address.contains('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    });
    let end = Instant::now() + PATIENCE;
    let short = Some(Duration::from_millis(50));
    server.set_read_timeout(short).unwrap();
    while Instant::now() < end {
        let _ = client.send_to(b"?", format!("{address}:7"));
        if heard(&server) {
            return true;
        }
    }
    false
}

fn heard(server: &UdpSocket) -> bool {
    server.recv_from(&mut [0; 16]).is_ok()
}

#[test]
fn neighbours_follow_an_address_that_moves() {
    privileged("addresses::neighbours_follow_an_address_that_moves", || {
        let link = Link::new();
        let [a, b] = &link.members;
        take(a, &[V4, V6]);
        assert!(reaches(&link, 0, "192.0.2.100"));
        assert!(reaches(&link, 0, "[2001:db8::100]"));
        for address in ["192.0.2.100", "2001:db8::100"] {
            assert_eq!(link.cached(address), Some(mac(a)), "{address}");
        }
        // The first is gone without a word.
        a.ip("link set wire down");
        take(b, &[V4, V6]);
        let end = Instant::now() + Duration::from_secs(2);
        for address in ["192.0.2.100", "2001:db8::100"] {
            while link.cached(address) != Some(mac(b)) && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(link.cached(address), Some(mac(b)), "{address}");
        }
        assert!(reaches(&link, 1, "192.0.2.100"));
        assert!(reaches(&link, 1, "[2001:db8::100]"));
    });
}

#[test]
fn leftovers_go_and_what_is_not_ours_stays() {
    privileged("addresses::leftovers_go_and_what_is_not_ours_stays", || {
        let link = Link::new();
        let host = &link.members[0];
        take(host, &[V4, V6]);
        host.address("192.0.2.50/24", "wire");
        // A new process wants nothing at first.
        let changed = set(host, &[]);
        assert!(changed.errors.is_empty() && changed.added.is_empty());
        assert_eq!(changed.removed.len(), 2);
        for gone in [V4, V6] {
            assert!(!has(host, gone), "{gone}");
        }
        for stays in ["192.0.2.1/24", "192.0.2.50/24", "2001:db8::1/64"] {
            assert!(has(host, stays), "{stays}");
        }
    });
}

#[test]
fn wanting_the_same_changes_nothing() {
    privileged("addresses::wanting_the_same_changes_nothing", || {
        let link = Link::new();
        let host = &link.members[0];
        take(host, &[V4, V6]);
        let again = set(host, &[V4, V6]);
        assert!(again.added.is_empty() && again.removed.is_empty() && again.errors.is_empty());
        let other = "192.0.2.101/24";
        let changed = set(host, &[V6, other]);
        assert_eq!(changed.removed, [V4.parse().unwrap()]);
        assert_eq!(changed.added.len(), 1);
        assert!(has(host, other) && has(host, V6) && !has(host, V4));
    });
}

#[test]
fn secondary_addresses_outlive_the_primary() {
    privileged("addresses::secondary_addresses_outlive_the_primary", || {
        let host = Host::new();
        host.ip("link add wire type veth peer name other");
        host.ip("link set other up");
        host.ip("link set wire up");
        let config = || AddressesConfig {
            outer_interface: Some("wire".into()),
            inner_interface: Some("absent".into()),
            origin: AddressesConfig::ORIGIN,
        };
        let set = |wanted: &[(&str, Side)]| {
            let wanted: Vec<_> = wanted
                .iter()
                .map(|(a, side)| (a.parse().unwrap(), *side))
                .collect();
            host.run(move || {
                Addresses::open(config())
                    .unwrap()
                    .set(&wanted, &[])
                    .unwrap()
            })
        };
        let [first, second] = ["198.51.100.1/24", "198.51.100.2/24"];
        let both = set(&[
            (first, Side::Outer),
            (second, Side::Outer),
            (V6, Side::Inner),
        ]);
        assert_eq!(both.added.len(), 2);
        assert_eq!(both.errors.len(), 1, "{:?}", both.errors);
        host.sysctl("ipv4/conf/wire/promote_secondaries", "0");
        let one = set(&[(second, Side::Outer)]);
        assert!(one.errors.is_empty(), "{:?}", one.errors);
        assert!(!has(&host, first) && has(&host, second));
    });
}

#[test]
fn without_an_interface_there_is_an_error_and_no_address() {
    privileged(
        "addresses::without_an_interface_there_is_an_error_and_no_address",
        || {
            let link = Link::new();
            let host = &link.members[0];
            let changed = set(host, &["203.0.113.9/24", V4]);
            assert_eq!(changed.errors.len(), 1);
            assert_eq!(changed.added.len(), 1);
            assert_eq!(changed.added[0].address.addr(), ip("192.0.2.100"));
        },
    );
}
