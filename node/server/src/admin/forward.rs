//! Who does what an operator asks for: the member that serves the SA, or the gateway that it will belong to. What another member serves is
//! forwarded to it, and one hop only: what came from another member is done here or not at all.

use super::{listing, members, operations};
use crate::{doctor, node::Node};
use evergate_cluster::raft::ForwardHandler;
use evergate_ike::record::{GatewayId, Record, SaId};
use evergate_proto::{
    admin::{
        ChildStats, InitiateRequest, InitiateResponse, ListSasRequest, RekeyRequest, RekeyResponse,
        TerminateRequest, TerminateResponse, rekey_request, terminate_request,
    },
    forward::{
        CallReply, CallRequest, Counters, Refusal, call_reply::Result as Answer, call_request::Call,
    },
};
use futures::{FutureExt, future::join_all};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tonic::{Code, Status};
use tracing::{debug, info};

/// Another member is waited for a little longer than it waits itself, so that its own reason is heard.
const ANSWER: Duration = operations::LONGEST.saturating_add(Duration::from_secs(5));
/// A listing waits so long for what other members counted.
const COUNTERS: Duration = Duration::from_secs(1);
/// A member tells the counters of so many Child SAs at once: with every reason of a drop they fit into a message between members.
const MAX_COUNTED: usize = 32_768;

/// Who serves a gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Here,
    /// Another member.
    At(String),
}

/// Sets up a Child SA, here or at the member that serves its gateway.
pub(super) async fn initiate(
    node: &Arc<Node>,
    request: InitiateRequest,
) -> Result<InitiateResponse, Status> {
    let gateway = operations::gateway_of_initiation(node, &request)?;
    match place(node, gateway)? {
        Place::Here => operations::initiate(node, request).await,
        Place::At(member) => match ask(node, gateway, &member, Call::Initiate(request)).await? {
            Answer::Initiate(done) => Ok(done),
            _ => Err(nonsense(&member)),
        },
    }
}

/// Rekeys an SA, here or at the member that serves it.
pub(super) async fn rekey(
    node: &Arc<Node>,
    request: RekeyRequest,
) -> Result<RekeyResponse, Status> {
    let sa = match request.target {
        Some(rekey_request::Target::Ike(id)) => SaId(id),
        Some(rekey_request::Target::Child(spi)) => operations::owner(node, spi)?,
        None => return operations::rekey(node, request).await,
    };
    let gateway = operations::gateway_of_sa(node, sa)?;
    match place(node, gateway)? {
        Place::Here => operations::rekey(node, request).await,
        Place::At(member) => match ask(node, gateway, &member, Call::Rekey(request)).await? {
            Answer::Rekey(done) => Ok(done),
            _ => Err(nonsense(&member)),
        },
    }
}

/// Deletes SAs, each where it is served: those of a connection may be at several members.
pub(super) async fn terminate(
    node: &Arc<Node>,
    request: TerminateRequest,
) -> Result<TerminateResponse, Status> {
    let gateways = match &request.target {
        Some(terminate_request::Target::Ike(id)) => {
            BTreeSet::from([operations::gateway_of_sa(node, SaId(*id))?])
        }
        Some(terminate_request::Target::Child(spi)) => {
            let sa = operations::owner(node, *spi)?;
            BTreeSet::from([operations::gateway_of_sa(node, sa)?])
        }
        Some(terminate_request::Target::Connection(name)) => operations::gateways_with(node, name)?,
        None => return operations::terminate(node, request).await,
    };
    // Nothing is done unless all of it can be.
    let mut places: BTreeMap<Place, GatewayId> = BTreeMap::new();
    for gateway in gateways {
        places.insert(place(node, gateway)?, gateway);
    }
    let calls = places.into_iter().map(|(place, gateway)| {
        let request = request.clone();
        async move {
            match place {
                Place::Here => operations::terminate(node, request).await,
                Place::At(member) => {
                    match ask(node, gateway, &member, Call::Terminate(request)).await? {
                        Answer::Terminate(done) => Ok(done),
                        _ => Err(nonsense(&member)),
                    }
                }
            }
        }
    });
    let mut count = 0;
    for done in join_all(calls).await {
        count += done?.count;
    }
    Ok(TerminateResponse { count })
}

