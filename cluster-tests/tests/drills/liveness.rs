//! Liveness checks from both sides just before a kill: what is harmless is not
//! committed before its reply, and the SAs survive all the same.

use evergate_cluster_tests::capture::{Capture, now};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::flow::Flow;
use evergate_cluster_tests::lab::{Family::V4, GATEWAY, Lab, PROTECTED};
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind};
use evergate_cluster_tests::{Result, millis, secs, until};

/// The two sides by their numbers. Each asks in a run of its own: of two that ask by the same clock one would be heard in time, and never
/// have to ask.
pub(crate) const ASKERS: [u8; 2] = [1, GATEWAY];

/// After which messages the member is killed: the request, and the response.
pub(crate) fn moments(asker: u8) -> [(String, Kind); 2] {
    let other = if asker == 1 { GATEWAY } else { 1 };
    [
        (V4.outer(asker), Kind::Request),
        (V4.outer(other), Kind::Response),
    ]
}

/// Kills the member at both moments of its asker's checks; they are answered again afterwards.
fn kills(asker: u8, capture: &Capture, mut kill: impl FnMut() -> Result<()>) -> Result<()> {
    for (from, kind) in moments(asker) {
        capture.wait_for(&from, Exchange::Informational, kind)?;
        kill()?;
        for (from, kind) in moments(asker) {
            capture.wait_for(&from, Exchange::Informational, kind)?;
        }
    }
    Ok(())
}

#[test]
fn with_strongswan_5_9() -> Result<()> {
    ASKERS
        .into_iter()
        .try_for_each(|asker| with_strongswan(Esp::InUdp, asker))
}

#[test]
fn with_strongswan_6_1() -> Result<()> {
    ASKERS
        .into_iter()
        .try_for_each(|asker| with_strongswan(Esp::Plain, asker))
}

fn with_strongswan(esp: Esp, asker: u8) -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    if asker == 1 {
        setup.peer.dpd = 1;
    } else {
        setup.gateway.dpd = 1;
    }
    let mut duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let (spis, established) = (duo.agree(1)?, now());
    let Duo {
        peer,
        member,
        capture,
        ..
    } = &mut duo;
    kills(asker, capture, || {
        member.kill9()?;
        member.start_again(&[])?;
        until(secs(30), "both sides have the same SAs as before", || {
            Ok(Spis::of(&member.sas()?) == spis && Spis::of(&peer.sas()?).mirrored() == spis)
        })
    })?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(50, secs(20))?;
    flow.stop().is_lossless()?;
    // Message IDs agree: both sides can change something.
    duo.peer.rekey_child(C1)?;
    until(secs(60), "the peer's rekey", || {
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
    fn start(asker: u8) -> Result<Self> {
        let mut lab = Lab::new(1500)?;
        lab.add_peer(1)?;
        let capture = Capture::start(&lab)?;
        let mut peer = Connection::peer(1, V4);
        peer.message_id_sync = false;
        let mut gateway = peer.mirrored();
        if asker == 1 {
            peer.dpd = 1;
        } else {
            gateway.dpd = 1;
        }
        let member = Member::start(&lab, "gw", &[gateway], &[])?;
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
        until(secs(30), "both members agree", || {
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
    ASKERS.into_iter().try_for_each(without_synchronisation)
}

fn without_synchronisation(asker: u8) -> Result<()> {
    let mut twins = Twins::start(asker)?;
    twins.peer.initiate(C1, C1)?;
    let (spis, established) = (twins.agree()?, now());
    let Twins {
        peer,
        member,
        capture,
        ..
    } = &mut twins;
    kills(asker, capture, || {
        member.kill9()?;
        member.start_again(&[])?;
        until(secs(30), "both members have the same SAs as before", || {
            Ok(Spis::of(&member.sas()?) == spis && Spis::of(&peer.sas()?).mirrored() == spis)
        })
    })?;
    let inside = evergate_cluster_tests::lab::inside(1);
    let ends = (("peer1", inside[0].as_str()), ("host", PROTECTED[0]));
    let flow = Flow::start(&twins.lab, ends.0, ends.1, millis(5), 200)?;
    flow.runs(50, secs(20))?;
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
