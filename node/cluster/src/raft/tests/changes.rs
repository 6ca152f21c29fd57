//! Who may be a member, who leads, and a cluster of one.

use super::lab::{Lab, credentials, epoch, leader, same, snapshot, take, within};
use crate::{
    ClusterKey, Config, Replica, pki,
    raft::{RaftConfig, transport::Peers},
    store::Storage,
};
use evergate_ike::{env::UnixMillis, sa::CookieSecrets, secret::Secret};
use evergate_proto::cluster::HelloRequest;
use evergate_state::Command;
use futures::StreamExt;
use std::{fs, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let mut lab = Lab::new(3);
    let replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    leader(&all).await;
    let hello = |who: &crate::raft::Credentials, name: &str| {
        let peers = Peers::over_tcp(who.tls(name).unwrap());
        let node = lab.members[0].clone();
        async move { within(peers.peer(&node).hello(HelloRequest::default())).await }
    };
    let another = pki::authority().unwrap();
    // Certificates of another authority, and of ours for somebody who is no member. Neither gets as far as to be asked for the key.
    let foreign = credentials(&lab.authority, &another, "m1");
    let refused = hello(&foreign, "m1").await;
    assert!(no_connection(&refused.unwrap_err()));
    // Members wait a second for each other, which is not much on a slow machine: then it is tried again.
    let answer = async |name: &str| {
        let own = lab.credentials(name);
        within(async {
            loop {
                let refused = hello(&own, name).await.unwrap_err();
                if !matches!(refused.code(), Code::Unavailable | Code::DeadlineExceeded) {
                    break refused;
                }
            }
        })
        .await
    };
    let refused = answer("eve").await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let member = answer("m1").await;
    assert!(member.message().contains("cluster keys"), "{member}");
    // A member that is another one than it is expected to be.
    let peers = Peers::over_tcp(lab.credentials("m1").tls("m1").unwrap());
    let wrong = crate::raft::Node {
        name: "m2".into(),
        ..lab.members[0].clone()
    };
    let refused = within(peers.peer(&wrong).hello(HelloRequest::default())).await;
    assert!(no_connection(&refused.unwrap_err()));
}

