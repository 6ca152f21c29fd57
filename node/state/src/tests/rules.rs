use super::*;
use crate::{Carried, Counters, MAX_EPOCH, MAX_EXTENSION, Refusal, SnapshotError};
use evergate_ike::sa::CookieSecrets;

/// Applies a command that must be refused, and checks that it left nothing behind.
pub(super) fn refused(state: &mut State, command: Command) -> Refusal {
    let before = state.clone();
    let Outcome::Refused(why) = apply(state, command) else {
        panic!("not refused")
    };
    assert_eq!(*state, before);
    why
}

#[test]
fn each_taking_is_a_new_epoch_and_the_former_one_is_refused() {
    let mut state = taken();
    assert_eq!(take(&mut state, GW), Outcome::Epoch { epoch: 2 });
    let stale = Refusal::StaleEpoch {
        gateway: GW,
        given: 1,
        current: 2,
    };
    assert_eq!(refused(&mut state, put(1, vec![closed(1, 1)])), stale);
    let counters = vec![];
    assert_eq!(
        refused(
            &mut state,
            Command::Counters {
                gateway: GW,
                epoch: 1,
                counters
            }
        ),
        stale
    );
    assert_eq!(
        refused(
            &mut state,
            Command::RemoveSas {
                gateway: GW,
                epoch: 1,
                sas: vec![]
            }
        ),
        stale
    );
    assert_eq!(
        refused(
            &mut state,
            Command::ExtendReservations {
                gateway: GW,
                epoch: 1,
                children: vec![]
            }
        ),
        stale
    );
    let gateway = state.gateway(GW).unwrap();
    assert_eq!(
        (gateway.epoch, gateway.owner.clone().map(|o| o.member)),
        (2, Some("a".into()))
    );
}

#[test]
fn a_gateway_that_nobody_took_has_no_epoch() {
    let mut state = State::new();
    let stale = Refusal::StaleEpoch {
        gateway: GW,
        given: 0,
        current: 0,
    };
    assert_eq!(refused(&mut state, put(0, vec![closed(1, 1)])), stale);
}

#[test]
fn the_last_epoch_cannot_be_left() {
    let mut state = taken();
    state.body.gateways.get_mut(&GW).unwrap().epoch = MAX_EPOCH;
    assert_eq!(
        refused(&mut state, assign(GW, "a", 1, MAX_EPOCH)),
        Refusal::Limit("epochs of a gateway")
    );
}

#[test]
fn records_are_put_all_or_none() {
    let mut state = taken();
    let why = refused(&mut state, put(1, vec![closed(1, 1), closed(2, 2)]));
    assert_eq!(
        why,
        Refusal::StaleRevision {
            sa: SaId(2),
            given: 2,
            current: 0
        }
    );
    assert_eq!(
        apply(&mut state, put(1, vec![closed(1, 1), closed(1, 2)])),
        Outcome::Applied
    );
    assert_eq!(state.sa(SaId(1)).unwrap().revision, 2);
    for given in [0, 1, 2, 4] {
        let why = refused(&mut state, put(1, vec![closed(1, given)]));
        assert_eq!(
            why,
            Refusal::StaleRevision {
                sa: SaId(1),
                given,
                current: 2
            }
        );
    }
}

#[test]
fn an_sa_stays_with_its_gateway() {
    let mut state = taken();
    let other = GatewayId(2);
    take(&mut state, other);
    apply(&mut state, put(1, vec![closed(1, 1)]));
    let stolen = Record {
        gateway: other,
        ..closed(1, 2)
    };
    let wrong = Refusal::WrongGateway {
        sa: SaId(1),
        given: other,
    };
    assert_eq!(refused(&mut state, put(1, vec![stolen.clone()])), wrong);
    assert_eq!(
        refused(
            &mut state,
            Command::RemoveSas {
                gateway: other,
                epoch: 1,
                sas: vec![SaId(1)]
            }
        ),
        wrong
    );
    let mixed = put(1, vec![closed(1, 2), stolen]);
    assert!(matches!(
        refused(&mut state, mixed),
        Refusal::WrongGateway { .. }
    ));
}

