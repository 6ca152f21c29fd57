//! What must not be served: the right notify, one clear line in the log, and
//! others keep being served.

use crate::addresses::{Crowd, flow_of, pools, roaming};
use anyhow::ensure;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::lab::Family::V4;
use evergate_cluster_tests::sa::{Endpoint, Spis};
use evergate_cluster_tests::wire::{Exchange, Kind, different, sent};
use evergate_cluster_tests::{Result, millis, secs, until};

/// What the peer does wrong, what it is told, and whether its IKE SA stays.
struct Refusal<'a> {
    /// Applied to the peer's view.
    wrong: &'a dyn Fn(&mut Connection),
    /// The notify in strongSwan's log.
    notify: &'a str,
    /// The cause in the member's log.
    cause: &'a str,
    /// An IKE SA without a Child SA is left.
    ike_stays: bool,
}

impl Refusal<'_> {
    /// Peer 3 is refused while peer 1 is served.
    fn run(&self) -> Result<()> {
        let good = Connection::peer(1, V4);
        let three = Connection::peer(3, V4);
        let mut bad = three.clone();
        (self.wrong)(&mut bad);
        let crowd = Crowd::start(
            &[(good.clone(), good.mirrored()), (bad, three.mirrored())],
            &[],
        )?;
        crowd.peers[0].initiate("c1", "c1")?;
        let flow = flow_of(&crowd.lab, 1, V4)?;
        flow.runs(20, secs(20))?;
        let before = crowd.member.log()?.len();
        assert!(
            crowd.peers[1].initiate_within("c3", 10).is_err(),
            "was not refused"
        );
        told(&crowd, before, self.notify, self.cause)?;
        let mine = crowd.member.sas()?;
        let third = mine
            .iter()
            .filter(|sa| sa.name == "c3" && sa.established)
            .count();
        assert_eq!(third, usize::from(self.ike_stays), "{mine:?}");
        let children = Spis::of(&mine).child.len();
        assert_eq!(children, 1, "only that of peer 1: {mine:?}");
        flow.runs(50, secs(20))?;
        flow.stop().is_lossless()?;
        crowd.finish()
    }
}

/// Waits until peer 3 was told `notify`, and the member's log says why behind this place. Then it says nothing more.
pub(crate) fn told(crowd: &Crowd, before: usize, notify: &str, cause: &str) -> Result<()> {
    until(secs(20), "the refusal is in both logs", || {
        let told = crowd.peers[1].logged(notify)? > 0;
        ensure!(told, "the peer was not told {notify}");
        let log = crowd.member.log()?;
        ensure!(log[before..].contains(cause), "the log lacks {cause}");
        Ok(true)
    })?;
    std::thread::sleep(millis(500));
    one_line(crowd, before, cause)
}

/// Exactly one line warns of peer 3, and it says what is wrong.
fn one_line(crowd: &Crowd, before: usize, cause: &str) -> Result<()> {
    let log = crowd.member.log()?;
    let about = |line: &&str| line.contains(" WARN ") && line.contains("peer=192.0.2.3:");
    let lines: Vec<&str> = log[before..].lines().filter(about).collect();
    // Where the machine stalls, a peer repeats its first message, and of that nothing is known if it was refused: each is refused for itself.
    let asked = sent(
        &crowd.capture,
        &V4.outer(3),
        Exchange::SaInit,
        Kind::Request,
    )?;
    let again = asked.len() - different(&asked);
    ensure!(
        (1..=1 + again).contains(&lines.len()) && lines.iter().all(|line| line.contains(cause)),
        "{cause}: {} lines, and {again} repetitions: {lines:#?}",
        lines.len()
    );
    Ok(())
}

#[test]
fn a_wrong_key() -> Result<()> {
    Refusal {
        wrong: &|c| c.secret = "not the right one".into(),
        notify: "AUTHENTICATION_FAILED",
        cause: "peer3.test did not authenticate",
        ike_stays: false,
    }
    .run()
}

#[test]
fn a_wrong_identity() -> Result<()> {
    Refusal {
        wrong: &|c| c.local_id = "stranger.test".into(),
        notify: "AUTHENTICATION_FAILED",
        cause: "stranger.test",
        ike_stays: false,
    }
    .run()
}

#[test]
fn no_common_ike_proposal() -> Result<()> {
    Refusal {
        wrong: &|c| c.proposals = vec!["aes128gcm16-prfsha256-ecp256".into()],
        notify: "NO_PROPOSAL_CHOSEN",
        cause: "no acceptable IKE proposal",
        ike_stays: false,
    }
    .run()
}

#[test]
fn no_common_esp_proposal() -> Result<()> {
    Refusal {
        wrong: &|c| c.esp = vec!["chacha20poly1305".into()],
        notify: "NO_PROPOSAL_CHOSEN",
        cause: "no acceptable ESP proposal",
        ike_stays: true,
    }
    .run()
}

#[test]
fn no_acceptable_selectors() -> Result<()> {
    Refusal {
        wrong: &|c| c.remote_ts = vec!["10.66.0.0/16".into()],
        notify: "TS_UNACCEPTABLE",
        cause: "no acceptable traffic selectors",
        ike_stays: true,
    }
    .run()
}

#[test]
fn an_exhausted_pool() -> Result<()> {
    let any = ["0.0.0.0", "::"];
    let connections = [roaming(1, &any), roaming(3, &any)];
    let crowd = Crowd::start(&connections, &pools("10.99.0.1/32", "fd00:99::1/128"))?;
    crowd.peers[0].initiate("c1", "c1")?;
    let before = crowd.member.log()?.len();
    assert!(
        crowd.peers[1].initiate_within("c3", 10).is_err(),
        "was not refused"
    );
    let cause = "no virtual address for peer3.test";
    told(&crowd, before, "INTERNAL_ADDRESS_FAILURE", cause)?;
    // Once the first is gone, its address is free.
    crowd.peers[0].terminate("c1")?;
    crowd.peers[1].terminate("c3").ok();
    until(secs(60), "the address is free again", || {
        Ok(crowd.peers[1].initiate_within("c3", 5).is_ok())
    })?;
    crowd.finish()
}

#[test]
fn what_the_peer_refuses_is_told_to_the_operator() -> Result<()> {
    let three = Connection::peer(3, V4);
    let mut theirs = three.clone();
    theirs.secret = "not the right one".into();
    let crowd = Crowd::start(&[(theirs, three.mirrored())], &[])?;
    let refused = crowd.member.initiate("c3", "c3");
    let text = format!(
        "{:#}",
        refused.err().unwrap_or_else(|| anyhow::anyhow!("accepted"))
    );
    assert!(text.contains("AUTHENTICATION_FAILED"), "{text}");
    assert!(Spis::of(&crowd.member.sas()?).ike.is_empty());
    crowd.finish()
}
