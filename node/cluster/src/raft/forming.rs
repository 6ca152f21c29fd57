//! How a member becomes part of a cluster: as the node that it was, with others that are new as well, taken in by others, or alone.

use super::{
    Entrance, JoinError, JoinToken, RaftConfig,
    log::{Identity, LogStore},
    machine::Machine,
    roster::{Known, Roster},
    succession::{from_proto, others},
    transport::{Network, Peers, decode},
    types::{Membership, Node, NodeId, Raft},
};
use crate::{Generation, KeyRing, replica::Shared, store::Snapshots};
use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use bytes::Bytes;
use evergate_proto::cluster::{HelloRequest, JoinRequest};
use openraft::{ChangeMembers, async_runtime::WatchReceiver as _};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time};
use tonic::Code;

/// How often a new member asks the others.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long a member that forms a cluster alone waits whether others greet it, which they do each second.
const GREETING: Duration = Duration::from_millis(2500);

/// Which node this is, and how it begins.
pub(super) struct Role {
    pub(super) node: NodeId,
    /// The generation of the cluster that it is part of.
    pub(super) generation: Generation,
    begin: Begin,
    /// It has to ask the members that it is configured with to take it in.
    asks: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// It goes on.
    Restart,
    /// All members are new.
    Form,
    /// The others are a cluster already, of which it was part, and take it in.
    Join,
    /// They let it in already.
    Enter,
}

/// A member with an empty log may have had another one: it could have voted, and have acknowledged entries. So it asks all others
/// whether there is a cluster, and if there is it comes back under a new node, which never voted.
pub(super) async fn decide(
    config: &RaftConfig,
    identity: Identity,
    peers: Option<&Peers>,
    ring: &KeyRing,
    (log, snapshots): (&LogStore, &dyn Snapshots),
    known: &Known,
) -> Result<Role, JoinError> {
    let restarts = identity.node.is_some() && !identity.pristine;
    // One that ended right after it was let in may have voted, and know nobody: it would listen to nobody.
    let is_stranger = log.membership().is_none() && snapshots.list()?.is_empty();
    if let Some(node) = identity.node
        && restarts
        && !(is_stranger && config.entrance.is_some())
    {
        return Ok(Role {
            node,
            generation: identity.generation,
            begin: Begin::Restart,
            asks: is_stranger,
        });
    }
    if let Some(entrance) = &config.entrance
        && let Some(peers) = peers
    {
        // The same node again, as far as it has one: then its token is still good.
        let node = identity.node.map_or_else(new_node, Ok)?;
        log.name(node)
            .await
            .map_err(|e| JoinError::System("log", e))?;
        let request = join_request(config, node, entrance.token.as_ref(), ring);
        let generation = enter(entrance, peers, &request, known).await?;
        return Ok(Role {
            node,
            generation,
            begin: match restarts {
                true => Begin::Restart,
                false => Begin::Enter,
            },
            asks: false,
        });
    }
    let (begin, generation) = meet(config, peers, ring).await?;
    let node = match begin {
        Begin::Form => id_of(&config.name),
        _ => new_node()?,
    };
    Ok(Role {
        node,
        generation,
        begin,
        asks: begin == Begin::Join,
    })
}

/// A member that is to form a cluster alone has nobody to ask whether there is one already, which it has been part of: it would form a second one, with the same
/// addresses. But the others would greet it, each second.
pub(super) async fn nobody_greets(
    config: &RaftConfig,
    greeted: &watch::Sender<bool>,
) -> Result<(), JoinError> {
    let mut heard = greeted.subscribe();
    match time::timeout(GREETING, heard.wait_for(|greeted| *greeted)).await {
        Err(_) => Ok(()),
        Ok(_) => Err(JoinError::Config(format!(
            "{} is empty, and {:?} is to form a cluster alone; but members of a cluster take it for one of theirs: it has lost what it had. \
             Name their addresses in `join`, in the place of `members`",
            config.storage, config.name
        ))),
    }
}

/// Asks all others whether there is a cluster, and of which generation it is.
async fn meet(
    config: &RaftConfig,
    peers: Option<&Peers>,
    ring: &KeyRing,
) -> Result<(Begin, Generation), JoinError> {
    let members =
        postcard::to_stdvec(&config.members).map_err(|e| JoinError::Config(e.to_string()))?;
    let request = HelloRequest {
        key_check: key_check(ring),
        members: members.into(),
        node: 0,
        generation: None,
    };
    let others: Vec<&Node> = config
        .members
        .iter()
        .filter(|n| n.name != config.name)
        .collect();
    loop {
        let (mut forming, mut silent, mut stranger) = (true, None, None);
        let mut generation = Generation::FIRST;
        for node in &others {
            let Some(peers) = peers else { continue };
            match peers.peer(node).hello(request.clone()).await {
                Ok(answer) => {
                    forming &= answer.forming;
                    generation = generation.max(from_proto(answer.generation));
                }
                Err(status) if status.code() == Code::PermissionDenied => {
                    stranger = Some((node, status));
                }
                Err(status) => silent = Some((node, status)),
            }
        }
        match (silent, stranger) {
            _ if !forming => return Ok((Begin::Join, generation)),
            (None, None) => return Ok((Begin::Form, generation)),
            // They have other members than these.
            (_, Some((node, status))) => {
                return Err(JoinError::Refused(format!(
                    "{:?} says: {}; a member that is new needs a token (`evergate ctl member add`)",
                    node.name,
                    status.message()
                )));
            }
            (Some((node, status)), None) => {
                tracing::info!(member = node.name, %status, "waiting for all members");
            }
        }
        time::sleep(ASK_AGAIN).await;
    }
}

