//! The calling side.

use super::{
    Credentials, GENERATION, MAX_MESSAGE, SNAPSHOT_PART, TO_NODE, TlsError, decode, encode,
    links::Links,
    tls::{Sides, Tls},
};
use crate::raft::{
    acks::Acks,
    succession::OwnGeneration,
    types::{Batch, Node, NodeId, Snapshot, TypeConfig, Vote},
};
use bytes::Bytes;
use evergate_proto::cluster::{
    HelloReply, HelloRequest, JoinReply, JoinRequest, Payload, SnapshotPart,
    member_client::MemberClient, snapshot_part::Part,
};
use futures::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use rustls::{ClientConfig, pki_types::ServerName};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tower::service_fn;

type Client = MemberClient<Stamped>;

/// A connection whose calls say of which generation this member is.
pub(super) type Stamped = InterceptedService<Channel, Stamp>;

/// Says in each call of which generation this member is, once it knows.
#[derive(Clone)]
pub(super) struct Stamp(OwnGeneration);

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(own) = self.0.get()
            && let Ok(own) = own.to_string().parse()
        {
            request.metadata_mut().insert(GENERATION, own);
        }
        Ok(request)
    }
}

type Failure = RPCError<TypeConfig>;

/// How long to wait for a connection with its handshake.
const CONNECT: Duration = Duration::from_millis(1000);

/// How late the answer to a heartbeat counts for the leader's lease, which is no longer than that with usual times.
const LATE: Duration = Duration::from_millis(500);

/// How long a member may take to make entries durable before its connection is taken for dead. Liveness is what heartbeats are for;
/// this is only about connections.
const APPEND: Duration = Duration::from_secs(2);

/// How long a part of a snapshot may take, and how long its installation.
const SNAPSHOT_STALL: Duration = Duration::from_secs(5);
const SNAPSHOT_INSTALL: Duration = Duration::from_secs(60);

/// How long the leader may take to decide whether somebody may join: it commits that.
const JOIN: Duration = Duration::from_secs(10);

/// Back-off after failures: from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(160));

/// Stands for a name that is not known.
const STRANGER: &str = "member.invalid";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// Entries, votes.
    Bulk,
    Heartbeat,
    Snapshot,
    /// Proposals.
    Propose,
    /// Leases, and what else is asked of the leader: not behind proposals.
    Lease,
    /// What operators want of another member. It may take long, so it has no part in the calls that one connection may have under way.
    Forward,
    /// Packets of gateways that were handed over.
    Relay,
}

/// Those for which there has to be a connection already when a leader is missed: elections are no time for handshakes.
const WARM: [Purpose; 4] = [
    Purpose::Bulk,
    Purpose::Heartbeat,
    Purpose::Propose,
    Purpose::Lease,
];

/// By name, address and purpose.
type Channels = HashMap<(String, String, Purpose), Channel>;

/// The other members, with a lazy connection for each purpose. Clones are the same.
#[derive(Clone)]
pub(crate) struct Peers {
    tls: Tls,
    links: Arc<dyn Links>,
    channels: Arc<Mutex<Channels>>,
    acks: Acks,
    generation: OwnGeneration,
}

impl Peers {
    pub(crate) fn new(tls: Tls, links: Arc<dyn Links>, generation: OwnGeneration) -> Self {
        Self {
            generation,
            tls,
            links,
            channels: Arc::default(),
            acks: Acks::default(),
        }
    }

