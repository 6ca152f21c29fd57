//! A cluster goes on as another generation, and members of the former one have no part in it.

use super::{
    lab::{Lab, epoch, kill, same, take, within},
    membership::{announce_level, invite},
};
use crate::{
    ClusterKey, Generation, KeyRing, Replica,
    raft::{Estate, Heir, JoinError, Node, RaftConfig},
    store::Meta,
};
use evergate_ike::env::UnixMillis;
use evergate_state::State;
use std::time::Duration;

fn ring() -> KeyRing {
    KeyRing::from(ClusterKey::from_bytes([7; 32]))
}

/// Begins the next generation with what a member has. Returns it.
async fn recover(config: &RaftConfig, member: &Node) -> Generation {
    let estate = Estate::open(&config.storage, &ring()).await.unwrap();
    let generation = estate.generation().next(UnixMillis(1_000));
    let heir = Heir {
        generation,
        state: estate.read(State::heir),
        member: member.clone(),
    };
    estate.found(&heir).unwrap();
    generation
}

/// Waits until a member has failed, and says why.
async fn failure(replica: &Replica) -> String {
    let mut failed = replica.failed();
    let why = within(failed.wait_for(Option::is_some)).await.unwrap();
    why.as_deref().unwrap_or_default().to_owned()
}

fn is_superseded(joined: Result<Replica, JoinError>) -> bool {
    matches!(joined, Err(JoinError::Superseded { own: 1, later: 2 }))
}

#[tokio::test(flavor = "multi_thread")]
async fn former_members_serve_nothing_whenever_they_come_back() {
    let mut lab = Lab::new(3);
    let mut all = lab.start_all().await;
    take(&all[0], 1, 1).await;
    take(&all[1], 2, 1).await;
    same(&[&all[0], &all[1], &all[2]]).await;
    let (former, m2) = (all[0].cluster().id(), all.pop().unwrap());
    kill(all.remove(0)).await;
    kill(all.remove(0)).await;
    let config = lab.config(0);
    let generation = recover(&config, &lab.members[0]).await;
    assert_eq!(generation.number, 2);

    let m0 = within(Replica::join(config)).await.unwrap();
    assert_eq!(m0.cluster().generation(), generation);
    assert!(m0.cluster().is_alone() && m0.cluster().id() != former);
    assert_eq!((epoch(&m0, 1), epoch(&m0, 2)), (1, 1), "they go on");
    take(&m0, 1, 2).await;
    // One that ran all the time hears of it.
    let why = failure(&m2).await;
    assert!(
        why.contains("generation 2 of this cluster has begun"),
        "{why}"
    );
    // One that starts again asks before it does anything, and remembers.
    assert!(is_superseded(lab.start(1).await));
    kill(m0).await;
    assert!(is_superseded(lab.start(1).await));
    kill(m2).await;
    assert!(is_superseded(lab.start(2).await));
    // The generation is what it is over a restart.
    let m0 = lab.start(0).await.unwrap();
    assert_eq!(m0.cluster().generation(), generation);
    assert_eq!(epoch(&m0, 1), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_majority_that_was_unheard_ends_when_it_hears() {
    let mut lab = Lab::new(3);
    for replica in lab.start_all().await {
        kill(replica).await;
    }
    let config = lab.config(0);
    recover(&config, &lab.members[0]).await;
    // Nobody is there who could tell them.
    let (m1, m2) = (lab.config(1), lab.config(2));
    let (m1, m2) = tokio::join!(Replica::join(m1), Replica::join(m2));
    let (m1, m2) = (m1.unwrap(), m2.unwrap());
    take(&m1, 1, 1).await;
    let m0 = within(Replica::join(config)).await.unwrap();
    assert_eq!(epoch(&m0, 1), 0, "nothing of theirs came here");
    for former in [&m1, &m2] {
        let why = failure(former).await;
        assert!(why.contains("generation 2"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_join_a_later_generation() {
    let mut lab = Lab::new(3);
    for replica in lab.start_all().await {
        kill(replica).await;
    }
    let config = lab.config(0);
    let generation = recover(&config, &lab.members[0]).await;
    let m0 = within(Replica::join(config)).await.unwrap();
    take(&m0, 1, 1).await;
    announce_level(&m0, "m", 1).await;
    let mut others = Vec::new();
    for n in [1, 2] {
        lab.wipe(n);
        let token = invite(&m0, &lab, n, |_| {}).await;
        let joiner = lab.joiner(n, &[0], Some(token));
        let joined = within(Replica::join(joiner)).await.unwrap();
        assert_eq!(joined.cluster().generation(), generation);
        within(async {
            while joined
                .cluster()
                .members()
                .iter()
                .filter(|m| m.voter)
                .count()
                != n + 1
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        same(&[&m0, &joined]).await;
        // It says so again after a restart.
        kill(joined).await;
        let again = lab.start(n).await.unwrap();
        assert_eq!(again.cluster().generation(), generation);
        others.push(again);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_broke_off_is_begun_again() {
    let mut lab = Lab::new(3);
    let all = lab.start_all().await;
    take(&all[0], 1, 1).await;
    same(&[&all[0], &all[1], &all[2]]).await;
    for replica in all {
        kill(replica).await;
    }
    let config = lab.config(0);
    {
        // The first thing that is written.
        let mut opened = config.storage.open().unwrap();
        let meta = opened.store.meta();
        let superseded = Some(Generation::FIRST.next(UnixMillis(1)));
        opened.store.set_meta(Meta { superseded, ..meta }).unwrap();
    }
    let storage = config.storage.clone();
    assert!(is_superseded(Replica::join(config).await));
    {
        // And the second.
        let estate = Estate::open(&storage, &ring()).await.unwrap();
        assert_eq!(estate.superseded().map(|g| g.number), Some(2));
        let heir = Heir {
            generation: Generation::FIRST.next(UnixMillis(1)),
            state: estate.read(State::heir),
            member: lab.members[0].clone(),
        };
        estate.prepare(&heir).unwrap();
    }
    assert!(is_superseded(lab.start(0).await));
    let config = lab.config(0);
    recover(&config, &lab.members[0]).await;
    let m0 = within(Replica::join(config)).await.unwrap();
    assert_eq!(m0.cluster().generation().number, 2);
    assert_eq!(epoch(&m0, 1), 1);
}
