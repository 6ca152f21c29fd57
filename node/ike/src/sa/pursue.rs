//! What an SA does by itself, and when: one agenda, from which both the next wake-up and what is done at it are taken.

use super::{
    Command, Displaced, Effect, Event, Failure, Timer, reauthentication::Succeed, session::Session,
    turn::Turn,
};
use crate::{
    config::Policy,
    env::UnixMillis,
    record::{
        Child, CloseReason, Established, Fate, MAX_UNDER_WAY, MobikePurpose, Phase, Record, Scope,
    },
};
use std::time::Duration;

/// How often a NAT mapping is kept open (RFC 3948 §4: default 20 s).
const KEEPALIVE: Duration = Duration::from_secs(20);

/// How long an IKE SA stays whose peer seems to authenticate again: time enough to set up all Child SAs of the new one.
const LINGERS_DISPLACED: Duration = Duration::from_secs(10);

/// How long a Child SA that was replaced stays before we delete it, and an IKE SA whose peer has a new one from us. What we sent on the old one is still under
/// way when the new one begins, and not only on the network: in a peer, ESP and IKE go different ways, and a peer that is told to delete an SA may drop
/// what waits for it.
pub(super) const OVERLAP: Duration = Duration::from_secs(1);

/// How soon to look again whether the completion of our last request is committed.
const UNTIL_COMMITTED: Duration = Duration::from_millis(30);

/// Something that is due at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Retransmit,
    Sync,
    Keepalive,
    /// Fragments of a message that is incomplete for too long.
    DropFragments,
    /// A half-open SA, or a tombstone.
    Forget,
    Command,
    DeleteIke,
    DeleteChildren(Vec<u32>),
    RekeyIke,
    Reauthenticate,
    /// The new IKE SA of a new authentication, or the old one, is looked after.
    Succeed(Succeed),
    RekeyChild(u32),
    Liveness,
    /// Something about addresses is to be told or asked.
    Mobike(MobikePurpose),
    /// ESP came from elsewhere a moment ago.
    Follow,
}

impl Due {
    fn timer(&self) -> Timer {
        match self {
            Self::Retransmit | Self::Sync => Timer::Retransmit,
            Self::Keepalive => Timer::Keepalive,
            Self::DropFragments | Self::Forget | Self::DeleteIke | Self::DeleteChildren(_) => {
                Timer::Expire
            }
            Self::Command | Self::Mobike(_) | Self::Follow => Timer::Retry,
            Self::RekeyIke => Timer::RekeyIke,
            Self::Reauthenticate | Self::Succeed(_) => Timer::Reauthenticate,
            Self::RekeyChild(_) => Timer::RekeyChild,
            Self::Liveness => Timer::Liveness,
        }
    }

    /// What the request for it will have for itself; `None` if there will be none.
    fn scope(&self, record: &Record, session: &Session) -> Option<Scope> {
        match self {
            Self::Retransmit
            | Self::Sync
            | Self::Keepalive
            | Self::DropFragments
            | Self::Forget
            | Self::Follow
            | Self::Succeed(Succeed::Retire | Succeed::Look) => None,
            // A new authentication takes over the Child SAs that there are.
            Self::DeleteIke | Self::RekeyIke | Self::Reauthenticate | Self::Mobike(_) => {
                Some(Scope::IkeSa)
            }
            Self::Liveness if super::mobike::watches_nat(record) => Some(Scope::IkeSa),
            Self::Liveness => Some(Scope::Empty),
            Self::DeleteChildren(spis) => Some(Scope::children(spis.clone())),
            Self::RekeyChild(spi) => Some(Scope::children(vec![*spi])),
            Self::Succeed(Succeed::Child(name)) => Some(Scope::child(name, None)),
            Self::Command => match session.wanted.front()? {
                Command::CreateChild(name) => Some(Scope::child(name, None)),
                Command::RekeyChild(spi) | Command::DeleteChild(spi) => {
                    Some(Scope::children(vec![*spi]))
                }
                Command::RekeyIke | Command::Reauthenticate | Command::Delete => Some(Scope::IkeSa),
                Command::Displace(_) | Command::Retire => None,
            },
        }
    }
}