    /// Over TCP.
    #[cfg(test)]
    pub(crate) fn over_tcp(tls: Tls) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let links = Arc::new(super::Tcp::new(listener).expect("a socket"));
        Self::new(tls, links, OwnGeneration::default())
    }

    /// Connections that are made from now on have these credentials.
    pub(crate) fn renew(&self, credentials: &Credentials) -> Result<(), TlsError> {
        self.tls.renew(credentials)
    }

    /// Who has answered heartbeats.
    pub(crate) fn acks(&self) -> &Acks {
        &self.acks
    }

    fn channel(&self, node: &Node, purpose: Purpose) -> Channel {
        let key = (node.name.clone(), node.address.clone(), purpose);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        // Removed members leave theirs behind, which is a few of them in the life of a process; they cost nothing when nobody calls.
        channels
            .entry(key)
            .or_insert_with(|| connect(node, &self.tls, &self.links, |tls| &tls.client))
            .clone()
    }

    /// The connection for what operators want.
    pub(super) fn for_operators(&self, node: &Node) -> Stamped {
        self.stamped(self.channel(node, Purpose::Forward))
    }

    fn stamped(&self, channel: Channel) -> Stamped {
        InterceptedService::new(channel, Stamp(self.generation.clone()))
    }

    fn client(&self, node: &Node, purpose: Purpose) -> Client {
        MemberClient::new(self.stamped(self.channel(node, purpose)))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// For calls from member to member that are not Raft's own.
    pub(crate) fn peer(&self, node: &Node) -> Peer {
        Peer(self.client(node, Purpose::Lease))
    }

    /// Somebody at this address who has a certificate of the authority, for any name. The connection is not kept.
    pub(crate) fn stranger(&self, address: &str) -> Peer {
        let node = Node {
            name: STRANGER.to_owned(),
            address: address.to_owned(),
        };
        let channel = connect(&node, &self.tls, &self.links, |tls| &tls.stranger);
        Peer(
            MemberClient::new(self.stamped(channel))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
    }

    /// For proposals.
    pub(crate) fn proposals(&self, node: &Node) -> Peer {
        Peer(self.client(node, Purpose::Propose))
    }

    /// For packets.
    pub(crate) fn relay(&self, node: &Node) -> Peer {
        Peer(self.client(node, Purpose::Relay))
    }

    /// Makes the connections to a member that are not there, by asking it how it is. Yields one of its answers.
    pub(crate) async fn warm(
        &self,
        node: &Node,
        request: &HelloRequest,
    ) -> Result<HelloReply, Status> {
        let calls = WARM.map(|purpose| {
            let mut peer = Peer(self.client(node, purpose));
            let request = request.clone();
            async move { peer.hello(request).await }
        });
        let mut last = Err(Status::unavailable("nothing was asked"));
        for (purpose, answer) in WARM.iter().zip(futures::future::join_all(calls).await) {
            if let Err(status) = &answer {
                tracing::debug!(member = node.name, ?purpose, %status, "no connection");
            }
            last = answer;
        }
        last
    }
}

fn connect(
    node: &Node,
    tls: &Tls,
    links: &Arc<dyn Links>,
    as_whom: fn(&Sides) -> &Arc<ClientConfig>,
) -> Channel {
    let (address, name, links) = (node.address.clone(), node.name.clone(), Arc::clone(links));
    let tls = tls.clone();
    let dial = service_fn(move |_| {
        let (dialled, name) = (links.dial(address.clone()), name.clone());
        let connector = TlsConnector::from(Arc::clone(as_whom(&tls.sides())));
        async move {
            let name = ServerName::try_from(name).map_err(io::Error::other)?;
            let stream = time::timeout(CONNECT, async {
                connector.connect(name, dialled.await?).await
            })
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            io::Result::Ok(TokioIo::new(stream))
        }
    });
    // Where to and whether with TLS is the connector's business; this is only what stands in the requests.
    Endpoint::from_static("http://member.invalid")
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(dial)
}

/// Another member.
pub(crate) struct Peer(Client);

impl Peer {
    /// Sends batches to it as to the leader, in order, until it says why it takes no more.
    pub(crate) async fn propose(&mut self, batches: mpsc::Receiver<Batch>) -> Status {
        let stream = ReceiverStream::new(batches).map(|batch| Payload {
            value: encode(&batch).unwrap_or_default(),
        });
        match self.0.propose(stream).await {
            Ok(_) => Status::cancelled("it takes no more"),
            Err(status) => status,
        }
    }

    /// Asks how far it is.
    pub(crate) async fn hello(&mut self, request: HelloRequest) -> Result<HelloReply, Status> {
        let reply = within(CONNECT, self.0.hello(request)).await?;
        Ok(reply.into_inner())
    }

    /// Asks to be taken in.
    pub(crate) async fn join(&mut self, request: JoinRequest) -> Result<JoinReply, Status> {
        let reply = within(JOIN, self.0.join(request)).await?;
        Ok(reply.into_inner())
    }

    /// Sends packets of a gateway to it, in order. Yields once it expects them; what it yields ends when the other takes no more.
    pub(crate) async fn relay(
        &mut self,
        first: Bytes,
        packets: mpsc::Receiver<Bytes>,
        deadline: Duration,
    ) -> Result<impl Future<Output = ()> + Send + 'static, Status> {
        let payload = |value| Payload { value };
        let first = stream::once(std::future::ready(payload(first)));
        let stream = first.chain(ReceiverStream::new(packets).map(payload));
        let mut end = within(deadline, self.0.relay(stream)).await?.into_inner();
        Ok(async move {
            // Whatever comes is the end of it.
            let _ = end.message().await;
        })
    }

    /// Sends what belongs to leases.
    pub(crate) async fn renew_leases(
        &mut self,
        value: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Status> {
        let reply = within(deadline, self.0.renew_leases(Payload { value })).await?;
        Ok(reply.into_inner().value)
    }
}

pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    time::timeout(deadline, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")))
}

/// Makes connections for Raft.
#[derive(Clone)]
pub(crate) struct Network(pub(crate) Option<Peers>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, id: NodeId, node: &Node) -> Link {
        Link::new(self, id, node, Purpose::Bulk)
    }

    async fn new_heartbeat_client(&mut self, id: NodeId, node: &Node) -> Link {
        Link::new(self, id, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, id: NodeId, node: &Node) -> Link {
        Link::new(self, id, node, Purpose::Snapshot)
    }
}

/// Raft's connection to another member.
pub(crate) struct Link {
    /// `None` on a member that is alone, which never calls.
    client: Option<Client>,
    /// The node that is meant: at its address another one may have taken its place.
    id: NodeId,
    purpose: Purpose,
    acks: Acks,
    /// Calls that failed since one did not.
    failures: AtomicU32,
}

fn unreachable(status: &Status) -> Failure {
    RPCError::Unreachable(Unreachable::from_string(format!(
        "{:?}: {}",
        status.code(),
        status.message()
    )))
}

impl Link {
    fn new(network: &Network, id: NodeId, node: &Node, purpose: Purpose) -> Self {
        Self {
            id,
            client: network.0.as_ref().map(|p| p.client(node, purpose)),
            purpose,
            acks: network
                .0
                .as_ref()
                .map(|p| p.acks.clone())
                .unwrap_or_default(),
            failures: AtomicU32::new(0),
        }
    }

    fn client(&self) -> Result<Client, Status> {
        self.client
            .clone()
            .ok_or_else(|| Status::unavailable("this member has no credentials"))
    }

    /// A request to this node and no other.
    fn addressed<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(TO_NODE, self.id.into());
        request
    }

    /// Waits the longer, the more often it failed: Raft itself would try again at once when a stream fails before it was read.
    async fn back_off(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let wait = BACKOFF.0.saturating_mul(1 << failures).min(BACKOFF.1);
        time::sleep(wait).await;
    }

    async fn ask<Q, A, F>(
        &self,
        request: &Q,
        deadline: Duration,
        call: impl FnOnce(Client, Request<Payload>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Serialize,
        A: DeserializeOwned,
        F: Future<Output = Result<Response<Payload>, Status>>,
    {
        let asked = async {
            let payload = Payload {
                value: encode(request)?,
            };
            let reply = within(deadline, call(self.client()?, self.addressed(payload))).await?;
            decode(&reply.into_inner().value)
        };
        match asked.await {
            Ok(answer) => {
                self.failures.store(0, Ordering::Relaxed);
                Ok(answer)
            }
            Err(status) => Err(unreachable(&status)),
        }
    }

    /// Sends a heartbeat. Its answer counts for leases also when nobody waits for it any more.
    async fn beat(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
        let payload = Payload {
            value: encode(&request)?,
        };
        let (mut client, message) = (self.client()?, self.addressed(payload));
        let (acks, id, sent) = (self.acks.clone(), self.id, Instant::now());
        let call = tokio::spawn(async move {
            let reply = within(LATE, client.append(message)).await?;
            let answer: AppendEntriesResponse<TypeConfig> = decode(&reply.into_inner().value)?;
            if answer.is_success() {
                acks.answered(id, &request.vote, sent);
            }
            Result::<_, Status>::Ok(answer)
        });
        call.await
            .unwrap_or_else(|e| Err(Status::internal(e.to_string())))
    }

    /// Opens a stream of appends, answered in order.
    async fn open<S>(&self, input: S) -> Result<(Answers, Arc<AtomicU64>), Status>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let requests = input.map(move |request| {
            counter.fetch_add(1, Ordering::Relaxed);
            Payload {
                // An empty one is refused by the other end, and so ends the stream.
                value: encode(&request).unwrap_or_default(),
            }
        });
        let mut client = self.client()?;
        let reply = within(APPEND, client.append_stream(self.addressed(requests))).await?;
        Ok((reply.into_inner(), sent))
    }
}

type Answers = tonic::Streaming<Payload>;

/// The next answer on a stream. While nothing is under way there is no deadline.
async fn next_answer(
    answers: &mut Answers,
    sent: &AtomicU64,
    received: u64,
) -> Option<Result<StreamAppendResult<TypeConfig>, Failure>> {
    loop {
        match time::timeout(APPEND, answers.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(payload))) => {
                return Some(decode(&payload.value).map_err(|e| unreachable(&e)));
            }
            Ok(Some(Err(status))) => return Some(Err(unreachable(&status))),
            Err(_) if sent.load(Ordering::Relaxed) > received => {
                let status = Status::deadline_exceeded("entries are not acknowledged in time");
                return Some(Err(unreachable(&status)));
            }
            Err(_) => {}
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Failure> {
        let answer = time::timeout(option.hard_ttl(), self.beat(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        match answer {
            Ok(answer) => {
                self.failures.store(0, Ordering::Relaxed);
                Ok(answer)
            }
            Err(status) => {
                self.back_off().await;
                Err(unreachable(&status))
            }
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Failure>>, Failure>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.purpose == Purpose::Heartbeat {
            // One request and one answer: not worth a stream.
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let (answers, sent) = match self.open(input).await {
                Ok(open) => open,
                Err(status) => {
                    self.back_off().await;
                    return Err(unreachable(&status));
                }
            };
            let link = &*self;
            let results = stream::unfold(Some((answers, sent, 0u64)), move |state| async move {
                let (mut answers, sent, received) = state?;
                let result = next_answer(&mut answers, &sent, received).await?;
                let goes_on = matches!(result, Ok(Ok(_)));
                if result.is_err() {
                    link.back_off().await;
                } else {
                    link.failures.store(0, Ordering::Relaxed);
                }
                Some((result, goes_on.then_some((answers, sent, received + 1))))
            });
            let results: BoxStream<'s, _> = Box::pin(results);
            Ok(results)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        self.ask(&request, option.hard_ttl(), |mut c, p| async move {
            c.vote(p).await
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Failure> {
        self.ask(&request, option.hard_ttl(), |mut c, p| async move {
            c.pre_vote(p).await
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let failed = |status: &Status| {
            StreamingError::Unreachable(Unreachable::from_string(status.message()))
        };
        let description = encode(&(vote, &snapshot.meta)).map_err(|e| failed(&e))?;
        let (parts, receiver) = mpsc::channel(4);
        let mut client = self.client().map_err(|e| failed(&e))?;
        let send = async move {
            let first = SnapshotPart {
                part: Some(Part::Description(description)),
            };
            let rest = (0..snapshot.snapshot.len())
                .step_by(SNAPSHOT_PART)
                .map(|at| {
                    let end = snapshot.snapshot.len().min(at + SNAPSHOT_PART);
                    SnapshotPart {
                        part: Some(Part::Data(snapshot.snapshot.slice(at..end))),
                    }
                });
            for part in [first].into_iter().chain(rest) {
                // Not taken in time: the sender is dropped, and with it the stream ends too early for the receiver.
                let taken = time::timeout(SNAPSHOT_STALL, parts.send(part)).await;
                if !matches!(taken, Ok(Ok(()))) {
                    return Err(Status::deadline_exceeded("the snapshot is not taken"));
                }
            }
            drop(parts);
            time::sleep(SNAPSHOT_INSTALL).await;
            Err(Status::deadline_exceeded("the snapshot is not installed"))
        };
        let answer = tokio::select! {
            reply = client.install_snapshot(self.addressed(ReceiverStream::new(receiver))) => reply,
            stalled = send => stalled,
            closed = cancel => return Err(closed.into()),
        };
        let answer = answer.and_then(|reply| decode(&reply.into_inner().value));
        if let Err(status) = &answer {
            tracing::debug!(%status, "snapshot is not installed");
            self.back_off().await;
        }
        answer.map_err(|e| failed(&e))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Failure> {
        self.ask(&request, option.soft_ttl(), |mut c, p| async move {
            c.transfer_leader(p).await
        })
        .await
    }

    fn backoff(&self) -> Option<Backoff> {
        let waits = std::iter::successors(Some(BACKOFF.0), |wait| Some((*wait * 2).min(BACKOFF.1)));
        Some(Backoff::new(waits))
    }
}
