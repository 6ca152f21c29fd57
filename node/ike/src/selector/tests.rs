//! Traffic selectors as text, as sets, and narrowed.

use super::*;
use proptest::prelude::*;

fn template(text: &str) -> SelectorTemplate {
    text.parse().unwrap()
}

fn ts(text: &str) -> TrafficSelector {
    match template(text) {
        SelectorTemplate::Fixed(selector) => selector,
        other => panic!("{other:?}"),
    }
}

fn list(texts: &[&str]) -> Vec<TrafficSelector> {
    texts.iter().map(|text| ts(text)).collect()
}

fn raw(protocol: u8, ports: (u16, u16), start: &str, end: &str) -> TrafficSelector {
    TrafficSelector {
        protocol,
        start_port: ports.0,
        end_port: ports.1,
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    }
}

#[test]
fn forms_are_swanctls() {
    let host = |protocol, ports| raw(protocol, ports, "10.1.0.1", "10.1.0.1");
    for (text, want) in [
        ("10.1.0.0/16", raw(0, ANY, "10.1.0.0", "10.1.255.255")),
        ("10.1.2.3/16", raw(0, ANY, "10.1.0.0", "10.1.255.255")),
        ("10.1.0.1", host(0, ANY)),
        ("10.1.0.1-10.1.0.9", raw(0, ANY, "10.1.0.1", "10.1.0.9")),
        ("0.0.0.0/0", raw(0, ANY, "0.0.0.0", "255.255.255.255")),
        (
            "::/0",
            raw(0, ANY, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ),
        (
            "2001:db8::/127[udp]",
            raw(17, ANY, "2001:db8::", "2001:db8::1"),
        ),
        ("10.1.0.1[tcp/http]", host(6, (80, 80))),
        ("10.1.0.1[tcp]", host(6, ANY)),
        ("10.1.0.1[udp/5000-6000]", host(17, (5000, 6000))),
        ("10.1.0.1[/53]", host(0, (53, 53))),
        ("10.1.0.1[99]", host(99, ANY)),
        ("10.1.0.1[tcp/any]", host(6, ANY)),
        ("10.1.0.1[%any/%any]", host(0, ANY)),
        ("10.1.0.1[udp/opaque]", host(17, OPAQUE)),
        ("10.1.0.1[udp/ipsec-nat-t]", host(17, (4500, 4500))),
        ("10.1.0.1[icmp/8]", host(1, (0x0800, 0x08ff))),
        ("10.1.0.1[icmp/3(4)]", host(1, (0x0304, 0x0304))),
        ("10.1.0.1[icmp/3(4)-5]", host(1, (0x0304, 0x05ff))),
        ("10.1.0.1[icmp6/33024]", host(58, (0x8100, 0x8100))),
    ] {
        assert_eq!(ts(text), want, "{text}");
    }
    let dynamic = |protocol, (start_port, end_port)| SelectorTemplate::Dynamic {
        protocol,
        start_port,
        end_port,
    };
    assert_eq!(template("dynamic"), dynamic(0, ANY));
    assert_eq!(template("dynamic[gre]"), dynamic(47, ANY));
    assert_eq!(template("[udp/5000-6000]"), dynamic(17, (5000, 6000)));
    assert_eq!(template("[/53]"), dynamic(0, (53, 53)));
    assert_eq!(template("[icmp]"), dynamic(1, ANY));
}

#[test]
fn other_texts_are_refused() {
    for text in [
        "",
        "[]",
        "foo",
        "10.0.0.0/33",
        "10.0.0.9-10.0.0.1",
        "10.0.0.1-2001:db8::1",
        "10.0.0.1[tcp",
        "10.0.0.1tcp]",
        "10.0.0.1[nosuch]",
        "10.0.0.1[tcp/nosuch]",
        "10.0.0.1[256]",
        "10.0.0.1[tcp/65536]",
        "10.0.0.1[tcp/2-1]",
        "10.0.0.1[icmp/1(256)]",
        "10.0.0.1[tcp/1(2)]",
        "10.0.0.1[tcp/80][udp]",
        " 10.0.0.1",
    ] {
        assert!(text.parse::<SelectorTemplate>().is_err(), "{text}");
    }
}

#[test]
fn selectors_are_written_as_they_are_configured() {
    for (text, want) in [
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.0.1", "10.1.0.1/32"),
        ("10.1.0.0-10.1.0.255", "10.1.0.0/24"),
        ("10.1.0.1-10.1.0.9", "10.1.0.1-10.1.0.9"),
        ("10.1.0.1[tcp/http]", "10.1.0.1/32[tcp/80]"),
        ("10.1.0.1[icmp/8]", "10.1.0.1/32[icmp/8]"),
        ("10.1.0.1[icmp/3(4)]", "10.1.0.1/32[icmp/3(4)]"),
        ("[/53]", "dynamic[/53]"),
        ("[99/opaque]", "dynamic[99/opaque]"),
        ("2001:db8::/32", "2001:db8::/32"),
    ] {
        assert_eq!(template(text).to_string(), want);
    }
}

#[test]
fn dynamic_stands_for_the_addresses() {
    let addresses = ["10.3.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(
        template("dynamic[tcp/22]").resolve(&addresses),
        list(&["10.3.0.1[tcp/22]", "2001:db8::1[tcp/22]"])
    );
    assert_eq!(template("dynamic").resolve(&[]), []);
    assert_eq!(
        template("10.0.0.0/8").resolve(&addresses),
        list(&["10.0.0.0/8"])
    );
}

#[test]
fn containment_and_intersection() {
    // What both have in common, if anything; it is the second one if the first contains it.
    for (a, b, common) in [
        ("10.0.0.0/8", "10.1.0.0/16", Some("10.1.0.0/16")),
        ("10.0.0.0/8", "10.0.0.0/8", Some("10.0.0.0/8")),
        ("10.1.0.0/16", "10.2.0.0/16", None),
        (
            "10.0.0.1-10.0.0.9",
            "10.0.0.5-10.0.0.20",
            Some("10.0.0.5-10.0.0.9"),
        ),
        ("10.0.0.1-10.0.0.5", "10.0.0.5-10.0.0.9", Some("10.0.0.5")),
        ("0.0.0.0/0", "::/0", None),
        ("0.0.0.0/0", "2001:db8::/32", None),
        ("10.0.0.0/8", "10.1.0.0/16[tcp]", Some("10.1.0.0/16[tcp]")),
        ("10.0.0.0/8[tcp]", "10.1.0.0/16", Some("10.1.0.0/16[tcp]")),
        ("10.0.0.0/8[tcp]", "10.1.0.0/16[udp]", None),
        (
            "10.0.0.1[tcp/80]",
            "10.0.0.1[tcp]",
            Some("10.0.0.1[tcp/80]"),
        ),
        ("10.0.0.1[/53]", "10.0.0.1[udp]", Some("10.0.0.1[udp/53]")),
        (
            "10.0.0.1[tcp/1-10]",
            "10.0.0.1[tcp/5-20]",
            Some("10.0.0.1[tcp/5-10]"),
        ),
        ("10.0.0.1[tcp/1-4]", "10.0.0.1[tcp/5-20]", None),
        (
            "10.0.0.1[tcp]",
            "10.0.0.1[tcp/opaque]",
            Some("10.0.0.1[tcp/opaque]"),
        ),
        (
            "10.0.0.1[tcp/opaque]",
            "10.0.0.1[tcp/opaque]",
            Some("10.0.0.1[tcp/opaque]"),
        ),
        ("10.0.0.1[tcp/0-65534]", "10.0.0.1[tcp/opaque]", None),
        ("10.0.0.1[tcp/65535]", "10.0.0.1[tcp/opaque]", None),
    ] {
        let (a, b, common) = (ts(a), ts(b), common.map(ts));
        assert_eq!(a.intersect(&b), common, "{a} {b}");
        assert_eq!(b.intersect(&a), common, "{b} {a}");
        assert_eq!(a.contains(&b), common == Some(b), "{a} {b}");
        assert_eq!(b.contains(&a), common == Some(a), "{b} {a}");
    }
}

#[test]
fn selectors_that_mix_families_have_nothing_in_common_with_anything() {
    let mixed = raw(0, ANY, "10.0.0.0", "2001:db8::1");
    let all = ts("0.0.0.0/0");
    assert_eq!(mixed.intersect(&all), None);
    assert_eq!(mixed.intersect(&ts("::/0")), None);
    assert!(!mixed.contains(&all) && !all.contains(&mixed));
    assert!(mixed.networks().is_empty());
    assert!(raw(0, ANY, "10.0.0.2", "10.0.0.1").networks().is_empty());
}

#[test]
fn ranges_are_covered_by_the_fewest_networks() {
    let nets =
        |text: &str| -> Vec<String> { ts(text).networks().iter().map(IpNet::to_string).collect() };
    assert_eq!(nets("10.0.0.0/8"), ["10.0.0.0/8"]);
    assert_eq!(nets("10.0.0.1"), ["10.0.0.1/32"]);
    assert_eq!(
        nets("10.0.0.1-10.0.0.9"),
        ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/30", "10.0.0.8/31"]
    );
    assert_eq!(nets("0.0.0.0/0"), ["0.0.0.0/0"]);
    assert_eq!(nets("::/0"), ["::/0"]);
    assert_eq!(
        nets("255.255.255.254-255.255.255.255"),
        ["255.255.255.254/31"]
    );
    // The worst there is.
    assert_eq!(nets("0.0.0.1-255.255.255.254").len(), 62);
    assert_eq!(
        nets("::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").len(),
        254
    );
    let net: IpNet = "10.1.2.3/16".parse().unwrap();
    assert_eq!(TrafficSelector::network(net), ts("10.1.0.0/16"));
}

#[test]
fn narrowing_keeps_what_is_allowed_in_the_order_of_the_offer() {
    for (offered, allowed, want) in [
        (
            &["10.0.0.0/8"][..],
            &["10.1.0.0/16"][..],
            &["10.1.0.0/16"][..],
        ),
        (&["10.1.0.0/16"], &["10.0.0.0/8"], &["10.1.0.0/16"]),
        (&["10.0.0.0/8"], &["192.168.0.0/16"], &[]),
        (&[], &["0.0.0.0/0"], &[]),
        (&["0.0.0.0/0"], &[], &[]),
        // The packet that is the reason, then the policy: the policy includes it (RFC 7296 §2.9).
        (
            &["10.0.0.5[tcp/80]", "10.0.0.0/8"],
            &["10.0.0.0/16"],
            &["10.0.0.0/16"],
        ),
        // Here it does not.
        (
            &["10.0.0.5[tcp/80]", "10.0.0.0/8[udp]"],
            &["10.0.0.0/16"],
            &["10.0.0.5[tcp/80]", "10.0.0.0/16[udp]"],
        ),
        (
            &["::/0", "0.0.0.0/0"],
            &["10.0.0.0/8", "2001:db8::/32"],
            &["2001:db8::/32", "10.0.0.0/8"],
        ),
        (
            &["10.0.0.1-10.0.0.20"],
            &["10.0.0.10-10.0.0.30", "10.0.0.0-10.0.0.5"],
            &["10.0.0.10-10.0.0.20", "10.0.0.1-10.0.0.5"],
        ),
        (
            &["10.0.0.0/8[/53]"],
            &["10.0.0.0/8[tcp]", "10.0.0.0/8[udp/1-60]"],
            &["10.0.0.0/8[tcp/53]", "10.0.0.0/8[udp/53]"],
        ),
        (
            &["10.0.0.0/8", "10.0.0.0/8"],
            &["10.0.0.0/8"],
            &["10.0.0.0/8"],
        ),
        (
            &["10.0.0.0/24", "10.0.1.0/24"],
            &["0.0.0.0/0"],
            &["10.0.0.0/24", "10.0.1.0/24"],
        ),
    ] {
        assert_eq!(narrow(&list(offered), &list(allowed)), list(want));
    }
}

#[test]
fn narrowing_is_bounded() {
    let hosts = |third: u8| (0..64).map(move |n| ts(&format!("10.0.{third}.{n}")));
    let offered: Vec<_> = hosts(0).chain(hosts(1)).collect();
    let narrowed = narrow(&offered, &list(&["0.0.0.0/0"]));
    assert_eq!(narrowed, offered[..64]);
    // A larger one still takes the place of what it contains.
    let with_all: Vec<_> = offered.into_iter().chain(list(&["10.0.0.0/24"])).collect();
    let narrowed = narrow(&with_all, &list(&["0.0.0.0/0"]));
    assert_eq!(narrowed, list(&["10.0.0.0/24"]));
}

/// Small universes, so that overlaps are frequent.
fn selector() -> impl Strategy<Value = TrafficSelector> {
    let range = prop_oneof![
        (0..20u32, 0..20u32).prop_map(|(a, b)| {
            let ip = |n| IpAddr::V4(Ipv4Addr::from_bits(n));
            (ip(a.min(b)), ip(a.max(b)))
        }),
        (0..20u128, 0..20u128).prop_map(|(a, b)| {
            let ip = |n| IpAddr::V6(Ipv6Addr::from_bits(n));
            (ip(a.min(b)), ip(a.max(b)))
        }),
    ];
    let ports = prop_oneof![
        (0..6u16, 0..6u16).prop_map(|(a, b)| (a.min(b), a.max(b))),
        any::<(u16, u16)>().prop_map(|(a, b)| (a.min(b), a.max(b))),
        Just(ANY),
        Just(OPAQUE),
    ];
    let protocol = prop_oneof![Just(0), Just(1), Just(6), Just(17), Just(58), Just(200)];
    (protocol, ports, range).prop_map(|(protocol, (start_port, end_port), (start, end))| {
        TrafficSelector {
            protocol,
            start_port,
            end_port,
            start,
            end,
        }
    })
}

/// A packet: protocol, port if it is known, address.
type Packet = (u8, Option<u16>, IpAddr);

fn packet() -> impl Strategy<Value = Packet> {
    let ip = prop_oneof![
        (0..20u32).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(n))),
        (0..20u128).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits(n))),
    ];
    let protocol = prop_oneof![Just(1), Just(6), Just(17), Just(58), Just(200)];
    (protocol, prop::option::of(0..6u16), ip)
}

