//! Who is who.

use crate::scenario::Scenario;
use anyhow::ensure;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::connection::Auth;
use evergate_cluster_tests::duo::{Duo, Setup};
use evergate_cluster_tests::pki::{Key, Pki};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = keys();
    all.extend(certificates());
    all
}

fn keys() -> Vec<Scenario> {
    vec![
        Scenario::new("psk", "Pre-shared keys, names as identities"),
        Scenario::new("psk_addresses", "Pre-shared keys, addresses as identities").both(|c| {
            c.local_id.clone_from(&c.local);
            c.remote_id.clone_from(&c.remote);
        }),
        Scenario::new(
            "psk_email",
            "Pre-shared keys, e-mail addresses as identities",
        )
        .with(|s| {
            for c in [&mut s.peer, &mut s.gateway] {
                for id in [&mut c.local_id, &mut c.remote_id] {
                    *id = id.replace('.', "@") + ".test";
                }
            }
        }),
        Scenario::new(
            "ppk",
            "Pre-shared keys, and a post-quantum pre-shared key that both sides require (RFC 8784)",
        )
        .both(|c| c.ppk = Some(true))
        .look(|duo, _| logged(duo, "using PPK for PPK_ID")),
    ]
}

/// Each kind of key, in chains with an authority between the root and the ends.
fn certificates() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "rsa_pkcs1",
            "RSA certificates with an intermediate, PKCS #1 v1.5",
        )
        .start(|setup| certified(setup, Key::Rsa, "rsa-sha256"))
        .look(|duo, _| signed(duo, "RSA_EMSA_PKCS1_SHA2_256")),
        Scenario::new("rsa_pss", "RSA certificates with an intermediate, PSS")
            .start(|setup| certified(setup, Key::Rsa, "rsa/pss-sha256"))
            .look(|duo, _| signed(duo, "RSA_EMSA_PSS_SHA2_256")),
        Scenario::new("ecdsa", "ECDSA P-256 certificates with an intermediate")
            .start(|setup| certified(setup, Key::P256, "pubkey"))
            .look(|duo, _| signed(duo, "ECDSA_WITH_SHA256")),
        Scenario::new(
            "ecdsa_p384",
            "ECDSA P-384 certificates with an intermediate",
        )
        .start(|setup| certified(setup, Key::P384, "pubkey"))
        .look(|duo, _| signed(duo, "ECDSA_WITH_SHA384")),
        Scenario::new("ed25519", "Ed25519 certificates with an intermediate")
            .start(|setup| certified(setup, Key::Ed25519, "pubkey"))
            .look(|duo, _| signed(duo, "ED25519")),
        Scenario::new(
            "raw_public_keys",
            "Raw public keys, ECDSA P-256, which each side knows of the other (RFC 7670)",
        )
        .start(raw_keys)
        .look(|duo, _| signed(duo, "ECDSA_WITH_SHA256")),
        Scenario::new(
            "rounds",
            "Certificates, then strongSwan with a pre-shared key and the member with another certificate (RFC 4739)",
        )
        .start(two_rounds)
        .look(|duo, _| {
            signed(duo, "ECDSA_WITH_SHA256")?;
            logged(duo, "authentication of 'alice@staff.test' (myself) with pre-shared key")?;
            logged(duo, "authentication of 'gw2.test' with ECDSA_WITH_SHA384_DER successful")
        }),
    ]
}

fn raw_keys(setup: &Setup) -> Result<Duo> {
    let pki = Pki::new("nobody", Key::P256)?;
    let mut setup = setup.clone();
    setup.exchange_keys(&pki, Key::P256)?;
    Duo::start(&setup)
}

fn two_rounds(setup: &Setup) -> Result<Duo> {
    let pki = Pki::new("root", Key::P256)?;
    let mut setup = setup.clone();
    setup.certify(&pki, Key::P256, "pubkey")?;
    let second = Auth::pubkey(pki.issue("gw2.test", Key::P384)?);
    setup.peer.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
    setup.peer.remote_rounds = vec![(second, "gw2.test".to_owned())];
    setup.gateway = setup.peer.mirrored();
    Duo::start(&setup)
}

/// Both sides with certificates of authorities that are made for this run; they are read when the sides start.
fn certified(setup: &Setup, key: Key, auth: &str) -> Result<Duo> {
    let pki = Pki::new("root", key)?;
    let mut setup = setup.clone();
    setup.certify(&pki, key, auth)?;
    Duo::start(&setup)
}

/// Both sides signed so, says strongSwan.
fn signed(duo: &Duo, scheme: &str) -> Result<()> {
    let log = duo.peer.log()?;
    for (whose, ending) in [("peer1.test' (myself)", ""), ("gw.test'", "successful")] {
        let said = format!("authentication of '{whose} with {scheme}");
        let says = |line: &str| line.contains(&said) && line.ends_with(ending);
        ensure!(log.lines().any(says), "not {said:?}: {log}");
    }
    Ok(())
}

fn logged(duo: &Duo, what: &str) -> Result<()> {
    let log = duo.peer.log()?;
    ensure!(log.contains(what), "not {what:?}: {log}");
    Ok(())
}
