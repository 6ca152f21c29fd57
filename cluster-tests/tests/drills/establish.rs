//! Tunnels with every algorithm, from either side, in both outer families, in
//! UDP and plain: each row has each pair of AEAD and group once.

use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{self, V4, V6};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp::{self, InUdp, Plain};
use evergate_cluster_tests::wire::{Exchange, Kind, sent_just};
use evergate_cluster_tests::{Result, secs, until};

/// Who starts.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Peer,
    Member,
}
use By::{Member, Peer};

struct Row(By, &'static str, &'static str, Family, Esp);

impl Row {
    fn run(self) -> Result<()> {
        let Self(by, ike, child, outer, esp) = self;
        let mut setup = Setup::new(outer).both(|c| {
            c.proposals = vec![ike.into()];
            c.esp = vec![child.into()];
        });
        setup.esp = esp;
        let duo = Duo::start(&setup)?;
        match by {
            Peer => duo.peer.initiate(C1, C1)?,
            Member => duo.member.initiate(C1, C1)?,
        }
        let first = duo.agree(1)?;
        both_families(&duo)?;
        // The other side rekeys, so that each row has both roles.
        match by {
            Peer => duo.member.rekey_child(C1)?,
            Member => duo.peer.rekey_child(C1)?,
        }
        duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
        both_families(&duo)?;
        match by {
            Peer => duo.peer.terminate(C1)?,
            Member => duo.member.terminate(C1)?,
        }
        gone(&duo)?;
        let found = duo.finish()?;
        assert!(found.esp_from(&outer.outer(1)) >= 200 && found.esp_from(&outer.outer(2)) >= 200);
        assert_eq!(
            (found.esp_plain > 0, found.esp_in_udp > 0),
            (esp == Plain, esp == InUdp)
        );
        Ok(())
    }
}

/// No datagram is lost in either inner family.
pub(crate) fn both_families(duo: &Duo) -> Result<()> {
    for inner in [V4, V6] {
        let flow = duo.traffic(inner, 5)?;
        flow.runs(50, secs(10))?;
        flow.stop().is_lossless()?;
    }
    Ok(())
}

/// Neither side has an SA any more.
fn gone(duo: &Duo) -> Result<()> {
    until(secs(30), "both sides forget", || {
        let (member, peer) = (Spis::of(&duo.member.sas()?), Spis::of(&duo.peer.sas()?));
        Ok(member == Spis::default() && peer == Spis::default())
    })
}

macro_rules! matrix {
    ($($name:ident: $by:expr, $ike:literal, $esp:literal, $outer:expr, $mode:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            Row($by, $ike, $esp, $outer, $mode).run()
        }
    )*};
}

matrix! {
    aes128_x25519_by_peer: Peer, "aes128gcm16-prfsha256-x25519", "aes128gcm16", V4, InUdp;
    aes128_ecp256_by_peer: Peer, "aes128gcm16-prfsha384-ecp256", "aes256gcm16-ecp256", V6, Plain;
    aes128_modp2048_by_member: Member, "aes128gcm16-prfsha512-modp2048", "aes128gcm16-modp2048", V4, Plain;
    aes256_x25519_by_member: Member, "aes256gcm16-prfsha256-x25519", "aes128gcm16-x25519", V4, InUdp;
    aes256_ecp256_by_member: Member, "aes256gcm16-prfsha384-ecp256", "aes256gcm16", V6, Plain;
    aes256_modp2048_by_peer: Peer, "aes256gcm16-prfsha384-modp2048", "aes256gcm16", V6, InUdp;
    chacha20_x25519_by_member: Member, "chacha20poly1305-prfsha256-x25519", "chacha20poly1305", V6, InUdp;
    chacha20_ecp256_by_member: Member, "chacha20poly1305-prfsha384-ecp256", "chacha20poly1305", V4, InUdp;
    chacha20_modp2048_by_peer: Peer, "chacha20poly1305-prfsha512-modp2048", "chacha20poly1305", V4, Plain;
}

