//! A peer goes to another network at the moment when the member that serves it is killed: its successor follows, with the same IKE SA (strongSwan's user-space ESP
//! needs a new Child SA after a move).

use crate::mobike::{at, relocate};
use evergate_cluster_tests::capture::now;
use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::Endpoint;
use evergate_cluster_tests::strongswan::Esp;
use evergate_cluster_tests::{Result, secs};

const G: &str = "g1";

fn roams_while_members_are_killed(esp: Esp) -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, esp, &[Gateway::usual()], |c| {
        c.mobike = true;
        c.local = "%any".into();
    })?;
    let (spis, established) = (trio.up(G)?, now());
    // Otherwise strongSwan may prefer it.
    trio.lab.ip("peer1", "addr del 2001:db8::1/64 dev up0")?;
    let flow = trio.traffic(V4, 4)?;
    for (old, new) in [(1, 101), (101, 102), (102, 1)] {
        flow.runs(50, secs(10))?;
        let active = trio.active(G)?;
        trio.members[active].kill9()?;
        relocate(&trio.lab, "peer1", old, new)?;
        flow.runs(100, secs(30))?;
        assert_eq!(
            trio.agree(G, 1)?.ike,
            spis.ike,
            "another SA after a takeover"
        );
        let successor = trio.active(G)?;
        assert_ne!(successor, active);
        at(&trio.members[successor], &format!("192.0.2.{new}:4500"))?;
        trio.start_again(active)?;
    }
    flow.stop().has_no_duplicate()?;
    // Both ends can go on.
    let before = trio.agree(G, 1)?.child;
    trio.peer.rekey_child("c1")?;
    trio.agree_on(G, 1, |now| now.child.is_disjoint(&before))?;
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn strongswan_5_9_roams_while_members_are_killed() -> Result<()> {
    roams_while_members_are_killed(Esp::InUdp)
}

#[test]
fn strongswan_6_1_roams_while_members_are_killed() -> Result<()> {
    roams_while_members_are_killed(Esp::Plain)
}

/// Where the peer is in each family, and how a member names that.
const HOMES: [(&str, &str); 2] = [
    ("192.0.2.1/24", "192.0.2.1:4500"),
    ("2001:db8::1/64", "[2001:db8::1]:4500"),
];

/// The peer loses its address of one family at the moment when the member that serves it is killed, and goes on with the other family: to there so many
/// times, and back. Both ends must be for both addresses of the gateway: a peer is told only of those that the connection is for.
fn changes_family_while_members_are_killed(esp: Esp, moves: usize) -> Result<()> {
    let mut trio = Trio::start(Pace::Patient, esp, &[Gateway::usual()], |c| {
        c.mobike = true;
        c.local = "%any".into();
        c.remote = "192.0.2.2,2001:db8::2".into();
    })?;
    let (spis, established) = (trio.up(G)?, now());
    let flow = trio.traffic(V4, 4)?;
    for n in 0..moves {
        let ((lost, _), (gained, where_to)) = (HOMES[n % 2], HOMES[(n + 1) % 2]);
        flow.runs(50, secs(10))?;
        let active = trio.active(G)?;
        trio.members[active].kill9()?;
        if n > 0 {
            trio.lab
                .ip("peer1", &format!("addr add {gained} dev up0"))?;
        }
        trio.lab.ip("peer1", &format!("addr del {lost} dev up0"))?;
        flow.runs(100, secs(30))?;
        assert_eq!(
            trio.agree(G, 1)?.ike,
            spis.ike,
            "another SA after a takeover"
        );
        let successor = trio.active(G)?;
        assert_ne!(successor, active);
        at(&trio.members[successor], where_to)?;
        trio.start_again(active)?;
    }
    flow.stop().has_no_duplicate()?;
    assert_eq!(trio.finish()?.authentications_after(established), 0);
    Ok(())
}

#[test]
fn strongswan_5_9_changes_family_and_back_while_members_are_killed() -> Result<()> {
    changes_family_while_members_are_killed(Esp::InUdp, 2)
}

#[test]
fn strongswan_6_1_changes_family_while_the_member_is_killed() -> Result<()> {
    changes_family_while_members_are_killed(Esp::Plain, 1)
}
