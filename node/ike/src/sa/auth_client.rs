//! IKE_AUTH as initiator (RFC 7296 §1.2, §2.15, §2.21.2).

use super::{
    Command, Effect, Failure, Question,
    auth::{
        Own, Parked, Requested, accepts, announced_hashes, certificate_requests,
        octets_of_initiator, octets_of_responder, ppk, rounds, verification,
    },
    child_client::offered_selectors,
    configuration, transport_mode,
    turn::{Turn, at_most_one, find_error, find_notify, notify, only},
    window::window_size,
};
use crate::{
    certificate::{CertificateError, Verification, Verified},
    config::{ChildConfig, Connection, LocalAuth},
    crypto,
    identity::{IdPattern, Identity},
    proposal,
    record::{AuthSent, ChildOffer, Negotiated, Phase, Rounds, Task},
    wire::{self, Auth, AuthMethod, ExchangeType, Message, NotifyType, Payload},
};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// What is known of a responder at once.
enum Responder {
    /// Who it is.
    Verified(Identity),
    /// Who it says it is; somebody has to verify that.
    Question(Box<Verification>),
}

impl Turn<'_, '_> {
    /// IKE_SA_INIT is done: what we will ask for in IKE_AUTH.
    pub(super) fn prepare_auth(
        &mut self,
        negotiated: Negotiated,
        child: &str,
        alone: bool,
        childless: bool,
    ) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return;
        };
        let path = self.record.path;
        let (local_ts, remote_ts) = match config.child(child) {
            Some(c) => (
                offered_selectors(&c.local_ts, &config.vips, path.local.ip()),
                offered_selectors(&c.remote_ts, &[], path.remote.ip()),
            ),
            None => (Vec::new(), Vec::new()),
        };
        let transport = config
            .child(child)
            .is_some_and(|c| self.asks_for_transport(c, None, (&local_ts, &remote_ts)));
        let child = ChildOffer {
            name: child.to_owned(),
            spi_in: self.env.spis.child(self.env.rng),
            nonce: negotiated.nonce_i.clone(),
            key: None,
            local_ts,
            remote_ts,
            transport,
            replaces: None,
        };
        let local_id = config.own_identity(0, path.local.ip());
        self.record.phase = Phase::AuthSent(Box::new(AuthSent {
            negotiated,
            local_id,
            rounds: Rounds::default(),
            initial_contact: alone,
            childless,
            child,
        }));
    }

    /// Makes our AUTH payload and sends IKE_AUTH; or asks for a signature first.
    pub(super) fn auth_start(&mut self, config: &Connection) {
        if self.session.parked.is_some() {
            // The same response again, while the request that follows it waits for a signature.
            return self.repeat_from_now();
        }
        let own = match self.own_auth_as_initiator(config) {
            Ok(own) => own,
            Err(failure) => return self.give_up(failure),
        };
        if own.is_waiting() {
            let record = Box::new(self.record.clone());
            // Until it is there the request before is still the pending one.
            self.repeat_from_now();
            return self.park(Parked::Unsent(record, own));
        }
        self.auth_send(own);
    }

    fn own_auth_as_initiator(&mut self, config: &Connection) -> Result<Own, Failure> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Err(Failure::Invalid("not about to authenticate"));
        };
        if !state.rounds.ours() {
            return Ok(Own::Nothing);
        }
        let mixed = self.mixed(config, state)?;
        let negotiated = mixed
            .as_ref()
            .map_or(&state.negotiated, |(m, _)| &m.negotiated);
        let octets = octets_of_initiator(negotiated, &state.local_id.to_wire());
        match config.local_auth(state.rounds.current()) {
            local @ LocalAuth::Pubkey { .. } => {
                let init = &negotiated.init_response;
                let (hashes, asked) = (announced_hashes(init), requested_in(init));
                let send = config.auth.send_cert;
                let optional = config.auth.ppk.as_ref().is_some_and(|p| !p.required);
                let plain = (mixed.is_some() && optional)
                    .then(|| octets_of_initiator(&state.negotiated, &state.local_id.to_wire()));
                let own =
                    self.ask_for_signature((local, send), octets, hashes.as_deref(), &asked)?;
                Ok(own.and_plain(plain))
            }
            LocalAuth::Psk => self
                .psk_auth_as_initiator(config, negotiated)
                .map(Own::Ready),
        }
    }

    /// The AUTH payload of our pre-shared key by these keys.
    fn psk_auth_as_initiator(
        &self,
        config: &Connection,
        negotiated: &Negotiated,
    ) -> Result<Auth, Failure> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Err(Failure::Invalid("not about to authenticate"));
        };
        let pattern = config.remote_id_in(state.rounds.current());
        let expected = expected_identity(pattern, self.record.path.remote.ip());
        let secret = self.env.policy.secret(&state.local_id, &expected);
        let psk = secret.ok_or_else(|| Failure::NoSecret {
            local: state.local_id.clone(),
            remote: expected,
        })?;
        let octets = octets_of_initiator(negotiated, &state.local_id.to_wire());
        let auth = crypto::psk_auth(negotiated.suite.prf, psk, &octets);
        Ok(Auth {
            method: AuthMethod::PSK,
            data: auth.expose().to_vec(),
        })
    }

    /// The notifies of a post-quantum pre-shared key (RFC 8784 §3): its name, and, where a peer may do without it, AUTH without it, which `plain` is if
    /// we sign.
    fn ppk_notifies(&self, config: &Connection, plain: Option<Vec<u8>>) -> Vec<Payload> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Vec::new();
        };
        let Ok(Some((_, named))) = self.mixed(config, state) else {
            return Vec::new();
        };
        let optional = config.auth.ppk.as_ref().is_some_and(|p| !p.required);
        let without = (optional && config.auth.local == LocalAuth::Psk)
            .then(|| self.psk_auth_as_initiator(config, &state.negotiated).ok())
            .flatten();
        let without = without.map(|auth| auth.data).or(plain);
        let without = without.map(|data| notify(NotifyType::NO_PPK_AUTH, data));
        std::iter::once(named).chain(without).collect()
    }

    /// The keys with a post-quantum pre-shared key, and the notify that names it, in the first round (RFC 8784 §3); later ones go on with the keys of
    /// that.
    fn mixed(
        &self,
        config: &Connection,
        state: &AuthSent,
    ) -> Result<Option<(ppk::Mixed, Payload)>, Failure> {
        if state.rounds.done > 0 {
            return Ok(None);
        }
        ppk::of_initiator(&state.negotiated, self.env.policy, config)
    }

    /// What IKE_AUTH goes on from, with the keys that its response says (RFC 8784 §3).
    fn state_after(&self, config: &Connection, payloads: &[Payload]) -> Result<AuthSent, Failure> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Err(Failure::Invalid("not waiting for IKE_AUTH"));
        };
        let mut state = (**state).clone();
        if state.rounds.done > 0 {
            return Ok(state);
        }
        let used = find_notify(payloads, NotifyType::PPK_IDENTITY).is_some();
        let ours = ppk::of_initiator(&state.negotiated, self.env.policy, config)?;
        let required = config.auth.ppk.as_ref().is_some_and(|p| p.required);
        match ours {
            Some((mixed, _)) if used => state.negotiated = mixed.negotiated,
            _ if required && find_error(payloads).is_none() => return Err(Failure::UnknownPpk),
            _ => {}
        }
        Ok(state)
    }

    /// Sends IKE_AUTH.
    pub(super) fn auth_send(&mut self, own: Own) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        let Phase::AuthSent(state) = &self.record.phase else {
            return;
        };
        let Some(child) = config.child(&state.child.name) else {
            return self.give_up(Failure::Command("the connection has no such child"));
        };
        let plain = own.plain_data();
        let Some(own) = own.payloads() else {
            return self.give_up(Failure::Signing);
        };
        let state = (**state).clone();
        let (round, first) = (state.rounds.current(), state.rounds.done == 0);
        let several = rounds::announced(&state.negotiated.init_response);
        let ours_follow = !own.is_empty() && several && round + 1 < config.rounds().0;
        // The order is that of RFC 7296 §1.2: ID, CERT, INITIAL_CONTACT, CERTREQ, ID of the responder, AUTH.
        let mut payloads = Vec::new();
        let (auth, certificates): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|p| matches!(p, Payload::Auth(_)));
        if !auth.is_empty() {
            payloads.push(Payload::IdI(state.local_id.to_wire()));
            payloads.extend(certificates);
        }
        if first && state.initial_contact {
            payloads.push(notify(NotifyType::INITIAL_CONTACT, Vec::new()));
        }
        if first {
            payloads.extend(certificate_requests(policy, std::iter::once(config)));
        }
        if let (IdPattern::Exact(id), true) = (config.remote_id_in(round), state.rounds.theirs()) {
            payloads.push(Payload::IdR(id.to_wire()));
        }
        payloads.extend(auth);
        if ours_follow {
            payloads.push(rounds::another());
        }
        if first {
            payloads.extend(self.ppk_notifies(config, plain));
            payloads.extend(self.first_wishes(config, child, &state, several));
        }
        if let Phase::AuthSent(sent) = &mut self.record.phase {
            sent.rounds.ours_follow = ours_follow;
        }
        let id = state.rounds.message_id(&state.negotiated);
        self.session.forget_requests();
        self.record.outbound.restart(id);
        self.request(ExchangeType::IKE_AUTH, &payloads, Task::Connect);
        self.commit();
    }

    /// What the first IKE_AUTH asks for besides authentication.
    fn first_wishes(
        &self,
        config: &Connection,
        child: &ChildConfig,
        state: &AuthSent,
        several: bool,
    ) -> Vec<Payload> {
        let mut payloads = Vec::new();
        if several && config.has_rounds() {
            payloads.push(notify(NotifyType::MULTIPLE_AUTH_SUPPORTED, Vec::new()));
        }
        if !config.vips.is_empty() {
            let wished = self.wished_addresses(config);
            payloads.push(Payload::Cp(configuration::request(&wished)));
        }
        if !state.childless {
            payloads.extend(state.child.transport.then(transport_mode::payload));
            payloads.push(Payload::Sa(proposal::offer_esp(
                &child.esp_proposals,
                state.child.spi_in,
                false,
            )));
            payloads.push(Payload::TsI(state.child.local_ts.clone()));
            payloads.push(Payload::TsR(state.child.remote_ts.clone()));
        }
        payloads.extend(self.offer_mobike(config));
        payloads.extend(window_size(config));
        if config.message_id_sync {
            payloads.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        payloads
    }

    /// The response to our IKE_AUTH.
    pub(super) fn auth_response(&mut self, payloads: &[Payload]) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        let state = match self.state_after(config, payloads) {
            Ok(state) => state,
            Err(failure) => return self.reject_responder(failure),
        };
        match self.identify_responder(config, &state, payloads) {
            Ok(Responder::Verified(remote_id)) => {
                self.authenticated_responder(config, state, remote_id, payloads);
            }
            Ok(Responder::Question(question)) => {
                self.ask(Question::Verify(question));
                // Until it is answered the response has not come: our request is still the pending one.
                self.repeat_from_now();
                self.park(Parked::Response(payloads.to_vec()));
            }
            Err(failure) => self.reject_responder(failure),
        }
    }

    /// The responder is not who it should be, or refused.
    fn reject_responder(&mut self, failure: Failure) {
        if !matches!(failure, Failure::PeerRefused(_)) {
            // The peer believes that all is well: it has to be told (RFC 7296 §2.21.2).
            let told = [notify(NotifyType::AUTHENTICATION_FAILED, Vec::new())];
            self.request(ExchangeType::INFORMATIONAL, &told, Task::DeleteIke);
        }
        self.give_up(failure);
    }

    /// The answer to the question whether the responder is who it says.
    pub(super) fn verified_responder(
        &mut self,
        payloads: &[Payload],
        answer: Result<Box<Verified>, CertificateError>,
    ) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        let state = match self.state_after(config, payloads) {
            Ok(state) => state,
            Err(failure) => return self.reject_responder(failure),
        };
        self.complete(self.record.outbound.last_id());
        let Ok(id_r) = only!(payloads, IdR) else {
            return self.reject_responder(Failure::Invalid("no IdR payload"));
        };
        let id = Identity::from_wire(id_r);
        match answer {
            Ok(_) => self.authenticated_responder(config, state, id, payloads),
            Err(error) => {
                let error = Box::new(error);
                self.reject_responder(Failure::Certificate { id, error });
            }
        }
    }

    /// The responder is who it says, in this round: the IKE SA is there, or the next round begins (RFC 4739).
    fn authenticated_responder(
        &mut self,
        config: &Connection,
        mut state: AuthSent,
        remote_id: Identity,
        payloads: &[Payload],
    ) {
        let round = state.rounds.current();
        let theirs_follow = state.rounds.theirs() && rounds::follows(payloads);
        if state.rounds.theirs() && theirs_follow != rounds::wants_another(config, round) {
            return self.reject_responder(Failure::Rounds);
        }
        if !theirs_follow && !state.rounds.ours_follow {
            return self.establish_as_initiator(config, state, remote_id, payloads);
        }
        state.rounds.done += 1;
        state.rounds.theirs_follow = theirs_follow;
        state.rounds.remote_id = Some(remote_id);
        state.local_id = config.own_identity(round + 1, self.record.path.local.ip());
        self.record.phase = Phase::AuthSent(Box::new(state));
        self.auth_start(config);
    }

    fn identify_responder(
        &self,
        config: &Connection,
        state: &AuthSent,
        payloads: &[Payload],
    ) -> Result<Responder, Failure> {
        let auth = at_most_one!(payloads, Auth).map_err(Failure::Invalid)?;
        if let (false, Some(id)) = (state.rounds.theirs(), &state.rounds.remote_id) {
            // Other errors are about the Child SA, which is answered for in the last round.
            let fatal = [
                NotifyType::AUTHENTICATION_FAILED,
                NotifyType::INVALID_SYNTAX,
                NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
            ];
            return match find_error(payloads) {
                Some(n) if fatal.contains(&n.kind) => Err(Failure::PeerRefused(n.kind)),
                _ => Ok(Responder::Verified(id.clone())),
            };
        }
        let Some(auth) = auth else {
            return Err(
                find_error(payloads).map_or(Failure::Invalid("no AUTH payload"), |n| {
                    Failure::PeerRefused(n.kind)
                }),
            );
        };
        let round = state.rounds.current();
        let id_r = only!(payloads, IdR).map_err(Failure::Invalid)?;
        let remote_id = Identity::from_wire(id_r);
        if !config.remote_id_in(round).matches(&remote_id) {
            return Err(Failure::UnknownIdentity {
                remote: self.record.path.remote.ip(),
                id: remote_id,
            });
        }
        if !accepts(config.remote_auth(round), auth.method) {
            return Err(Failure::BadAuthMethod(remote_id));
        }
        let negotiated = &state.negotiated;
        let octets = octets_of_responder(negotiated, id_r);
        if auth.method != AuthMethod::PSK {
            let only = (vec![config.name.clone()], round);
            return verification(&remote_id, auth, octets, payloads, only).map(Responder::Question);
        }
        let Some(psk) = self.env.policy.secret(&state.local_id, &remote_id) else {
            return Err(Failure::NoSecret {
                local: state.local_id.clone(),
                remote: remote_id,
            });
        };
        let expected = crypto::psk_auth(negotiated.suite.prf, psk, &octets);
        if !bool::from(expected.expose().ct_eq(&auth.data)) {
            return Err(Failure::BadAuth(remote_id));
        }
        Ok(Responder::Verified(remote_id))
    }

    fn establish_as_initiator(
        &mut self,
        config: &Connection,
        state: AuthSent,
        remote_id: Identity,
        payloads: &[Payload],
    ) {
        let AuthSent {
            negotiated,
            local_id,
            child,
            childless,
            ..
        } = state;
        let nonce_r = negotiated.nonce_r.clone();
        let sync = config.message_id_sync
            && find_notify(payloads, NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED).is_some();
        self.establish(config, negotiated, local_id, remote_id, sync);
        self.mobike_accepted(config, payloads);
        self.note_window_size(payloads);
        self.note_authentication_lifetime(payloads);
        self.commit();
        if let Ok(Some(cp)) = at_most_one!(payloads, Cp) {
            let (addresses, dns) = configuration::assigned(cp);
            if !addresses.is_empty() {
                self.established().our_vips = addresses.clone();
                self.effects
                    .push(Effect::AssignAddresses { addresses, dns });
            }
        }
        if childless {
            if self.record.succeeds.is_some() {
                return; // all Child SAs that it takes over are asked for
            }
            // It is asked for in the same step, so that it is committed with the IKE SA.
            self.session.want(Command::CreateChild(child.name));
            return;
        }
        let (spi_in, name) = (child.spi_in, child.name.clone());
        if let Err(failure) = self.complete_child(child, payloads, &nonce_r, true) {
            let refused = matches!(failure, Failure::PeerRefused(_));
            self.cannot_take_over(&name);
            self.fail(failure);
            if !refused {
                self.delete_children(vec![spi_in]); // the peer has a Child SA now that we cannot have
            }
        }
    }
}

/// Who we expect to reach, as far as it is known before the peer says.
fn expected_identity(pattern: &IdPattern, remote: IpAddr) -> Identity {
    match pattern {
        IdPattern::Exact(id) => id.clone(),
        _ => Identity::Address(remote),
    }
}

/// The certificates that an IKE_SA_INIT response asks for.
fn requested_in(init: &[u8]) -> Requested {
    Message::parse(init).map_or_else(|_| Requested::default(), |m| Requested::of(&m.payloads))
}
