//! One direction of a Child SA: what its states have carried, one after the other.

use super::states::Told;

/// A state of a Child SA in the kernel, and those that it had before.
#[derive(Default)]
pub(super) struct Half {
    pub(super) is_there: bool,
    /// What states before this one have carried.
    pub(super) packets: u64,
    bytes: u64,
    replayed: u64,
    forged: u64,
}

impl Half {
    /// The state is gone; what it told at its end, if that is known.
    pub(super) fn ended(&mut self, told: Option<&Told>) {
        self.is_there = false;
        if let Some(told) = told {
            self.packets += told.packets;
            self.bytes += told.bytes;
            self.replayed += told.replayed;
            self.forged += told.forged;
        }
    }

    /// With what the state that is there has carried.
    pub(super) fn carried(&self, told: Option<&Told>) -> Carried {
        let none = Told::default();
        let told = told.unwrap_or(&none);
        Carried {
            packets: self.packets + told.packets,
            bytes: self.bytes + told.bytes,
            replayed: self.replayed + told.replayed,
            forged: self.forged + told.forged,
        }
    }
}

/// What the states of a direction have carried, one after the other.
pub(super) struct Carried {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) replayed: u64,
    pub(super) forged: u64,
}
