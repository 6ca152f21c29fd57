//! Every family of ciphers, every key exchange method and every pseudo-random
//! function that strongSwan has, with either side as initiator: a tunnel,
//! traffic, rekeys of both kinds from both sides, and the end. The rows of a
//! table come one after the other on the same processes.

use crate::establish::both_families;
use anyhow::Context as _;
use evergate_cluster_tests::checker::Findings;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::wire::{Exchange, Kind};
use evergate_cluster_tests::{Result, secs, until};

/// IKE and ESP proposal.
type Row = (&'static str, &'static str);

/// Ciphers of IKE and ESP, and integrity algorithms.
const CIPHERS: [Row; 12] = [
    ("aes192gcm16-prfsha256-x25519", "aes192gcm16"),
    ("aes256gcm12-prfsha256-x25519", "aes256gcm12"),
    ("aes128gcm8-prfsha256-x25519", "aes128gcm8"),
    ("aes256ccm16-prfsha256-x25519", "aes256ccm16"),
    ("aes192ccm12-prfsha256-x25519", "aes192ccm12"),
    ("aes128ccm8-prfsha256-x25519", "aes128ccm8"),
    ("aes128-sha256-x25519", "aes128-sha256"),
    ("aes192-sha384-x25519", "aes192-sha384"),
    ("aes256-sha512-x25519", "aes256-sha512"),
    ("aes128-sha1-x25519", "aes128-sha1"),
    ("aes256-aesxcbc-x25519", "aes256-aesxcbc"),
    ("aes128-aescmac-x25519", "aes128-aescmac"),
];

/// Counter mode, for IKE.
const COUNTER_MODE: [Row; 2] = [
    ("aes128ctr-sha256-x25519", "aes128-sha256"),
    ("aes256ctr-sha512-x25519", "aes256-sha512"),
];

const GROUPS: [Row; 7] = [
    ("aes256gcm16-prfsha384-modp3072", "aes256gcm16-modp3072"),
    ("aes256gcm16-prfsha384-modp4096", "aes256gcm16-modp4096"),
    ("aes256gcm16-prfsha384-modp6144", "aes256gcm16"),
    ("aes256gcm16-prfsha384-modp8192", "aes256gcm16"),
    ("aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384"),
    ("aes256gcm16-prfsha384-ecp521", "aes256gcm16-ecp521"),
    ("aes256gcm16-prfsha384-x448", "aes256gcm16-x448"),
];

const PRFS: [Row; 3] = [
    ("aes128gcm16-prfsha1-x25519", "aes128gcm16-x25519"),
    ("aes128gcm16-prfaesxcbc-x25519", "aes128gcm16-x25519"),
    ("aes128gcm16-prfaescmac-x25519", "aes128gcm16-x25519"),
];

/// Additional key exchanges, and ML-KEM alone.
const HYBRID: [Row; 5] = [
    (
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        "aes256gcm16-x25519-ke1_mlkem768",
    ),
    (
        "aes256gcm16-prfsha384-ecp256-ke1_mlkem512",
        "aes256gcm16-ecp256-ke1_mlkem512",
    ),
    (
        "aes256-sha384-x25519-ke1_mlkem768-ke2_ecp384-ke4_x448",
        "aes256-sha256-x25519-ke1_mlkem768-ke3_ecp384",
    ),
    (
        "aes256gcm16-prfsha384-x448-ke1_mlkem1024",
        "aes256gcm16-ecp521-ke1_mlkem1024",
    ),
    ("aes256gcm16-prfsha384-mlkem768", "aes256gcm16-mlkem768"),
];

/// Who starts.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    Peer,
    Member,
}

/// One row after the other. The member accepts all of them, and the peer only the one.
fn table(esp: Esp, by: By, rows: &[Row]) -> Result<Findings> {
    let mut setup = Setup::new(V4);
    setup.esp = esp;
    setup.gateway.proposals = rows.iter().map(|r| r.0.to_owned()).collect();
    setup.gateway.esp = rows.iter().map(|r| r.1.to_owned()).collect();
    let duo = Duo::start(&setup)?;
    for row in rows {
        one(&duo, &setup.peer, by, *row).with_context(|| format!("{row:?} by {by:?}"))?;
    }
    duo.finish()
}