#[test]
fn an_spi_is_in_one_record_only() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    assert!(state.spi_in_use(1000) && !state.spi_in_use(1001));
    let thief = |c| put(1, vec![established(2, 1, "q", c, vec![])]);
    assert_eq!(
        refused(&mut state, thief(vec![child(1000, false)])),
        Refusal::SpiInUse(1000)
    );
    assert_eq!(
        refused(
            &mut state,
            thief(vec![child(1001, false), child(1001, false)])
        ),
        Refusal::SpiInUse(1001)
    );
    let mut offering = established(2, 1, "q", vec![], vec![]);
    offering.outbound = pending(0, [Task::Liveness, Task::CreateChild(offer(1000))]);
    assert_eq!(
        refused(&mut state, put(1, vec![offering.clone()])),
        Refusal::SpiInUse(1000)
    );
    offering.outbound = pending(0, [1002, 1003].map(|spi| Task::CreateChild(offer(spi))));
    apply(&mut state, put(1, vec![offering]));
    for spi in [1002, 1003] {
        assert_eq!(state.spi_owner(spi), Some(SaId(2)));
        assert_eq!(state.reservation(spi), None);
    }
    apply(
        &mut state,
        put(
            1,
            vec![established(2, 2, "q", vec![child(1002, false)], vec![])],
        ),
    );
    assert_eq!(state.reservation(1002), Some(1..(1 << 16) + 1));
}

#[test]
fn the_kind_of_sequence_numbers_of_a_child_stays() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, true)], vec![])],
        ),
    );
    let other = put(
        1,
        vec![established(1, 2, "p", vec![child(1000, false)], vec![])],
    );
    assert_eq!(refused(&mut state, other), Refusal::SpiInUse(1000));
}

#[test]
fn a_takeover_opens_numbers_that_nobody_had() {
    let mut state = taken();
    let children = vec![child(1000, false), child(1001, true)];
    apply(
        &mut state,
        put(1, vec![established(1, 1, "p", children, vec![])]),
    );
    assert_eq!(state.reservation(1000), Some(1..(1 << 16) + 1));
    assert_eq!(state.reservation(1001), Some(1..(1 << 20) + 1));
    take(&mut state, GW);
    assert_eq!(state.reservation(1000), Some((1 << 16) + 1..(2 << 16) + 1));
    assert_eq!(state.reservation(1001), Some((1 << 20) + 1..(2 << 20) + 1));
    assert_eq!(state.reservation_in(1000, 1), None);
    assert_eq!(state.reservation_in(1000, 2), state.reservation(1000));
}

#[test]
fn an_extension_continues_the_range_and_is_bounded() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    let extend = |children| Command::ExtendReservations {
        gateway: GW,
        epoch: 1,
        children,
    };
    let end = (1u64 << 16) + 1;
    let outcome = apply(
        &mut state,
        extend(vec![(1000, 10), (1000, u64::MAX), (4711, 5)]),
    );
    let next = end + 10;
    assert_eq!(
        outcome,
        Outcome::Reserved(vec![(1000, end..next), (1000, next..next + MAX_EXTENSION)])
    );
    assert_eq!(state.reservation(1000), Some(1..next + MAX_EXTENSION));
}

#[test]
fn a_32_bit_space_ends_and_is_not_begun_again() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    for _ in 0..(1u64 << 32).div_ceil(MAX_EXTENSION) {
        apply(
            &mut state,
            Command::ExtendReservations {
                gateway: GW,
                epoch: 1,
                children: vec![(1000, MAX_EXTENSION)],
            },
        );
    }
    assert_eq!(state.reservation(1000), Some(1..1 << 32));
    take(&mut state, GW);
    assert!(state.reservation(1000).unwrap().is_empty());
}

#[test]
fn an_ike_rekey_moves_children_with_their_numbers() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    let extend = Command::ExtendReservations {
        gateway: GW,
        epoch: 1,
        children: vec![(1000, 5)],
    };
    apply(&mut state, extend);
    let before = state.reservation(1000);
    let moved = put(
        1,
        vec![
            established(1, 2, "p", vec![], vec![]),
            established(2, 1, "p", vec![child(1000, false)], vec![]),
        ],
    );
    assert_eq!(apply(&mut state, moved), Outcome::Applied);
    assert_eq!(state.reservation(1000), before);
    assert_eq!(state.spi_owner(1000), Some(SaId(2)));
}

#[test]
fn what_closes_or_goes_gives_its_spis_back() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(
                1,
                1,
                "p",
                vec![child(1000, false), child(1001, false)],
                vec![],
            )],
        ),
    );
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 2, "p", vec![child(1001, false)], vec![])],
        ),
    );
    assert_eq!(
        (state.reservation(1000), state.spi_in_use(1000)),
        (None, false)
    );
    apply(&mut state, put(1, vec![closed(1, 3)]));
    assert_eq!(
        (state.reservation(1001), state.spi_in_use(1001)),
        (None, false)
    );
    apply(
        &mut state,
        put(
            1,
            vec![established(2, 1, "p", vec![child(1001, false)], vec![])],
        ),
    );
    let gone = Command::RemoveSas {
        gateway: GW,
        epoch: 1,
        sas: vec![SaId(1), SaId(2), SaId(3)],
    };
    assert_eq!(apply(&mut state, gone), Outcome::Applied);
    assert_eq!(
        (
            state.sas().len(),
            state.spi_in_use(1001),
            state.reservation(1001)
        ),
        (0, false, None)
    );
}

