//! A new IKE SA in the place of an old one, and what happens when both ends make one at the same time (RFC 7296 §1.3.2, §2.8.2, §2.18, §2.25.2).

use super::{
    Command, Effect, Event, Failure,
    follow_up::new_ike_of,
    init::{named_group, nonce},
    turn::{Refused, Turn, find_error, only},
};
use crate::{
    crypto::{Exchanged, IkeKeys, IkeSuite, KeyPair},
    env::UnixMillis,
    proposal,
    record::{
        Child, Established, Fate, FollowUp, Goal, IkeGoal, IkeOffer, InboundWindow, OutboundWindow,
        Phase, Record, Rival, Role, SaId, Task,
    },
    secret::Secret,
    wire::{self, ExchangeType, KeyExchange, Notify, NotifyType, Payload},
};
use std::time::Duration;

/// How long an IKE SA that the peer has replaced waits for the peer to delete it.
const REPLACED_LINGERS: Duration = Duration::from_secs(60);

/// How long to wait before a refused rekey is tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(10);

/// The new SA of a rekey, as far as both ends agree on it.
pub(super) struct NewIke<'a> {
    pub(super) id: SaId,
    pub(super) role: Role,
    pub(super) remote_spi: u64,
    pub(super) suite: IkeSuite,
    /// The secrets of its key exchanges.
    pub(super) shared: &'a [&'a Secret],
    pub(super) nonce_i: &'a [u8],
    pub(super) nonce_r: &'a [u8],
}

impl Turn<'_, '_> {
    // ---- as responder ----

    /// The peer replaces this IKE SA.
    pub(super) fn ike_rekey_request(
        &mut self,
        payloads: &[Payload],
    ) -> Result<Vec<Payload>, Refused> {
        let busy = self.record.outbound.tasks().any(Task::forbids_ike_rekey);
        let est = self.established();
        let ending = est.replaced_by.is_some() || est.successor.is_some();
        if busy || ending || est.rival.is_some() {
            let failure =
                Failure::Invalid("it rekeys the IKE SA while another exchange is under way");
            return Err(Refused::new(NotifyType::TEMPORARY_FAILURE, failure));
        }
        let offered = only!(payloads, Sa).map_err(Refused::syntax)?;
        let nonce_i = only!(payloads, Nonce).map_err(Refused::syntax)?;
        let ke = only!(payloads, Ke).map_err(Refused::syntax)?;
        let policy = self.env.policy;
        let Some(connection) = policy.connection(&self.record.connection) else {
            let gone = Failure::Unconfigured(self.record.connection.clone());
            return Err(Refused::new(NotifyType::NO_PROPOSAL_CHOSEN, gone));
        };
        let chosen = proposal::choose_ike(&connection.proposals, offered, ke.group, true)
            .ok_or_else(|| Refused::new(NotifyType::NO_PROPOSAL_CHOSEN, Failure::NoIkeProposal))?;
        let group = chosen.suite.group;
        if group.id() != ke.group {
            let failure = Failure::Invalid("its KE payload is of another group");
            return Err(Refused::with_data(
                NotifyType::INVALID_KE_PAYLOAD,
                group.id().to_be_bytes().to_vec(),
                failure,
            ));
        }
        let remote_spi = ike_spi(&chosen.peer_spi)
            .ok_or_else(|| Refused::syntax("an SPI that no IKE SA can have"))?;
        let (public, shared) = group
            .answer(&ke.data, self.env.rng)
            .map_err(|e| Refused::new(NotifyType::INVALID_SYNTAX, e.into()))?;
        let (id, nonce_r) = (self.env.spis.ike(self.env.rng), nonce(self.env.rng));
        let goal = IkeGoal {
            id,
            remote_spi,
            suite: chosen.suite,
            nonce_i: nonce_i.clone(),
            nonce_r: nonce_r.clone(),
        };
        let more = if goal.suite.additional.is_empty() {
            self.accept_ike(&goal, &[&shared]);
            None
        } else {
            Some(self.await_follow_up(FollowUp::new(Goal::Ike(goal), shared)))
        };
        let mut answer = vec![
            Payload::Sa(vec![proposal::answer_ike(&chosen, &id.0.to_be_bytes())]),
            Payload::Nonce(nonce_r),
            Payload::Ke(KeyExchange {
                group: group.id(),
                data: public,
            }),
        ];
        answer.extend(more);
        Ok(answer)
    }

    /// The peer's new IKE SA is complete: it takes the place of this one, unless a rekey of our own is under way.
    pub(super) fn accept_ike(&mut self, goal: &IkeGoal, secrets: &[&Secret]) {
        let record = self.new_ike(&new_ike_of(goal, Role::Responder, secrets));
        if self.record.outbound.tasks().any(Task::is_ike_rekey) {
            let lowest_nonce = (&goal.nonce_i).min(&goal.nonce_r).clone();
            self.established().rival = Some(Box::new(Rival {
                record,
                lowest_nonce,
            }));
        } else {
            let lingers = self.env.now + REPLACED_LINGERS;
            self.hand_over(record, lingers);
        }
    }

