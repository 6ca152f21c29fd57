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
