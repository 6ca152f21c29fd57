//! One IKE SA in a worker.

use super::limits::Permit;
use evergate_ike::{
    certificate::{CertificateError, Verified},
    env::UnixMillis,
    record::{Phase, Record, SaId, Transport},
    sa::{self, Effect, Event, IkeSa, Input, NoAddress, Ways},
    wire::ExchangeType,
};
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::sync::mpsc;

/// So much may wait while a change of the SA is being committed; a peer has no reason to send as much meanwhile.
const MAX_QUEUED: usize = 32;

/// So many may wait for one SA's events.
const MAX_WATCHERS: usize = 16;

/// Something that happened to an SA, for who waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    /// The SA.
    pub(crate) sa: SaId,
    /// What happened; `None` if the SA is no longer served.
    pub(crate) event: Option<Event>,
}

/// Where notices go.
pub(crate) type Watcher = mpsc::Sender<Notice>;

/// An input that can wait.
#[derive(Debug)]
pub(super) enum Queued {
    Datagram {
        bytes: Vec<u8>,
        local: SocketAddr,
        remote: SocketAddr,
        transport: Transport,
    },
    Addresses(Result<Vec<IpAddr>, NoAddress>),
    Verified(Result<Box<Verified>, CertificateError>),
    Signed(Option<Vec<u8>>),
    Exists(bool),
    Command(sa::Command),
    Roam(Ways),
    EspFrom(SocketAddr, Transport),
    Connected(SocketAddr, SocketAddr),
    NotUnique,
}

impl Queued {
    pub(super) fn as_input(&self) -> Input<'_> {
        match self {
            Self::Datagram {
                bytes,
                local,
                remote,
                transport,
            } => Input::Datagram {
                bytes,
                local: *local,
                remote: *remote,
                transport: *transport,
            },
            Self::Addresses(answer) => Input::Addresses(answer.clone()),
            Self::Verified(answer) => Input::Verified(answer.clone()),
            Self::Signed(answer) => Input::Signed(answer.clone()),
            Self::Exists(exists) => Input::Exists(*exists),
            Self::Command(command) => Input::Command(command.clone()),
            Self::Roam(ways) => Input::Roam(ways.clone()),
            Self::EspFrom(remote, transport) => Input::EspFrom(*remote, *transport),
            Self::Connected(local, remote) => Input::Connected {
                local: *local,
                remote: *remote,
            },
            Self::NotUnique => Input::NotUnique,
        }
    }
}

/// A change that is being committed, and what happens after that.
#[derive(Debug)]
pub(super) struct Committing {
    pub(super) records: Vec<Arc<Record>>,
    pub(super) effects: Vec<Effect>,
    pub(super) exchange: Option<ExchangeType>,
}

/// One IKE SA in a worker.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) sa: IkeSa,
    /// While this is there, inputs wait.
    pub(super) committing: Option<Box<Committing>>,
    queue: VecDeque<Queued>,
    /// Counts it among the half-open ones.
    pub(super) permit: Option<Permit>,
    /// The first message that made it: where it came from and the peer's SPI.
    pub(super) init_key: Option<(SocketAddr, u64)>,
    /// Timers rest until then, because a change was refused.
    pub(super) not_before: UnixMillis,
    /// The counters that were last proposed, of the peer's requests and ours.
    pub(super) proposed: (u32, u32),
    /// Its keys were written to the key log.
    #[cfg_attr(
        not(feature = "drills"),
        expect(dead_code, reason = "only the drills have a key log")
    )]
    pub(super) keys_logged: bool,
    watchers: Vec<Watcher>,
}

impl Slot {
    pub(super) fn new(sa: IkeSa) -> Self {
        let proposed = (sa.record().inbound.next, sa.record().outbound.accounted());
        Self {
            sa,
            committing: None,
            queue: VecDeque::new(),
            permit: None,
            init_key: None,
            not_before: UnixMillis::default(),
            proposed,
            keys_logged: false,
            watchers: Vec::new(),
        }
    }

    /// Lets an input wait for the commit; false if too many do.
    pub(super) fn enqueue(&mut self, input: Queued) -> bool {
        let room = self.queue.len() < MAX_QUEUED;
        if room {
            self.queue.push_back(input);
        }
        room
    }

    /// The next input that waited, unless the wait goes on.
    pub(super) fn dequeue(&mut self) -> Option<Queued> {
        if self.committing.is_some() {
            return None;
        }
        let next = self.queue.pop_front();
        if self.queue.is_empty() {
            // Few SAs ever use it again.
            self.queue.shrink_to_fit();
        }
        next
    }

    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.sa.record().phase, Phase::HalfOpen(_))
    }

    /// Somebody wants to know what happens; false if too many do.
    pub(super) fn watch(&mut self, watcher: Watcher) -> bool {
        self.watchers.retain(|w| !w.is_closed());
        let room = self.watchers.len() < MAX_WATCHERS;
        if room {
            self.watchers.push(watcher);
        }
        room
    }

    /// Tells who waits. Who does not keep up is dropped: it sees that its channel closes.
    pub(super) fn tell(&mut self, event: Option<&Event>) {
        let notice = Notice {
            sa: self.sa.record().id,
            event: event.cloned(),
        };
        self.watchers.retain(|w| w.try_send(notice.clone()).is_ok());
    }

    /// Who waited for this SA's events waits for another's.
    pub(super) fn take_watchers(&mut self) -> Vec<Watcher> {
        std::mem::take(&mut self.watchers)
    }
}
