//! Additional key exchanges of CREATE_CHILD_SA: one IKE_FOLLOWUP_KE for each (RFC 9370 §2.2.4).
//!
//! What CREATE_CHILD_SA agreed on waits in the record, on both ends, with the secrets of the exchanges so far; only the last one makes the
//! Child SA or the IKE SA. A responder keeps as many such things for each IKE SA as the initiator may have requests under way: the newest.

use super::{
    Failure,
    child::{Origin, Terms},
    ike_rekey::NewIke,
    turn::{Refused, Turn, find_error, find_notify, notify, only},
};
use crate::{
    crypto::{Group, KeyPair},
    env::UnixMillis,
    record::{ChildGoal, Fate, FollowUp, Goal, IkeGoal, Role, Task},
    secret::Secret,
    wire::{self, ExchangeType, KeyExchange, NotifyType, Payload},
};
use std::time::Duration;

/// How long a responder waits for the next exchange: longer than an initiator goes on repeating one request.
const PATIENCE: Duration = Duration::from_secs(180);

/// Length of what names an unfinished exchange on the wire, in bytes.
const LINK_LEN: usize = 8;

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl FollowUp {
    /// After the first key exchange, whose secret is `shared`.
    pub(super) fn new(goal: Goal, shared: Secret) -> Box<Self> {
        Box::new(Self {
            link: Vec::new(),
            goal,
            secrets: vec![shared],
            expires_at: UnixMillis::default(),
        })
    }

    /// The method of the next exchange, while there is one to come.
    pub(super) fn next_exchange(&self) -> Option<Group> {
        let additional = match &self.goal {
            Goal::Child(goal) => goal.suite.additional,
            Goal::Ike(goal) => goal.suite.additional,
        };
        additional.methods().nth(self.secrets.len() - 1)
    }

    fn secrets(&self) -> Vec<&Secret> {
        self.secrets.iter().collect()
    }
}

impl Turn<'_, '_> {
    // ---- as responder ----

