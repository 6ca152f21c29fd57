//! How much was carried: counts that only grow, are reported from time to time, and outlast whoever counted.

use crate::{
    command::{Outcome, Refusal},
    state::State,
};
use evergate_ike::record::{GatewayId, Phase, Record, SaId};
use serde::{Deserialize, Serialize};

/// How much was carried: by a Child SA in whichever direction it is more, or by several in both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Bytes of inner packets.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
}

impl Carried {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            packets: self.packets.saturating_add(more.packets),
        }
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(before.bytes),
            packets: self.packets.saturating_sub(before.packets),
        }
    }

    fn raise(&mut self, more: Self) {
        self.bytes = self.bytes.max(more.bytes);
        self.packets = self.packets.max(more.packets);
    }
}

/// What all Child SAs have carried that an IKE SA has or had, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedTogether {
    /// Since both ends were authenticated.
    pub all: Carried,
    /// How much of it before the IKE SA got its present keys: a rekey goes on with what was counted before.
    pub before_rekey: Carried,
}

impl CarriedTogether {
    /// What an IKE SA goes on with that takes the place of this one by a rekey.
    #[must_use]
    pub fn rekeyed(self) -> Self {
        Self {
            before_rekey: self.all,
            ..self
        }
    }

    /// Since the IKE SA has its present keys.
    pub fn since_rekey(&self) -> Carried {
        self.all.since(self.before_rekey)
    }
}

impl State {
    pub(crate) fn note_carried(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        carried: &[(u32, Carried)],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        for &(spi, more) in carried {
            let reservation = self.body.reservations.get(&spi);
            if reservation.is_some_and(|r| r.gateway() == gateway) {
                self.body.carried.entry(spi).or_default().raise(more);
            }
        }
        Ok(Outcome::Applied)
    }

    pub(crate) fn note_carried_together(
        &mut self,
        gateway: GatewayId,
        epoch: u32,
        carried: &[(SaId, Carried)],
    ) -> Result<Outcome, Refusal> {
        self.check_epoch(gateway, epoch)?;
        for &(sa, more) in carried {
            // One that was replaced has handed on what it had.
            let there = |r: &Record| r.gateway == gateway && r.identities().is_some();
            if self.sa(sa).is_some_and(|r| there(r)) {
                let known = self.body.carried_together.entry(sa).or_default();
                known.all.raise(more);
            }
        }
        Ok(Outcome::Applied)
    }

    /// A record was written: by a rekey another IKE SA goes on with what was counted, and with the IKE SA that ends.
    pub(crate) fn hand_on_carried(&mut self, record: &Record) {
        let carried = &mut self.body.carried_together;
        if let Some(by) = record.replaced_by()
            && let Some(known) = carried.remove(&record.id)
            && self.body.sas.contains_key(&by)
        {
            carried.insert(by, known.rekeyed());
        }
        if matches!(record.phase, Phase::Closed(_)) {
            carried.remove(&record.id);
        }
    }
}
