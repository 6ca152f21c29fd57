//! The cluster as a member sees it: who leads, who is in it, and how to change that.

use super::{
    Timing,
    log::LogStore,
    sealed,
    transport::{
        Credentials, ForwardHandler, LeaseHandler, Peers, RelayHandler, Services, StepDownHandler,
        TlsError,
    },
    types::{Node, NodeId, Raft},
};
use crate::{Generation, replica::Shared};
use bytes::Bytes;
use evergate_proto::forward::{CallReply, CallRequest};
use evergate_state::KeyId;
use futures::{FutureExt, future::BoxFuture};
use openraft::{ChangeMembers, Instant as _, async_runtime::WatchReceiver as _};
use std::{
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// Who leads, as far as this member knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Its term: a later leader has a greater one.
    pub term: u64,
}

/// A member, as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// It votes; else it only learns.
    pub voter: bool,
    /// It leads.
    pub leader: bool,
    /// How long ago it acknowledged something that the leader sent. Only the leader knows; for itself it is zero.
    pub acknowledged: Option<Duration>,
    /// The next index that it lacks. Only the leader knows.
    pub next_index: Option<u64>,
    /// How many entries of the leader's log it lacks. Only the leader knows.
    pub lag: Option<u64>,
}

impl MemberStatus {
    pub(super) fn node(&self) -> Node {
        Node {
            name: self.name.clone(),
            address: self.address.clone(),
        }
    }
}

/// Why a change of the cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Only the leader can do it.
    #[error("this member is not the leader")]
    NotLeader,
    /// There is no such member.
    #[error("there is no member {0:?}")]
    NoSuchMember(String),
    /// It did not work (out).
    #[error("{0}")]
    Failed(String),
}

/// The cluster. Clones are the same.
#[derive(Clone)]
pub struct Cluster(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) raft: Raft,
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) leader: watch::Receiver<Option<Leader>>,
    pub(super) peers: Option<Peers>,
    pub(super) services: Services,
    pub(super) timing: Timing,
    pub(super) generation: Generation,
    pub(super) log: LogStore,
    /// Where Raft runs.
    pub(super) runtime: tokio::runtime::Handle,
}

impl Cluster {
    /// This member's node.
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// This member's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Which life of the cluster this is.
    pub fn generation(&self) -> Generation {
        self.0.generation
    }

    /// The pace of elections.
    pub fn timing(&self) -> Timing {
        self.0.timing
    }