/// Everything that is to be done, in order of importance, and when.
fn agenda(record: &Record, session: &Session, policy: &Policy) -> Vec<(UnixMillis, Due)> {
    let mut due = Vec::new();
    if let Some(repeat) = session.repeats.values().min_by_key(|r| r.at) {
        due.push((repeat.at, Due::Retransmit));
    }
    if let Some(at) = session.reassembly.expires_at() {
        due.push((at, Due::DropFragments));
    }
    match &record.phase {
        Phase::HalfOpen(h) => due.push((h.expires_at, Due::Forget)),
        Phase::Closed(c) => due.push((c.expires_at, Due::Forget)),
        Phase::InitSent(_) | Phase::Intermediate(_) | Phase::AuthSent(_) => {}
        Phase::Established(e) => {
            if let Some(at) = session.keepalive_at {
                due.push((at, Due::Keepalive));
            }
            if let Some(at) = session.roaming.as_ref().and_then(|r| r.follow_at()) {
                due.push((at, Due::Follow));
            }
            if let (Some(repeat), Some(_)) = (session.sync_repeat, &e.sync_request) {
                due.push((repeat.at, Due::Sync));
            } else {
                let mut wanted = requests(e, record, session, policy);
                retain_startable(&mut wanted, record, session);
                due.append(&mut wanted);
            }
        }
    }
    due
}

/// Of what an SA wants, leaves what can be begun beside what is under way. What waits to be alone holds back what became due after it, or it might wait for ever.
fn retain_startable(wanted: &mut Vec<(UnixMillis, Due)>, record: &Record, session: &Session) {
    let outbound = &record.outbound;
    if outbound.pending.is_empty() {
        return;
    }
    if session.uncertain {
        // Whatever is due, an empty request comes first.
        wanted.retain(|_| outbound.admits(&Scope::Empty));
        return;
    }
    let mut alone: Option<UnixMillis> = None;
    let scoped: Vec<Option<Scope>> = wanted
        .iter()
        .map(|(at, due)| {
            let scope = due.scope(record, session);
            if scope == Some(Scope::IkeSa) {
                alone = Some(alone.map_or(*at, |before| before.min(*at)));
            }
            scope
        })
        .collect();
    let mut scopes = scoped.into_iter();
    wanted.retain(|(at, _)| match scopes.next().flatten() {
        None => true,
        Some(scope) => alone.is_none_or(|since| *at < since) && outbound.admits(&scope),
    });
}

/// The requests that an established SA wants to make.
fn requests(
    e: &Established,
    record: &Record,
    session: &Session,
    policy: &Policy,
) -> Vec<(UnixMillis, Due)> {
    let mut due = Vec::new();
    if session.speak && e.replaced_by.is_none() {
        due.push((UnixMillis(0), Due::Liveness));
    }
    // First what decides whether anything else arrives.
    if let Some(purpose) = super::mobike::wanted(e, record, session) {
        due.push((UnixMillis(0), Due::Mobike(purpose)));
    }
    if let Some(at) = e.expires_at {
        due.push((at, Due::DeleteIke));
    }
    let deleting = record.outbound.deleting();
    let there = || (e.children.iter()).filter(|c| !deleting.contains(&c.spi_in));
    let replaced: Vec<u32> = there()
        .filter(|c| c.fate == Fate::Replaced)
        .map(|c| c.spi_in)
        .collect();
    if !replaced.is_empty() {
        due.push((session.overlaps_until, Due::DeleteChildren(replaced)));
    }
    for child in there() {
        if let Some(at) = child.expires_at {
            due.push((at, Due::DeleteChildren(vec![child.spi_in])));
        }
    }
    if e.replaced_by.is_none() {
        if !session.wanted.is_empty() {
            due.push((session.wanted_after.unwrap_or_default(), Due::Command));
        }
        let wait = session.not_before.unwrap_or_default();
        if let Some((at, step)) = super::reauthentication::wanted(e, record, session) {
            due.push((at, Due::Succeed(step)));
        }
        if let (Some(at), None) = (session.displaced_at, e.successor) {
            due.push((at, Due::DeleteIke));
        }
        if let (Some(at), None) = (e.rekey_at, e.successor) {
            due.push((at.max(wait), Due::RekeyIke));
        }
        if let (Some(at), None, true) = (e.reauth_at, e.successor, e.initiated) {
            due.push((at.max(wait), Due::Reauthenticate));
        }
        for child in e.children.iter().filter(|c| c.fate == Fate::Live) {
            // One that the peer is replacing already is left to it.
            let taken = e.children.iter().any(|c| c.replaces == Some(child.spi_in));
            if let (Some(at), false) = (child.rekey_at, taken) {
                due.push((at.max(wait), Due::RekeyChild(child.spi_in)));
            }
        }
        let delay = policy
            .connection(&record.connection)
            .map_or(Duration::ZERO, |c| c.dpd_delay);
        if !delay.is_zero() {
            due.push(((session.heard + delay).max(wait), Due::Liveness));
        }
    }
    if let Some(blocked) = session.blocked_until {
        let waits = |due: &Due| session.uncertain || *due == Due::Liveness;
        let waiting = due.iter_mut().filter(|(_, due)| waits(due));
        waiting.for_each(|(at, _)| *at = (*at).max(blocked));
    }
    due
}

