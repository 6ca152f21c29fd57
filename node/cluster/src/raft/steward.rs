//! What the leader does for members that come and go, one step after the other. What is intended is in the replicated state, so that a later leader goes on
//! with it; who votes is in Raft's membership, and changes only here.
//!
//! A member that comes learns first, and votes when it has nearly all. One that replaces another begins to vote in the same change in which the other one
//! ceases to, so that there is never one voter more than before: with four voters of whom one is dead no other may die.

use super::{
    cluster::{Cluster, MemberStatus},
    types::{Node, NodeId},
};
use crate::replica::Shared;
use evergate_state::{Command, Enrolment, Stage, State};
use openraft::ChangeMembers;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{self, MissedTickBehavior};
use tracing::{info, warn};

/// Members that vote: a majority of more takes longer to answer than it is worth.
pub const MAX_VOTERS: usize = 7;

/// How often the leader looks.
const PERIOD: Duration = Duration::from_millis(100);

/// A learner has nearly all when it lacks no more entries than this: what is logged in some round trips under load.
const NEARLY: u64 = 256;

/// A learner learns at least so long, as a leader that was alone leases to itself without end, and has to notice first that it is not alone any more.
const LEAST: Duration = Duration::from_secs(1);

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A member is to learn.
    Learn(NodeId, Node),
    /// A member is to have no gateways: it will be replaced.
    Drain(String),
    /// The leader itself is to go: another one has to lead.
    Transfer,
    /// A node is told that it goes.
    Dismiss(NodeId, String),
    /// Members come and go in one change.
    Change {
        /// Learners that vote from now on.
        voters: BTreeMap<NodeId, Node>,
        /// Nodes that go, and whether they vote.
        gone: BTreeMap<NodeId, bool>,
    },
    /// A member is in as it should be.
    Settle(String, NodeId),
}

/// What the leader sees.
struct View<'a> {
    state: &'a State,
    members: &'a [MemberStatus],
    own: NodeId,
    /// Learners that have been there for long enough.
    ripe: &'a BTreeSet<NodeId>,
}

impl View<'_> {
    fn member(&self, id: NodeId) -> Option<&MemberStatus> {
        self.members.iter().find(|m| m.id == id)
    }

    fn next(&self) -> Option<Step> {
        let mut all = self.state.enrolments();
        let coming = all.find_map(|(name, enrolment)| match enrolment.stage {
            Stage::Admitted { node } => Some((name, node, enrolment)),
            Stage::Invited { .. } => None,
        });
        if let Some((name, node, enrolment)) = coming
            && let Some(step) = self.bring(name, node, enrolment)
        {
            return Some(step);
        }
        if let Some((name, node, enrolment)) = self.returns()
            && let Some(step) = self.bring(&name, node, &enrolment)
        {
            return Some(step);
        }
        // Who is replaced goes when its successor votes.
        let replaced = coming.and_then(|(_, _, e)| e.replaces.as_deref());
        let gone = self
            .members
            .iter()
            .find(|m| self.state.dismissed(m.id).is_some() && replaced != Some(m.name.as_str()))?;
        if gone.id == self.own {
            return Some(Step::Transfer);
        }
        Some(Step::Change {
            voters: BTreeMap::new(),
            gone: [(gone.id, gone.voter)].into(),
        })
    }

    /// A member that lost what it had learns as another node, and is to vote as before.
    fn returns(&self) -> Option<(String, NodeId, Enrolment)> {
        let voted = |m: &&MemberStatus| {
            let twice = |other: &MemberStatus| other.voter && other.name == m.name;
            !m.voter && self.members.iter().any(twice)
        };
        let back = self.members.iter().find(voted)?;
        let enrolment = Enrolment {
            address: back.address.clone(),
            learner: false,
            replaces: None,
            stage: Stage::Admitted { node: back.id },
        };
        Some((back.name.clone(), back.id, enrolment))
    }

    /// Brings a member in.
    fn bring(&self, name: &str, node: NodeId, enrolment: &Enrolment) -> Option<Step> {
        let wanted = Node {
            name: name.to_owned(),
            address: enrolment.address.clone(),
        };
        let Some(there) = self.member(node) else {
            return Some(Step::Learn(node, wanted));
        };
        let leaves = |m: &&MemberStatus| {
            m.id != node && (m.name == name || Some(&m.name) == enrolment.replaces.as_ref())
        };
        let leaving: Vec<&MemberStatus> = self.members.iter().filter(leaves).collect();
        let votes = there.voter || enrolment.learner;
        if votes && leaving.is_empty() {
            return Some(Step::Settle(name.to_owned(), node));
        }
        let caught_up = there.lag.is_some_and(|lag| lag <= NEARLY);
        if !caught_up || (!there.voter && !self.ripe.contains(&node)) {
            return None;
        }
        if let Some(old) = leaving.iter().find(|m| m.name != name)
            && let Some(step) = self.relieve(old)
        {
            return step;
        }
        let staying = self.members.iter().filter(|m| m.voter && !leaves(m));
        if !votes && staying.count() >= MAX_VOTERS {
            return None;
        }
        let voter = (!votes).then_some((node, there.node()));
        Some(Step::Change {
            voters: voter.into_iter().collect(),
            gone: leaving.iter().map(|m| (m.id, m.voter)).collect(),
        })
    }

    /// What has to be done before a member can be replaced: `None` if that is all done, and nothing inside if it is being done.
    fn relieve(&self, old: &MemberStatus) -> Option<Option<Step>> {
        if self.state.dismissed(old.id).is_some() {
            return None;
        }
        if self.state.gateways_of(&old.name) > 0 {
            let member = self.state.member(&old.name);
            let drains = member.is_none_or(|m| m.draining);
            return Some((!drains).then(|| Step::Drain(old.name.clone())));
        }
        if old.id == self.own {
            return Some(Some(Step::Transfer));
        }
        Some(Some(Step::Dismiss(old.id, old.name.clone())))
    }
}

