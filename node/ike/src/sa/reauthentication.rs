//! Authenticating again (RFC 7296 §2.8.3, RFC 4478), make before break: a new IKE SA is authenticated in full, and gets its Child SAs, before the old one is
//! deleted.
//!
//! Both are in the records, each names the other, and each looks from time to time how the other fares: so it does not matter what a process that
//! dies in the middle of it had done.

use super::{
    Command, Effect, Event, Failure, Question,
    auth::randomised,
    init_client::first_record,
    pursue::OVERLAP,
    session::Session,
    turn::{Turn, find_notify, notify},
};
use crate::{
    config::Connection,
    env::UnixMillis,
    record::{Established, Fate, Phase, Record, Scope, Succession, Task},
    wire::{ExchangeType, NotifyType, Payload},
};
use std::{net::IpAddr, time::Duration};

/// How often the two IKE SAs look how the other fares.
const LOOK: Duration = Duration::from_secs(5);

/// How long to wait after a new authentication came to nothing, or was asked for.
const RETRY: Duration = Duration::from_secs(30);

/// However short a lifetime the peer names: so often it can make us authenticate again, and no more.
const SHORTEST: Duration = Duration::from_secs(2);

/// What is to be done for a new authentication that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Succeed {
    /// The new IKE SA lacks a Child SA that the old one has.
    Child(String),
    /// The new IKE SA is complete: the old one is told to go, or there is none any more.
    Retire,
    /// The old IKE SA looks whether there is still a new one.
    Look,
}

/// What an established SA has to do for a new authentication, and when.
pub(super) fn wanted(
    e: &Established,
    record: &Record,
    session: &Session,
) -> Option<(UnixMillis, Succeed)> {
    let Some(succession) = &record.succeeds else {
        return e.successor.map(|_| (session.look_at, Succeed::Look));
    };
    let is_missing = |name: &&String| !e.children.iter().any(|c| c.name == **name);
    let mut missing = succession.children.iter().filter(is_missing).peekable();
    if missing.peek().is_none() {
        return Some((session.look_at, Succeed::Retire));
    }
    let next = missing.find(|name| record.outbound.is_apart(&Scope::child(name, None)))?;
    let wait = session.not_before.unwrap_or_default();
    Some((wait, Succeed::Child(next.clone())))
}

impl Turn<'_, '_> {
    // ---- the old IKE SA ----

    /// When to authenticate again on an SA that we begin.
    pub(super) fn time_to_authenticate(&mut self, c: &Connection) -> Option<UnixMillis> {
        (!c.reauth_time.is_zero())
            .then(|| self.env.now + randomised(c.reauth_time, c.rand_time, self.env.rng))
    }

    /// Begins a new IKE SA in the place of this one, with Child SAs of the same names, between the same addresses.
    pub(super) fn start_reauthentication(&mut self) {
        let policy = self.env.policy;
        let Some(config) = policy.connection(&self.record.connection) else {
            self.try_again_later();
            return self.fail(Failure::Unconfigured(self.record.connection.clone()));
        };
        let now = self.env.now;
        let est = self.established();
        if est.reauthenticates(now) {
            let why = "a new authentication is under way already";
            return self.fail(Failure::Command(why));
        }
        if !est.initiated {
            return self.ask_to_reauthenticate();
        }
        let mut children: Vec<String> = Vec::new();
        for child in est.children.iter().filter(|c| c.fate == Fate::Live) {
            if config.child(&child.name).is_some() && !children.contains(&child.name) {
                children.push(child.name.clone());
            }
        }
        // One without any is replaced by one with the first that there is: it has to ask for something.
        let first = children
            .first()
            .or(config.children.first().map(|c| &c.name));
        let Some(first) = first.cloned() else {
            self.try_again_later();
            return self.fail(Failure::Command("the connection has no child"));
        };
        if children.is_empty() {
            children.push(first.clone());
        }
        let addresses = est.our_vips.clone();
        let path = self.record.path;
        let ends = (path.transport, (path.local, path.remote));
        let gateway = self.record.gateway;
        match first_record(config, (&first, false), ends, &[], gateway, self.env) {
            Ok(mut new) => {
                new.succeeds = Some(Box::new(Succession {
                    old: self.record.id,
                    children,
                    addresses,
                }));
                let by = new.id;
                self.created.push(new);
                let look_at = self.env.now + LOOK;
                self.session.look_at = look_at;
                let est = self.established();
                est.successor = Some(by);
                est.reauth_at = None;
                self.commit();
                self.report(Event::Reauthenticating { by });
            }
            Err(failure) => {
                self.try_again_later();
                self.fail(failure);
            }
        }
    }

    fn try_again_later(&mut self) {
        let at = self.env.now + RETRY;
        self.established().reauth_at = Some(at);
        self.commit();
    }

