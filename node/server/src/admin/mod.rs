//! The administration API on a Unix socket.

mod backup;
mod cluster;
mod forward;
mod listing;
mod members;
pub(crate) mod operations;

use crate::{
    capture, config, doctor,
    node::Node,
    policy::{self, ApplyError},
};
use anyhow::Context;
use evergate_proto::admin::{
    AddMemberRequest, AddMemberResponse, ApplyConfigRequest, ApplyConfigResponse, BackupChunk,
    BackupRequest, CaptureChunk, CaptureRequest, DiagnoseRequest, DiagnoseResponse,
    DrainMemberRequest, DrainMemberResponse, GetStatusRequest, GetStatusResponse, IkeSa,
    InitiateRequest, InitiateResponse, ListGatewaysRequest, ListGatewaysResponse, ListKeysRequest,
    ListKeysResponse, ListMembersRequest, ListMembersResponse, ListSasRequest, MoveGatewayRequest,
    MoveGatewayResponse, PromoteMemberRequest, PromoteMemberResponse, RekeyRequest, RekeyResponse,
    RemoveMemberRequest, RemoveMemberResponse, TerminateRequest, TerminateResponse,
    admin_server::{Admin, AdminServer},
};
use evergate_state::Refusal;
use futures::{StreamExt, stream::BoxStream};
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, transport::Server};
use tracing::{error, warn};

/// A policy document may have this many bytes.
const MAX_DOCUMENT: usize = 16 << 20;

/// Answers other members, whose operators ask for what this one has to do.
pub(crate) fn answer_others(node: &Arc<Node>) {
    forward::answer_others(node);
}

/// Lets a member in: yields the token with which it may join.
///
/// # Errors
/// Why not, as a sentence.
pub(crate) async fn add_member(
    node: &Arc<Node>,
    request: AddMemberRequest,
) -> Result<String, String> {
    let added = members::add(node, request).await;
    added.map(|a| a.token).map_err(|s| s.message().to_owned())
}

/// Removes a member.
///
/// # Errors
/// Why not, as a sentence.
pub(crate) async fn remove_member(
    node: &Arc<Node>,
    request: RemoveMemberRequest,
) -> Result<(), String> {
    let removed = members::remove(node, request).await;
    removed.map(drop).map_err(|s| s.message().to_owned())
}

/// Serves the API until told to stop; then the socket is removed.
///
/// # Errors
/// If the socket cannot be made, or another process listens on it.
pub(crate) async fn serve(
    node: Arc<Node>,
    socket: &Path,
    stop: CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<()> {
    let listener = listen(socket)
        .await
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(evergate_proto::DESCRIPTORS)
        .build_v1()
        .context("the descriptors cannot be served")?;
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<AdminServer<Service>>().await;
    let service = AdminServer::new(Service { node }).max_decoding_message_size(MAX_DOCUMENT);
    let server = Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(service);
    let path = socket.to_owned();
    tasks.spawn(async move {
        let served = server.serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
        // Calls under way do not hold the stop up: their answers may take as long as a peer likes.
        tokio::select! {
            served = served => if let Err(e) = served {
                error!(event = "admin-failed", "the administration API ended: {e}");
            },
            () = stop.cancelled() => {}
        }
        remove(&path);
    });
    Ok(())
}

/// Makes the socket for its owner alone. What a dead process left there is replaced.
async fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process listens there",
            ));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // The umask has let nobody else in meanwhile.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn remove(path: &PathBuf) {
    if let Err(e) = fs::remove_file(path) {
        warn!(
            event = "admin-socket",
            "cannot remove {}: {e}",
            path.display()
        );
    }
}

/// The service.
struct Service {
    node: Arc<Node>,
}

