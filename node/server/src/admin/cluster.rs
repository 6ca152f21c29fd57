//! What operators ask of the cluster.

use crate::node::Node;
use evergate_cluster::raft::MemberStatus;
use evergate_ike::{
    config::GatewayConfig,
    record::{GatewayId, Phase},
};
use evergate_proto::admin::{
    ClusterGateway, DrainMemberRequest, DrainMemberResponse, ListGatewaysResponse,
    ListKeysResponse, ListMembersResponse, Member, MemberKey, MoveGatewayRequest,
    MoveGatewayResponse, Way,
};
use evergate_state::{Command, Enrolment, Outcome, Place, Refusal, Stage, State};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::Status;

/// No call waits longer than this, whatever its deadline is.
const LONGEST: Duration = Duration::from_secs(60);

/// How often to ask the leader again.
const AGAIN: Duration = Duration::from_millis(500);

/// The members.
pub(super) fn members(node: &Node) -> ListMembersResponse {
    let own = |state: &State, name: &str| {
        let has = |g: &evergate_state::Gateway| g.owner.as_ref().is_some_and(|o| o.member == name);
        count(state.gateways().filter(|(_, g)| has(g)).count())
    };
    let mut members: Vec<Member> = node.read(|state| {
        let all = node.replica.cluster().members();
        let coming = state
            .enrolments()
            .filter(|(name, _)| all.iter().all(|m| m.name != *name));
        let coming = coming.map(|(name, e)| Member {
            name: name.to_owned(),
            address: e.address.clone(),
            weight: state.place(name).weight,
            way: match e.stage {
                Stage::Invited { .. } => Way::Invited.into(),
                Stage::Admitted { .. } => Way::Joining.into(),
            },
            ..Member::default()
        });
        let coming: Vec<Member> = coming.collect();
        let there = all.into_iter().map(|m| {
            let Place { zone, weight } = state.place(&m.name);
            Member {
                gateways: own(state, &m.name),
                draining: state.member(&m.name).is_some_and(|known| known.draining),
                way: way(state, &m).into(),
                name: m.name,
                address: m.address,
                voter: m.voter,
                leader: m.leader,
                acknowledged_ms: m
                    .acknowledged
                    .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
                lag: m.lag,
                zone,
                weight,
            }
        });
        there.chain(coming).collect()
    });
    members.sort_by(|a, b| a.name.cmp(&b.name));
    ListMembersResponse { members }
}

/// The cluster keys.
pub(super) fn keys(node: &Node) -> ListKeysResponse {
    let keys = node.read(|state| {
        let of = |name: &str| {
            let keys = state.keys_of(name).cloned().unwrap_or_default();
            let name = name.to_owned();
            let has = keys.has.into_iter().enumerate();
            let all = has.map(move |(n, key)| MemberKey {
                member: name.clone(),
                key: key.to_string(),
                used: state.sealing_key() == Some(key),
                first: n == 0,
                needed: keys.needs.contains(&key),
            });
            all.collect::<Vec<_>>()
        };
        state.members().flat_map(|(name, _)| of(name)).collect()
    });
    ListKeysResponse { keys }
}

/// How far a member of Raft is.
fn way(state: &State, member: &MemberStatus) -> Way {
    let joins = |e: &Enrolment| e.stage == Stage::Admitted { node: member.id };
    if state.dismissed(member.id).is_some() {
        Way::Leaving
    } else if state.enrolment(&member.name).is_some_and(joins) {
        Way::Joining
    } else {
        Way::Unspecified
    }
}

/// The virtual gateways.
pub(super) fn gateways(node: &Node) -> ListGatewaysResponse {
    let gateways = node.read(|state| {
        let policy = state.policy();
        if policy.gateways.is_empty() {
            return vec![gateway(state, GatewayId(0), None)];
        }
        let all = policy.gateways.iter();
        all.map(|g| gateway(state, g.id, Some(g))).collect()
    });
    ListGatewaysResponse { gateways }
}

