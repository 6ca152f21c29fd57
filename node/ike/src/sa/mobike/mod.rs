//! MOBIKE (RFC 4555): the outer addresses of an IKE SA change while it and its Child SAs go on.
//!
//! Who began the first IKE SA of a series is its *initiator* here, whichever end has rekeyed it since, and decides which
//! addresses are used. All that the peer is told of is in the record ([`Mobike`]): what is still to be said follows from it, so a successor goes on
//! wherever its predecessor was. A request that comes after a newer one, which is possible where there is a window, is only answered, as is a repeated
//! one: so an address that was left is not taken up again because of a message that was late.

mod notifies;
mod request;
mod response;
mod roam;

pub(super) use notifies::harmless;
#[cfg(test)]
pub(super) use notifies::unexpected_nat;
pub(super) use response::watches_nat;
pub(super) use roam::{Roaming, UNANSWERED};

use super::{
    Effect, nat,
    session::Session,
    turn::{Turn, find_notify, header, notify},
};
use crate::{
    config::{Connection, Policy},
    record::{Established, Mobike, MobikePurpose, MobikeRequest, Phase, Record, Task},
    wire::{ExchangeType, NotifyType, Payload},
};
use std::net::IpAddr;

/// How an SA may be reached, as the member that serves it knows: from which address of ours to which of the peer's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Outer addresses that we have.
    pub own: Vec<IpAddr>,
    /// Pairs of an address of ours and one of the peer's between which there is a route, best first. None while we are offline.
    pub pairs: Vec<(IpAddr, IpAddr)>,
}

/// Length of a COOKIE2 of ours (RFC 4555 §4.2.5 allows 8 to 64).
const COOKIE_LEN: usize = 16;

/// What is to be told or asked, if nothing is under way.
pub(super) fn wanted(e: &Established, record: &Record, session: &Session) -> Option<MobikePurpose> {
    let mobike = e.mobike.as_ref().filter(|_| e.replaced_by.is_none())?;
    if mobike.pending_update {
        return Some(MobikePurpose::Update);
    }
    if mobike.children_path.is_some() {
        return Some(MobikePurpose::Check);
    }
    let others = session.roaming.as_ref()?.others(record)?;
    (mobike.told.as_ref() != Some(&others)).then_some(MobikePurpose::Announce)
}

/// Whether the peer of an SA need not be told anything while these are our addresses: it decides which are used, ours is still there, and it knows the
/// others. It saves a step where there are many SAs.
pub fn knows_our_addresses(record: &Record, own: &[IpAddr], policy: &Policy) -> bool {
    let Phase::Established(e) = &record.phase else {
        return true;
    };
    let Some(mobike) = &e.mobike else {
        return true;
    };
    let used = record.path.local.ip();
    let connection = policy.connection(&record.connection);
    let others = connection.map(|c| notifies::others(own, used, c));
    !mobike.initiator && own.contains(&used) && others.is_none_or(|o| mobike.told == Some(o))
}

impl Turn<'_, '_> {
    // ---- in IKE_AUTH ----

    /// What our IKE_AUTH request says of MOBIKE.
    pub(super) fn offer_mobike(&self, connection: &Connection) -> Vec<Payload> {
        if !connection.mobike {
            return Vec::new();
        }
        let mut payloads = vec![notify(NotifyType::MOBIKE_SUPPORTED, Vec::new())];
        payloads.extend(notifies::additional(&self.others(connection)));
        payloads
    }

    /// The peer's IKE_AUTH request, which may want MOBIKE; and what our response says of it.
    pub(super) fn accept_mobike(
        &mut self,
        connection: &Connection,
        payloads: &[Payload],
    ) -> Vec<Payload> {
        let others = self.others(connection);
        if !self.begin_mobike(connection, payloads, false, others) {
            return Vec::new();
        }
        self.offer_mobike(connection)
    }

    /// The response to our IKE_AUTH request, which may agree to MOBIKE.
    pub(super) fn mobike_accepted(&mut self, connection: &Connection, payloads: &[Payload]) {
        let others = self.others(connection);
        self.begin_mobike(connection, payloads, true, others);
    }

    fn begin_mobike(
        &mut self,
        connection: &Connection,
        payloads: &[Payload],
        initiator: bool,
        told: Vec<IpAddr>,
    ) -> bool {
        let both =
            connection.mobike && find_notify(payloads, NotifyType::MOBIKE_SUPPORTED).is_some();
        if both {
            self.established().mobike = Some(Box::new(Mobike {
                initiator,
                peer_addresses: notifies::addresses(payloads).unwrap_or_default(),
                told: Some(told),
                children_path: None,
                pending_update: false,
                seen_as: None,
                newest: None,
            }));
        }
        both
    }

    /// Our outer addresses besides the one in use, as far as the connection is for them.
    fn others(&self, connection: &Connection) -> Vec<IpAddr> {
        notifies::others(self.env.addresses, self.record.path.local.ip(), connection)
    }

    // ---- our requests ----

    /// Tells or asks something about addresses.
    pub(super) fn ask_mobike(&mut self, purpose: MobikePurpose) {
        let path = self.record.path;
        let connection = self.env.policy.connection(&self.record.connection);
        let encap = connection.is_some_and(|c| c.encap);
        let waits = self.record.children_path() != path;
        let others = self
            .session
            .roaming
            .as_ref()
            .and_then(|r| r.others(&self.record));
        let mut payloads = Vec::new();
        if purpose == MobikePurpose::Update {
            payloads.push(notify(NotifyType::UPDATE_SA_ADDRESSES, Vec::new()));
        }
        if matches!(purpose, MobikePurpose::Update | MobikePurpose::NatProbe) {
            let header = header(&self.record, ExchangeType::INFORMATIONAL, false, 0);
            payloads.extend(nat::notifies(
                &header,
                path.local,
                path.remote,
                encap,
                self.env.rng,
            ));
        }
        let tells = matches!(purpose, MobikePurpose::Update | MobikePurpose::Announce);
        let told = others.filter(|_| tells);
        if let Some(others) = &told {
            payloads.extend(notifies::complete(others));
        }
        let checks = purpose == MobikePurpose::Check || (purpose == MobikePurpose::Update && waits);
        let cookie = checks.then(|| {
            let mut cookie = vec![0; COOKIE_LEN];
            self.env.rng.fill(&mut cookie);
            cookie
        });
        if let Some(cookie) = &cookie {
            payloads.push(notify(NotifyType::COOKIE2, cookie.clone()));
        }
        let asked = MobikeRequest {
            purpose,
            sent: (path.local, path.remote),
            cookie,
            told,
        };
        self.request(ExchangeType::INFORMATIONAL, &payloads, Task::Mobike(asked));
        self.commit();
    }

    /// The Child SAs use the path of the record now.
    pub(super) fn move_children(&mut self) {
        if let Some(mobike) = self.mobike() {
            mobike.children_path = None;
        }
        let path = self.record.path;
        let spis_in = self.record.children().iter().map(|c| c.spi_in).collect();
        self.effects.push(Effect::MoveChildren { spis_in, path });
    }

    /// What MOBIKE keeps of the established SA.
    fn mobike(&mut self) -> Option<&mut Mobike> {
        match &mut self.record.phase {
            Phase::Established(e) => e.mobike.as_deref_mut(),
            _ => None,
        }
    }

    /// What waits for an answer is sent again at once: the way is another.
    pub(super) fn repeat_at_once(&mut self) {
        let at = self.env.now;
        for repeat in self.session.repeats.values_mut() {
            *repeat = super::session::Repeat { sent: 0, at };
        }
    }
}
