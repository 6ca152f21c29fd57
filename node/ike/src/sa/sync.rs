//! Message ID synchronisation (RFC 6311 §5.1, §6.3), as the cluster and as its peer.
//!
//! As the cluster we need it rarely: a successor normally explains the difference between what is committed and what its predecessor
//! did by harmless exchanges. It is used once in an epoch, when a probe of ours stays unanswered or the peer is further ahead than
//! that can explain.

use super::{
    Command, Failure,
    session::{AHEAD, Repeat},
    turn::{Turn, find_notify, notify},
};
use crate::{
    record::{Datagrams, Goal, Phase, SyncAnswer, SyncRequest, Task},
    wire::{ExchangeType, Header, Message, NotifyType, Payload},
};

/// After so many repetitions an empty request of a successor counts as not understood.
pub(super) const UNANSWERED_PROBES: u32 = 2;

/// The data of an IKEV2_MESSAGE_ID_SYNC notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SyncData {
    nonce: [u8; 4],
    /// The Message ID of the sender's next request.
    send: u32,
    /// The Message ID that the sender expects in the next request to it.
    receive: u32,
}

impl SyncData {
    fn parse(data: &[u8]) -> Option<Self> {
        let data: &[u8; 12] = data.try_into().ok()?;
        let word = |at: usize| [data[at], data[at + 1], data[at + 2], data[at + 3]];
        Some(Self {
            nonce: word(0),
            send: u32::from_be_bytes(word(4)),
            receive: u32::from_be_bytes(word(8)),
        })
    }

    /// The only notify of this kind among payloads that hold nothing else but, perhaps, replay counters.
    fn find(payloads: &[Payload]) -> Option<Self> {
        let allowed = [
            NotifyType::IKEV2_MESSAGE_ID_SYNC,
            NotifyType::IPSEC_REPLAY_COUNTER_SYNC,
        ];
        let only_these = payloads
            .iter()
            .all(|p| matches!(p, Payload::Notify(n) if allowed.contains(&n.kind)));
        find_notify(payloads, NotifyType::IKEV2_MESSAGE_ID_SYNC)
            .filter(|_| only_these)
            .and_then(|n| Self::parse(&n.data))
    }

    fn payload(self) -> Payload {
        let data = [
            self.nonce,
            self.send.to_be_bytes(),
            self.receive.to_be_bytes(),
        ]
        .concat();
        notify(NotifyType::IKEV2_MESSAGE_ID_SYNC, data)
    }
}

impl Turn<'_, '_> {
    fn can_sync(&self) -> bool {
        matches!(&self.record.phase, Phase::Established(e) if e.message_id_sync)
    }

    // ---- as the cluster ----

    /// Whether the last request of the peer that we answered made something, and the peer may not know the answer. Synchronising would have it abandon
    /// that request, and what was made would be ours alone. If it goes on, it repeats the request and gets the answer, or sends another.
    pub(super) fn is_unconfirmed(&self) -> bool {
        let header = |datagrams: &Datagrams| Header::parse(datagrams.first()?).ok();
        let headers = self.record.inbound.answered.iter();
        // A peer that has answered a request has got our IKE_AUTH response.
        let authenticated = self.record.outbound.has_answers();
        headers
            .filter_map(|answered| header(&answered.response))
            .any(|h| match h.exchange {
                ExchangeType::INFORMATIONAL => false,
                ExchangeType::IKE_AUTH => !authenticated,
                _ => true,
            })
    }

    /// Whether the peer is being asked for new Message IDs. When it hears of that it abandons its requests and begins them again: what one of them made here
    /// meanwhile would be ours alone, so it waits. Deletions and addresses may be said twice.
    pub(super) fn is_synchronising(&self) -> bool {
        let asked = matches!(&self.record.phase, Phase::Established(e) if e.sync_request.is_some());
        asked && self.session.sync_repeat.is_some()
    }

    /// Asks the peer to agree on new Message IDs, if it can and was not asked in this epoch yet.
    pub(super) fn start_sync(&mut self) -> bool {
        let unfinished = self.record.outbound.tasks().any(|t| *t != Task::Liveness);
        if !self.can_sync() || self.session.synced || unfinished {
            return false;
        }
        self.session.synced = true;
        let mut nonce = [0; 4];
        self.env.rng.fill(&mut nonce);
        // Larger than any ID that may have been used. By our own rules one request of a former epoch may be unknown; the margin is
        // for what those rules did not foresee.
        let used = self.record.outbound.next;
        let announced = self
            .established()
            .sync_request
            .as_ref()
            .map_or(0, |r| r.send);
        let send = used.max(announced) + AHEAD;
        let data = SyncData {
            nonce,
            send,
            receive: self.record.inbound.end(),
        };
        let Some(datagram) =
            self.seal_whole(ExchangeType::INFORMATIONAL, false, 0, &[data.payload()])
        else {
            return false;
        };
        self.established().sync_request = Some(Box::new(SyncRequest {
            nonce,
            send,
            datagram: datagram.clone(),
        }));
        self.session.sync_repeat = Some(Repeat {
            sent: 1,
            at: self.env.now + self.env.policy.retransmit.timeout,
        });
        self.commit();
        self.send(&[datagram]);
        true
    }

