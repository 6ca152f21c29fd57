//! `kill -9` of the member and start again: the same SPIs, no new
//! authentication, traffic goes on, and no IV twice (which every drill checks).

use anyhow::Context as _;
use evergate_cluster_tests::capture::{now, packets};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::packet::{Body, Packet};
use evergate_cluster_tests::raw::Random;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind, Loss, lose};
use evergate_cluster_tests::{Result, millis, patience, secs, until};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Peer,
    Member,
}

fn initiate(duo: &Duo, by: By) -> Result<()> {
    match by {
        By::Peer => duo.peer.initiate(C1, C1),
        By::Member => duo.member.initiate(C1, C1),
    }
}

/// Milliseconds between datagrams.
const INTERVAL: u64 = 4;

/// Five kills in a row under traffic.
fn five_kills(by: By, esp: Esp) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    let mut duo = Duo::start(&setup)?;
    initiate(&duo, by)?;
    let spis = duo.agree(1)?;
    let established = now();
    let flows = [duo.traffic(V4, INTERVAL)?, duo.traffic(V6, INTERVAL)?];
    let mut down = Duration::ZERO;
    for pause in [0, 50, 300, 700, 1100] {
        for flow in &flows {
            flow.runs(50, secs(20))?;
        }
        let killed = flows[0].elapsed();
        duo.member.kill9()?;
        std::thread::sleep(millis(pause));
        duo.member.start_again(&[])?;
        assert_eq!(duo.agree(1)?, spis, "other SAs after a restart");
        for flow in &flows {
            flow.runs(1, secs(20))?;
        }
        down += flows[0].elapsed() - killed;
    }
    for flow in &flows {
        flow.runs(200, secs(20))?;
    }
    // What was sent meanwhile, and of each kill what was on its way.
    let missing = down.as_millis() / u128::from(INTERVAL * u64::from(patience())) + 5 * 50;
    let end = flows[0].elapsed();
    for flow in flows {
        let report = flow.stop();
        report.has_no_duplicate()?;
        // Nothing but the time of the restarts is missing at the end.
        for way in [report.forth, report.back] {
            let late = way
                .lost_at
                .iter()
                .filter(|&&at| at + millis(500) > end)
                .count();
            let elsewhere = way.dropped_at_ends;
            assert!(
                late as u64 <= elsewhere,
                "still losing: {:?}, and {elsewhere} dropped at the ends",
                way.lost_at.last()
            );
            assert!(
                u128::from(way.lost) <= missing + u128::from(elsewhere),
                "{} of {} lost, and {elsewhere} dropped at the ends; the member was down for {down:?}",
                way.lost,
                way.sent
            );
        }
    }
    // The successor can do all that its predecessor could.
    duo.peer.rekey_child(C1)?;
    until(secs(60), "the peer's rekey", || {
        Ok(duo.spis()?.child.is_disjoint(&spis.child))
    })?;
    duo.agree(1)?;
    duo.member.rekey_ike(C1)?;
    assert!(duo.agree(1)?.ike.is_disjoint(&spis.ike));
    let found = duo.finish()?;
    assert_eq!(
        found.authentications_after(established),
        0,
        "authenticated again"
    );
    Ok(())
}

#[test]
fn five_kills_under_traffic_as_responder_in_udp() -> Result<()> {
    five_kills(By::Peer, Esp::InUdp)
}

#[test]
fn five_kills_under_traffic_as_initiator_plain() -> Result<()> {
    five_kills(By::Member, Esp::Plain)
}

