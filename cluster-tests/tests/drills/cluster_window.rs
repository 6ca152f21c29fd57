//! Several requests of the cluster are under way at once (RFC 7296 §2.3), and the active member dies.

use evergate_cluster_tests::cluster::{Gateway, Pace, Trio};
use evergate_cluster_tests::duo::C1;
use evergate_cluster_tests::lab::Family::{V4, V6};
use evergate_cluster_tests::sa::{Endpoint, IkeSa, Spis};
use evergate_cluster_tests::wire::{Exchange, Kind, Loss, lose};
use evergate_cluster_tests::{Result, secs, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const G: &str = "g1";
const SECOND: &str = "c1-v6";

/// What becomes of the answers before the kill.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    /// None comes.
    Lost,
    /// The first that the peer sends is lost, and another one comes.
    OneLost,
}

/// How many Child SAs there are that were not there before.
fn made_since(sas: &[IkeSa], before: &Spis) -> usize {
    let all = sas.iter().flat_map(|sa| &sa.children);
    all.filter(|c| !before.child.contains(&(c.spi_in, c.spi_out)))
        .count()
}

fn the_active_member_dies(answers: Answers) -> Result<()> {
    let mut trio = Trio::start_against_member(Pace::Patient, &[Gateway::usual()], |c| {
        c.window = 4;
        c.split = true;
        // Long enough for what is looked for: when a lost answer was asked for again it is over.
        c.retransmit = "timeout = \"5s\"".to_owned();
        // strongSwan's user space has none of these.
        c.esp = vec!["aes256gcm16-x25519-esn".into()];
    })?;
    for child in [C1, SECOND] {
        trio.peer.initiate(C1, child)?;
    }
    let before = trio.agree(G, 2)?;
    let flows = [trio.traffic(V4, 5)?, trio.traffic(V6, 5)?];
    flows[0].runs(20, secs(20))?;
    let loss = Loss {
        from: &V4.outer(1),
        exchange: Exchange::CreateChild,
        kind: Kind::Response,
        count: match answers {
            Answers::Lost => 1000,
            Answers::OneLost => 1,
        },
    };
    lose(&trio.lab, &[loss])?;
    let active = trio.active(G)?;
    let pid = Pid::from_raw(i32::try_from(trio.members[active].process()?.pid())?);
    std::thread::scope(|scope| -> Result<()> {
        let member = &trio.members[active];
        for child in [C1, SECOND] {
            // It ends when the member dies.
            scope.spawn(move || member.rekey_child(child));
        }
        // With one request at a time the peer would not have the second.
        until(secs(20), "two requests are under way", || {
            let at_peer = made_since(&trio.peer.sas()?, &before.mirrored());
            let here = made_since(&member.sas()?, &before);
            Ok(at_peer == 2 && (answers == Answers::Lost || here == 1))
        })?;
        Ok(kill(pid, Signal::SIGKILL)?)
    })?;
    trio.members[active].kill9()?;
    lose(&trio.lab, &[])?;
    let mut after = Spis::default();
    until(secs(60), "both Child SAs are others", || {
        after = trio.agree(G, 2)?;
        Ok(after.child.is_disjoint(&before.child))
    })?;
    assert_eq!(after.ike, before.ike, "nobody authenticated again");
    for flow in flows {
        flow.runs(50, secs(20))?;
        flow.stop().has_no_duplicate()?;
    }
    // Everything goes on.
    let active = trio.active(G)?;
    trio.members[active].rekey_child(C1)?;
    trio.peer.rekey_child(SECOND)?;
    until(secs(20), "both can be replaced", || {
        Ok(trio.agree(G, 2)?.child.is_disjoint(&after.child))
    })?;
    trio.finish()?;
    Ok(())
}

#[test]
fn the_active_member_dies_with_two_requests_unanswered() -> Result<()> {
    the_active_member_dies(Answers::Lost)
}

#[test]
fn the_active_member_dies_when_one_of_two_is_answered() -> Result<()> {
    the_active_member_dies(Answers::OneLost)
}
