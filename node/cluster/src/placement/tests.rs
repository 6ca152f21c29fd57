use super::*;

fn owner(name: &str) -> Owner {
    Owner {
        member: name.into(),
        incarnation: 1,
    }
}

fn live(names: &[&str]) -> Vec<Candidate> {
    let candidate = |n: &&str| Candidate {
        owner: owner(n),
        draining: false,
        place: Place::default(),
    };
    names.iter().map(candidate).collect()
}

fn free(gateway: u32) -> Seat {
    Seat {
        gateway: GatewayId(gateway),
        epoch: 7,
        holding: Holding::Free,
    }
}

fn held(gateway: u32, by: &str) -> Seat {
    Seat {
        holding: Holding::Held(owner(by)),
        ..free(gateway)
    }
}

fn assign(gateway: u32, to: &str) -> Action {
    Action::Assign {
        gateway: GatewayId(gateway),
        epoch: 7,
        to: owner(to),
    }
}

fn hand_over(gateway: u32, from: &str, to: &str) -> Action {
    Action::Move {
        gateway: GatewayId(gateway),
        epoch: 7,
        from: owner(from),
        to: owner(to),
    }
}

fn planned(seats: &[Seat], candidates: &[Candidate]) -> Vec<Action> {
    plan(seats, candidates, &BTreeMap::new(), true)
}

#[test]
fn the_gateways_of_a_dead_member_spread_over_the_survivors() {
    let seats = [
        held(1, "b"),
        held(2, "c"),
        free(3),
        free(4),
        free(5),
        held(6, "b"),
    ];
    assert_eq!(
        planned(&seats, &live(&["b", "c"])),
        [assign(3, "c"), assign(4, "b"), assign(5, "c")]
    );
}

#[test]
fn the_order_of_what_is_given_does_not_matter() {
    let mut seats = vec![held(1, "a"), free(2), free(3), free(4)];
    let mut candidates = live(&["a", "b", "c"]);
    let before = planned(&seats, &candidates);
    seats.reverse();
    candidates.reverse();
    assert_eq!(planned(&seats, &candidates), before);
    assert_eq!(before, [assign(2, "b"), assign(3, "c"), assign(4, "a")]);
}

#[test]
fn what_may_still_be_served_is_left_alone() {
    let uncertain = Seat {
        holding: Holding::Uncertain,
        ..free(1)
    };
    assert_eq!(planned(&[uncertain], &live(&["a"])), []);
    assert_eq!(planned(&[free(1)], &[]), []);
}

#[test]
fn a_difference_of_one_moves_nothing_and_two_moves_one() {
    let mut seats = vec![held(1, "a"), held(2, "a"), held(3, "b")];
    assert_eq!(planned(&seats, &live(&["a", "b"])), []);
    seats.push(held(4, "a"));
    assert_eq!(
        planned(&seats, &live(&["a", "b"])),
        [hand_over(4, "a", "b")]
    );
    assert_eq!(
        plan(&seats, &live(&["a", "b"]), &BTreeMap::new(), false),
        []
    );
}

#[test]
fn a_member_that_comes_gets_its_share_and_then_there_is_rest() {
    let seats: Vec<Seat> = (0..6)
        .map(|n| held(n, if n % 2 == 0 { "a" } else { "b" }))
        .collect();
    let candidates = live(&["a", "b", "c"]);
    let moves = planned(&seats, &candidates);
    assert_eq!(moves, [hand_over(5, "b", "c"), hand_over(4, "a", "c")]);
    // While they are under way nothing more is asked for.
    let moving = [(GatewayId(5), owner("c")), (GatewayId(4), owner("c"))].into();
    assert_eq!(plan(&seats, &candidates, &moving, true), []);
    // Given up, they go where they were meant to, whoever has least.
    let mut given = seats;
    given[4] = free(4);
    let now = plan(&given, &candidates, &moving, true);
    assert_eq!(now, [assign(4, "c")]);
}

#[test]
fn a_destination_that_died_is_none() {
    let moving = [(GatewayId(1), owner("c"))].into();
    let now = plan(&[free(1)], &live(&["a", "b"]), &moving, true);
    assert_eq!(now, [assign(1, "a")]);
}

#[test]
fn a_draining_member_gives_all_and_gets_nothing() {
    let mut candidates = live(&["a", "b", "c"]);
    candidates[0].draining = true;
    let seats = [
        held(1, "a"),
        held(2, "a"),
        held(3, "b"),
        held(4, "c"),
        free(5),
    ];
    assert_eq!(
        planned(&seats, &candidates),
        [
            assign(5, "b"),
            hand_over(1, "a", "c"),
            hand_over(2, "a", "b")
        ]
    );
    // Nobody else: better served by one that is about to go than not at all.
    assert_eq!(
        planned(&[free(5), held(1, "a")], &candidates[..1]),
        [assign(5, "a")]
    );
}

#[test]
fn another_process_of_a_member_is_another_candidate() {
    let old = Seat {
        holding: Holding::Uncertain,
        ..free(1)
    };
    let mut candidates = live(&["a"]);
    candidates[0].owner.incarnation = 2;
    assert_eq!(planned(&[old], &candidates), []);
    let now = planned(&[free(1)], &candidates);
    let Action::Assign { to, .. } = &now[0] else {
        panic!("{now:?}")
    };
    assert_eq!(to.incarnation, 2);
}

fn placed(name: &str, zone: &str, weight: u32) -> Candidate {
    let zone = zone.to_owned();
    Candidate {
        place: Place { zone, weight },
        ..live(&[name]).remove(0)
    }
}

