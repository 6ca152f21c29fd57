//! Child SAs: made in IKE_AUTH and CREATE_CHILD_SA, replaced, and what happens when both ends replace one at the same time (RFC 7296 §1.3.1,
//! §1.3.3, §2.8, §2.9, §2.17, §2.25.1).

use super::{
    Effect, Event, Failure,
    auth::randomised,
    init::nonce,
    transport_mode,
    turn::{INBOUND_GRACE, Refused, Turn, at_most_one, find_notify, only},
};
use crate::{
    config::ChildConfig,
    crypto::{ChildKeys, EspSuite},
    proposal,
    record::{Child, ChildGoal, CloseReason, Established, Fate, FollowUp, Goal, Mode, Task},
    secret::Secret,
    selector::{SelectorTemplate, narrow},
    wire::{
        self, ExchangeType, KeyExchange, Notify, NotifyType, Payload, Protocol, TrafficSelector,
    },
};
use std::{net::IpAddr, time::Duration};

/// Child SAs of one IKE SA: more than anyone has use for.
const MAX_CHILDREN: usize = 64;

/// The peer's request for a Child SA.
pub(super) struct ChildRequest<'a> {
    pub(super) payloads: &'a [Payload],
    pub(super) nonce_i: &'a [u8],
    pub(super) nonce_r: &'a [u8],
    /// In IKE_AUTH no nonces and no key exchange are part of it.
    pub(super) in_auth: bool,
    /// Our inbound SPI of the Child SA that it replaces.
    pub(super) replaces: Option<u32>,
}

/// What both ends agreed on for a Child SA.
pub(super) struct Terms {
    pub(super) suite: EspSuite,
    pub(super) spi_in: u32,
    pub(super) spi_out: u32,
    pub(super) mode: Mode,
    pub(super) local_ts: Vec<TrafficSelector>,
    pub(super) remote_ts: Vec<TrafficSelector>,
}

/// How a Child SA came to be.
pub(super) struct Origin<'a> {
    pub(super) initiated: bool,
    pub(super) nonce_i: &'a [u8],
    pub(super) nonce_r: &'a [u8],
    /// The secrets of its own key exchanges.
    pub(super) shared: &'a [&'a Secret],
    pub(super) replaces: Option<u32>,
    pub(super) fate: Fate,
}

