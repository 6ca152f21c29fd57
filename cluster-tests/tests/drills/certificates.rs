//! Certificates: every kind of key, from either side, with an authority between; and what is refused.

use crate::addresses::Crowd;
use crate::establish::both_families;
use crate::refusals::told;
use evergate_cluster_tests::connection::{Auth, Connection};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::pki::{Certificate, Key, Pki};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp::{self, InUdp, Plain};
use evergate_cluster_tests::wire::{Exchange, Kind, drop_ip_fragments};
use evergate_cluster_tests::{Result, secs, until};
use rcgen::CrlDistributionPoint;
use std::io::{Read, Write};
use std::net::TcpListener;

/// Who starts.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Peer,
    Member,
}
use By::{Member, Peer};

/// Establishes a tunnel, and lets the other side rekey.
fn runs(by: By, setup: &Setup) -> Result<Duo> {
    let duo = Duo::start(setup)?;
    match by {
        Peer => duo.peer.initiate(C1, C1)?,
        Member => duo.member.initiate(C1, C1)?,
    }
    duo.agree(1)?;
    both_families(&duo)?;
    Ok(duo)
}

fn row(by: By, key: Key, auth: &str, esp: Esp) -> Result<()> {
    let pki = Pki::new("root", key)?;
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.certify(&pki, key, auth)?;
    let duo = runs(by, &setup)?;
    let log = duo.peer.log()?;
    let verified = |line: &str| {
        line.contains("authentication of 'gw.test' with ") && line.ends_with(" successful")
    };
    assert!(log.lines().any(verified), "{log}");
    duo.finish().map(drop)
}

macro_rules! matrix {
    ($($name:ident: $by:expr, $key:expr, $auth:literal, $esp:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            row($by, $key, $auth, $esp)
        }
    )*};
}

matrix! {
    rsa_by_peer: Peer, Key::Rsa, "pubkey", InUdp;
    rsa_by_member: Member, Key::Rsa, "rsa-sha512", Plain;
    rsa_pss_by_peer: Peer, Key::Rsa, "rsa/pss-sha256", Plain;
    rsa_pss_by_member: Member, Key::Rsa, "rsa/pss-sha384", InUdp;
    ecdsa_p256_by_peer: Peer, Key::P256, "pubkey", Plain;
    ecdsa_p256_by_member: Member, Key::P256, "pubkey", InUdp;
    ecdsa_p384_by_peer: Peer, Key::P384, "ecdsa", InUdp;
    ecdsa_p521_by_member: Member, Key::P521, "ecdsa", Plain;
    ed25519_by_peer: Peer, Key::Ed25519, "pubkey", InUdp;
    ed25519_by_member: Member, Key::Ed25519, "ed25519", Plain;
}

/// On a path that carries no more than 1280 bytes at a time, and no fragment of an IP packet: certificates arrive in fragments of IKE.
#[test]
fn certificates_go_in_fragments() -> Result<()> {
    for by in [Peer, Member] {
        let pki = Pki::new("root", Key::Rsa)?;
        let mut setup = Setup::new(V4);
        (setup.esp, setup.mtu) = (InUdp, 1280);
        setup.certify(&pki, Key::Rsa, "pubkey")?;
        let duo = Duo::start(&setup)?;
        drop_ip_fragments(&duo.lab)?;
        match by {
            Peer => duo.peer.initiate(C1, C1)?,
            Member => duo.member.initiate(C1, C1)?,
        }
        duo.agree(1)?;
        both_families(&duo)?;
        let found = duo.finish()?;
        let of = |n, kind| found.fragments_of(&V4.outer(n), Exchange::Auth, kind);
        let (asks, answers) = if by == Peer { (1, 2) } else { (2, 1) };
        let sent = (of(asks, Kind::Request), of(answers, Kind::Response));
        assert!(sent.0 >= 2 && sent.1 >= 2, "{sent:?}");
        assert_eq!(found.fragments, 0);
    }
    Ok(())
}

