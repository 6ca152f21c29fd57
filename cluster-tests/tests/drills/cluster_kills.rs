//! The active member is killed again and again under the traffic of a hundred peers, while others are just about to connect. `cluster-tests/measure-kills` does the same with a
//! thousand, and measures; here it is about what must hold however slow the machine is.

use anyhow::ensure;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::cluster::{MEMBERS, Pace};
use evergate_cluster_tests::crowd::Crowd;

const SAS: u64 = 100;

#[test]
fn no_sa_is_lost_and_no_iv_comes_twice_in_three_kills_with_traffic_on_a_hundred_sas() -> Result<()>
{
    let mut crowd = Crowd::start(Pace::Patient, |_| {})?;
    let arguments = ["--close", "10", "--half-open", "6"];
    let mut bench = crowd.traffic(usize::try_from(SAS)?, &arguments)?;
    for leader in [false, true, false] {
        let dead = crowd.place(leader)?;
        let pid = crowd.pid(dead)?;
        let seen = bench.ask(&format!("kill {pid}"))?;
        crowd.members[dead].kill9()?;
        ensure!(seen["sas"] == SAS, "{seen}");
        for nothing in [
            "missing",
            "deleted",
            "numbers_twice",
            "ike_ivs_twice",
            "ivs_unchecked",
            "forged",
        ] {
            ensure!(seen[nothing] == 0, "{nothing}: {seen}");
        }
        let half_open = &seen["half_open"];
        let of = |key: &str| half_open[key].as_u64().unwrap_or(0);
        ensure!(
            of("at_kill") == of("completed") + of("failed"),
            "nobody decided: {seen}"
        );
        crowd.start_again(dead)?;
    }
    let last = bench.ask("quit")?;
    ensure!(
        last["numbers_twice"] == 0 && last["ike_ivs_twice"] == 0 && last["deleted"] == 0,
        "{last}"
    );
    for n in 0..MEMBERS {
        let (ike, children) = crowd.sas(n)?;
        ensure!(
            ike >= SAS && children >= SAS,
            "m{} knows {ike} IKE SAs and {children} Child SAs",
            n + 1
        );
    }
    crowd.lab.passed();
    Ok(())
}
