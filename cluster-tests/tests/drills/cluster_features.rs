//! Features of IKEv2 that a peer may use, and the active member dies in the middle of each: another one goes on with what was begun.
//! (Fragments, additional key exchanges, TCP, MOBIKE and uniqueness have files of their own.)

use crate::cluster_exchanges::{By, During, armed, at_failpoint_with};
use crate::flood::first_message;
use anyhow::{Context, ensure};
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, MEMBERS, Pace, Trio, host};
use evergate_cluster_tests::connection::{Auth, Connection};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::lab::{PROTECTED, inside};
use evergate_cluster_tests::ocsp::{Responder, Status, name_responder};
use evergate_cluster_tests::pki::{Key, Pki};
use evergate_cluster_tests::raw::{Random, socket};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::{Esp, StrongSwan};
use evergate_cluster_tests::wire::{Exchange, Kind, sent_just};
use evergate_cluster_tests::{Result, secs, until};
use nix::sys::signal::Signal;

const G: &str = "g1";

/// A certificate, then a pre-shared key of the peer, and another certificate of the member (RFC 4739).
fn rounds(by: By, point: &str) -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let issue = |name| pki.issue(name, Key::P256).map(Auth::pubkey);
    let (peer, member, second) = (issue("peer1.test")?, issue("gw.test")?, issue("gw2.test")?);
    at_failpoint_with(by, During::Establish, point, |c| {
        (c.local_auth, c.remote_auth) = (peer.clone(), member.clone());
        c.local_rounds = vec![(Auth::Psk, "alice@staff.test".to_owned())];
        c.remote_rounds = vec![(second.clone(), "gw2.test".to_owned())];
    })
}

#[test]
fn between_the_rounds_of_the_peer() -> Result<()> {
    rounds(By::Peer, "after-commit:IKE_AUTH:1")
}

#[test]
fn after_the_last_round_of_the_peer() -> Result<()> {
    rounds(By::Peer, "after-commit:IKE_AUTH:2")
}

#[test]
fn between_own_rounds() -> Result<()> {
    rounds(By::Member, "after-commit:IKE_AUTH:2")
}

/// Raw public keys (RFC 7670) and a post-quantum pre-shared key (RFC 8784) at once.
fn with_raw_keys_and_ppk(by: By) -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let (peer, member) = (
        pki.issue("peer1.test", Key::P256)?,
        pki.issue("gw.test", Key::P256)?,
    );
    at_failpoint_with(by, During::Establish, "after-commit:IKE_AUTH:1", |c| {
        c.local_auth = Auth::RawKey(peer.clone());
        c.remote_auth = Auth::RawKey(member.clone());
        c.ppk = Some(true);
    })
}

#[test]
fn a_peer_with_a_raw_key_and_a_ppk() -> Result<()> {
    with_raw_keys_and_ppk(By::Peer)
}

#[test]
fn own_auth_with_a_raw_key_and_a_ppk() -> Result<()> {
    with_raw_keys_and_ppk(By::Member)
}

/// The member waits for the answer of an OCSP responder (RFC 6960) when it dies; its successor asks one itself.
#[test]
fn while_a_certificate_is_asked_about() -> Result<()> {
    let pki = Pki::new("root", Key::P256)?;
    let peer = pki.issue_with("peer1.test", Key::P256, name_responder)?;
    let member = pki.issue("gw.test", Key::P256)?;
    let [root, _] = pki.revoke(&[])?;
    let list = format!("file:{}", root.display());
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |c| {
        c.local_auth = Auth::pubkey(peer.clone());
        c.remote_auth = Auth::pubkey(member.clone());
        c.revocation = Some(("strict".to_owned(), vec![list.clone()]));
    })?;
    let known = [(&peer, Status::Good)];
    let start = |trio: &Trio, n| Responder::start(&trio.lab, &host(n), &pki, &known);
    let responders = (0..MEMBERS)
        .map(|n| start(&trio, n))
        .collect::<Result<Vec<_>>>()?;
    let active = trio.active(G)?;
    // The connection is accepted, and nobody answers.
    responders[active].signal(Signal::SIGSTOP)?;
    std::thread::scope(|scope| -> Result<()> {
        let Trio {
            peer, members, lab, ..
        } = &mut trio;
        let peer = &*peer;
        let driver = scope.spawn(move || peer.initiate(C1, C1));
        until(secs(10), "the responder is asked", || {
            let connections = lab.exec(&host(active), &["ss", "-Htn", "state", "established"])?;
            Ok(connections.contains(":8889"))
        })?;
        members[active].kill9()?;
        driver.join().map_err(|_| anyhow::anyhow!("driver"))?
    })?;
    ensure!(trio.active(G)? != active);
    trio.agree(G, 1)?;
    trio.finish().map(drop)
}