#[test]
fn a_clean_stop_leaves_the_tunnels_to_the_next_start() -> Result<()> {
    let mut duo = Duo::start(&Setup::new(V6))?;
    initiate(&duo, By::Peer)?;
    let (spis, established) = (duo.agree(1)?, now());
    let flow = duo.traffic(V4, 4)?;
    flow.runs(20, secs(20))?;
    duo.member.stop()?;
    duo.member.start_again(&[])?;
    assert_eq!(duo.agree(1)?, spis);
    flow.runs(100, secs(10))?;
    flow.stop().has_no_duplicate()?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

/// What goes on when the member kills itself.
#[derive(Clone, Copy, PartialEq, Debug)]
enum During {
    Establish,
    RekeyChild,
    RekeyIke,
    DeleteChild,
    DeleteIke,
}

fn drive(duo: &Duo, by: By, during: During) -> Result<()> {
    let side: &(dyn Endpoint + Sync) = match by {
        By::Peer => &duo.peer,
        By::Member => &duo.member,
    };
    match during {
        During::Establish => side.initiate(C1, C1),
        During::RekeyChild => side.rekey_child(C1),
        During::RekeyIke => side.rekey_ike(C1),
        During::DeleteChild => side.terminate_child(C1),
        During::DeleteIke => side.terminate(C1),
    }
}

/// The member kills itself at `point` of an exchange, and is started again.
fn at_failpoint(by: By, during: During, point: &str) -> Result<()> {
    let mut duo = Duo::start_with(&Setup::new(V4), &[("EVERGATE_FAILPOINT", point)])?;
    let mut flow = None;
    if during == During::Establish {
        // The peer repeats its first IKE_AUTH: what meets the failure point came before.
        let lost = Loss {
            from: &V4.outer(1),
            exchange: Exchange::Auth,
            kind: Kind::Request,
            count: 1,
        };
        lose(&duo.lab, &[lost])?;
    } else {
        initiate(&duo, By::Peer)?;
        duo.agree(1)?;
        let running = duo.traffic(V4, 5)?;
        running.runs(20, secs(20))?;
        flow = Some(running);
    }
    let before = now();
    {
        let Duo { peer, member, .. } = &mut duo;
        // Driving blocks until the exchange is through, which needs the successor.
        std::thread::scope(|scope| -> Result<()> {
            let peer = &*peer;
            let driver = match by {
                By::Peer => Some(scope.spawn(move || match during {
                    During::Establish => peer.initiate(C1, C1),
                    During::RekeyChild => peer.rekey_child(C1),
                    During::RekeyIke => peer.rekey_ike(C1),
                    During::DeleteChild => peer.terminate_child(C1),
                    During::DeleteIke => peer.terminate(C1),
                })),
                By::Member => {
                    let _dies_with_the_member = match during {
                        During::Establish => member.initiate(C1, C1),
                        During::RekeyChild => member.rekey_child(C1),
                        During::RekeyIke => member.rekey_ike(C1),
                        During::DeleteChild => member.terminate_child(C1),
                        During::DeleteIke => member.terminate(C1),
                    };
                    None
                }
            };
            member.wait_for_failpoint()?;
            member.start_again(&[])?;
            if let Some(driver) = driver {
                driver.join().map_err(|_| anyhow::anyhow!("driver"))??;
            }
            Ok(())
        })?;
    }
    settle(&duo, by, during)?;
    if let Some(flow) = flow {
        if !matches!(during, During::DeleteChild | During::DeleteIke) {
            flow.runs(100, secs(10))?;
        }
        flow.stop().has_no_duplicate()?;
    }
    let found = duo.finish()?;
    if during != During::Establish {
        assert_eq!(
            found.authentications_after(before),
            0,
            "authenticated again"
        );
    }
    Ok(())
}

/// Where a datagram may have been lost: what was on the wire, and what the member counted.
fn seen(duo: &Duo) -> String {
    let captured = duo
        .capture
        .so_far()
        .map(|c| packets(&c))
        .unwrap_or_default();
    let esp = |p: &&Packet| matches!(p.body, Body::Esp { .. });
    let (peer, gateway) = (V4.outer(1), V4.outer(2));
    let from = |who: &str| {
        captured
            .iter()
            .filter(esp)
            .filter(|p| p.src.to_string() == who)
            .count()
    };
    let status = duo.member.ctl(&["status", "--json"]);
    format!(
        "on the wire: {} of the peer, {} of the member; {status:?}",
        from(&peer),
        from(&gateway)
    )
}

/// Both sides end up with the same SAs, and can go on.
fn settle(duo: &Duo, by: By, during: During) -> Result<()> {
    match during {
        During::DeleteChild | During::DeleteIke => {
            // What was not committed was not begun: it is asked for again.
            if by == By::Member && !Spis::of(&duo.member.sas()?).child.is_empty() {
                drive(duo, by, during).ok();
            }
            until(secs(30), "both sides have deleted it", || {
                let (member, peer) = (duo.member.sas()?, duo.peer.sas()?);
                let (member, peer) = (Spis::of(&member), Spis::of(&peer));
                let ike = usize::from(during == During::DeleteChild);
                if member == peer.mirrored() && member.child.is_empty() && member.ike.len() == ike {
                    return Ok(true);
                }
                anyhow::bail!("member: {member:x?}, peer: {peer:x?}")
            })
        }
        During::Establish => {
            if by == By::Member {
                // What was begun goes on by itself.
                let _ = until(secs(15), "it is up, or there is nothing", || {
                    let sas = duo.member.sas()?;
                    Ok(sas.is_empty() || !Spis::of(&sas).child.is_empty())
                });
                if duo.spis()?.child.is_empty() {
                    drive(duo, by, during)?;
                }
            }
            let spis = duo.agree(1)?;
            assert_eq!(spis.ike.len(), 1, "{spis:x?}");
            let flow = duo.traffic(V4, 5)?;
            flow.runs(50, secs(10))?;
            flow.stop().is_lossless().with_context(|| seen(duo))
        }
        During::RekeyChild | During::RekeyIke => {
            // Exchanges that were cut off come to their end first.
            std::thread::sleep(secs(2));
            let spis = duo.agree(1)?;
            assert_eq!(spis.ike.len(), 1, "{spis:x?}");
            duo.peer.rekey_child(C1)?;
            until(secs(60), "a rekey afterwards", || {
                Ok(duo.spis()?.child.is_disjoint(&spis.child))
            })?;
            duo.agree(1).map(drop)
        }
    }
}

macro_rules! failpoints {
    ($($name:ident: $by:expr, $during:ident, $point:literal;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            at_failpoint($by, During::$during, $point)
        }
    )*};
}

