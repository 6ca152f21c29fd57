//! Rekeys by volume: a Child SA that has carried so many bytes or packets is replaced, and one that has carried too many is deleted.
//!
//! What is counted is what this process carried, in whichever direction it is more. Whoever takes over counts from zero.

use crate::{shared::Shared, worker::Message};
use evergate_dataplane::ChildStats;
use evergate_ike::{
    config::{ChildConfig, Policy, Volume},
    record::{Fate, SaId},
    sa::Command,
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// So often it is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// What was asked for and has not happened is asked for again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// What has become due for a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Rekey,
    Delete,
}

/// Looks until the member stops.
pub(crate) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked: HashMap<u32, (Due, Instant)> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => look(&shared, &mut asked).await,
        }
    }
}

async fn look(shared: &Shared, asked: &mut HashMap<u32, (Due, Instant)>) {
    let policy = shared.policy.load_full();
    if !is_limited(&policy) {
        return asked.clear();
    }
    let now = Instant::now();
    asked.retain(|_, (_, at)| now.saturating_duration_since(*at) < AGAIN);
    for (sa, spi_in, due) in all_due(shared, &policy) {
        if asked.get(&spi_in).is_some_and(|(before, _)| *before >= due) {
            continue;
        }
        asked.insert(spi_in, (due, now));
        let command = match due {
            Due::Rekey => Command::RekeyChild(spi_in),
            Due::Delete => Command::DeleteChild(spi_in),
        };
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
}

/// Whether any Child SA may carry only so much.
fn is_limited(policy: &Policy) -> bool {
    let limited = |c: &ChildConfig| c.bytes != Volume::default() || c.packets != Volume::default();
    policy
        .connections
        .iter()
        .any(|c| c.children.iter().any(limited))
}

/// What is due, of all Child SAs that this process serves.
fn all_due(shared: &Shared, policy: &Policy) -> Vec<(SaId, u32, Due)> {
    let limited: Vec<(SaId, u32, Volume, Volume)> = shared.read(|state| {
        let mut found = Vec::new();
        for record in state.sas().filter(|r| r.gateway == shared.gateway) {
            let Some(connection) = policy.connection(&record.connection) else {
                continue;
            };
            let live = record.children().iter().filter(|c| c.fate == Fate::Live);
            found.extend(live.filter_map(|c| {
                let config = connection.child(&c.name)?;
                Some((record.id, c.spi_in, config.bytes, config.packets))
            }));
        }
        found
    });
    let is_due = |(sa, spi_in, bytes, packets): (SaId, u32, Volume, Volume)| {
        let stats = shared.plane.stats(spi_in)?;
        Some((sa, spi_in, due(spi_in, bytes, packets, &stats)?))
    };
    limited.into_iter().filter_map(is_due).collect()
}

fn due(spi_in: u32, bytes: Volume, packets: Volume, carried: &ChildStats) -> Option<Due> {
    let by_bytes = of_volume(bytes, spi_in, carried.bytes_in.max(carried.bytes_out));
    let by_packets = of_volume(packets, spi_in, carried.packets_in.max(carried.packets_out));
    by_bytes.max(by_packets)
}

/// What is due when `carried` went over a Child SA. The random part of its margin comes from its SPI, so that it is always the same.
fn of_volume(volume: Volume, spi_in: u32, carried: u64) -> Option<Due> {
    let margin = u128::from(volume.rand) * u128::from(spi_in) / u128::from(u32::MAX);
    let margin = u64::try_from(margin).unwrap_or(u64::MAX);
    if volume.life != 0 && carried >= volume.life {
        return Some(Due::Delete);
    }
    let reached = volume.rekey != 0 && carried >= volume.rekey.saturating_sub(margin);
    reached.then_some(Due::Rekey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_rekeyed_within_its_margin_and_deleted_at_its_end() {
        let volume = Volume {
            rekey: 1000,
            life: 1100,
            rand: 100,
        };
        let at = |spi, carried| of_volume(volume, spi, carried);
        assert_eq!(at(0, 999), None);
        assert_eq!(at(0, 1000), Some(Due::Rekey));
        assert_eq!(at(u32::MAX, 899), None);
        assert_eq!(at(u32::MAX, 900), Some(Due::Rekey));
        assert_eq!(at(1 << 31, 951), Some(Due::Rekey));
        assert_eq!(at(0, 1100), Some(Due::Delete));
        assert!(Due::Delete > Due::Rekey);
    }

    #[test]
    fn zero_is_no_limit() {
        assert_eq!(of_volume(Volume::default(), 7, u64::MAX), None);
        let only_life = Volume {
            life: 10,
            ..Volume::default()
        };
        assert_eq!(of_volume(only_life, 7, 9), None);
        assert_eq!(of_volume(only_life, 7, 10), Some(Due::Delete));
    }
}
