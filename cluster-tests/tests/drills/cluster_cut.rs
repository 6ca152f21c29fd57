//! A member is stopped, or cut off from the others but not from the peer, and
//! comes back: another one goes on with its tunnel, and nothing of the former one
//! comes between. Also when it is cut off in one direction only.

use crate::cluster_takeover::start_with_packet_sockets;
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, OneWay, Pace, Trio};
use evergate_cluster_tests::flow::Report;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, patience, secs, until};
use nix::sys::signal::Signal;
use std::thread::sleep;
use std::time::{Duration, Instant};

const PACE: Pace = Pace::Usual;

const G: &str = "g1";

/// Which member has the gateway.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Role {
    Any,
    Leads,
    Follows,
}

fn gap(report: &Report) -> Duration {
    report.forth.longest_outage.max(report.back.longest_outage)
}

fn start() -> Result<Trio> {
    Trio::start(PACE, Esp::InUdp, &[Gateway::usual()], |_| {})
}

/// Moves the gateway to a member with this role, and returns its number.
fn place(trio: &mut Trio, role: Role) -> Result<usize> {
    until(secs(20), &format!("the gateway's member {role:?}"), || {
        let (leader, active) = (trio.leader()?, trio.active(G)?);
        let to = match role {
            Role::Leads if active != leader => leader,
            Role::Follows if active == leader => (leader + 1) % MEMBERS,
            _ => return Ok(true),
        };
        trio.members[leader].ctl(&["move", G, &format!("m{}", to + 1)])?;
        Ok(false)
    })?;
    trio.active(G)
}

