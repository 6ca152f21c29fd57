use super::*;
use crate::{
    Encryption, HeaderPolicy, Marks, Offload, Selector,
    path::{MIN_PATH_MTU_V4, PATH_MTU_LIFETIME, Paths},
};
use std::net::IpAddr;
use zeroize::Zeroizing;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(first: &str, last: &str) -> Vec<Selector> {
    vec![Selector::addresses(ip(first), ip(last))]
}

pub(crate) fn child_sa(spi_in: u32) -> ChildSa {
    ChildSa {
        spi_in,
        spi_out: 0x9000,
        cipher: Encryption::ChaCha20Poly1305.into(),
        key_in: Zeroizing::new(vec![1; 36]),
        key_out: Zeroizing::new(vec![2; 36]),
        esn: false,
        replay_window: 1024,
        replay_edge: None,
        mode: Mode::Tunnel,
        outer: Outer {
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: "192.0.2.2:4500".parse().unwrap(),
            encapsulation: Encapsulation::Udp,
        },
        local_ts: net("10.1.0.0", "10.1.255.255"),
        remote_ts: net("10.2.0.0", "10.2.255.255"),
        outbound_active: true,
        gives_way: Duration::ZERO,
        reservation: 1..100,
        headers: HeaderPolicy::default(),
        marks: Marks::default(),
        offload: Offload::No,
        source_hint: None,
        gate: Arc::default(),
    }
}

#[test]
fn reservations_only_grow_upwards() {
    let child = Child::new(&child_sa(0x1000)).unwrap();
    for range in [99..200, 1..2, 150..150] {
        assert!(child.extend(range).is_err());
    }
    child.extend(200..300).unwrap();
    let stats = child.stats(true);
    assert_eq!((stats.next_sequence, stats.remaining), (Some(1), 199));
}

#[test]
fn path_mtu_is_forgotten_with_time_and_moves() {
    let paths = Paths::default();
    let child = Child::new(&child_sa(0x1000)).unwrap();
    let way = child.path.load_full();
    assert_eq!(paths.noted(&way, 0), None);
    assert_eq!(paths.mtu(&way, 0, || 300), MIN_PATH_MTU_V4);
    assert_eq!(paths.noted(&child.path.load(), 0), Some(MIN_PATH_MTU_V4));
    let later = PATH_MTU_LIFETIME * 1000;
    assert_eq!(paths.noted(&child.path.load(), later), None);
    let moved = Outer {
        remote: "192.0.2.3:4500".parse().unwrap(),
        ..way.outer
    };
    child.move_to(moved);
    assert_eq!(paths.noted(&child.path.load(), 0), None);
    // What was asked before the move is about the old path.
    paths.forget(&way);
    paths.mtu(&way, 0, || 1400);
    assert_eq!(paths.noted(&child.path.load(), 0), None);
    assert_eq!(child.stats(true).path_mtu, None);
}

#[test]
fn the_limit_depends_on_the_encapsulation() {
    let child = Child::new(&child_sa(0x1000)).unwrap();
    let limit = |encapsulation| {
        let outer = Outer {
            encapsulation,
            ..child_sa(0x1000).outer
        };
        child.max_inner(&outer, 1500)
    };
    let [plain, udp, tcp] = [
        Encapsulation::None,
        Encapsulation::Udp,
        Encapsulation::Tcp(crate::TcpEnd::Responder),
    ]
    .map(limit);
    assert_eq!(plain - udp, 8);
    // 34 bytes, in steps of four.
    assert_eq!(plain - tcp, 36);
}

#[test]
fn keys_do_not_show() {
    let text = format!("{:?}", child_sa(0x1000));
    assert!(!text.contains("key"), "{text}");
}