    /// Keeps what is not finished, and says so.
    pub(super) fn await_follow_up(&mut self, mut follow_up: Box<FollowUp>) -> Payload {
        let mut link = vec![0; LINK_LEN];
        self.env.rng.fill(&mut link);
        follow_up.link.clone_from(&link);
        let now = self.env.now;
        follow_up.expires_at = now + PATIENCE;
        let most = usize::from(self.record.inbound.size);
        let waiting = &mut self.established().follow_ups;
        waiting.retain(|f| f.expires_at > now);
        waiting.drain(..(waiting.len() + 1).saturating_sub(most));
        waiting.push(*follow_up);
        notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, link)
    }

    /// The peer goes on with its CREATE_CHILD_SA.
    pub(super) fn follow_up_request(&mut self, id: u32, payloads: &[Payload]) {
        self.answer(ExchangeType::IKE_FOLLOWUP_KE, id, |turn| {
            turn.answer_follow_up(payloads)
        });
    }

    fn answer_follow_up(&mut self, payloads: &[Payload]) -> Result<Vec<Payload>, Refused> {
        let named = find_notify(payloads, NotifyType::ADDITIONAL_KEY_EXCHANGE)
            .ok_or_else(|| Refused::syntax("no ADDITIONAL_KEY_EXCHANGE notify"))?;
        let theirs = only!(payloads, Ke).map_err(Refused::syntax)?;
        let now = self.env.now;
        let waiting = &mut self.established().follow_ups;
        let known = |f: &FollowUp| f.link == named.data && f.expires_at > now;
        let known = waiting.iter().position(known);
        let known = known.map(|at| Box::new(waiting.remove(at)));
        let Some((mut follow_up, group)) = known.and_then(|f| f.next_exchange().map(|g| (f, g)))
        else {
            let failure = Failure::Invalid("it goes on with a key exchange that is not known");
            return Err(Refused::new(NotifyType::STATE_NOT_FOUND, failure));
        };
        self.refuse_if_busy(&follow_up.goal)?;
        if theirs.group != group.id() {
            return Err(Refused::syntax("a key exchange by another method"));
        }
        let (data, shared) = group
            .answer(&theirs.data, self.env.rng)
            .map_err(|e| Refused::syntax_because(e.into()))?;
        follow_up.secrets.push(shared);
        let mut answer = vec![Payload::Ke(KeyExchange {
            group: group.id(),
            data,
        })];
        if follow_up.next_exchange().is_some() {
            answer.push(self.await_follow_up(follow_up));
        } else {
            self.finish_as_responder(&follow_up)?;
        }
        Ok(answer)
    }

    /// What was begun may have become impossible meanwhile (RFC 7296 §2.25).
    fn refuse_if_busy(&mut self, goal: &Goal) -> Result<(), Refused> {
        let forbids: fn(&Task) -> bool = match goal {
            Goal::Child(_) => |task| task.is_ike_rekey() || *task == Task::DeleteIke,
            Goal::Ike(_) => Task::forbids_ike_rekey,
        };
        let busy = self.record.outbound.tasks().any(forbids);
        let est = self.established();
        if busy || est.replaced_by.is_some() || est.rival.is_some() {
            let failure = Failure::Invalid("the IKE SA is being replaced or deleted");
            return Err(Refused::new(NotifyType::TEMPORARY_FAILURE, failure));
        }
        Ok(())
    }

    fn finish_as_responder(&mut self, follow_up: &FollowUp) -> Result<(), Refused> {
        let secrets = follow_up.secrets();
        match &follow_up.goal {
            Goal::Child(goal) => {
                let est = self.established();
                // What it should replace may have gone meanwhile.
                let replaces = goal
                    .replaces
                    .filter(|old| est.children.iter().any(|c| c.spi_in == *old));
                let fate = match replaces {
                    Some(_) => Fate::Standby,
                    None => Fate::Live,
                };
                self.make_child(goal, &secrets, false, replaces, fate)
                    .map_err(|failure| Refused::new(NotifyType::NO_ADDITIONAL_SAS, failure))
            }
            Goal::Ike(goal) => {
                self.accept_ike(goal, &secrets);
                Ok(())
            }
        }
    }

    // ---- as initiator ----

    /// The next exchange of a CREATE_CHILD_SA of ours.
    pub(super) fn start_follow_up(&mut self, follow_up: Box<FollowUp>, group: Group, link: &[u8]) {
        let key = KeyPair::generate(group, self.env.rng);
        let payloads = [
            Payload::Ke(KeyExchange {
                group: group.id(),
                data: key.public().to_vec(),
            }),
            notify(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec()),
        ];
        let task = Task::FollowUp(follow_up, key);
        self.request(ExchangeType::IKE_FOLLOWUP_KE, &payloads, task);
        self.commit();
    }

    /// The first key exchange is done, or another: the next one, if `payloads` say that the peer waits for it, or the end.
    pub(super) fn go_on(
        &mut self,
        follow_up: Box<FollowUp>,
        payloads: &[Payload],
    ) -> Result<(), (Box<FollowUp>, Failure)> {
        let link = find_notify(payloads, NotifyType::ADDITIONAL_KEY_EXCHANGE);
        match (follow_up.next_exchange(), link) {
            (Some(group), Some(link)) => {
                self.start_follow_up(follow_up, group, &link.data);
                Ok(())
            }
            (None, None) => self
                .finish_as_initiator(&follow_up)
                .map_err(|failure| (follow_up, failure)),
            _ => {
                let failure = Failure::Invalid("its key exchanges are not those that were agreed");
                Err((follow_up, failure))
            }
        }
    }

    /// The response to our IKE_FOLLOWUP_KE.
    pub(super) fn follow_up_response(
        &mut self,
        mut follow_up: Box<FollowUp>,
        key: &KeyPair,
        payloads: &[Payload],
    ) {
        if let Some(error) = find_error(payloads) {
            let temporary = matches!(
                error.kind,
                NotifyType::TEMPORARY_FAILURE | NotifyType::STATE_NOT_FOUND
            );
            if matches!(follow_up.goal, Goal::Ike(_)) && self.rival_remains() {
                return; // ours is not needed any more
            }
            let wait = if temporary { self.soon() } else { RETRY };
            if let (true, Goal::Child(goal)) = (temporary, &follow_up.goal) {
                self.ask_again(&goal.name, goal.replaces, wait);
            }
            self.session.not_before = Some(self.env.now + wait);
            return self.fail(Failure::PeerRefused(error.kind));
        }
        let agreed = only!(payloads, Ke)
            .map_err(Failure::Invalid)
            .and_then(|theirs| match theirs.group == key.group().id() {
                true => Ok(key.agree(&theirs.data)?),
                false => Err(Failure::Invalid("a key exchange by another method")),
            });
        let outcome = match agreed {
            Ok(shared) => {
                follow_up.secrets.push(shared);
                self.go_on(follow_up, payloads)
            }
            Err(failure) => Err((follow_up, failure)),
        };
        if let Err((follow_up, failure)) = outcome {
            self.follow_up_failed(&follow_up.goal, failure);
        }
    }

    /// The peer may have now what we cannot have.
    pub(super) fn follow_up_failed(&mut self, goal: &Goal, failure: Failure) {
        self.fail(failure);
        self.session.not_before = Some(self.env.now + RETRY);
        match goal {
            Goal::Child(goal) => self.delete_children(vec![goal.spi_in]),
            Goal::Ike(_) => {
                self.rival_remains();
            }
        }
    }

    fn finish_as_initiator(&mut self, follow_up: &FollowUp) -> Result<(), Failure> {
        let secrets = follow_up.secrets();
        match &follow_up.goal {
            Goal::Child(goal) => {
                let lowest = (&goal.nonce_i).min(&goal.nonce_r).clone();
                let fate = self.fate_of_replacement(goal.replaces, &lowest);
                let made = self.make_child(goal, &secrets, true, goal.replaces, fate);
                if made.is_ok() && fate == Fate::Live {
                    self.supersede(goal.replaces);
                }
                made
            }
            Goal::Ike(goal) => {
                let record = self.new_ike(&new_ike_of(goal, Role::Initiator, &secrets));
                let lowest = (&goal.nonce_i).min(&goal.nonce_r).clone();
                self.decide_ike(record, &lowest);
                Ok(())
            }
        }
    }

    // ---- both ends ----

    /// Adds the Child SA that both ends agreed on.
    fn make_child(
        &mut self,
        goal: &ChildGoal,
        secrets: &[&Secret],
        initiated: bool,
        replaces: Option<u32>,
        fate: Fate,
    ) -> Result<(), Failure> {
        let policy = self.env.policy;
        let connection = policy.connection(&self.record.connection);
        let config = connection
            .and_then(|c| c.child(&goal.name))
            .ok_or(Failure::Command("the connection has no such child"))?;
        let terms = Terms {
            suite: goal.suite,
            spi_in: goal.spi_in,
            spi_out: goal.spi_out,
            mode: goal.mode,
            local_ts: goal.local_ts.clone(),
            remote_ts: goal.remote_ts.clone(),
        };
        let origin = Origin {
            initiated,
            nonce_i: &goal.nonce_i,
            nonce_r: &goal.nonce_r,
            shared: secrets,
            replaces,
            fate,
        };
        self.add_child(config, terms, &origin);
        Ok(())
    }
}

/// What an agreement on an IKE SA makes, seen from one end.
pub(super) fn new_ike_of<'a>(
    goal: &'a IkeGoal,
    role: Role,
    secrets: &'a [&'a Secret],
) -> NewIke<'a> {
    NewIke {
        id: goal.id,
        role,
        remote_spi: goal.remote_spi,
        suite: goal.suite,
        shared: secrets,
        nonce_i: &goal.nonce_i,
        nonce_r: &goal.nonce_r,
    }
}
