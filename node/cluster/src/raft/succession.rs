//! The generation of this member's cluster, and what becomes of the member when there is a later one.

use super::{
    JoinError,
    log::{Identity, LogStore},
    roster::Roster,
    transport::{Peers, SUPERSEDED},
    types::{Node, NodeId},
};
use crate::{Generation, KeyRing, replica::Failed};
use bytes::Bytes;
use evergate_proto::cluster::{self as proto, HelloRequest};
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tonic::Status;

/// A member that starts asks the others whether there is a later generation, but waits no longer than this: what does not answer may be dead.
const ASK: Duration = Duration::from_millis(500);

/// The generation of this member's cluster, once it is known. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnGeneration(Arc<OnceLock<Generation>>);

impl OwnGeneration {
    /// `None` as long as its log is empty and it was not let in.
    pub(crate) fn get(&self) -> Option<Generation> {
        self.0.get().copied()
    }

    /// It is known from now on.
    pub(super) fn set(&self, generation: Generation) {
        // A second time it is the same.
        let _ = self.0.set(generation);
    }

    /// As it stands in messages.
    pub(crate) fn told(&self) -> Option<proto::Generation> {
        self.get().map(to_proto)
    }
}

fn to_proto(generation: Generation) -> proto::Generation {
    proto::Generation {
        number: generation.number,
        founded: generation.founded,
    }
}

/// Out of a message. Who says nothing of it is of the first one.
pub(super) fn from_proto(told: Option<proto::Generation>) -> Generation {
    told.map_or(Generation::FIRST, |g| Generation {
        founded: g.founded,
        number: g.number,
    })
}

/// What makes a member know that it is over.
#[derive(Clone)]
pub(crate) struct Succession {
    pub(crate) own: OwnGeneration,
    log: LogStore,
    failed: Failed,
}

impl Succession {
    /// For a member that has, or will have, this log.
    ///
    /// # Errors
    /// If it is over already.
    pub(super) fn new(
        identity: &Identity,
        log: LogStore,
        failed: Failed,
    ) -> Result<Self, JoinError> {
        if let Some(later) = identity.superseded {
            return Err(superseded(identity.generation, later));
        }
        let own = OwnGeneration::default();
        if !identity.pristine {
            own.set(identity.generation);
        }
        Ok(Self { own, log, failed })
    }

    /// The generation of who asks, which must not be a former one. From a later one this member learns that its own is over.
    ///
    /// # Errors
    /// If they are not the same.
    pub(crate) async fn check(&self, theirs: Generation) -> Result<(), Status> {
        let Some(own) = self.own.get() else {
            return Ok(());
        };
        if theirs > own {
            self.end(theirs).await;
        }
        self.agree(Some(theirs))
    }

    /// Whether a call is one of this generation.
    ///
    /// # Errors
    /// If it is not: the refusal says which one this is.
    pub(crate) fn agree(&self, theirs: Option<Generation>) -> Result<(), Status> {
        let theirs = theirs.unwrap_or_default();
        match self.own.get() {
            Some(own) if own != theirs => {
                let mut refusal = Status::permission_denied(format!(
                    "this is generation {} of the cluster, and the other member is of generation {}",
                    own.number, theirs.number
                ));
                if own > theirs
                    && let Ok(own) = own.to_string().parse()
                {
                    refusal.metadata_mut().insert(SUPERSEDED, own);
                }
                Err(refusal)
            }
            _ => Ok(()),
        }
    }

    /// A later generation has begun: nothing is served any more, and never again with what is on this disk.
    pub(super) async fn end(&self, later: Generation) {
        let own = self.own.get().unwrap_or_default();
        let why = superseded(own, later).to_string();
        tracing::error!(
            event = "superseded",
            generation = own.number,
            later = later.number,
            "{why}"
        );
        if let Err(error) = self.log.supersede(later).await {
            tracing::warn!(%error, "that this generation is over could not be noted");
        }
        self.failed.set(&why);
    }

    /// Asks these members whether there is a later generation.
    ///
    /// # Errors
    /// If there is.
    pub(super) async fn ask(
        &self,
        others: Vec<Node>,
        node: NodeId,
        ring: &KeyRing,
        peers: &Peers,
    ) -> Result<(), JoinError> {
        let request = HelloRequest {
            key_check: super::forming::key_check(ring),
            members: Bytes::new(),
            node,
            generation: self.own.told(),
        };
        let asked = others.iter().map(|other| {
            let (mut peer, request) = (peers.peer(other), request.clone());
            // Each for itself: who does not answer must not make those unheard who do.
            async move {
                let told = tokio::time::timeout(ASK, peer.hello(request)).await.ok()?;
                later(&told.err()?)
            }
        });
        let told = futures::future::join_all(asked).await;
        let later = told.into_iter().flatten();
        match later.max() {
            Some(later) => {
                self.end(later).await;
                Err(superseded(self.own.get().unwrap_or_default(), later))
            }
            None => Ok(()),
        }
    }
}

/// The members that a starting one may ask: those of its log, and those of its configuration.
pub(super) fn others(configured: &[Node], stored: &Roster, own: &str) -> Vec<Node> {
    let mut all: Vec<Node> = configured.iter().chain(&stored.nodes).cloned().collect();
    all.retain(|n| n.name != own && !n.address.is_empty());
    all.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
    all.dedup();
    all
}

/// The later generation that a refusal tells of.
pub(super) fn later(refusal: &Status) -> Option<Generation> {
    let told = refusal.metadata().get(SUPERSEDED)?;
    told.to_str().ok()?.parse().ok()
}

/// What is said of a member that is of a former generation.
fn superseded(own: Generation, later: Generation) -> JoinError {
    JoinError::Superseded {
        own: own.number,
        later: later.number,
    }
}