// A failure point has the name of the exchange in which it is about to send:
// what follows the answer to an own rekey is the delete of the old SA.
failpoints! {
    killed_at_the_peers_init_before_commit: By::Peer, Establish, "before-commit:IKE_SA_INIT:1";
    killed_at_the_peers_init_after_commit: By::Peer, Establish, "after-commit:IKE_SA_INIT:1";
    killed_at_the_peers_auth_before_commit: By::Peer, Establish, "before-commit:IKE_AUTH:1";
    killed_at_the_peers_auth_after_commit: By::Peer, Establish, "after-commit:IKE_AUTH:1";
    killed_at_own_init_before_commit: By::Member, Establish, "before-commit:IKE_SA_INIT:1";
    killed_at_own_init_after_commit: By::Member, Establish, "after-commit:IKE_SA_INIT:1";
    killed_at_own_auth_before_commit: By::Member, Establish, "before-commit:IKE_AUTH:1";
    killed_at_own_auth_after_commit: By::Member, Establish, "after-commit:IKE_AUTH:1";
    killed_at_the_peers_child_rekey_before_commit: By::Peer, RekeyChild, "before-commit:CREATE_CHILD_SA:1";
    killed_at_the_peers_child_rekey_after_commit: By::Peer, RekeyChild, "after-commit:CREATE_CHILD_SA:1";
    killed_at_the_delete_after_the_peers_child_rekey: By::Peer, RekeyChild, "before-commit:INFORMATIONAL:1";
    killed_at_the_peers_ike_rekey_before_commit: By::Peer, RekeyIke, "before-commit:CREATE_CHILD_SA:1";
    killed_at_the_peers_ike_rekey_after_commit: By::Peer, RekeyIke, "after-commit:CREATE_CHILD_SA:1";
    killed_at_the_delete_after_the_peers_ike_rekey: By::Peer, RekeyIke, "after-commit:INFORMATIONAL:1";
    killed_at_own_child_rekey_before_commit: By::Member, RekeyChild, "before-commit:CREATE_CHILD_SA:1";
    killed_at_own_child_rekey_after_commit: By::Member, RekeyChild, "after-commit:CREATE_CHILD_SA:1";
    killed_at_the_answer_to_own_child_rekey: By::Member, RekeyChild, "before-commit:INFORMATIONAL:1";
    killed_after_the_answer_to_own_child_rekey: By::Member, RekeyChild, "after-commit:INFORMATIONAL:1";
    killed_at_own_ike_rekey_before_commit: By::Member, RekeyIke, "before-commit:CREATE_CHILD_SA:1";
    killed_at_own_ike_rekey_after_commit: By::Member, RekeyIke, "after-commit:CREATE_CHILD_SA:1";
    killed_at_the_answer_to_own_ike_rekey: By::Member, RekeyIke, "before-commit:INFORMATIONAL:1";
    killed_after_the_answer_to_own_ike_rekey: By::Member, RekeyIke, "after-commit:INFORMATIONAL:1";
    killed_at_the_peers_child_delete_before_commit: By::Peer, DeleteChild, "before-commit:INFORMATIONAL:1";
    killed_at_the_peers_child_delete_after_commit: By::Peer, DeleteChild, "after-commit:INFORMATIONAL:1";
    killed_at_the_peers_ike_delete_before_commit: By::Peer, DeleteIke, "before-commit:INFORMATIONAL:1";
    killed_at_the_peers_ike_delete_after_commit: By::Peer, DeleteIke, "after-commit:INFORMATIONAL:1";
    killed_at_own_ike_delete_before_commit: By::Member, DeleteIke, "before-commit:INFORMATIONAL:1";
    killed_at_own_ike_delete_after_commit: By::Member, DeleteIke, "after-commit:INFORMATIONAL:1";
}