impl<'e> Turn<'_, 'e> {
    /// A CREATE_CHILD_SA request: a new Child SA, or one or the other replaced.
    pub(super) fn create_child_request(&mut self, id: u32, payloads: &[Payload]) {
        let for_ike = payloads
            .iter()
            .any(|p| matches!(p, Payload::Sa(s) if s.iter().any(|p| p.protocol == Protocol::IKE)));
        self.note_window_size(payloads);
        self.answer(ExchangeType::CREATE_CHILD_SA, id, |turn| {
            if for_ike {
                turn.ike_rekey_request(payloads)
            } else {
                turn.child_request(payloads)
            }
        });
    }

    fn child_request(&mut self, payloads: &[Payload]) -> Result<Vec<Payload>, Refused> {
        let busy = Refused::new(
            NotifyType::TEMPORARY_FAILURE,
            Failure::Invalid("the IKE SA is being replaced or deleted"),
        );
        let ends = |task: &Task| task.is_ike_rekey() || *task == Task::DeleteIke;
        let ending = self.record.outbound.tasks().any(ends);
        let est = self.established();
        if ending || est.replaced_by.is_some() || est.rival.is_some() {
            return Err(busy);
        }
        if est.children.len() >= MAX_CHILDREN {
            return Err(Refused::new(
                NotifyType::NO_ADDITIONAL_SAS,
                Failure::Invalid("it has too many Child SAs"),
            ));
        }
        let replaced = find_notify(payloads, NotifyType::REKEY_SA)
            .map(|n| self.child_to_replace(n))
            .transpose()?;
        let policy = self.env.policy;
        let Some(connection) = policy.connection(&self.record.connection) else {
            let gone = Failure::Unconfigured(self.record.connection.clone());
            return Err(Refused::new(NotifyType::NO_ADDITIONAL_SAS, gone));
        };
        let nonce_i = only!(payloads, Nonce).map_err(Refused::syntax)?;
        let nonce_r = nonce(self.env.rng);
        let (replaces, name) = replaced.unzip();
        let request = ChildRequest {
            payloads,
            nonce_i,
            nonce_r: &nonce_r,
            in_auth: false,
            replaces,
        };
        let configs = connection
            .children
            .iter()
            .filter(|c| name.as_ref().is_none_or(|n| *n == c.name));
        self.accept_child(&request, configs)
    }

    /// The Child SA that a REKEY_SA notify names, if it can be replaced now.
    fn child_to_replace(&mut self, rekey: &Notify) -> Result<(u32, String), Refused> {
        let named = <[u8; 4]>::try_from(&rekey.spi[..])
            .map(u32::from_be_bytes)
            .ok();
        let deleting = self.record.outbound.deleting();
        let child = self
            .established()
            .children
            .iter()
            .find(|c| Some(c.spi_out) == named);
        let Some(child) = child else {
            // It may be the one that the response to our own request tells of, which is still on its way: "not found" would make the peer drop it.
            if self.record.outbound.tasks().any(Task::makes_child) {
                let failure =
                    Failure::Invalid("it wants to rekey a Child SA that we may not know yet");
                return Err(Refused::new(NotifyType::TEMPORARY_FAILURE, failure));
            }
            let failure = Failure::Invalid("it wants to rekey a Child SA that does not exist");
            let mut refused = Refused::new(NotifyType::CHILD_SA_NOT_FOUND, failure);
            refused.notify.protocol = rekey.protocol;
            refused.notify.spi = rekey.spi.clone();
            return Err(refused);
        };
        if child.fate == Fate::Replaced || deleting.contains(&child.spi_in) {
            let failure = Failure::Invalid("it wants to rekey a Child SA that is being deleted");
            return Err(Refused::new(NotifyType::TEMPORARY_FAILURE, failure));
        }
        Ok((child.spi_in, child.name.clone()))
    }

    /// Accepts the peer's request for a Child SA on the first of `configs` that fits, and says what to answer.
    pub(super) fn accept_child(
        &mut self,
        request: &ChildRequest<'_>,
        configs: impl Iterator<Item = &'e ChildConfig>,
    ) -> Result<Vec<Payload>, Refused> {
        let offered = only!(request.payloads, Sa).map_err(Refused::syntax)?;
        let ts_i = only!(request.payloads, TsI).map_err(Refused::syntax)?;
        let ts_r = only!(request.payloads, TsR).map_err(Refused::syntax)?;
        let ke = at_most_one!(request.payloads, Ke).map_err(Refused::syntax)?;
        let mut failure = Refused::new(NotifyType::TS_UNACCEPTABLE, Failure::NoSelectors);
        for config in configs {
            let transport = self.grants_transport(config, request.payloads, (ts_r, ts_i));
            let (mode, (local_ts, remote_ts)) = match transport {
                Some((seen, sides)) => (Mode::Transport(seen), sides),
                None => {
                    let (local, remote) = self.allowed_selectors(config);
                    (Mode::Tunnel, (narrow(ts_r, &local), narrow(ts_i, &remote)))
                }
            };
            if local_ts.is_empty() || remote_ts.is_empty() {
                continue;
            }
            let chosen = proposal::choose_esp(
                &config.esp_proposals,
                offered,
                ke.map(|k| k.group),
                !request.in_auth,
            );
            let Some(chosen) = chosen else {
                failure = Refused::new(NotifyType::NO_PROPOSAL_CHOSEN, Failure::NoChildProposal);
                continue;
            };
            let Some(spi_out) = child_spi(&chosen.peer_spi) else {
                return Err(Refused::syntax("an SPI that no Child SA can have"));
            };
            let pair = self.answer_key_exchange(chosen.suite, ke)?;
            let spi_in = self.env.spis.child(self.env.rng);
            let (ke, secret) = pair.unzip();
            let goal = ChildGoal {
                name: config.name.clone(),
                suite: chosen.suite,
                spi_in,
                spi_out,
                mode,
                local_ts: local_ts.clone(),
                remote_ts: remote_ts.clone(),
                nonce_i: request.nonce_i.to_vec(),
                nonce_r: request.nonce_r.to_vec(),
                replaces: request.replaces,
            };
            let more = self.make_or_await(config, goal, secret);
            let mut answer = vec![Payload::Sa(vec![proposal::answer_esp(&chosen, spi_in)])];
            answer.extend((mode != Mode::Tunnel).then(transport_mode::payload));
            if !request.in_auth {
                answer.push(Payload::Nonce(request.nonce_r.to_vec()));
            }
            answer.extend(ke.map(Payload::Ke));
            answer.push(Payload::TsI(remote_ts));
            answer.push(Payload::TsR(local_ts));
            answer.extend(more);
            if !request.in_auth {
                answer.extend(self.widen_window());
            }
            return Ok(answer);
        }
        Err(failure)
    }

    /// Adds the Child SA of the peer's request, or waits for its additional key exchanges, and says so.
    fn make_or_await(
        &mut self,
        config: &ChildConfig,
        goal: ChildGoal,
        secret: Option<Secret>,
    ) -> Option<Payload> {
        let secret = match secret {
            Some(secret) if !goal.suite.additional.is_empty() => {
                return Some(self.await_follow_up(FollowUp::new(Goal::Child(goal), secret)));
            }
            other => other,
        };
        let terms = Terms {
            suite: goal.suite,
            spi_in: goal.spi_in,
            spi_out: goal.spi_out,
            mode: goal.mode,
            local_ts: goal.local_ts,
            remote_ts: goal.remote_ts,
        };
        let shared = secret.as_ref();
        let origin = Origin {
            initiated: false,
            nonce_i: &goal.nonce_i,
            nonce_r: &goal.nonce_r,
            shared: shared.as_slice(),
            replaces: goal.replaces,
            fate: if goal.replaces.is_some() {
                Fate::Standby
            } else {
                Fate::Live
            },
        };
        self.add_child(config, terms, &origin);
        None
    }

    /// Our part of the Child SA's own key exchange, if one was chosen.
    fn answer_key_exchange(
        &mut self,
        suite: EspSuite,
        ke: Option<&KeyExchange>,
    ) -> Result<Option<(KeyExchange, Secret)>, Refused> {
        let Some(group) = suite.group else {
            return Ok(None);
        };
        let Some(ke) = ke.filter(|k| k.group == group.id()) else {
            let wanted = group.id().to_be_bytes().to_vec();
            return Err(Refused::with_data(
                NotifyType::INVALID_KE_PAYLOAD,
                wanted,
                Failure::Invalid("its KE payload is of another group"),
            ));
        };
        let (data, shared) = group
            .answer(&ke.data, self.env.rng)
            .map_err(|e| Refused::new(NotifyType::INVALID_SYNTAX, e.into()))?;
        Ok(Some((
            KeyExchange {
                group: group.id(),
                data,
            },
            shared,
        )))
    }

    /// What a child of this configuration may carry: our side's traffic, and the peer's.
    pub(super) fn allowed_selectors(
        &mut self,
        config: &ChildConfig,
    ) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        let path = self.record.path;
        let est = self.established();
        let or_outer = |vips: &[IpAddr], outer: IpAddr| {
            if vips.is_empty() {
                vec![outer]
            } else {
                vips.to_vec()
            }
        };
        let (ours, theirs) = (
            or_outer(&est.our_vips, path.local.ip()),
            or_outer(&est.peer_vips, path.remote.ip()),
        );
        let resolve = |templates: &[SelectorTemplate], addresses: &[IpAddr]| {
            templates
                .iter()
                .flat_map(|t| t.resolve(addresses))
                .collect::<Vec<_>>()
        };
        (
            resolve(&config.local_ts, &ours),
            resolve(&config.remote_ts, &theirs),
        )
    }

    // ---- both ends ----

    /// Derives the keys, adds the Child SA to the record, and has it installed.
    pub(super) fn add_child(&mut self, config: &ChildConfig, terms: Terms, origin: &Origin<'_>) {
        let Established { suite, keys, .. } = self.established();
        let derived = ChildKeys::derive(
            terms.suite,
            suite.prf,
            &keys.d,
            origin.shared,
            origin.nonce_i,
            origin.nonce_r,
        );
        let ChildKeys {
            initiator_to_responder,
            responder_to_initiator,
        } = derived;
        let (key_out, key_in) = match origin.initiated {
            true => (initiator_to_responder, responder_to_initiator),
            false => (responder_to_initiator, initiator_to_responder),
        };
        let now = self.env.now;
        let after = |time: Duration| (!time.is_zero()).then(|| now + time);
        let rekey_in = randomised(config.rekey_time, config.rand_time, self.env.rng);
        let lowest_nonce = match origin.replaces {
            Some(_) => origin.nonce_i.min(origin.nonce_r).to_vec(),
            None => Vec::new(),
        };
        let child = Child {
            name: config.name.clone(),
            spi_in: terms.spi_in,
            spi_out: terms.spi_out,
            suite: terms.suite,
            key_in,
            key_out,
            mode: terms.mode,
            local_ts: terms.local_ts,
            remote_ts: terms.remote_ts,
            created: now,
            rekey_at: after(rekey_in),
            expires_at: after(config.life_time),
            initiated: origin.initiated,
            lowest_nonce,
            replaces: origin.replaces,
            fate: origin.fate,
        };
        let (name, spi_in, spi_out, replaces) = (
            child.name.clone(),
            child.spi_in,
            child.spi_out,
            child.replaces,
        );
        // Most SAs have one for ever, and there are many.
        self.established().children.reserve_exact(1);
        self.established().children.push(child);
        self.install(spi_in);
        self.report(Event::ChildEstablished {
            name,
            spi_in,
            spi_out,
            replaces,
        });
    }

    /// Has the data plane do what the record says of a Child SA.
    pub(super) fn install(&mut self, spi_in: u32) {
        let (ike, path, gateway) = (
            self.record.id,
            self.record.children_path(),
            self.record.gateway,
        );
        let connection = self.record.connection.clone();
        let est = self.established();
        let peer_vips = est.peer_vips.clone();
        if let Some(child) = est.children.iter().find(|c| c.spi_in == spi_in) {
            let child = Box::new(child.clone());
            self.effects.push(Effect::InstallChild {
                ike,
                child,
                path,
                gateway,
                connection,
                peer_vips,
            });
        }
    }

    /// Takes a Child SA out of record and data plane. One that the peer made in its place sends from now on.
    pub(super) fn remove_child(&mut self, spi_in: u32, reason: CloseReason) {
        let est = self.established();
        let Some(at) = est.children.iter().position(|c| c.spi_in == spi_in) else {
            return;
        };
        let gone = est.children.remove(at);
        let mut successor = None;
        for child in est
            .children
            .iter_mut()
            .filter(|c| c.replaces == Some(spi_in))
        {
            child.replaces = None;
            if child.fate == Fate::Standby {
                child.fate = Fate::Live;
                successor = Some(child.spi_in);
            }
        }
        // First the new one, so that there is always one to send on.
        if let Some(spi) = successor {
            self.install(spi);
        }
        self.effects.push(Effect::RemoveChild {
            spi_in,
            grace: INBOUND_GRACE,
        });
        self.report(Event::ChildClosed {
            name: gone.name,
            spi_in,
            reason,
        });
    }
}

/// A peer's SPI of a Child SA: four bytes, not of the reserved ones (RFC 4303 §2.1).
pub(super) fn child_spi(bytes: &[u8]) -> Option<u32> {
    <[u8; 4]>::try_from(bytes)
        .ok()
        .map(u32::from_be_bytes)
        .filter(|spi| *spi > 255)
}
