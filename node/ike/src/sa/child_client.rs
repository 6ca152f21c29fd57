//! Child SAs that we ask for, as initiator of CREATE_CHILD_SA or IKE_AUTH (RFC 7296 §1.3.1, §1.3.3, §2.8.1, §2.9).

use super::{
    Command, Failure,
    child::{Origin, Terms, child_spi},
    init::{named_group, nonce},
    pursue::OVERLAP,
    transport_mode,
    turn::{Turn, at_most_one, find_error, only},
};
use crate::{
    crypto::KeyPair,
    proposal,
    record::{ChildGoal, ChildOffer, CloseReason, Fate, FollowUp, Goal, Task},
    selector::SelectorTemplate,
    wire::{
        self, ExchangeType, KeyExchange, Notify, NotifyType, Payload, Protocol, TrafficSelector,
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// How long to wait before something that the peer refused is tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(10);

impl Turn<'_, '_> {
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
            Some(old) => self.offered_again(config, old),
            None => self.allowed_selectors(config),
        };
        let transport = self.asks_for_transport(config, old.as_ref(), (&local_ts, &remote_ts));
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
        payloads.extend(transport.then(transport_mode::payload));
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
        payloads.extend(self.widen_window());
        let offer = ChildOffer {
            name: name.to_owned(),
            spi_in,
            nonce,
            key,
            local_ts,
            remote_ts,
            transport,
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
        let (spi_in, name) = (offer.spi_in, offer.name.clone());
        let completed = match only!(payloads, Nonce) {
            Ok(nonce_r) => self.complete_child(offer, payloads, nonce_r, false),
            Err(what) => Err(Failure::Invalid(what)),
        };
        if let Err(failure) = completed {
            self.fail(failure);
            self.session.not_before = Some(self.env.now + RETRY_REFUSED);
            self.cannot_take_over(&name);
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
                    self.remove_child(old, CloseReason::DeletedByPeer);
                }
            }
            NotifyType::TEMPORARY_FAILURE => {
                let wait = self.soon();
                return self.ask_again(&offer.name, offer.replaces, wait);
            }
            _ => {}
        }
        self.session.not_before = Some(self.env.now + RETRY_REFUSED);
        self.cannot_take_over(&offer.name);
        self.fail(Failure::PeerRefused(error.kind));
    }

    /// The peer cannot make a Child SA now. What was due is due as it was, and so is what a new authentication needs; what somebody wants is asked for again.
    pub(super) fn ask_again(&mut self, name: &str, replaces: Option<u32>, wait: Duration) {
        let now = self.env.now;
        let at = now + wait;
        self.session.not_before = Some(at);
        let due = |spi| {
            let mut children = self.record.children().iter();
            children.any(|c| c.spi_in == spi && c.rekey_at.is_some_and(|at| at <= now))
        };
        let command = match replaces {
            Some(spi) if due(spi) => return,
            // If it is gone by then, who wants this is told so.
            Some(spi) => Command::RekeyChild(spi),
            None if self.record.succeeds.is_some() => return,
            None => Command::CreateChild(name.to_owned()),
        };
        self.session.want_again(command, at);
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
        let (mode, (local_ts, remote_ts)) = self.agreed_mode(&offer, payloads, (ts_i, ts_r))?;
        let within = |ts: &[TrafficSelector], offered: &[TrafficSelector]| {
            !ts.is_empty() && ts.iter().all(|t| offered.iter().any(|o| o.contains(t)))
        };
        if !within(&local_ts, &offer.local_ts) || !within(&remote_ts, &offer.remote_ts) {
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
        if let Some(secret) = shared
            .clone()
            .filter(|_| !chosen.suite.additional.is_empty())
        {
            let goal = ChildGoal {
                name: offer.name,
                suite: chosen.suite,
                spi_in: offer.spi_in,
                spi_out,
                mode,
                local_ts,
                remote_ts,
                nonce_i: offer.nonce,
                nonce_r: nonce_r.to_vec(),
                replaces: offer.replaces,
            };
            let follow_up = FollowUp::new(Goal::Child(goal), secret);
            return self
                .go_on(follow_up, payloads)
                .map_err(|(_, failure)| failure);
        }
        let terms = Terms {
            suite: chosen.suite,
            spi_in: offer.spi_in,
            spi_out,
            mode,
            local_ts,
            remote_ts,
        };
        let shared = shared.as_ref();
        let origin = Origin {
            initiated: true,
            nonce_i: &offer.nonce,
            nonce_r,
            shared: shared.as_slice(),
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
    pub(super) fn fate_of_replacement(
        &mut self,
        replaces: Option<u32>,
        lowest_nonce: &[u8],
    ) -> Fate {
        let Some(old) = replaces else {
            return Fate::Live;
        };
        let now = self.env.now;
        let est = self.established();
        let made = (est.children.iter())
            .find(|c| c.replaces == Some(old) && !c.initiated)
            .map(|c| &c.lowest_nonce);
        // The peer's may lack an additional key exchange. What it decides is the same.
        let unfinished = || {
            let mut goals = (est.follow_ups.iter()).filter(|f| f.expires_at > now);
            goals.find_map(|f| match &f.goal {
                Goal::Child(goal) if goal.replaces == Some(old) => {
                    Some((&goal.nonce_i).min(&goal.nonce_r))
                }
                _ => None,
            })
        };
        let rival = made.or_else(unfinished);
        let old_is_there = est.children.iter().any(|c| c.spi_in == old);
        match rival {
            Some(rival) if lowest_nonce < &rival[..] => Fate::Replaced,
            _ if !old_is_there => Fate::Replaced,
            _ => Fate::Live,
        }
    }

    /// A Child SA of ours has taken the place of another, which is now ours to delete. What the peer made in its place is the peer's to delete.
    pub(super) fn supersede(&mut self, replaced: Option<u32>) {
        let Some(old) = replaced else { return };
        self.session.overlaps_until = self.env.now + OVERLAP;
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
        let (now, inherited) = (self.env.now, !self.session.deletes);
        for spi in spis {
            let child = self.record.children().iter().find(|c| c.spi_in == *spi);
            let reason = match child {
                Some(c) if c.fate == Fate::Replaced => CloseReason::Rekeyed,
                Some(c) if c.expires_at.is_some_and(|at| at <= now) => CloseReason::Expired,
                _ if inherited => CloseReason::Expired,
                _ => CloseReason::DeletedByUs,
            };
            self.remove_child(*spi, reason);
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