impl Service {
    /// A member whose log or data plane failed lists what it knows, but does nothing.
    fn active(&self) -> Result<&Arc<Node>, Status> {
        if self.node.failed.is_cancelled() {
            return Err(Status::unavailable("this member no longer serves anything"));
        }
        Ok(&self.node)
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(listing::status(&self.node)))
    }

    type ListSasStream = BoxStream<'static, Result<IkeSa, Status>>;

    async fn list_sas(
        &self,
        request: Request<ListSasRequest>,
    ) -> Result<Response<Self::ListSasStream>, Status> {
        let node = Arc::clone(&self.node);
        let request = request.into_inner();
        let records = listing::select(&node, &request);
        let mut counters = if request.count_everywhere {
            forward::counters(&node, &request, &records).await
        } else {
            HashMap::new()
        };
        // Converted one by one, as fast as they are read.
        let all = futures::stream::iter(records).map(move |record| {
            let mut sa = listing::ike_sa(&node, &record);
            for child in &mut sa.children {
                child.stats = child
                    .stats
                    .take()
                    .or_else(|| counters.remove(&child.spi_in));
            }
            Ok(sa)
        });
        Ok(Response::new(all.boxed()))
    }

    async fn initiate(
        &self,
        request: Request<InitiateRequest>,
    ) -> Result<Response<InitiateResponse>, Status> {
        forward::initiate(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn terminate(
        &self,
        request: Request<TerminateRequest>,
    ) -> Result<Response<TerminateResponse>, Status> {
        forward::terminate(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn rekey(
        &self,
        request: Request<RekeyRequest>,
    ) -> Result<Response<RekeyResponse>, Status> {
        forward::rekey(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_members(
        &self,
        _: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        Ok(Response::new(cluster::members(&self.node)))
    }

    async fn diagnose(
        &self,
        _: Request<DiagnoseRequest>,
    ) -> Result<Response<DiagnoseResponse>, Status> {
        Ok(Response::new(doctor::diagnose(&self.node).await))
    }

    async fn list_keys(
        &self,
        _: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        Ok(Response::new(cluster::keys(&self.node)))
    }

    async fn list_gateways(
        &self,
        _: Request<ListGatewaysRequest>,
    ) -> Result<Response<ListGatewaysResponse>, Status> {
        Ok(Response::new(cluster::gateways(&self.node)))
    }

    async fn move_gateway(
        &self,
        request: Request<MoveGatewayRequest>,
    ) -> Result<Response<MoveGatewayResponse>, Status> {
        cluster::move_gateway(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn drain_member(
        &self,
        request: Request<DrainMemberRequest>,
    ) -> Result<Response<DrainMemberResponse>, Status> {
        cluster::drain(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<AddMemberResponse>, Status> {
        members::add(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn promote_member(
        &self,
        request: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        members::promote(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        members::remove(self.active()?, request.into_inner())
            .await
            .map(Response::new)
    }

    type BackupStream = BoxStream<'static, Result<BackupChunk, Status>>;

    async fn backup(
        &self,
        _: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        backup::take(self.active()?).await.map(Response::new)
    }

    type CaptureStream = ReceiverStream<Result<CaptureChunk, Status>>;

    async fn capture(
        &self,
        request: Request<CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        let chunks = capture::begin(self.active()?, &request.into_inner())?;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn apply_config(
        &self,
        request: Request<ApplyConfigRequest>,
    ) -> Result<Response<ApplyConfigResponse>, Status> {
        let node = self.active()?;
        let request = request.into_inner();
        let config =
            config::parse(&request.toml, Path::new(&request.directory)).map_err(|problems| {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Status::invalid_argument(lines.join("\n"))
            })?;
        let warnings = config.warnings.iter().map(ToString::to_string).collect();
        let applied = policy::apply(node, config.policy, request.expected_version)
            .await
            .map_err(|e| match e {
                ApplyError::Refused(refusal @ Refusal::StalePolicy { .. }) => {
                    Status::aborted(refusal.to_string())
                }
                ApplyError::Refused(refusal) => Status::failed_precondition(refusal.to_string()),
                ApplyError::Log(failed) => Status::unavailable(failed),
            })?;
        Ok(Response::new(ApplyConfigResponse {
            version: applied.version,
            warnings,
            changed: applied.changed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[tokio::test]
    async fn a_socket_is_private_and_only_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/admin.sock");
        let first = listen(&path).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(
            listen(&path).await.unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        assert!(path.exists());
        // Children that other tests start have it, too, until they execute their programs.
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = listen(&path).await {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(Instant::now() < end, "it is dead");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
