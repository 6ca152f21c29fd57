//! Post-quantum pre-shared keys (RFC 8784): mixed into the keys of an IKE SA, so that who can break its key exchange later still lacks them.

use crate::{
    config::{Connection, Policy, PpkUse},
    record::Negotiated,
    sa::{
        Failure,
        turn::{Refused, find_notify, notify},
    },
    wire::{Auth, Message, NotifyType, Payload},
};

/// The only type of PPK_ID that we use: fixed (RFC 8784 §5.1).
const FIXED: u8 = 2;

/// Whether an IKE_SA_INIT message says that its sender can use such a key.
pub(in crate::sa) fn announced(init: &[u8]) -> bool {
    Message::parse(init).is_ok_and(|m| find_notify(&m.payloads, NotifyType::USE_PPK).is_some())
}

/// Says it.
pub(in crate::sa) fn announcement() -> Payload {
    notify(NotifyType::USE_PPK, Vec::new())
}

/// The keys of an IKE SA, and whether a post-quantum pre-shared key is among them.
#[derive(Debug)]
pub(in crate::sa) struct Mixed {
    pub(in crate::sa) negotiated: Negotiated,
    pub(in crate::sa) used: bool,
}

impl Mixed {
    /// Without.
    pub(in crate::sa) fn plain(negotiated: Negotiated) -> Self {
        Self {
            negotiated,
            used: false,
        }
    }

    /// With the key that is named so, if it is known.
    fn with(negotiated: &Negotiated, policy: &Policy, id: &[u8]) -> Option<Self> {
        let ppk = policy.ppk(id)?;
        let mut mixed = negotiated.clone();
        mixed.keys = mixed.keys.with_ppk(mixed.suite.prf, ppk);
        Some(Self {
            negotiated: mixed,
            used: true,
        })
    }
}

/// What an initiator chose: the keys, and the AUTH payload that is by them (RFC 8784 §3).
pub(super) fn of_request(
    negotiated: &Negotiated,
    policy: &Policy,
    payloads: &[Payload],
    auth: Option<&Auth>,
) -> Result<(Mixed, Option<Auth>), Refused> {
    let plain = || Mixed::plain(negotiated.clone());
    // Both ends have to have said that they can.
    let both = announced(&negotiated.init_request) && announced(&negotiated.init_response);
    let named = find_notify(payloads, NotifyType::PPK_IDENTITY).filter(|_| both);
    let (Some(named), Some(auth)) = (named, auth) else {
        return Ok((plain(), auth.cloned()));
    };
    let id = match named.data.split_first() {
        Some((&FIXED, id)) => Some(id),
        _ => None,
    };
    if let Some(mixed) = id.and_then(|id| Mixed::with(negotiated, policy, id)) {
        return Ok((mixed, Some(auth.clone())));
    }
    match find_notify(payloads, NotifyType::NO_PPK_AUTH) {
        Some(without) => {
            let auth = Auth {
                method: auth.method,
                data: without.data.clone(),
            };
            Ok((plain(), Some(auth)))
        }
        None => Err(Refused::new(
            NotifyType::AUTHENTICATION_FAILED,
            Failure::UnknownPpk,
        )),
    }
}

/// Whether a connection lets a peer in with these keys.
pub(in crate::sa) fn suffices(connection: &Connection, mixed: &Mixed) -> bool {
    mixed.used || !matches!(&connection.auth.ppk, Some(PpkUse { required: true, .. }))
}

/// What an initiator does: the keys with the key that it names, and the notify that names it. `None` without such a key.
pub(in crate::sa) fn of_initiator(
    negotiated: &Negotiated,
    policy: &Policy,
    connection: &Connection,
) -> Result<Option<(Mixed, Payload)>, Failure> {
    let Some(PpkUse { id, required }) = &connection.auth.ppk else {
        return Ok(None);
    };
    let id = id
        .as_deref()
        .filter(|_| announced(&negotiated.init_response));
    let mixed = id.and_then(|id| Some((Mixed::with(negotiated, policy, id)?, id)));
    match mixed {
        Some((mixed, id)) => {
            let data = [&[FIXED], id].concat();
            Ok(Some((mixed, notify(NotifyType::PPK_IDENTITY, data))))
        }
        None if *required => Err(Failure::UnknownPpk),
        None => Ok(None),
    }
}
