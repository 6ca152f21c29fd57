//! Connections that the member starts: on traffic, again when they ended, at another address, and by name.

use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family::V4, PROTECTED, inside};
use evergate_cluster_tests::member::HOSTS;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::StrongSwan;
use evergate_cluster_tests::{Result, secs, until};

fn up(duo: &Duo) -> Result<Spis> {
    until(secs(90), "it comes up", || {
        Ok(!duo.spis()?.child.is_empty())
    })?;
    duo.agree(1)
}

/// Sends so many echo requests, and more if none of them is answered.
fn pings(duo: &Duo, tries: &str) -> Result<()> {
    let to = &inside(1)[0];
    let command = [
        "ping",
        "-c",
        tries,
        "-i",
        "0.2",
        "-W",
        "1",
        "-I",
        PROTECTED[0],
        to,
    ];
    until(secs(30), "an answer", || {
        duo.lab.exec("host", &command).map(|_| true)
    })
}

#[test]
fn the_first_packet_brings_the_tunnel_up() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.actions = "start_action = \"trap\"".into();
    let mut duo = Duo::start(&setup)?;
    std::thread::sleep(secs(2));
    assert_eq!(duo.spis()?, Spis::default(), "nobody asked for it");
    pings(&duo, "20")?;
    let first = up(&duo)?;
    // It waits for traffic again after the peer has closed it, and after a restart.
    duo.peer.terminate(C1)?;
    until(secs(20), "it is closed", || {
        Ok(duo.spis()? == Spis::default())
    })?;
    std::thread::sleep(secs(2));
    assert_eq!(duo.spis()?, Spis::default());
    duo.member.kill9()?;
    duo.member.start_again(&[])?;
    pings(&duo, "20")?;
    let second = up(&duo)?;
    assert!(second.ike.is_disjoint(&first.ike));
    // What was dropped meanwhile never left in clear: there is no way for it.
    duo.finish()?;
    Ok(())
}

#[test]
fn it_is_started_again_when_its_peer_died_and_came_back() -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| c.dpd = 1);
    setup.gateway.actions = "start_action = \"start\"\ndpd_action = \"restart\"".into();
    setup.gateway.retransmit = "timeout = \"300ms\"\nbase = 1.5\ntries = 4".into();
    let mut duo = Duo::start(&setup)?;
    let first = up(&duo)?;
    duo.peer.process().kill9()?;
    std::fs::remove_file(duo.lab.dir_of("peer1")?.join("vici.sock"))?;
    let Duo {
        peer,
        member,
        capture,
        lab,
        connection,
    } = duo;
    drop(peer);
    until(secs(60), "the silent peer is given up", || {
        Ok(Spis::of(&member.sas()?) == Spis::default())
    })?;
    let peer = StrongSwan::start(&lab, "peer1", setup.esp, std::slice::from_ref(&setup.peer))?;
    let duo = Duo {
        peer,
        member,
        capture,
        lab,
        connection,
    };
    assert!(up(&duo)?.ike.is_disjoint(&first.ike));
    pings(&duo, "3")?;
    duo.finish()?;
    Ok(())
}

#[test]
fn what_the_peer_closed_rests_if_the_configuration_says_so() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.actions = "start_action = \"start\"\nclose_action = \"none\"".into();
    let duo = Duo::start(&setup)?;
    up(&duo)?;
    duo.peer.terminate(C1)?;
    until(secs(20), "it is closed", || {
        Ok(duo.spis()? == Spis::default())
    })?;
    std::thread::sleep(secs(3));
    assert_eq!(duo.spis()?, Spis::default(), "it was started again");
    duo.finish()?;
    Ok(())
}

#[test]
fn the_second_address_is_used_when_the_first_is_dead() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.remote = "192.0.2.99,192.0.2.1".into();
    setup.gateway.actions = "start_action = \"start\"".into();
    setup.gateway.retransmit = "timeout = \"300ms\"".into();
    let duo = Duo::start(&setup)?;
    up(&duo)?;
    assert!(duo.member.log()?.contains("trying the peer at 192.0.2.1"));
    duo.finish()?;
    Ok(())
}

#[test]
fn a_name_is_looked_up() -> Result<()> {
    let mut setup = Setup::new(V4);
    setup.gateway.remote = "branch.evergate.test".into();
    setup.gateway.actions = "start_action = \"start\"".into();
    let hosts = tempfile::NamedTempFile::new()?;
    std::fs::write(
        hosts.path(),
        "127.0.0.1 localhost\n192.0.2.99 branch.evergate.test\n192.0.2.1 branch.evergate.test\n",
    )?;
    setup.gateway.retransmit = "timeout = \"300ms\"".into();
    let path = hosts.path().to_str().unwrap_or_default();
    let duo = Duo::start_with(&setup, &[(HOSTS, path)])?;
    up(&duo)?;
    pings(&duo, "3")?;
    duo.finish()?;
    Ok(())
}