#[test]
fn raw_public_keys() -> Result<()> {
    for (by, key, esp) in [
        (Peer, Key::P256, InUdp),
        (Member, Key::Rsa, InUdp),
        (Peer, Key::Ed25519, Plain),
        (Member, Key::P384, Plain),
    ] {
        let pki = Pki::new("nobody", Key::P256)?;
        let mut setup = Setup::new(V4);
        setup.esp = esp;
        setup.exchange_keys(&pki, key)?;
        let duo = runs(by, &setup)?;
        let log = duo.peer.log()?;
        assert!(
            log.contains("authentication of 'gw.test' with ")
                && !log.contains("received end entity cert"),
            "{log}"
        );
        duo.finish()?;
    }
    Ok(())
}

#[test]
fn a_raw_public_key_that_nobody_knows() -> Result<()> {
    let pki = Pki::new("nobody", Key::P256)?;
    let mut setup = Setup::new(V4);
    setup.exchange_keys(&pki, Key::P256)?;
    setup.gateway.remote_auth = Auth::RawKey(pki.issue("other.test", Key::P256)?);
    let duo = Duo::start(&setup)?;
    is_refused(&duo, "the AUTH payload does not verify with its key")?;
    assert!(Spis::of(&duo.member.sas()?).child.is_empty());
    duo.finish().map(drop)
}

#[test]
fn ecdsa_by_the_older_method() -> Result<()> {
    for by in [Peer, Member] {
        let pki = Pki::new("root", Key::P256)?;
        let mut setup = Setup::new(V4);
        setup.certify(&pki, Key::P256, "pubkey")?;
        // strongSwan neither announces nor uses RFC 7427.
        setup.charon = vec!["signature_authentication = no".to_owned()];
        let duo = runs(by, &setup)?;
        let log = duo.peer.log()?;
        assert!(log.contains("with ECDSA-256 signature successful"), "{log}");
        duo.finish()?;
    }
    Ok(())
}

#[test]
fn a_certificate_of_the_peer_and_a_key_of_ours() -> Result<()> {
    mixed(Peer, |c, peer, _| c.local_auth = Auth::pubkey(peer))
}

#[test]
fn a_key_of_the_peer_and_a_certificate_of_ours() -> Result<()> {
    mixed(Member, |c, _, member| c.remote_auth = Auth::pubkey(member))
}

fn mixed(by: By, change: impl Fn(&mut Connection, Certificate, Certificate)) -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let mut setup = Setup::new(V4);
    let (peer, member) = (
        pki.issue("peer1.test", Key::P256)?,
        pki.issue("gw.test", Key::P256)?,
    );
    change(&mut setup.peer, peer, member);
    setup.gateway = setup.peer.mirrored();
    runs(by, &setup)?.finish().map(drop)
}

#[test]
fn distinguished_names_as_identities() -> Result<()> {
    for by in [Peer, Member] {
        let pki = Pki::new("root", Key::P256)?;
        let mut setup = Setup::new(V4);
        setup.certify(&pki, Key::P256, "pubkey")?;
        let names = ["C=CH, O=Drill, CN=peer1.test", "C=CH, O=Drill, CN=gw.test"];
        setup.peer.local_id = names[0].to_owned();
        setup.peer.remote_id = names[1].to_owned();
        setup.gateway = setup.peer.mirrored();
        // What the certificates say, which is written in other string types than the text would be.
        setup.gateway.remote_id = "C=CH, O=Drill, CN=*".to_owned();
        setup.gateway.local_id = names[1].to_owned();
        runs(by, &setup)?.finish()?;
    }
    Ok(())
}

