//! The answering side.

use super::{
    GENERATION, MAX_MESSAGE, MAX_SNAPSHOT, REMOVED, TO_NODE, decode, encode, forward,
    links::{BoxStream as Link, Links},
    services::Services,
    tls::{Tls, names},
};
use crate::{
    Generation, KeyRing, entry,
    raft::{
        admission::{Admission, Answer},
        proposer::log_batches,
        roster::Known,
        succession::{Succession, from_proto},
        types::{Batch, Node, NodeId, Raft, Snapshot, SnapshotMeta, TypeConfig, Vote},
    },
    seal::{Kind, Sealer},
};
use bytes::BytesMut;
use evergate_proto::cluster::{
    HelloReply, HelloRequest, JoinReply, JoinRequest, Payload, ProposeEnd, RelayEnd, SnapshotPart,
    member_server::{Member, MemberServer},
    snapshot_part::Part,
};
use evergate_state::{Level, State};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use openraft::{
    async_runtime::WatchReceiver as _,
    raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest},
};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, mpsc, watch},
    time,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::Connected},
};
use zeroize::{Zeroize, Zeroizing};

/// Handshakes under way at once, and how long one may take: strangers can start them.
const HANDSHAKES: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Calls of one connection that may be reset before they were looked at: those of some seconds at the pace of leases and heartbeats.
const RESET_CALLS: usize = 1024;

/// Calls under way at once on one connection: members have a few.
const CALLS: usize = 64;

/// How long a part of a snapshot may take.
const STALL: Duration = Duration::from_secs(10);

/// What answers.
#[derive(Clone)]
pub(crate) struct Handler {
    /// Raft, once it runs, and who is a member.
    pub(crate) known: Known,
    /// Who may become one.
    pub(crate) admission: Admission,
    /// Looks at proposals before they are logged.
    pub(crate) opener: Arc<Mutex<Sealer>>,
    /// Up to which level the replicated format is understood here.
    pub(crate) level: Level,
    /// What it does besides.
    pub(crate) services: Services,
    /// The generation of this cluster.
    pub(crate) succession: Succession,
    /// The configured members, which form the cluster.
    pub(crate) members: Vec<Node>,
    pub(crate) ring: KeyRing,
    /// It started with an empty log.
    pub(crate) pristine: bool,
    /// Becomes true when a member of a cluster greets this one.
    pub(crate) greeted: watch::Sender<bool>,
}

/// The other end's certificate.
#[derive(Clone)]
struct PeerCertificate(CertificateDer<'static>);

/// Accepts connections until the future is dropped.
pub(crate) async fn serve(links: Arc<dyn Links>, tls: Tls, handler: Handler) -> io::Result<()> {
    let (sender, incoming) = mpsc::channel::<io::Result<Connection>>(16);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let accept = async move {
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let link = match links.accept().await {
                Ok(link) => link,
                Err(error) => {
                    // Too many open files, most of all: it may pass.
                    tracing::warn!(%error, "member connections cannot be accepted");
                    time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&tls.sides().server));
            let sender = sender.clone();
            tokio::spawn(async move {
                let shaken = time::timeout(HANDSHAKE, handshake(&acceptor, link)).await;
                drop(permit);
                match shaken {
                    Ok(Ok(connection)) => drop(sender.send(Ok(connection)).await),
                    Ok(Err(error)) => tracing::debug!(%error, "member connection is refused"),
                    Err(_) => tracing::debug!("member connection said nothing"),
                }
            });
        }
    };
    let forward = forward::service(handler.clone());
    let service = MemberServer::new(handler)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let serve = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        // Calls whose deadline passed while the network was cut arrive, reset, all at once when it is joined again. Those are no attack: only
        // members get here. Closing the connection then would cost the lease.
        .http2_max_pending_accept_reset_streams(Some(RESET_CALLS))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(service)
        .add_service(forward)
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        () = accept => Ok(()),
        result = serve => result.map_err(io::Error::other),
    }
}

