//! Recorded ESP sent again by an attacker, before and after a kill.

use anyhow::ensure;
use evergate_cluster_tests::capture::packets;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::packet::Body;
use evergate_cluster_tests::raw::socket;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, millis, secs, until};

#[test]
fn recorded_packets_are_not_delivered_again() -> Result<()> {
    let mut duo = Duo::start(&Setup::new(V4))?;
    let stranger = duo.lab.add_peer(9)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let flow = duo.traffic(V4, 5)?;
    flow.runs(200, secs(10))?;
    attack(&duo, &stranger)?;
    flow.runs(100, secs(20))?;
    // What was received shortly before a kill may be received again; the bound
    // is the interval of the reports, and this waits for longer.
    duo.peer
        .process()
        .signal(nix::sys::signal::Signal::SIGSTOP)?;
    std::thread::sleep(secs(3));
    duo.member.kill9()?;
    duo.member.start_again(&[])?;
    attack(&duo, &stranger)?;
    duo.peer
        .process()
        .signal(nix::sys::signal::Signal::SIGCONT)?;
    flow.runs(100, secs(10))?;
    duo.agree(1)?;
    flow.stop().has_no_duplicate()?;
    let Duo {
        peer,
        member,
        capture,
        mut lab,
        ..
    } = duo;
    drop((peer, member));
    capture.check(&[V4.outer(9).parse()?])?.verdict()?;
    lab.passed();
    Ok(())
}

/// Sends every ESP packet of the peer again, from two addresses.
fn attack(duo: &Duo, stranger: &str) -> Result<()> {
    let from = [
        socket(&duo.lab, stranger, "0.0.0.0:0")?,
        socket(&duo.lab, "peer1", &format!("{}:0", V4.outer(1)))?,
    ];
    let peer: std::net::IpAddr = V4.outer(1).parse()?;
    let mut recorded = Vec::new();
    until(secs(20), "there is enough to replay", || {
        let all = packets(&duo.capture.so_far()?).into_iter();
        recorded = all
            .filter(|packet| packet.src == peer)
            .filter_map(|packet| match packet.body {
                Body::Esp { bytes, .. } => Some(bytes),
                _ => None,
            })
            .collect();
        ensure!(recorded.len() > 150, "only {} packets", recorded.len());
        Ok(true)
    })?;
    for bytes in &recorded {
        for socket in &from {
            socket.send_to(bytes, (V4.outer(2).as_str(), 4500))?;
        }
        std::thread::sleep(millis(1));
    }
    Ok(())
}
