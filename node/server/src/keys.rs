//! The cluster keys of a running member: taken from their file, and told to the cluster, so that all members go over to a new one together.

use crate::{gateway::commit, node::Node};
use evergate_cluster::{ClusterKey, KeyRing};
use evergate_state::{Command, KeyId, Level, MemberKeys};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often it is looked at what is to be told.
const LOOK: Duration = Duration::from_secs(2);

/// Since when keys are told of.
const SINCE: Level = Level(2);

/// Tells the cluster which keys this member has and needs, whenever that is something else than what is known.
pub(crate) async fn announce(node: Arc<Node>, stop: CancellationToken) {
    let mut look = time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
        let Some(command) = news(&node) else { continue };
        tokio::select! {
            told = commit(&node.replica, command) => if let Err(error) = told {
                // Without a majority, or because a newer process of this member runs.
                tracing::debug!(%error, "the cluster was not told of the keys");
            },
            () = stop.cancelled() => return,
        }
    }
}

fn news(node: &Node) -> Option<Command> {
    let (ring, needs) = node.replica.keys();
    let keys = MemberKeys {
        has: ring.ids(),
        needs,
    };
    let me = &node.membership.me;
    let news = node.read(|state| {
        state.level() >= SINCE && state.is_current(me) && state.keys_of(&me.member) != Some(&keys)
    });
    news.then(|| Command::AnnounceKeys {
        member: me.member.clone(),
        incarnation: me.incarnation,
        keys,
    })
}

/// Takes the keys of the file, if it has others.
pub(crate) fn reload(node: &Node, path: &Path) {
    let (ring, needed) = node.replica.keys();
    match take(&ring, path, &needed) {
        Ok(None) => {}
        Ok(Some(ids)) => {
            let keys: Vec<String> = ids.iter().map(ToString::to_string).collect();
            info!(
                event = "cluster-keys",
                keys = keys.join(" "),
                "cluster keys: {}",
                keys.join(" ")
            );
        }
        Err(error) => {
            warn!(event = "cluster-keys-refused", %error, "the cluster keys stay as they were: {error}");
        }
    }
}

/// The keys of the file; `None` if they are those that there are.
fn take(ring: &KeyRing, path: &Path, needed: &[KeyId]) -> anyhow::Result<Option<Vec<KeyId>>> {
    let before = ring.ids();
    ring.replace(ClusterKey::all_from_file(path)?, needed)?;
    let after = ring.ids();
    Ok((after != before).then_some(after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_lacks_a_needed_key_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = ClusterKey::create_file(&path).unwrap();
        let ring = KeyRing::from(first);
        let old = ring.ids()[0];
        assert_eq!(take(&ring, &path, &[old]).unwrap(), None);
        ClusterKey::add_to_file(&path).unwrap();
        let both = take(&ring, &path, &[old]).unwrap().unwrap();
        assert!(both.len() == 2 && both[1] == old);
        ClusterKey::prune_file(&path).unwrap();
        let error = take(&ring, &path, &[old]).unwrap_err().to_string();
        assert!(
            error.contains(&old.to_string()) && error.contains("still needed"),
            "{error}"
        );
        assert_eq!(ring.ids(), both);
        assert_eq!(take(&ring, &path, &[]).unwrap().unwrap(), both[..1]);
        fs::write(&path, "no key").unwrap();
        assert!(take(&ring, &path, &[]).is_err());
        assert_eq!(ring.ids(), both[..1]);
    }
}