/// Whether a packet is meant, said without the algebra.
fn meant(ts: &TrafficSelector, (protocol, port, ip): Packet) -> bool {
    let (start, end) = ts.ports();
    let port_fits = match port {
        Some(port) => start <= port && port <= end,
        None => (start, end) == ANY || (start, end) == OPAQUE,
    };
    (ts.protocol == 0 || ts.protocol == protocol)
        && port_fits
        && ts.start.is_ipv4() == ip.is_ipv4()
        && (ts.start..=ts.end).contains(&ip)
}

proptest! {
    #[test]
    fn text_reads_back(selector in selector()) {
        let template = SelectorTemplate::Fixed(selector);
        prop_assert_eq!(template.to_string().parse(), Ok(template));
    }

    #[test]
    fn no_text_does_harm(text in "[0-9a-z.:/()\\[\\]-]{0,30}") {
        if let Ok(template) = text.parse::<SelectorTemplate>() {
            prop_assert_eq!(template.to_string().parse(), Ok(template));
        }
    }

    #[test]
    fn the_intersection_is_what_both_mean(a in selector(), b in selector(), packet in packet()) {
        let both = meant(&a, packet) && meant(&b, packet);
        let common = a.intersect(&b);
        prop_assert_eq!(common.is_some_and(|c| meant(&c, packet)), both);
        prop_assert_eq!(common, b.intersect(&a));
        prop_assert_eq!(a.contains(&b), common == Some(b));
        if a.contains(&b) && meant(&b, packet) {
            prop_assert!(meant(&a, packet));
        }
    }

    #[test]
    fn narrowed_selectors_mean_what_offer_and_policy_mean(
        offered in prop::collection::vec(selector(), 0..6),
        allowed in prop::collection::vec(selector(), 0..6),
        packet in packet(),
    ) {
        let any = |list: &[TrafficSelector]| list.iter().any(|ts| meant(ts, packet));
        let narrowed = narrow(&offered, &allowed);
        prop_assert_eq!(any(&narrowed), any(&offered) && any(&allowed));
        for (i, a) in narrowed.iter().enumerate() {
            for (j, b) in narrowed.iter().enumerate() {
                prop_assert!(i == j || !a.contains(b));
            }
        }
    }

    #[test]
    fn networks_are_exactly_the_range(a in any::<u128>(), b in any::<u128>(), v4 in any::<bool>()) {
        let ip = |n: u128| -> IpAddr {
            if v4 {
                let bytes = n.to_be_bytes();
                [bytes[0], bytes[1], bytes[2], bytes[3]].into()
            } else {
                n.to_be_bytes().into()
            }
        };
        let (start, end) = (ip(a.min(b)), ip(a.max(b)));
        let range = TrafficSelector { protocol: 0, start_port: 0, end_port: 65535, start, end };
        let nets = range.networks();
        prop_assert!(nets.len() <= 254);
        prop_assert_eq!(nets[0].network(), start);
        prop_assert_eq!(nets[nets.len() - 1].broadcast(), end);
        for pair in nets.windows(2) {
            // Nothing between them, nothing twice, and no two that could be one.
            let next = match pair[0].broadcast() {
                IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() + 1)),
                IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() + 1)),
            };
            prop_assert_eq!(next, pair[1].network());
            let parent = pair[0].supernet().unwrap();
            prop_assert!(!(parent.contains(&pair[1]) && pair[0].prefix_len() == pair[1].prefix_len()));
        }
    }
}
