use super::*;
use std::{cell::RefCell, rc::Rc};

const METRIC: u32 = 100;

/// A kernel that only remembers.
#[derive(Clone, Default)]
struct Fake(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    routes: Installed,
    /// How often it was asked for anything.
    asked: usize,
    addresses: BTreeSet<IpAddr>,
    refuses: bool,
}

impl Fake {
    /// The targets of what is there, as text.
    fn shown(&self) -> Vec<String> {
        let inner = self.0.borrow();
        let text = |((prefix, _), target): (&(IpNet, u32), &Target)| match target {
            Target::Tun(None) => format!("{prefix}"),
            Target::Tun(Some(source)) => format!("{prefix} from {source}"),
            Target::Blackhole => format!("{prefix} closed"),
            Target::Bypass => format!("!{prefix}"),
        };
        inner.routes.iter().map(text).collect()
    }

    fn asked(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().asked)
    }
}

impl Kernel for Fake {
    fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        inner.asked += 1;
        let known = match route.target {
            Target::Tun(Some(source)) => inner.addresses.contains(&source),
            _ => true,
        };
        if inner.refuses || !known {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if matches!(route.target, Target::Tun(_)) {
            let below = (route.prefix, route.metric + 1000);
            assert_eq!(
                inner.routes.get(&below),
                Some(&Target::Blackhole),
                "closed first"
            );
        }
        inner
            .routes
            .insert((route.prefix, route.metric), route.target);
        Ok(())
    }

