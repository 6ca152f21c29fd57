//! The active member dies in the middle of an exchange, and another one brings
//! it to its end: both sides agree, traffic flows, and nobody authenticates
//! again. No IV twice, which every drill checks.

use crate::liveness::{ASKERS, moments};
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::connection::{Auth, Connection};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::pki::{Key, Pki};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind, Loss, lose};
use evergate_cluster_tests::{Result, millis, secs, until};
use nix::sys::signal::Signal;

const G: &str = "g1";

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum By {
    Peer,
    Member,
}

/// What goes on when the member kills itself.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum During {
    Establish,
    CreateChild,
    RekeyChild,
    RekeyIke,
    DeleteChild,
    DeleteIke,
}

/// The child for IPv6 where the two families have one each.
const SECOND: &str = "c1-v6";

fn drive(side: &dyn Endpoint, during: During) -> Result<()> {
    match during {
        During::Establish => side.initiate(C1, C1),
        During::CreateChild => side.initiate(C1, SECOND),
        During::RekeyChild => side.rekey_child(C1),
        During::RekeyIke => side.rekey_ike(C1),
        During::DeleteChild => side.terminate_child(C1),
        During::DeleteIke => side.terminate(C1),
    }
}

/// Which strongSwan: only the newer one has ML-KEM.
fn peer_of(change: impl Fn(&mut Connection)) -> Esp {
    let mut connection = Connection::peer(1, V4);
    change(&mut connection);
    match connection.proposals.iter().any(|p| p.contains("mlkem")) {
        true => Esp::Plain,
        false => Esp::InUdp,
    }
}

/// Three members, of which the active one, whose number is returned, is going to die at `point`. It has to know
/// that from its start, and nothing is established before that.
pub(crate) fn armed(point: &str, change: impl Fn(&mut Connection)) -> Result<(Trio, usize)> {
    let mut trio = Trio::start(Pace::Patient, peer_of(&change), &[Gateway::usual()], change)?;
    let doomed = (trio.active(G)? + 1) % trio.members.len();
    trio.members[doomed].stop()?;
    trio.members[doomed].start_again(&[("EVERGATE_FAILPOINT", point)])?;
    let name = format!("m{}", doomed + 1);
    until(secs(60), "the gateway moves", || {
        if trio.active(G)? == doomed {
            return Ok(true);
        }
        trio.members[doomed].ctl(&["move", G, &name])?;
        Ok(false)
    })?;
    Ok((trio, doomed))
}

/// The active member kills itself at `point` of an exchange.
fn at_failpoint(by: By, during: During, point: &str) -> Result<()> {
    at_failpoint_with(by, during, point, |_| {})
}

/// The same with a connection that is not the usual one.
pub(crate) fn at_failpoint_with(
    by: By,
    during: During,
    point: &str,
    change: impl Fn(&mut Connection),
) -> Result<()> {
    let (mut trio, doomed) = armed(point, change)?;
    let (flow, before) = until_dead(&mut trio, doomed, by, during)?;
    afterwards(trio, doomed, by, during, flow, before)
}

/// Runs the exchange in which the active member dies. Returns traffic that goes on, and when the exchange began.
fn until_dead(
    trio: &mut Trio,
    doomed: usize,
    by: By,
    during: During,
) -> Result<(Option<Flow>, u64)> {
    let mut flow = None;
    if during == During::Establish {
        // The peer repeats its first IKE_AUTH: what meets the failure point came before.
        let lost = Loss {
            from: &V4.outer(1),
            exchange: Exchange::Auth,
            kind: Kind::Request,
            count: 1,
        };
        lose(&trio.lab, &[lost])?;
    } else {
        trio.up(G)?;
        let running = trio.traffic(V4, 5)?;
        running.runs(20, secs(20))?;
        flow = Some(running);
    }
    let before = now();
    let Trio { peer, members, .. } = trio;
    let member = &mut members[doomed];
    std::thread::scope(|scope| -> Result<()> {
        let peer = &*peer;
        let driver = match by {
            // Driving blocks until the exchange is through, which needs the successor.
            By::Peer => Some(scope.spawn(move || drive(peer, during))),
            By::Member => {
                let _dies_with_the_member = drive(member, during);
                None
            }
        };
        member.wait_for_failpoint()?;
        match driver {
            Some(driver) => driver.join().map_err(|_| anyhow::anyhow!("driver"))?,
            None => Ok(()),
        }
    })?;
    Ok((flow, before))
}