/// Looks after members as long as this one leads.
pub(super) async fn run(cluster: Cluster, shared: Arc<Shared>) {
    let mut period = time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut learners: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        period.tick().await;
        if !cluster.is_leader() {
            learners.clear();
            continue;
        }
        if cluster.is_changing() {
            finish(&cluster).await;
            continue;
        }
        let members = cluster.members();
        learners.retain(|id, _| members.iter().any(|m| m.id == *id && !m.voter));
        for learner in members.iter().filter(|m| !m.voter) {
            learners.entry(learner.id).or_insert_with(Instant::now);
        }
        let long = learners
            .iter()
            .filter(|(_, since)| since.elapsed() >= LEAST);
        let ripe = long.map(|(id, _)| *id).collect();
        let step = shared.read(|state| {
            let view = View {
                state,
                members: &members,
                own: cluster.id(),
                ripe: &ripe,
            };
            view.next()
        });
        if let Some(step) = step
            && let Err(why) = take(&cluster, &shared, step.clone()).await
        {
            warn!(
                event = "membership-failed",
                ?step,
                "the members are not changed yet: {why}"
            );
            time::sleep(PERIOD * 5).await;
        }
    }
}

/// A leader has died between the two entries of a change of voters: until the second one is logged two majorities count, and nothing else can be changed. It is
/// for who leads now to log it.
async fn finish(cluster: &Cluster) {
    info!(
        event = "members-change",
        "a change of the members that a former leader began is finished"
    );
    // Adds nobody: it only ends what is joint.
    let nobody = ChangeMembers::AddVoterIds(BTreeSet::new());
    if let Err(why) = cluster.change(nobody).await {
        warn!(
            event = "membership-failed",
            "the members are not changed yet: {why}"
        );
        time::sleep(PERIOD * 5).await;
    }
}

/// Takes a step. The next look sees what came of it.
async fn take(cluster: &Cluster, shared: &Shared, step: Step) -> Result<(), String> {
    match step {
        Step::Learn(id, node) => {
            info!(
                event = "member-learns",
                member = node.name,
                node = id,
                address = node.address,
                "{:?} learns what the cluster has",
                node.name
            );
            cluster.add_learner(id, node).await
        }
        Step::Transfer => cluster.step_down().await,
        Step::Drain(member) => {
            propose(
                shared,
                Command::SetDraining {
                    member,
                    draining: true,
                },
            )
            .await
        }
        Step::Dismiss(node, member) => propose(shared, Command::Dismiss { member, node }).await,
        Step::Settle(member, node) => {
            info!(
                event = "member-joined",
                member, node, "{member:?} is part of the cluster"
            );
            let node = Some(node);
            propose(shared, Command::EndEnrolment { member, node }).await
        }
        Step::Change { voters, gone } => {
            let named = voters.values().map(|n| n.name.as_str());
            info!(
                event = "members-change",
                votes = named.collect::<Vec<_>>().join(" "),
                ?gone,
                "voters come, or members go"
            );
            let of = |votes: bool| -> BTreeSet<NodeId> {
                let gone = gone.iter().filter(|(_, v)| **v == votes);
                gone.map(|(id, _)| *id).collect()
            };
            cluster
                .change(ChangeMembers::Batch(vec![
                    ChangeMembers::AddVoters(voters),
                    // They are not kept as learners.
                    ChangeMembers::RemoveVoters(of(true)),
                    ChangeMembers::RemoveNodes(of(false)),
                ]))
                .await
        }
    }
}

async fn propose(shared: &Shared, command: Command) -> Result<(), String> {
    let outcomes = shared.propose(vec![command]).await;
    outcomes.map(drop).map_err(|e| e.to_string())
}