fn gateway(state: &State, id: GatewayId, config: Option<&GatewayConfig>) -> ClusterGateway {
    let owner = state.gateway(id).and_then(|g| g.owner.as_ref());
    let open = |r: &&Arc<_>| {
        let record: &evergate_ike::record::Record = r;
        record.gateway == id && !matches!(record.phase, Phase::Closed(_))
    };
    let mut listed = ClusterGateway {
        id: id.0,
        epoch: state.epoch(id),
        member: owner.map(|o| o.member.clone()).unwrap_or_default(),
        ..ClusterGateway::default()
    };
    for record in state.sas().filter(open) {
        listed.ike_sas += 1;
        listed.children += count(record.children().len());
    }
    if let Some(config) = config {
        listed.name.clone_from(&config.name);
        listed.outer = config.outer.iter().map(ToString::to_string).collect();
        listed.inner = config.inner.iter().map(ToString::to_string).collect();
    }
    listed
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Moves a gateway, and waits until it is there.
pub(super) async fn move_gateway(
    node: &Arc<Node>,
    request: MoveGatewayRequest,
) -> Result<MoveGatewayResponse, Status> {
    let policy = node.policy.load_full();
    let gateway = policy.gateways.iter().find(|g| g.name == request.gateway);
    let gateway = gateway
        .ok_or_else(|| Status::not_found(format!("there is no gateway {:?}", request.gateway)))?
        .id;
    if node.read(|s| s.member(&request.member).is_none()) {
        return Err(no_member(&request.member));
    }
    let there = |state: &State| {
        let has = state.gateway(gateway)?;
        let owner = has.owner.as_ref()?;
        (owner.member == request.member && state.is_current(owner)).then_some(has.epoch)
    };
    let deadline = Instant::now() + LONGEST;
    loop {
        if let Some(epoch) = node.read(there) {
            return Ok(MoveGatewayResponse { epoch });
        }
        node.membership
            .ask_to_move(gateway, &request.member)
            .await
            .map_err(Status::failed_precondition)?;
        let mut applied = node.replica.applied();
        let moved = applied.wait_for(|_| node.read(there).is_some());
        if tokio::time::timeout(AGAIN, moved).await.is_err() && Instant::now() >= deadline {
            return Err(Status::deadline_exceeded("the gateway has not moved yet"));
        }
    }
}

/// Lets a member have no gateways, and waits until it has none; or lets it have some again.
pub(super) async fn drain(
    node: &Arc<Node>,
    request: DrainMemberRequest,
) -> Result<DrainMemberResponse, Status> {
    if !request.undo && node.membership.is_alone() {
        return Err(Status::failed_precondition(
            "this member is alone: nobody else could have its gateways",
        ));
    }
    let has = |state: &State| {
        let own = |g: &evergate_state::Gateway| {
            g.owner.as_ref().is_some_and(|o| o.member == request.member)
        };
        count(state.gateways().filter(|(_, g)| own(g)).count())
    };
    let before = node.read(has);
    let command = Command::SetDraining {
        member: request.member.clone(),
        draining: !request.undo,
    };
    match node.propose(command).await {
        Ok(Outcome::Refused(Refusal::UnknownMember(name))) => return Err(no_member(&name)),
        Ok(Outcome::Refused(refusal)) => {
            return Err(Status::failed_precondition(refusal.to_string()));
        }
        Ok(_) => {}
        Err(failed) => return Err(Status::unavailable(failed.to_string())),
    }
    if request.undo {
        return Ok(DrainMemberResponse { moved: 0 });
    }
    let mut applied = node.replica.applied();
    let empty = applied.wait_for(|_| node.read(has) == 0);
    match tokio::time::timeout(LONGEST, empty).await {
        Ok(Ok(_)) => Ok(DrainMemberResponse { moved: before }),
        Ok(Err(_)) => Err(Status::unavailable("the member is stopping")),
        Err(_) => Err(Status::deadline_exceeded(
            "it still has gateways; the attempt goes on",
        )),
    }
}

pub(super) fn no_member(name: &str) -> Status {
    Status::not_found(format!("there is no member {name:?}"))
}