/// What holds after the death of the active member.
fn afterwards(
    mut trio: Trio,
    doomed: usize,
    by: By,
    during: During,
    flow: Option<Flow>,
    before: u64,
) -> Result<()> {
    let active = trio.active(G)?;
    assert_ne!(active, doomed, "the dead member serves");
    settle(&mut trio, active, by, during)?;
    if let Some(flow) = flow {
        if !matches!(during, During::DeleteChild | During::DeleteIke) {
            flow.runs(100, secs(20))?;
        }
        flow.stop().has_no_duplicate()?;
    }
    let found = trio.finish()?;
    if during != During::Establish {
        assert_eq!(
            found.authentications_after(before),
            0,
            "authenticated again"
        );
    }
    Ok(())
}

/// The successor of a member that began an exchange brings it to its end, so that there are so many Child SAs. What was not committed was not begun: it is
/// asked for again.
fn comes_up(member: &Member, during: During, children: usize) -> Result<()> {
    std::thread::sleep(secs(3));
    let comes = until(secs(15), "what was begun comes to its end", || {
        Ok(Spis::of(&member.sas()?).child.len() >= children)
    });
    comes.or_else(|_| drive(member, during))
}

/// Both sides end up with the same SAs, and can go on.
fn settle(trio: &mut Trio, active: usize, by: By, during: During) -> Result<()> {
    match during {
        During::DeleteChild | During::DeleteIke => {
            // What was not committed was not begun: it is asked for again.
            let member = &trio.members[active];
            if by == By::Member && !Spis::of(&member.sas()?).child.is_empty() {
                drive(member, during).ok();
            }
            until(secs(30), "both sides have deleted it", || {
                let (member, peer) = (Spis::of(&member.sas()?), Spis::of(&trio.peer.sas()?));
                let ike = usize::from(during == During::DeleteChild);
                if member == peer.mirrored() && member.child.is_empty() && member.ike.len() == ike {
                    return Ok(true);
                }
                anyhow::bail!("member: {member:x?}, peer: {peer:x?}")
            })
        }
        During::Establish => {
            if by == By::Member {
                comes_up(&trio.members[active], during, 1)?;
            }
            let spis = trio.agree(G, 1)?;
            assert_eq!(spis.ike.len(), 1, "{spis:x?}");
            let flow = trio.traffic(V4, 5)?;
            flow.runs(50, secs(10))?;
            flow.stop().is_lossless()
        }
        During::CreateChild => {
            if by == By::Member {
                comes_up(&trio.members[active], during, 2)?;
            }
            trio.agree(G, 2)?;
            let flow = trio.traffic(V6, 5)?;
            flow.runs(50, secs(10))?;
            flow.stop().is_lossless()
        }
        During::RekeyChild | During::RekeyIke => {
            // Exchanges that were cut off come to their end first.
            std::thread::sleep(secs(2));
            let spis = trio.agree(G, 1)?;
            assert_eq!(spis.ike.len(), 1, "{spis:x?}");
            trio.peer.rekey_child(C1)?;
            // One that meets what is still under way is refused, and strongSwan begins it again later.
            until(secs(60), "a rekey afterwards", || {
                let member = Spis::of(&trio.members[active].sas()?);
                Ok(member.child.is_disjoint(&spis.child))
            })?;
            trio.agree(G, 1).map(drop)
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
    the_peers_init_after_commit: By::Peer, Establish, "after-commit:IKE_SA_INIT:1";
    the_peers_auth_before_commit: By::Peer, Establish, "before-commit:IKE_AUTH:1";
    the_peers_auth_after_commit: By::Peer, Establish, "after-commit:IKE_AUTH:1";
    own_init_after_commit: By::Member, Establish, "after-commit:IKE_SA_INIT:1";
    own_auth_before_commit: By::Member, Establish, "before-commit:IKE_AUTH:1";
    own_auth_after_commit: By::Member, Establish, "after-commit:IKE_AUTH:1";
    the_peers_child_rekey_on_arrival: By::Peer, RekeyChild, "request-arrived:CREATE_CHILD_SA:1";
    the_peers_child_rekey_before_commit: By::Peer, RekeyChild, "before-commit:CREATE_CHILD_SA:1";
    the_peers_child_rekey_after_commit: By::Peer, RekeyChild, "after-commit:CREATE_CHILD_SA:1";
    the_delete_after_the_peers_child_rekey: By::Peer, RekeyChild, "before-commit:INFORMATIONAL:1";
    the_peers_ike_rekey_on_arrival: By::Peer, RekeyIke, "request-arrived:CREATE_CHILD_SA:1";
    the_peers_ike_rekey_before_commit: By::Peer, RekeyIke, "before-commit:CREATE_CHILD_SA:1";
    the_peers_ike_rekey_after_commit: By::Peer, RekeyIke, "after-commit:CREATE_CHILD_SA:1";
    the_delete_after_the_peers_ike_rekey: By::Peer, RekeyIke, "after-commit:INFORMATIONAL:1";
    own_child_rekey_before_commit: By::Member, RekeyChild, "before-commit:CREATE_CHILD_SA:1";
    own_child_rekey_after_commit: By::Member, RekeyChild, "after-commit:CREATE_CHILD_SA:1";
    the_answer_to_own_child_rekey: By::Member, RekeyChild, "before-commit:INFORMATIONAL:1";
    after_the_answer_to_own_child_rekey: By::Member, RekeyChild, "after-commit:INFORMATIONAL:1";
    own_ike_rekey_before_commit: By::Member, RekeyIke, "before-commit:CREATE_CHILD_SA:1";
    own_ike_rekey_after_commit: By::Member, RekeyIke, "after-commit:CREATE_CHILD_SA:1";
    the_answer_to_own_ike_rekey: By::Member, RekeyIke, "before-commit:INFORMATIONAL:1";
    after_the_answer_to_own_ike_rekey: By::Member, RekeyIke, "after-commit:INFORMATIONAL:1";
    the_peers_child_delete_before_commit: By::Peer, DeleteChild, "before-commit:INFORMATIONAL:1";
    the_peers_child_delete_after_commit: By::Peer, DeleteChild, "after-commit:INFORMATIONAL:1";
    the_peers_ike_delete_before_commit: By::Peer, DeleteIke, "before-commit:INFORMATIONAL:1";
    the_peers_ike_delete_after_commit: By::Peer, DeleteIke, "after-commit:INFORMATIONAL:1";
    own_ike_delete_before_commit: By::Member, DeleteIke, "before-commit:INFORMATIONAL:1";
    own_ike_delete_after_commit: By::Member, DeleteIke, "after-commit:INFORMATIONAL:1";
}

/// Both sides have certificates.
fn certified(by: By, point: &str) -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let (peer, member) = (
        pki.issue("peer1.test", Key::P256)?,
        pki.issue("gw.test", Key::P256)?,
    );
    at_failpoint_with(by, During::Establish, point, |c| {
        c.local_auth = Auth::pubkey(peer.clone());
        c.remote_auth = Auth::pubkey(member.clone());
    })
}

#[test]
fn the_peers_auth_with_certificates_before_commit() -> Result<()> {
    certified(By::Peer, "before-commit:IKE_AUTH:1")
}

#[test]
fn the_peers_auth_with_certificates_after_commit() -> Result<()> {
    certified(By::Peer, "after-commit:IKE_AUTH:1")
}

#[test]
fn own_auth_with_certificates_before_commit() -> Result<()> {
    certified(By::Member, "before-commit:IKE_AUTH:1")
}

#[test]
fn own_auth_with_certificates_after_commit() -> Result<()> {
    certified(By::Member, "after-commit:IKE_AUTH:1")
}

#[test]
fn a_half_open_sa_that_died_with_its_member_costs_the_peer_another_attempt() -> Result<()> {
    // IKE_AUTH comes at once, before the half-open SA is committed.
    let (mut trio, doomed) = armed("request-arrived:IKE_AUTH:1", |_| {})?;
    let first = trio.peer.initiate_within(C1, 3);
    trio.members[doomed].wait_for_failpoint()?;
    trio.active(G)?;
    if first.is_err() {
        trio.peer.terminate(C1).ok();
        trio.peer.initiate(C1, C1)?;
    }
    assert_eq!(trio.agree(G, 1)?.ike.len(), 1);
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(10))?;
    flow.stop().is_lossless()?;
    trio.finish()?;
    Ok(())
}

