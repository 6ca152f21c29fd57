//! Who may join: a member that lost what it had, or who bears a token.

use super::{
    roster::{Known, Roster},
    token::JoinToken,
    types::{Node, NodeId, Raft},
};
use crate::replica::Shared;
use evergate_ike::env::UnixMillis;
use evergate_state::{Command, Outcome, Refusal, Stage};
use openraft::ChangeMembers;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tonic::Status;
use tracing::{info, warn};

/// So many wrong tokens of one name are looked at in so long a time: nobody guesses 256 bits, but each costs the leader a round of messages.
const WRONG_TOKENS: u32 = 10;
const WRONG_TOKENS_IN: Duration = Duration::from_secs(60);

/// Names whose wrong tokens are counted: each needs a certificate of the cluster's authority.
const MAX_NAMES: usize = 64;

/// What is committed within this time; else the joiner asks again.
const COMMIT: Duration = Duration::from_secs(5);

/// Decides who may join.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) known: Known,
    pub(crate) shared: Arc<Shared>,
    /// Wrong tokens by names: since when they are counted, and how many.
    wrong: Arc<Mutex<BTreeMap<String, (Instant, u32)>>>,
}

/// What a joiner is told.
pub(crate) enum Answer {
    /// It will be taken in.
    Admitted(Roster),
    /// One of these has to be asked, the leader.
    Ask(Roster),
}

impl Admission {
    pub(crate) fn new(known: Known, shared: Arc<Shared>) -> Self {
        Self {
            known,
            shared,
            wrong: Arc::default(),
        }
    }

    /// Answers a joiner whose certificate has this name.
    ///
    /// # Errors
    /// Why not: for good (`PERMISSION_DENIED`), or not now.
    pub(crate) async fn join(
        &self,
        name: &str,
        node: NodeId,
        token: &[u8],
    ) -> Result<Answer, Status> {
        let starting = || Status::unavailable("this member is starting, or joins itself");
        let raft = self.known.raft().ok_or_else(starting)?;
        let membership = self.known.membership().ok_or_else(starting)?;
        let roster = self.known.latest();
        if let Some(dismissed) = self.shared.read(|s| s.dismissed(node).map(str::to_owned)) {
            return Err(Status::permission_denied(format!(
                "{dismissed:?} was removed from the cluster"
            )));
        }
        let former: BTreeMap<NodeId, Node> = membership
            .nodes()
            .filter(|(_, n)| n.name == name)
            .map(|(id, n)| (*id, n.clone()))
            .collect();
        if let Some(own) = former.values().next() {
            if !raft.is_leader() {
                return Ok(Answer::Ask(roster));
            }
            if !former.contains_key(&node) {
                let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
                let learners = former.keys().filter(|id| !voters.contains(id));
                take_in_again(&raft, node, own.clone(), learners.copied().collect()).await?;
            }
            return Ok(Answer::Admitted(roster));
        }
        let Some(token) = JoinToken::from_slice(token) else {
            let why = format!("{name:?} is no member: to join it needs a token");
            return Err(self.refuse(name, &why));
        };
        self.admit(&raft, name, node, &token, roster).await
    }

    async fn admit(
        &self,
        raft: &Raft,
        name: &str,
        node: NodeId,
        token: &JoinToken,
        roster: Roster,
    ) -> Result<Answer, Status> {
        self.check_rate(name)?;
        let digest = token.digest();
        let admitted = Stage::Admitted { node };
        let (known, checked) = self.shared.read(|state| {
            let known = state.enrolment(name).is_some_and(|e| e.stage == admitted);
            (known, state.check_token(name, &digest, state.clock()))
        });
        if !raft.is_leader() {
            // Only who bears a good token is told who there is; whether it is none is for the leader to say.
            if known || checked.is_ok() {
                return Ok(Answer::Ask(roster));
            }
            return Err(Status::unavailable(
                "this member does not lead, and knows no such token",
            ));
        }
        raft.ensure_linearizable(openraft::ReadPolicy::ReadIndex)
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let command = Command::Admit {
            member: name.to_owned(),
            digest,
            node,
        };
        // Looked at before it is proposed: a wrong one costs no commit. Its time is the one of the entry that uses it up.
        let before = self.shared.read(|state| {
            let known = state.enrolment(name).is_some_and(|e| e.stage == admitted);
            match known {
                true => Ok(()),
                false => state.check_token(name, &digest, UnixMillis(0)),
            }
        });
        let outcome = match before {
            Ok(()) => self.commit(command).await?,
            Err(refusal) => Outcome::Refused(refusal),
        };
        match outcome {
            Outcome::Refused(refusal @ Refusal::ChangeUnderWay(_)) => {
                Err(Status::unavailable(refusal.to_string()))
            }
            Outcome::Refused(refusal) => Err(self.refuse(name, &refusal.to_string())),
            _ => {
                info!(
                    event = "member-admitted",
                    member = name,
                    node,
                    "{name:?} joins the cluster with its token, which is used up"
                );
                Ok(Answer::Admitted(roster))
            }
        }
    }

    async fn commit(&self, command: Command) -> Result<Outcome, Status> {
        let proposed = tokio::time::timeout(COMMIT, self.shared.propose(vec![command])).await;
        let outcomes = proposed
            .map_err(|_| Status::unavailable("most members do not answer"))?
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let none = || Status::internal("a command has no outcome");
        outcomes.into_iter().next().ok_or_else(none)
    }

    fn check_rate(&self, name: &str) -> Result<(), Status> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        match wrong.get(name) {
            Some((since, count)) if *count >= WRONG_TOKENS && since.elapsed() < WRONG_TOKENS_IN => {
                Err(Status::resource_exhausted(format!(
                    "too many tokens of {name:?} were wrong: none is looked at for {} s",
                    WRONG_TOKENS_IN.as_secs()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Says no, and counts it.
    fn refuse(&self, name: &str, why: &str) -> Status {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.retain(|_, (since, _)| since.elapsed() < WRONG_TOKENS_IN);
        let count = if wrong.len() < MAX_NAMES || wrong.contains_key(name) {
            let (_, count) = wrong
                .entry(name.to_owned())
                .or_insert_with(|| (Instant::now(), 0));
            *count += 1;
            *count
        } else {
            u32::MAX
        };
        drop(wrong);
        if count <= WRONG_TOKENS {
            warn!(
                event = "join-refused",
                member = name,
                "{name:?} may not join: {why}"
            );
        }
        Status::permission_denied(why.to_owned())
    }
}

/// A member that lost what it had is another node: it learns, in the place of whatever learned under its name. If that voted the steward sees to it that this
/// one does.
async fn take_in_again(
    raft: &Raft,
    id: NodeId,
    node: Node,
    learners: BTreeSet<NodeId>,
) -> Result<(), Status> {
    info!(
        event = "member-rejoins",
        member = node.name,
        node = id,
        "{:?} lost what it had, and joins again as another node",
        node.name
    );
    let change = ChangeMembers::Batch(vec![
        ChangeMembers::AddNodes(BTreeMap::from([(id, node)])),
        ChangeMembers::RemoveNodes(learners),
    ]);
    let changed = raft.change_membership(change, false).await;
    changed
        .map(drop)
        .map_err(|e| Status::unavailable(e.to_string()))
}
