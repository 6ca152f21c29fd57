//! What the data planes of members can do. A Child SA may come to any member, so only what all of them can is negotiated.

use crate::{
    command::{Outcome, Refusal},
    state::State,
};
use serde::{Deserialize, Serialize};

/// What not every data plane can do, a bit for each. Bits that another version of the program gives a meaning are kept as they are, so that members
/// of both have equal states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities(u32);

impl Abilities {
    /// None of it.
    pub const NONE: Self = Self(0);
    /// Ciphers whose IV is not on the wire (RFC 8750).
    pub const IMPLICIT_IV: Self = Self(1 << 0);
    /// Transport mode (RFC 4303 §3.1.1).
    pub const TRANSPORT_MODE: Self = Self(1 << 1);
    /// IKE and ESP in TCP (RFC 9329).
    pub const TCP: Self = Self(1 << 2);
    /// Firewall marks of single Child SAs.
    pub const MARKS: Self = Self(1 << 3);
    /// Having network cards encrypt and decrypt.
    pub const OFFLOAD: Self = Self(1 << 4);
    /// All that there is a name for here.
    pub const KNOWN: Self = Self(
        Self::IMPLICIT_IV.0
            | Self::TRANSPORT_MODE.0
            | Self::TCP.0
            | Self::MARKS.0
            | Self::OFFLOAD.0,
    );
    /// What is assumed of a member that has not said otherwise.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether all of these are among them.
    pub fn has(self, these: Self) -> bool {
        self.0 & these.0 == these.0
    }

    /// What both can do.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// All but these.
    #[must_use]
    pub fn without(self, these: Self) -> Self {
        Self(self.0 & !these.0)
    }
}

impl FromIterator<Self> for Abilities {
    fn from_iter<I: IntoIterator<Item = Self>>(these: I) -> Self {
        Self(these.into_iter().fold(0, |all, one| all | one.0))
    }
}

impl State {
    /// What all members can do.
    pub fn abilities(&self) -> Abilities {
        let all = self.body.members.values().map(|m| m.abilities);
        all.fold(Abilities::ALL, Abilities::and)
    }

    pub(crate) fn describe(
        &mut self,
        name: &str,
        incarnation: u128,
        abilities: Abilities,
    ) -> Result<Outcome, Refusal> {
        self.current(name, incarnation)?.abilities = abilities;
        Ok(Outcome::Applied)
    }
}