#[test]
fn counters_only_rise() {
    let mut state = taken();
    let mut first = established(1, 1, "p", vec![], vec![]);
    first.outbound = pending(5, [Task::Liveness]);
    apply(&mut state, put(1, vec![first]));
    let mut count = |inbound_next, outbound_next| {
        let counters = vec![
            Counters {
                sa: SaId(1),
                inbound_next,
                outbound_next,
            },
            Counters {
                sa: SaId(99),
                inbound_next,
                outbound_next,
            },
        ];
        apply(
            &mut state,
            Command::Counters {
                gateway: GW,
                epoch: 1,
                counters,
            },
        );
        let r = state.sa(SaId(1)).unwrap();
        (
            r.inbound.next,
            !r.inbound.answered.is_empty(),
            r.outbound.next,
            !r.outbound.pending.is_empty(),
            r.revision,
        )
    };
    assert_eq!(count(1, 4), (2, true, 6, true, 1));
    assert_eq!(count(3, 5), (3, false, 6, true, 1));
    assert_eq!(count(2, 6), (3, false, 6, false, 1));
    assert_eq!(count(2, 7), (3, false, 7, false, 1));
}

#[test]
fn counters_do_not_finish_what_only_a_record_finishes() {
    let mut state = taken();
    let mut first = established(1, 1, "p", vec![], vec![]);
    first.outbound = pending(5, [Task::CreateChild(offer(1000)), Task::Liveness]);
    apply(&mut state, put(1, vec![first.clone(), closed(2, 1)]));
    let counters = [1, 2]
        .map(|sa| Counters {
            sa: SaId(sa),
            inbound_next: 2,
            outbound_next: 6,
        })
        .to_vec();
    apply(
        &mut state,
        Command::Counters {
            gateway: GW,
            epoch: 1,
            counters,
        },
    );
    assert_eq!(**state.sa(SaId(1)).unwrap(), first);
    assert_eq!(**state.sa(SaId(2)).unwrap(), closed(2, 1));
}

#[test]
fn what_was_received_only_grows_and_ends_with_the_child() {
    let mut state = taken();
    let report = |epoch, edge| Command::ReportReceived {
        gateway: GW,
        epoch,
        edges: vec![(100, edge), (999, edge)],
    };
    let with_child = established(1, 1, "p", vec![child(100, false)], vec![]);
    apply(&mut state, put(1, vec![with_child]));
    assert_eq!(state.received(100), None);
    assert_eq!(apply(&mut state, report(1, 50)), Outcome::Applied);
    apply(&mut state, report(1, 40));
    assert_eq!(state.received(100), Some(50));
    assert_eq!(state.received(999), None, "there is no such Child SA");
    assert!(matches!(
        apply(&mut state, report(7, 90)),
        Outcome::Refused(Refusal::StaleEpoch { .. })
    ));
    take(&mut state, GW);
    assert_eq!(state.received(100), Some(50), "a successor knows it");
    apply(&mut state, put(2, vec![closed(1, 2)]));
    assert_eq!(state.received(100), None);
}

#[test]
fn what_was_carried_only_grows_and_ends_with_the_child() {
    let mut state = taken();
    let report = |epoch, bytes, packets| Command::ReportCarried {
        gateway: GW,
        epoch,
        carried: vec![(100, Carried { bytes, packets }), (999, Carried::default())],
    };
    let with_child = established(1, 1, "p", vec![child(100, false)], vec![]);
    apply(&mut state, put(1, vec![with_child]));
    assert_eq!(apply(&mut state, report(1, 500, 5)), Outcome::Applied);
    apply(&mut state, report(1, 400, 6));
    let known = Carried {
        bytes: 500,
        packets: 6,
    };
    assert_eq!(state.carried(100), known);
    take(&mut state, GW);
    assert_eq!(state.carried(100), known, "a successor knows it");
    assert!(matches!(
        apply(&mut state, report(1, 900, 9)),
        Outcome::Refused(Refusal::StaleEpoch { .. })
    ));
    apply(&mut state, put(2, vec![closed(1, 2)]));
    assert_eq!(state.carried(100), Carried::default());
}