async fn handshake(acceptor: &TlsAcceptor, link: Link) -> io::Result<Connection> {
    let stream = acceptor.accept(link).await?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .cloned()
        .ok_or_else(|| io::Error::other("no certificate"))?
        .into_owned();
    Ok(Connection {
        stream,
        certificate: PeerCertificate(certificate),
    })
}

struct Connection {
    stream: TlsStream<Link>,
    certificate: PeerCertificate,
}

impl Connected for Connection {
    type ConnectInfo = PeerCertificate;

    fn connect_info(&self) -> PeerCertificate {
        self.certificate.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn payload<T: Serialize>(value: &T) -> Result<Response<Payload>, Status> {
    Ok(Response::new(Payload {
        value: encode(value)?,
    }))
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

impl Handler {
    fn raft(&self) -> Result<Raft, Status> {
        self.known
            .raft()
            .ok_or_else(|| Status::unavailable("this member is starting"))
    }

    /// Raft, for a message of another member's Raft to this node. A member that lost its disk comes back as another node at the same address, and
    /// must not answer for the one that it was: the leader would see a log that it knows to be there shrink.
    fn addressed<T>(&self, request: &Request<T>) -> Result<Raft, Status> {
        self.caller(request)?;
        let raft = self.raft()?;
        let meant = request.metadata().get(TO_NODE);
        let meant = meant.and_then(|id| id.to_str().ok()?.parse::<NodeId>().ok());
        let id = raft.server_metrics().borrow_watched().id;
        if meant != Some(id) {
            return Err(Status::failed_precondition("another node is meant"));
        }
        Ok(raft)
    }

    /// The member at the other end, which must be one of the cluster, in its generation.
    pub(super) fn caller<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let name = self.known_caller(request)?;
        let theirs = request.metadata().get(GENERATION);
        let theirs = theirs.and_then(|g| g.to_str().ok()?.parse().ok());
        self.succession.agree(theirs)?;
        Ok(name)
    }

    /// The member at the other end, which must be one of the cluster, or of those that form it, in whatever generation.
    fn known_caller<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let refused = || Status::permission_denied("the certificate names no member");
        let certificate = certificate(request)?;
        let members = self.known.latest().nodes.into_iter().map(|n| n.name);
        members
            .into_iter()
            .find(|name| names(certificate, name))
            .ok_or_else(refused)
    }

    /// The refusal of a stranger, who may be a member that was removed and does not know.
    fn stranger(&self, request: &Request<HelloRequest>, refusal: Status) -> Status {
        let node = request.get_ref().node;
        let dismissed = |state: &State| state.dismissed(node).map(str::to_owned);
        let removed = self.admission.shared.read(dismissed).is_some_and(|name| {
            certificate(request).is_ok_and(|certificate| names(certificate, &name))
        });
        let mut refusal = match removed {
            true => Status::permission_denied("this member was removed from the cluster"),
            false => refusal,
        };
        if removed {
            let yes = tonic::metadata::MetadataValue::from_static("yes");
            refusal.metadata_mut().insert(REMOVED, yes);
        }
        refusal
    }

    /// A batch that its proposer made itself, and that every member will understand.
    fn check(&self, caller: &str, raft: &Raft, value: &[u8]) -> Result<Batch, Status> {
        let batch: Batch = decode(value)?;
        let membership = Arc::clone(&raft.server_metrics().borrow_watched().membership_config);
        if membership
            .get_node(&batch.member)
            .is_none_or(|n| n.name != caller)
        {
            return Err(Status::permission_denied("the batch is another member's"));
        }
        let mut blob = batch.sealed.to_vec();
        let mut opener = self.opener.lock().unwrap_or_else(PoisonError::into_inner);
        let understood = opener
            .open(Kind::Entry, batch.place(), &mut blob)
            .map(|plain| entry::decode(plain, self.level).is_some());
        drop(opener);
        blob.zeroize();
        match understood {
            Ok(true) => Ok(batch),
            Ok(false) => Err(Status::invalid_argument("the batch cannot be understood")),
            Err(e) => Err(Status::invalid_argument(e.to_string())),
        }
    }

    fn check_key(&self, given: &[u8]) -> Result<(), Status> {
        if self.ring.is_checked(given) {
            return Ok(());
        }
        Err(Status::failed_precondition("the cluster keys differ"))
    }
}

type PayloadStream = BoxStream<'static, Result<Payload, Status>>;

#[tonic::async_trait]
impl Member for Handler {
    async fn append(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let raft = self.addressed(&request)?;
        let rpc: AppendEntriesRequest<TypeConfig> = decode(&request.into_inner().value)?;
        payload(&raft.append_entries(rpc).await.map_err(failed)?)
    }

