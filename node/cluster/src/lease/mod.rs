//! Leases: the right of a process to use its virtual gateways' addresses, bounded in time.
//!
//! Nothing here is needed for "no IV twice", which rests on epochs and reservations alone. Leases keep two members from answering for
//! one address at the same time, as long as clock *rates* differ by less than [`Timing::drift_ppm`].
//!
//! - A process ([`Holder`]) asks the Raft leader for all gateways that its applied state says are its own. What is granted counts for
//!   [`Timing::grant`] from the moment the request was *sent*, by the clock of the holder: however long request and answer
//!   took, the lease is over when the leader, which counts from the receipt, thinks so.
//! - The leader ([`Grantor`]) grants only while its own lease from the quorum is valid ([`Timing::quorum_until`]), so that nothing is
//!   granted any more when another leader is elected. A lease may outlive its leader: a new one grants at once to whoever
//!   asks, and leaves silent owners alone for as long as a lease of its predecessor may run.
//! - Nor does a leader whose followers do not answer for a moment lose its own leases with its quorum lease: they last
//!   [`Timing::overlap`] longer, in which it is elected again, or another one is and renews them. So that is how long a new
//!   leader leaves the gateways of its predecessor alone, if it is certain that it had bounded its own leases so: see [`Holder::lead`]
//!   and [`Holder::former_leader`].
//!
//! Pure: clocks are arguments. Times are of a clock that goes on while the machine is suspended (`CLOCK_BOOTTIME`), and mean
//! nothing on another machine.

mod grantor;
mod holder;
#[cfg(test)]
mod tests;

pub use grantor::{Denied, Grantor};
pub use holder::Holder;

use evergate_ike::record::GatewayId;
use evergate_state::Owner;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A point in time on the boot-time clock of one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// The end of time: what a cluster of one has as the end of its quorum lease.
    pub const FOREVER: Self = Self(Duration::MAX);

    /// So much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// How long it is until then; zero if it is past.
    pub fn until(self, then: Self) -> Duration {
        then.0.saturating_sub(self.0)
    }
}

/// How long things take. All members must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// A grant lasts so long. After a kill nobody serves for about this long, so it is what the gap is made of; and it has to outlast an
    /// election, or the death of the leader would silence those who live.
    pub grant: Duration,
    /// A holder asks this often. Two lost messages in a row must not cost the lease.
    pub renew: Duration,
    /// Two clocks differ in rate by no more than so many millionths.
    pub drift_ppm: u32,
    /// Raft's longest election time-out, which is how long its followers refuse votes after they heard of a leader.
    pub election_timeout_max: Duration,
    /// What the leader's own quorum lease ends earlier, for what is neither counted nor bounded elsewhere.
    pub margin: Duration,
}

impl Default for Timing {
    /// 350 ms, renewed every 40 ms; clocks that differ by 1 %, which is a hundred times what crystals do, so that it also covers a clock
    /// that is being slewed.
    fn default() -> Self {
        Self {
            grant: Duration::from_millis(350),
            renew: Duration::from_millis(40),
            drift_ppm: 10_000,
            election_timeout_max: Duration::from_millis(100),
            margin: Duration::from_millis(10),
        }
    }
}

impl Timing {
    /// Of a cluster of one: what is granted lasts, since nobody else can have it. There is one process at a time, as the store lets a second one
    /// not in.
    pub const ALONE: Self = Self {
        grant: Duration::MAX,
        renew: Duration::from_secs(1),
        drift_ppm: 0,
        election_timeout_max: Duration::from_millis(100),
        margin: Duration::ZERO,
    };

    /// What to wait by the own clock, to be sure that another clock has counted `span`.
    pub fn surely(&self, span: Duration) -> Duration {
        span.saturating_add(self.drift(span))
    }

    /// Until when a leader may grant, if a quorum answered what it sent at `last_quorum_acked`: no follower votes for
    /// another before that. Of a cluster of one it is not asked: there it is [`BootTime::FOREVER`].
    pub fn quorum_until(&self, last_quorum_acked: BootTime) -> BootTime {
        let whole = self.election_timeout_max;
        let sure = whole.saturating_sub(self.drift(whole));
        last_quorum_acked.after(sure.saturating_sub(self.margin))
    }

    /// How much longer than its quorum lease a leader's own leases last, so that they outlast an election: its followers stand for
    /// election within another time-out, and the rest is for the votes and for its request to the new leader.
    pub fn overlap(&self) -> Duration {
        self.election_timeout_max * 2
    }

    /// When a leader's own leases end, if its quorum lease ends at `quorum_until`.
    pub(crate) fn own_until(&self, quorum_until: BootTime) -> BootTime {
        let overlap = self.overlap();
        quorum_until.after(overlap.saturating_sub(self.drift(overlap)))
    }

    /// A process that was not answered for longer than this is granted nothing until it hears that: what it does not hear of would keep its
    /// gateways from others.
    pub(crate) fn unheard(&self) -> Duration {
        self.grant / 2
    }

    /// The shortest grant that outlasts an election: the followers believe in the dead leader for one time-out, stand for election
    /// within another, and have the time of a third for the votes, the first entry, and the request to the new leader. The last
    /// request to the old one may have been a period ago.
    pub fn shortest_grant(&self) -> Duration {
        self.election_timeout_max * 3 + self.renew
    }

    /// What is wrong with the values, if anything.
    ///
    /// # Errors
    /// The sentence for the operator.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.renew.is_zero() || self.renew * 3 > self.grant {
            return Err("a lease must last for at least three renewals");
        }
        if self.drift_ppm > 200_000 {
            return Err("clocks that differ by more than a fifth cannot be used");
        }
        if self.election_timeout_max <= self.margin * 2 {
            return Err("the election time-out leaves a leader no time to grant anything");
        }
        if self.grant < self.shortest_grant() {
            return Err(
                "a lease must outlast an election, or the death of the leader stops all members: expected at least three times election_max and once renew",
            );
        }
        Ok(())
    }

    fn drift(&self, span: Duration) -> Duration {
        // Twice a millionth too much for the rounding.
        span.mul_f64(f64::from(self.drift_ppm + 2) / 1e6)
    }
}

/// What a process asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Grows with every request of the process; the answer repeats it.
    pub id: u64,
    /// Who asks.
    pub owner: Owner,
    /// The gateways that it believes to have, with their epochs. May be empty: then it only says that it lives.
    pub gateways: Vec<(GatewayId, u32)>,
    /// How long ago it sent the latest request that was answered.
    pub unheard: Duration,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The request's.
    pub id: u64,
    /// The Raft term in which it is granted, and the leader of it.
    pub term: u64,
    /// The leader.
    pub leader: Owner,
    /// The gateways that it may act for. Those that it asked for and did not get are somebody else's.
    pub gateways: Vec<(GatewayId, u32)>,
}
