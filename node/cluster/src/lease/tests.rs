//! Rules one by one; `simulation` has them all at once.

mod simulation;

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn at(n: u64) -> BootTime {
    BootTime(ms(n))
}

fn owner(name: &str) -> Owner {
    Owner {
        member: name.into(),
        incarnation: 1,
    }
}

const G1: GatewayId = GatewayId(1);
const G2: GatewayId = GatewayId(2);

/// Round numbers: own leases of a leader end 60 ms after its quorum lease.
fn timing() -> Timing {
    Timing {
        grant: ms(150),
        election_timeout_max: ms(30),
        ..Timing::default()
    }
}

fn grantor(former: Option<&str>) -> Grantor {
    Grantor::new(timing(), 5, owner("l"), former.map(owner), at(1000))
}

fn holder() -> Holder {
    Holder::new(timing(), owner("a"))
}

fn answer(request: &Request) -> Grant {
    Grant {
        id: request.id,
        term: 5,
        leader: owner("l"),
        gateways: request.gateways.clone(),
    }
}

#[test]
fn a_grant_counts_from_when_it_was_asked_for() {
    let mut holder = holder();
    let request = holder.request(at(100), vec![(G1, 3)]);
    assert!(!holder.may_act(G1, 3, at(100)));
    holder.granted(&answer(&request)); // whenever that comes
    assert!(holder.may_act(G1, 3, at(249)));
    assert_eq!(holder.remaining(G1, 3, at(200)), ms(50));
    assert!(!holder.may_act(G1, 3, at(250)));
    assert!(!holder.may_act(G1, 2, at(200)), "another epoch");
    assert!(!holder.may_act(G2, 3, at(200)), "another gateway");
}

#[test]
fn answers_out_of_order_shorten_nothing_and_lengthen_nothing() {
    let mut holder = holder();
    let first = holder.request(at(100), vec![(G1, 3)]);
    let second = holder.request(at(140), vec![(G1, 3)]);
    holder.granted(&answer(&second));
    holder.granted(&answer(&first));
    holder.granted(&answer(&second));
    assert_eq!(holder.remaining(G1, 3, at(140)), ms(150));
    let forged = Grant {
        id: 99,
        ..answer(&second)
    };
    holder.granted(&forged);
    assert_eq!(holder.remaining(G1, 3, at(140)), ms(150));
}

#[test]
fn what_was_given_up_does_not_come_back_with_an_answer_under_way() {
    let mut holder = holder();
    let request = holder.request(at(100), vec![(G1, 3)]);
    holder.drop_gateway(G1);
    holder.granted(&answer(&request));
    assert!(!holder.may_act(G1, 3, at(100)));
}

#[test]
fn only_owners_are_granted_what_is_theirs() {
    let mut grantor = grantor(None);
    let request = holder().request(at(0), vec![(G1, 3), (G2, 1)]);
    let epoch_of = |g| (g == G1).then_some(3);
    let grant = grantor
        .grant(&request, at(1001), at(2000), epoch_of)
        .unwrap();
    assert_eq!(grant.gateways, [(G1, 3)]);
    assert_eq!((grant.id, grant.term), (request.id, 5));
    let late = grantor.grant(&request, at(2000), at(2000), epoch_of);
    assert_eq!(late, Err(Denied::NoQuorum));
    grantor.stop();
    let stopped = grantor.grant(&request, at(1002), at(2000), epoch_of);
    assert_eq!(stopped, Err(Denied::Stopped));
    assert!(!grantor.reassign(G1, 3, None, at(9000)));
}