/// What the data planes of other members counted for the Child SAs of these records, by their SPIs. Who does not answer in time leaves none.
pub(super) async fn counters(
    node: &Arc<Node>,
    request: &ListSasRequest,
    records: &[Arc<Record>],
) -> HashMap<u32, ChildStats> {
    let membership = &node.membership;
    let gateways: BTreeSet<GatewayId> = records.iter().map(|r| r.gateway).collect();
    let places = gateways.into_iter().filter_map(|g| place(node, g).ok());
    let members: BTreeSet<Place> = places.filter(|p| *p != Place::Here).collect();
    let calls = members.into_iter().map(|place| async move {
        let Place::At(member) = place else {
            return HashMap::new();
        };
        let call = CallRequest {
            call: Some(Call::Count(request.clone())),
        };
        let told = membership.cluster.forward(&member, call, COUNTERS).await;
        match told.map(|reply| reply.result) {
            Ok(Some(Answer::Count(counters))) => counters.children,
            told => {
                debug!(event = "forward-failed", member, ?told, "no counters");
                HashMap::new()
            }
        }
    });
    join_all(calls).await.into_iter().flatten().collect()
}

/// Answers other members that were asked for what this one serves.
pub(super) fn answer_others(node: &Arc<Node>) {
    let weak = Arc::downgrade(node);
    let handler: ForwardHandler = Arc::new(move |from, request| {
        let node = weak.upgrade();
        async move {
            let result = match node {
                // Also of who serves nothing more: why, is what is asked.
                Some(node) if matches!(request.call, Some(Call::Examine(_))) => {
                    Ok(Answer::Examination(doctor::examine(&node)))
                }
                Some(node) if !node.failed.is_cancelled() => answer(&node, &from, request).await,
                _ => Err(Status::unavailable("this member no longer serves anything")),
            };
            let refused = |status: Status| {
                Answer::Refusal(Refusal {
                    code: status.code().into(),
                    message: status.message().to_owned(),
                })
            };
            CallReply {
                result: Some(result.unwrap_or_else(refused)),
            }
        }
        .boxed()
    });
    node.membership.cluster.on_forward(handler);
}

async fn answer(node: &Arc<Node>, from: &str, request: CallRequest) -> Result<Answer, Status> {
    let said = |what: &str| {
        info!(
            event = "forwarded",
            from, "{from} was asked to {what}, and this member does it"
        );
    };
    match request.call {
        Some(Call::Initiate(request)) => {
            said("initiate");
            let done = operations::initiate(node, request).await;
            done.map(Answer::Initiate)
        }
        Some(Call::Terminate(request)) => {
            said("terminate");
            let done = operations::terminate(node, request).await;
            done.map(Answer::Terminate)
        }
        Some(Call::Rekey(request)) => {
            said("rekey");
            let done = operations::rekey(node, request).await;
            done.map(Answer::Rekey)
        }
        Some(Call::Count(request)) => Ok(Answer::Count(count(node, &request))),
        Some(call @ (Call::AddMember(_) | Call::PromoteMember(_) | Call::RemoveMember(_))) => {
            said("change the members");
            members::here(node, call).await
        }
        Some(Call::Examine(_)) => Ok(Answer::Examination(doctor::examine(node))),
        None => Err(Status::unimplemented("this member knows no such call")),
    }
}

/// What was counted here.
fn count(node: &Node, request: &ListSasRequest) -> Counters {
    let records = listing::select(node, request);
    let here = records.iter().filter(|r| node.service(r.gateway).is_some());
    let spis = here.flat_map(|r| r.children().iter().map(|c| c.spi_in));
    let counted = spis.filter_map(|spi| Some((spi, listing::counted(node, spi)?)));
    Counters {
        children: counted.take(MAX_COUNTED).collect(),
    }
}

/// Who serves a gateway; an error if nobody does.
fn place(node: &Node, gateway: GatewayId) -> Result<Place, Status> {
    if node.service(gateway).is_some() {
        return Ok(Place::Here);
    }
    let owner = node.read(|s| Some(s.gateway(gateway)?.owner.as_ref()?.member.clone()));
    owner
        .filter(|member| *member != node.member)
        .map(Place::At)
        .ok_or_else(|| operations::not_served(node, gateway))
}

/// Has another member do something for a gateway.
async fn ask(node: &Node, gateway: GatewayId, member: &str, call: Call) -> Result<Answer, Status> {
    let name = operations::name_of(node, gateway);
    let silent = |why: &dyn std::fmt::Display| {
        Status::unavailable(format!(
            "gateway {name:?} is served by {member}, which does not answer: {why}"
        ))
    };
    let request = CallRequest { call: Some(call) };
    let cluster = &node.membership.cluster;
    let reply = cluster.forward(member, request, ANSWER).await;
    match reply.map_err(|e| silent(&e))?.result {
        Some(Answer::Refusal(refusal)) => Err(refused(refusal)),
        Some(answer) => Ok(answer),
        None => Err(nonsense(member)),
    }
}

/// What another member refuses, this one refuses.
pub(super) fn refused(refusal: Refusal) -> Status {
    let code = match Code::from(refusal.code) {
        Code::Ok => Code::Unknown,
        code => code,
    };
    Status::new(code, refusal.message)
}

pub(super) fn nonsense(member: &str) -> Status {
    Status::internal(format!("{member} gave an answer to another question"))
}
