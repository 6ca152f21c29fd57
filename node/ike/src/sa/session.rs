//! One IKE SA on the member that serves it: the record, and what only this member knows.

use super::{Command, Env, Input, Step, Timer, auth::Parked, fragments::Reassembly, turn::Turn};
use crate::{
    env::UnixMillis,
    record::{Phase, Record, Scope},
    wire::{ExchangeType, Header, Payload},
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Commands that may wait on one SA; more are refused, since nobody waits for that many with good reason.
const MAX_WANTED: usize = 32;

/// How far a peer's requests may run ahead after a takeover: as many harmless exchanges as may have been answered
/// without being replicated.
pub(super) const AHEAD: u32 = 16;

/// The IVs of one epoch of a virtual gateway: `epoch || counter`, 24 and 40 bits (RFC 5282 §3.1 wants no more than that an IV is never
/// repeated under a key). One counter serves all SAs of the gateway, so that nothing that happens to an SA in this process can
/// wind it back.
#[derive(Debug)]
pub struct IvCounter {
    epoch: u32,
    next: AtomicU64,
}

impl IvCounter {
    const COUNTER_BITS: u32 = 40;

    /// No epoch: these IVs belong to messages whose content follows from the IV.
    const RESERVED: u32 = (1 << (64 - Self::COUNTER_BITS)) - 1;

    /// The IVs of an epoch. There must be one such counter for it in the cluster, ever.
    pub fn new(epoch: u32) -> Self {
        Self {
            epoch,
            next: AtomicU64::new(0),
        }
    }

    /// An IV that was never given out before; `None` when epoch or counter do not fit their bits: then nothing may be sealed.
    pub fn next(&self) -> Option<[u8; 8]> {
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        (self.epoch < Self::RESERVED && counter < 1 << Self::COUNTER_BITS)
            .then(|| ((u64::from(self.epoch) << Self::COUNTER_BITS) | counter).to_be_bytes())
    }

    /// The IV of an empty INFORMATIONAL message. All that the AEAD covers of such a message follows from its Message ID and whether it is a
    /// response, and so does this IV: whoever serves the SA seals the same bytes, without having been told of them. A peer that
    /// compares a repeated request with the one that it answered (strongSwan does) finds them equal after a takeover, too.
    pub(super) fn of_empty(message_id: u32, is_response: bool) -> [u8; 8] {
        let low = (u64::from(is_response) << 32) | u64::from(message_id);
        ((u64::from(Self::RESERVED) << Self::COUNTER_BITS) | low).to_be_bytes()
    }
}

/// What only the member that serves an SA knows: a successor starts with a fresh one.
#[derive(Debug)]
pub(super) struct Session {
    /// When the peer was last heard, authentically.
    pub(super) heard: UnixMillis,
    /// How often each pending request was sent, and when to send it again, by its Message ID.
    pub(super) repeats: BTreeMap<u32, Repeat>,
    /// Answers that cannot be used before an older one is there, by the Message IDs of their requests.
    pub(super) waiting: BTreeMap<u32, (Header, Vec<Payload>)>,
    /// Our Message IDs below this are accounted for in what is committed ([`crate::record::OutboundWindow::accounted`]).
    pub(super) outbound_committed: u32,
    /// The peer may have answered a request of ours that we do not know of: the first new one must be an empty one.
    pub(super) uncertain: bool,
    /// Message IDs were synchronised (or at least that was asked for) in this epoch.
    pub(super) synced: bool,
    /// Repetition of the synchronisation request; while there is one, no other request is started.
    pub(super) sync_repeat: Option<Repeat>,
    /// How far the peer's Message IDs may still run ahead.
    pub(super) ahead: u32,
    /// What operators asked for and did not happen yet.
    pub(super) wanted: VecDeque<Command>,
    /// They are not begun before this: the peer could not serve the first of them.
    pub(super) wanted_after: Option<UnixMillis>,
    /// Child SAs that were replaced are not deleted before this: see [`super::pursue::OVERLAP`].
    pub(super) overlaps_until: UnixMillis,
    /// Nothing is started by itself before this: the peer asked us to wait.
    pub(super) not_before: Option<UnixMillis>,
    /// No empty request is started before this: that the last one was answered is not committed yet.
    pub(super) blocked_until: Option<UnixMillis>,
    /// The peer is to hear from us, because only so it learns of a new TCP connection.
    pub(super) speak: bool,
    /// When to send a NAT keepalive.
    pub(super) keepalive_at: Option<UnixMillis>,
    /// The group that the peer wants in our next CREATE_CHILD_SA.
    pub(super) group_hint: Option<u16>,
    /// Messages of which not all fragments are here.
    pub(super) reassembly: Reassembly,
    /// Where the IKE_AUTH request came from whose answer is being committed: ours, and the peer's.
    pub(super) answering: Option<Box<(SocketAddr, SocketAddr)>>,
    /// IKE_AUTH, while it waits for answers from outside.
    pub(super) parked: Option<Box<Parked>>,
    /// This process has asked the peer to delete something itself. Why its predecessor did is not known.
    pub(super) deletes: bool,
    /// Another IKE SA has taken the place of this one by a new authentication.
    pub(super) retired: bool,
    /// When to look again how the other IKE SA of a new authentication fares.
    pub(super) look_at: UnixMillis,
    /// When this SA is deleted, because its peer has authenticated anew.
    pub(super) displaced_at: Option<UnixMillis>,
    /// Where the peer and we are, as far as only this process knows.
    pub(super) roaming: Option<Box<super::mobike::Roaming>>,
}

/// Repetition of a pending request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repeat {
    /// How often it was sent by this process.
    pub(super) sent: u32,
    /// When to send it again.
    pub(super) at: UnixMillis,
}

