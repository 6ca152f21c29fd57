//! What the data planes of members can do. A Child SA may come to any member, so only what all of them can is negotiated.

use crate::{
    command::{Outcome, Refusal},
    state::State,
};
use serde::{Deserialize, Serialize};

/// What not every data plane can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Ciphers whose IV is not on the wire (RFC 8750).
    pub implicit_iv: bool,
    /// Transport mode (RFC 4303 §3.1.1).
    pub transport_mode: bool,
    /// IKE and ESP in TCP (RFC 9329).
    pub tcp: bool,
}

impl Abilities {
    /// All of it: what is assumed of a member that has not said otherwise.
    pub const ALL: Self = Self {
        implicit_iv: true,
        transport_mode: true,
        tcp: true,
    };

    /// What both can do.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            implicit_iv: self.implicit_iv && other.implicit_iv,
            transport_mode: self.transport_mode && other.transport_mode,
            tcp: self.tcp && other.tcp,
        }
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
        let member = self.known(name)?;
        if member.incarnation != incarnation {
            return Err(Refusal::Superseded(name.to_owned()));
        }
        member.abilities = abilities;
        Ok(Outcome::Applied)
    }
}
