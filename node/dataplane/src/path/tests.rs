use super::*;
use crate::Encapsulation;

/// A path between these addresses; its Child SA has this port.
fn path(local: &str, remote: &str, port: u16) -> Arc<Path> {
    Path::new(Outer {
        local: SocketAddr::new(local.parse().unwrap(), 4500),
        remote: SocketAddr::new(remote.parse().unwrap(), port),
        encapsulation: Encapsulation::Udp,
    })
}

/// The kernel must not be asked.
fn nobody() -> u32 {
    panic!("that is known")
}

#[test]
fn what_one_child_sa_learns_serves_all_of_the_path() {
    let paths = Paths::default();
    let children: Vec<_> = (1..=1000)
        .map(|port| path("192.0.2.1", "192.0.2.2", port))
        .collect();
    assert_eq!(paths.noted(&children[0], 0), None);
    assert_eq!(paths.mtu(&children[0], 0, || 1400), 1400);
    for child in &children {
        assert_eq!(paths.mtu(child, 0, nobody), 1400);
        assert_eq!(paths.noted(child, 0), Some(1400));
    }
    // Another peer, another address of ours: another path.
    for (local, remote) in [("192.0.2.1", "192.0.2.3"), ("192.0.2.9", "192.0.2.2")] {
        assert_eq!(paths.mtu(&path(local, remote, 1), 0, || 1300), 1300);
    }
}

#[test]
fn it_is_asked_again_after_a_time_and_when_it_was_wrong() {
    let paths = Paths::default();
    let [a, b] = [1, 2].map(|port| path("192.0.2.1", "192.0.2.2", port));
    let elsewhere = path("192.0.2.1", "192.0.2.3", 1);
    assert_eq!(paths.mtu(&a, 0, || 1500), 1500);
    assert_eq!(paths.mtu(&b, 0, nobody), 1500);
    assert_eq!(paths.mtu(&elsewhere, 0, || 9000), 9000);
    paths.forget(&a);
    // Neither believes it any more; that of the other path is looked up again, and is known.
    assert_eq!(paths.noted(&b, 0), None);
    assert_eq!(paths.mtu(&b, 0, || 1280), 1280);
    assert_eq!(paths.mtu(&a, 0, nobody), 1280);
    assert_eq!(paths.mtu(&elsewhere, 0, nobody), 9000);
    let later = PATH_MTU_LIFETIME * 1000;
    assert_eq!(paths.mtu(&a, later - 1, nobody), 1280);
    assert_eq!(paths.mtu(&a, later, || 1500), 1500);
    assert_eq!(a.last_mtu(), Some(1500));
}

#[test]
fn all_are_asked_again_when_any_may_be_narrower() {
    let paths = Paths::default();
    let all = ["192.0.2.2", "192.0.2.3"].map(|remote| path("192.0.2.1", remote, 1));
    for path in &all {
        assert_eq!(paths.mtu(path, 0, || 1500), 1500);
    }
    paths.forget_all();
    for path in &all {
        assert_eq!(paths.mtu(path, 0, || 1400), 1400);
    }
}

#[test]
fn no_path_is_narrower_than_the_internet_allows_or_wider_than_a_packet() {
    let paths = Paths::default();
    let v4 = path("192.0.2.1", "192.0.2.2", 1);
    let v6 = path("2001:db8::1", "2001:db8::2", 1);
    assert_eq!(paths.mtu(&v4, 0, || 0), MIN_PATH_MTU_V4);
    assert_eq!(paths.mtu(&v6, 0, || 0), MIN_PATH_MTU_V6);
    let loopback = path("127.0.0.1", "127.0.0.1", 1);
    assert_eq!(paths.mtu(&loopback, 0, || 65_536), MAX_PATH_MTU);
    assert_eq!(paths.noted(&loopback, 0), Some(MAX_PATH_MTU));
}

#[test]
fn what_is_out_of_date_is_not_kept() {
    let paths = Paths::default();
    for n in 0..10_u64 {
        for i in 0..1000 {
            let remote = format!("10.{n}.{}.{}", i / 256, i % 256);
            let now = n * PATH_MTU_LIFETIME * 1000;
            paths.mtu(&path("192.0.2.1", &remote, 1), now, || 1400);
        }
    }
    let kept = paths.known().mtus.len();
    assert!(kept <= 2 * FEW_PATHS, "{kept}");
}

#[test]
fn a_peer_moves_once_per_address() {
    let path = path("192.0.2.1", "192.0.2.2", 4500);
    let elsewhere = "198.51.100.1:33000".parse().unwrap();
    assert!(!path.saw(path.outer.remote));
    assert_eq!(path.seen(), Some(path.outer.remote));
    assert!(path.saw(elsewhere));
    assert!(!path.saw(elsewhere));
    assert!(!path.saw(path.outer.remote));
    assert!(path.saw(elsewhere));
}
