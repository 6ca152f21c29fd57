//! What makes elections short, and possible.

use super::{
    Cluster,
    forming::key_check,
    roster::{Known, Roster},
    succession::{self, Succession},
    transport::{Peers, REMOVED, decode},
    types::{Node, NodeId, Raft},
};
use crate::{KeyRing, replica::Shared};
use bytes::Bytes;
use evergate_proto::cluster::HelloRequest;
use openraft::async_runtime::WatchReceiver as _;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    task::JoinSet,
    time::{self, MissedTickBehavior},
};

/// How often a connection that is not there is tried.
const WARM: Duration = Duration::from_secs(1);

/// Why a member that was removed does nothing more.
const REMOVED_TEXT: &str = "this member was removed from the cluster: to come back it needs a new token and an empty state_dir";

/// After so many heartbeats to which no majority has answered, a leader stops sending them; and if nobody was elected meanwhile, after twice
/// as many the next time, up to the last. A machine that is so slow that it cannot elect anybody must not be kept from working by that.
const UNANSWERED: (u32, u32) = (10, 320);

/// Starts what goes on as long as the member lives.
pub(super) fn spawn(
    tasks: &mut JoinSet<()>,
    cluster: &Cluster,
    ring: KeyRing,
    known: Known,
    shared: Arc<Shared>,
    succession: Succession,
) {
    // A member that is alone has nobody to talk to.
    let Some(peers) = cluster.0.peers.clone() else {
        return;
    };
    let raft = &cluster.0.raft;
    let keeper = Keeper {
        raft: raft.clone(),
        own: cluster.id(),
        peers,
        ring,
        known,
        shared,
        succession,
    };
    tasks.spawn(keeper.run());
    tasks.spawn(be_quiet(raft.clone(), cluster.clone()));
}

/// Keeps the connections to all other members open, so that an election needs no handshakes; and hears from them who is a member.
struct Keeper {
    raft: Raft,
    own: NodeId,
    peers: Peers,
    ring: KeyRing,
    known: Known,
    shared: Arc<Shared>,
    succession: Succession,
}

impl Keeper {
    async fn run(self) {
        let mut again = time::interval(WARM);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            again.tick().await;
            let own = self.own;
            let (others, alone): (Vec<Node>, bool) = {
                let metrics = self.raft.server_metrics();
                let metrics = metrics.borrow_watched();
                let nodes = metrics.membership_config.nodes();
                let others: Vec<Node> = nodes
                    .filter(|(id, _)| **id != own)
                    .map(|(_, node)| node.clone())
                    .collect();
                let there = metrics.membership_config.get_node(&own).is_some();
                (others, !there)
            };
            if alone && self.shared.read(|s| s.dismissed(own).is_some()) {
                // Whoever asked this member for it has to hear of it.
                time::sleep(WARM * 2).await;
                return self.removed();
            }
            // With the key that is used now.
            let request = HelloRequest {
                key_check: key_check(&self.ring),
                members: Bytes::new(),
                node: own,
                generation: self.succession.own.told(),
            };
            let calls = others.iter().map(|node| self.peers.warm(node, &request));
            for answer in futures::future::join_all(calls).await {
                match answer {
                    Ok(reply) => {
                        if let Ok(roster) = decode::<Roster>(&reply.members) {
                            self.known.tell(roster);
                        }
                    }
                    Err(status) if status.metadata().contains_key(REMOVED) => {
                        return self.removed();
                    }
                    Err(status) => {
                        if let Some(later) = succession::later(&status) {
                            return self.succession.end(later).await;
                        }
                    }
                }
            }
        }
    }

    /// Another member says, or the log, that this one is none any more.
    fn removed(&self) {
        tracing::error!(
            event = "removed",
            "this member was removed from the cluster and serves nothing: to come back it needs a new token and an empty state_dir"
        );
        self.shared.failed.set(REMOVED_TEXT);
    }
}

/// A leader that is heard but hears nobody would keep the others from electing one that can do its work. So when most of them do not
/// answer it is quiet for long enough that they miss it, or until an answer comes after all.
async fn be_quiet(raft: Raft, cluster: Cluster) {
    let pace = cluster.timing();
    let mut beat = time::interval(pace.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut acked, mut unanswered, mut patience) = (None, 0, UNANSWERED.0);
    loop {
        beat.tick().await;
        // Answers are looked for, not their age: when a machine stood still for a while, they are waiting to be read.
        let latest = cluster.last_quorum_acked();
        let answered = !raft.is_leader() || alone(&raft) || latest > acked;
        acked = latest;
        if answered {
            (unanswered, patience) = (0, UNANSWERED.0);
            continue;
        }
        unanswered += 1;
        if unanswered < patience {
            continue;
        }
        tracing::info!(
            "most members do not answer this leader: it is quiet, so that they can elect another one"
        );
        raft.runtime_config().heartbeat(false);
        let until = Instant::now() + pace.election_max * 3;
        while raft.is_leader() && cluster.last_quorum_acked() <= acked && Instant::now() < until {
            beat.tick().await;
        }
        raft.runtime_config().heartbeat(true);
        (unanswered, patience) = (0, (patience * 2).min(UNANSWERED.1));
    }
}

/// Whether a member is its own majority: nobody has to answer.
fn alone(raft: &Raft) -> bool {
    raft.voter_ids().count() == 1
}
