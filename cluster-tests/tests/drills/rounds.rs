//! Several rounds of authentication (RFC 4739): a machine, then who sits at it.

use crate::certificates::is_refused;
use crate::establish::both_families;
use anyhow::ensure;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::connection::Auth;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::pki::{Key, Pki};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp::{InUdp, Plain};

/// Certificates in the first round; what else there is, `change` says from the peer's view.
fn setup(pki: &Pki, change: impl Fn(&mut Setup) -> Result<()>) -> Result<Setup> {
    let mut setup = Setup::new(V4);
    setup.certify(pki, Key::P256, "pubkey")?;
    change(&mut setup)?;
    setup.gateway = setup.peer.mirrored();
    Ok(setup)
}

/// Establishes it from either side and with either strongSwan, which has heard these identities of the member.
fn runs(change: impl Fn(&Pki, &mut Setup) -> Result<()>, verified: &[&str]) -> Result<()> {
    for (by_member, esp) in [(false, InUdp), (true, InUdp), (false, Plain), (true, Plain)] {
        let pki = Pki::new("root", Key::P256)?;
        let mut setup = setup(&pki, |s| change(&pki, s))?;
        setup.esp = esp;
        let duo = Duo::start(&setup)?;
        if by_member {
            duo.member.initiate(C1, C1)?;
        } else {
            duo.peer.initiate(C1, C1)?;
        }
        let first = duo.agree(1)?;
        both_families(&duo)?;
        let log = duo.peer.log()?;
        for id in verified {
            let said = format!("authentication of '{id}' with ");
            let verified = |line: &str| line.contains(&said) && line.ends_with("successful");
            ensure!(log.lines().any(verified), "not {said:?}: {log}");
        }
        duo.peer.rekey_ike(C1)?;
        duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
        duo.finish()?;
    }
    Ok(())
}

#[test]
fn a_certificate_then_a_key_of_the_peer() -> Result<()> {
    let key = |_: &Pki, s: &mut Setup| {
        s.peer.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
        Ok(())
    };
    runs(key, &["gw.test"])
}

#[test]
fn two_certificates_of_the_peer() -> Result<()> {
    let certificate = |pki: &Pki, s: &mut Setup| {
        let alice = pki.issue("alice.test", Key::P384)?;
        s.peer.local_rounds = vec![(Auth::pubkey(alice), "alice.test".to_owned())];
        Ok(())
    };
    runs(certificate, &["gw.test"])
}

#[test]
fn two_rounds_of_both_sides() -> Result<()> {
    let both = |pki: &Pki, s: &mut Setup| {
        let second = pki.issue("gw2.test", Key::Rsa)?;
        s.peer.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
        s.peer.remote_rounds = vec![(Auth::pubkey(second), "gw2.test".to_owned())];
        Ok(())
    };
    runs(both, &["gw.test", "gw2.test"])
}

#[test]
fn three_rounds_of_the_member() -> Result<()> {
    let three = |pki: &Pki, s: &mut Setup| {
        let third = pki.issue("gw3.test", Key::Ed25519)?;
        s.peer.remote_rounds = vec![
            (Auth::Psk, "gw2.test".to_owned()),
            (Auth::pubkey(third), "gw3.test".to_owned()),
        ];
        Ok(())
    };
    runs(three, &["gw.test", "gw2.test", "gw3.test"])
}

#[test]
fn who_leaves_out_the_second_round_is_refused() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let mut setup = setup(&pki, |s| {
        s.peer.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
        Ok(())
    })?;
    setup.peer.local_rounds.clear();
    let duo = Duo::start(&setup)?;
    is_refused(&duo, "fewer or more rounds than the connection wants")?;
    assert!(Spis::of(&duo.member.sas()?).child.is_empty());
    duo.finish().map(drop)
}

#[test]
fn a_wrong_key_in_the_second_round_is_refused() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let mut setup = setup(&pki, |s| {
        s.peer.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
        Ok(())
    })?;
    setup.peer.secret = "something else".to_owned();
    let duo = Duo::start(&setup)?;
    is_refused(&duo, "alice@staff.test")?;
    assert!(Spis::of(&duo.member.sas()?).child.is_empty());
    duo.finish().map(drop)
}