#[test]
fn a_half_open_sa_that_is_lost_costs_the_peer_another_attempt() -> Result<()> {
    // IKE_AUTH comes at once, before the half-open SA is committed.
    let point = [("EVERGATE_FAILPOINT", "request-arrived:IKE_AUTH:1")];
    let mut duo = Duo::start_with(&Setup::new(V4), &point)?;
    let first = duo.peer.initiate_within(C1, 3);
    duo.member.wait_for_failpoint()?;
    duo.member.start_again(&[])?;
    if first.is_err() {
        duo.peer.terminate(C1).ok();
        duo.peer.initiate(C1, C1)?;
    }
    assert_eq!(duo.agree(1)?.ike.len(), 1);
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    duo.finish()?;
    Ok(())
}

#[test]
fn killed_at_any_moment_of_rekeys() -> Result<()> {
    let mut duo = Duo::start(&Setup::new(V4))?;
    initiate(&duo, By::Peer)?;
    duo.agree(1)?;
    let (established, flow) = (now(), duo.traffic(V4, 5)?);
    let mut random = Random(6);
    for round in 0..12 {
        flow.runs(20, secs(10))?;
        let rekey: &(dyn Fn(&Duo) -> Result<()> + Sync) = match round % 4 {
            0 => &|duo| duo.peer.rekey_child(C1),
            1 => &|duo| duo.member.rekey_child(C1),
            2 => &|duo| duo.peer.rekey_ike(C1),
            _ => &|duo| duo.member.rekey_ike(C1),
        };
        let process = duo.member.process()?.pid();
        std::thread::scope(|scope| -> Result<()> {
            let duo = &duo;
            let driver = scope.spawn(move || rekey(duo));
            // swanctl and ctl need some ten milliseconds to start.
            std::thread::sleep(millis(10 + random.next_u64() % 60));
            let pid = nix::unistd::Pid::from_raw(i32::try_from(process)?);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            let _cut_off = driver.join();
            Ok(())
        })?;
        duo.member.start_again(&[])?;
        let spis = duo.agree(1)?;
        assert_eq!(spis.ike.len(), 1, "round {round}: {spis:x?}");
    }
    flow.runs(100, secs(10))?;
    flow.stop().has_no_duplicate()?;
    let found = duo.finish()?;
    assert_eq!(
        found.authentications_after(established),
        0,
        "authenticated again"
    );
    Ok(())
}
