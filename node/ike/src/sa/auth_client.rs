//! IKE_AUTH as initiator (RFC 7296 §1.2, §2.15, §2.21.2).

use super::{
    Command, Effect, Failure, Question,
    auth::{
        Own, Parked, Requested, accepts, announced_hashes, certificate_requests,
        octets_of_initiator, octets_of_responder, ppk, verification,
    },
    child_client::offered_selectors,
    configuration,
    turn::{Turn, at_most_one, find_error, find_notify, notify, only},
};
use crate::{
    certificate::{CertificateError, Verification, Verified},
    config::{Connection, LocalAuth},
    crypto,
    identity::{IdPattern, Identity},
    proposal,
    record::{AuthSent, ChildOffer, Negotiated, Phase, Task},
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
        let child = ChildOffer {
            name: child.to_owned(),
            spi_in: self.env.spis.child(self.env.rng),
            nonce: negotiated.nonce_i.clone(),
            key: None,
            local_ts,
            remote_ts,
            replaces: None,
        };
        let local_id = config.own_identity(path.local.ip());
        self.record.phase = Phase::AuthSent(Box::new(AuthSent {
            negotiated,
            local_id,
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
        let mixed = ppk::of_initiator(&state.negotiated, self.env.policy, config)?;
        let negotiated = mixed
            .as_ref()
            .map_or(&state.negotiated, |(m, _)| &m.negotiated);
        let octets = octets_of_initiator(negotiated, &state.local_id.to_wire());
        match config.auth.local {
            LocalAuth::Pubkey { .. } => {
                let init = &negotiated.init_response;
                let (hashes, asked) = (announced_hashes(init), requested_in(init));
                self.ask_for_signature(config, octets, hashes.as_deref(), &asked)
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
        let expected = expected_identity(config, self.record.path.remote.ip());
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

    /// The notifies of a post-quantum pre-shared key (RFC 8784 §3): its name, and, where a peer may do without it and we do not sign, AUTH without it.
    fn ppk_notifies(&self, config: &Connection) -> Vec<Payload> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Vec::new();
        };
        let named = ppk::of_initiator(&state.negotiated, self.env.policy, config);
        let Ok(Some((_, named))) = named else {
            return Vec::new();
        };
        let optional = config.auth.ppk.as_ref().is_some_and(|p| !p.required);
        let without = (optional && config.auth.local == LocalAuth::Psk)
            .then(|| self.psk_auth_as_initiator(config, &state.negotiated).ok())
            .flatten();
        let without = without.map(|auth| notify(NotifyType::NO_PPK_AUTH, auth.data));
        std::iter::once(named).chain(without).collect()
    }

    /// What IKE_AUTH goes on from, with the keys that its response says (RFC 8784 §3).
    fn state_after(&self, config: &Connection, payloads: &[Payload]) -> Result<AuthSent, Failure> {
        let Phase::AuthSent(state) = &self.record.phase else {
            return Err(Failure::Invalid("not waiting for IKE_AUTH"));
        };
        let mut state = (**state).clone();
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
        let Some(own) = own.payloads() else {
            return self.give_up(Failure::Signing);
        };
        // The order is that of RFC 7296 §1.2: ID, CERT, INITIAL_CONTACT, CERTREQ, ID of the responder, AUTH.
        let mut payloads = vec![Payload::IdI(state.local_id.to_wire())];
        let (auth, certificates): (Vec<_>, Vec<_>) =
            own.into_iter().partition(|p| matches!(p, Payload::Auth(_)));
        payloads.extend(certificates);
        if state.initial_contact {
            payloads.push(notify(NotifyType::INITIAL_CONTACT, Vec::new()));
        }
        payloads.extend(certificate_requests(policy, std::iter::once(config)));
        if let IdPattern::Exact(id) = &config.remote_id {
            payloads.push(Payload::IdR(id.to_wire()));
        }
        payloads.extend(auth);
        payloads.extend(self.ppk_notifies(config));
        if !config.vips.is_empty() {
            payloads.push(Payload::Cp(configuration::request(&config.vips)));
        }
        if !state.childless {
            payloads.push(Payload::Sa(proposal::offer_esp(
                &child.esp_proposals,
                state.child.spi_in,
                false,
            )));
            payloads.push(Payload::TsI(state.child.local_ts.clone()));
            payloads.push(Payload::TsR(state.child.remote_ts.clone()));
        }
        payloads.extend(self.offer_mobike(config));
        if config.message_id_sync {
            payloads.push(notify(
                NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
                Vec::new(),
            ));
        }
        self.record.outbound.next = state.negotiated.auth_id();
        self.request(ExchangeType::IKE_AUTH, &payloads, Task::Connect);
        self.commit();
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
                self.establish_as_initiator(config, state, remote_id, payloads);
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
        self.complete();
        let Ok(id_r) = only!(payloads, IdR) else {
            return self.reject_responder(Failure::Invalid("no IdR payload"));
        };
        let id = Identity::from_wire(id_r);
        match answer {
            Ok(_) => self.establish_as_initiator(config, state, id, payloads),
            Err(error) => {
                let error = Box::new(error);
                self.reject_responder(Failure::Certificate { id, error });
            }
        }
    }

    fn identify_responder(
        &self,
        config: &Connection,
        state: &AuthSent,
        payloads: &[Payload],
    ) -> Result<Responder, Failure> {
        let auth = at_most_one!(payloads, Auth).map_err(Failure::Invalid)?;
        let Some(auth) = auth else {
            return Err(
                find_error(payloads).map_or(Failure::Invalid("no AUTH payload"), |n| {
                    Failure::PeerRefused(n.kind)
                }),
            );
        };
        let id_r = only!(payloads, IdR).map_err(Failure::Invalid)?;
        let remote_id = Identity::from_wire(id_r);
        if !config.remote_id.matches(&remote_id) {
            return Err(Failure::UnknownIdentity {
                remote: self.record.path.remote.ip(),
                id: remote_id,
            });
        }
        if !accepts(config, auth.method) {
            return Err(Failure::BadAuthMethod(remote_id));
        }
        let negotiated = &state.negotiated;
        let octets = octets_of_responder(negotiated, id_r);
        if auth.method != AuthMethod::PSK {
            let only = vec![config.name.clone()];
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
            // It is asked for in the same step, so that it is committed with the IKE SA.
            self.session.want(Command::CreateChild(child.name));
            return;
        }
        let spi_in = child.spi_in;
        if let Err(failure) = self.complete_child(child, payloads, &nonce_r, true) {
            let refused = matches!(failure, Failure::PeerRefused(_));
            self.fail(failure);
            if !refused {
                self.delete_children(vec![spi_in]); // the peer has a Child SA now that we cannot have
            }
        }
    }
}

/// Who we expect to reach, as far as it is known before the peer says.
fn expected_identity(connection: &Connection, remote: IpAddr) -> Identity {
    match &connection.remote_id {
        IdPattern::Exact(id) => id.clone(),
        _ => Identity::Address(remote),
    }
}

/// The certificates that an IKE_SA_INIT response asks for.
fn requested_in(init: &[u8]) -> Requested {
    Message::parse(init).map_or_else(|_| Requested::default(), |m| Requested::of(&m.payloads))
}
