//! What an operator asked one member for, and another does.

use super::{
    MAX_MESSAGE,
    client::{Peers, within},
    server::Handler,
};
use crate::raft::types::Node;
use evergate_proto::forward::{
    CallReply, CallRequest,
    forward_client::ForwardClient,
    forward_server::{Forward, ForwardServer},
};
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// Does what another member was asked for: gets its name, and what it was asked.
pub type ForwardHandler =
    Arc<dyn Fn(String, CallRequest) -> BoxFuture<'static, CallReply> + Send + Sync>;

/// The answering side.
pub(super) fn service(handler: Handler) -> ForwardServer<Handler> {
    ForwardServer::new(handler)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

#[tonic::async_trait]
impl Forward for Handler {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallReply>, Status> {
        let caller = self.caller(&request)?;
        let handler = self
            .services
            .forwarded
            .get()
            .ok_or_else(|| Status::unavailable("this member is starting"))?;
        let reply = handler(caller, request.into_inner()).await;
        Ok(Response::new(reply))
    }
}

impl Peers {
    /// Has another member do something.
    pub(crate) async fn forward(
        &self,
        node: &Node,
        call: CallRequest,
        deadline: Duration,
    ) -> Result<CallReply, Status> {
        let mut client = ForwardClient::new(self.for_operators(node))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let reply = within(deadline, client.call(call)).await?;
        Ok(reply.into_inner())
    }
}