    type AppendStreamStream = PayloadStream;

    async fn append_stream(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<PayloadStream>, Status> {
        let raft = self.addressed(&request)?;
        let requests = understood(request.into_inner());
        let results = raft.stream_append(requests).map(|result| {
            let value: Result<_, StreamAppendError<TypeConfig>> = result.map_err(failed)?;
            Ok(Payload {
                value: encode(&value)?,
            })
        });
        Ok(Response::new(Box::pin(results)))
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let raft = self.addressed(&request)?;
        let rpc: VoteRequest<TypeConfig> = decode(&request.into_inner().value)?;
        payload(&raft.vote(rpc).await.map_err(failed)?)
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let raft = self.addressed(&request)?;
        let rpc: VoteRequest<TypeConfig> = decode(&request.into_inner().value)?;
        payload(&raft.pre_vote(rpc).await.map_err(failed)?)
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<Payload>, Status> {
        let raft = self.addressed(&request)?;
        let mut parts = request.into_inner();
        let Some(Part::Description(description)) = next_part(&mut parts).await? else {
            return Err(Status::invalid_argument("a snapshot without description"));
        };
        let (vote, meta): (Vote, SnapshotMeta) = decode(&description)?;
        let mut bytes = BytesMut::new();
        while let Some(part) = next_part(&mut parts).await? {
            let Part::Data(data) = part else {
                return Err(Status::invalid_argument("a snapshot in a snapshot"));
            };
            if bytes.len() + data.len() > MAX_SNAPSHOT {
                return Err(Status::resource_exhausted("the snapshot is too big"));
            }
            bytes.extend_from_slice(&data);
        }
        let snapshot = Snapshot {
            meta,
            snapshot: bytes.freeze(),
        };
        payload(
            &raft
                .install_full_snapshot(vote, snapshot)
                .await
                .map_err(failed)?,
        )
    }

    async fn transfer_leader(
        &self,
        request: Request<Payload>,
    ) -> Result<Response<Payload>, Status> {
        let raft = self.addressed(&request)?;
        let rpc: TransferLeaderRequest<TypeConfig> = decode(&request.into_inner().value)?;
        payload(&raft.handle_transfer_leader(rpc).await.map_err(failed)?)
    }

    async fn propose(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<ProposeEnd>, Status> {
        let caller = self.caller(&request)?;
        let raft = self.raft()?;
        let batches = request.into_inner().map(|item| {
            let batch = self.check(&caller, &raft, &item?.value)?;
            if !raft.is_leader() {
                return Err(Status::failed_precondition("this member is not the leader"));
            }
            Ok(batch)
        });
        let status = log_batches(&raft, batches).await;
        if status.code() != tonic::Code::Ok {
            return Err(status);
        }
        Ok(Response::new(ProposeEnd {}))
    }

    async fn renew_leases(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let caller = self.caller(&request)?;
        let handler = self
            .services
            .leases
            .get()
            .ok_or_else(|| Status::unavailable("leases are not granted here"))?;
        let value = handler(caller, request.into_inner().value)
            .await
            .map_err(Status::failed_precondition)?;
        Ok(Response::new(Payload { value }))
    }

    type RelayStream = BoxStream<'static, Result<RelayEnd, Status>>;

    async fn relay(
        &self,
        request: Request<Streaming<Payload>>,
    ) -> Result<Response<Self::RelayStream>, Status> {
        let caller = self.caller(&request)?;
        let handler = self
            .services
            .relays
            .get()
            .ok_or_else(|| Status::unavailable("packets are not taken here"))?;
        let mut payloads = request.into_inner();
        let first = time::timeout(STALL, payloads.message())
            .await
            .map_err(|_| Status::deadline_exceeded("nothing is said"))??
            .ok_or_else(|| Status::invalid_argument("nothing is said"))?;
        // It ends with the first failure: the connection's.
        let rest = payloads.scan((), |(), payload| {
            std::future::ready(payload.ok().map(|p| p.value))
        });
        let taken =
            handler(caller, first.value, rest.boxed()).map_err(Status::failed_precondition)?;
        let end = stream::once(async move {
            taken.await;
            Ok(RelayEnd {})
        });
        Ok(Response::new(end.boxed()))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        if request.get_ref().node != 0 {
            self.greeted.send_replace(true);
        }
        let theirs = generation_of(request.get_ref());
        if let Err(refusal) = self.known_caller(&request) {
            // A member of a former generation may be none of this one, and does not know.
            let former = theirs.map_or(Ok(()), |g| self.succession.agree(Some(g)));
            return Err(self.stranger(&request, former.err().unwrap_or(refusal)));
        }
        let HelloRequest {
            key_check, members, ..
        } = request.into_inner();
        self.check_key(&key_check)?;
        if let Some(theirs) = theirs {
            self.succession.check(theirs).await?;
        }
        let forming = match self.raft() {
            Err(_) => self.pristine,
            Ok(raft) => is_forming(&raft),
        };
        if forming && members != encode(&self.members)? {
            return Err(Status::failed_precondition(
                "the members are configured differently here",
            ));
        }
        let members = encode(&self.known.latest())?;
        let generation = self.succession.own.told();
        Ok(Response::new(HelloReply {
            forming,
            members,
            generation,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let named = names(certificate(&request)?, &request.get_ref().name);
        let JoinRequest {
            id,
            key_check,
            name,
            token,
        } = request.into_inner();
        if !named {
            return Err(Status::permission_denied(format!(
                "the certificate does not name {name:?}"
            )));
        }
        self.check_key(&key_check)?;
        let token = Zeroizing::new(Vec::from(token));
        let (admitted, roster) = match self.admission.join(&name, id, &token).await? {
            Answer::Admitted(roster) => (true, roster),
            Answer::Ask(roster) => (false, roster),
        };
        let members = encode(&roster)?;
        let generation = self.succession.own.told();
        Ok(Response::new(JoinReply {
            admitted,
            members,
            generation,
        }))
    }
}

/// The certificate of the other end.
fn certificate<T>(request: &Request<T>) -> Result<&CertificateDer<'static>, Status> {
    let certificate = request.extensions().get::<PeerCertificate>();
    let none = || Status::permission_denied("there is no certificate");
    certificate.map(|c| &c.0).ok_or_else(none)
}

/// The generation of who asks; `None` if its log is empty. Former versions of the program do not say it.
fn generation_of(request: &HelloRequest) -> Option<Generation> {
    let told = request.generation.map(|g| from_proto(Some(g)));
    told.or_else(|| (request.node != 0).then_some(Generation::FIRST))
}

async fn next_part(parts: &mut Streaming<SnapshotPart>) -> Result<Option<Part>, Status> {
    let part = time::timeout(STALL, parts.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot does not go on"))??;
    match part {
        None => Ok(None),
        Some(SnapshotPart { part: Some(part) }) => Ok(Some(part)),
        Some(_) => Err(Status::invalid_argument("an empty part")),
    }
}

/// The requests up to the first that cannot be understood; then the stream ends, and its sender begins anew.
fn understood(
    input: Streaming<Payload>,
) -> impl Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
    stream::unfold(input, |mut input| async move {
        let payload = input.next().await?.ok()?;
        Some((decode(&payload.value).ok()?, input))
    })
}

/// Whether this member has no more than the very first entry: then nothing was ever committed here.
pub(crate) fn is_forming(raft: &Raft) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.current_leader.is_none() && metrics.last_log_index.is_none_or(|index| index == 0)
}