/// Who has what once all that is planned is done.
fn after(seats: &[Seat], actions: &[Action]) -> Vec<Seat> {
    let mut seats = seats.to_vec();
    for action in actions {
        let (Action::Assign {
            gateway: which, to, ..
        }
        | Action::Move {
            gateway: which, to, ..
        }) = action;
        for seat in seats.iter_mut().filter(|s| s.gateway == *which) {
            seat.holding = Holding::Held(to.clone());
        }
    }
    seats
}

fn count(seats: &[Seat], name: &str) -> usize {
    let has = |s: &&Seat| s.holding == Holding::Held(owner(name));
    seats.iter().filter(has).count()
}

#[test]
fn gateways_are_spread_by_weight() {
    let seats: Vec<Seat> = (0..8).map(free).collect();
    let candidates = [placed("a", "", 100), placed("b", "", 300)];
    let then = after(&seats, &planned(&seats, &candidates));
    assert_eq!((count(&then, "a"), count(&then, "b")), (2, 6));
    // As heavy as the other now: two move, and no more.
    let even = [placed("a", "", 100), placed("b", "", 100)];
    assert_eq!(planned(&then, &even).len(), 2);
}

#[test]
fn as_few_as_can_be_are_in_one_zone() {
    let candidates = [
        placed("a1", "a", 100),
        placed("a2", "a", 100),
        placed("b1", "b", 100),
        placed("b2", "b", 100),
    ];
    let seats: Vec<Seat> = (0..2).map(free).collect();
    let then = after(&seats, &planned(&seats, &candidates));
    assert_eq!((count(&then, "a1"), count(&then, "b1")), (1, 1));
    // The zone b is gone, then back: one of two moves.
    let gone = [held(0, "a1"), free(1)];
    let then = after(&gone, &planned(&gone, &candidates[..2]));
    assert_eq!((count(&then, "a1"), count(&then, "a2")), (1, 1));
    let back = planned(&then, &candidates);
    assert_eq!(back.len(), 1, "{back:?}");
    assert_eq!(planned(&after(&then, &back), &candidates), []);
}

#[test]
fn the_gateways_of_a_dead_zone_go_over_all_others() {
    let seats = [
        held(1, "a1"),
        held(2, "b1"),
        held(3, "b2"),
        free(4),
        free(5),
        free(6),
    ];
    let candidates = [
        placed("a1", "a", 100),
        placed("b1", "b", 100),
        placed("b2", "b", 100),
    ];
    let then = after(&seats, &planned(&seats, &candidates));
    assert_eq!(["a1", "b1", "b2"].map(|m| count(&then, m)), [2, 2, 2]);
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

    fn members() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (
            prop_oneof![Just(""), Just("x"), Just("y"), Just("z")],
            prop_oneof![Just(100_u32), Just(50), 1..1000_u32],
        );
        prop::collection::vec(one, 1..=NAMES.len()).prop_map(|all| {
            let named = NAMES.iter().zip(all);
            named
                .map(|(name, (zone, weight))| placed(name, zone, weight))
                .collect()
        })
    }

    fn moved(actions: &[Action]) -> BTreeSet<GatewayId> {
        let of = |a: &Action| match a {
            Action::Assign { gateway, .. } | Action::Move { gateway, .. } => *gateway,
        };
        actions.iter().map(of).collect()
    }

    fn settled(gateways: u32, members: &[Candidate]) -> Vec<Seat> {
        let seats: Vec<Seat> = (0..gateways).map(free).collect();
        let seats = after(&seats, &planned(&seats, members));
        after(&seats, &planned(&seats, members))
    }

    proptest! {
        #[test]
        fn all_are_assigned_in_balance_and_then_there_is_rest(members in members(), gateways in 0..60_u32) {
            let seats = settled(gateways, &members);
            prop_assert_eq!(planned(&seats, &members), []);
            for from in &members {
                for to in &members {
                    let of = |c: &Candidate, more| (count(&seats, &c.owner.member) as u64 + more, u64::from(c.place.weight));
                    let ((n, w), (m, v)) = (of(from, 0), of(to, 1));
                    prop_assert!(n * v <= m * w, "{} has {n} for {w}, {} would have {m} for {v}", from.owner.member, to.owner.member);
                }
            }
        }

        #[test]
        fn a_member_that_goes_moves_nothing_but_its_own(
            all in members(), gateways in 0..60_u32, which in 0..7_usize
        ) {
            let equal: Vec<Candidate> = all.iter().map(|c| placed(&c.owner.member, "", 100)).collect();
            let gone = equal[which % equal.len()].owner.clone();
            let seats = settled(gateways, &equal);
            let rest: Vec<Candidate> = equal.into_iter().filter(|c| c.owner != gone).collect();
            prop_assume!(!rest.is_empty());
            let own: BTreeSet<GatewayId> = seats.iter().filter(|s| s.holding == Holding::Held(gone.clone())).map(|s| s.gateway).collect();
            let without: Vec<Seat> = seats.iter().map(|s| if own.contains(&s.gateway) { free(s.gateway.0) } else { s.clone() }).collect();
            let actions = planned(&without, &rest);
            prop_assert_eq!(moved(&actions), own);
            prop_assert_eq!(planned(&after(&without, &actions), &rest), []);
        }

        #[test]
        fn a_member_that_comes_gets_its_share_and_nothing_else_moves(count_before in 1..6_usize, gateways in 0..60_u32) {
            let before = live(&NAMES[..count_before]);
            let all = live(&NAMES[..=count_before]);
            let seats = settled(gateways, &before);
            let actions = planned(&seats, &all);
            let newcomer = owner(NAMES[count_before]);
            let to_newcomer = |a: &Action| matches!(a, Action::Move { to, .. } if *to == newcomer);
            prop_assert!(actions.iter().all(to_newcomer));
            prop_assert_eq!(actions.len(), gateways as usize / (count_before + 1));
        }
    }
}
