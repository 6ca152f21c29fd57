//! Who the peer is, and for which connection (RFC 7296 §2.15, §3.5, §3.8).

use super::{
    allows, octets_of_initiator,
    ppk::{Mixed, suffices},
    rounds::{follows, wants_another},
};
use crate::{
    certificate::{Evidence, Verification},
    config::{Connection, RemoteAuth},
    crypto,
    identity::Identity,
    record::Negotiated,
    sa::{
        Failure,
        turn::{Refused, Turn, at_most_one, only},
    },
    signature::Signed,
    wire::{self, Auth, AuthMethod, NotifyType, Payload},
};
use subtle::ConstantTimeEq;

/// A peer whose AUTH payload verified.
#[derive(Debug)]
pub(in crate::sa) struct Peer {
    /// The connection that it is for.
    pub(in crate::sa) connection: String,
    /// What we call ourselves.
    pub(in crate::sa) local_id: Identity,
    /// What it calls itself.
    pub(in crate::sa) remote_id: Identity,
}

/// What is known of a peer at once.
pub(in crate::sa) enum Identified {
    /// Who it is.
    Peer(Peer),
    /// Who it says it is; somebody has to verify that.
    Question(Box<Verification>),
}

/// What an initiator calls itself.
pub(super) fn claimed(payloads: &[Payload]) -> Result<Identity, &'static str> {
    only!(payloads, IdI).map(Identity::from_wire)
}

/// What a peer sent in CERT payloads.
pub(in crate::sa) fn evidence(
    payloads: &[Payload],
) -> Result<Evidence, crate::certificate::CertificateError> {
    Evidence::collect(payloads.iter().filter_map(|p| match p {
        Payload::Cert { encoding, data } => Some((*encoding, &data[..])),
        _ => None,
    }))
}

/// The question whether a peer that calls itself `id` has signed `octets`.
pub(in crate::sa) fn verification(
    id: &Identity,
    auth: &Auth,
    octets: Vec<u8>,
    payloads: &[Payload],
    (candidates, round): (Vec<String>, usize),
) -> Result<Box<Verification>, Failure> {
    let failed = |error| Failure::Certificate {
        id: id.clone(),
        error: Box::new(error),
    };
    let signed = Signed::parse(auth.method, &auth.data).map_err(|error| Failure::BadSignature {
        id: id.clone(),
        error,
    })?;
    Ok(Box::new(Verification {
        id: id.clone(),
        evidence: evidence(payloads).map_err(failed)?,
        signed,
        octets,
        candidates,
        round,
    }))
}

/// Whether a peer may authenticate by this method.
pub(in crate::sa) fn accepts(wanted: &RemoteAuth, method: AuthMethod) -> bool {
    match wanted {
        RemoteAuth::Psk => method == AuthMethod::PSK,
        RemoteAuth::Pubkey { .. } => Signed::is_method(method),
    }
}

impl<'e> Turn<'_, 'e> {
    /// Finds the connections that this peer can be for, and verifies that it is who it says, as far as that is cheap.
    pub(super) fn identify(
        &self,
        mixed: &Mixed,
        payloads: &[Payload],
        auth: Option<&Auth>,
    ) -> Result<Identified, Refused> {
        let negotiated = &mixed.negotiated;
        let denied = |failure| Refused::new(NotifyType::AUTHENTICATION_FAILED, failure);
        let id_i = only!(payloads, IdI).map_err(Refused::syntax)?;
        let remote_id = Identity::from_wire(id_i);
        let mut fitting = self.fitting(negotiated, &remote_id, payloads)?;
        if fitting.is_empty() {
            return Err(denied(Failure::UnknownIdentity {
                remote: self.record.path.remote.ip(),
                id: remote_id,
            }));
        }
        fitting.retain(|c| suffices(c, mixed));
        if fitting.is_empty() {
            return Err(denied(Failure::UnknownPpk));
        }
        let another = follows(payloads);
        fitting.retain(|c| wants_another(c, 0) == another);
        if fitting.is_empty() {
            return Err(denied(Failure::Rounds));
        }
        // Without AUTH the peer wants EAP (RFC 7296 §2.16), which no connection accepts yet.
        let accepting =
            |c: &&&Connection| auth.is_some_and(|a| accepts(c.remote_auth(0), a.method));
        let (Some(auth), Some(connection)) = (auth, fitting.iter().find(accepting)) else {
            return Err(denied(Failure::BadAuthMethod(remote_id)));
        };
        let octets = octets_of_initiator(negotiated, id_i);
        if auth.method == AuthMethod::PSK {
            let local_id = connection.own_identity(0, self.record.path.local.ip());
            self.verify_psk(negotiated, (&local_id, &remote_id), &octets, auth)
                .map_err(denied)?;
            return Ok(Identified::Peer(Peer {
                connection: connection.name.clone(),
                local_id,
                remote_id,
            }));
        }
        let candidates = fitting.iter().filter(accepting).map(|c| c.name.clone());
        let candidates = (candidates.collect(), 0);
        let question = verification(&remote_id, auth, octets, payloads, candidates);
        question.map(Identified::Question).map_err(denied)
    }

    /// The connections that are for this pair of addresses, identities and this suite.
    fn fitting(
        &self,
        negotiated: &Negotiated,
        remote_id: &Identity,
        payloads: &[Payload],
    ) -> Result<Vec<&'e Connection>, Refused> {
        let id_r = at_most_one!(payloads, IdR).map_err(Refused::syntax)?;
        let wanted = id_r.map(Identity::from_wire);
        let path = self.record.path;
        let fits = |c: &&Connection| {
            let own = || c.own_identity(0, path.local.ip());
            c.remote_id.matches(remote_id)
                && wanted.as_ref().is_none_or(|w| w.means(&own()))
                && allows(c, negotiated.suite)
        };
        let policy = self.env.policy;
        Ok(policy
            .candidates(path.local, path.remote)
            .filter(fits)
            .collect())
    }

    /// Whether AUTH is by the pre-shared key of these identities, ours and the peer's.
    pub(super) fn verify_psk(
        &self,
        negotiated: &Negotiated,
        (local, remote): (&Identity, &Identity),
        octets: &[u8],
        auth: &Auth,
    ) -> Result<(), Failure> {
        let psk = self.env.policy.secret(local, remote);
        let psk = psk.ok_or_else(|| Failure::NoSecret {
            local: local.clone(),
            remote: remote.clone(),
        })?;
        let expected = crypto::psk_auth(negotiated.suite.prf, psk, octets);
        match bool::from(expected.expose().ct_eq(&auth.data)) {
            true => Ok(()),
            false => Err(Failure::BadAuth(remote.clone())),
        }
    }
}