    /// Who leads.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.0.leader.clone()
    }

    /// Whether this member leads, as far as it knows: another one may lead already. See [`Cluster::last_quorum_acked`].
    pub fn is_leader(&self) -> bool {
        self.0.raft.is_leader()
    }

    /// Whether there is nobody else, neither as a voter nor as one that learns. A member that has not been told yet who there is, is not alone.
    pub fn is_alone(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(id, _)| *id).eq([self.0.id])
    }

    /// Whether there could be other members: it can talk to some.
    pub fn has_links(&self) -> bool {
        self.0.peers.is_some()
    }

    /// When the last message was sent to which most members have answered: until `election_max` after it no other member can lead,
    /// but for a transfer of leadership. `None` if this member does not lead, or has not been answered yet. A member that is alone is
    /// its own majority.
    pub fn last_quorum_acked(&self) -> Option<Instant> {
        // Looked at first: what is told is rather too early than too late.
        let now = Instant::now();
        let leader = self.0.raft.as_leader().ok()?;
        let counted = leader
            .last_quorum_acked()
            .and_then(|at| now.checked_sub(at.elapsed()));
        counted.max(self.answers(now))
    }

    /// The same, with the answers that came too late for Raft.
    fn answers(&self, now: Instant) -> Option<Instant> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let sets = metrics.membership_config.get_joint_config();
        let acks = self.0.peers.as_ref()?.acks();
        acks.quorum(&metrics.vote, self.0.id, sets, now)
    }

    /// The term of the last entry of the log before the first one of this term: nobody led in between. `None` if the log does not tell.
    pub fn term_before(&self, term: u64) -> Option<u64> {
        self.0.log.term_before(term)
    }

    /// Whether the log begins after a snapshot.
    #[cfg(test)]
    pub(crate) fn is_purged(&self) -> bool {
        self.0.raft.metrics().borrow_watched().purged.is_some()
    }

    /// The cluster keys without which something on this member's disk could not be opened.
    pub(crate) fn keys_needed(&self, shared: &Shared) -> Vec<KeyId> {
        sealed::needed(&self.0.raft, shared)
    }

    /// Connections with other members that are made from now on have these credentials; those that there are stay. Nothing on a member that is alone.
    ///
    /// # Errors
    /// If they cannot be used, or are another member's. Then the former ones stay.
    pub fn renew_credentials(&self, credentials: &Credentials) -> Result<(), TlsError> {
        match &self.0.peers {
            Some(peers) => peers.renew(credentials),
            None => Ok(()),
        }
    }

    /// All members.
    pub fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<NodeId> = metrics.membership_config.voter_ids().collect();
        let leads = metrics.current_leader == Some(self.0.id);
        let heard = |id: &NodeId| {
            if *id == self.0.id {
                return leads.then_some(Duration::ZERO);
            }
            let at = metrics.heartbeat.as_ref()?.get(id)?.as_ref()?;
            Some(at.elapsed())
        };
        let matched = |id: &NodeId| {
            let matching = metrics.replication.as_ref()?.get(id)?;
            Some(matching.as_ref().map_or(0, |log_id| log_id.index + 1))
        };
        let end = metrics.last_log_index.map_or(0, |index| index + 1);
        metrics
            .membership_config
            .nodes()
            .map(|(id, node)| MemberStatus {
                id: *id,
                name: node.name.clone(),
                address: node.address.clone(),
                voter: voters.contains(id),
                leader: metrics.current_leader == Some(*id),
                acknowledged: heard(id),
                next_index: matched(id),
                lag: matched(id).map(|next| end.saturating_sub(next)),
            })
            .collect()
    }

    fn id_of(&self, name: &str) -> Result<NodeId, ClusterError> {
        self.members()
            .into_iter()
            .find(|m| m.name == name)
            .map(|m| m.id)
            .ok_or_else(|| ClusterError::NoSuchMember(name.to_owned()))
    }

    /// Makes another member the leader, and returns when it is, as far as this member sees. Whoever grants leases must have stopped
    /// before: the votes of a transfer do not wait until this leader's time is over.
    ///
    /// # Errors
    /// If this member does not lead, there is no such member, or it did not take over in time.
    pub async fn transfer_leader(&self, to: &str) -> Result<(), ClusterError> {
        if !self.is_leader() {
            return Err(ClusterError::NotLeader);
        }
        let id = self.id_of(to)?;
        self.0
            .raft
            .trigger()
            .transfer_leader(id)
            .await
            .map_err(failed)?;
        let limit = self.0.timing.election_max * 4;
        let mut leader = self.leader();
        let took = leader.wait_for(|l| l.as_ref().is_some_and(|l| l.id == id));
        match tokio::time::timeout(limit, took).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ClusterError::Failed(format!("{to:?} did not take over"))),
        }
    }

    /// Whether two configurations count at the moment, because voters come or go.
    pub fn is_changing(&self) -> bool {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_joint_config().len() > 1
    }

    /// Lets a member learn. Returns when that is committed.
    pub(super) async fn add_learner(&self, id: NodeId, node: Node) -> Result<(), String> {
        let raft = self.0.raft.clone();
        let added = raft.add_learner(id, node, false).await;
        added.map(drop).map_err(|e| e.to_string())
    }

    /// Changes who is a member. Returns when that is committed.
    pub(super) async fn change(&self, change: ChangeMembers<NodeId, Node>) -> Result<(), String> {
        let raft = self.0.raft.clone();
        let changed = raft.change_membership(change, false).await;
        changed.map(drop).map_err(|e| e.to_string())
    }

    /// Has the voter lead that has most of the log, if this member leads. It has to have no virtual gateways: its leases are granted by itself.
    ///
    /// # Errors
    /// If there is no other voter that answers, or it does not take over; then this member leads on.
    pub async fn step_down(&self) -> Result<(), String> {
        let others = self.members().into_iter();
        let others = others.filter(|m| m.voter && m.id != self.0.id && m.acknowledged.is_some());
        let next = others.max_by_key(|m| m.next_index);
        let next = next.ok_or("no other voter answers that could lead")?.name;
        let grants = self.0.services.step_down.get();
        if let Some(stop) = &grants {
            stop(true);
        }
        tracing::info!(
            event = "stepping-down",
            member = next,
            "this member lets {next:?} lead"
        );
        let transferred = self.transfer_leader(&next).await;
        if transferred.is_err()
            && let Some(stop) = &grants
        {
            stop(false);
        }
        transferred.map_err(|e| e.to_string())
    }

    /// Who is told that leadership is about to be transferred.
    pub fn on_step_down(&self, handler: StepDownHandler) {
        self.0.services.step_down.set(handler);
    }

    /// Returns when everything that was committed anywhere before the call is applied here. Only on the leader, which proves with a
    /// round of messages that it still is.
    ///
    /// # Errors
    /// If this member does not lead.
    pub async fn barrier(&self) -> Result<(), ClusterError> {
        self.0
            .raft
            .ensure_linearizable(openraft::ReadPolicy::ReadIndex)
            .await
            .map(drop)
            .map_err(failed)
    }

    /// Returns when all that was committed before this member started is applied here: from then on its state is not older than what
    /// it showed before. That needs a leader, so there is no end to it without one.
    ///
    /// # Errors
    /// If Raft failed.
    pub async fn recovered(&self) -> Result<(), ClusterError> {
        self.0
            .raft
            .wait_for_recovery(None)
            .await
            .map(drop)
            .map_err(failed)
    }

    /// Answers [`Cluster::renew_leases`] of other members from now on: gets the name of who asks, and what it says.
    pub fn on_renew_leases(&self, handler: LeaseHandler) {
        self.0.services.leases.set(handler);
    }

    /// Asks another member (the leader) about leases. Is it this one, its handler is called.
    ///
    /// # Errors
    /// If it does not answer within the deadline, or refuses.
    pub async fn renew_leases(
        &self,
        leader: &Leader,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ClusterError> {
        if leader.id == self.0.id {
            let handler = self
                .0
                .services
                .leases
                .get()
                .ok_or_else(|| failed("leases are not granted here"))?;
            return handler(self.0.name.clone(), request).await.map_err(failed);
        }
        let peers = self.0.peers.as_ref().ok_or_else(|| failed("no peers"))?;
        let mut peer = peers.peer(&Node {
            name: leader.name.clone(),
            address: leader.address.clone(),
        });
        self.spawn(async move { peer.renew_leases(request, deadline).await.map_err(failed) })
            .await
    }

    /// Answers [`Cluster::forward`] of other members from now on.
    pub fn on_forward(&self, handler: ForwardHandler) {
        self.0.services.forwarded.set(handler);
    }

    /// Has another member do what an operator asked for.
    ///
    /// # Errors
    /// If there is no such member, or it does not answer within the deadline; then it may do it nevertheless.
    pub async fn forward(
        &self,
        member: &str,
        call: CallRequest,
        deadline: Duration,
    ) -> Result<CallReply, ClusterError> {
        let all = self.members().into_iter();
        let node = all
            .map(|m| Node {
                name: m.name,
                address: m.address,
            })
            .find(|node| node.name == member)
            .ok_or_else(|| ClusterError::NoSuchMember(member.to_owned()))?;
        let peers = self.0.peers.clone().ok_or_else(|| failed("no peers"))?;
        let asked = async move {
            let reply = peers.forward(&node, call, deadline).await;
            reply.map_err(|status| failed(status.message()))
        };
        self.spawn(asked).await
    }

    /// Takes packets that other members relay ([`Cluster::relay`]) from now on.
    pub fn on_relay(&self, handler: RelayHandler) {
        self.0.services.relays.set(handler);
    }

    /// Opens a way for packets to another member. The first payload says what they are of; the others follow from the channel, in order, until
    /// it ends. What this yields is over when the other member takes no more, or is gone.
    ///
    /// # Errors
    /// If it does not answer within the deadline, or refuses; or if it is this member.
    pub async fn relay(
        &self,
        member: &str,
        first: Bytes,
        packets: mpsc::Receiver<Bytes>,
        deadline: Duration,
    ) -> Result<BoxFuture<'static, ()>, ClusterError> {
        let members = self.members();
        let member = members.into_iter().find(|m| m.name == member);
        let member = member.filter(|m| m.id != self.0.id);
        let member = member.ok_or_else(|| failed("there is no such other member"))?;
        let peers = self.0.peers.as_ref().ok_or_else(|| failed("no peers"))?;
        let mut peer = peers.relay(&Node {
            name: member.name,
            address: member.address,
        });
        self.spawn(async move {
            let end = peer.relay(first, packets, deadline).await.map_err(failed)?;
            Ok(end.boxed())
        })
        .await
    }

    /// On Raft's own threads: connections belong to the runtime on which they are first used.
    async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ClusterError>> + Send + 'static,
    ) -> Result<T, ClusterError> {
        self.0.runtime.spawn(work).await.map_err(failed)?
    }
}

fn failed(error: impl fmt::Display) -> ClusterError {
    ClusterError::Failed(error.to_string())
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.0.id)
            .field("name", &self.0.name)
            .field("leader", &*self.0.leader.borrow())
            .finish_non_exhaustive()
    }
}
