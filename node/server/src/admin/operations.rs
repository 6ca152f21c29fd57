//! What operators ask of SAs, and the wait until it is done.

use crate::{
    node::{Node, gateway_of},
    shared::Shared,
    starter,
    worker::{Message, Notice, Watcher},
};
use evergate_ike::{
    config::{Connection, Policy},
    record::{GatewayId, Phase, Record, SaId},
    sa::{Command, Event, Failure},
};
use evergate_proto::admin::{
    InitiateRequest, InitiateResponse, RekeyRequest, RekeyResponse, TerminateRequest,
    TerminateResponse, rekey_request, terminate_request,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tonic::Status;

/// Room for events that a call has not looked at yet.
const NOTICES: usize = 64;

/// No call waits longer than this, whatever its deadline is: a request is given up before.
pub(super) const LONGEST: Duration = Duration::from_secs(300);

/// Sets up a Child SA, and an IKE SA if there is none.
pub(crate) async fn initiate(
    node: &Arc<Node>,
    request: InitiateRequest,
) -> Result<InitiateResponse, Status> {
    let policy = node.policy.load_full();
    let connection = connection(&policy, &request.connection)?;
    let child = match &request.child {
        Some(name) => connection.child(name),
        None => connection.children.first(),
    };
    let child = child.ok_or_else(|| {
        let name = request.child.as_deref().unwrap_or_default();
        Status::not_found(format!(
            "connection {:?} has no child {name:?}",
            connection.name
        ))
    })?;
    let (watcher, events) = mpsc::channel(NOTICES);
    let ike = match established(node, &connection.name) {
        Some(sa) => {
            command(
                node,
                sa,
                Command::CreateChild(child.name.clone()),
                Some(watcher),
            )
            .await?;
            sa
        }
        None => {
            let service = serving(node, gateway_of(&policy, connection))?;
            start(&service, &connection.name, &child.name, watcher).await?
        }
    };
    let name = child.name.clone();
    let up = move |sa: SaId, event: &Event| match event {
        Event::ChildEstablished {
            name: n,
            spi_in,
            replaces: None,
            ..
        } if *n == name => Some(Ok((sa, *spi_in))),
        Event::Failed { what } => Some(Err(failed(what))),
        Event::IkeClosed { .. } => Some(Err(Status::failed_precondition("the IKE SA was closed"))),
        _ => None,
    };
    let (sa, spi) = wait(events, up).await?;
    debug_assert!(sa == ike || node.read(|s| s.sa(sa).is_some()));
    Ok(InitiateResponse {
        ike: sa.0,
        child: spi,
    })
}

fn connection<'a>(policy: &'a Policy, name: &str) -> Result<&'a Connection, Status> {
    let found = policy.connection(name);
    found.ok_or_else(|| Status::not_found(format!("there is no connection {name:?}")))
}

/// The gateway in which [`initiate`] makes the Child SA: that of the IKE SA which is there, else the one that has an address of the
/// connection.
pub(super) fn gateway_of_initiation(
    node: &Node,
    request: &InitiateRequest,
) -> Result<GatewayId, Status> {
    let policy = node.policy.load();
    let connection = connection(&policy, &request.connection)?;
    match established(node, &connection.name) {
        Some(sa) => gateway_of_sa(node, sa),
        None => Ok(gateway_of(&policy, connection)),
    }
}

/// The gateway of an IKE SA.
pub(super) fn gateway_of_sa(node: &Node, sa: SaId) -> Result<GatewayId, Status> {
    let gateway = node.read(|state| state.sa(sa).map(|record| record.gateway));
    gateway.ok_or_else(|| Status::not_found(format!("there is no IKE SA 0x{sa}")))
}