/// Asks members until the leader lets this one in, which does not mean that it has been taken in. Yields the generation of the cluster.
async fn enter(
    entrance: &Entrance,
    peers: &Peers,
    request: &JoinRequest,
    known: &Known,
) -> Result<Generation, JoinError> {
    let mut said = String::new();
    loop {
        let strangers = entrance.addresses.iter();
        let strangers = strangers.map(|a| (a.clone(), peers.stranger(a)));
        let met = known.latest().nodes;
        let met = met.iter().filter(|n| n.name != request.name);
        let met = met.map(|n| (n.name.clone(), peers.peer(n)));
        let all: Vec<_> = strangers.chain(met).collect();
        for (who, mut peer) in all {
            match peer.join(request.clone()).await {
                Ok(reply) => {
                    let roster = decode::<Roster>(&reply.members);
                    let roster = roster.map_err(|e| JoinError::Refused(e.message().to_owned()))?;
                    known.tell(roster);
                    if reply.admitted {
                        return Ok(from_proto(reply.generation));
                    }
                }
                Err(status) => {
                    let why = format!("{who}: {}", status.message());
                    if matches!(
                        status.code(),
                        Code::PermissionDenied | Code::FailedPrecondition | Code::ResourceExhausted
                    ) {
                        return Err(JoinError::Refused(why));
                    }
                    if why != said {
                        tracing::info!(event = "join-waits", "not let in yet: {why}");
                        said = why;
                    }
                }
            }
        }
        time::sleep(ASK_AGAIN).await;
    }
}

fn join_request(
    config: &RaftConfig,
    node: NodeId,
    token: Option<&JoinToken>,
    ring: &KeyRing,
) -> JoinRequest {
    JoinRequest {
        id: node,
        key_check: key_check(ring),
        name: config.name.clone(),
        token: token
            .map(|t| t.expose().to_vec())
            .unwrap_or_default()
            .into(),
    }
}

/// Asks one member after the other until it has been taken in: those that it is configured with, and those that they tell of. One that came later may lead, and is
/// listened to only if it is known.
async fn join(configured: Vec<Node>, request: JoinRequest, peers: Peers, known: Known) {
    let has_this = |members: Arc<Membership>| members.get_node(&request.id).is_some();
    let taken_in = || known.membership().is_some_and(has_this);
    while !taken_in() {
        for node in others(&configured, &known.latest(), &request.name) {
            let answer = peers.peer(&node).join(request.clone()).await;
            match answer.and_then(|reply| decode::<Roster>(&reply.members)) {
                Ok(roster) => known.tell(roster),
                Err(status) => {
                    tracing::debug!(member = node.name, %status, "not taken in yet");
                }
            }
        }
        time::sleep(ASK_AGAIN).await;
    }
}

/// A node that never was.
pub(super) fn new_node() -> Result<NodeId, JoinError> {
    // Those that form a cluster have none of these two bits set.
    Ok(random()? >> 1 | 1 << 62)
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

/// A member that has to ask the others to take it in does.
pub(super) fn ask_to_join(
    tasks: &mut JoinSet<()>,
    config: &RaftConfig,
    role: &Role,
    ring: &KeyRing,
    peers: Option<Peers>,
    known: &Known,
) {
    if role.asks
        && let Some(peers) = peers
    {
        let request = join_request(config, role.node, None, ring);
        let configured = config.members.clone();
        tasks.spawn(join(configured, request, peers, known.clone()));
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
    let alone = is_alone(config, role.node, &stored)?;
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
fn is_alone(config: &RaftConfig, own: NodeId, stored: &Membership) -> Result<bool, JoinError> {
    let names: Vec<&str> = stored.nodes().map(|(_, n)| n.name.as_str()).collect();
    let alone = match names.len() {
        0 => config.members.len() == 1 && config.entrance.is_none(),
        // Not somebody else, who removed it.
        _ => stored.nodes().map(|(id, _)| *id).eq([own]),
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
    if unreachable && (config.members.len() > 1 || config.entrance.is_some()) {
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
