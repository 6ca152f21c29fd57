//! Members come and go.

use super::lab::{Lab, kill, leader, same, take, within};
use crate::{
    Replica,
    raft::{JoinError, JoinToken, RaftConfig, forming::new_node, log::LogStore},
    replica::Failed,
};
use evergate_ike::env::UnixMillis;
use evergate_state::{Command, Enrolment, Level, Outcome, Refusal, Stage};
use openraft::storage::RaftLogStorage as _;
use std::time::Duration;

/// What an operator asks of a member.
async fn ask(replica: &Replica, command: Command) -> Outcome {
    within(replica.propose(vec![command]))
        .await
        .unwrap()
        .remove(0)
}

/// Lets a member come, and yields its token.
pub(super) async fn invite(
    replica: &Replica,
    lab: &Lab,
    n: usize,
    change: impl FnOnce(&mut Enrolment),
) -> JoinToken {
    let token = JoinToken::generate().unwrap();
    let mut enrolment = Enrolment {
        address: lab.members[n].address.clone(),
        learner: false,
        replaces: None,
        stage: Stage::Invited {
            digest: token.digest(),
            until: UnixMillis(u64::MAX),
        },
    };
    change(&mut enrolment);
    let member = format!("m{n}");
    assert_eq!(
        ask(replica, Command::Invite { member, enrolment }).await,
        Outcome::Applied
    );
    token
}

/// The names of voters and of learners.
fn members(replica: &Replica) -> (Vec<String>, Vec<String>) {
    let (voters, learners): (Vec<_>, Vec<_>) = replica
        .cluster()
        .members()
        .into_iter()
        .partition(|m| m.voter);
    let names = |list: Vec<crate::raft::MemberStatus>| {
        let mut names: Vec<String> = list.into_iter().map(|m| m.name).collect();
        names.sort();
        names
    };
    (names(voters), names(learners))
}

fn named(list: &[usize]) -> Vec<String> {
    list.iter().map(|n| format!("m{n}")).collect()
}

