//! Whether most members answer, and since when they do not: said in the log, and to operators.

use super::Membership;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tracing::{error, info};

/// An election takes less. What lasts longer is said.
const LONGER: Duration = Duration::from_secs(1);

/// A leader that has not answered for so long may be none: it is asked all the time.
const HEARD: Duration = Duration::from_millis(500);

/// What is to be done about it.
pub(crate) const ADVICE: &str = "start the others, or join the network between them; if most of them are gone for good, see `evergate recover`";

/// Since when most members do not answer.
#[derive(Default)]
pub(crate) struct Quorum(Mutex<Lost>);

#[derive(Default)]
struct Lost {
    /// When the leader answered last.
    heard: Option<Instant>,
    since: Option<Instant>,
    said: bool,
}

impl Quorum {
    fn lock(&self) -> MutexGuard<'_, Lost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long most members have not answered, if that is longer than an election takes.
    pub(crate) fn lost_for(&self) -> Option<Duration> {
        let since = self.lock().since?.elapsed();
        (since > LONGER).then_some(since)
    }

    /// The leader has answered.
    pub(super) fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    /// Says what has changed. A member that follows a leader leaves it to that one to count.
    pub(super) fn look(&self, membership: &Membership) {
        let leads = membership.leads();
        let counted = leads && (membership.is_alone() || membership.has_majority());
        let mut lost = self.lock();
        let there = match leads {
            true => counted,
            false => lost.heard.is_some_and(|at| at.elapsed() < HEARD),
        };
        if !there {
            let since = lost.since.get_or_insert_with(Instant::now).elapsed();
            if since > LONGER && !lost.said {
                lost.said = true;
                error!(
                    event = "majority-lost",
                    "most members do not answer: nothing is committed, no lease is renewed, and nothing is served when leases are over; {ADVICE}"
                );
            }
            return;
        }
        if lost.said {
            info!(
                event = "majority-back",
                lost_ms = u64::try_from(lost.since.map_or(0, |s| s.elapsed().as_millis()))
                    .unwrap_or(u64::MAX),
                "most members answer again"
            );
        }
        (lost.since, lost.said) = (None, false);
    }
}
