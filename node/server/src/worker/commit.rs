//! Commit before reply: what is proposed, and what happens when it was decided.

use super::{
    Message, Worker,
    slot::{Committing, Queued},
};
use crate::{drills, node::LogFailed, transport};
use evergate_cluster::Plant;
use evergate_ike::{
    record::{Phase, Record, SaId},
    sa::{Effect, NoAddress, Question},
    wire::{ExchangeType, Header},
};
use evergate_state::{Command, Counters, Outcome, Refusal};
use futures::FutureExt;
use std::{sync::Arc, time::Duration};
use tracing::warn;

/// An SA whose change was refused rests this long before its timers run again.
const REST: Duration = Duration::from_secs(1);

/// So many Message IDs go into one command.
const COUNTERS_AT_ONCE: usize = 4096;

/// A proposal that was decided.
pub(super) enum Done {
    /// New records of an SA.
    Put {
        sa: SaId,
        outcome: Result<Outcome, LogFailed>,
    },
    /// Message IDs.
    Counted {
        counters: Vec<Counters>,
        outcome: Result<Outcome, LogFailed>,
    },
    /// Records that are no longer needed.
    Removed { outcome: Result<Outcome, LogFailed> },
    /// Addresses for an SA.
    Leased {
        sa: SaId,
        outcome: Result<Outcome, LogFailed>,
    },
    /// A question of an SA was answered outside of the log.
    Answered { sa: SaId, answer: Queued },
}

/// The exchange that effects belong to: that of the first message which they send.
fn exchange_of_effects(effects: &[Effect]) -> Option<ExchangeType> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { datagram, .. } => drills::exchange_of(datagram),
        _ => None,
    })
}

impl Worker {
    /// Proposes new records; the effects wait.
    pub(super) fn commit(&mut self, id: SaId, records: Vec<Record>, effects: Vec<Effect>) {
        let exchange = exchange_of_effects(&effects);
        drills::pass("before-commit", exchange);
        let records: Vec<Arc<Record>> = records.into_iter().map(Arc::new).collect();
        let command = Command::PutSas {
            epoch: self.shared.epoch,
            records: records.clone(),
        };
        self.send_early(&effects);
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.committing = Some(Box::new(Committing {
            records,
            effects,
            exchange,
        }));
        let proposal = self.shared.propose(command);
        self.pending.push(
            proposal
                .map(move |outcome| Done::Put { sa: id, outcome })
                .boxed(),
        );
    }

    /// Two planted bugs: messages leave before what they tell is committed.
    fn send_early(&self, effects: &[Effect]) {
        if !Plant::EarlyReply.is_there() && !Plant::EarlyRequest.is_there() {
            return;
        }
        for effect in effects {
            let Effect::Send {
                datagram,
                local,
                remote,
                transport,
            } = effect
            else {
                continue;
            };
            let is_response = Header::parse(datagram).is_ok_and(|h| h.is_response);
            if is_response == Plant::EarlyReply.is_there() {
                self.send(*local, *remote, *transport, datagram);
            }
        }
    }

