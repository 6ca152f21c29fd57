//! What becomes of the SAs that a peer has when it authenticates anew.

use super::{rules::refused, *};
use crate::{Refusal, State};
use evergate_ike::{
    config::{
        Authentication, Childless, Connection, EnableTcp, FRAGMENT_SIZE, Fragmentation, IkeVolume,
        Unique,
    },
    identity::IdPattern,
    record::{HalfOpen, Negotiated, Succession},
    sa::Displaced,
};
use std::time::Duration;

fn connection(unique: Unique) -> Connection {
    Connection {
        name: "c".into(),
        local_addrs: vec![],
        remote_addrs: vec![],
        remote_port: 500,
        enable_tcp: EnableTcp::No,
        tcp_remote_port: 4500,
        proposals: vec![],
        local_id: None,
        remote_id: IdPattern::Any,
        auth: Authentication::default(),
        encap: false,
        vips: vec![],
        pools: vec!["p".into()],
        rekey_time: Duration::ZERO,
        reauth_time: Duration::ZERO,
        over_time: Duration::ZERO,
        rand_time: Duration::ZERO,
        bytes: IkeVolume::default(),
        packets: IkeVolume::default(),
        dpd_delay: Duration::ZERO,
        message_id_sync: false,
        window_size: 1,
        keyingtries: 0,
        mobike: false,
        return_routability: true,
        remote_names: vec![],
        childless: Childless::Allow,
        unique,
        fragmentation: Fragmentation::Yes,
        fragment_size: FRAGMENT_SIZE,
        children: vec![],
    }
}

fn with(unique: Unique) -> State {
    let mut state = taken();
    let policy = Arc::new(Policy {
        connections: vec![connection(unique)],
        pools: vec![pool("p", "10.0.0.1", "10.0.0.9")],
        ..Policy::default()
    });
    let expected = state.policy_version();
    apply(&mut state, Command::SetPolicy { expected, policy });
    state
}

fn half_open(id: u64) -> Record {
    let negotiated = Negotiated {
        suite: suite(),
        keys: keys(),
        nonce_i: vec![],
        nonce_r: vec![],
        init_request: vec![],
        init_response: vec![],
        intermediates: Default::default(),
    };
    let half = HalfOpen {
        negotiated,
        rounds: Default::default(),
        expires_at: UnixMillis(0),
    };
    record(id, 1, Phase::HalfOpen(Box::new(half)))
}

/// A peer authenticates on a new SA; it says whether this is its only one.
fn authenticate(id: u64, who: &str, alone: bool, vips: Vec<IpAddr>) -> Command {
    let mut record = established(id, 2, who, vec![], vips);
    if let Phase::Established(e) = &mut record.phase {
        e.initial_contact = alone;
    }
    put(1, vec![record])
}

fn comes(state: &mut State, id: u64, who: &str, alone: bool) -> Outcome {
    apply(state, put(1, vec![half_open(id)]));
    apply(state, authenticate(id, who, alone, vec![]))
}

#[test]
fn a_peer_that_has_no_other_sa_is_rid_of_its_others() {
    for unique in [Unique::No, Unique::Keep, Unique::Replace] {
        let mut state = with(unique);
        assert_eq!(comes(&mut state, 1, "a", true), Outcome::Applied);
        assert_eq!(comes(&mut state, 2, "b", true), Outcome::Applied);
        let outcome = comes(&mut state, 3, "a", true);
        assert_eq!(outcome, Outcome::Displaced(vec![SaId(1)]), "{unique:?}");
        assert_eq!(state.displaced(SaId(1)), Some(Displaced::Forgotten));
        assert_eq!(state.displaced(SaId(2)), None);
        let again = State::from_snapshot(&state.to_snapshot()).unwrap();
        assert_eq!(again, state);
        apply(&mut state, put(1, vec![closed(1, 3)]));
        assert_eq!(state.displaced(SaId(1)), None);
    }
}

#[test]
fn without_that_the_policy_decides() {
    let mut state = with(Unique::No);
    comes(&mut state, 1, "a", false);
    assert_eq!(comes(&mut state, 2, "a", false), Outcome::Applied);

    let mut state = with(Unique::Never);
    comes(&mut state, 1, "a", true);
    assert_eq!(comes(&mut state, 2, "a", true), Outcome::Applied);

    let mut state = with(Unique::Replace);
    comes(&mut state, 1, "a", false);
    let displaced = Outcome::Displaced(vec![SaId(1)]);
    assert_eq!(comes(&mut state, 2, "a", false), displaced);
    assert_eq!(state.displaced(SaId(1)), Some(Displaced::Later));

    let mut state = with(Unique::Keep);
    comes(&mut state, 1, "a", false);
    move_peer(&mut state, 1);
    apply(&mut state, put(1, vec![half_open(2)]));
    let new = authenticate(2, "a", false, vec![]);
    assert_eq!(refused(&mut state, new), Refusal::NotUnique(SaId(1)));
    // Once the other one is gone there is room.
    apply(&mut state, put(1, vec![closed(1, 4)]));
    let new = authenticate(2, "a", false, vec![]);
    assert_eq!(apply(&mut state, new), Outcome::Applied);
}

