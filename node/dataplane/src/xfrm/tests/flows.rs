use super::*;

fn selector(start: &str, end: &str) -> Selector {
    Selector::addresses(start.parse().unwrap(), end.parse().unwrap())
}

fn with_ports(protocol: u8, start_port: u16, end_port: u16) -> Selector {
    Selector {
        protocol,
        start_port,
        end_port,
        ..selector("10.0.0.0", "10.0.0.255")
    }
}

fn shown(local: &[Selector], remote: &[Selector]) -> Vec<String> {
    let all = flows(local, remote).unwrap();
    all.iter()
        .map(|f| format!("{}-{}", f.local, f.remote))
        .collect()
}

#[test]
fn ranges_become_prefixes_and_families_stay_apart() {
    let local = [
        selector("10.1.0.0", "10.1.0.255"),
        selector("fd00::", "fd00::1"),
    ];
    let remote = [
        selector("10.2.0.1", "10.2.0.2"),
        selector("fd01::", "fd01::"),
    ];
    assert_eq!(
        shown(&local, &remote),
        [
            "10.1.0.0/24-10.2.0.1/32",
            "10.1.0.0/24-10.2.0.2/32",
            "fd00::/127-fd01::/128"
        ]
    );
}

#[test]
fn a_range_of_ports_is_exactly_those_ports() {
    for (start, end) in [
        (80, 80),
        (0, 1023),
        (1, 6),
        (1024, 65_535),
        (0, 65_534),
        (5, 5000),
    ] {
        let all = ports(&with_ports(6, start, end)).unwrap();
        for port in 0..=u16::MAX {
            let matching = all
                .iter()
                .filter(|p| (port ^ p.value) & p.mask == 0)
                .count();
            assert_eq!(
                matching,
                usize::from((start..=end).contains(&port)),
                "{port}"
            );
        }
    }
    assert_eq!(ports(&with_ports(6, 0, u16::MAX)).unwrap(), [Ports::ANY]);
}

#[test]
fn protocols_and_ports_meet() {
    let web = with_ports(6, 80, 80);
    let any = selector("10.0.0.0", "10.0.0.255");
    let all = flows(&[web], &[any]).unwrap();
    let [flow] = all[..] else {
        panic!("not one flow");
    };
    assert_eq!(flow.protocol, 6);
    let out = flow.selector(Direction::Out);
    assert_eq!(
        (out.sport, out.sport_mask, out.dport_mask),
        (80, u16::MAX, 0)
    );
    let back = flow.selector(Direction::Forward);
    assert_eq!(
        (back.dport, back.dport_mask, back.sport_mask),
        (80, u16::MAX, 0)
    );
    assert!(flows(&[web], &[with_ports(17, 80, 80)]).unwrap().is_empty());
}

#[test]
fn icmp_has_its_type_and_code_in_both_directions() {
    let echo = with_ports(1, 0x0800, 0x08ff);
    let any = selector("10.0.0.0", "10.0.0.255");
    for (ours, theirs) in [(echo, any), (any, echo), (echo, echo)] {
        let flow = flows(&[ours], &[theirs]).unwrap()[0];
        for direction in [Direction::Out, Direction::In] {
            let selector = flow.selector(direction);
            assert_eq!(
                (selector.sport, selector.sport_mask, selector.dport_mask),
                (8, u16::MAX, 0)
            );
        }
    }
    assert!(flows(&[with_ports(1, 0x0300, 0x0500)], &[any]).is_err());
}

#[test]
fn what_the_kernel_cannot_tell_apart_or_is_too_much_is_refused() {
    let any = selector("10.0.0.0", "10.0.0.255");
    assert!(matches!(
        flows(&[with_ports(6, u16::MAX, 0)], &[any]),
        Err(PlaneError::Unsupported(_))
    ));
    let many = [selector("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")];
    assert!(matches!(flows(&many, &many), Err(PlaneError::Limit(_))));
}

#[test]
fn narrower_flows_go_first() {
    let flow = |local: &str, remote: &str| Flow {
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        ..Flow::everything(true)
    };
    let wide = flow("10.0.0.0/8", "0.0.0.0/0").priority();
    let narrow = flow("10.0.0.0/8", "10.2.0.0/16").priority();
    let host = Flow {
        protocol: 6,
        local_port: Ports::one(80),
        remote_port: Ports::one(80),
        ..flow("fd00::1/128", "fd00::2/128")
    };
    let marked = |flow: Flow| Flow {
        mark: Mark { value: 7, mask: 7 },
        ..flow
    };
    assert!(marked(host).priority() < host.priority());
    assert!(marked(flow("10.0.0.0/8", "0.0.0.0/0")).priority() < wide);
    assert!(marked(flow("10.0.0.0/8", "0.0.0.0/0")).priority() > narrow);
    assert!(host.priority() < narrow && narrow < wide);
    assert!(wide < Flow::everything(true).priority());
    assert!(Flow::everything(false).priority() < LOWEST_PRIORITY);
    assert!(host.priority() < 1 << 15);
}
