//! Transport mode of a virtual gateway: it is with the gateway's address, and so with whichever member has that.

use anyhow::ensure;
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::member::Member;
use evergate_cluster_tests::pings::Pings;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

/// A cipher that sends no IV (RFC 8750).
const IMPLICIT: &str = "aes128gcm16iiv";

/// Asks for transport mode and [`IMPLICIT`], and would do without either.
fn what_not_every_plane_can(connection: &mut Connection) {
    connection.host_to_host();
    connection.esp = vec![IMPLICIT.into(), "aes128gcm16".into()];
}

#[test]
fn the_address_takes_its_sa_along() -> Result<()> {
    let mut trio: Trio<Member> =
        Trio::start_against_member(Pace::Patient, &[Gateway::usual()], what_not_every_plane_can)?;
    let (spis, established) = (trio.up(G)?, now());
    let sas = trio.peer.ctl(&["sas", "--json"])?;
    ensure!(
        sas.contains("\"mode\": \"transport\"") && sas.contains(IMPLICIT),
        "{sas}"
    );
    let pings = Pings::start(&trio.lab, "peer1", &V4.outer(2), "0.01")?;
    pings.run(50, secs(10))?;
    let active = trio.active(G)?;
    trio.members[active].kill9()?;
    pings.run(100, secs(20))?;
    ensure!(trio.agree(G, 1)? == spis, "other SAs after a takeover");
    trio.start_again(active)?;
    let active = trio.active(G)?;
    trio.members[active].ctl(&["drain", &format!("m{}", active + 1)])?;
    pings.run(100, secs(20))?;
    ensure!(trio.active(G)? != active, "it was drained");
    ensure!(trio.agree(G, 1)? == spis, "other SAs after a drain");
    let active = trio.active(G)?;
    trio.members[active].rekey_child(C1)?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&spis.child))?;
    pings.run(50, secs(10))?;
    let sas = trio.peer.ctl(&["sas", "--json"])?;
    ensure!(sas.contains("\"mode\": \"transport\""), "{sas}");
    drop(pings);
    let found = trio.finish()?;
    ensure!(
        found.authentications_after(established) == 0,
        "authenticated again"
    );
    Ok(())
}