/// The peer with this certificate is refused, and the log says why; another with a key is served.
fn refused(certificate: Certificate, trusted: Certificate, cause: &str) -> Result<()> {
    let good = Connection::peer(1, V4);
    let mut three = Connection::peer(3, V4);
    three.local_auth = Auth::pubkey(certificate);
    let mut gateway = three.mirrored();
    gateway.remote_auth = Auth::pubkey(trusted);
    let crowd = Crowd::start(&[(good.clone(), good.mirrored()), (three, gateway)], &[])?;
    crowd.peers[0].initiate("c1", "c1")?;
    let before = crowd.member.log()?.len();
    assert!(
        crowd.peers[1].initiate_within("c3", 10).is_err(),
        "was not refused"
    );
    told(&crowd, before, "AUTHENTICATION_FAILED", cause)?;
    assert_eq!(Spis::of(&crowd.member.sas()?).child.len(), 1);
    crowd.finish()
}

#[test]
fn a_certificate_of_another_authority() -> Result<()> {
    let (ours, theirs) = (Pki::new("ours", Key::P256)?, Pki::new("theirs", Key::P256)?);
    let own = theirs.issue("peer3.test", Key::P256)?;
    let trusted = ours.issue("peer3.test", Key::P256)?;
    refused(
        own,
        trusted,
        "the certificate of peer3.test is not accepted: no authority",
    )
}

#[test]
fn an_expired_certificate() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let own = pki.issue_expired("peer3.test", Key::P256)?;
    refused(
        own.clone(),
        own,
        "the certificate of peer3.test is not accepted: it, or one of its issuers, has expired",
    )
}

#[test]
fn a_certificate_of_somebody_else() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let own = pki.issue_with("mallory.test", Key::P256, |_| {})?;
    // strongSwan would not send an identity that its certificate does not have, so the member wants another one.
    let good = Connection::peer(1, V4);
    let mut three = Connection::peer(3, V4);
    three.local_id = "mallory.test".to_owned();
    three.local_auth = Auth::pubkey(own.clone());
    let mut gateway = three.mirrored();
    gateway.remote_id = "peer3.test".to_owned();
    let crowd = Crowd::start(&[(good.clone(), good.mirrored()), (three, gateway)], &[])?;
    let before = crowd.member.log()?.len();
    assert!(
        crowd.peers[1].initiate_within("c3", 10).is_err(),
        "was not refused"
    );
    told(&crowd, before, "AUTHENTICATION_FAILED", "mallory.test")?;
    crowd.finish()
}

#[test]
fn a_member_does_not_trust_a_responder_of_another_authority() -> Result<()> {
    let (ours, theirs) = (Pki::new("ours", Key::P256)?, Pki::new("theirs", Key::P256)?);
    let mut setup = Setup::new(V4);
    setup.certify(&theirs, Key::P256, "pubkey")?;
    setup.gateway.remote_auth = Auth::pubkey(ours.issue("peer1.test", Key::P256)?);
    let duo = Duo::start(&setup)?;
    assert!(duo.member.initiate(C1, C1).is_err(), "was not refused");
    let log = duo.member.log()?;
    assert!(
        log.contains("the certificate of peer1.test is not accepted: no authority"),
        "{log}"
    );
    until(secs(20), "nothing is left", || {
        Ok(Spis::of(&duo.member.sas()?) == Spis::default())
    })?;
    duo.finish().map(drop)
}

/// A tunnel from a peer whose certificate the member judges by this policy; `uris` are the places of lists.
pub(crate) fn judged(pki: &Pki, peer: Certificate, policy: &str, uris: &[String]) -> Result<Duo> {
    let mut setup = Setup::new(V4);
    setup.peer.local_auth = Auth::pubkey(peer);
    setup.peer.remote_auth = Auth::pubkey(pki.issue("gw.test", Key::P256)?);
    setup.gateway = setup.peer.mirrored();
    setup.gateway.revocation = Some((policy.to_owned(), uris.to_vec()));
    Duo::start(&setup)
}