/// When the SA wants to be woken, and what for.
pub(super) fn next_timeout(
    record: &Record,
    session: &Session,
    policy: &Policy,
) -> Option<(UnixMillis, Timer)> {
    agenda(record, session, policy)
        .into_iter()
        .map(|(at, due)| (at, due.timer()))
        .min()
}

impl Turn<'_, '_> {
    /// The time of something on the agenda has come.
    pub(super) fn timeout(&mut self) {
        self.retransmit();
        self.repeat_sync();
        self.follow_esp();
        let now = self.env.now;
        self.session.reassembly.expire(now);
        if self.session.keepalive_at.is_some_and(|at| at <= now) {
            let path = self.record.path;
            self.session.keepalive_at = path.wants_keepalives().then(|| now + KEEPALIVE);
            if matches!(self.record.phase, Phase::Established(_)) && path.wants_keepalives() {
                self.effects.push(Effect::Keepalive {
                    local: path.local,
                    remote: path.remote,
                });
            }
        }
        let over = matches!(&self.record.phase, Phase::HalfOpen(h) if h.expires_at <= now)
            || matches!(&self.record.phase, Phase::Closed(c) if c.expires_at <= now);
        if over {
            self.effects.push(Effect::Forget);
        }
    }

    /// An operator wants something.
    pub(super) fn command(&mut self, command: Command) {
        match (&self.record.phase, &command) {
            (Phase::Established(_), Command::Displace(how)) => self.displace(*how),
            (Phase::Established(_), Command::Retire) => self.retire(),
            (_, Command::Displace(_) | Command::Retire) => {}
            (Phase::Established(_), _) => {
                if !self.session.want(command) {
                    self.fail(Failure::Command("too many commands wait for this SA"));
                }
            }
            (Phase::Closed(_), _) => self.fail(Failure::Command("the SA is closed")),
            (_, Command::Delete) => {
                self.close(CloseReason::DeletedByUs);
                self.effects.push(Effect::Forget);
            }
            _ => self.fail(Failure::Command("the SA is not established yet")),
        }
    }

    /// The peer has another IKE SA, which takes the place of this one. If it has forgotten this one, nobody would answer a deletion.
    fn displace(&mut self, how: Displaced) {
        self.report(Event::Displaced);
        let wait = match how {
            Displaced::Forgotten => return self.close(CloseReason::Displaced),
            Displaced::Told => Duration::ZERO,
            Displaced::Later => LINGERS_DISPLACED,
        };
        self.session.displaced_at = Some(self.env.now + wait);
    }