/// Both have a Child SA for each family; the second one is under way.
fn second_child(by: By, point: &str) -> Result<()> {
    at_failpoint_with(by, During::CreateChild, point, |c| c.split = true)
}

#[test]
fn the_peers_second_child_before_commit() -> Result<()> {
    second_child(By::Peer, "before-commit:CREATE_CHILD_SA:1")
}

#[test]
fn the_peers_second_child_after_commit() -> Result<()> {
    second_child(By::Peer, "after-commit:CREATE_CHILD_SA:1")
}

#[test]
fn own_second_child_after_commit() -> Result<()> {
    second_child(By::Member, "after-commit:CREATE_CHILD_SA:1")
}

/// An IKE SA without a Child SA (RFC 6023), which comes with an exchange of its own.
#[test]
fn the_first_child_of_a_childless_sa() -> Result<()> {
    let point = "after-commit:CREATE_CHILD_SA:1";
    at_failpoint_with(By::Peer, During::Establish, point, |c| {
        c.childless = "force";
    })
}

/// The member that demanded a cookie dies when it comes. Any other takes it: the peer is not asked for a second one.
#[test]
fn a_cookie_of_a_dead_member() -> Result<()> {
    let point = "request-arrived:IKE_SA_INIT:4";
    let (mut trio, doomed) = armed(point, |c| {
        c.limits = "cookie_threshold = 1".to_owned();
        // So that a stranger is one that may come.
        c.local = "%any".to_owned();
    })?;
    trio.up(G)?;
    trio.peer.terminate(C1)?;
    // One SA that stays half-open.
    let stranger = trio.lab.add_peer(9)?;
    let mut message = first_message(&trio.capture)?;
    message[..8].copy_from_slice(&Random(5).bytes(8));
    let own = V4.outer(9);
    let (member, begun) = (V4.outer(2), now());
    socket(&trio.lab, &stranger, &format!("{own}:0"))?.send_to(&message, (&*member, 500))?;
    trio.capture
        .wait_since(begun, &member, Exchange::SaInit, Kind::Response)?;
    std::thread::scope(|scope| -> Result<()> {
        let Trio { peer, members, .. } = &mut trio;
        let peer = &*peer;
        let driver = scope.spawn(move || peer.initiate(C1, C1));
        members[doomed].wait_for_failpoint()?;
        driver.join().map_err(|_| anyhow::anyhow!("driver"))?
    })?;
    ensure!(trio.active(G)? != doomed);
    trio.agree(G, 1)?;
    // Of the first SA, of the stranger's, the cookie, and of the second SA: each as often as it was asked for, which a busy machine makes more often.
    sent_just(&trio.capture, &member, Exchange::SaInit, Kind::Response, 4)?;
    let Trio {
        peer,
        members,
        capture,
        mut lab,
    } = trio;
    drop((peer, members));
    capture.check(&[own.parse()?])?.verdict()?;
    lab.passed();
    Ok(())
}

/// Waits until there is a Child SA that was not there before.
fn up_again(trio: &mut Trio, before: &Spis) -> Result<()> {
    let active = trio.active(G)?;
    until(secs(40), "it comes up", || {
        let now = Spis::of(&trio.members[active].sas()?);
        Ok(now.child.len() == 1 && now.ike.is_disjoint(&before.ike))
    })?;
    trio.agree(G, 1).map(drop)
}