#[test]
fn a_liveness_check_before_the_kill_with_strongswan_5_9() -> Result<()> {
    ASKERS
        .into_iter()
        .try_for_each(|asker| with_strongswan(Esp::InUdp, asker))
}

#[test]
fn a_liveness_check_before_the_kill_with_strongswan_6_1() -> Result<()> {
    ASKERS
        .into_iter()
        .try_for_each(|asker| with_strongswan(Esp::Plain, asker))
}

/// One side checks once a second.
fn asks(c: &mut Connection, asker: u8) {
    let (own, other) = if asker == 1 { (1, 0) } else { (0, 1) };
    c.dpd = own;
    c.remote_dpd = Some(other);
}

/// Kills the active member after a liveness check of the asker, and after the answer to one.
fn at_each_moment(
    trio: &mut Trio,
    asker: u8,
    agree: impl Fn(&mut Trio) -> Result<Spis>,
) -> Result<()> {
    let (spis, established) = (agree(trio)?, now());
    for (from, kind) in moments(asker) {
        let active = trio.active(G)?;
        trio.capture
            .wait_for(&from, Exchange::Informational, kind)?;
        trio.members[active].kill9()?;
        assert_eq!(agree(trio)?, spis, "{from}, {kind:?}");
        // Checks are answered again.
        for (from, kind) in moments(asker) {
            trio.capture
                .wait_for(&from, Exchange::Informational, kind)?;
        }
        trio.start_again(active)?;
    }
    let flow = trio.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    let frames = trio.capture.so_far()?;
    let anew = evergate_cluster_tests::capture::packets(&frames)
        .into_iter()
        .filter(|packet| packet.at > established)
        .filter_map(|packet| match packet.body {
            evergate_cluster_tests::packet::Body::Ike(message) => {
                evergate_cluster_tests::packet::IkeHeader::parse(&message).map(|h| h.exchange)
            }
            _ => None,
        })
        .filter(|exchange| [34, 35].contains(exchange))
        .count();
    assert_eq!(anew, 0, "authenticated again");
    Ok(())
}