/// One IKE SA on the member that serves it: its record, and the session that only this member has.
#[derive(Debug)]
pub struct IkeSa {
    record: Arc<Record>,
    session: Session,
}

impl IkeSa {
    /// An SA that this process has just created: its first request, if it has one, is about to be sent.
    pub fn created(record: impl Into<Arc<Record>>, now: UnixMillis) -> Self {
        let mut sa = Self::resume(record, now);
        sa.session.uncertain = false;
        sa.session.ahead = 0;
        sa.session.synced = true; // it has no predecessor that could know more
        sa
    }

    /// An SA as a record says, served from now on by this process, after a takeover or a restart.
    pub fn resume(record: impl Into<Arc<Record>>, now: UnixMillis) -> Self {
        let record = record.into();
        let established = matches!(record.phase, Phase::Established(_));
        let session = Session {
            heard: now,
            // A request that was committed may or may not have been sent: send it (again) at once.
            repeats: (record.outbound.pending.iter())
                .map(|p| (p.id, Repeat { sent: 0, at: now }))
                .collect(),
            waiting: BTreeMap::new(),
            outbound_committed: record.outbound.accounted(),
            // Its predecessor may have sent an empty request if it was allowed to.
            uncertain: established && record.outbound.admits(&Scope::Empty),
            synced: !established,
            sync_repeat: None,
            ahead: if established { AHEAD } else { 0 },
            wanted: VecDeque::new(),
            wanted_after: None,
            overlaps_until: now,
            not_before: None,
            blocked_until: None,
            speak: false,
            keepalive_at: record.path.wants_keepalives().then_some(now),
            group_hint: None,
            reassembly: Reassembly::default(),
            parked: None,
            answering: None,
            deletes: false,
            retired: false,
            look_at: now,
            displaced_at: None,
            roaming: None,
        };
        Self { record, session }
    }

    /// The record as of the last adopted change.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Handles an input. While a [`super::Change::Barrier`] of this SA is not decided, the caller holds further inputs back.
    pub fn step(&mut self, input: Input<'_>, env: &mut Env<'_>) -> Step {
        let mut turn = Turn::new(&mut self.session, &self.record, env);
        turn.probe_beside();
        match input {
            Input::Datagram {
                bytes,
                local,
                remote,
                transport,
            } => {
                turn.transport = transport;
                turn.datagram(bytes, local, remote);
            }
            Input::Timeout => turn.timeout(),
            Input::NotUnique => turn.not_unique(),
            Input::Addresses(answer) => turn.addresses(answer),
            Input::Verified(answer) => turn.verified(answer),
            Input::Signed(answer) => turn.signed(answer),
            Input::Exists(exists) => turn.exists(exists),
            Input::Command(command) => turn.command(command),
            Input::Roam(ways) => turn.roam(ways),
            Input::EspFrom(remote, transport) => turn.esp_from(remote, transport),
            Input::Connected { local, remote } => turn.connected(local, remote),
        }
        turn.pursue();
        turn.finish()
    }

