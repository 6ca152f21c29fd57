use super::*;
use proptest::prelude::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `first-last`, or one address, with any protocol and ports.
fn range(text: &str) -> Selector {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    Selector::addresses(address(start), address(end))
}

fn entry(id: PolicyId, priority: u32, local: &[&str], remote: &[&str]) -> Entry<u32> {
    let ranges = |side: &[&str]| side.iter().map(|text| range(text)).collect();
    Entry::new(
        id,
        Action::Protect,
        priority,
        Selectors {
            local: ranges(local),
            remote: ranges(remote),
        },
    )
}

fn to(destination: &str) -> PacketSelectors {
    PacketSelectors {
        source: address("10.0.0.1"),
        destination: address(destination),
        protocol: 17,
        ports: Some((1000, 53)),
    }
}

fn found(spd: &Spd<u32>, packet: &PacketSelectors) -> Option<PolicyId> {
    spd.lookup(packet).map(|entry| entry.id)
}

const ALL: &str = "0.0.0.0-255.255.255.255";

#[test]
fn priority_then_narrowness_then_id_decide_in_any_order() {
    let entries = [
        entry(1, 10, &[ALL], &[ALL]),
        entry(2, 10, &[ALL], &["10.1.0.0-10.1.255.255"]),
        entry(3, 10, &[ALL], &["10.1.2.3"]),
        entry(4, 5, &[ALL], &["10.1.2.0-10.1.2.127"]),
        entry(6, 10, &["10.0.0.0-10.0.0.255"], &["10.1.0.0-10.1.255.255"]),
        entry(5, 10, &["10.0.0.0-10.0.0.255"], &["10.1.0.0-10.1.255.255"]),
    ];
    let expected = [
        ("192.0.2.1", 1),
        ("10.1.9.9", 5),
        ("10.1.2.3", 4),
        ("10.1.2.200", 5),
    ];
    for rotation in 0..entries.len() {
        let mut spd = Spd::default();
        for i in 0..entries.len() {
            let entry = &entries[(i + rotation) % entries.len()];
            spd.insert(Entry::new(
                entry.id,
                entry.action,
                entry.priority,
                entry.selectors.clone(),
            ));
        }
        for (destination, id) in expected {
            assert_eq!(found(&spd, &to(destination)), Some(id), "{destination}");
        }
        spd.remove(4).unwrap();
        assert_eq!(found(&spd, &to("10.1.2.3")), Some(3));
        spd.remove(3).unwrap();
        assert_eq!(found(&spd, &to("10.1.2.3")), Some(5));
    }
}

#[test]
fn ports_and_protocols_count_as_narrowness() {
    let mut spd = Spd::default();
    let dns = Selector {
        protocol: 17,
        start_port: 53,
        end_port: 53,
        ..range(ALL)
    };
    let udp = Selector {
        protocol: 17,
        ..range(ALL)
    };
    for (id, remote) in [(1, range(ALL)), (2, udp), (3, dns)] {
        let selectors = Selectors {
            local: vec![range(ALL)],
            remote: vec![remote],
        };
        spd.insert(Entry::<u32>::new(id, Action::Protect, 0, selectors));
    }
    assert_eq!(found(&spd, &to("192.0.2.1")), Some(3));
    let later_fragment = PacketSelectors {
        ports: None,
        ..to("192.0.2.1")
    };
    assert_eq!(found(&spd, &later_fragment), Some(2));
    assert_eq!(
        found(
            &spd,
            &PacketSelectors {
                protocol: 6,
                ..to("192.0.2.1")
            }
        ),
        Some(1)
    );
}

#[test]
fn no_policy_no_entry() {
    let mut spd = Spd::default();
    assert_eq!(found(&spd, &to("192.0.2.1")), None);
    spd.insert(entry(1, 0, &["10.0.0.2"], &[ALL, "2001:db8::1"]));
    assert_eq!(found(&spd, &to("192.0.2.1")), None);
    assert_eq!(found(&spd, &to("2001:db8::1")), None);
}

#[test]
fn replacing_leaves_no_old_rules() {
    let mut spd = Spd::default();
    assert!(
        spd.insert(entry(1, 0, &[ALL], &["10.1.0.1", "10.2.0.0-10.2.0.9"]))
            .is_none()
    );
    assert!(spd.insert(entry(1, 0, &[ALL], &["10.1.0.2"])).is_some());
    assert_eq!(spd.len(), 1);
    assert_eq!(found(&spd, &to("10.1.0.1")), None);
    assert_eq!(found(&spd, &to("10.2.0.1")), None);
    assert_eq!(found(&spd, &to("10.1.0.2")), Some(1));
    assert_eq!(spd.remove(1).unwrap().id, 1);
    assert!(spd.is_empty() && spd.rules.is_empty());
    assert!(spd.v4.is_empty() && spd.v6.is_empty());
}