/// The connection fails before anything can be asked: none of the statuses that the service itself gives. Which it is instead depends
/// on how far the sending had come when the handshake was refused.
fn no_connection(status: &tonic::Status) -> bool {
    !matches!(
        status.code(),
        Code::Ok | Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_can_be_given_away() {
    let mut lab = Lab::patient(3);
    let replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    let first = leader(&all).await;
    take(all[first], 1, 1).await;
    let second = (first + 1) % 3;
    let cluster = all[first].cluster();
    within(async {
        // A member may just have been elected, and not be answered yet, or not by all.
        while cluster.last_quorum_acked().is_none()
            || cluster.members().iter().any(|m| m.acknowledged.is_none())
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    within(cluster.transfer_leader(&format!("m{second}")))
        .await
        .unwrap();
    assert_eq!(leader(&all).await, second);
    assert!(cluster.last_quorum_acked().is_none());
    take(all[first], 1, 2).await;
    // In good order, the leader goes without an election time-out.
    within(all[second].close()).await;
    let rest: Vec<&Replica> = [first, (first + 2) % 3].map(|n| all[n]).to_vec();
    within(async {
        while rest[0]
            .cluster()
            .leader()
            .borrow()
            .as_ref()
            .is_none_or(|l| l.name == format!("m{second}"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    take(rest[0], 1, 3).await;
    same(&rest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_asked_of_the_leader() {
    let mut lab = Lab::new(3);
    let replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    leader(&all).await;
    // Whoever leads: that may change.
    for replica in &all {
        let cluster = replica.cluster();
        let own = cluster.name().to_owned();
        cluster.on_renew_leases(Arc::new(move |who, what| {
            let answer = [own.as_bytes(), b" to ", who.as_bytes(), b":", &what].concat();
            Box::pin(async move { Ok(answer.into()) })
        }));
    }
    for replica in &all {
        let cluster = replica.cluster();
        let mut leader = cluster.leader();
        let known = within(leader.wait_for(Option::is_some));
        let to = known.await.unwrap().clone().unwrap();
        let answer = cluster
            .renew_leases(&to, "gw1".into(), Duration::from_secs(20))
            .await
            .unwrap();
        assert_eq!(answer, format!("{} to {}:gw1", to.name, cluster.name()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_go_from_member_to_member_until_it_takes_no_more() {
    let mut lab = Lab::new(3);
    let replicas = lab.start_all().await;
    let all: Vec<&Replica> = replicas.iter().collect();
    leader(&all).await;
    let (from, to) = (all[0].cluster(), all[1].cluster());
    let patience = Duration::from_secs(20);
    let relay = |first: &'static str| {
        let (packets, receiver) = mpsc::channel(1);
        let opened = from.relay(to.name(), first.into(), receiver, patience);
        async move { (packets, opened.await) }
    };
    assert!(relay("nobody listens yet").await.1.is_err());
    let (told, mut came) = mpsc::unbounded_channel();
    to.on_relay(Arc::new(move |who, first, mut packets| {
        if first == "no" {
            return Err("not here".to_owned());
        }
        let told = told.clone();
        Ok(Box::pin(async move {
            told.send((who, first)).unwrap();
            while let Some(packet) = packets.next().await {
                if packet == "enough" {
                    return;
                }
                told.send((String::new(), packet)).unwrap();
            }
        }))
    }));
    assert!(relay("no").await.1.is_err());
    let (_packets, itself) = mpsc::channel(1);
    assert!(
        to.relay(to.name(), "".into(), itself, patience)
            .await
            .is_err()
    );

    let (packets, end) = within(async {
        loop {
            // No connection within a second, on a slow machine: then it is tried again.
            if let (packets, Ok(end)) = relay("yes").await {
                break (packets, end);
            }
        }
    })
    .await;
    assert_eq!(
        came.recv().await.unwrap(),
        (from.name().to_owned(), "yes".into())
    );
    for n in 0..100 {
        packets.send(format!("packet {n}").into()).await.unwrap();
    }
    for n in 0..100 {
        assert_eq!(came.recv().await.unwrap().1, format!("packet {n}"));
    }
    packets.send("enough".into()).await.unwrap();
    within(end).await;

    let (packets, end) = relay("and again").await;
    packets.send("the last".into()).await.unwrap();
    drop(packets);
    within(end.unwrap()).await;
    assert_eq!(came.recv().await.unwrap().1, "and again");
    assert_eq!(came.recv().await.unwrap().1, "the last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let replica = Config::new(ClusterKey::from_bytes([7; 32]), || UnixMillis(1));
        let config =
            RaftConfig::single(replica, Storage::Directory(dir.path().to_owned()), "alone");
        let replica = within(Replica::join(config)).await.unwrap();
        for step in 1..=5 {
            take(&replica, 1, round * 5 + step).await;
        }
        assert_eq!(epoch(&replica, 1), round * 5 + 5);
        within(replica.close()).await;
    }
    let other = Config::new(ClusterKey::from_bytes([8; 32]), || UnixMillis(1));
    let config = RaftConfig::single(other, Storage::Directory(dir.path().to_owned()), "alone");
    let refused = within(Replica::join(config)).await.unwrap_err();
    assert!(refused.to_string().contains("verify"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_alone_can_be_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for (name, nth) in [("one", 1), ("other", 2), ("other", 3)] {
        let replica = Config::new(ClusterKey::from_bytes([7; 32]), || UnixMillis(1));
        let config = RaftConfig::single(replica, Storage::Directory(dir.path().to_owned()), name);
        let replica = within(Replica::join(config)).await.unwrap();
        let members = replica.cluster().members();
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, [name]);
        ids.extend(members.iter().map(|m| m.id));
        take(&replica, 1, nth).await;
        within(replica.close()).await;
    }
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_those_that_are_alone_are_not_mixed_up() {
    let mut lab = Lab::new(3);
    for replica in lab.start_all().await {
        within(replica.close()).await;
    }
    let mut config = lab.config(0);
    (config.links, config.credentials) = (None, None);
    config.members.retain(|m| m.name == "m0");
    let refused = within(Replica::join(config)).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("of a member of a cluster (m"), "{text}");

    lab.wipe(1);
    let RaftConfig {
        replica,
        storage,
        name,
        ..
    } = lab.config(1);
    let alone = within(Replica::join(RaftConfig::single(replica, storage, &name)))
        .await
        .unwrap();
    take(&alone, 1, 1).await;
    within(alone.close()).await;
    let refused = within(lab.start(1)).await.unwrap_err();
    assert!(
        refused.to_string().contains("of a member that was alone"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_any_file() {
    const SECRET: &[u8] = b"a secret that must not be in the clear";
    let dir = tempfile::tempdir().unwrap();
    let replica = Config {
        // Both in the log and in a snapshot.
        snapshot_entries: 5,
        ..Config::new(ClusterKey::from_bytes([7; 32]), || UnixMillis(1))
    };
    let config = RaftConfig::single(replica, Storage::Directory(dir.path().to_owned()), "alone");
    let replica = within(Replica::join(config)).await.unwrap();
    let secret = || Secret::new(SECRET.to_vec());
    while replica.stats().snapshots == 0 {
        let command = Command::SetCookieSecrets(CookieSecrets {
            current: secret(),
            previous: secret(),
        });
        within(replica.propose(vec![command])).await.unwrap();
    }
    assert!(contains(&snapshot(&replica), SECRET));
    within(replica.close()).await;
    let mut dirs = vec![dir.path().to_owned()];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files += 1;
                assert!(!contains(&fs::read(&path).unwrap(), SECRET), "{path:?}");
            }
        }
    }
    assert!(files >= 3);
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|w| w == text)
}
