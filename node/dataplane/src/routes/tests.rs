use super::*;

fn protect(prefix: &str) -> Protected {
    Protected {
        prefix: prefix.parse().unwrap(),
        source: None,
        bypass: false,
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(first: &str, last: &str) -> Vec<Selector> {
    vec![Selector::addresses(ip(first), ip(last))]
}

/// All routes, in the order in which they are made.
fn routes(entries: &[Protected], hints: &Hints) -> Vec<Route> {
    let all = said(entries);
    let of = |(prefix, said): (IpNet, &Said)| desired(prefix, *said, hints, 100);
    all.iter().flat_map(of).collect()
}

#[test]
fn every_protected_prefix_has_a_blackhole_below() {
    let routes = routes(
        &["10.1.2.3/16", "10.1.0.0/16", "fd00::/8"].map(protect),
        &Hints::default(),
    );
    let expected = ["10.1.0.0/16", "fd00::/8"].map(|p| p.parse::<IpNet>().unwrap());
    let expected: Vec<_> = expected
        .into_iter()
        .flat_map(|prefix| {
            [(1100, Target::Blackhole), (100, Target::Tun(None))].map(|(metric, target)| Route {
                prefix,
                metric,
                target,
            })
        })
        .collect();
    assert_eq!(routes, expected);
}

#[test]
fn protection_wins_over_bypass_of_the_same_prefix() {
    let none = Hints::default();
    let bypass = Protected {
        bypass: true,
        ..protect("10.0.0.0/8")
    };
    assert_eq!(routes(&[bypass], &none)[0].target, Target::Bypass);
    for order in [
        [bypass, protect("10.0.0.0/8")],
        [protect("10.0.0.0/8"), bypass],
    ] {
        let routes = routes(&order, &none);
        assert!(routes.iter().all(|r| r.target != Target::Bypass));
        assert_eq!(routes.len(), 2);
    }
}

fn source_of(entry: Protected, hints: &Hints) -> Option<IpAddr> {
    match routes(&[entry], hints)[1].target {
        Target::Tun(source) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn source_comes_from_policy_before_hints_and_fits_the_family() {
    let mut hints = Hints::default();
    hints.add(&range("10.2.0.0", "10.2.255.255"), ip("10.9.0.1"));
    hints.add(&range("10.2.0.0", "10.2.255.255"), ip("fd00::1"));
    let source = |p: &str| source_of(protect(p), &hints);
    assert_eq!(source("0.0.0.0/0"), Some(ip("10.9.0.1")));
    assert_eq!(source("10.2.3.0/24"), Some(ip("10.9.0.1")));
    assert_eq!(source("10.3.0.0/16"), None);
    assert_eq!(source("::/0"), None);
    let named = Protected {
        source: Some(ip("10.8.0.1")),
        ..protect("10.2.0.0/16")
    };
    assert_eq!(source_of(named, &hints), Some(ip("10.8.0.1")));
}

#[test]
fn hints_go_when_the_last_who_wanted_them_does() {
    let mut hints = Hints::default();
    let (wide, odd) = (
        range("10.0.0.0", "10.255.255.255"),
        range("10.2.0.9", "10.2.0.20"),
    );
    let (a, b) = (ip("192.0.2.1"), ip("192.0.2.2"));
    assert_eq!(
        hints.add(&wide, a),
        ["10.0.0.0/8".parse::<IpNet>().unwrap()]
    );
    assert_eq!(hints.add(&wide, a), [], "nothing new");
    assert_eq!(
        hints.add(&odd, b),
        ["10.2.0.0/27".parse::<IpNet>().unwrap()]
    );
    let source = |hints: &Hints, p: &str| source_of(protect(p), hints);
    assert_eq!(source(&hints, "10.2.0.16/28"), Some(b), "the narrower");
    assert_eq!(source(&hints, "10.2.0.0/29"), Some(a), "does not overlap");
    assert_eq!(hints.remove(&wide, a), [], "another wants it");
    assert_eq!(source(&hints, "10.3.0.0/16"), Some(a));
    assert_eq!(hints.remove(&wide, a).len(), 1);
    assert_eq!(source(&hints, "10.3.0.0/16"), None);
    assert_eq!(source(&hints, "10.0.0.0/8"), Some(b), "lies within");
    assert_eq!(hints.remove(&odd, b).len(), 1);
    assert!(hints.by_prefix.is_empty());
    assert_eq!(hints.remove(&odd, b), []);
}
