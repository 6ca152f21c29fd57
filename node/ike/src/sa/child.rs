//! Child SAs: made in IKE_AUTH and CREATE_CHILD_SA, replaced, and what happens when both ends replace one at the same time (RFC 7296 §1.3.1,
//! §1.3.3, §2.8, §2.9, §2.17, §2.25.1).

use super::{
    Effect, Event, Failure,
    auth::randomised,
    init::{named_group, nonce},
    turn::{INBOUND_GRACE, Refused, Turn, at_most_one, find_error, find_notify, only},
};
use crate::{
    config::ChildConfig,
    crypto::{ChildKeys, EspSuite, KeyPair},
    proposal,
    record::{Child, ChildOffer, Established, Fate, Task},
    secret::Secret,
    selector::{SelectorTemplate, narrow},
    wire::{
        self, ExchangeType, KeyExchange, Notify, NotifyType, Payload, Protocol, TrafficSelector,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Child SAs of one IKE SA: more than anyone has use for.
const MAX_CHILDREN: usize = 64;

/// How long to wait before something that the peer refused is tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(10);

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
struct Terms {
    suite: EspSuite,
    spi_in: u32,
    spi_out: u32,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
}

/// How a Child SA came to be.
struct Origin<'a> {
    initiated: bool,
    nonce_i: &'a [u8],
    nonce_r: &'a [u8],
    shared: Option<&'a Secret>,
    replaces: Option<u32>,
    fate: Fate,
}

impl<'e> Turn<'_, 'e> {
    // ---- as responder ----

    /// A CREATE_CHILD_SA request: a new Child SA, or one or the other replaced.
    pub(super) fn create_child_request(&mut self, id: u32, payloads: &[Payload]) {
        let for_ike = payloads
            .iter()
            .any(|p| matches!(p, Payload::Sa(s) if s.iter().any(|p| p.protocol == Protocol::IKE)));
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
        let ending = matches!(
            self.record.outbound.pending.as_ref().map(|p| &p.task),
            Some(Task::RekeyIke(_) | Task::DeleteIke)
        );
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
        let deleting = self.children_being_deleted();
        let child = self
            .established()
            .children
            .iter()
            .find(|c| Some(c.spi_out) == named);
        let Some(child) = child else {
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

    /// Our inbound SPIs of the Child SAs in our pending Delete.
    pub(super) fn children_being_deleted(&self) -> Vec<u32> {
        match self.record.outbound.pending.as_ref().map(|p| &p.task) {
            Some(Task::DeleteChildren(spis)) => spis.clone(),
            _ => Vec::new(),
        }
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
            let (local, remote) = self.allowed_selectors(config);
            let (local_ts, remote_ts) = (narrow(ts_r, &local), narrow(ts_i, &remote));
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
            let terms = Terms {
                suite: chosen.suite,
                spi_in,
                spi_out,
                local_ts: local_ts.clone(),
                remote_ts: remote_ts.clone(),
            };
            let origin = Origin {
                initiated: false,
                nonce_i: request.nonce_i,
                nonce_r: request.nonce_r,
                shared: pair.as_ref().map(|(_, secret)| secret),
                replaces: request.replaces,
                fate: if request.replaces.is_some() {
                    Fate::Standby
                } else {
                    Fate::Live
                },
            };
            self.add_child(config, terms, &origin);
            let mut answer = vec![Payload::Sa(vec![proposal::answer_esp(&chosen, spi_in)])];
            if !request.in_auth {
                answer.push(Payload::Nonce(request.nonce_r.to_vec()));
            }
            answer.extend(pair.map(|(ke, _)| Payload::Ke(ke)));
            answer.push(Payload::TsI(remote_ts));
            answer.push(Payload::TsR(local_ts));
            return Ok(answer);
        }
        Err(failure)
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
        let key = KeyPair::generate(group, self.env.rng);
        let shared = key
            .agree(&ke.data)
            .map_err(|e| Refused::new(NotifyType::INVALID_SYNTAX, e.into()))?;
        Ok(Some((
            KeyExchange {
                group: group.id(),
                data: key.public().to_vec(),
            },
            shared,
        )))
    }

    /// What a child of this configuration may carry: our side's traffic, and the peer's.
    fn allowed_selectors(
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
    fn add_child(&mut self, config: &ChildConfig, terms: Terms, origin: &Origin<'_>) {
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
        let child = Child {
            name: config.name.clone(),
            spi_in: terms.spi_in,
            spi_out: terms.spi_out,
            suite: terms.suite,
            key_in,
            key_out,
            local_ts: terms.local_ts,
            remote_ts: terms.remote_ts,
            created: now,
            rekey_at: after(rekey_in),
            expires_at: after(config.life_time),
            initiated: origin.initiated,
            lowest_nonce: origin.nonce_i.min(origin.nonce_r).to_vec(),
            replaces: origin.replaces,
            fate: origin.fate,
        };
        let (name, spi_in, spi_out, replaces) = (
            child.name.clone(),
            child.spi_in,
            child.spi_out,
            child.replaces,
        );
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
        let (ike, path, gateway) = (self.record.id, self.record.path, self.record.gateway);
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
    pub(super) fn remove_child(&mut self, spi_in: u32) {
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
        });
    }

    // ---- as initiator ----

    /// Asks for a Child SA: a new one, or one that replaces `replaces`.
    pub(super) fn start_child(&mut self, name: &str, replaces: Option<u32>) {
        let policy = self.env.policy;
        let connection = policy.connection(&self.record.connection);
        let Some(config) = connection.and_then(|c| c.child(name)) else {
            self.session.not_before = Some(self.env.now + RETRY_REFUSED);
            return self.fail(Failure::Command("the connection has no such child"));
        };
        let old = self
            .established()
            .children
            .iter()
            .find(|c| Some(c.spi_in) == replaces)
            .cloned();
        let (local_ts, remote_ts) = match &old {
            Some(old) => (old.local_ts.clone(), old.remote_ts.clone()),
            None => self.allowed_selectors(config),
        };
        let groups = || {
            config
                .esp_proposals
                .iter()
                .flat_map(|p| p.groups.iter().copied())
        };
        let hinted = self
            .session
            .group_hint
            .take()
            .and_then(|id| named_group(&id.to_be_bytes(), groups()));
        let key = hinted
            .or_else(|| groups().next())
            .map(|g| KeyPair::generate(g, self.env.rng));
        let spi_in = self.env.spis.child(self.env.rng);
        let nonce = nonce(self.env.rng);
        let mut payloads = Vec::new();
        if let Some(old) = &old {
            let spi = old.spi_in.to_be_bytes().to_vec();
            payloads.push(Payload::Notify(Notify {
                protocol: Protocol::ESP,
                spi,
                kind: NotifyType::REKEY_SA,
                data: Vec::new(),
            }));
        }
        payloads.push(Payload::Sa(proposal::offer_esp(
            &config.esp_proposals,
            spi_in,
            true,
        )));
        payloads.push(Payload::Nonce(nonce.clone()));
        if let Some(key) = &key {
            payloads.push(Payload::Ke(KeyExchange {
                group: key.group().id(),
                data: key.public().to_vec(),
            }));
        }
        payloads.push(Payload::TsI(local_ts.clone()));
        payloads.push(Payload::TsR(remote_ts.clone()));
        let offer = ChildOffer {
            name: name.to_owned(),
            spi_in,
            nonce,
            key,
            local_ts,
            remote_ts,
            replaces,
        };
        self.request(
            ExchangeType::CREATE_CHILD_SA,
            &payloads,
            Task::CreateChild(offer),
        );
        self.commit();
    }

    /// The response to our CREATE_CHILD_SA for a Child SA.
    pub(super) fn child_response(&mut self, offer: ChildOffer, payloads: &[Payload]) {
        if let Some(error) = find_error(payloads) {
            return self.child_refused(&offer, error);
        }
        let spi_in = offer.spi_in;
        let completed = match only!(payloads, Nonce) {
            Ok(nonce_r) => self.complete_child(offer, payloads, nonce_r, false),
            Err(what) => Err(Failure::Invalid(what)),
        };
        if let Err(failure) = completed {
            self.fail(failure);
            self.session.not_before = Some(self.env.now + RETRY_REFUSED);
            // The peer has a Child SA now that we cannot have.
            self.delete_children(vec![spi_in]);
        }
    }

    fn child_refused(&mut self, offer: &ChildOffer, error: &Notify) {
        match error.kind {
            NotifyType::INVALID_KE_PAYLOAD if offer.key.is_some() => {
                let wanted = <[u8; 2]>::try_from(&error.data[..])
                    .map(u16::from_be_bytes)
                    .ok();
                let tried = offer.key.as_ref().map(|k| k.group().id());
                if wanted.is_some() && wanted != tried {
                    self.session.group_hint = wanted;
                    return self.start_child(&offer.name, offer.replaces);
                }
            }
            // The peer does not have it: neither have we (RFC 7296 §2.25.1).
            NotifyType::CHILD_SA_NOT_FOUND => {
                if let Some(old) = offer.replaces {
                    self.remove_child(old);
                }
            }
            NotifyType::TEMPORARY_FAILURE => {
                self.session.not_before = Some(self.env.now + self.soon());
                return;
            }
            _ => {}
        }
        self.session.not_before = Some(self.env.now + RETRY_REFUSED);
        self.fail(Failure::PeerRefused(error.kind));
    }

    /// A short while, random so that two ends that collided do not collide again.
    pub(super) fn soon(&mut self) -> Duration {
        Duration::from_millis(300 + u64::from(self.env.rng.next_u32() % 1200))
    }

    /// The peer agreed to our Child SA: checks what it chose, and adds it.
    pub(super) fn complete_child(
        &mut self,
        offer: ChildOffer,
        payloads: &[Payload],
        nonce_r: &[u8],
        in_auth: bool,
    ) -> Result<(), Failure> {
        let policy = self.env.policy;
        let connection = policy.connection(&self.record.connection);
        let config = connection
            .and_then(|c| c.child(&offer.name))
            .ok_or(Failure::Command("the connection has no such child"))?;
        if let Some(error) = find_error(payloads) {
            return Err(Failure::PeerRefused(error.kind));
        }
        let answer = only!(payloads, Sa).map_err(Failure::Invalid)?;
        let ts_i = only!(payloads, TsI).map_err(Failure::Invalid)?;
        let ts_r = only!(payloads, TsR).map_err(Failure::Invalid)?;
        let ke = at_most_one!(payloads, Ke).map_err(Failure::Invalid)?;
        let chosen = proposal::accepted_esp(&config.esp_proposals, answer, !in_auth)
            .ok_or(Failure::NoChildProposal)?;
        let spi_out = child_spi(&chosen.peer_spi)
            .ok_or(Failure::Invalid("an SPI that no Child SA can have"))?;
        let within = |ts: &[TrafficSelector], offered: &[TrafficSelector]| {
            !ts.is_empty() && ts.iter().all(|t| offered.iter().any(|o| o.contains(t)))
        };
        if !within(ts_i, &offer.local_ts) || !within(ts_r, &offer.remote_ts) {
            return Err(Failure::NoSelectors);
        }
        let shared = match (chosen.suite.group, &offer.key, ke) {
            (None, _, None) => None,
            (Some(group), Some(key), Some(ke))
                if key.group() == group && ke.group == group.id() =>
            {
                Some(key.agree(&ke.data)?)
            }
            _ => {
                return Err(Failure::Invalid(
                    "its KE payload does not fit what was agreed",
                ));
            }
        };
        let terms = Terms {
            suite: chosen.suite,
            spi_in: offer.spi_in,
            spi_out,
            local_ts: ts_i.clone(),
            remote_ts: ts_r.clone(),
        };
        let origin = Origin {
            initiated: true,
            nonce_i: &offer.nonce,
            nonce_r,
            shared: shared.as_ref(),
            replaces: offer.replaces,
            fate: self.fate_of_replacement(offer.replaces, offer.nonce.as_slice().min(nonce_r)),
        };
        self.add_child(config, terms, &origin);
        if origin.fate == Fate::Live {
            self.supersede(offer.replaces);
        }
        Ok(())
    }

    /// What becomes of a Child SA that we made to replace another, given the lower of its nonces. If the peer replaced the same one meanwhile, of the
    /// two new ones that with the lowest of all nonces goes, by who made it (RFC 7296 §2.8.1).
    fn fate_of_replacement(&mut self, replaces: Option<u32>, lowest_nonce: &[u8]) -> Fate {
        let Some(old) = replaces else {
            return Fate::Live;
        };
        let est = self.established();
        let rival = est
            .children
            .iter()
            .find(|c| c.replaces == Some(old) && !c.initiated);
        let old_is_there = est.children.iter().any(|c| c.spi_in == old);
        match rival {
            Some(rival) if lowest_nonce < &rival.lowest_nonce[..] => Fate::Replaced,
            _ if !old_is_there => Fate::Replaced,
            _ => Fate::Live,
        }
    }

    /// A Child SA of ours has taken the place of another, which is now ours to delete. What the peer made in its place is the peer's to delete.
    fn supersede(&mut self, replaced: Option<u32>) {
        let Some(old) = replaced else { return };
        for child in &mut self.established().children {
            if child.spi_in == old {
                child.fate = Fate::Replaced;
            } else if child.replaces == Some(old) {
                child.replaces = None;
            }
        }
        self.install(old);
    }

    /// The peer has deleted what we asked it to.
    pub(super) fn children_deleted(&mut self, spis: &[u32]) {
        for spi in spis {
            self.remove_child(*spi);
        }
    }
}

/// The selectors that we offer for one end: its virtual addresses (any, where any is asked for), or its outer address.
pub(super) fn offered_selectors(
    templates: &[SelectorTemplate],
    vips: &[IpAddr],
    outer: IpAddr,
) -> Vec<TrafficSelector> {
    let addresses = if vips.is_empty() {
        vec![outer]
    } else {
        vips.to_vec()
    };
    let mut offered: Vec<_> = templates
        .iter()
        .flat_map(|t| t.resolve(&addresses))
        .collect();
    for ts in &mut offered {
        if ts.start == ts.end && ts.start.is_unspecified() {
            ts.end = match ts.start {
                IpAddr::V4(_) => Ipv4Addr::BROADCAST.into(),
                IpAddr::V6(_) => Ipv6Addr::from(u128::MAX).into(),
            };
        }
    }
    offered
}

/// A peer's SPI of a Child SA: four bytes, not of the reserved ones (RFC 4303 §2.1).
fn child_spi(bytes: &[u8]) -> Option<u32> {
    <[u8; 4]>::try_from(bytes)
        .ok()
        .map(u32::from_be_bytes)
        .filter(|spi| *spi > 255)
}
