//! Random histories. What is generated is a wish; it is made a command with a look at the state, so that most commands are
//! valid, and some are stale on purpose.

use super::*;
use crate::Counters;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

#[derive(Clone, Debug)]
enum Wish {
    /// Gateway, member, whether its process is one before, staleness.
    Assign(u32, u8, bool, Stale),
    Release(u32, Stale),
    /// Member, process.
    Register(u8, u8),
    Forget(u8),
    /// SA, Child SAs as a bit mask, whether it takes the addresses that it may, staleness.
    Put(u64, u8, bool, Stale),
    /// From, to.
    Rekey(u64, u64),
    Close(u64, Stale),
    Remove(u64),
    Extend(u8, u32),
    Lease(u64, bool, bool),
    Count(u64, u32, u32),
    Pools(u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stale {
    Not,
    Epoch,
    Revision,
}

fn stale() -> impl Strategy<Value = Stale> {
    prop_oneof![8 => Just(Stale::Not), 1 => Just(Stale::Epoch), 1 => Just(Stale::Revision)]
}

fn wish() -> impl Strategy<Value = Wish> {
    let sa = 1..8u64;
    prop_oneof![
        2 => (0..3u32, 0..3u8, any::<bool>(), stale()).prop_map(|(a, b, c, d)| Wish::Assign(a, b, c, d)),
        1 => (0..3u32, stale()).prop_map(|(a, b)| Wish::Release(a, b)),
        1 => (0..3u8, 1..6u8).prop_map(|(a, b)| Wish::Register(a, b)),
        1 => (0..3u8).prop_map(Wish::Forget),
        5 => (sa.clone(), any::<u8>(), any::<bool>(), stale()).prop_map(|(a, b, c, d)| Wish::Put(a, b, c, d)),
        1 => prop::sample::select(vec![(1, 7), (7, 1), (1, 4), (2, 3)]).prop_map(|(a, b)| Wish::Rekey(a, b)),
        1 => (sa.clone(), stale()).prop_map(|(a, b)| Wish::Close(a, b)),
        1 => sa.clone().prop_map(Wish::Remove),
        2 => (any::<u8>(), any::<u32>()).prop_map(|(a, b)| Wish::Extend(a, b)),
        4 => (sa.clone(), any::<bool>(), any::<bool>()).prop_map(|(a, b, c)| Wish::Lease(a, b, c)),
        1 => (sa, 0..9u32, 0..9u32).prop_map(|(a, b, c)| Wish::Count(a, b, c)),
        1 => (1..6u8).prop_map(Wish::Pools),
    ]
}

/// SAs 1, 4 and 7 belong to gateway 1, and so on; of these 1 and 7 are of one peer.
fn gateway_of(sa: u64) -> GatewayId {
    GatewayId(u32::try_from(sa % 3).unwrap())
}

fn who(sa: u64) -> String {
    format!("peer{}", sa % 6)
}

fn command(state: &State, wish: &Wish) -> (Command, Stale) {
    let epoch = |sa: u64| epoch_of(state, gateway_of(sa));
    let revision = |sa: u64| state.sa(SaId(sa)).map_or(0, |r| r.revision) + 1;
    match *wish {
        Wish::Put(sa, mask, vips, stale) => {
            // SPIs of neighbouring SAs overlap, so that there are conflicts.
            let base = u32::try_from(sa).unwrap() * 7;
            let children = (0..8)
                .filter(|b| mask & (1 << b) != 0)
                .map(|b| child(base + b, (base + b) % 2 == 0))
                .collect();
            let may = state.leases().filter(|(_, l)| {
                l.holders().any(|h| h == SaId(sa))
                    || l.pending().is_some_and(|(p, _)| p == SaId(sa))
            });
            let vips = if vips {
                may.map(|(a, _)| a).collect()
            } else {
                vec![]
            };
            let wrong = u64::from(stale == Stale::Revision);
            let new = established(sa, revision(sa) + wrong, &who(sa), children, vips);
            let epoch = epoch(sa).wrapping_sub(u32::from(stale == Stale::Epoch));
            (put(epoch, vec![in_gateway(sa, new)]), stale)
        }
        Wish::Rekey(from, to) => {
            let old = state.sa(SaId(from));
            let children = old.map(|r| r.children().to_vec()).unwrap_or_default();
            let vips = old.map(|r| r.peer_vips().to_vec()).unwrap_or_default();
            let emptied = established(from, revision(from), &who(from), vec![], vips.clone());
            let new = established(to, revision(to), &who(to), children, vips);
            (
                put(
                    epoch(from),
                    vec![in_gateway(from, emptied), in_gateway(to, new)],
                ),
                Stale::Not,
            )
        }
        Wish::Close(sa, stale) => {
            let wrong = u64::from(stale == Stale::Revision);
            let epoch = epoch(sa).wrapping_sub(u32::from(stale == Stale::Epoch));
            (
                put(
                    epoch,
                    vec![in_gateway(sa, closed(sa, revision(sa) + wrong))],
                ),
                stale,
            )
        }
        Wish::Assign(gateway, member, former, stale) => {
            let gateway = GatewayId(gateway);
            let name = format!("m{member}");
            let known = state.member(&name);
            let incarnation = match known {
                Some(m) if former && !m.former.is_empty() => m.former[0],
                Some(m) => m.incarnation,
                None => 0,
            };
            let refused = known.is_none_or(|m| m.incarnation != incarnation);
            let epoch = epoch_of(state, gateway).wrapping_sub(u32::from(stale == Stale::Epoch));
            let stale = if refused { Stale::Epoch } else { stale };
            (
                assign(gateway, &name, incarnation, epoch),
                stale_epoch(stale),
            )
        }
        Wish::Release(gateway, stale) => {
            let gateway = GatewayId(gateway);
            let epoch = epoch_of(state, gateway).wrapping_sub(u32::from(stale == Stale::Epoch));
            (
                Command::ReleaseGateway { gateway, epoch },
                stale_epoch(stale),
            )
        }
        _ => (quiet_command(state, wish), Stale::Not),
    }
}

/// Commands that are never stale.
fn quiet_command(state: &State, wish: &Wish) -> Command {
    match *wish {
        Wish::Extend(spi, count) => {
            let gateway = GatewayId(u32::from(spi) % 3);
            let children = (7..64)
                .filter(|s| s % 5 == u32::from(spi) % 5)
                .map(|s| (s, count.into()))
                .collect();
            Command::ExtendReservations {
                gateway,
                epoch: epoch_of(state, gateway),
                children,
            }
        }
        Wish::Lease(sa, v4, v6) => Command::LeaseAddresses {
            epoch: epoch_of(state, gateway_of(sa)),
            sa: SaId(sa),
            gateway: gateway_of(sa),
            identity: identity(&who(sa)),
            pools: vec!["p4".into(), "p6".into()],
            v4: v4.then(|| ip("0.0.0.0")),
            v6: v6.then(|| ip("::")),
            takes_over: false,
        },
        Wish::Count(sa, inbound_next, outbound_next) => {
            let gateway = gateway_of(sa);
            let counters = vec![Counters {
                sa: SaId(sa),
                inbound_next,
                outbound_next,
            }];
            Command::Counters {
                gateway,
                epoch: epoch_of(state, gateway),
                counters,
            }
        }
        Wish::Pools(n) => {
            let pools = vec![
                pool("p4", "10.0.0.1", &format!("10.0.0.{n}")),
                pool("p6", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
            ];
            let policy = Arc::new(Policy {
                pools,
                ..Policy::default()
            });
            Command::SetPolicy {
                expected: state.policy_version(),
                policy,
            }
        }
        Wish::Register(member, incarnation) => register(&format!("m{member}"), incarnation.into()),
        Wish::Forget(member) => {
            let member = format!("m{member}");
            let incarnation = state.member(&member).map_or(0, |m| m.incarnation);
            Command::RemoveMember {
                member,
                incarnation,
            }
        }
        Wish::Remove(sa) => {
            let gateway = gateway_of(sa);
            Command::RemoveSas {
                gateway,
                epoch: epoch_of(state, gateway),
                sas: vec![SaId(sa)],
            }
        }
        Wish::Put(..)
        | Wish::Rekey(..)
        | Wish::Close(..)
        | Wish::Assign(..)
        | Wish::Release(..) => unreachable!("may be stale"),
    }
}

/// Commands without a revision cannot have a stale one.
fn stale_epoch(stale: Stale) -> Stale {
    match stale {
        Stale::Revision => Stale::Not,
        other => other,
    }
}

fn epoch_of(state: &State, gateway: GatewayId) -> u32 {
    state.gateway(gateway).map_or(0, |g| g.epoch)
}

/// A record of a test, in the gateway of its SA.
fn in_gateway(sa: u64, record: Record) -> Record {
    Record {
        gateway: gateway_of(sa),
        ..record
    }
}

/// What was ever reserved, by SPI, life of the Child SA, and epoch.
#[derive(Default)]
struct Reserved {
    lives: BTreeMap<u32, u32>,
    ranges: BTreeMap<(u32, u32), BTreeMap<u32, Range<u64>>>,
}

impl Reserved {
    fn watch(&mut self, state: &State) {
        let now: BTreeSet<u32> = state.reservations().map(|(spi, _)| spi).collect();
        for (&spi, life) in &mut self.lives {
            // A Child SA that is gone and comes again has other keys: another life.
            *life += u32::from(!now.contains(&spi));
        }
        for (spi, r) in state.reservations() {
            let life = *self.lives.entry(spi).or_default();
            self.ranges
                .entry((spi, life))
                .or_default()
                .insert(r.epoch(), r.range());
            let epochs: Vec<_> = self.ranges[&(spi, life)]
                .values()
                .filter(|r| !r.is_empty())
                .collect();
            for pair in epochs.windows(2) {
                assert!(pair[0].end <= pair[1].start, "SPI {spi}: {pair:?}");
            }
            assert!(r.range().start >= 1 && (r.esn() || r.range().end <= 1 << 32));
        }
    }
}

/// Whether whoever may have made a command has the gateway that it is about.
fn may_change(state: &State, command: &Command) -> bool {
    let (gateway, epoch) = match command {
        Command::PutSas { epoch, records } => match records.first() {
            Some(first) => (first.gateway, *epoch),
            None => return true,
        },
        Command::Counters { gateway, epoch, .. }
        | Command::RemoveSas { gateway, epoch, .. }
        | Command::ExtendReservations { gateway, epoch, .. }
        | Command::LeaseAddresses { gateway, epoch, .. }
        | Command::ReleaseGateway { gateway, epoch } => (*gateway, *epoch),
        _ => return true,
    };
    let Some(held) = state.gateway(gateway) else {
        return false;
    };
    held.epoch == epoch
        && held.owner.as_ref().is_some_and(|o| {
            state
                .member(&o.member)
                .is_some_and(|m| m.incarnation == o.incarnation)
        })
}

/// What must hold at any time.
fn check(state: &State) {
    let mut holders: BTreeMap<IpAddr, BTreeSet<SaId>> = BTreeMap::new();
    let mut children = BTreeSet::new();
    for r in state.sas() {
        for vip in r.peer_vips() {
            holders.entry(*vip).or_default().insert(r.id);
        }
        for c in r.children() {
            assert!(children.insert(c.spi_in), "SPI {} twice", c.spi_in);
            assert_eq!(state.spi_owner(c.spi_in), Some(r.id));
        }
    }
    let reserved: BTreeSet<u32> = state.reservations().map(|(spi, _)| spi).collect();
    assert_eq!(reserved, children);
    for (address, held) in &holders {
        let peers: BTreeSet<String> = held.iter().map(|sa| who(sa.0)).collect();
        assert_eq!(peers.len(), 1, "{address} is leased twice");
    }
    let leased: BTreeMap<IpAddr, BTreeSet<SaId>> = state
        .leases()
        .map(|(a, l)| (a, l.holders().collect()))
        .filter(|(_, h): &(_, BTreeSet<_>)| !h.is_empty())
        .collect();
    assert_eq!(leased, holders);
}

fn scaled(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(scaled(300))]

    #[test]
    fn histories_keep_the_invariants(
        wishes in prop::collection::vec((wish(), 0..20_000u64), 1..80),
        restart in 0..80usize,
    ) {
        let mut state = State::new();
        let mut twin = State::new();
        let mut reserved = Reserved::default();
        for g in 0..3 {
            for s in [&mut state, &mut twin] {
                take(s, GatewayId(g));
            }
        }
        let mut now = 0;
        for (n, (wish, pause)) in wishes.iter().enumerate() {
            now += pause;
            let (command, stale) = command(&state, wish);
            let entry = Entry { at: UnixMillis(now), commands: vec![command] };
            let before = state.clone();
            let outcome = state.apply(&entry);
            prop_assert_eq!(&outcome, &twin.apply(&entry));
            prop_assert!(may_change(&before, &entry.commands[0]) || matches!(outcome[0], Outcome::Refused(_)));
            if stale != Stale::Not {
                prop_assert!(matches!(outcome[0], Outcome::Refused(_)), "stale, but {:?}", outcome);
            }
            if matches!(outcome[0], Outcome::Refused(_)) {
                // Only the passing of time shows.
                let mut idle = before;
                idle.apply(&Entry { at: UnixMillis(now), commands: vec![] });
                prop_assert!(idle == state, "refused, but changed: {:?}", outcome);
            }
            check(&state);
            reserved.watch(&state);
            if n == restart {
                twin = State::from_snapshot(&twin.to_snapshot()).unwrap();
            }
        }
        prop_assert!(state == twin);
        prop_assert_eq!(state.to_snapshot(), twin.to_snapshot());
    }
}
