//! IKE messages that are longer than a datagram may be (RFC 7383), on a path of 1280 bytes that loses every fragment of an IP packet.

use crate::establish::both_families;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{self, V4, V6};
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp::{self, InUdp, Plain};
use evergate_cluster_tests::wire::{Exchange, Kind, drop_ip_fragments, sent, sent_just};
use evergate_cluster_tests::{Result, secs, until};

/// Identities so long that an IKE_AUTH request with both does not fit. strongSwan reads no more than 511 bytes of one.
pub(crate) fn long_identities(c: &mut Connection) {
    for id in [&mut c.local_id, &mut c.remote_id] {
        *id = format!("keyid:{id}{}", "-long".repeat(95));
    }
}

/// Small fragments, and so many selectors that a CREATE_CHILD_SA is larger than one.
pub(crate) fn many_selectors(c: &mut Connection) {
    c.fragment_size = 576;
    c.remote_ts
        .extend((100..130).map(|n| format!("10.12.{n}.0/24")));
}

fn start(outer: Family, esp: Esp, change: impl Fn(&mut Connection)) -> Result<Duo> {
    start_with(outer, esp, change, |_| {})
}

fn start_with(
    outer: Family,
    esp: Esp,
    change: impl Fn(&mut Connection),
    then: impl FnOnce(&mut Setup),
) -> Result<Duo> {
    let mut setup = Setup::new(outer);
    (setup.esp, setup.mtu) = (esp, 1280);
    change(&mut setup.peer);
    setup.gateway = setup.peer.mirrored();
    then(&mut setup);
    let duo = Duo::start(&setup)?;
    drop_ip_fragments(&duo.lab)?;
    Ok(duo)
}

fn long_auth(by_peer: bool, outer: Family, esp: Esp) -> Result<()> {
    // The answer has one identity only: it is fragmented because whoever answers wants smaller ones.
    let small_answers = |setup: &mut Setup| {
        let answers = match by_peer {
            true => &mut setup.gateway,
            false => &mut setup.peer,
        };
        answers.fragment_size = 576;
    };
    let duo = start_with(outer, esp, long_identities, small_answers)?;
    if by_peer {
        duo.peer.initiate(C1, C1)?;
    } else {
        duo.member.initiate(C1, C1)?;
    }
    duo.agree(1)?;
    both_families(&duo)?;
    let (asks, answers) = if by_peer { (1, 2) } else { (2, 1) };
    let both = [(asks, Kind::Request), (answers, Kind::Response)];
    for (n, kind) in both {
        sent_just(&duo.capture, &outer.outer(n), Exchange::Auth, kind, 2)?;
    }
    let found = duo.finish()?;
    for (n, kind) in both {
        // Repetitions count, too.
        assert!(found.fragments_of(&outer.outer(n), Exchange::Auth, kind) >= 2);
    }
    assert_eq!(found.fragments, 0);
    Ok(())
}

#[test]
fn a_long_auth_by_strongswan_5_9() -> Result<()> {
    long_auth(true, V4, InUdp)
}

#[test]
fn a_long_auth_by_strongswan_6_1() -> Result<()> {
    long_auth(true, V6, Plain)
}

#[test]
fn a_long_auth_by_the_member_to_strongswan_5_9() -> Result<()> {
    long_auth(false, V6, InUdp)
}

#[test]
fn a_long_auth_by_the_member_to_strongswan_6_1() -> Result<()> {
    long_auth(false, V4, Plain)
}

#[test]
fn rekeys_by_both_sides_in_small_fragments() -> Result<()> {
    let duo = start(V4, InUdp, many_selectors)?;
    duo.peer.initiate(C1, C1)?;
    let first = duo.agree(1)?;
    duo.peer.rekey_child(C1)?;
    let second = duo.agree_on(1, |now| now.child.is_disjoint(&first.child))?;
    duo.member.rekey_child(C1)?;
    duo.agree_on(1, |now| now.child.is_disjoint(&second.child))?;
    both_families(&duo)?;
    let found = duo.finish()?;
    for (n, kind) in [
        (1, Kind::Request),
        (1, Kind::Response),
        (2, Kind::Request),
        (2, Kind::Response),
    ] {
        let sent = found.fragments_of(&V4.outer(n), Exchange::CreateChild, kind);
        assert!(sent >= 2, "{n} {kind:?}: {sent}");
    }
    Ok(())
}

/// What shows that the path is as bad as the drills above say.
#[test]
fn without_fragmentation_a_long_auth_does_not_arrive() -> Result<()> {
    let change = |c: &mut Connection| {
        long_identities(c);
        c.fragmentation = "no";
    };
    let duo = start(V4, InUdp, change)?;
    assert!(duo.peer.initiate_within(C1, 4).is_err());
    // The peer goes on trying, also if it had not come so far yet.
    let peer = V4.outer(1);
    until(secs(30), "the peer has sent IKE_AUTH", || {
        let asked = sent(&duo.capture, &peer, Exchange::Auth, Kind::Request)?;
        Ok(!asked.is_empty())
    })?;
    assert!(!duo.member.sas()?.iter().any(|sa| sa.established));
    let found = duo.finish()?;
    let asked = found.count(&V4.outer(1), Exchange::Auth, Kind::Request);
    let answered = found.count(&V4.outer(2), Exchange::Auth, Kind::Response);
    assert!(asked > 0 && found.fragments > 0, "{found:?}");
    assert_eq!(answered, 0);
    Ok(())
}
