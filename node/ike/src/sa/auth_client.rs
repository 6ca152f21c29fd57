//! IKE_AUTH with pre-shared keys, as initiator (RFC 7296 §1.2, §2.15, §2.21.2).

use super::{
    Effect, Failure,
    auth::{auth_of_initiator, auth_of_responder, own_identity},
    child_client::offered_selectors,
    configuration,
    turn::{Turn, at_most_one, find_error, find_notify, notify, only},
};
use crate::{
    config::Connection,
    identity::{IdPattern, Identity},
    proposal,
    record::{AuthSent, ChildOffer, Negotiated, Phase, Task},
    wire::{self, Auth, AuthMethod, ExchangeType, NotifyType, Payload},
};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

impl Turn<'_, '_> {
    /// IKE_SA_INIT is done: what we will ask for in IKE_AUTH.
    pub(super) fn prepare_auth(&mut self, negotiated: Negotiated, child: &str) {
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
        let local_id = own_identity(config, path.local.ip());
        self.record.phase = Phase::AuthSent(Box::new(AuthSent {
            negotiated,
            local_id,
            child,
        }));
    }

    /// Sends IKE_AUTH.
    pub(super) fn auth_start(&mut self, config: &Connection) {
        let Phase::AuthSent(state) = &self.record.phase else {
            return;
        };
        let remote = self.record.path.remote.ip();
        let expected = expected_identity(config, remote);
        let Some(psk) = self.env.policy.secret(&state.local_id, &expected) else {
            let failure = Failure::NoSecret {
                local: state.local_id.clone(),
                remote: expected,
            };
            return self.give_up(failure);
        };
        let Some(child) = config.child(&state.child.name) else {
            return self.give_up(Failure::Command("the connection has no such child"));
        };
        let id = state.local_id.to_wire();
        let auth = auth_of_initiator(&state.negotiated, psk, &id);
        let mut payloads = vec![Payload::IdI(id)];
        if let IdPattern::Exact(id) = &config.remote_id {
            payloads.push(Payload::IdR(id.to_wire()));
        }
        payloads.push(Payload::Auth(Auth {
            method: AuthMethod::PSK,
            data: auth.expose().to_vec(),
        }));
        if !config.vips.is_empty() {
            payloads.push(Payload::Cp(configuration::request(&config.vips)));
        }
        payloads.push(Payload::Sa(proposal::offer_esp(
            &child.esp_proposals,
            state.child.spi_in,
            false,
        )));
        payloads.push(Payload::TsI(state.child.local_ts.clone()));
        payloads.push(Payload::TsR(state.child.remote_ts.clone()));
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
        let Phase::AuthSent(state) = &self.record.phase else {
            return;
        };
        let state = (**state).clone();
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            return self.give_up(Failure::Unconfigured(self.record.connection.clone()));
        };
        match self.authenticate_responder(config, &state, payloads) {
            Ok(remote_id) => self.establish_as_initiator(config, state, remote_id, payloads),
            Err(failure @ Failure::PeerRefused(_)) => self.give_up(failure),
            Err(failure) => {
                // The peer believes that all is well: it has to be told (RFC 7296 §2.21.2).
                let told = [notify(NotifyType::AUTHENTICATION_FAILED, Vec::new())];
                self.request(ExchangeType::INFORMATIONAL, &told, Task::DeleteIke);
                self.give_up(failure);
            }
        }
    }

    fn authenticate_responder(
        &self,
        config: &Connection,
        state: &AuthSent,
        payloads: &[Payload],
    ) -> Result<Identity, Failure> {
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
        if auth.method != AuthMethod::PSK {
            return Err(Failure::BadAuthMethod(remote_id));
        }
        let Some(psk) = self.env.policy.secret(&state.local_id, &remote_id) else {
            return Err(Failure::NoSecret {
                local: state.local_id.clone(),
                remote: remote_id,
            });
        };
        let expected = auth_of_responder(&state.negotiated, psk, id_r);
        if !bool::from(expected.expose().ct_eq(&auth.data)) {
            return Err(Failure::BadAuth(remote_id));
        }
        Ok(remote_id)
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