    /// Makes a committed (or lazily replicated) change this SA's own.
    pub fn adopt(&mut self, record: impl Into<Arc<Record>>) {
        let record = record.into();
        if record.revision > self.record.revision {
            self.outbound_committed(record.outbound.accounted());
        }
        let is_pending = |id: &u32| record.outbound.get(*id).is_some();
        self.session.repeats.retain(|id, _| is_pending(id));
        self.session.waiting.retain(|id, _| is_pending(id));
        if record.path.wants_keepalives() && self.session.keepalive_at.is_none() {
            self.session.keepalive_at = Some(self.session.heard);
        }
        self.record = record;
    }

    /// Has the record in common with whoever has the same one: of tens of thousands of SAs, each would be there twice. Nothing changes if
    /// it is another one.
    ///
    /// It may lack answers to harmless requests, whose Message IDs alone are replicated. They are forgotten here, too: a request that is
    /// repeated is answered again, as after a takeover.
    pub fn share(&mut self, record: &Arc<Record>) {
        if *record == self.record || self.differs_in_answers(record) {
            self.record = Arc::clone(record);
        }
    }

    fn differs_in_answers(&self, record: &Record) -> bool {
        let (ours, theirs) = (&self.record.inbound, &record.inbound);
        let as_far = (ours.next, ours.end()) == (theirs.next, theirs.end());
        let harmless = |datagram: &Vec<u8>| {
            Header::parse(datagram).is_ok_and(|h| h.exchange == ExchangeType::INFORMATIONAL)
        };
        let mut missing = ours
            .answered
            .iter()
            .filter(|a| !theirs.answered.contains(a));
        as_far && missing.all(|a| a.response.iter().all(harmless)) && {
            let mut same = Record::clone(&self.record);
            same.inbound = theirs.clone();
            same == *record
        }
    }

    /// Tells that up to this Message ID of ours all is accounted for in what is committed: an empty request may only be sent once all before it are.
    pub fn outbound_committed(&mut self, next: u32) {
        self.session.outbound_committed = self.session.outbound_committed.max(next);
    }

    /// Tells that the data plane received authentic packets from the peer at that time.
    pub fn heard(&mut self, at: UnixMillis) {
        self.session.heard = self.session.heard.max(at);
    }

    /// When to call [`IkeSa::step`] with [`Input::Timeout`], and what for.
    pub fn next_timeout(&self, policy: &crate::config::Policy) -> Option<(UnixMillis, Timer)> {
        super::pursue::next_timeout(&self.record, &self.session, policy)
    }
}

impl Session {
    /// No request is under way any more.
    pub(super) fn forget_requests(&mut self) {
        self.repeats.clear();
        self.waiting.clear();
    }

    /// Where the peer and we are; there is something to be noted.
    pub(super) fn roaming(&mut self) -> &mut super::mobike::Roaming {
        self.roaming.get_or_insert_default()
    }

    /// Remembers a command until it can be carried out; false if there are too many.
    pub(super) fn want(&mut self, command: Command) -> bool {
        if self.wanted.contains(&command) {
            return true;
        }
        if self.wanted.len() == MAX_WANTED {
            return false;
        }
        self.wanted.push_back(command);
        true
    }

    /// Puts a command that could not be served back, to be tried at that time.
    pub(super) fn want_again(&mut self, command: Command, at: UnixMillis) {
        if self.wanted.len() < MAX_WANTED && !self.wanted.contains(&command) {
            self.wanted.push_front(command);
            self.wanted_after = Some(at);
        }
    }
}
