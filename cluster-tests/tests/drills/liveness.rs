//! Liveness checks from both sides just before a kill: what is harmless is not
//! committed before its reply, and the SAs survive all the same.

use evergate_cluster_tests::capture::{Capture, now};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{Family::V4, Lab, PROTECTED};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind};
use evergate_cluster_tests::{Result, millis, secs, until};

/// After which message the member is killed.
const MOMENTS: [(u8, Kind); 4] = [
    (1, Kind::Request),
    (2, Kind::Response),
    (2, Kind::Request),
    (1, Kind::Response),
];

#[test]
fn with_strongswan_5_9() -> Result<()> {
    with_strongswan(Esp::InUdp)
}

#[test]
fn with_strongswan_6_1() -> Result<()> {
    with_strongswan(Esp::Plain)
}

fn with_strongswan(esp: Esp) -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| c.dpd = 1);
    setup.esp = esp;
    let mut duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    for (from, kind) in MOMENTS {
        let from = V4.outer(from);
        duo.capture.wait_for(&from, Exchange::Informational, kind)?;
        duo.member.kill9()?;
        duo.member.start_again(&[])?;
        assert_eq!(duo.agree(1)?, spis);
        // Both sides' checks are answered again.
        for n in [1, 2] {
            duo.capture
                .wait_for(&V4.outer(n), Exchange::Informational, Kind::Response)?;
        }
    }
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(5))?;
    flow.stop().is_lossless()?;
    // Message IDs agree: both sides can change something.
    duo.peer.rekey_child(C1)?;
    until(secs(5), "the peer's rekey", || {
        Ok(duo.spis()?.child.is_disjoint(&spis.child))
    })?;
    duo.member.rekey_ike(C1)?;
    duo.agree(1)?;
    assert_eq!(duo.finish()?.authentications_after(established), 0);
    Ok(())
}

/// Two members, one as the peer, none with RFC 6311.
struct Twins {
    peer: Member,
    member: Member,
    capture: Capture,
    lab: Lab,
}

impl Twins {
    fn start() -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        let capture = Capture::start(&lab)?;
        let mut peer = Connection::peer(1, V4);
        (peer.dpd, peer.message_id_sync) = (1, false);
        let member = Member::start(&lab, "gw", &[peer.mirrored()], &[])?;
        let peer = Member::start(&lab, "peer1", &[peer], &[])?;
        Ok(Self {
            peer,
            member,
            capture,
            lab,
        })
    }

    fn agree(&self) -> Result<Spis> {
        let mut agreed = Spis::default();
        until(secs(15), "both members agree", || {
            agreed = Spis::of(&self.member.sas()?);
            let peer = Spis::of(&self.peer.sas()?).mirrored();
            if agreed == peer && agreed.child.len() == 1 {
                return Ok(true);
            }
            anyhow::bail!("member: {agreed:x?}, peer: {peer:x?}")
        })?;
        Ok(agreed)
    }
}

#[test]
fn with_a_peer_that_has_no_message_id_synchronisation() -> Result<()> {
    let mut twins = Twins::start()?;
    twins.peer.initiate(C1, C1)?;
    let (spis, established) = (twins.agree()?, now());
    for (from, kind) in MOMENTS {
        let from = V4.outer(from);
        twins
            .capture
            .wait_for(&from, Exchange::Informational, kind)?;
        twins.member.kill9()?;
        twins.member.start_again(&[])?;
        assert_eq!(twins.agree()?, spis);
        for n in [1, 2] {
            twins
                .capture
                .wait_for(&V4.outer(n), Exchange::Informational, Kind::Response)?;
        }
    }
    let inside = evergate_cluster_tests::lab::inside(1);
    let ends = (("peer1", inside[0].as_str()), ("host", PROTECTED[0]));
    let flow = Flow::start(&twins.lab, ends.0, ends.1, millis(5), 200)?;
    flow.runs(50, secs(5))?;
    flow.stop().is_lossless()?;
    twins.peer.rekey_child(C1)?;
    twins.member.rekey_ike(C1)?;
    let last = twins.agree()?;
    assert!(last.child.is_disjoint(&spis.child) && last.ike.is_disjoint(&spis.ike));
    let Twins {
        peer,
        member,
        capture,
        mut lab,
    } = twins;
    drop((peer, member));
    let found = capture.check(&[])?;
    found.verdict()?;
    assert_eq!(found.authentications_after(established), 0);
    lab.passed();
    Ok(())
}

#[test]
fn a_dead_peer_is_noticed() -> Result<()> {
    let setup = Setup::new(V4).both(|c| c.dpd = 1);
    let mut duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    duo.peer.process().kill9()?;
    until(secs(240), "the member gives the peer up", || {
        Ok(duo.spis()? == Spis::default())
    })?;
    duo.finish()?;
    Ok(())
}
