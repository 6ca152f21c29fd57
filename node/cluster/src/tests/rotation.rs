//! Another cluster key, while the member goes on.

use super::*;
use crate::KeyRing;
use evergate_state::{KeyId, Level, MemberKeys};
use std::path::Path as FsPath;

fn key(n: u8) -> ClusterKey {
    ClusterKey::from_bytes([n; 32])
}

fn with(ring: &KeyRing) -> Config {
    Config {
        keys: ring.clone(),
        ..config()
    }
}

/// Says which keys the member has, as its server does.
async fn announce(replica: &Replica) -> MemberKeys {
    let (ring, needs) = replica.keys();
    let keys = MemberKeys {
        has: ring.ids(),
        needs,
    };
    let level = Command::AnnounceLevel {
        member: "a".into(),
        incarnation: 1,
        level: Level::LATEST,
    };
    let said = Command::AnnounceKeys {
        member: "a".into(),
        incarnation: 1,
        keys: keys.clone(),
    };
    for command in [register(), level, said] {
        let outcome = replica.propose(vec![command]).await.unwrap();
        assert_eq!(outcome, [Outcome::Applied]);
    }
    keys
}

/// Waits until the member needs these keys and no others.
async fn until_needed(replica: &Replica, keys: &[KeyId]) {
    let waited = async {
        while replica.keys().1 != keys {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .unwrap_or_else(|_| panic!("{:?} are needed", replica.keys().1));
}

async fn refused(config: Config, dir: &FsPath) -> String {
    open_dir(config, dir).await.unwrap_err().to_string()
}

#[tokio::test]
async fn after_a_rotation_the_former_key_opens_nothing_and_is_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::from(key(1));
    let replica = open_dir(with(&ring), dir.path()).await.unwrap();
    announce(&replica).await;
    taken(&replica).await;
    for n in 0..20 {
        let sa = sa(n, b"the key of a deleted SA");
        replica.propose(vec![put(1, sa)]).await.unwrap();
    }
    let old = ring.ids()[0];
    until_needed(&replica, &[old]).await;

    ring.replace(vec![key(2), key(1)], &replica.keys().1)
        .unwrap();
    let new = ring.ids()[0];
    let removed = Command::RemoveSas {
        gateway: GW,
        epoch: 1,
        sas: (0..19).map(|n: u32| SaId(n.into())).collect(),
    };
    replica.propose(vec![removed]).await.unwrap();
    assert_eq!(replica.keys().1, [old], "nothing says that it is used");
    announce(&replica).await;
    until_needed(&replica, &[new]).await;
    let missing = ring.replace(vec![key(1)], &replica.keys().1);
    assert!(missing.is_err(), "the new one is needed now");
    ring.replace(vec![key(2)], &replica.keys().1).unwrap();
    // And it goes on with the new one alone.
    let entry = put(1, sa(50, b"another"));
    replica.propose(vec![entry]).await.unwrap();
    let before = snapshot(&replica);
    replica.close().await;

    let error = refused(with(&KeyRing::from(key(1))), dir.path()).await;
    assert!(error.contains("does not verify"), "{error}");
    let replica = open_dir(with(&KeyRing::from(key(2))), dir.path())
        .await
        .unwrap();
    assert!(snapshot(&replica) == before);
    replica.close().await;
}

#[tokio::test]
async fn a_member_that_dies_in_a_rotation_goes_on_with_both_keys() {
    let dir = tempfile::tempdir().unwrap();
    let ring = KeyRing::from(key(1));
    let replica = open_dir(with(&ring), dir.path()).await.unwrap();
    announce(&replica).await;
    taken(&replica).await;
    ring.replace(vec![key(2), key(1)], &[]).unwrap();
    announce(&replica).await;
    replica.propose(vec![put(1, sa(1, b"text"))]).await.unwrap();
    let before = snapshot(&replica);
    replica.abort();
    replica.ended().wait_for(|ended| *ended).await.unwrap();
    drop(replica);

    let both = KeyRing::from(key(2));
    both.replace(vec![key(2), key(1)], &[]).unwrap();
    let replica = open_dir(with(&both), dir.path()).await.unwrap();
    assert!(snapshot(&replica) == before);
    until_needed(&replica, &[both.ids()[0]]).await;
    replica.close().await;
}
