//! Several rounds of authentication (RFC 4739).

use super::{Connection, LocalAuth, RemoteAuth};
use crate::identity::{IdPattern, Identity};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Rounds that either end of a connection may have. Two are what people use: a machine, then who sits at it.
pub const MAX_ROUNDS: usize = 4;

/// A further round in which we authenticate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalRound {
    /// What we call ourselves in it.
    pub id: Option<Identity>,
    /// How we authenticate.
    pub auth: LocalAuth,
}

/// A further round in which the peer authenticates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRound {
    /// What the peer may call itself in it.
    pub id: IdPattern,
    /// How it authenticates.
    pub auth: RemoteAuth,
}

impl Connection {
    /// How many rounds there are in which we authenticate, and in which the peer does.
    pub fn rounds(&self) -> (usize, usize) {
        let auth = &self.auth;
        (1 + auth.more_local.len(), 1 + auth.more_remote.len())
    }

    /// Whether either end authenticates more than once.
    pub fn has_rounds(&self) -> bool {
        self.rounds() != (1, 1)
    }

    /// How we authenticate in a round, counted from 0; in those after the last one as in that.
    pub fn local_auth(&self, round: usize) -> &LocalAuth {
        let more = &self.auth.more_local;
        last_of(more, round).map_or(&self.auth.local, |r| &r.auth)
    }

    /// How the peer authenticates in a round, counted likewise.
    pub fn remote_auth(&self, round: usize) -> &RemoteAuth {
        let more = &self.auth.more_remote;
        last_of(more, round).map_or(&self.auth.remote, |r| &r.auth)
    }

    /// How the peer authenticates in each of its rounds.
    pub fn remote_auths(&self) -> impl Iterator<Item = &RemoteAuth> {
        let more = self.auth.more_remote.iter().map(|r| &r.auth);
        std::iter::once(&self.auth.remote).chain(more)
    }

    /// What the peer may call itself in a round, counted likewise.
    pub fn remote_id_in(&self, round: usize) -> &IdPattern {
        let more = &self.auth.more_remote;
        last_of(more, round).map_or(&self.remote_id, |r| &r.id)
    }

    /// What we call ourselves in a round, counted likewise: as configured, or the subject of our first certificate, or our address. A
    /// distinguished name that means the subject is sent as it stands there (RFC 4945 §3.1.5).
    pub fn own_identity(&self, round: usize, local: IpAddr) -> Identity {
        let more = &self.auth.more_local;
        let id = last_of(more, round).map_or(&self.local_id, |r| &r.id);
        let subject = match self.local_auth(round) {
            LocalAuth::Pubkey { credentials, .. } => {
                let subject = credentials.first().map(|c| c.subject.clone());
                subject.filter(|s| s.len() > 2).map(Identity::Dn)
            }
            LocalAuth::Psk => None,
        };
        match (id, subject) {
            (Some(id), Some(subject)) if id.means(&subject) => subject,
            (Some(id), _) => id.clone(),
            (None, Some(subject)) => subject,
            (None, None) => Identity::Address(local),
        }
    }
}

/// What holds in a round, given what holds in those after the first; `None` for the first.
fn last_of<T>(more: &[T], round: usize) -> Option<&T> {
    let at = round.min(more.len()).checked_sub(1)?;
    more.get(at)
}