fn one(duo: &Duo, peer: &Connection, by: By, (ike, esp): Row) -> Result<()> {
    duo.peer.load(&[Connection {
        proposals: vec![ike.into()],
        esp: vec![esp.into()],
        ..peer.clone()
    }])?;
    let (first, second): (&dyn Endpoint, &dyn Endpoint) = match by {
        By::Peer => (&duo.peer, &duo.member),
        By::Member => (&duo.member, &duo.peer),
    };
    first.initiate(C1, C1)?;
    let mut spis = duo.agree(1)?;
    both_families(duo)?;
    for side in [first, second] {
        side.rekey_child(C1)?;
        spis = changed(duo, &spis, |a, b| a.child.is_disjoint(&b.child))?;
        side.rekey_ike(C1)?;
        spis = changed(duo, &spis, |a, b| a.ike.is_disjoint(&b.ike))?;
    }
    both_families(duo)?;
    first.terminate(C1)?;
    until(secs(30), "both sides forget", || {
        let (member, peer) = (Spis::of(&duo.member.sas()?), Spis::of(&duo.peer.sas()?));
        Ok(member == Spis::default() && peer == Spis::default())
    })
}

/// Waits until a rekey has done its work on both sides.
fn changed(duo: &Duo, before: &Spis, done: impl Fn(&Spis, &Spis) -> bool) -> Result<Spis> {
    duo.agree_on(1, |now| done(now, before))
}

macro_rules! tables {
    ($($name:ident: $esp:expr, $by:expr, $rows:expr;)*) => {$(
        #[test]
        fn $name() -> Result<()> {
            table($esp, $by, &$rows).map(drop)
        }
    )*};
}

tables! {
    ciphers_by_the_peer: Esp::InUdp, By::Peer, CIPHERS;
    ciphers_by_the_member: Esp::Plain, By::Member, CIPHERS;
    counter_mode_by_the_peer: Esp::InUdp, By::Peer, COUNTER_MODE;
    counter_mode_by_the_member: Esp::Plain, By::Member, COUNTER_MODE;
    groups_by_the_peer: Esp::Plain, By::Peer, GROUPS;
    groups_by_the_member: Esp::InUdp, By::Member, GROUPS;
    prfs_by_the_peer: Esp::InUdp, By::Peer, PRFS;
    prfs_by_the_member: Esp::Plain, By::Member, PRFS;
}

/// Rows with additional key exchanges: they were really there.
fn hybrid(by: By) -> Result<()> {
    let found = table(Esp::Plain, by, &HYBRID)?;
    let initiator = V4.outer(if by == By::Peer { 1 } else { 2 });
    // Of the initial exchanges 1, 1, 3, 1 and 0.
    let intermediate = found.count(&initiator, Exchange::Intermediate, Kind::Request);
    assert!(intermediate >= 6, "{intermediate}");
    for side in [V4.outer(1), V4.outer(2)] {
        // For the Child SA 1, 1, 2, 1 and 0, for the IKE SA as above.
        let follow_ups = found.count(&side, Exchange::FollowUpKe, Kind::Request);
        assert!(follow_ups >= 11, "{follow_ups} by {side}");
    }
    Ok(())
}

#[test]
fn hybrid_key_exchanges_by_the_peer() -> Result<()> {
    hybrid(By::Peer)
}

#[test]
fn hybrid_key_exchanges_by_the_member() -> Result<()> {
    hybrid(By::Member)
}

/// What is configured where nothing is said: with a peer that has ML-KEM it is used, with another it is not missed.
#[test]
fn the_defaults_are_hybrid_where_the_peer_is() -> Result<()> {
    for (esp, ike, intermediate) in [
        (
            Esp::Plain,
            "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
            true,
        ),
        (Esp::InUdp, "aes256gcm16-prfsha384-x25519", false),
    ] {
        for by in [By::Peer, By::Member] {
            let mut setup = Setup::new(V4);
            setup.esp = esp;
            setup.gateway.proposals = vec!["default".into()];
            setup.gateway.esp = vec!["default".into()];
            setup.peer.proposals = vec![ike.into()];
            let duo = Duo::start(&setup)?;
            match by {
                By::Peer => duo.peer.initiate(C1, C1)?,
                By::Member => duo.member.initiate(C1, C1)?,
            }
            duo.agree(1)?;
            both_families(&duo)?;
            let initiator = V4.outer(if by == By::Peer { 1 } else { 2 });
            let found = duo.finish()?;
            let seen = found.count(&initiator, Exchange::Intermediate, Kind::Request);
            assert_eq!(seen > 0, intermediate);
        }
    }
    Ok(())
}