/// The gateways that have IKE SAs of a connection.
pub(super) fn gateways_with(node: &Node, connection: &str) -> Result<BTreeSet<GatewayId>, Status> {
    let gateways: BTreeSet<GatewayId> = node.read(|state| {
        let all = state.sas().filter(|r| is_open(r, connection));
        all.map(|r| r.gateway).collect()
    });
    if gateways.is_empty() {
        return Err(Status::not_found(format!(
            "connection {connection:?} has no IKE SA"
        )));
    }
    Ok(gateways)
}

fn is_open(record: &Record, connection: &str) -> bool {
    record.connection == connection && !matches!(record.phase, Phase::Closed(_))
}

/// An IKE SA of a connection in which a Child SA can be made.
fn established(node: &Node, connection: &str) -> Option<SaId> {
    let usable = |r: &Record| matches!(&r.phase, Phase::Established(e) if e.replaced_by.is_none());
    node.read(|state| {
        state
            .sas()
            .find(|r| r.connection == connection && usable(r))
            .map(|r| r.id)
    })
}

async fn start(
    shared: &Arc<Shared>,
    connection: &str,
    child: &str,
    watcher: Watcher,
) -> Result<SaId, Status> {
    starter::initiate(shared, connection, child, Some(watcher))
        .await
        .ok_or_else(stopping)?
        .map_err(|f| failed(&f))
}

/// Deletes SAs, and waits until their peers know, or are given up. Of a connection those that are served here.
pub(crate) async fn terminate(
    node: &Arc<Node>,
    request: TerminateRequest,
) -> Result<TerminateResponse, Status> {
    let target = request
        .target
        .ok_or_else(|| Status::invalid_argument("nothing is named that should be terminated"))?;
    let (sas, child) = match target {
        terminate_request::Target::Ike(id) => (vec![SaId(id)], None),
        terminate_request::Target::Child(spi) => (vec![owner(node, spi)?], Some(spi)),
        terminate_request::Target::Connection(name) => {
            let own = |r: &&Arc<Record>| is_open(r, &name) && node.service(r.gateway).is_some();
            let sas: Vec<SaId> = node.read(|state| state.sas().filter(own).map(|r| r.id).collect());
            if sas.is_empty() {
                return Err(Status::not_found(format!(
                    "connection {name:?} has no IKE SA here"
                )));
            }
            (sas, None)
        }
    };
    let mut waits = Vec::new();
    for sa in sas {
        let (watcher, events) = mpsc::channel(NOTICES);
        let wanted = child.map_or(Command::Delete, Command::DeleteChild);
        command(node, sa, wanted, Some(watcher)).await?;
        let gone = move |_: SaId, event: &Event| match (event, child) {
            (Event::ChildClosed { spi_in, .. }, Some(spi)) if *spi_in == spi => Some(Ok(())),
            (Event::IkeClosed { .. }, _) => Some(Ok(())),
            (
                Event::Failed {
                    what: Failure::Command(why),
                },
                _,
            ) => Some(Err(Status::failed_precondition(*why))),
            _ => None,
        };
        waits.push(wait(events, gone));
    }
    let count = u32::try_from(waits.len()).unwrap_or(u32::MAX);
    for done in futures::future::join_all(waits).await {
        match done {
            // One that is no longer served is gone.
            Err(status) if status.code() == tonic::Code::Aborted => {}
            done => done?,
        }
    }
    Ok(TerminateResponse { count })
}