/// Something is done to the active member under traffic, so that another takes over, and undone later. Nothing of the former one may come
/// between, and that it is back costs nothing.
fn set_aside(
    mut trio: Trio,
    role: Role,
    aside: impl Fn(&mut Trio, usize) -> Result<()>,
    back: impl Fn(&mut Trio, usize) -> Result<()>,
) -> Result<()> {
    let (spis, established) = (trio.up(G)?, now());
    let active = place(&mut trio, role)?;
    let flow = trio.traffic(V4, 2)?;
    flow.runs(100, secs(10))?;
    aside(&mut trio, active)?;
    // Until its lease is over it may go on.
    until(secs(10), "another member has the gateway", || {
        for n in (0..MEMBERS).filter(|n| *n != active) {
            if trio.serves(n, G)? {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    flow.runs(300, secs(10))?;
    let first = flow.stop();
    first.has_no_duplicate()?;
    eprintln!("m{} aside ({role:?}): gap {:?}", active + 1, gap(&first));
    let taken = now();
    let flow = trio.traffic(V4, 2)?;
    flow.runs(300, secs(10))?;
    back(&mut trio, active)?;
    sleep(secs(2) * patience());
    let second = flow.stop();
    trio.lost_nothing(&second)?;
    let flow = trio.traffic(V4, 2)?;
    flow.runs(300, secs(10))?;
    trio.lost_nothing(&flow.stop())?;
    assert_ne!(trio.active(G)?, active);
    assert_eq!(trio.agree(G, 1)?, spis, "other SAs after a takeover");
    let stale = trio.speakers(taken)?;
    assert_eq!(
        stale.len(),
        1,
        "two speak from the gateway's addresses: {stale:?}"
    );
    let found = trio.finish()?;
    assert_eq!(found.authentications_after(established), 0);
    assert!(gap(&first) < PACE.longest_gap(), "{:?}", gap(&first));
    Ok(())
}

/// Stops the active member as a whole, and lets it go on when another has its gateway.
fn stop_and_go_on(trio: Trio) -> Result<()> {
    let signal = |signal: Signal| move |trio: &mut Trio, n: usize| trio.signal(n, signal);
    set_aside(
        trio,
        Role::Any,
        signal(Signal::SIGSTOP),
        signal(Signal::SIGCONT),
    )
}

#[test]
fn a_member_that_was_stopped_and_goes_on_says_nothing_any_more() -> Result<()> {
    stop_and_go_on(start()?)
}

/// What packet sockets send, no output chain of IP sees.
#[test]
fn a_member_with_packet_sockets_that_was_stopped_says_nothing_either() -> Result<()> {
    stop_and_go_on(start_with_packet_sockets()?)
}

#[test]
fn a_member_that_is_cut_off_from_the_others_falls_silent() -> Result<()> {
    set_aside(
        start()?,
        Role::Any,
        |trio, n| trio.cut(n, true),
        |trio, n| trio.cut(n, false),
    )
}

fn one_way(role: Role, way: OneWay) -> Result<()> {
    set_aside(
        start()?,
        role,
        |trio, n| trio.cut_one_way(n, Some(way)),
        |trio, n| trio.cut_one_way(n, None),
    )
}

#[test]
fn a_member_that_is_not_heard_loses_its_gateway() -> Result<()> {
    one_way(Role::Follows, OneWay::Unheard)
}

#[test]
fn a_member_that_hears_nothing_loses_its_gateway() -> Result<()> {
    one_way(Role::Follows, OneWay::Deaf)
}

#[test]
fn a_leader_that_is_not_heard_loses_its_gateway() -> Result<()> {
    one_way(Role::Leads, OneWay::Unheard)
}

#[test]
fn a_leader_that_hears_nothing_loses_its_gateway() -> Result<()> {
    one_way(Role::Leads, OneWay::Deaf)
}

/// The leader is cut off in one direction while another member has the gateway: there is another leader then, and traffic goes on.
fn another_leads(way: OneWay) -> Result<Report> {
    let mut trio = start()?;
    let (spis, established) = (trio.up(G)?, now());
    let active = place(&mut trio, Role::Follows)?;
    let former = trio.leader()?;
    let flow = trio.traffic(V4, 2)?;
    flow.runs(100, secs(10))?;
    trio.cut_one_way(former, Some(way))?;
    let cut = Instant::now();
    until(secs(10), "another member leads", || {
        for n in (0..MEMBERS).filter(|n| *n != former) {
            if trio.members[n].status()?["leads"] == true {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    eprintln!(
        "m{} {way:?}: another leads after {:?}",
        former + 1,
        cut.elapsed()
    );
    flow.runs(300, secs(10))?;
    trio.cut_one_way(former, None)?;
    sleep(secs(2) * patience());
    let report = flow.stop();
    report.has_no_duplicate()?;
    eprintln!("gap {:?}", gap(&report));
    assert_eq!(trio.active(G)?, active, "the gateway moved");
    assert_eq!(trio.agree(G, 1)?, spis);
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(report)
}

#[test]
fn a_leader_that_is_not_heard_is_replaced_and_nobody_notices() -> Result<()> {
    another_leads(OneWay::Unheard)?.is_lossless()
}

#[test]
fn a_leader_that_hears_nothing_is_replaced() -> Result<()> {
    // It has to notice first, so leases may end for a moment.
    let gap = gap(&another_leads(OneWay::Deaf)?);
    assert!(gap < PACE.longest_gap() / 2, "{gap:?}");
    Ok(())
}

/// The last one of three is stopped in good order: there is nobody to agree with.
#[test]
fn a_member_without_a_majority_ends_soon() -> Result<()> {
    let mut trio = start()?;
    trio.up(G)?;
    let flow = trio.traffic(V4, 2)?;
    flow.runs(100, secs(10))?;
    let last = trio.active(G)?;
    for n in (0..MEMBERS).filter(|n| *n != last) {
        trio.members[n].kill9()?;
    }
    // At once, and with traffic whose counters it would like to commit.
    let begun = Instant::now();
    trio.members[last].stop()?;
    let took = begun.elapsed();
    eprintln!("m{} without a majority ended after {took:?}", last + 1);
    drop(flow);
    // Until its lease is over it waits for the others.
    assert!(took < secs(2).max(PACE.longest_gap()), "{took:?}");
    let log = trio.members[last].log()?;
    assert!(log.contains("event=\"handover-failed\""), "{log}");
    assert!(log.contains("not committed before the end"), "{log}");
    for member in &mut trio.members {
        member.spawn(&[])?;
    }
    trio.all_serve()?;
    trio.agree(G, 1)?;
    trio.finish()?;
    Ok(())
}