/// The first packet of a host asks for the tunnel, and who heard it dies; nobody has to ask again.
#[test]
fn a_tunnel_that_a_packet_asked_for() -> Result<()> {
    let (mut trio, doomed) = armed("after-commit:IKE_SA_INIT:1", |c| {
        c.actions = "start_action = \"trap\"".to_owned();
    })?;
    let to = &inside(1)[0];
    // There is no answer: the tunnel is not there in time.
    let ping = ["ping", "-c", "1", "-W", "1", "-I", PROTECTED[0], to];
    trio.lab.exec("host", &ping).err().context("an answer")?;
    trio.members[doomed].wait_for_failpoint()?;
    up_again(&mut trio, &Spis::default())?;
    trio.finish().map(drop)
}

/// The first address of the peer is dead, and so is the member before it has found out.
#[test]
fn an_attempt_at_an_address_that_is_dead() -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], |c| {
        c.local = "192.0.2.99,192.0.2.1".to_owned();
        c.actions = "start_action = \"start\"".to_owned();
        c.retransmit = "timeout = \"1s\"\nbase = 1.0\ntries = 4".to_owned();
    })?;
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    up_again(&mut trio, &Spis::default())?;
    trio.finish().map(drop)
}

/// The peer is dead, and the member dies while it finds out. Its successor finds out as well, and begins anew (`dpd_action`).
#[test]
fn liveness_checks_that_nobody_answers() -> Result<()> {
    let change = |c: &mut Connection| {
        c.dpd = 2;
        c.actions = "start_action = \"start\"\ndpd_action = \"restart\"".to_owned();
        c.retransmit = "timeout = \"500ms\"\nbase = 1.0\ntries = 10".to_owned();
    };
    let mut trio = Trio::start(Pace::Patient, Esp::InUdp, &[Gateway::usual()], change)?;
    up_again(&mut trio, &Spis::default())?;
    let before = trio.agree(G, 1)?;
    trio.peer.process().kill9()?;
    let gateway = V4.outer(2);
    for _ in 0..2 {
        trio.capture
            .wait_for(&gateway, Exchange::Informational, Kind::Request)?;
    }
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    let successor = trio.active(G)?;
    until(secs(30), "the silent peer is given up", || {
        Ok(Spis::of(&trio.members[successor].sas()?).child.is_empty())
    })?;
    std::fs::remove_file(trio.lab.dir_of("peer1")?.join("vici.sock"))?;
    let mut connection = Connection::peer(1, V4);
    change(&mut connection);
    trio.peer = StrongSwan::start(&trio.lab, "peer1", Esp::InUdp, &[connection])?;
    up_again(&mut trio, &before)?;
    trio.finish().map(drop)
}

/// For the IKE SA and for ESP: ciphers with IVs of other kinds than those of the other drills, and integrity algorithms beside them.
const SUITES: [(&str, &str); 4] = [
    ("aes256-sha384-ecp384", "aes256-sha256"),
    ("aes128ctr-sha256-x25519", "aes128ccm16"),
    ("aes256ccm16-prfsha512-modp2048", "chacha20poly1305"),
    ("chacha20poly1305-prfsha256-x448", "aes192-aesxcbc"),
];

/// Two takeovers with each of them; the checker sees to it that no IV comes twice.
#[test]
fn ciphers_of_every_kind() -> Result<()> {
    for (ike, esp) in SUITES {
        let mut trio = Trio::start(Pace::Patient, Esp::Plain, &[Gateway::usual()], |c| {
            c.proposals = vec![ike.to_owned()];
            c.esp = vec![esp.to_owned()];
        })?;
        let (spis, established) = (trio.up(G)?, now());
        let flow = trio.traffic(V6, 4)?;
        for _ in 0..2 {
            flow.runs(50, secs(10))?;
            let active = trio.active(G)?;
            trio.members[active].kill9()?;
            flow.runs(50, secs(20))?;
            ensure!(trio.agree(G, 1)? == spis, "{ike}: other SAs");
            trio.start_again(active)?;
        }
        flow.stop().has_no_duplicate()?;
        trio.peer.rekey_ike(C1)?;
        // Two that meet would be in each other's way.
        trio.agree_on(G, 1, |now| now.ike.is_disjoint(&spis.ike))?;
        let active = trio.active(G)?;
        trio.members[active].rekey_child(C1)?;
        let after = trio.agree(G, 1)?;
        ensure!(after.ike.is_disjoint(&spis.ike) && after.child.is_disjoint(&spis.child));
        ensure!(trio.finish()?.authentications_after(established) == 0);
    }
    Ok(())
}