fn with_strongswan(esp: Esp, asker: u8) -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, esp, &[Gateway::usual()], |c| asks(c, asker))?;
    let spis = trio.up(G)?;
    at_each_moment(&mut trio, asker, |trio| trio.agree(G, 1))?;
    // Message IDs agree: both sides can change something.
    trio.peer.rekey_child(C1)?;
    let active = trio.active(G)?;
    until(secs(60), "the peer's rekey", || {
        let member = Spis::of(&trio.members[active].sas()?);
        Ok(member.child.is_disjoint(&spis.child))
    })?;
    trio.members[active].rekey_ike(C1)?;
    assert!(trio.agree(G, 1)?.ike.is_disjoint(&spis.ike));
    trio.finish()?;
    Ok(())
}

#[test]
fn a_liveness_check_before_the_kill_without_message_id_synchronisation() -> Result<()> {
    ASKERS.into_iter().try_for_each(without_synchronisation)
}

fn without_synchronisation(asker: u8) -> Result<()> {
    let change = |c: &mut Connection| {
        asks(c, asker);
        c.message_id_sync = false;
    };
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], change)?;
    // An own member of one in strongSwan's place.
    trio.peer.process().stop(Signal::SIGTERM)?;
    let mut connection = Connection::peer(1, V4);
    change(&mut connection);
    let peer = Member::start(&trio.lab, "peer1", &[connection], &[])?;
    peer.initiate(C1, C1)?;
    let agree = |trio: &mut Trio| -> Result<Spis> {
        let active = trio.active(G)?;
        let mut agreed = Spis::default();
        until(secs(30), "both sides agree on their SAs", || {
            agreed = Spis::of(&trio.members[active].sas()?);
            let other = Spis::of(&peer.sas()?).mirrored();
            if agreed == other && agreed.child.len() == 1 {
                return Ok(true);
            }
            anyhow::bail!("member: {agreed:x?}, peer: {other:x?}")
        })?;
        Ok(agreed)
    };
    let spis = agree(&mut trio)?;
    at_each_moment(&mut trio, asker, agree)?;
    peer.rekey_child(C1)?;
    std::thread::sleep(millis(500));
    let active = trio.active(G)?;
    trio.members[active].rekey_ike(C1)?;
    let last = agree(&mut trio)?;
    assert!(last.child.is_disjoint(&spis.child) && last.ike.is_disjoint(&spis.ike));
    drop(peer);
    trio.finish()?;
    Ok(())
}
