use super::*;
use crate::{Encryption, Selector};
use std::net::IpAddr;
use zeroize::Zeroizing;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(first: &str, last: &str) -> Vec<Selector> {
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
        copy_dscp: true,
        source_hint: None,
        gate: Arc::default(),
    }
}

fn packet(source: &str, destination: &str) -> PacketSelectors {
    PacketSelectors {
        source: ip(source),
        destination: ip(destination),
        protocol: 17,
        ports: Some((1, 2)),
    }
}

fn sender(tables: &Tables) -> Option<u32> {
    let packet = packet("10.1.0.1", "10.2.0.1");
    tables.outbound(&packet).map(|child| child.spi_in)
}

#[test]
fn the_last_that_was_activated_sends() {
    let mut tables = Tables::default();
    assert_eq!(sender(&tables), None);
    tables.install(&child_sa(0x1000), Instant::now()).unwrap();
    let standby = ChildSa {
        outbound_active: false,
        ..child_sa(0x1001)
    };
    tables.install(&standby, Instant::now()).unwrap();
    assert_eq!(sender(&tables), Some(0x1000));
    tables.set_outbound(0x1001, true).unwrap();
    assert_eq!(sender(&tables), Some(0x1001));
    // No news: nothing changes.
    tables.set_outbound(0x1000, true).unwrap();
    assert_eq!(sender(&tables), Some(0x1001));
    tables.set_outbound(0x1001, false).unwrap();
    assert_eq!(sender(&tables), Some(0x1000));
    tables.set_outbound(0x1000, false).unwrap();
    assert_eq!(sender(&tables), None);
    assert!(tables.inbound(0x1000).is_some());
}

#[test]
fn a_removed_one_receives_for_its_grace_only() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let mut tables = Tables::default();
    tables.install(&child_sa(0x1000), Instant::now()).unwrap();
    assert!(tables.remove(0x1000, now + second * 2).unwrap().is_some());
    assert_eq!(sender(&tables), None);
    assert!(tables.inbound(0x1000).is_some());
    assert!(matches!(
        tables.install(&child_sa(0x1000), Instant::now()),
        Err(PlaneError::SpiInUse(0x1000))
    ));
    assert!(tables.set_outbound(0x1000, true).is_err());
    assert!(tables.staying(0x1000).is_err());
    // Later calls only bring the end forward.
    assert!(tables.remove(0x1000, now + second * 9).unwrap().is_none());
    assert!(!tables.is_due(now + second));
    assert!(tables.is_due(now + second * 2));
    tables.sweep(now + second * 2);
    assert!(tables.inbound(0x1000).is_none());
    tables.install(&child_sa(0x1000), Instant::now()).unwrap();
    assert_eq!(sender(&tables), Some(0x1000));
}

#[test]
fn impossible_ones_are_refused_and_leave_nothing() {
    let mut tables = Tables::default();
    let mut short = child_sa(0x1000);
    short.key_out = Zeroizing::new(vec![2; 35]);
    assert!(matches!(
        tables.install(&short, Instant::now()),
        Err(PlaneError::Key)
    ));
    assert!(matches!(
        tables.install(&child_sa(255), Instant::now()),
        Err(PlaneError::SpiReserved(255))
    ));
    for reservation in [0..5, 1..(1 << 32) + 1] {
        let sa = ChildSa {
            reservation,
            ..child_sa(0x1000)
        };
        assert!(matches!(
            tables.install(&sa, Instant::now()),
            Err(PlaneError::Reservation(_))
        ));
    }
    assert!(tables.inbound(0x1000).is_none());
    assert!(matches!(
        tables.remove(0x1000, Instant::now()),
        Err(PlaneError::NoSuchChild(0x1000))
    ));
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
    let now = Instant::now();
    let child = Child::new(&child_sa(0x1000)).unwrap();
    let way = child.way(now);
    assert_eq!(way.mtu, None);
    assert_eq!(child.learn_mtu(&way, 300, now), MIN_PATH_MTU_V4);
    assert_eq!(child.way(now).mtu, Some(MIN_PATH_MTU_V4));
    assert_eq!(child.way(now + PATH_MTU_LIFETIME).mtu, None);
    let moved = Outer {
        remote: "192.0.2.3:4500".parse().unwrap(),
        ..way.outer
    };
    child.move_to(moved);
    assert_eq!(child.way(now).mtu, None);
    // What was asked before the move is about the old path.
    child.learn_mtu(&way, 1400, now);
    assert_eq!(child.way(now).mtu, None);
}

#[test]
fn a_peer_moves_once_per_address() {
    let child = Child::new(&child_sa(0x1000)).unwrap();
    let there = child_sa(0x1000).outer.remote;
    let elsewhere = "198.51.100.1:33000".parse().unwrap();
    assert!(!child.saw(there));
    assert!(child.saw(elsewhere));
    assert!(!child.saw(elsewhere));
    assert!(!child.saw(there));
    assert!(child.saw(elsewhere));
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

/// One that gives way, of the same traffic as the others here.
fn modest(spi_in: u32) -> ChildSa {
    ChildSa {
        gives_way: Duration::from_secs(10),
        ..child_sa(spi_in)
    }
}

#[test]
fn one_that_gives_way_sends_once_the_other_is_gone() {
    let mut tables = Tables::default();
    let now = Instant::now();
    tables.install(&child_sa(0x1000), now).unwrap();
    tables.install(&modest(0x1001), now).unwrap();
    assert_eq!(sender(&tables), Some(0x1000));
    tables.remove(0x1000, now).unwrap();
    assert_eq!(sender(&tables), Some(0x1001));
    tables.sweep(now + Duration::from_secs(20));
    assert_eq!(sender(&tables), Some(0x1001));
    tables.remove(0x1001, now).unwrap();
    assert_eq!(sender(&tables), None);
    assert!(tables.spd.is_empty() && tables.sending.is_empty());
}

#[test]
fn it_gives_way_for_a_time_and_until_its_peer_uses_it() {
    let now = Instant::now();
    let mut tables = Tables::default();
    tables.install(&child_sa(0x1000), now).unwrap();
    tables.install(&modest(0x1001), now).unwrap();
    tables.sweep(now + Duration::from_secs(9));
    assert_eq!(sender(&tables), Some(0x1000));
    assert!(tables.is_due(now + Duration::from_secs(10)));
    tables.sweep(now + Duration::from_secs(10));
    assert_eq!(sender(&tables), Some(0x1001));

    tables.install(&modest(0x1002), now).unwrap();
    let child = tables.staying(0x1002).unwrap();
    assert!(child.is_shown_to_be_there() && !child.is_shown_to_be_there());
    tables.bring_forward(0x1002);
    assert_eq!(sender(&tables), Some(0x1002));
    // Other traffic is no concern of it.
    let narrow = ChildSa {
        remote_ts: net("10.2.0.0", "10.2.0.255"),
        ..modest(0x1003)
    };
    tables.install(&narrow, now).unwrap();
    assert_eq!(sender(&tables), Some(0x1003));
}
