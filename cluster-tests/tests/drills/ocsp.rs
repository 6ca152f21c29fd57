//! Revocations by OCSP: the responder is that of OpenSSL.

use crate::certificates::{is_refused, judged};
use crate::establish::both_families;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::duo::{C1, Duo};
use evergate_cluster_tests::ocsp::{Responder, Status, name_responder};
use evergate_cluster_tests::pki::{Key, Pki};
use evergate_cluster_tests::sa::{Endpoint, Spis};

/// A strict member, and a peer whose certificate names a responder that knows this of it. What becomes of the authority between stands in a list.
fn told(pki: &Pki, status: Option<Status>) -> Result<(Duo, Responder)> {
    let peer = pki.issue_with("peer1.test", Key::P256, name_responder)?;
    let [root, _] = pki.revoke(&[])?;
    let list = format!("file:{}", root.display());
    let duo = judged(pki, peer.clone(), "strict", &[list])?;
    let known: Vec<_> = status.iter().map(|status| (&peer, *status)).collect();
    let responder = Responder::start(&duo.lab, "gw", pki, &known)?;
    Ok((duo, responder))
}

#[test]
fn a_responder_tells() -> Result<()> {
    for by_member in [false, true] {
        let pki = Pki::new("root", Key::P256)?;
        let (duo, _responder) = told(&pki, Some(Status::Good))?;
        if by_member {
            duo.member.initiate(C1, C1)?;
        } else {
            duo.peer.initiate(C1, C1)?;
        }
        duo.agree(1)?;
        both_families(&duo)?;
        duo.finish()?;
    }
    Ok(())
}

#[test]
fn a_responder_tells_of_a_revocation() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let (duo, _responder) = told(&pki, Some(Status::Revoked))?;
    is_refused(&duo, "it, or one of its issuers, was revoked")?;
    assert!(Spis::of(&duo.member.sas()?).child.is_empty());
    duo.finish().map(drop)
}

#[test]
fn a_responder_that_knows_nothing_tells_nothing() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let (duo, _responder) = told(&pki, None)?;
    is_refused(&duo, "it cannot be told whether it was revoked")?;
    let log = duo.member.log()?;
    assert!(
        log.contains("the responder does not know the certificate"),
        "{log}"
    );
    duo.finish().map(drop)
}
