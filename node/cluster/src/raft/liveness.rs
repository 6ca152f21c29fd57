//! What makes elections short, and possible.

use super::{
    Cluster,
    transport::Peers,
    types::{Node, Raft},
};
use evergate_proto::cluster::HelloRequest;
use openraft::async_runtime::WatchReceiver as _;
use std::time::{Duration, Instant};
use tokio::time::{self, MissedTickBehavior};

/// How often a connection that is not there is tried.
const WARM: Duration = Duration::from_secs(1);

/// After so many heartbeats for which no majority has answered in time, a leader stops sending them.
const UNANSWERED: u32 = 5;

/// Keeps the connections to all other members open, so that an election needs no handshakes.
pub(super) async fn keep_connections(raft: Raft, peers: Peers, request: HelloRequest) {
    let mut again = time::interval(WARM);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        let others: Vec<Node> = {
            let metrics = raft.server_metrics();
            let metrics = metrics.borrow_watched();
            let nodes = metrics.membership_config.nodes();
            let others = nodes.filter(|(id, _)| **id != metrics.id);
            others.map(|(_, node)| node.clone()).collect()
        };
        let calls = others.iter().map(|node| peers.warm(node, &request));
        futures::future::join_all(calls).await;
    }
}

/// A leader that is heard but hears nobody would keep the others from electing one that can do its work. So when most of them do not
/// answer it is quiet for long enough that they miss it, or until they are heard again.
pub(super) async fn be_quiet(raft: Raft, cluster: Cluster) {
    let pace = cluster.timing();
    let mut beat = time::interval(pace.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let unheard = || {
        let acked = cluster.last_quorum_acked();
        raft.is_leader() && acked.is_none_or(|at| at.elapsed() > pace.election_max)
    };
    let mut unanswered = 0;
    loop {
        beat.tick().await;
        // Looked at several times: when a machine stood still for a while, the answers are waiting to be read.
        unanswered = if unheard() { unanswered + 1 } else { 0 };
        if unanswered < UNANSWERED {
            continue;
        }
        tracing::info!(
            "most members do not answer this leader: it is quiet, so that they can elect another one"
        );
        raft.runtime_config().heartbeat(false);
        let until = Instant::now() + pace.election_max * 3;
        while unheard() && Instant::now() < until {
            beat.tick().await;
        }
        raft.runtime_config().heartbeat(true);
        unanswered = 0;
    }
}