#[test]
fn a_silent_owner_is_waited_for() {
    let mut grantor = grantor(None);
    let a = owner("a");
    // Nothing was heard of it in this term: what the leader before granted may run.
    assert!(!grantor.reassign(G1, 3, Some(&a), at(1151)));
    let request = holder().request(at(0), vec![(G1, 3)]);
    grantor
        .grant(&request, at(1100), at(2000), |_| Some(3))
        .unwrap();
    assert!(grantor.is_live(&a, at(1200)));
    // 150 ms and 1 %.
    assert!(!grantor.reassign(G1, 3, Some(&a), at(1251)));
    assert!(grantor.reassign(G1, 3, Some(&a), at(1252)));
    assert!(!grantor.is_live(&a, at(1252)));
    // It is back, but too late for this gateway, until it is known what became of the assignment.
    let grant = |g: &mut Grantor| {
        g.grant(&request, at(1260), at(2000), |_| Some(3))
            .unwrap()
            .gateways
    };
    assert_eq!(grant(&mut grantor), []);
    grantor.settled(G1, 3);
    assert_eq!(grant(&mut grantor), [(G1, 3)]);
}

#[test]
fn the_next_end_is_that_of_who_asked_first() {
    let mut grantor = grantor(None);
    assert_eq!(grantor.next_end(at(1100)), None);
    for (name, asked) in [("b", 1130), ("a", 1100)] {
        let mut request = holder().request(at(asked), Vec::new());
        request.owner = owner(name);
        grantor
            .grant(&request, at(asked), at(2000), |_| None)
            .unwrap();
    }
    let first = grantor.next_end(at(1140)).unwrap();
    assert!(grantor.is_live(&owner("a"), at(1251)) && !grantor.is_live(&owner("a"), first));
    let second = grantor.next_end(first).unwrap();
    assert_eq!(first.until(second), ms(30));
    assert!(!grantor.is_live(&owner("b"), second));
    assert_eq!(grantor.next_end(second), None);
}

#[test]
fn a_process_that_hears_no_answers_is_not_kept_alive_by_its_requests() {
    let (mut grantor, mut holder) = (grantor(None), holder());
    let own = || vec![(G1, 3)];
    let granted = |g: &mut Grantor, request: &Request, now| {
        g.grant(request, at(now), at(9000), |_| Some(3)).unwrap()
    };
    let first = granted(&mut grantor, &holder.request(at(1000), own()), 1000);
    assert_eq!(first.gateways, own());
    holder.granted(&first);
    // The answers to these are lost.
    let fresh = holder.request(at(1075), own());
    assert_eq!(granted(&mut grantor, &fresh, 1075).gateways, own());
    let late = granted(&mut grantor, &holder.request(at(1080), own()), 1080);
    assert_eq!(late.gateways, []);
    assert!(!grantor.reassign(G1, 3, Some(&owner("a")), at(1226)));
    assert!(grantor.reassign(G1, 3, Some(&owner("a")), at(1227)));
    grantor.settled(G1, 3);
    // It hears again, and is granted something again.
    holder.granted(&late);
    let next = holder.request(at(1230), own());
    assert_eq!(granted(&mut grantor, &next, 1230).gateways, []);
    let refused = granted(&mut grantor, &next, 1230);
    holder.granted(&refused);
    let next = holder.request(at(1240), own());
    assert_eq!(granted(&mut grantor, &next, 1240).gateways, own());
}

#[test]
fn nobody_is_not_waited_for_and_a_former_leader_only_as_long_as_its_own_leases_may_run() {
    let mut bounded = grantor(Some("a"));
    // 60 ms and 1 %.
    assert!(!bounded.reassign(G1, 3, Some(&owner("a")), at(1060)));
    assert!(bounded.reassign(G1, 3, Some(&owner("a")), at(1061)));
    assert!(!bounded.reassign(G2, 3, Some(&owner("b")), at(1061)));
    assert!(bounded.reassign(G2, 3, None, at(1000)));
    // One that asked in this term is like all others.
    let mut asked = grantor(Some("a"));
    let request = holder().request(at(0), vec![]);
    asked.grant(&request, at(1001), at(2000), |_| None).unwrap();
    assert!(!asked.reassign(G1, 3, Some(&owner("a")), at(1100)));
}