#[test]
fn what_was_carried_together_goes_on_with_the_ike_sa_that_is_rekeyed() {
    let mut state = taken();
    let bytes = |bytes| Carried { bytes, packets: 0 };
    let report = |epoch, sa, n| Command::ReportCarriedTogether {
        gateway: GW,
        epoch,
        carried: vec![(SaId(sa), bytes(n)), (SaId(999), bytes(n))],
    };
    apply(
        &mut state,
        put(1, vec![established(1, 1, "p", vec![], vec![])]),
    );
    assert_eq!(apply(&mut state, report(1, 1, 500)), Outcome::Applied);
    apply(&mut state, report(1, 1, 400));
    assert_eq!(state.carried_together(SaId(1)).all, bytes(500));
    assert_eq!(state.carried_together(SaId(999)).all, bytes(0));

    let mut replaced = established(1, 2, "p", vec![], vec![]);
    let Phase::Established(e) = &mut replaced.phase else {
        unreachable!()
    };
    e.replaced_by = Some(SaId(2));
    let new = established(2, 1, "p", vec![], vec![]);
    apply(&mut state, put(1, vec![replaced, new]));
    let known = state.carried_together(SaId(2));
    assert_eq!((known.all, known.since_rekey()), (bytes(500), bytes(0)));
    // A late report of the one before counts no more.
    apply(&mut state, report(1, 1, 900));
    assert_eq!(state.carried_together(SaId(1)).all, bytes(0));
    apply(&mut state, report(1, 2, 700));
    let known = state.carried_together(SaId(2));
    assert_eq!((known.all, known.since_rekey()), (bytes(700), bytes(200)));

    take(&mut state, GW);
    assert_eq!(state.carried_together(SaId(2)), known, "a successor knows");
    assert!(matches!(
        apply(&mut state, report(1, 2, 900)),
        Outcome::Refused(Refusal::StaleEpoch { .. })
    ));
    let again = State::from_snapshot(&state.to_snapshot()).unwrap();
    assert_eq!(again.carried_together(SaId(2)), known);
    apply(&mut state, put(2, vec![closed(2, 2)]));
    assert_eq!(state.carried_together(SaId(2)).all, bytes(0));
}

#[test]
fn the_policy_is_replaced_by_version() {
    let mut state = State::new();
    let policy = Arc::new(Policy {
        pools: vec![pool("p", "10.0.0.1", "10.0.0.2")],
        ..Policy::default()
    });
    let set = |expected| Command::SetPolicy {
        expected,
        policy: Arc::clone(&policy),
    };
    assert_eq!(
        refused(&mut state, set(1)),
        Refusal::StalePolicy {
            given: 1,
            current: 0
        }
    );
    assert_eq!(apply(&mut state, set(0)), Outcome::Applied);
    assert_eq!((state.policy_version(), state.policy()), (1, &policy));
    assert_eq!(
        refused(&mut state, set(0)),
        Refusal::StalePolicy {
            given: 0,
            current: 1
        }
    );
}

#[test]
fn the_clock_does_not_go_back() {
    let mut state = State::new();
    let secrets = CookieSecrets {
        current: Secret::new(vec![1]),
        previous: Secret::new(vec![2]),
    };
    for (at, clock) in [(5, 5), (3, 5), (9, 9)] {
        apply_at(&mut state, at, Command::SetCookieSecrets(secrets.clone()));
        assert_eq!(state.clock(), UnixMillis(clock));
    }
    assert_eq!(state.cookie_secrets(), Some(&secrets));
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    let whole = state.to_snapshot();
    assert_eq!(State::from_snapshot(&whole), Ok(state));
    for n in 0..whole.len() {
        assert!(State::from_snapshot(&whole[..n]).is_err(), "{n} bytes");
    }
    assert!(State::from_snapshot(&[whole.as_slice(), &[0]].concat()).is_err());
    assert_eq!(
        State::from_snapshot(b"something"),
        Err(SnapshotError::NotASnapshot)
    );
    let mut newer = whole.clone();
    newer[5] = 200;
    assert_eq!(
        State::from_snapshot(&newer),
        Err(SnapshotError::UnknownVersion(200))
    );
    // Any flipped byte gives an error or a state, never a panic.
    for n in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[n] ^= 0xff;
        let _ = State::from_snapshot(&damaged);
    }
}

#[test]
fn debug_shows_no_records() {
    let mut state = taken();
    apply(
        &mut state,
        put(
            1,
            vec![established(1, 1, "p", vec![child(1000, false)], vec![])],
        ),
    );
    let text = format!("{state:?}");
    assert!(text.contains("sas: 1") && !text.contains("key"), "{text}");
}
