//! Proposals on their way: sealed and numbered by one thread, sent to the leader by one task, and sent again until they are seen
//! applied here.

use super::{
    cluster::Leader,
    machine::Own,
    transport::Peers,
    types::{Batch, Node, Raft},
};
use crate::{
    entry,
    queue::ProposeError,
    replica::Shared,
    seal::{SealError, Sealer},
};
use evergate_ike::env::UnixMillis;
use futures::{Stream, StreamExt, stream::FuturesUnordered};
use openraft::impls::ProgressResponder;
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// The longest pause after a leader refused batches.
const PAUSE: Duration = Duration::from_millis(10);

/// Takes what waits, seals and numbers it. Ends when the queue does.
pub(super) fn gather(
    shared: &Shared,
    own: &Own,
    mut sealer: Sealer,
    clock: &dyn Fn() -> UnixMillis,
) -> Result<(), SealError> {
    let mut number = 0;
    while own.window.wait_for_room() {
        let Some(proposals) = shared.queue.take() else {
            break;
        };
        number += 1;
        let mut batch = Batch {
            member: own.member,
            incarnation: own.incarnation,
            number,
            sealed: bytes::Bytes::new(),
        };
        let at = clock();
        match entry::seal(&mut sealer, batch.place(), at, &proposals) {
            Ok(sealed) => batch.sealed = sealed.into(),
            Err(error) => {
                let why = ProposeError::Failed(error.to_string().into());
                for proposal in proposals {
                    proposal.finish(Err(why.clone()));
                }
                return Err(error);
            }
        }
        own.window.push(batch, at, proposals);
    }
    Ok(())
}

/// Sends batches to whoever leads.
pub(super) struct Forwarder {
    pub(super) raft: Raft,
    pub(super) own: Own,
    pub(super) peers: Option<Peers>,
    pub(super) leader: watch::Receiver<Option<Leader>>,
    /// How long the first batch may remain unapplied under one leader before all are sent again.
    pub(super) patience: Duration,
}

/// The way to the leader.
enum Route {
    None,
    Open {
        batches: mpsc::Sender<Batch>,
        call: JoinHandle<()>,
    },
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Self::Open { call, .. } = self {
            call.abort();
        }
    }
}

impl Forwarder {
    /// Sends until it is aborted.
    pub(super) async fn run(mut self) {
        // Signals that the way to the leader broke.
        let broken = Arc::new(Notify::new());
        loop {
            let leader = self.leader.borrow_and_update().clone();
            let mut route = self.route(leader.as_ref(), &broken);
            // A new leader may know nothing of what the one before was sent.
            let mut next = 0;
            let mut waiting_for = self.own.window.first();
            loop {
                match self.send(&route, next).await {
                    Ok(sent) => next = sent,
                    Err(()) if !self.pause().await => return,
                    Err(()) => break,
                }
                tokio::select! {
                    changed = self.leader.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        if *self.leader.borrow() != leader {
                            break;
                        }
                    }
                    () = self.own.window.changed.notified() => {}
                    () = broken.notified() => {
                        if !self.pause().await {
                            return;
                        }
                        break;
                    }
                    () = time::sleep(self.patience) => {
                        // No time-out decides anything: a batch that comes twice is applied once.
                        let first = self.own.window.first();
                        if first.is_some() && first == waiting_for {
                            tracing::debug!(?first, "proposals are sent again");
                            next = 0;
                        }
                        waiting_for = first;
                    }
                }
            }
            route = Route::None;
            drop(route);
        }
    }

    /// Waits a little, but not when there is another leader. Whether this goes on: nobody tells who leads any more once Raft is over.
    async fn pause(&mut self) -> bool {
        if let Ok(Err(_)) = time::timeout(PAUSE, self.leader.changed()).await {
            return false;
        }
        // Whoever it is, it is looked at again.
        self.leader.mark_changed();
        true
    }

    fn route(&self, leader: Option<&Leader>, broken: &Arc<Notify>) -> Route {
        let Some(leader) = leader else {
            return Route::None;
        };
        let (batches, receiver) = mpsc::channel(1);
        let broken = Arc::clone(broken);
        let ended = move |status: Status| {
            tracing::debug!(%status, "the leader takes no more proposals");
            broken.notify_one();
        };
        let call = if leader.id == self.own.member {
            let raft = self.raft.clone();
            let batches = ReceiverStream::new(receiver).map(Ok);
            tokio::spawn(async move { ended(log_batches(&raft, batches).await) })
        } else if let Some(peers) = &self.peers {
            let mut peer = peers.proposals(&Node {
                name: leader.name.clone(),
                address: leader.address.clone(),
            });
            tokio::spawn(async move { ended(peer.propose(receiver).await) })
        } else {
            return Route::None;
        };
        Route::Open { batches, call }
    }

    /// Sends what is under way from a number on, and returns the number after it.
    async fn send(&self, route: &Route, next: u64) -> Result<u64, ()> {
        let mut sent = next;
        if let Route::Open { batches, .. } = route {
            for batch in self.own.window.from(next) {
                sent = batch.number + 1;
                batches.send(batch).await.map_err(|_| ())?;
            }
        }
        Ok(sent)
    }
}

/// On the leader: logs batches in their order, until there are no more, or Raft refuses one. A leader that is new, or was not answered
/// for too long, refuses until most members have answered it.
pub(super) async fn log_batches(
    raft: &Raft,
    batches: impl Stream<Item = Result<Batch, Status>>,
) -> Status {
    let mut batches = pin!(batches);
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            batch = batches.next() => {
                let batch = match batch {
                    None => return Status::ok("there are no more"),
                    Some(Err(status)) => return status,
                    Some(Ok(batch)) => batch,
                };
                let (responder, answer) = ProgressResponder::complete_only();
                if let Err(error) = raft.client_write_ff(batch, Some(responder)).await {
                    return Status::unavailable(error.to_string());
                }
                under_way.push(answer);
            }
            Some(answer) = under_way.next() => match answer {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Status::unavailable(error.to_string()),
                Err(_) => return Status::unavailable("raft has ended"),
            },
        }
    }
}