    // ---- as initiator ----

    /// Asks to replace this IKE SA.
    pub(super) fn start_ike_rekey(&mut self) {
        let policy = self.env.policy;
        let Some(connection) = policy.connection(&self.record.connection) else {
            self.session.not_before = Some(self.env.now + RETRY_REFUSED);
            return self.fail(Failure::Unconfigured(self.record.connection.clone()));
        };
        let groups = || {
            connection
                .proposals
                .iter()
                .flat_map(|p| p.groups.iter().copied())
        };
        let current = self.established().suite.group;
        let hinted = self
            .session
            .group_hint
            .take()
            .and_then(|id| named_group(&id.to_be_bytes(), groups()));
        let Some(group) = hinted
            .or_else(|| groups().find(|g| *g == current))
            .or_else(|| groups().next())
        else {
            return;
        };
        let key = KeyPair::generate(group, self.env.rng);
        let id = self.env.spis.ike(self.env.rng);
        let nonce = nonce(self.env.rng);
        let payloads = [
            Payload::Sa(proposal::offer_ike(
                &connection.proposals,
                &id.0.to_be_bytes(),
                Some(group),
            )),
            Payload::Nonce(nonce.clone()),
            Payload::Ke(KeyExchange {
                group: group.id(),
                data: key.public().to_vec(),
            }),
        ];
        self.request(
            ExchangeType::CREATE_CHILD_SA,
            &payloads,
            Task::RekeyIke(IkeOffer { id, nonce, key }),
        );
        self.commit();
    }

    /// The response to our rekey of the IKE SA.
    pub(super) fn ike_rekey_response(&mut self, offer: IkeOffer, payloads: &[Payload]) {
        if let Some(error) = find_error(payloads) {
            return self.ike_rekey_refused(&offer, error);
        }
        match self.complete_ike_rekey(&offer, payloads) {
            Ok(follow_up) => {
                if let Err((follow_up, failure)) = self.go_on(follow_up, payloads) {
                    self.follow_up_failed(&follow_up.goal, failure);
                }
            }
            Err(failure) => {
                self.fail(failure);
                self.session.not_before = Some(self.env.now + RETRY_REFUSED);
                self.rival_remains();
            }
        }
    }

    fn ike_rekey_refused(&mut self, offer: &IkeOffer, error: &Notify) {
        if self.rival_remains() {
            return; // ours is not needed any more
        }
        if error.kind == NotifyType::INVALID_KE_PAYLOAD {
            let wanted = <[u8; 2]>::try_from(&error.data[..])
                .map(u16::from_be_bytes)
                .ok();
            if wanted.is_some_and(|w| w != offer.key.group().id()) {
                self.session.group_hint = wanted;
                return self.start_ike_rekey();
            }
        }
        let now = self.env.now;
        if error.kind != NotifyType::TEMPORARY_FAILURE {
            self.session.not_before = Some(now + RETRY_REFUSED);
            return self.fail(Failure::PeerRefused(error.kind));
        }
        let at = now + self.soon();
        self.session.not_before = Some(at);
        // What is due remains so, and what somebody wants is asked for again.
        if self.established().rekey_at.is_none_or(|due| due > now) {
            self.session.want_again(Command::RekeyIke, at);
        }
    }

    fn complete_ike_rekey(
        &mut self,
        offer: &IkeOffer,
        payloads: &[Payload],
    ) -> Result<Box<FollowUp>, Failure> {
        let policy = self.env.policy;
        let connection = policy
            .connection(&self.record.connection)
            .ok_or_else(|| Failure::Unconfigured(self.record.connection.clone()))?;
        let answer = only!(payloads, Sa).map_err(Failure::Invalid)?;
        let nonce_r = only!(payloads, Nonce).map_err(Failure::Invalid)?;
        let ke = only!(payloads, Ke).map_err(Failure::Invalid)?;
        let chosen =
            proposal::accepted_ike(&connection.proposals, answer).ok_or(Failure::NoIkeProposal)?;
        let remote_spi =
            ike_spi(&chosen.peer_spi).ok_or(Failure::Invalid("an SPI that no IKE SA can have"))?;
        if chosen.suite.group != offer.key.group() || ke.group != chosen.suite.group.id() {
            return Err(Failure::Invalid(
                "its KE payload does not fit what was agreed",
            ));
        }
        let shared = offer.key.agree(&ke.data)?;
        let goal = IkeGoal {
            id: offer.id,
            remote_spi,
            suite: chosen.suite,
            nonce_i: offer.nonce.clone(),
            nonce_r: nonce_r.clone(),
        };
        Ok(FollowUp::new(Goal::Ike(goal), shared))
    }