#[test]
fn the_newest_active_sa_sends() {
    let mut spd = Spd::default();
    spd.insert(entry(1, 0, &[ALL], &[ALL]));
    let active = |spd: &Spd<u32>| spd.get(1).unwrap().active().map(|sa| **sa);
    assert_eq!(active(&spd), None);
    let [first, second, third] = [1, 2, 3].map(Arc::new);
    assert!(spd.add_sa(1, Arc::clone(&first), true));
    assert!(spd.add_sa(1, Arc::clone(&second), false));
    assert_eq!(active(&spd), Some(1));
    assert!(spd.set_active(1, &second, true));
    assert_eq!(active(&spd), Some(2));
    assert!(spd.add_sa(1, Arc::clone(&third), true));
    assert_eq!(active(&spd), Some(3));
    assert!(spd.remove_sa(1, &third));
    assert!(!spd.remove_sa(1, &third));
    assert_eq!(active(&spd), Some(2));
    assert!(spd.remove_sa(1, &second) && spd.remove_sa(1, &first));
    assert_eq!(active(&spd), None);
    assert_eq!(
        found(&spd, &to("192.0.2.1")),
        Some(1),
        "the policy stays, so that nothing leaves in the clear"
    );
    assert!(!spd.add_sa(9, first, true));
}

/// The same question answered by looking at every policy.
fn scanned(entries: &[Entry<u32>], packet: &PacketSelectors) -> Option<PolicyId> {
    let rules = entries.iter().flat_map(|entry| {
        let pairs = entry.selectors.remote.iter().flat_map(|remote| {
            let locals = entry.selectors.local.iter();
            locals.map(|local| (*local, *remote))
        });
        pairs.map(|(local, remote)| Rule::new(entry, local, remote))
    });
    rules
        .filter(|rule| rule.matches(packet))
        .map(|rule| rule.rank())
        .min()
        .map(|rank| rank.id)
}

/// A range of addresses in a small space, so that ranges meet, or in all of it.
fn any_range() -> impl Strategy<Value = Selector> {
    let v4 = (any::<u8>(), any::<u8>()).prop_map(|(a, b)| {
        let at = |n: u8| IpAddr::from([10, 0, n / 16, n % 16 * 17]);
        Selector::addresses(at(a.min(b)), at(a.max(b)))
    });
    let v6 = (any::<u8>(), 0..=128_u32).prop_map(|(a, len)| {
        let first = u128::from(a) << 120 & u128::MAX.checked_shl(128 - len).unwrap_or(0);
        let last = first | u128::MAX.checked_shr(len).unwrap_or(0);
        Selector::addresses(IpAddr::V6(first.into()), IpAddr::V6(last.into()))
    });
    prop_oneof![6 => v4, 2 => v6, 1 => Just(range(ALL))]
}

proptest! {
    #[test]
    fn looking_up_is_as_good_as_scanning(
        policies in prop::collection::vec((0..3_u32, any_range(), any_range()), 0..40),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        packets in prop::collection::vec((any_range(), any_range()), 1..40),
    ) {
        let entries = policies.iter().zip(1..).map(|((priority, local, remote), id)| {
            let selectors = Selectors { local: vec![*local, range("10.0.0.0-10.0.3.7")], remote: vec![*remote] };
            Entry::new(id, Action::Protect, *priority, selectors)
        });
        let mut entries: Vec<Entry<u32>> = entries.collect();
        let mut spd = Spd::default();
        for entry in &entries {
            spd.insert(entry.clone());
        }
        for index in removed {
            if !entries.is_empty() {
                let entry = entries.swap_remove(index.index(entries.len()));
                prop_assert!(spd.remove(entry.id).is_some());
            }
        }
        for (source, destination) in packets {
            let packet = PacketSelectors { source: source.start, destination: destination.end, protocol: 6, ports: Some((1, 2)) };
            prop_assert_eq!(found(&spd, &packet), scanned(&entries, &packet));
        }
        for entry in &entries {
            spd.remove(entry.id);
        }
        prop_assert!(spd.rules.is_empty() && spd.v4.is_empty() && spd.v6.is_empty());
    }
}