/// Offers two groups, and guesses the one that the other side lacks.
fn guesses_wrong(c: &mut Connection) {
    c.proposals = vec![
        "aes256gcm16-prfsha384-modp2048".into(),
        "aes256gcm16-prfsha384-x25519".into(),
    ];
}

#[test]
fn invalid_ke_payload_to_the_peer() -> Result<()> {
    let mut setup = Setup::new(V4);
    guesses_wrong(&mut setup.peer);
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    both_families(&duo)?;
    let peer = V4.outer(1);
    sent_just(&duo.capture, &peer, Exchange::SaInit, Kind::Request, 2)?;
    duo.finish().map(drop)
}

#[test]
fn invalid_ke_payload_to_the_member() -> Result<()> {
    let mut setup = Setup::new(V4);
    guesses_wrong(&mut setup.gateway);
    let duo = Duo::start(&setup)?;
    duo.member.initiate(C1, C1)?;
    duo.agree(1)?;
    both_families(&duo)?;
    let member = V4.outer(2);
    sent_just(&duo.capture, &member, Exchange::SaInit, Kind::Request, 2)?;
    duo.finish().map(drop)
}

#[test]
fn udp_encapsulation_that_the_member_forces() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.esp = Plain;
    setup.gateway.encap = true;
    let duo = Duo::start(&setup)?;
    duo.member.initiate(C1, C1)?;
    duo.agree(1)?;
    both_families(&duo)?;
    let found = duo.finish()?;
    assert_eq!(found.esp_plain, 0);
    Ok(())
}

fn childless(by: By, esp: Esp) -> Result<()> {
    // strongSwan 5.9 knows no "prefer".
    let mut setup = Setup::new(V4);
    match by {
        Peer => setup.peer.childless = "force",
        Member => setup.gateway.childless = "prefer",
    }
    setup.esp = esp;
    let duo = Duo::start(&setup)?;
    match by {
        Peer => duo.peer.initiate(C1, C1)?,
        Member => duo.member.initiate(C1, C1)?,
    }
    duo.agree(1)?;
    both_families(&duo)?;
    // Otherwise the Child SA came with the IKE SA.
    let asks = V4.outer(if by == Peer { 1 } else { 2 });
    sent_just(&duo.capture, &asks, Exchange::CreateChild, Kind::Request, 1)?;
    duo.finish().map(drop)
}

#[test]
fn childless_by_the_peer() -> Result<()> {
    childless(Peer, InUdp)
}

#[test]
fn childless_by_the_member() -> Result<()> {
    childless(Member, Plain)
}

/// Two Child SAs of one IKE SA, the second one asked for by either side; each is replaced and deleted without the other.
fn two_children(second_by: By, esp: Esp) -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| c.split = true);
    setup.esp = esp;
    let duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    let one = duo.agree(1)?;
    let second = "c1-v6";
    match second_by {
        Peer => duo.peer.initiate(C1, second)?,
        Member => duo.member.initiate(C1, second)?,
    }
    let two = duo.agree(2)?;
    assert_eq!((&two.ike, two.ike.len()), (&one.ike, 1));
    both_families(&duo)?;
    duo.peer.rekey_child(second)?;
    let rekeyed = duo.agree_on(2, |now| !two.child.is_subset(&now.child))?;
    assert_eq!(rekeyed.child.intersection(&two.child).count(), 1);
    duo.member.rekey_ike(C1)?;
    let after = duo.agree_on(2, |now| now.ike.is_disjoint(&one.ike))?;
    assert_eq!(after.child, rekeyed.child);
    both_families(&duo)?;
    duo.member.terminate_child(second)?;
    assert_eq!(duo.agree(1)?.child, one.child);
    duo.finish()?;
    Ok(())
}

#[test]
fn a_second_child_by_the_peer() -> Result<()> {
    two_children(Peer, InUdp)
}

#[test]
fn a_second_child_by_the_member() -> Result<()> {
    two_children(Member, Plain)
}
