use super::*;
use crate::child::tests::{child_sa, ip, net};
use zeroize::Zeroizing;

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
    let tables = Tables::default();
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
    let tables = Tables::default();
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
    let tables = Tables::default();
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

/// One that gives way, of the same traffic as the others here.
fn modest(spi_in: u32) -> ChildSa {
    ChildSa {
        gives_way: Duration::from_secs(10),
        ..child_sa(spi_in)
    }
}

#[test]
fn one_that_gives_way_sends_once_the_other_is_gone() {
    let tables = Tables::default();
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
    assert!(tables.changing().spd.is_empty() && tables.changing().sending.is_empty());
}

#[test]
fn it_gives_way_for_a_time_and_until_its_peer_uses_it() {
    let now = Instant::now();
    let tables = Tables::default();
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
    tables.bring_forward(&child);
    assert_eq!(sender(&tables), Some(0x1002));
    // Other traffic is no concern of it.
    let narrow = ChildSa {
        remote_ts: net("10.2.0.0", "10.2.0.255"),
        ..modest(0x1003)
    };
    tables.install(&narrow, now).unwrap();
    assert_eq!(sender(&tables), Some(0x1003));
}

/// What a packet sees of a rekey: there is always somebody who sends, and nobody waits.
#[test]
fn packets_find_a_sender_all_the_time() {
    let now = Instant::now();
    let tables = Tables::default();
    tables.install(&child_sa(0x1000), now).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    // Both begin together, however slow this machine is.
    let begin = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begin.wait();
            loop {
                assert!(sender(&tables).is_some());
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        begin.wait();
        for spi in 0x1001..0x2000 {
            let child = ChildSa {
                gives_way: Duration::from_secs(u64::from(spi % 2) * 10),
                ..child_sa(spi)
            };
            tables.install(&child, now).unwrap();
            tables.sweep(now + Duration::from_secs(10));
            tables.remove(spi - 1, now).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}
