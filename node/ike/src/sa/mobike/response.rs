//! The peer's answers to our requests about addresses (RFC 4555 §3.5, §3.7, §3.8).

use super::super::{
    Failure, nat,
    turn::{Turn, find_error, find_notify},
};
use crate::{
    record::{CloseReason, MobikePurpose, MobikeRequest, Phase, Record},
    wire::{Header, NotifyType, Payload},
};
use subtle::ConstantTimeEq;

impl Turn<'_, '_> {
    /// The peer's answer to a request about addresses.
    pub(in crate::sa) fn mobike_response(
        &mut self,
        asked: &MobikeRequest,
        header: &Header,
        payloads: &[Payload],
    ) {
        let refused = find_error(payloads).map(|n| n.kind);
        let returned = find_notify(payloads, NotifyType::COOKIE2);
        if let Some(cookie) = &asked.cookie {
            let same = returned.is_some_and(|n| bool::from(n.data.ct_eq(cookie)));
            // A refusal may come without it.
            if !same && (returned.is_some() || refused.is_none()) {
                self.fail(Failure::Cookie2);
                return self.close(CloseReason::SetupFailed);
            }
        }
        if let Some(told) = asked.told.clone().filter(|_| refused.is_none())
            && let Some(mobike) = self.mobike()
        {
            mobike.told = Some(told);
        }
        let path = self.record.path;
        if asked.sent != (path.local, path.remote) {
            // It went to several addresses: which of them works it does not tell. What is to be asked is asked again.
            return;
        }
        match (asked.purpose, refused) {
            (MobikePurpose::Update, None) => self.updated(header, payloads),
            (MobikePurpose::Update, Some(kind)) => self.update_refused(kind),
            (MobikePurpose::Check, _) => self.move_children(),
            (MobikePurpose::Announce, Some(kind)) => {
                // Said again only when there is news.
                if let Some(mobike) = self.mobike() {
                    mobike.told = asked.told.clone();
                }
                self.fail(Failure::PeerRefused(kind));
            }
            (MobikePurpose::Announce, None) => {}
            (MobikePurpose::NatProbe, _) => self.nat_probed(payloads),
        }
    }

    /// The peer uses the new addresses.
    fn updated(&mut self, header: &Header, payloads: &[Payload]) {
        let path = self.record.path;
        let encap = self
            .env
            .policy
            .connection(&self.record.connection)
            .is_some_and(|c| c.encap);
        if nat::supported(payloads) {
            let (nat_local, nat_remote) = nat::detect(header, payloads, path.local, path.remote);
            self.record.path.nat_local = nat_local || encap;
            self.record.path.nat_remote = nat_remote;
        }
        let seen = destination(payloads);
        if let Some(mobike) = self.mobike() {
            mobike.pending_update = false;
            mobike.seen_as = seen;
        }
        if let Some(roaming) = &mut self.session.roaming {
            roaming.settled();
        }
        self.move_children();
    }

    /// The peer does not want these addresses: others are tried, as far as there are any.
    fn update_refused(&mut self, kind: NotifyType) {
        self.fail(Failure::PeerRefused(kind));
        if let Some(mobike) = self.mobike() {
            mobike.pending_update = false;
        }
        self.find_ways();
    }

    /// Whether the peer sees us where it saw us before.
    fn nat_probed(&mut self, payloads: &[Payload]) {
        let seen = destination(payloads);
        if let Some(mobike) = self.mobike()
            && seen.is_some()
            && seen != mobike.seen_as
        {
            mobike.pending_update = true;
        }
    }
}

/// Whether liveness checks of an SA should watch a NAT in front of us (RFC 4555 §3.8).
pub(in crate::sa) fn watches_nat(record: &Record) -> bool {
    let mobike = match &record.phase {
        Phase::Established(e) => e.mobike.as_ref(),
        _ => None,
    };
    record.path.nat_local && mobike.is_some_and(|m| m.initiator)
}

fn destination(payloads: &[Payload]) -> Option<Vec<u8>> {
    find_notify(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP).map(|n| n.data.clone())
}
