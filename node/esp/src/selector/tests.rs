use super::*;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn selector(protocol: u8, ports: (u16, u16)) -> Selector {
    let any = Selector::addresses(address("10.0.0.10"), address("10.0.0.20"));
    Selector {
        protocol,
        start_port: ports.0,
        end_port: ports.1,
        ..any
    }
}

#[test]
fn addresses_are_inclusive_and_of_one_family() {
    let v4 = selector(0, (0, 65535));
    for (text, expected) in [
        ("10.0.0.9", false),
        ("10.0.0.10", true),
        ("10.0.0.20", true),
        ("10.0.0.21", false),
        ("::ffff:10.0.0.15", false),
        ("::a00:f", false),
    ] {
        assert_eq!(v4.matches(address(text), 6, Some(1)), expected, "{text}");
    }
    let v6 = Selector::addresses(
        address("::"),
        address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    );
    assert!(v6.matches(address("2001:db8::1"), 6, Some(1)));
    assert!(!v6.matches(address("10.0.0.15"), 6, Some(1)));
}

#[test]
fn ports_any_opaque_and_ranges() {
    let here = address("10.0.0.15");
    for (ports, visible, invisible) in [
        ((0, 65535), true, true),
        ((65535, 0), false, true),
        ((80, 90), true, false),
        ((81, 90), false, false),
    ] {
        let selector = selector(6, ports);
        assert_eq!(selector.matches(here, 6, Some(80)), visible, "{ports:?}");
        assert_eq!(selector.matches(here, 6, None), invisible, "{ports:?}");
        assert!(!selector.matches(here, 17, Some(80)));
    }
}

#[test]
fn directions_swap_the_sides() {
    let selectors = Selectors {
        local: vec![Selector::addresses(
            address("10.0.0.0"),
            address("10.0.0.255"),
        )],
        remote: vec![Selector {
            protocol: 6,
            start_port: 22,
            end_port: 22,
            ..Selector::addresses(address("192.0.2.1"), address("192.0.2.1"))
        }],
    };
    let out = PacketSelectors {
        source: address("10.0.0.3"),
        destination: address("192.0.2.1"),
        protocol: 6,
        ports: Some((5000, 22)),
    };
    let back = PacketSelectors {
        source: out.destination,
        destination: out.source,
        protocol: 6,
        ports: Some((22, 5000)),
    };
    assert!(selectors.match_outbound(&out) && selectors.match_inbound(&back));
    assert!(!selectors.match_outbound(&back) && !selectors.match_inbound(&out));
    assert!(
        !Selectors::default().match_outbound(&out),
        "no selector admits nothing"
    );
}