    /// Which of two new IKE SAs remains, if the peer has made one too: that with the lowest of all nonces goes, by who made it (RFC 7296 §2.8.2).
    pub(super) fn decide_ike(&mut self, ours: Record, lowest_nonce: &[u8]) {
        let now = self.env.now;
        match self.established().rival.take() {
            Some(rival) if lowest_nonce < &rival.lowest_nonce[..] => {
                // Ours goes. The peer deletes the old one.
                self.hand_over(rival.record, now + REPLACED_LINGERS);
                let mut redundant = ours;
                if let Phase::Established(e) = &mut redundant.phase {
                    e.expires_at = Some(now);
                    e.rekey_at = None;
                    e.replaced_by = self.established().replaced_by;
                }
                self.created.push(redundant);
            }
            Some(rival) => {
                // Ours remains; the peer deletes the one that it made, and it must be there to be deleted.
                let mut redundant = rival.record;
                if let Phase::Established(e) = &mut redundant.phase {
                    e.expires_at = Some(now + REPLACED_LINGERS);
                    e.rekey_at = None;
                    e.replaced_by = Some(ours.id);
                }
                self.created.push(redundant);
                self.hand_over(ours, now);
            }
            None => self.hand_over(ours, now),
        }
    }

    /// If the peer has made an IKE SA while ours was under way, and ours came to nothing, that one takes the place of this.
    pub(super) fn rival_remains(&mut self) -> bool {
        let Some(rival) = self.established().rival.take() else {
            return false;
        };
        let lingers = self.env.now + REPLACED_LINGERS;
        self.hand_over(rival.record, lingers);
        true
    }

    // ---- both ends ----

    /// The record of the new IKE SA, without Child SAs.
    pub(super) fn new_ike(&mut self, new: &NewIke<'_>) -> Record {
        let connection = self.env.policy.connection(&self.record.connection);
        let authenticated = self.established().authenticated;
        let (rekey_at, expires_at) =
            connection.map_or((None, None), |c| self.ike_times(c, authenticated));
        let old_id = self.record.id;
        let (spi_i, spi_r) = match new.role {
            Role::Initiator => (new.id.0, new.remote_spi),
            Role::Responder => (new.remote_spi, new.id.0),
        };
        let old = self.established().clone();
        debug_assert_ne!(old_id, new.id);
        let exchanged = Exchanged {
            nonce_i: new.nonce_i,
            nonce_r: new.nonce_r,
            spi_i,
            spi_r,
        };
        let keys = IkeKeys::rekeyed(new.suite, old.suite.prf, &old.keys.d, new.shared, exchanged);
        Record {
            id: new.id,
            gateway: self.record.gateway,
            revision: 1,
            role: new.role,
            remote_spi: new.remote_spi,
            connection: self.record.connection.clone(),
            path: self.record.path,
            fragmentation: self.record.fragmentation,
            created: self.env.now,
            inbound: InboundWindow::default(),
            outbound: OutboundWindow::default(),
            succeeds: None,
            phase: Phase::Established(Box::new(Established {
                suite: new.suite,
                keys: keys.of_established(),
                rekey_at,
                expires_at,
                sync_request: None,
                sync_answer: None,
                children: Vec::new(),
                follow_ups: Vec::new(),
                rival: None,
                replaced_by: None,
                ..old
            })),
        }
    }

    /// The new IKE SA inherits Child SAs and addresses; the old one is deleted at `delete_at` if the peer does not do so before.
    fn hand_over(&mut self, mut new: Record, delete_at: UnixMillis) {
        let est = self.established();
        let children: Vec<Child> = std::mem::take(&mut est.children);
        debug_assert!(children.iter().filter(|c| c.fate == Fate::Live).count() <= children.len());
        est.our_vips = Vec::new();
        est.follow_ups.clear();
        est.replaced_by = Some(new.id);
        est.rekey_at = None;
        est.expires_at = Some(delete_at);
        let mobike = est.mobike.clone().map(|m| Box::new(m.with_new_spis()));
        if let Phase::Established(e) = &mut new.phase {
            e.children = children;
            e.mobike = mobike;
        }
        let by = new.id;
        new.path = self.record.path;
        new.succeeds = self.record.succeeds.take();
        self.created.push(new);
        self.report(Event::IkeRekeyed { by });
        // What is wanted of this one and has not been begun is wanted of the new one.
        for command in std::mem::take(&mut self.session.wanted) {
            if command != Command::RekeyIke {
                self.effects.push(Effect::Tell { sa: by, command });
            }
        }
    }
}

/// A peer's SPI of an IKE SA: eight bytes, not zero (RFC 7296 §3.1).
fn ike_spi(bytes: &[u8]) -> Option<u64> {
    <[u8; 8]>::try_from(bytes)
        .ok()
        .map(u64::from_be_bytes)
        .filter(|spi| *spi != 0)
}