#[test]
fn a_leaders_own_leases_end_a_known_time_after_its_quorum_lease() {
    let mut holder = holder();
    let own_end = |quorum| timing().own_until(at(quorum));
    assert!(
        at(259) < own_end(200) && own_end(200) < at(260),
        "60 ms without 1 %"
    );
    let before = holder.request(at(150), vec![(G1, 3)]);
    holder.granted(&answer(&before));
    assert!(holder.may_act(G1, 3, at(299)));
    holder.lead(at(200));
    assert!(holder.may_act(G1, 3, at(259)) && !holder.may_act(G1, 3, at(260)));
    let own = holder.request(at(170), vec![(G1, 3)]);
    holder.granted(&answer(&own));
    assert!(!holder.may_act(G1, 3, at(260)));
    holder.lead(at(400));
    let next = holder.request(at(210), vec![(G1, 3)]);
    holder.granted(&answer(&next));
    assert_eq!(holder.remaining(G1, 3, at(210)), ms(150));
    // An answer to itself that is late must not count in full.
    let late = holder.request(at(390), vec![(G1, 3)]);
    holder.follow();
    holder.granted(&answer(&late));
    assert!(!holder.may_act(G1, 3, at(400)));
}

#[test]
fn the_former_leader_is_known_by_its_grants() {
    let mut holder = holder();
    assert_eq!(holder.former_leader(5), None);
    let request = holder.request(at(0), vec![]);
    holder.granted(&answer(&request));
    assert_eq!(holder.former_leader(5), Some(owner("l")));
    assert_eq!(holder.former_leader(6), None, "another may have led since");
}

#[test]
fn processes_of_the_past_are_forgotten() {
    let mut grantor = grantor(None);
    let request = holder().request(at(0), vec![]);
    grantor
        .grant(&request, at(1000), at(2000), |_| None)
        .unwrap();
    grantor.forget(at(1100), |_| false);
    assert_eq!(grantor.live(at(1100)).count(), 1);
    grantor.forget(at(1200), |o| *o == owner("a"));
    assert_eq!(
        grantor.silent_from(&owner("a")),
        at(1000).after(timing().surely(ms(150)))
    );
    grantor.forget(at(1200), |_| false);
    assert!(grantor.reassign(G1, 3, Some(&owner("a")), at(1200)));
}

#[test]
fn timings_that_cannot_work_are_refused() {
    assert_eq!(Timing::default().check(), Ok(()));
    let d = Timing::default();
    for bad in [
        Timing { renew: ms(60), ..d },
        Timing {
            renew: Duration::ZERO,
            ..d
        },
        Timing {
            drift_ppm: 900_000,
            ..d
        },
        Timing {
            election_timeout_max: ms(20),
            ..d
        },
        Timing {
            grant: ms(339),
            ..d
        },
        Timing {
            election_timeout_max: ms(104),
            ..d
        },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    let shortest = Timing {
        grant: ms(340),
        ..d
    };
    assert_eq!(shortest.check(), Ok(()));
    // A quorum lease is shorter than what the followers keep by any clock within the bound.
    assert!(d.quorum_until(at(1000)) < at(1090));
    assert_eq!(BootTime::FOREVER.after(ms(1)), BootTime::FOREVER);
}

#[test]
fn a_cluster_of_one_has_its_lease_for_ever() {
    let mut grantor = Grantor::new(Timing::ALONE, 1, owner("a"), None, at(5));
    let mut holder = Holder::new(Timing::ALONE, owner("a"));
    holder.lead(BootTime::FOREVER);
    let request = holder.request(at(10), vec![(G1, 3)]);
    let grant = grantor.grant(&request, at(10), BootTime::FOREVER, |_| Some(3));
    holder.granted(&grant.unwrap());
    let later = BootTime(Duration::from_secs(100 * 365 * 86_400));
    assert!(holder.may_act(G1, 3, later));
    assert!(grantor.is_live(&owner("a"), later));
}
