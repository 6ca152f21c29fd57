//! The member's ESP is the kernel's, and so is that of strongSwan: these drills run in `cluster-tests/guest`.

use crate::establish::both_families;
use crate::mobike::{at, relocate};
use evergate_cluster_tests::connection::{Connection, Plane};
use evergate_cluster_tests::duo::{C1, Duo, Setup};
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::lab::{PROTECTED, inside};
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs, until};
use std::net::UdpSocket;

/// More datagrams than a Child SA may send without asking for more numbers.
const MANY: usize = 34_000;

pub(crate) fn in_kernel(c: &mut Connection) {
    c.plane = Plane::Kernel;
}

/// Rekeys by both ends, then the member is killed, and the kernel goes on without it, and with its successor. In the end more numbers are needed than there were.
#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn the_kernel_goes_on_while_the_member_does_not() -> Result<()> {
    let mut setup = Setup::new(V6).both(in_kernel);
    setup.esp = Esp::Kernel;
    setup.gateway.actions = "start_action = \"trap\"".into();
    let mut duo = Duo::start(&setup)?;
    // The first packet asks for the tunnel.
    let to = &inside(1)[0];
    let ping = ["ping", "-c", "1", "-W", "1", "-I", PROTECTED[0], to];
    until(secs(10), "an answer", || {
        duo.lab.exec("host", &ping).map(|_| true)
    })?;
    let first = duo.agree(1)?;
    both_families(&duo)?;
    duo.member.rekey_child(C1)?;
    let second = duo.agree(1)?;
    assert!(second.child.is_disjoint(&first.child));
    duo.peer.rekey_child(C1)?;
    let spis = duo.agree_on(1, |now| now.child.is_disjoint(&second.child))?;
    let flow = duo.traffic(V4, 50)?;
    flow.runs(20, secs(10))?;
    duo.member.kill9()?;
    flow.runs(20, secs(10))?;
    duo.member.start_again(&[])?;
    assert_eq!(duo.agree(1)?, spis, "other SAs after a restart");
    flow.runs(20, secs(10))?;
    let report = flow.stop();
    report.has_no_duplicate()?;
    let socket = duo
        .lab
        .on("host", || Ok(UdpSocket::bind((PROTECTED[0], 0))?))?;
    for _ in 0..MANY {
        // What the queues have no room for counts for nothing.
        let _ = socket.send_to(&[0], (to.as_str(), 9));
    }
    until(secs(10), "the kernel knows of more numbers", || {
        let states = duo.lab.exec("gw", &["ip", "-s", "xfrm", "state"])?;
        Ok(states.contains("aead") && !states.contains("hard 65536(packets)"))
    })?;
    both_families(&duo)?;
    duo.member.terminate(C1)?;
    until(secs(10), "it is closed", || {
        Ok(duo.spis()? == Spis::default())
    })?;
    until(secs(10), "the kernel has none of it", || {
        let left = duo.lab.exec("gw", &["ip", "xfrm", "state"])?;
        anyhow::ensure!(!left.contains("aead"), "{left}");
        Ok(true)
    })?;
    let found = duo.finish()?;
    assert!(found.esp_plain > 0);
    Ok(())
}

#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn nothing_is_left_of_a_tunnel_in_udp() -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| {
        in_kernel(c);
        c.encap = true;
        c.esp = vec!["aes128-sha256".into()];
    });
    setup.esp = Esp::Kernel;
    let mut duo = Duo::start(&setup)?;
    duo.peer.initiate(C1, C1)?;
    duo.agree(1)?;
    both_families(&duo)?;
    // After an orderly stop nothing is left but what keeps protected prefixes closed.
    duo.member.stop()?;
    let left = duo.lab.exec(
        "gw",
        &[
            "sh",
            "-c",
            "ip xfrm state; ip xfrm policy; ip link show evergate0 2>&1 || true",
        ],
    )?;
    assert!(
        !left.contains("esp") && left.contains("does not exist"),
        "{left}"
    );
    let routes = duo
        .lab
        .exec("gw", &["ip", "route", "show", "table", "220"])?;
    assert!(routes.contains("blackhole"), "{routes}");
    let found = duo.finish()?;
    assert!(found.esp_in_udp > 0);
    Ok(())
}

/// Whether the gateway's kernel has two states, and both are with this address.
fn states_are_at(duo: &Duo, address: &str) -> Result<bool> {
    let states = duo.lab.exec("gw", &["ip", "xfrm", "state"])?;
    // Without keys it is what the kernel makes for a packet that came when there was none.
    let keyed = states.split("\nsrc ").filter(|s| s.contains("aead"));
    let ends: Vec<&str> = keyed.filter_map(|s| s.lines().next()).collect();
    let there = ends.iter().filter(|e| e.contains(address)).count();
    anyhow::ensure!(ends.len() == 2 && there == 2, "{states}");
    Ok(true)
}

/// The peer goes to another address under traffic (RFC 4555). Its kernel has the same states there, and so has ours: the numbers go on.
#[test]
#[ignore = "needs a kernel with ESP: runs in cluster-tests/guest"]
fn states_follow_a_peer_that_moves() -> Result<()> {
    let mut setup = Setup::new(V4).both(|c| {
        in_kernel(c);
        c.mobike = true;
    });
    setup.esp = Esp::Kernel;
    setup.peer.local = "%any".into();
    (setup.gateway.local, setup.gateway.remote) = ("%any".into(), "%any".into());
    let duo = Duo::start(&setup)?;
    // Otherwise it may prefer IPv6.
    duo.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    duo.peer.initiate(C1, C1)?;
    let spis = duo.agree(1)?;
    let flow = duo.traffic(V4, 50)?;
    flow.runs(20, secs(10))?;
    for (old, new) in [(1, 101), (101, 102)] {
        relocate(&duo.lab, "peer1", old, new)?;
        at(&duo.member, &format!("192.0.2.{new}:4500"))?;
        flow.runs(20, secs(20))?;
        until(secs(10), "both states are at the new address", || {
            states_are_at(&duo, &format!("192.0.2.{new}"))
        })?;
    }
    assert_eq!(duo.agree(1)?, spis, "others than before");
    flow.stop().has_no_duplicate()?;
    duo.finish()?;
    Ok(())
}
