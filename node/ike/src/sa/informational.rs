//! INFORMATIONAL exchanges: liveness, deletions, notifications (RFC 7296 §1.4, §1.4.1, §2.4, §2.25.1).

use super::{Failure, turn::Turn};
use crate::{
    record::{CloseReason, Task},
    wire::{Delete, ExchangeType, NotifyType, Payload, Protocol},
};

/// So many Child SAs that we do not know are remembered as deleted while a request of ours is under way: it makes one, and a peer has no reason to name
/// others.
const MAX_DELETED: usize = 16;

impl Turn<'_, '_> {
    /// The peer's INFORMATIONAL request.
    pub(super) fn informational(&mut self, id: u32, payloads: &[Payload]) {
        // By its shape a liveness check: it changes nothing, so the answer need not wait (unless the peer has moved).
        if let Some(answer) = super::mobike::harmless(payloads) {
            self.commit_lazily();
            return self.respond(ExchangeType::INFORMATIONAL, id, &answer);
        }
        self.commit();
        let fatal = payloads.iter().find_map(|p| match p {
            Payload::Notify(n)
                if matches!(
                    n.kind,
                    NotifyType::AUTHENTICATION_FAILED | NotifyType::INVALID_SYNTAX
                ) =>
            {
                Some(n.kind)
            }
            _ => None,
        });
        if let Some(kind) = fatal {
            self.fail(Failure::PeerRefused(kind));
            self.respond(ExchangeType::INFORMATIONAL, id, &[]);
            return self.close(CloseReason::SetupFailed);
        }
        if payloads
            .iter()
            .any(|p| matches!(p, Payload::Delete(Delete::Ike)))
        {
            return self.delete_request(id);
        }
        self.note_authentication_lifetime(payloads);
        self.note_window_size(payloads);
        let mut answer = self.delete_peers_children(payloads);
        answer.extend(self.mobike_request(id, payloads));
        self.respond(ExchangeType::INFORMATIONAL, id, &answer);
    }

    /// The peer deletes this IKE SA.
    fn delete_request(&mut self, id: u32) {
        let before = self.effects.len();
        self.respond(ExchangeType::INFORMATIONAL, id, &[]);
        // First the Child SAs go, because with the response the peer receives nothing any more: another IKE SA may have the same traffic.
        let response = self.effects.split_off(before);
        self.rival_remains();
        let replaced = self.established().replaced_by.is_some();
        self.close(if replaced {
            CloseReason::Rekeyed
        } else {
            CloseReason::DeletedByPeer
        });
        self.effects.extend(response);
    }

    /// Deletes the Child SAs that the peer names, and says what to answer: our halves, except those that a Delete of our own under way names.
    fn delete_peers_children(&mut self, payloads: &[Payload]) -> Vec<Payload> {
        let named: Vec<u32> = payloads
            .iter()
            .filter_map(|p| match p {
                Payload::Delete(Delete::Child {
                    protocol: Protocol::ESP,
                    spis,
                }) => Some(spis),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        let in_ours = self.record.outbound.deleting();
        let mut ours = Vec::new();
        for spi_out in named {
            let found = self
                .established()
                .children
                .iter()
                .find(|c| c.spi_out == spi_out)
                .map(|c| c.spi_in);
            let Some(spi_in) = found else {
                self.deleted_early(spi_out);
                continue;
            };
            if !in_ours.contains(&spi_in) {
                ours.push(spi_in);
            }
            self.remove_child(spi_in, CloseReason::DeletedByPeer);
        }
        match ours.is_empty() {
            true => Vec::new(),
            false => vec![Payload::Delete(Delete::Child {
                protocol: Protocol::ESP,
                spis: ours,
            })],
        }
    }

    /// The peer has deleted a Child SA that we do not know. It may have made it by a request of ours whose response is still on its way.
    fn deleted_early(&mut self, spi_out: u32) {
        let pending = self.record.outbound.pending.iter_mut();
        for pending in pending.filter(|p| p.task.makes_child()) {
            // One request makes one: whatever is named before the last few is another.
            if pending.deleted.len() == MAX_DELETED {
                pending.deleted.remove(0);
            }
            pending.deleted.push(spi_out);
        }
    }

    /// Our request was answered: what the peer has made by it, and deleted since, goes.
    pub(super) fn deleted_meanwhile(&mut self, deleted: &[u32]) {
        let children = self.record.children().iter();
        let gone: Vec<u32> = children
            .filter(|c| deleted.contains(&c.spi_out))
            .map(|c| c.spi_in)
            .collect();
        for spi_in in gone {
            self.remove_child(spi_in, CloseReason::DeletedByPeer);
        }
    }

    /// Asks the peer to delete Child SAs, by our inbound SPIs.
    pub(super) fn delete_children(&mut self, spis: Vec<u32>) {
        self.session.deletes = true;
        let payload = Payload::Delete(Delete::Child {
            protocol: Protocol::ESP,
            spis: spis.clone(),
        });
        self.request(
            ExchangeType::INFORMATIONAL,
            &[payload],
            Task::DeleteChildren(spis),
        );
        self.commit();
    }

    /// Asks the peer to delete this IKE SA.
    pub(super) fn delete_ike(&mut self) {
        self.session.deletes = true;
        self.request(
            ExchangeType::INFORMATIONAL,
            &[Payload::Delete(Delete::Ike)],
            Task::DeleteIke,
        );
        self.commit();
    }

    /// Asks whether the peer lives. It changes nothing, so it need not be committed before it is sent.
    pub(super) fn check_liveness(&mut self) {
        self.request(ExchangeType::INFORMATIONAL, &[], Task::Liveness);
        self.commit_lazily();
    }

    /// Why an IKE SA that we asked the peer to delete ends. What a predecessor has asked for counts as expired, also where our clock is behind its own: what should
    /// be up comes up again then, as after any takeover.
    pub(super) fn delete_reason(&mut self) -> CloseReason {
        let (now, retired) = (self.env.now, self.session.retired);
        let inherited = !self.session.deletes;
        let est = self.established();
        match (est.replaced_by, est.expires_at) {
            (Some(_), _) => CloseReason::Rekeyed,
            _ if retired => CloseReason::Reauthenticated,
            (None, Some(at)) if at <= now => CloseReason::Expired,
            _ if inherited => CloseReason::Expired,
            _ => CloseReason::DeletedByUs,
        }
    }
}
