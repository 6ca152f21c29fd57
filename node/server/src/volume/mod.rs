//! What may carry only so much: a Child SA that has carried so many bytes or packets is replaced, and the IKE SA of those that have carried so many together is
//! rekeyed or authenticated again. What has carried too many is deleted.
//!
//! What is counted is what was carried in this epoch and those before: it is reported from time to time, and whoever takes over counts on from the last
//! report. Reports are advisory, like those of what was received.

mod child;
mod together;

use crate::{shared::Shared, worker::Message};
use evergate_ike::{record::SaId, sa::Command};
use evergate_state::{Command as Replicated, Outcome};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// So often it is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// What was asked for and has not happened is asked for again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// A report is made when this part more of what is allowed was carried: so many reports there are in the life of an SA.
const REPORTS: u64 = 64;

/// So many go into one report, which must fit into an entry of the log.
const AT_ONCE: usize = 16_384;

/// What has become due for an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Rekey,
    Reauthenticate,
    Delete,
}

/// Looks until the member stops.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut each = child::Each::default();
    let mut together = together::Together::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => {
                let policy = shared.policy.load_full();
                each.look(&shared, &policy).await;
                together.look(&shared, &policy).await;
            }
        }
    }
}

/// What was asked for a short while ago.
#[derive(Debug)]
struct Asked<Id>(HashMap<Id, (Due, Instant)>);

impl<Id> Default for Asked<Id> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Id: Eq + Hash> Asked<Id> {
    /// What was asked for long ago may be asked for again.
    fn forget(&mut self) {
        let now = Instant::now();
        self.0
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < AGAIN);
    }

    /// Whether it was not asked for yet, nor anything that matters more; from now on it was.
    fn is_new(&mut self, id: Id, due: Due) -> bool {
        if self.0.get(&id).is_some_and(|(before, _)| *before >= due) {
            return false;
        }
        self.0.insert(id, (due, Instant::now()));
        true
    }
}

async fn ask(shared: &Shared, sa: SaId, command: Command) {
    let message = Message::Command {
        sa,
        command,
        watcher: None,
        reply: None,
    };
    if let Some(worker) = shared.worker(sa) {
        let _ = worker.send(message).await;
    }
}

/// Reports what was carried; false if that came to nothing and the member is passive now.
async fn report(shared: &Shared, command: Replicated) -> bool {
    match shared.propose(command).await {
        Ok(Outcome::Refused(refusal)) => {
            tracing::debug!(event = "refused", "a report was refused: {refusal}");
            true
        }
        Ok(_) => true,
        Err(failed) => {
            shared.go_passive(&failed);
            false
        }
    }
}

/// A part of `spread`, at random, but always the same for the same number.
fn margin(spread: u64, random: u32) -> u64 {
    let margin = u128::from(spread) * u128::from(random) / u128::from(u32::MAX);
    u64::try_from(margin).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_more_is_asked_for_at_once() {
        let mut asked = Asked::default();
        assert!(asked.is_new(1, Due::Rekey));
        assert!(!asked.is_new(1, Due::Rekey));
        assert!(asked.is_new(1, Due::Delete));
        assert!(!asked.is_new(1, Due::Reauthenticate));
        assert!(asked.is_new(2, Due::Rekey));
        asked.forget();
        assert!(!asked.is_new(2, Due::Rekey));
    }

    #[test]
    fn margins_are_within_their_spread() {
        assert_eq!(margin(100, 0), 0);
        assert_eq!(margin(100, u32::MAX), 100);
        assert_eq!(margin(u64::MAX, u32::MAX), u64::MAX);
    }
}