/// The peer is refused, and the log says why.
pub(crate) fn is_refused(duo: &Duo, cause: &str) -> Result<()> {
    let before = duo.member.log()?.len();
    assert!(duo.peer.initiate_within(C1, 10).is_err(), "was not refused");
    until(secs(20), cause, || {
        Ok(duo.member.log()?[before..].contains(cause))
    })?;
    until(secs(20), "the peer is told", || {
        Ok(duo.peer.logged("AUTHENTICATION_FAILED")? > 0)
    })
}

#[test]
fn a_certificate_that_is_revoked_later() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let peer = pki.issue("peer1.test", Key::P256)?;
    let files = pki
        .revoke(&[])?
        .map(|file| format!("file:{}", file.display()));
    let duo = judged(&pki, peer.clone(), "strict", &files)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    duo.peer.terminate(C1)?;
    pki.revoke(&[&peer])?;
    // The file is looked at again after ten seconds.
    until(secs(60), "the list is read again", || {
        let refused = duo.peer.initiate_within(C1, 10).is_err();
        if !refused {
            duo.peer.terminate(C1)?;
        }
        Ok(refused)
    })?;
    is_refused(&duo, "it, or one of its issuers, was revoked")?;
    duo.finish().map(drop)
}

#[test]
fn a_strict_member_wants_to_know() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let duo = judged(&pki, pki.issue("peer1.test", Key::P256)?, "strict", &[])?;
    is_refused(&duo, "it cannot be told whether it was revoked")?;
    duo.finish().map(drop)
}

#[test]
fn a_list_that_the_certificate_names_is_fetched() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let peer = pki.issue_with("peer1.test", Key::P256, |p| {
        let uris = vec!["http://127.0.0.1:8080/between.crl".to_owned()];
        p.crl_distribution_points = vec![CrlDistributionPoint { uris }];
    })?;
    let [_, list] = pki.revoke(&[&peer])?;
    let duo = judged(&pki, peer, "ifuri", &[])?;
    // Nobody is there.
    is_refused(&duo, "it cannot be told whether it was revoked")?;
    let listener = duo
        .lab
        .on("gw", || Ok(TcpListener::bind("127.0.0.1:8080")?))?;
    std::thread::spawn(move || serve(&listener, &std::fs::read(list).unwrap_or_default()));
    // A failure is remembered for half a minute.
    until(secs(120), "it is revoked", || {
        std::thread::sleep(secs(2));
        duo.peer.initiate_within(C1, 10).ok();
        Ok(duo
            .member
            .log()?
            .contains("it, or one of its issuers, was revoked"))
    })?;
    assert!(Spis::of(&duo.member.sas()?).child.is_empty());
    duo.finish().map(drop)
}

/// Answers one HTTP request.
fn serve(listener: &TcpListener, body: &[u8]) {
    let Ok((mut stream, _)) = listener.accept() else {
        return;
    };
    let _ = stream.read(&mut [0; 4096]);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// A post-quantum pre-shared key (RFC 8784) on these sides, each of which may require it.
fn quantum(by: By, peer: Option<bool>, member: Option<bool>, esp: Esp) -> Result<Duo> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.peer.ppk = peer;
    setup.gateway.ppk = member;
    runs(by, &setup)
}

#[test]
fn a_post_quantum_key_on_both_sides() -> Result<()> {
    for (by, esp) in [(Peer, InUdp), (Member, Plain)] {
        let duo = quantum(by, Some(true), Some(true), esp)?;
        let first = duo.agree(1)?;
        duo.peer.rekey_ike(C1)?;
        duo.agree_on(1, |now| now.ike.is_disjoint(&first.ike))?;
        both_families(&duo)?;
        let log = duo.peer.log()?;
        assert!(log.contains("PPK"), "{log}");
        duo.finish()?;
    }
    Ok(())
}

#[test]
fn a_post_quantum_key_that_is_not_required() -> Result<()> {
    quantum(Peer, Some(false), None, InUdp)?.finish()?;
    quantum(Member, None, Some(false), InUdp)?
        .finish()
        .map(drop)
}
