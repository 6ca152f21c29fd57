//! Which outbound sequence numbers of a Child SA an epoch may use.
//!
//! Numbers only ever come from the end of what was reserved before, whoever reserved it, so that the ranges of different epochs
//! cannot meet, whatever of them was used. No clock and no lease is part of the argument.

use crate::limits::MAX_EXTENSION;
use evergate_ike::record::GatewayId;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The first sequence number of an SA (RFC 4303 §2.2).
const FIRST: u64 = 1;

/// What a takeover opens, and what a new Child SA starts with.
const INITIAL: u64 = 1 << 16;

/// The same with extended sequence numbers, whose space is wide enough to be generous.
const INITIAL_ESN: u64 = 1 << 20;

/// The outbound sequence numbers of one Child SA that the current epoch of its gateway may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    gateway: GatewayId,
    epoch: u32,
    esn: bool,
    range: Range<u64>,
}

impl Reservation {
    /// That of a new Child SA.
    pub(crate) fn new(gateway: GatewayId, epoch: u32, esn: bool) -> Self {
        let mut new = Self {
            gateway,
            epoch,
            esn,
            range: FIRST..FIRST,
        };
        new.grow(new.initial());
        new
    }

    /// The gateway of the Child SA.
    pub fn gateway(&self) -> GatewayId {
        self.gateway
    }

    /// The epoch that may use the range.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Whether the Child SA has extended sequence numbers.
    pub fn esn(&self) -> bool {
        self.esn
    }

    /// The numbers. Empty when the space of the SA is used up. Nothing at or above its end was ever reserved.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// A new epoch: the numbers after all that were ever reserved.
    pub(crate) fn take(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.range = self.range.end..self.range.end;
        self.grow(self.initial());
    }

    /// More numbers for the same epoch, right after those that it has. Returns what was added.
    pub(crate) fn grow(&mut self, count: u64) -> Range<u64> {
        let from = self.range.end;
        self.range.end = from
            .saturating_add(count.min(MAX_EXTENSION))
            .min(self.limit());
        from..self.range.end
    }

    fn initial(&self) -> u64 {
        if self.esn { INITIAL_ESN } else { INITIAL }
    }

    /// The end of the space: a sequence number must not cycle (RFC 4303 §3.3.3).
    fn limit(&self) -> u64 {
        if self.esn { u64::MAX } else { 1 << 32 }
    }
}