    /// The new IKE SA is complete.
    pub(super) fn retire(&mut self) {
        if self.established().successor.is_none() {
            return;
        }
        // It is told until it is gone.
        if !self.session.retired {
            self.session.retired = true;
            self.session.wanted.clear();
            self.session.wanted_after = Some(self.env.now + OVERLAP);
        }
        self.session.want(Command::Delete);
    }

    // ---- both ----

    /// Looks after a new authentication that is under way.
    pub(super) fn succeed(&mut self, step: Succeed) {
        self.session.look_at = self.env.now + LOOK;
        let old = self.record.succeeds.as_ref().map(|s| s.old);
        match (step, old) {
            (Succeed::Child(name), _) => {
                let connection = self.env.policy.connection(&self.record.connection);
                if connection.is_some_and(|c| c.child(&name).is_some()) {
                    return self.start_child(&name, None);
                }
                self.commit();
                self.cannot_take_over(&name);
            }
            (Succeed::Retire, Some(old)) => {
                let command = Command::Retire;
                self.effects.push(Effect::Tell { sa: old, command });
                self.ask(Question::Exists(old));
            }
            (Succeed::Retire, None) => {}
            (Succeed::Look, _) => {
                if let Some(by) = self.established().successor {
                    self.ask(Question::Exists(by));
                }
            }
        }
    }

    /// How the other IKE SA fares.
    pub(super) fn exists(&mut self, exists: bool) {
        let Phase::Established(est) = &mut self.record.phase else {
            return;
        };
        if exists {
            return;
        }
        if self.record.succeeds.take().is_some() {
            return self.commit();
        }
        if est.successor.take().is_some() && !self.session.retired {
            self.fail(Failure::NotReauthenticated);
            self.try_again_later();
        }
    }

    // ---- the new IKE SA ----

    /// The virtual addresses to ask for: those that we have, where the configuration wants any.
    pub(super) fn wished_addresses(&self, config: &Connection) -> Vec<IpAddr> {
        let had: &[IpAddr] = self.record.succeeds.as_ref().map_or(&[], |s| &s.addresses);
        let same = |wanted: &IpAddr| {
            let found = had.iter().find(|a| a.is_ipv4() == wanted.is_ipv4());
            found
                .filter(|_| wanted.is_unspecified())
                .copied()
                .unwrap_or(*wanted)
        };
        config.vips.iter().map(same).collect()
    }

    /// The peer does not let us have a Child SA that the old IKE SA has. Without any the new IKE SA is of no use, and the old one goes on.
    pub(super) fn cannot_take_over(&mut self, name: &str) {
        let Some(succession) = &mut self.record.succeeds else {
            return;
        };
        succession.children.retain(|child| child != name);
        if succession.children.is_empty() {
            self.record.succeeds = None;
            self.session.want(Command::Delete);
        }
    }

    // ---- how long an authentication is good for (RFC 4478) ----

    /// Tells who began the IKE SA that it has to authenticate again, if it has to.
    pub(super) fn authentication_lifetime(&mut self, c: &Connection) -> Option<Payload> {
        if c.reauth_time.is_zero() {
            return None;
        }
        let lifetime = randomised(c.reauth_time, c.rand_time, self.env.rng);
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        Some(notify(
            NotifyType::AUTH_LIFETIME,
            seconds.to_be_bytes().to_vec(),
        ))
    }

    /// Authenticating again is up to who began the IKE SA, and that is the peer: it is asked to do so immediately, which a lifetime of zero says (RFC 4478 §2,
    /// §3). How long it may take is up to whoever wants this; but a peer that is asked twice may authenticate twice, as strongSwan does.
    fn ask_to_reauthenticate(&mut self) {
        let lifetime = notify(NotifyType::AUTH_LIFETIME, vec![0; 4]);
        let task = Task::AskToReauthenticate;
        self.request(ExchangeType::INFORMATIONAL, &[lifetime], task);
        self.report(Event::AskedToReauthenticate);
        // It may be asked again after that.
        self.try_again_later();
    }

    /// Follows the peer where it wants us to authenticate again sooner than we would. A part of the time is left for doing it.
    pub(super) fn note_authentication_lifetime(&mut self, payloads: &[Payload]) {
        let Some(said) = find_notify(payloads, NotifyType::AUTH_LIFETIME) else {
            return;
        };
        let Ok(seconds) = <[u8; 4]>::try_from(&said.data[..]) else {
            return self.fail(Failure::Invalid("an AUTH_LIFETIME of another length"));
        };
        let lifetime = Duration::from_secs(u32::from_be_bytes(seconds).into());
        let policy = self.env.policy;
        let over = policy.connection(&self.record.connection);
        let margin = over.map_or(lifetime / 10, |c| c.over_time.min(lifetime / 10));
        let at = self.env.now + (lifetime - margin).max(SHORTEST);
        let est = self.established();
        if est.initiated && est.successor.is_none() {
            est.reauth_at = Some(est.reauth_at.map_or(at, |before| before.min(at)));
        }
    }
}
