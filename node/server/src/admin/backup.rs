//! Backups of the cluster.

use crate::node::Node;
use evergate_cluster::Backup;
use evergate_proto::admin::BackupChunk;
use evergate_state::{Command, State};
use futures::{StreamExt, stream::BoxStream};
use std::{sync::Arc, time::Duration};
use tonic::Status;
use tracing::info;

/// How long it may take until it is certain that this member has all that was committed: with a majority it is milliseconds.
const CERTAIN: Duration = Duration::from_secs(5);

/// Bytes of a message.
const PART: usize = 64 << 10;

/// Takes a backup of all that was committed before it was asked for.
///
/// # Errors
/// If there is no majority.
pub(super) async fn take(
    node: &Arc<Node>,
) -> Result<BoxStream<'static, Result<BackupChunk, Status>>, Status> {
    // An entry without effect: what was committed before it is applied here when it is.
    let nothing = Command::PutSas {
        epoch: 0,
        records: Vec::new(),
    };
    let proposed = tokio::time::timeout(CERTAIN, node.propose(nothing)).await;
    proposed
        .map_err(|_| Status::unavailable("most members do not answer: what is here may be old"))?
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let cluster = node.replica.cluster();
    let mut members: Vec<String> = cluster.members().into_iter().map(|m| m.name).collect();
    members.sort();
    let backup = Backup {
        generation: cluster.generation(),
        taken: node.clock.now(),
        members,
        state: node.read(State::heir),
    };
    let (ring, _) = node.replica.keys();
    let file = backup
        .seal(&ring)
        .map_err(|e| Status::internal(e.to_string()))?;
    info!(
        event = "backup",
        policy = backup.state.policy_version(),
        bytes = file.len(),
        "a backup was taken, with policy version {}",
        backup.state.policy_version()
    );
    let parts: Vec<_> = file
        .chunks(PART)
        .map(|part| {
            Ok(BackupChunk {
                data: part.to_vec(),
            })
        })
        .collect();
    Ok(futures::stream::iter(parts).boxed())
}