    /// Whether something waits for the next tick.
    pub(super) fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.forgotten.is_empty()
    }

    /// Proposes what came together since the last tick.
    pub(super) fn propose_changes(&mut self) {
        self.propose_counters();
        if !self.forgotten.is_empty() {
            let proposal = self.shared.propose(Command::RemoveSas {
                gateway: self.shared.gateway,
                epoch: self.shared.epoch,
                sas: std::mem::take(&mut self.forgotten),
            });
            self.pending
                .push(proposal.map(|outcome| Done::Removed { outcome }).boxed());
        }
    }

    /// Message IDs that moved.
    fn propose_counters(&mut self) {
        let mut counters = Vec::new();
        while counters.len() < COUNTERS_AT_ONCE
            && let Some(id) = self.dirty.pop_first()
        {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            let record = slot.sa.record();
            let next = (record.inbound.next, record.outbound.accounted());
            if next != slot.proposed {
                slot.proposed = next;
                counters.push(Counters {
                    sa: id,
                    inbound_next: next.0,
                    outbound_next: next.1,
                });
            }
        }
        if counters.is_empty() {
            return;
        }
        let proposal = self.shared.propose(Command::Counters {
            gateway: self.shared.gateway,
            epoch: self.shared.epoch,
            counters: counters.clone(),
        });
        self.pending.push(
            proposal
                .map(move |outcome| Done::Counted { counters, outcome })
                .boxed(),
        );
    }

    /// Asks for what only the outside can decide.
    pub(super) fn ask(&mut self, id: SaId, question: Question) {
        let credentials = &self.shared.credentials;
        let policy = self.shared.policy.load_full();
        let answered = move |answer| Done::Answered { sa: id, answer };
        let answer = match question {
            Question::Addresses {
                pools,
                identity,
                v4,
                v6,
                takes_over,
            } => self
                .shared
                .propose(Command::LeaseAddresses {
                    epoch: self.shared.epoch,
                    sa: id,
                    gateway: self.shared.gateway,
                    identity,
                    pools,
                    v4,
                    v6,
                    takes_over,
                })
                .map(move |outcome| Done::Leased { sa: id, outcome })
                .boxed(),
            Question::Exists(other) => {
                let exists = self.shared.read(|state| {
                    let other = state.sa(other);
                    other.is_some_and(|r| !matches!(r.phase, Phase::Closed(_)))
                });
                std::future::ready(answered(Queued::Exists(exists))).boxed()
            }
            Question::Verify(question) => credentials
                .verify(policy, self.shared.clock.now(), *question)
                .map(move |answer| answered(Queued::Verified(answer)))
                .boxed(),
            Question::Sign {
                key,
                scheme,
                octets,
            } => credentials
                .sign(policy, key, scheme, octets)
                .map(move |signature| answered(Queued::Signed(signature)))
                .boxed(),
        };
        self.pending.push(answer);
    }

    /// A proposal was decided.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Put { sa, outcome } => match self.decided(outcome) {
                Some(Ok(outcome)) => {
                    self.applied(sa);
                    if let Outcome::Displaced(sas) = outcome {
                        self.displace(&sas);
                    }
                }
                Some(Err(refusal)) => self.refused(sa, &refusal),
                None => {}
            },
            Done::Counted { counters, outcome } => {
                if let Some(Ok(_)) = self.decided(outcome) {
                    for counted in counters {
                        if let Some(slot) = self.slots.get_mut(&counted.sa) {
                            slot.sa.outbound_committed(counted.outbound_next);
                            self.share(counted.sa);
                            self.reschedule(counted.sa);
                        }
                    }
                }
            }
            Done::Removed { outcome } => {
                if let Some(Err(refusal)) = self.decided(outcome) {
                    warn!(event = "refused", "records could not be removed: {refusal}");
                }
            }
            Done::Answered { sa, answer } => self.feed(sa, answer),
            Done::Leased { sa, outcome } => match self.decided(outcome) {
                Some(Ok(Outcome::Leased(addresses))) => {
                    self.feed(sa, Queued::Addresses(Ok(addresses)))
                }
                Some(_) => self.feed(sa, Queued::Addresses(Err(NoAddress))),
                None => {}
            },
        }
    }

    /// What was decided; `None` if it means that this process serves the gateway no longer.
    fn decided(&self, outcome: Result<Outcome, LogFailed>) -> Option<Result<Outcome, Refusal>> {
        match outcome {
            Ok(Outcome::Refused(refusal)) if refusal.is_loss() => self.shared.go_passive(&refusal),
            Ok(Outcome::Refused(refusal)) => return Some(Err(refusal)),
            Ok(outcome) => return Some(Ok(outcome)),
            // Time-outs and failures decide nothing: the change may be in the log.
            Err(failed) => self.shared.go_passive(&failed),
        }
        None
    }

    /// A change is committed: it counts now, and what follows from it happens.
    fn applied(&mut self, id: SaId) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let Some(Committing {
            records,
            effects,
            exchange,
        }) = slot.committing.take().map(|c| *c)
        else {
            return;
        };
        drills::pass("after-commit", exchange);
        let mut records = records.into_iter();
        if let Some(own) = records.next() {
            own.offered_children()
                .for_each(|spi| self.shared.plane.expect(spi));
            slot.proposed = (own.inbound.next, own.outbound.accounted());
            transport::claim(&*self.shared.plane, &own);
            slot.sa.adopt(own);
        }
        if !slot.is_half_open() {
            slot.permit = None;
        }
        for created in records {
            let id = created.id;
            self.admit(Arc::unwrap_or_clone(created));
            self.share(id);
        }
        self.share(id);
        self.log_keys(id);
        self.perform(id, effects);
        self.resume_inputs(id);
    }

    /// Has the record in common with the replicated state.
    fn share(&mut self, id: SaId) {
        let replicated = self.shared.read(|state| state.sa(id).cloned());
        if let Some((slot, replicated)) = self.slots.get_mut(&id).zip(replicated) {
            slot.sa.share(&replicated);
        }
    }

    /// A change is refused: nothing of it happens, and the SA stays as it was.
    fn refused(&mut self, id: SaId, refusal: &Refusal) {
        let rest_until = self.shared.clock.now() + REST;
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        slot.committing = None;
        // No accident: the policy says so, and the peer is told.
        if matches!(refusal, Refusal::NotUnique(_)) {
            self.feed(id, Queued::NotUnique);
            return self.resume_inputs(id);
        }
        let record = slot.sa.record();
        warn!(event = "refused", sa = %id, connection = record.connection, peer = %record.path.remote, "a change was refused: {refusal}");
        slot.not_before = rest_until;
        // What this process just made up and nobody has heard of is gone with its first record.
        if self.shared.read(|state| state.sa(id).is_none()) {
            return self.remove(id);
        }
        self.resume_inputs(id);
    }

    /// Tells SAs that their peer has authenticated anew; each to the worker that has it.
    pub(super) fn displace(&self, sas: &[SaId]) {
        for &sa in sas {
            let how = self.shared.read(|state| state.displaced(sa));
            let (Some(how), Some(worker)) = (how, self.shared.worker(sa)) else {
                continue;
            };
            let worker = worker.clone();
            let message = Message::Command {
                sa,
                command: evergate_ike::sa::Command::Displace(how),
                watcher: None,
                reply: None,
            };
            tokio::spawn(async move { worker.send(message).await });
        }
    }

    fn resume_inputs(&mut self, id: SaId) {
        while let Some(input) = self.slots.get_mut(&id).and_then(|slot| slot.dequeue()) {
            self.step(id, input.as_input());
        }
        self.reschedule(id);
    }
}

/// A planted bug: what answers a repeated request is made anew, with another IV. Whatever else is in them is of no interest.
pub(super) fn answer_anew(mut effects: Vec<Effect>) -> Vec<Effect> {
    const IV: std::ops::Range<usize> = 32..40;
    if Plant::Answer.is_there() {
        for effect in &mut effects {
            let Effect::Send { datagram, .. } = effect else {
                continue;
            };
            if Header::parse(datagram).is_ok_and(|h| h.is_response) && datagram.len() > IV.end {
                datagram[IV].fill(0xee);
            }
        }
    }
    effects
}