    fn remove_route(&mut self, route: &Route) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        inner.asked += 1;
        if inner.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        inner.routes.remove(&(route.prefix, route.metric));
        Ok(())
    }

    fn add_address(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        self.0.borrow_mut().addresses.insert(address);
        Ok(())
    }

    fn remove_address(&mut self, address: IpAddr) -> Result<(), PlaneError> {
        let mut inner = self.0.borrow_mut();
        inner.addresses.remove(&address);
        inner.routes.retain(|_, t| *t != Target::Tun(Some(address)));
        Ok(())
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn protect(text: &str) -> Protected {
    let (bypass, text) = text.strip_prefix('!').map_or((false, text), |t| (true, t));
    Protected {
        prefix: net(text),
        source: None,
        bypass,
    }
}

fn range(first: &str, last: &str) -> Vec<Selector> {
    vec![Selector::addresses(
        first.parse().unwrap(),
        last.parse().unwrap(),
    )]
}

fn empty() -> (Protection<Fake>, Fake) {
    let fake = Fake::default();
    (Protection::over(fake.clone(), Vec::new(), METRIC), fake)
}

#[test]
fn what_comes_later_is_added_and_taken_away_alone() {
    let (mut protection, fake) = empty();
    let many: Vec<_> = (0..200)
        .map(|i| protect(&format!("10.{i}.0.0/16")))
        .collect();
    protection.protect(&many).unwrap();
    assert_eq!(fake.asked(), 400);
    protection.protect_more(&[protect("192.0.2.7/24")]).unwrap();
    assert_eq!(fake.asked(), 2);
    assert!(fake.shown().contains(&"192.0.2.0/24".to_owned()));
    protection.protect_more(&[protect("192.0.2.0/24")]).unwrap();
    assert_eq!(fake.asked(), 0, "nothing new");
    protection.unprotect(&[net("192.0.2.0/24")]).unwrap();
    assert_eq!(fake.asked(), 2);
    assert_eq!(fake.shown().len(), 400);
    protection.protect(&many[..1]).unwrap();
    assert_eq!(fake.shown(), ["10.0.0.0/16", "10.0.0.0/16 closed"]);
}

#[test]
fn a_bypass_can_be_protected_and_be_a_bypass_again() {
    let (mut protection, fake) = empty();
    protection
        .protect(&["10.0.0.0/8", "!10.1.0.0/16"].map(protect))
        .unwrap();
    protection.protect_more(&[protect("10.1.0.0/16")]).unwrap();
    let closed = [
        "10.0.0.0/8",
        "10.0.0.0/8 closed",
        "10.1.0.0/16",
        "10.1.0.0/16 closed",
    ];
    assert_eq!(fake.shown(), closed);
    protection.protect_more(&[protect("!10.1.0.0/16")]).unwrap();
    assert_eq!(
        fake.shown(),
        ["10.0.0.0/8", "10.0.0.0/8 closed", "!10.1.0.0/16"]
    );
}

#[test]
fn what_a_former_process_left_stays_until_protection_is_set() {
    let fake = Fake::default();
    let left = [
        (METRIC, Target::Tun(None)),
        (METRIC + 1000, Target::Blackhole),
    ];
    let left = left.map(|(metric, target)| Route {
        prefix: net("10.9.0.0/16"),
        metric,
        target,
    });
    for route in left.iter().rev() {
        fake.clone().add_route(route).unwrap();
    }
    let mut protection = Protection::over(fake.clone(), left.to_vec(), METRIC);
    let source = "10.1.0.1".parse().unwrap();
    protection
        .add_hint(&range("0.0.0.0", "255.255.255.255"), source)
        .unwrap();
    protection.protect_more(&[protect("10.2.0.0/16")]).unwrap();
    protection.assign(source).unwrap();
    protection.release(source).unwrap();
    let both = [
        "10.2.0.0/16",
        "10.2.0.0/16 closed",
        "10.9.0.0/16",
        "10.9.0.0/16 closed",
    ];
    assert_eq!(fake.shown(), both);
    protection.protect(&[]).unwrap();
    assert_eq!(fake.shown(), Vec::<String>::new());
}

#[test]
fn what_failed_is_tried_again_with_the_next_change() {
    let (mut protection, fake) = empty();
    protection.protect(&[protect("10.1.0.0/16")]).unwrap();
    fake.0.borrow_mut().refuses = true;
    assert!(protection.protect_more(&[protect("10.2.0.0/16")]).is_err());
    assert!(protection.unprotect(&[net("10.1.0.0/16")]).is_err());
    assert_eq!(
        fake.shown(),
        ["10.1.0.0/16", "10.1.0.0/16 closed"],
        "stays closed"
    );
    fake.0.borrow_mut().refuses = false;
    protection.protect_more(&[protect("10.3.0.0/16")]).unwrap();
    let all = [
        "10.2.0.0/16",
        "10.2.0.0/16 closed",
        "10.3.0.0/16",
        "10.3.0.0/16 closed",
    ];
    assert_eq!(fake.shown(), all);
}

#[test]
fn routes_follow_hints_and_addresses() {
    let (mut protection, fake) = empty();
    let source: IpAddr = "10.1.0.1".parse().unwrap();
    protection
        .protect(&["10.2.0.0/16", "10.3.0.0/16"].map(protect))
        .unwrap();
    fake.asked();
    let peer = range("10.2.0.9", "10.2.0.9");
    protection.add_hint(&peer, source).unwrap();
    assert_eq!(fake.asked(), 2, "with the source, and without it");
    protection.assign(source).unwrap();
    let first = |fake: &Fake| fake.shown()[0].clone();
    assert_eq!(first(&fake), "10.2.0.0/16 from 10.1.0.1");
    fake.asked();
    protection.add_hint(&peer, source).unwrap();
    protection
        .add_hint(&range("10.2.0.10", "10.2.0.10"), source)
        .unwrap();
    protection.remove_hint(&peer, source).unwrap();
    assert_eq!(fake.asked(), 0, "nothing changes");
    protection.release(source).unwrap();
    assert_eq!(first(&fake), "10.2.0.0/16");
    protection.assign(source).unwrap();
    protection.remove_hint(&peer, source).unwrap();
    protection
        .remove_hint(&range("10.2.0.10", "10.2.0.10"), source)
        .unwrap();
    assert_eq!(first(&fake), "10.2.0.0/16", "nobody wants it");
}
