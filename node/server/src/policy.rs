//! The policy on its way from files into the replicated state.
//!
//! A member remembers which policy it last applied from its file. At the start the file wins if it says something else than then;
//! otherwise what an operator applied meanwhile stays.

use crate::{config::Member, node::Node};
use anyhow::Context;
use aws_lc_rs::digest;
use evergate_cluster::Replica;
use evergate_ike::config::Policy;
use evergate_state::{Command, Outcome, Refusal};
use std::{fs, path::Path, sync::Arc};
use tracing::info;

/// Where the digest of the policy stands that was last applied from the file.
const APPLIED: &str = "policy-of-file";

/// A digest of a policy, to know it again. It covers secrets, so that it stays in a file that only the owner can read.
fn fingerprint(policy: &Policy) -> anyhow::Result<Vec<u8>> {
    let text = zeroize::Zeroizing::new(serde_json::to_vec(policy)?);
    Ok(digest::digest(&digest::SHA256, &text).as_ref().to_vec())
}

/// Applies the policy of the configuration file at the start, if it is not what was applied from there before.
///
/// # Errors
/// If the log fails or the state directory cannot be written.
pub(crate) async fn apply_file(
    replica: &Replica,
    policy: &Policy,
    member: &Member,
) -> anyhow::Result<()> {
    let path = member.state_dir.join(APPLIED);
    let fingerprint = fingerprint(policy)?;
    let known = fs::read(&path).is_ok_and(|before| before == fingerprint);
    loop {
        let (version, same) = replica.read(|s| (s.policy_version(), **s.policy() == *policy));
        if known && version != 0 {
            if !same {
                info!(
                    event = "policy-kept",
                    version, "the file is as it was; the policy that was applied since then stays"
                );
            }
            return Ok(());
        }
        if !same || version == 0 {
            let command = Command::SetPolicy {
                expected: version,
                policy: Arc::new(policy.clone()),
            };
            let outcome = replica.propose(vec![command]).await?.into_iter().next();
            match outcome {
                // Another member was faster, perhaps with the same.
                Some(Outcome::Refused(Refusal::StalePolicy { .. })) => continue,
                Some(Outcome::Refused(refusal)) => {
                    return Err(refusal).context("cannot apply the policy of the file");
                }
                _ => {}
            }
            info!(
                event = "policy-applied",
                version = version + 1,
                "applied the policy of the file"
            );
        }
        return write_private(&path, &fingerprint)
            .with_context(|| format!("cannot write {}", path.display()));
    }
}

/// The policy of the file counts as applied: what is replicated stays when the member starts.
///
/// # Errors
/// If the state directory cannot be written.
pub(crate) fn note_file(policy: &Policy, member: &Member) -> anyhow::Result<()> {
    let path = member.state_dir.join(APPLIED);
    write_private(&path, &fingerprint(policy)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a small file as a whole.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let beside = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

/// What became of a policy that an operator applied.
pub(crate) struct Applied {
    /// The version that there is now.
    pub(crate) version: u64,
    /// Whether it is another policy than before.
    pub(crate) changed: bool,
}

/// Why a policy was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The log failed.
    #[error("{0}")]
    Log(String),
}

/// Replaces the policy at run time; workers, routes and timers follow.
///
/// # Errors
/// If the version is not the expected one, or the log fails.
pub(crate) async fn apply(
    node: &Node,
    policy: Policy,
    expected: Option<u64>,
) -> Result<Applied, ApplyError> {
    let (version, same) = node.read(|s| (s.policy_version(), **s.policy() == policy));
    let expected = expected.unwrap_or(version);
    if same && expected == version {
        return Ok(Applied {
            version,
            changed: false,
        });
    }
    let command = Command::SetPolicy {
        expected,
        policy: Arc::new(policy),
    };
    match node
        .propose(command)
        .await
        .map_err(|e| ApplyError::Log(e.to_string()))?
    {
        Outcome::Refused(refusal) => return Err(refusal.into()),
        outcome => debug_assert_eq!(outcome, Outcome::Applied),
    }
    let (version, policy) = node.read(|s| (s.policy_version(), Arc::clone(s.policy())));
    node.adopt_policy(&policy).await;
    info!(event = "policy-applied", version, "applied a new policy");
    Ok(Applied {
        version,
        changed: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use evergate_cluster::{
        ClusterKey, Config,
        raft::RaftConfig,
        store::{Disk, Storage},
    };
    use evergate_ike::env::UnixMillis;

    fn policy(name: &str) -> Policy {
        let text = format!("[secrets.{name}]\nsecret = '{name}'");
        parse(&text, Path::new(".")).unwrap().policy
    }

    #[tokio::test]
    async fn the_file_wins_only_when_it_says_something_else_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[member]\nname = 'm'\nstate_dir = '{}'",
            dir.path().display()
        );
        let member = parse(&text, Path::new(".")).unwrap().member.unwrap();
        let config = Config::new(ClusterKey::from_bytes([7; 32]), || UnixMillis(1));
        let raft = RaftConfig::single(config, Storage::Memory(Disk::new()), "m");
        let replica = Replica::join(raft).await.unwrap();
        let now = || {
            replica.read(|s| {
                (
                    s.policy_version(),
                    s.policy().secrets.first().map(|s| s.name.clone()),
                )
            })
        };
        let named = |name: &str| Some(name.to_owned());
        apply_file(&replica, &policy("a"), &member).await.unwrap();
        assert_eq!(now(), (1, named("a")));
        apply_file(&replica, &policy("a"), &member).await.unwrap();
        assert_eq!(now(), (1, named("a")));
        // An operator applies another; the file is as it was.
        let set = Command::SetPolicy {
            expected: 1,
            policy: Arc::new(policy("b")),
        };
        replica.propose(vec![set]).await.unwrap();
        apply_file(&replica, &policy("a"), &member).await.unwrap();
        assert_eq!(now(), (2, named("b")));
        apply_file(&replica, &policy("c"), &member).await.unwrap();
        assert_eq!(now(), (3, named("c")));
        let stored = fs::read(dir.path().join(APPLIED)).unwrap();
        assert_eq!(stored.len(), 32);
    }
}
