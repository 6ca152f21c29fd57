//! Which version of the replicated format is written.
//!
//! Members of two versions of the program run side by side while a cluster is upgraded, and all of them apply the same log. So each process says
//! up to which level it understands the format ([`Command::AnnounceLevel`](crate::Command::AnnounceLevel)); once all members understand a level, apply itself goes over to it, at
//! the same entry on all of them. Until then nothing of the level is proposed, and snapshots are written without it. There is no way back: a program that does not
//! know the level of a cluster cannot read its log, and says so.
//!
//! # How to change the format
//!
//! A new level is a new number in [`Level::LATEST`], and whatever is new belongs to it:
//! - a command is a new variant at the end of [`Command`](crate::Command), and [`Command::level`](crate::Command::level) says from which level on there is it;
//! - a field of the state goes into the struct of that level (as `Second` for level 2), which follows in the snapshot what earlier levels have;
//! - a field of the policy has `#[serde(default, skip_serializing_if = …)]`, because the policy names its fields (see the module `document`), and
//!   [`Command::level`](crate::Command::level) of [`SetPolicy`](crate::Command::SetPolicy) says which level a policy needs that uses it;
//! - what changes otherwise needs the old form beside the new one, and writing of both.
//!
//! `node/state/src/tests/formats` has snapshots and entries of each level, as they were written then.

use crate::{
    command::{Command, Outcome, Refusal},
    state::State,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A version of the replicated format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Level(pub u16);

impl Level {
    /// The first one, and the oldest that can be read.
    pub const FIRST: Self = Self(1);
    /// The latest that this program understands.
    pub const LATEST: Self = Self(3);
    /// Members come and go: the first one with enrolments, and with places of members.
    pub(crate) const MEMBERS: Self = Self(3);
}

impl Default for Level {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {}", self.0)
    }
}

impl Command {
    /// The level of the format from which on there is this command.
    pub fn level(&self) -> Level {
        match self {
            Self::AnnounceKeys { .. } => Level(2),
            Self::SetPolicy { policy, .. } if policy.asks_the_kernel() => Level(2),
            Self::Invite { .. }
            | Self::Admit { .. }
            | Self::Enrol { .. }
            | Self::EndEnrolment { .. }
            | Self::Dismiss { .. }
            | Self::PlaceMember { .. } => Level::MEMBERS,
            _ => Level::FIRST,
        }
    }
}

impl State {
    /// The level in which the state is written.
    pub fn level(&self) -> Level {
        self.body.level
    }

    pub(crate) fn announce_level(
        &mut self,
        name: &str,
        incarnation: u128,
        level: Level,
    ) -> Result<Outcome, Refusal> {
        self.current(name, incarnation)?.level = level;
        self.raise_level();
        Ok(Outcome::Applied)
    }

    /// Goes over to what all members understand.
    pub(crate) fn raise_level(&mut self) {
        let all = self.body.members.values().map(|m| m.level).min();
        self.body.level = self.body.level.max(all.unwrap_or_default());
    }
}