/// Waits until all of them see these voters and learners, and nobody is on the way.
async fn settled(replicas: &[&Replica], voters: &[usize], learners: &[usize]) {
    let wanted = (named(voters), named(learners));
    let done = |r: &&Replica| {
        members(r) == wanted
            && r.read(|s| s.enrolments().next().is_none())
            && !r.cluster().is_changing()
    };
    within(async {
        while !replicas.iter().all(done) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn dismiss(replica: &Replica, n: usize) {
    let member = format!("m{n}");
    let all = replica.cluster().members();
    let node = all.iter().find(|m| m.name == member).unwrap().id;
    ask(replica, Command::Dismiss { member, node }).await;
}

/// A cluster that its first member forms alone.
async fn first(lab: &mut Lab) -> Replica {
    let mut config = lab.config(0);
    config.members.truncate(1);
    let one = within(Replica::join(config)).await.unwrap();
    let (member, incarnation) = ("m".to_owned(), 1);
    ask(
        &one,
        Command::RegisterMember {
            member: member.clone(),
            incarnation,
        },
    )
    .await;
    announce_level(&one, &member, incarnation).await;
    one
}

/// Only who knows the latest format can invite others.
pub(super) async fn announce_level(replica: &Replica, member: &str, incarnation: u128) {
    let announced = Command::AnnounceLevel {
        member: member.to_owned(),
        incarnation,
        level: Level::LATEST,
    };
    assert_eq!(ask(replica, announced).await, Outcome::Applied);
}

async fn grow(lab: &mut Lab, replicas: &mut Vec<Replica>, n: usize) {
    let token = invite(&replicas[0], lab, n, |_| {}).await;
    // Any member is good enough to be asked.
    let asked = replicas.len() - 1;
    let config = lab.joiner(n, &[asked], Some(token));
    replicas.push(within(Replica::join(config)).await.unwrap());
    let all: Vec<&Replica> = replicas.iter().collect();
    let voters: Vec<usize> = (0..all.len()).collect();
    settled(&all, &voters, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_to_seven_and_shrinks_again() {
    let mut lab = Lab::new(7);
    let mut replicas = vec![first(&mut lab).await];
    take(&replicas[0], 1, 1).await;
    for n in 1..7 {
        grow(&mut lab, &mut replicas, n).await;
        take(&replicas[n], 1, u32::try_from(n).unwrap() + 1).await;
    }
    let all: Vec<&Replica> = replicas.iter().collect();
    same(&all).await;
    // Those that were there first go first, whoever of them leads.
    for n in 0..4 {
        dismiss(&replicas[n + 1], n).await;
        let rest: Vec<&Replica> = replicas[n + 1..].iter().collect();
        let voters: Vec<usize> = (n + 1..7).collect();
        settled(&rest, &voters, &[]).await;
        take(rest[0], 1, u32::try_from(n).unwrap() + 8).await;
        // It is told, and can do nothing more.
        let mut failed = replicas[n].failed();
        let why = within(failed.wait_for(Option::is_some))
            .await
            .unwrap()
            .clone();
        assert!(why.unwrap().contains("was removed from the cluster"));
    }
    same(&replicas[4..].iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_lost_its_disk_forms_no_second_cluster() {
    let mut lab = Lab::new(3);
    let mut replicas = vec![first(&mut lab).await];
    for n in 1..3 {
        grow(&mut lab, &mut replicas, n).await;
    }
    kill(replicas.remove(0)).await;
    lab.wipe(0);
    let mut config = lab.config(0);
    config.members.truncate(1);
    let error = within(Replica::join(config)).await.unwrap_err();
    assert!(matches!(error, JoinError::Config(_)), "{error}");
    assert!(error.to_string().contains("it has lost what it had"));
    // As one that joins it comes back, and needs no token.
    let config = lab.joiner(0, &[1, 2], None);
    let back = within(Replica::join(config)).await.unwrap();
    settled(&[&replicas[0], &replicas[1], &back], &[0, 1, 2], &[]).await;
}

/// One that came after its configuration was written leads. It hears of that one from those that it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_hears_of_a_leader_that_it_is_not_configured_with() {
    let mut lab = Lab::patient(4);
    let mut replicas = vec![first(&mut lab).await];
    for n in 1..4 {
        grow(&mut lab, &mut replicas, n).await;
    }
    kill(replicas.remove(1)).await;
    lab.wipe(1);
    within(replicas[0].cluster().transfer_leader("m3"))
        .await
        .unwrap();
    let mut config = lab.config(1);
    config.members.truncate(2);
    let one = within(Replica::join(config)).await.unwrap();
    let [zero, two, three] = <[Replica; 3]>::try_from(replicas).unwrap();
    settled(&[&zero, &one, &two, &three], &[0, 1, 2, 3], &[]).await;
    take(&one, 1, 1).await;
}

/// Makes what a member leaves that ended before its first entry: it has a node, which has voted for this one.
async fn has_voted(config: &RaftConfig, voted: &Replica) {
    let opened = LogStore::open(&config.storage, Failed::default()).unwrap();
    let mut log = opened.log;
    log.name(new_node().unwrap()).await.unwrap();
    let vote = openraft::Vote::new_committed(1, voted.cluster().id());
    log.save_vote(&vote).await.unwrap();
    opened.end.close();
}

/// It has a vote, so it stays the node that it was. But it has no entry that says who the others are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_died_right_after_it_was_let_in_asks_again_who_there_is() {
    let mut lab = Lab::new(2);
    let one = first(&mut lab).await;
    let token = invite(&one, &lab, 1, |_| {}).await;
    let config = lab.joiner(1, &[0], Some(token));
    has_voted(&config, &one).await;
    let two = within(Replica::join(config)).await.unwrap();
    settled(&[&one, &two], &[0, 1], &[]).await;
    take(&two, 1, 1).await;
}

/// The same of one that came back with an empty disk, and died before it was taken in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_and_died_after_its_vote_is_taken_in() {
    let mut lab = Lab::new(3);
    let mut replicas = lab.start_all().await;
    take(&replicas[0], 1, 1).await;
    kill(replicas.remove(2)).await;
    lab.wipe(2);
    let config = lab.config(2);
    has_voted(&config, &replicas[0]).await;
    let back = within(Replica::join(config)).await.unwrap();
    settled(&[&replicas[0], &replicas[1], &back], &[0, 1, 2], &[]).await;
    take(&back, 1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_for_one_member_and_once() {
    let mut lab = Lab::new(4);
    let one = first(&mut lab).await;
    let refused = |e: JoinError, why: &str| {
        assert!(matches!(e, JoinError::Refused(_)), "{e}");
        assert!(e.to_string().contains(why), "{e}");
    };
    // None at all, and one that was never made.
    let config = lab.joiner(1, &[0], None);
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "needs a token",
    );
    let config = lab.joiner(1, &[0], Some(JoinToken::generate().unwrap()));
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "there is no token for member m1",
    );
    // Another member's.
    let token = invite(&one, &lab, 1, |_| {}).await;
    let config = lab.joiner(2, &[0], Some(token.clone()));
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "there is no token for member m2",
    );
    invite(&one, &lab, 2, |_| {}).await;
    let config = lab.joiner(2, &[0], Some(token.clone()));
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "is another one",
    );
    // One that expired.
    let late = invite(&one, &lab, 3, |e| {
        if let Stage::Invited { until, .. } = &mut e.stage {
            *until = UnixMillis(1);
        }
    })
    .await;
    let config = lab.joiner(3, &[0], Some(late));
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "has expired",
    );
    assert_eq!(one.cluster().members().len(), 1);

    let config = lab.joiner(1, &[0], Some(token.clone()));
    let two = within(Replica::join(config)).await.unwrap();
    settled_but_for_tokens(&[&one, &two]).await;
    // Used up: also for the member itself, once it was removed.
    dismiss(&one, 1).await;
    within(two.failed().wait_for(Option::is_some))
        .await
        .unwrap();
    // It fails before its log is closed, and could not be started yet.
    within(two.close()).await;
    drop(two);
    let again = lab.start(1).await;
    let e = match again {
        Err(e) => e,
        Ok(back) => {
            // What it has says that it is a member; the others say what it is.
            let mut failed = back.failed();
            let why = within(failed.wait_for(Option::is_some))
                .await
                .unwrap()
                .clone();
            JoinError::Refused(why.unwrap().to_string())
        }
    };
    assert!(e.to_string().contains("removed"), "{e}");
    lab.wipe(1);
    let config = lab.joiner(1, &[0], Some(token));
    refused(
        within(Replica::join(config)).await.unwrap_err(),
        "there is no token",
    );
    // A list of members in a file is no token either.
    lab.wipe(1);
    let listed = within(lab.start(1)).await.unwrap_err();
    refused(listed, "needs a token");
}

async fn settled_but_for_tokens(replicas: &[&Replica]) {
    let voters = named(&[0, 1]);
    within(async {
        while !replicas
            .iter()
            .all(|r| members(r).0 == voters && r.read(|s| s.enrolment("m1").is_none()))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_are_counted() {
    let mut lab = Lab::new(2);
    let one = first(&mut lab).await;
    let right = invite(&one, &lab, 1, |_| {}).await;
    let mut last = String::new();
    for _ in 0..12 {
        let config = lab.joiner(1, &[0], Some(JoinToken::generate().unwrap()));
        last = within(Replica::join(config)).await.unwrap_err().to_string();
    }
    assert!(
        last.contains("too many tokens of \"m1\" were wrong"),
        "{last}"
    );
    let config = lab.joiner(1, &[0], Some(right));
    let refused = within(Replica::join(config)).await.unwrap_err().to_string();
    assert!(refused.contains("too many"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_learns_until_it_is_promoted_and_outdated_lists_do_no_harm() {
    let mut lab = Lab::new(3);
    let mut replicas = vec![first(&mut lab).await];
    grow(&mut lab, &mut replicas, 1).await;
    let token = invite(&replicas[1], &lab, 2, |e| e.learner = true).await;
    let config = lab.joiner(2, &[0, 1], Some(token));
    replicas.push(within(Replica::join(config)).await.unwrap());
    let all: Vec<&Replica> = replicas.iter().collect();
    settled(&all, &[0, 1], &[2]).await;
    take(all[2], 1, 1).await;
    // A second change while there is one.
    let node = all[2].cluster().id();
    let enrolment = Enrolment {
        address: lab.members[2].address.clone(),
        learner: false,
        replaces: None,
        stage: Stage::Admitted { node },
    };
    let promote = |member: &str| Command::Enrol {
        member: member.into(),
        enrolment: enrolment.clone(),
    };
    assert_eq!(ask(all[0], promote("m2")).await, Outcome::Applied);
    let second = ask(all[0], promote("m1")).await;
    assert!(matches!(
        second,
        Outcome::Refused(Refusal::ChangeUnderWay(_)) | Outcome::Applied
    ));
    within(async {
        while members(all[0]).0 != named(&[0, 1, 2]) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // All restart, the first one with the list of one that it had, the others with what they joined with.
    for replica in replicas {
        within(replica.close()).await;
    }
    let mut configs = vec![lab.config(0)];
    configs[0].members.truncate(1);
    for n in [1, 2] {
        configs.push(lab.joiner(n, &[0], None));
    }
    let starts = configs.into_iter().map(Replica::join);
    let started = within(futures::future::join_all(starts)).await;
    let replicas: Vec<Replica> = started.into_iter().map(Result::unwrap).collect();
    let all: Vec<&Replica> = replicas.iter().collect();
    leader(&all).await;
    take(all[0], 1, 2).await;
    same(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_takes_the_place_of_another_that_leads_or_is_dead() {
    let mut lab = Lab::patient(5);
    let mut replicas = vec![first(&mut lab).await];
    grow(&mut lab, &mut replicas, 1).await;
    grow(&mut lab, &mut replicas, 2).await;
    let all: Vec<&Replica> = replicas.iter().collect();
    assert_eq!(leader(&all).await, 0);
    let token = invite(all[1], &lab, 3, |e| e.replaces = Some("m0".into())).await;
    let config = lab.joiner(3, &[1], Some(token));
    let three = within(Replica::join(config)).await.unwrap();
    settled(&[all[1], all[2], &three], &[1, 2, 3], &[]).await;
    within(all[0].failed().wait_for(Option::is_some))
        .await
        .unwrap();
    take(&three, 1, 1).await;

    let [_, one, two] = <[Replica; 3]>::try_from(replicas).unwrap();
    kill(two).await;
    let token = invite(&one, &lab, 4, |e| e.replaces = Some("m2".into())).await;
    let config = lab.joiner(4, &[3], Some(token));
    let four = within(Replica::join(config)).await.unwrap();
    settled(&[&one, &three, &four], &[1, 3, 4], &[]).await;
    take(&four, 1, 2).await;
    same(&[&one, &three, &four]).await;
}