/// Rekeys an SA, and waits for the new one.
pub(crate) async fn rekey(
    node: &Arc<Node>,
    request: RekeyRequest,
) -> Result<RekeyResponse, Status> {
    let target = request
        .target
        .ok_or_else(|| Status::invalid_argument("nothing is named that should be rekeyed"))?;
    let (sa, wanted, old) = match target {
        rekey_request::Target::Ike(id) if request.reauth => {
            (SaId(id), Command::Reauthenticate, None)
        }
        rekey_request::Target::Ike(id) => (SaId(id), Command::RekeyIke, None),
        rekey_request::Target::Child(spi) => {
            (owner(node, spi)?, Command::RekeyChild(spi), Some(spi))
        }
    };
    let (watcher, events) = mpsc::channel(NOTICES);
    command(node, sa, wanted, Some(watcher)).await?;
    let done = move |_: SaId, event: &Event| match (event, old) {
        (Event::IkeRekeyed { by } | Event::Reauthenticating { by }, None) => Some(Ok(by.0)),
        (Event::AskedToReauthenticate, None) => Some(Ok(0)),
        (
            Event::ChildEstablished {
                spi_in, replaces, ..
            },
            Some(_),
        ) if *replaces == old => Some(Ok(u64::from(*spi_in))),
        (Event::ChildClosed { spi_in, .. }, Some(old)) if *spi_in == old => {
            Some(Err(Status::failed_precondition("the Child SA was closed")))
        }
        (Event::Failed { what }, _) => Some(Err(failed(what))),
        (Event::IkeClosed { .. }, _) => {
            Some(Err(Status::failed_precondition("the IKE SA was closed")))
        }
        _ => None,
    };
    Ok(RekeyResponse {
        spi: wait(events, done).await?,
    })
}

/// The IKE SA that a Child SA belongs to.
pub(super) fn owner(node: &Node, spi: u32) -> Result<SaId, Status> {
    node.read(|state| state.spi_owner(spi))
        .ok_or_else(|| Status::not_found(format!("there is no Child SA 0x{spi:08x}")))
}

/// What serves a gateway here.
fn serving(node: &Node, gateway: GatewayId) -> Result<Arc<Shared>, Status> {
    let service = node.service(gateway);
    service.ok_or_else(|| not_served(node, gateway))
}

/// A gateway is not served, or not here where it was just before.
pub(crate) fn not_served(node: &Node, gateway: GatewayId) -> Status {
    let name = name_of(node, gateway);
    let owner = node.read(|s| Some(s.gateway(gateway)?.owner.as_ref()?.member.clone()));
    Status::unavailable(match owner {
        Some(member) if member != node.member => {
            format!("gateway {name:?} was just taken over by {member}: ask again")
        }
        _ => format!("gateway {name:?} is not served by any member at the moment"),
    })
}

/// The name of a gateway, for people.
pub(super) fn name_of(node: &Node, gateway: GatewayId) -> String {
    let policy = node.policy.load();
    let config = policy.gateways.iter().find(|g| g.id == gateway);
    config.map_or_else(|| gateway.0.to_string(), |g| g.name.clone())
}

async fn command(
    node: &Node,
    sa: SaId,
    command: Command,
    watcher: Option<Watcher>,
) -> Result<(), Status> {
    let (reply, answer) = oneshot::channel();
    let service = serving(node, gateway_of_sa(node, sa)?)?;
    let worker = service.worker(sa).ok_or_else(stopping)?;
    let message = Message::Command {
        sa,
        command,
        watcher,
        reply: Some(reply),
    };
    worker.send(message).await.map_err(|_| stopping())?;
    match answer.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Status::not_found(format!(
            "there is no IKE SA 0x{sa}, or too many wait for it"
        ))),
        Err(_) => Err(stopping()),
    }
}

/// Waits for the event that decides.
async fn wait<T>(
    mut events: mpsc::Receiver<Notice>,
    decide: impl Fn(SaId, &Event) -> Option<Result<T, Status>>,
) -> Result<T, Status> {
    let decided = async {
        while let Some(notice) = events.recv().await {
            let Some(event) = notice.event else {
                break;
            };
            if let Some(result) = decide(notice.sa, &event) {
                return result;
            }
        }
        Err(Status::aborted("the SA is no longer served"))
    };
    timeout(LONGEST, decided)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer; the attempt goes on")))
}

fn failed(failure: &Failure) -> Status {
    Status::failed_precondition(failure.to_string())
}

fn stopping() -> Status {
    Status::unavailable("the member is stopping")
}