    /// Repeats our synchronisation request, or does without: if the peer does not answer anything else either, it is gone.
    pub(super) fn repeat_sync(&mut self) {
        let Some(repeat) = self.session.sync_repeat.filter(|r| r.at <= self.env.now) else {
            return;
        };
        let Phase::Established(e) = &self.record.phase else {
            return;
        };
        let wait = self.env.policy.retransmit.wait(repeat.sent + 1);
        let (Some(wait), Some(request)) = (wait, &e.sync_request) else {
            self.session.sync_repeat = None;
            return;
        };
        let datagram = request.datagram.clone();
        self.session.sync_repeat = Some(Repeat {
            sent: repeat.sent + 1,
            at: self.env.now + wait,
        });
        self.send(&[datagram]);
    }

    /// The peer's answer to our synchronisation: both windows start anew.
    pub(super) fn sync_response(&mut self, payloads: &[Payload]) {
        let Some(data) = SyncData::find(payloads) else {
            return;
        };
        let asked = self.established().sync_request.as_ref().map(|r| r.nonce);
        if asked != Some(data.nonce)
            || data.receive < self.record.outbound.next
            || data.send < self.record.inbound.end()
        {
            return self.ignore(Failure::Invalid("a synchronisation that was not asked for"));
        }
        self.established().sync_request = None;
        self.session.sync_repeat = None;
        self.session.heard = self.now();
        self.session.uncertain = false;
        self.session.forget_requests();
        self.record.outbound.restart(data.receive);
        self.record.inbound.restart(data.send);
        self.commit();
    }

    // ---- as its peer ----

    /// A synchronisation request, if this is one. It stands outside the windows: its Message ID is zero.
    pub(super) fn sync_request(&mut self, message: &Message<'_>) -> bool {
        let zero = message.header.message_id == 0
            && message.header.exchange == ExchangeType::INFORMATIONAL
            && !message.is_fragment();
        if !zero || !self.can_sync() {
            return false;
        }
        let Some(Ok(payloads)) = self.open(message) else {
            return false;
        };
        let Some(data) = SyncData::find(&payloads) else {
            return false;
        };
        let answered = self.established().sync_answer.clone();
        if let Some(answer) = answered.filter(|a| a.nonce == data.nonce && a.send == data.send) {
            self.send(&[answer.datagram]); // repeated: the response was lost
            return true;
        }
        // At most what was seen already: a replay.
        if data.send < self.record.inbound.end() {
            self.ignore(Failure::MessageId {
                given: data.send,
                expected: self.record.inbound.end(),
            });
            return true;
        }
        let answer = SyncData {
            nonce: data.nonce,
            send: self.record.outbound.next.max(data.receive),
            receive: data.send,
        };
        let Some(datagram) =
            self.seal_whole(ExchangeType::INFORMATIONAL, true, 0, &[answer.payload()])
        else {
            return true;
        };
        self.abandon_pending();
        self.session.heard = self.now();
        self.record.inbound.restart(answer.receive);
        self.record.outbound.restart(answer.send);
        self.established().sync_answer = Some(Box::new(SyncAnswer {
            nonce: data.nonce,
            send: data.send,
            datagram: datagram.clone(),
        }));
        self.commit();
        self.send(&[datagram]);
        true
    }

    /// What was under way is begun again under a new Message ID.
    fn abandon_pending(&mut self) {
        self.session.forget_requests();
        for pending in std::mem::take(&mut self.record.outbound.pending) {
            self.want_again(pending.task);
        }
    }

    fn want_again(&mut self, task: Task) {
        let again = match task {
            // What MOBIKE wants to say is still to be said: that is in the record.
            Task::Connect | Task::Liveness | Task::Mobike(_) => return,
            Task::CreateChild(offer) => vec![
                offer
                    .replaces
                    .map_or(Command::CreateChild(offer.name), Command::RekeyChild),
            ],
            Task::RekeyIke(_) => vec![Command::RekeyIke],
            Task::FollowUp(follow_up, _) => vec![match follow_up.goal {
                Goal::Ike(_) => Command::RekeyIke,
                Goal::Child(goal) => goal
                    .replaces
                    .map_or(Command::CreateChild(goal.name), Command::RekeyChild),
            }],
            Task::DeleteChildren(spis) => spis.into_iter().map(Command::DeleteChild).collect(),
            Task::DeleteIke => vec![Command::Delete],
            Task::AskToReauthenticate => vec![Command::Reauthenticate],
        };
        for command in again {
            self.session.want(command);
        }
    }
}
