//! Reports how far the packets of peers have come, so that a successor refuses what was received before it.
//!
//! Reports are advisory: they are coalesced, nobody waits for them, and what is received after the last one can be received
//! again after a takeover, if somebody recorded it.

use crate::shared::Shared;
use evergate_state::{Command, Outcome};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Reports are made this often: so long a recording can be of use to an attacker.
const PERIOD: Duration = Duration::from_millis(100);

/// So many go into one command, which must fit into an entry of the log.
const AT_ONCE: usize = 16_384;

/// Reports until the member stops.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported: HashMap<u32, u64> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return report(&shared, &mut reported).await,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => report(&shared, &mut reported).await,
        }
    }
}

/// Reports what has changed since the last time.
async fn report(shared: &Shared, reported: &mut HashMap<u32, u64>) {
    let all = shared.plane.replay_edges();
    let mut changed = changes(reported, &all);
    shared.read(|state| {
        changed.retain(|(spi, _)| {
            let owner = state.spi_owner(*spi).and_then(|sa| state.sa(sa));
            owner.is_some_and(|record| record.gateway == shared.gateway)
        });
    });
    for edges in changed.chunks(AT_ONCE) {
        let command = Command::ReportReceived {
            gateway: shared.gateway,
            epoch: shared.epoch,
            edges: edges.to_vec(),
        };
        match shared.propose(command).await {
            Ok(Outcome::Refused(refusal)) => {
                tracing::debug!(event = "refused", "a report was refused: {refusal}");
            }
            Ok(_) => {}
            Err(failed) => return shared.go_passive(&failed),
        }
    }
}

/// What differs from what was reported, which is now `all`.
fn changes(reported: &mut HashMap<u32, u64>, all: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let before = std::mem::replace(reported, all.iter().copied().collect());
    let differs = |(spi, edge): &&(u32, u64)| before.get(spi) != Some(edge);
    all.iter().filter(differs).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_reported() {
        let mut reported = HashMap::new();
        assert_eq!(changes(&mut reported, &[(1, 5), (2, 7)]), [(1, 5), (2, 7)]);
        assert_eq!(changes(&mut reported, &[(1, 5), (2, 8)]), [(2, 8)]);
        assert_eq!(changes(&mut reported, &[(2, 8)]), []);
        assert_eq!(reported.len(), 1, "what is gone is forgotten");
    }
}
