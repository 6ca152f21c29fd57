use super::*;
use crate::{MAX_FORMER, MAX_PENDING_LEASES, Refusal};

const ANY4: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
const ANY6: Option<IpAddr> = Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED));

fn ask(sa: u64, who: &str, v4: Option<IpAddr>, v6: Option<IpAddr>) -> Command {
    Command::LeaseAddresses {
        epoch: 1,
        sa: SaId(sa),
        gateway: GW,
        identity: identity(who),
        pools: vec!["p4".into(), "p6".into()],
        v4,
        v6,
        takes_over: false,
    }
}

/// Three IPv4 addresses and 2^64 IPv6 addresses.
fn with_pools() -> State {
    let mut state = taken();
    set_pools(
        &mut state,
        vec![
            pool("p4", "10.0.0.1", "10.0.0.3"),
            pool("p6", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
        ],
    );
    state
}

fn leased(addresses: &[&str]) -> Outcome {
    Outcome::Leased(addresses.iter().map(|a| ip(a)).collect())
}

fn none_left() -> Outcome {
    Outcome::Refused(Refusal::NoAddress(vec!["p4".into(), "p6".into()]))
}

#[test]
fn addresses_are_given_from_the_lowest_and_once() {
    let mut state = with_pools();
    assert_eq!(
        apply(&mut state, ask(1, "a", ANY4, ANY6)),
        leased(&["10.0.0.1", "2001:db8::"])
    );
    assert_eq!(
        apply(&mut state, ask(2, "b", ANY4, None)),
        leased(&["10.0.0.2"])
    );
    assert_eq!(
        apply(&mut state, ask(1, "a", ANY4, ANY6)),
        leased(&["10.0.0.1", "2001:db8::"])
    );
    assert_eq!(
        apply(&mut state, ask(3, "c", Some(ip("10.0.0.1")), None)),
        leased(&["10.0.0.3"])
    );
    assert_eq!(apply(&mut state, ask(4, "d", ANY4, None)), none_left());
    assert_eq!(
        apply(&mut state, ask(4, "d", ANY4, ANY6)),
        leased(&["2001:db8::1"])
    );
    assert_eq!(state.leases().count(), 5);
}

#[test]
fn nothing_is_leased_where_nothing_is_configured() {
    let mut state = taken();
    assert_eq!(apply(&mut state, ask(1, "a", ANY4, ANY6)), none_left());
    set_pools(&mut state, vec![pool("other", "10.0.0.1", "10.0.0.9")]);
    assert_eq!(apply(&mut state, ask(1, "a", ANY4, ANY6)), none_left());
}

#[test]
fn a_wish_is_granted_when_it_is_free_and_inside() {
    let mut state = with_pools();
    assert_eq!(
        apply(&mut state, ask(1, "a", Some(ip("10.0.0.2")), None)),
        leased(&["10.0.0.2"])
    );
    assert_eq!(
        apply(&mut state, ask(2, "b", Some(ip("10.0.0.9")), None)),
        leased(&["10.0.0.1"])
    );
    let far = Some(ip("2001:db8::aaaa:bbbb:cccc:dddd"));
    assert_eq!(
        apply(&mut state, ask(3, "c", None, far)),
        leased(&["2001:db8::aaaa:bbbb:cccc:dddd"])
    );
}

#[test]
fn an_identity_gets_its_former_address() {
    let mut state = with_pools();
    apply(&mut state, ask(1, "a", ANY4, None));
    assert_eq!(
        apply(&mut state, ask(2, "b", ANY4, None)),
        leased(&["10.0.0.2"])
    );
    apply(&mut state, put(1, vec![closed(1, 1), closed(2, 1)]));
    assert_eq!(state.leases().count(), 0);
    assert_eq!(
        apply(&mut state, ask(3, "b", Some(ip("10.0.0.3")), None)),
        leased(&["10.0.0.2"])
    );
    // A second client with the same identity gets another.
    assert_eq!(
        apply(&mut state, ask(4, "b", ANY4, None)),
        leased(&["10.0.0.1"])
    );
}

#[test]
fn a_pending_lease_ends_unless_a_record_takes_it() {
    let mut state = with_pools();
    apply_at(&mut state, 1000, ask(1, "a", ANY4, None));
    apply_at(&mut state, 1000, ask(2, "b", ANY4, None));
    apply_at(
        &mut state,
        1000,
        put(
            1,
            vec![established(1, 1, "a", vec![], vec![ip("10.0.0.1")])],
        ),
    );
    apply_at(&mut state, 60_999, put(1, vec![]));
    assert_eq!(state.leases().count(), 2);
    apply_at(&mut state, 61_000, put(1, vec![]));
    let left: Vec<_> = state
        .leases()
        .map(|(a, l)| (a, l.holders().collect::<Vec<_>>()))
        .collect();
    assert_eq!(left, [(ip("10.0.0.1"), vec![SaId(1)])]);
    // Too late: somebody else has it meanwhile.
    apply_at(&mut state, 62_000, ask(3, "c", Some(ip("10.0.0.2")), None));
    let late = put(
        1,
        vec![established(2, 1, "b", vec![], vec![ip("10.0.0.2")])],
    );
    assert_eq!(
        apply(&mut state, late),
        Outcome::Refused(Refusal::AddressInUse(ip("10.0.0.2")))
    );
}

#[test]
fn a_rekey_hands_the_address_on() {
    let mut state = with_pools();
    let vip = vec![ip("10.0.0.1")];
    apply(&mut state, ask(1, "a", ANY4, None));
    apply(
        &mut state,
        put(1, vec![established(1, 1, "a", vec![], vip.clone())]),
    );
    let stranger = put(1, vec![established(2, 1, "a", vec![], vip.clone())]);
    assert_eq!(
        apply(&mut state, stranger),
        Outcome::Refused(Refusal::AddressInUse(vip[0]))
    );
    let other_peer = put(
        1,
        vec![
            established(1, 2, "a", vec![], vec![]),
            established(2, 1, "b", vec![], vip.clone()),
        ],
    );
    assert_eq!(
        apply(&mut state, other_peer),
        Outcome::Refused(Refusal::AddressInUse(vip[0]))
    );
    let both = put(
        1,
        vec![
            established(1, 2, "a", vec![], vip.clone()),
            established(2, 1, "a", vec![], vip.clone()),
        ],
    );
    assert_eq!(apply(&mut state, both), Outcome::Applied);
    apply(&mut state, put(1, vec![closed(1, 3)]));
    assert_eq!(state.leases().count(), 1);
    apply(&mut state, put(1, vec![closed(2, 2)]));
    assert_eq!(state.leases().count(), 0);
}

#[test]
fn two_new_records_cannot_claim_one_free_address() {
    let mut state = with_pools();
    let vip = vec![ip("10.0.0.1")];
    let both = put(
        1,
        vec![
            established(1, 1, "a", vec![], vip.clone()),
            established(2, 1, "b", vec![], vip.clone()),
        ],
    );
    assert_eq!(
        apply(&mut state, both),
        Outcome::Refused(Refusal::AddressInUse(vip[0]))
    );
}

#[test]
fn leases_that_wait_and_memories_are_bounded() {
    let mut state = with_pools();
    for n in 0..MAX_PENDING_LEASES as u64 {
        let outcome = apply_at(&mut state, 1, ask(n, &format!("peer{n}"), None, ANY6));
        assert!(matches!(outcome, Outcome::Leased(_)), "{n}: {outcome:?}");
    }
    let full = apply_at(&mut state, 1, ask(u64::MAX, "late", None, ANY6));
    assert_eq!(
        full,
        Outcome::Refused(Refusal::Limit("leases that wait for their IKE SA"))
    );
    // Each entry frees a bounded number of them.
    apply_at(&mut state, 100_000, put(1, vec![]));
    assert_eq!(
        state.leases().count(),
        MAX_PENDING_LEASES - crate::MAX_EXPIRED_PER_ENTRY
    );
    for n in 0..2 * (MAX_FORMER / crate::MAX_EXPIRED_PER_ENTRY) as u64 {
        apply_at(
            &mut state,
            100_000,
            ask(1_000_000 + n, &format!("more{n}"), None, ANY6),
        );
    }
    assert_eq!(state.body.leases.remembered(), MAX_FORMER);
    assert_eq!(State::from_snapshot(&state.to_snapshot()), Ok(state));
}

#[test]
fn gaps_are_found_at_the_edges_of_the_space() {
    use crate::intervals::Intervals;
    let mut set = Intervals::default();
    for n in [u128::MAX, u128::MAX - 2, 0, 2] {
        set.insert(n);
        set.insert(n);
    }
    assert_eq!(set.lowest_absent(0, 5), Some(1));
    set.insert(1);
    assert_eq!(set.lowest_absent(0, 5), Some(3));
    assert_eq!(set.lowest_absent(0, 2), None);
    assert_eq!(set.lowest_absent(u128::MAX, u128::MAX), None);
    assert_eq!(
        set.lowest_absent(u128::MAX - 2, u128::MAX),
        Some(u128::MAX - 1)
    );
    set.remove(1);
    set.remove(1);
    assert_eq!(set.lowest_absent(0, 5), Some(1));
}
