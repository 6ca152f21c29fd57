//! Headers and errors between the networks: marks on the wire, and what routers say.

use anyhow::Context;
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::{Family::V4, PROTECTED, inside};
use evergate_cluster_tests::process::run;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs, until};
use std::net::UdpSocket;

/// The traffic classes of ESP that the gateway sends while the host behind it sends datagrams of class 0xba.
fn classes(setup: &Setup) -> Result<Vec<String>> {
    let duo = Duo::start(setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let host = duo.lab.on("host", || {
        let socket = UdpSocket::bind((PROTECTED[0], 0))?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4Tos, &0xba)?;
        Ok(socket)
    })?;
    let to = (inside(1)[0].clone(), 9);
    let mut seen = Vec::new();
    until(secs(30), "ESP of the gateway is on the wire", || {
        host.send_to(b"marked", (to.0.as_str(), to.1))?;
        let file = duo.capture.copy()?;
        let file = file.to_str().context("path")?;
        let filter = format!("esp && ip.src == {}", V4.outer(2));
        let command = [
            "tshark", "-n", "-r", file, "-Y", &filter, "-T", "fields", "-e",
        ];
        let text = run(&[&command[..], &["ip.dsfield"]].concat())?;
        seen = text.lines().map(str::to_owned).collect();
        Ok(!seen.is_empty())
    })?;
    duo.finish()?;
    Ok(seen)
}

#[test]
fn marks_are_copied_outwards_or_not() -> Result<()> {
    let mut setup = Setup::new(V4);
    let copied = classes(&setup)?;
    assert!(copied.iter().all(|c| c == "0xba"), "{copied:?}");
    setup.gateway.actions += "\ncopy_dscp = \"no\"\ncopy_ecn = false";
    let hidden = classes(&setup)?;
    assert!(hidden.iter().all(|c| c == "0x00"), "{hidden:?}");
    Ok(())
}

#[test]
fn the_gateway_shows_up_in_a_traceroute() -> Result<()> {
    let duo = Duo::start(&Setup::new(V4))?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    let from = inside(1)[0].clone();
    let socket = duo.lab.on("peer1", || {
        let socket = UdpSocket::bind((from.as_str(), 0))?;
        socket.set_ttl(1)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true)?;
        socket.connect((PROTECTED[0], 33434))?;
        Ok(socket)
    })?;
    until(
        secs(30),
        "the gateway says that it ends there",
        || match socket.send(b"how far") {
            Err(error) => Ok(error.raw_os_error() == Some(nix::errno::Errno::EHOSTUNREACH as i32)),
            Ok(_) => Ok(false),
        },
    )?;
    duo.finish()?;
    Ok(())
}
