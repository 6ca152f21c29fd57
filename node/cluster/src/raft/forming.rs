//! How a member becomes part of a cluster: as the node that it was, with others that are new as well, taken in by others, or alone.

use super::{
    JoinError, RaftConfig,
    log::{Identity, LogStore},
    machine::Machine,
    transport::{Network, Peers},
    types::{Membership, Node, NodeId, Raft},
};
use crate::{KeyRing, replica::Shared};
use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use bytes::Bytes;
use evergate_proto::cluster::{HelloRequest, JoinRequest};
use openraft::{ChangeMembers, async_runtime::WatchReceiver as _};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time};

/// How often a new member asks the others.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Which node this is, and how it begins.
pub(super) struct Role {
    pub(super) node: NodeId,
    begin: Begin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// It goes on.
    Restart,
    /// All members are new.
    Form,
    /// The others are a cluster already.
    Join,
}

/// A member with an empty log may have had another one: it could have voted, and have acknowledged entries. So it asks all others
/// whether there is a cluster, and if there is it comes back under a new node, which never voted.
pub(super) async fn decide(
    config: &RaftConfig,
    identity: Identity,
    peers: Option<&Peers>,
    ring: &KeyRing,
) -> Result<Role, JoinError> {
    if let Some(node) = identity.node
        && !identity.pristine
    {
        return Ok(Role {
            node,
            begin: Begin::Restart,
        });
    }
    let members =
        postcard::to_stdvec(&config.members).map_err(|e| JoinError::Config(e.to_string()))?;
    let request = HelloRequest {
        key_check: key_check(ring),
        members: members.into(),
    };
    let others: Vec<&Node> = config
        .members
        .iter()
        .filter(|n| n.name != config.name)
        .collect();
    let begin = loop {
        let mut forming = true;
        let mut silent = None;
        for node in &others {
            let Some(peers) = peers else { continue };
            match peers.peer(node).hello(request.clone()).await {
                Ok(answer) => forming &= answer,
                Err(status) => silent = Some((node, status)),
            }
        }
        match silent {
            _ if !forming => break Begin::Join,
            None => break Begin::Form,
            Some((node, status)) => {
                tracing::info!(member = node.name, %status, "waiting for all members");
            }
        }
        time::sleep(ASK_AGAIN).await;
    };
    let node = match begin {
        Begin::Form => id_of(&config.name),
        _ => random()? >> 1 | 1 << 62,
    };
    Ok(Role { node, begin })
}

struct JoinTask {
    others: Vec<Node>,
    request: JoinRequest,
}

fn config_for_join(config: &RaftConfig, role: &Role, ring: &KeyRing) -> JoinTask {
    let (own, others): (Vec<Node>, Vec<Node>) = config
        .members
        .iter()
        .cloned()
        .partition(|n| n.name == config.name);
    JoinTask {
        others,
        request: JoinRequest {
            id: role.node,
            address: own.into_iter().map(|n| n.address).collect(),
            key_check: key_check(ring),
        },
    }
}

/// Asks one member after the other until the leader has taken this one in.
async fn join(task: JoinTask, peers: Peers, raft: Raft) {
    while raft.voter_ids().all(|id| id != task.request.id) {
        for node in &task.others {
            match peers.peer(node).join(task.request.clone()).await {
                Ok(()) => return,
                Err(status) => {
                    tracing::debug!(member = node.name, %status, "not taken in yet");
                }
            }
        }
        time::sleep(ASK_AGAIN).await;
    }
}

/// The node of a member that forms the cluster: the same on all members, from its name.
fn id_of(name: &str) -> NodeId {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_ref()[..8]);
    // Those of members that join later have this bit set.
    (u64::from_be_bytes(bytes) >> 2).max(1)
}