/// The peer of an SA is at another address than those of all others.
fn move_peer(state: &mut State, id: u64) {
    let mut record = established(id, 3, "a", vec![], vec![]);
    record.path.remote = "198.51.100.9:4500".parse().unwrap();
    assert_eq!(apply(state, put(1, vec![record])), Outcome::Applied);
}

#[test]
fn a_peer_that_authenticates_again_from_the_same_place_has_time() {
    for unique in [Unique::Keep, Unique::Replace] {
        let mut state = with(unique);
        comes(&mut state, 1, "a", false);
        let displaced = Outcome::Displaced(vec![SaId(1)]);
        assert_eq!(comes(&mut state, 2, "a", false), displaced, "{unique:?}");
        assert_eq!(state.displaced(SaId(1)), Some(Displaced::Later));
    }
    let mut state = with(Unique::Replace);
    comes(&mut state, 1, "a", false);
    move_peer(&mut state, 1);
    comes(&mut state, 2, "a", false);
    assert_eq!(state.displaced(SaId(1)), Some(Displaced::Told));
}

#[test]
fn what_we_replace_ourselves_is_not_displaced() {
    let mut state = with(Unique::Replace);
    comes(&mut state, 1, "a", false);
    apply(&mut state, put(1, vec![half_open(2)]));
    let mut new = established(2, 2, "a", vec![], vec![]);
    new.succeeds = Some(Box::new(Succession {
        old: SaId(1),
        children: vec![],
        addresses: vec![],
    }));
    assert_eq!(apply(&mut state, put(1, vec![new])), Outcome::Applied);
    assert_eq!(state.displaced(SaId(1)), None);
}

#[test]
fn a_rekey_is_no_new_peer_and_does_not_save_a_displaced_sa() {
    let mut state = with(Unique::Replace);
    comes(&mut state, 1, "a", false);
    let mut old = established(1, 3, "a", vec![], vec![]);
    if let Phase::Established(e) = &mut old.phase {
        e.replaced_by = Some(SaId(9));
    }
    let new = established(9, 1, "a", vec![], vec![]);
    let outcome = apply(&mut state, put(1, vec![old, new]));
    assert_eq!(outcome, Outcome::Applied);

    let displaced = Outcome::Displaced(vec![SaId(9)]);
    assert_eq!(comes(&mut state, 10, "a", false), displaced);
    let mut old = established(9, 2, "a", vec![], vec![]);
    if let Phase::Established(e) = &mut old.phase {
        e.replaced_by = Some(SaId(11));
    }
    let new = established(11, 1, "a", vec![], vec![]);
    let outcome = apply(&mut state, put(1, vec![old, new]));
    assert_eq!(outcome, Outcome::Displaced(vec![SaId(11)]));
    assert_eq!(state.displaced(SaId(10)), None);
}

#[test]
fn the_virtual_address_goes_over_to_the_new_sa() {
    let mut state = with(Unique::No);
    let ask = |sa: u64, who: &str, takes_over| Command::LeaseAddresses {
        epoch: 1,
        sa: SaId(sa),
        gateway: GW,
        identity: identity(who),
        pools: vec!["p".into()],
        v4: Some(ip("0.0.0.0")),
        v6: None,
        takes_over,
    };
    let first = vec![ip("10.0.0.1")];
    let leased = |a: &str| Outcome::Leased(vec![ip(a)]);
    apply(&mut state, put(1, vec![half_open(1)]));
    assert_eq!(apply(&mut state, ask(1, "a", true)), leased("10.0.0.1"));
    apply(&mut state, authenticate(1, "a", true, first.clone()));
    // Nobody else gets it, nor does the peer without displacing what it has, unless it names it.
    assert_eq!(apply(&mut state, ask(2, "b", true)), leased("10.0.0.2"));
    assert_eq!(apply(&mut state, ask(5, "a", false)), leased("10.0.0.3"));
    let mut named = ask(6, "a", false);
    if let Command::LeaseAddresses { v4, .. } = &mut named {
        *v4 = Some(ip("10.0.0.1"));
    }
    assert_eq!(apply(&mut state, named), leased("10.0.0.1"));
    apply(&mut state, put(1, vec![half_open(4)]));
    assert_eq!(apply(&mut state, ask(4, "a", true)), leased("10.0.0.1"));
    let outcome = apply(&mut state, authenticate(4, "a", true, first.clone()));
    assert_eq!(outcome, Outcome::Displaced(vec![SaId(1)]));
    apply(&mut state, put(1, vec![closed(1, 3)]));
    let lease = state.leases().find(|(a, _)| *a == first[0]).unwrap().1;
    assert_eq!(lease.holders().collect::<Vec<_>>(), [SaId(4)]);
}