    /// A successor sends the empty request that its predecessor may have sent beside what it repeats, before anything else gets that Message ID.
    pub(super) fn probe_beside(&mut self) {
        let outbound = &self.record.outbound;
        let unsure = self.session.uncertain && matches!(self.record.phase, Phase::Established(_));
        if unsure && !outbound.pending.is_empty() && outbound.admits(&Scope::Empty) {
            self.liveness_if_allowed();
        }
    }

    /// Starts what is due, the most important first, as far as it may run beside what is under way.
    pub(super) fn pursue(&mut self) {
        // Commands that make no sense any more are dropped.
        for _ in 0..=self.session.wanted.len() + usize::from(MAX_UNDER_WAY) {
            if !matches!(self.record.phase, Phase::Established(_)) {
                return;
            }
            let before = (self.record.outbound.next, self.session.wanted.len());
            let now = self.env.now;
            let mut due = agenda(&self.record, self.session, self.env.policy)
                .into_iter()
                .filter(|(at, _)| *at <= now);
            let Some((_, due)) = due.find(|(_, d)| {
                !matches!(
                    d,
                    Due::Retransmit
                        | Due::Sync
                        | Due::Keepalive
                        | Due::DropFragments
                        | Due::Forget
                        | Due::Follow
                )
            }) else {
                return;
            };
            if self.session.uncertain {
                return self.liveness_if_allowed();
            }
            match due {
                Due::DeleteIke => self.delete_ike(),
                Due::DeleteChildren(spis) => self.delete_children(spis),
                Due::RekeyIke => self.start_ike_rekey(),
                Due::Reauthenticate => self.start_reauthentication(),
                Due::Succeed(step) => self.succeed(step),
                Due::RekeyChild(spi) => self.rekey_child(spi),
                Due::Command => self.next_command(),
                Due::Mobike(purpose) => self.ask_mobike(purpose),
                // Behind a NAT the same question shows whether its mapping is still the same (RFC 4555 §3.8).
                Due::Liveness if super::mobike::watches_nat(&self.record) => {
                    self.ask_mobike(MobikePurpose::NatProbe);
                }
                Due::Liveness => self.liveness_if_allowed(),
                Due::Retransmit
                | Due::Sync
                | Due::Keepalive
                | Due::DropFragments
                | Due::Forget
                | Due::Follow => {}
            }
            if before == (self.record.outbound.next, self.session.wanted.len()) {
                return; // nothing came of it yet
            }
        }
    }

    /// An empty request may only be sent once all before it are accounted for in what is committed: so that a successor is uncertain of one Message ID at
    /// most.
    fn liveness_if_allowed(&mut self) {
        if self.session.outbound_committed >= self.record.outbound.next {
            self.session.blocked_until = None;
            self.check_liveness();
        } else {
            self.session.blocked_until = Some(self.env.now + UNTIL_COMMITTED);
        }
    }

    fn rekey_child(&mut self, spi_in: u32) {
        let children = &self.established().children;
        let live = |c: &&Child| c.spi_in == spi_in && c.fate == Fate::Live;
        let taken = children.iter().any(|c| c.replaces == Some(spi_in));
        match children.iter().find(live).map(|c| c.name.clone()) {
            Some(_) if taken => self.fail(Failure::Command(
                "the peer is replacing this Child SA already",
            )),
            Some(name) => self.start_child(&name, Some(spi_in)),
            None => self.fail(Failure::Command("there is no such Child SA to rekey")),
        }
    }

    fn next_command(&mut self) {
        match self.session.wanted.pop_front() {
            Some(Command::CreateChild(name)) => self.start_child(&name, None),
            Some(Command::RekeyChild(spi)) => self.rekey_child(spi),
            Some(Command::RekeyIke) => self.start_ike_rekey(),
            Some(Command::Reauthenticate) => self.start_reauthentication(),
            Some(Command::DeleteChild(spi)) => {
                // One that is gone meanwhile is what was wanted.
                if self.record.children().iter().any(|c| c.spi_in == spi) {
                    self.delete_children(vec![spi]);
                }
            }
            Some(Command::Delete) => self.delete_ike(),
            Some(Command::Displace(_) | Command::Retire) | None => {}
        }
    }
}