pub(super) fn random() -> Result<u64, JoinError> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| JoinError::Config("the system has no randomness".into()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// What a member says to show that it has a key that others have, too.
pub(super) fn key_check(ring: &KeyRing) -> Bytes {
    Bytes::copy_from_slice(&ring.check())
}

/// A member that is new asks the others to take it in.
pub(super) fn ask_to_join(
    tasks: &mut JoinSet<()>,
    config: &RaftConfig,
    role: &Role,
    ring: &KeyRing,
    peers: Option<Peers>,
    raft: &Raft,
) {
    if role.begin == Begin::Join
        && let Some(peers) = peers
    {
        let asked = config_for_join(config, role, ring);
        tasks.spawn(join(asked, peers, raft.clone()));
    }
}

async fn start_raft(
    config: &RaftConfig,
    role: &Role,
    log: LogStore,
    machine: Machine,
    peers: Option<Peers>,
) -> Result<Raft, JoinError> {
    let settings = Arc::new(config.raft()?);
    let network = Network(peers);
    let raft = Raft::new(role.node, settings, network, log, machine)
        .await
        .map_err(|e| JoinError::Raft(e.to_string()))?;
    if role.begin == Begin::Form {
        let members: BTreeMap<NodeId, Node> = config
            .members
            .iter()
            .map(|node| (id_of(&node.name), node.clone()))
            .collect();
        // Refused if another member was faster and its first entry is here already, which is the same.
        if let Err(error) = raft.initialize(members).await {
            tracing::debug!(%error, "the cluster is formed by another member");
        }
    }
    Ok(raft)
}

/// Starts Raft as soon as that may be. A member that is alone leads then, and has applied all that was ever durable.
pub(super) async fn go_on(
    config: &RaftConfig,
    role: &Role,
    log: &LogStore,
    machine: Machine,
    peers: Option<Peers>,
    shared: &Shared,
) -> Result<Raft, JoinError> {
    let stored = log
        .membership()
        .unwrap_or_else(|| machine.membership().clone());
    let alone = is_alone(config, &stored)?;
    if role.begin == Begin::Restart && !alone {
        // Raft forgets over a restart that it believed in a leader: until that time is over it must not vote for another.
        time::sleep(config.timing.election_max).await;
    }
    if !alone {
        log.lead_no_more(role.node);
    }
    let raft = start_raft(config, role, log.clone(), machine, peers).await?;
    if alone {
        lead_alone(config, role.node, &raft, shared).await?;
    }
    Ok(raft)
}

/// Whether this member is all there is: then it waits for nobody.
fn is_alone(config: &RaftConfig, stored: &Membership) -> Result<bool, JoinError> {
    let names: Vec<&str> = stored.nodes().map(|(_, n)| n.name.as_str()).collect();
    let alone = match names.len() {
        0 => config.members.len() == 1,
        n => n == 1,
    };
    if !alone && config.credentials.is_none() {
        return Err(JoinError::Config(format!(
            "what is stored in {} is of a member of a cluster ({}), and the configuration of one that is alone: configure the cluster, or \
             move the directory away",
            config.storage,
            names.join(", ")
        )));
    }
    let unreachable = stored.nodes().any(|(_, n)| n.address.is_empty());
    if unreachable && config.members.len() > 1 {
        return Err(JoinError::Config(format!(
            "what is stored in {} is of a member that was alone, and the configuration of one of several: move the directory away",
            config.storage
        )));
    }
    Ok(alone)
}

/// Leads at once, and returns when all is applied that was ever durable: it is committed, as there is nobody else.
async fn lead_alone(
    config: &RaftConfig,
    node: NodeId,
    raft: &Raft,
    shared: &Shared,
) -> Result<(), JoinError> {
    let failed = |e: &dyn std::fmt::Display| JoinError::Raft(e.to_string());
    let led = async {
        // Else it would wait for the next tick. Does nothing if it leads already.
        raft.trigger().elect(false).await.map_err(|e| failed(&e))?;
        raft.wait_for_recovery(None).await.map_err(|e| failed(&e))?;
        let own = config.members.iter().find(|n| n.name == config.name);
        let stored = raft.metrics().borrow_watched().membership_config.clone();
        if let Some(own) = own
            && stored.get_node(&node).is_some_and(|n| n != own)
        {
            // Its name is another one now.
            let change = ChangeMembers::SetNodes(BTreeMap::from([(node, own.clone())]));
            let changed = raft.change_membership(change, true).await;
            changed.map_err(|e| failed(&e))?;
        }
        Ok::<(), JoinError>(())
    };
    let mut why = shared.failed.subscribe();
    tokio::select! {
        led = led => led.map_err(|e| shared.failed.get().map_or(e, JoinError::Log)),
        reason = why.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|r| r.clone());
            Err(JoinError::Log(reason.unwrap_or_else(|| "the log ended".into())))
        }
    }
}
