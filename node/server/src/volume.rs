//! Rekeys by volume: a Child SA that has carried so many bytes or packets is replaced, and one that has carried too many is deleted.
//!
//! What is counted is what the Child SA has carried, in whichever direction it is more, in this epoch and those before: it is reported from time to time, and whoever
//! takes over counts on from the last report. Reports are advisory, like those of what was received.

use crate::{shared::Shared, worker::Message};
use evergate_ike::{
    config::{ChildConfig, Policy, Volume},
    record::{Fate, SaId},
    sa::Command,
};
use evergate_state::{Carried, Command as Replicated, Outcome};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// So often it is looked.
const PERIOD: Duration = Duration::from_secs(1);

/// What was asked for and has not happened is asked for again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// A report is made when a Child SA has carried this part more of what it may: so many reports there are in its life.
const REPORTS: u64 = 64;

/// So many go into one report, which must fit into an entry of the log.
const AT_ONCE: usize = 16_384;

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
    let mut counts = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.passive.cancelled() => return,
            _ = period.tick() => look(&shared, &mut asked, &mut counts).await,
        }
    }
}

/// What was carried by Child SAs before this epoch, and what was reported last.
type Counts = HashMap<u32, (Carried, Carried)>;

async fn look(shared: &Shared, asked: &mut HashMap<u32, (Due, Instant)>, counts: &mut Counts) {
    let policy = shared.policy.load_full();
    if !is_limited(&policy) {
        counts.clear();
        return asked.clear();
    }
    let mut limited = all_limited(shared, &policy);
    let there: HashSet<u32> = limited.iter().map(|l| l.spi_in).collect();
    counts.retain(|spi, _| there.contains(spi));
    report(shared, reports(&mut limited, counts)).await;
    let now = Instant::now();
    asked.retain(|_, (_, at)| now.saturating_duration_since(*at) < AGAIN);
    for (sa, spi_in, due) in limited.iter().filter_map(Limited::due) {
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

/// A Child SA that may carry only so much.
#[derive(Clone, Copy, Debug)]
struct Limited {
    sa: SaId,
    spi_in: u32,
    bytes: Volume,
    packets: Volume,
    /// Before this epoch, as far as it was reported; and with it what this process has carried.
    before: Carried,
    carried: Carried,
}

impl Limited {
    fn due(&self) -> Option<(SaId, u32, Due)> {
        let by_bytes = of_volume(self.bytes, self.spi_in, self.carried.bytes);
        let by_packets = of_volume(self.packets, self.spi_in, self.carried.packets);
        Some((self.sa, self.spi_in, by_bytes.max(by_packets)?))
    }
}

/// All Child SAs of the gateway that may carry only so much.
fn all_limited(shared: &Shared, policy: &Policy) -> Vec<Limited> {
    let mut found = Vec::new();
    shared.read(|state| {
        for record in state.sas().filter(|r| r.gateway == shared.gateway) {
            let Some(connection) = policy.connection(&record.connection) else {
                continue;
            };
            let live = record.children().iter().filter(|c| c.fate == Fate::Live);
            found.extend(live.filter_map(|c| {
                let config = connection.child(&c.name)?;
                Some(Limited {
                    sa: record.id,
                    spi_in: c.spi_in,
                    bytes: config.bytes,
                    packets: config.packets,
                    before: state.carried(c.spi_in),
                    carried: Carried::default(),
                })
            }));
        }
    });
    found.retain_mut(|child| match shared.plane.stats(child.spi_in) {
        Some(stats) => {
            child.carried = Carried {
                bytes: stats.bytes_in.max(stats.bytes_out),
                packets: stats.packets_in.max(stats.packets_out),
            };
            true
        }
        None => false,
    });
    found
}

/// Adds what was carried before this epoch, and says of which Child SAs enough has come together for a report.
fn reports(limited: &mut [Limited], counts: &mut Counts) -> Vec<(u32, Carried)> {
    let mut due = Vec::new();
    for child in limited {
        // What is known the first time is of former epochs: this one has not reported yet.
        let (before, reported) = counts
            .entry(child.spi_in)
            .or_insert((child.before, child.before));
        child.carried.bytes = child.carried.bytes.saturating_add(before.bytes);
        child.carried.packets = child.carried.packets.saturating_add(before.packets);
        let grown = |volume: Volume, now: u64, then: u64| {
            let most = volume.rekey.max(volume.life);
            most != 0 && now.saturating_sub(then) > most / REPORTS
        };
        if grown(child.bytes, child.carried.bytes, reported.bytes)
            || grown(child.packets, child.carried.packets, reported.packets)
        {
            *reported = child.carried;
            due.push((child.spi_in, child.carried));
        }
    }
    due
}

async fn report(shared: &Shared, carried: Vec<(u32, Carried)>) {
    for some in carried.chunks(AT_ONCE) {
        let command = Replicated::ReportCarried {
            gateway: shared.gateway,
            epoch: shared.epoch,
            carried: some.to_vec(),
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
    fn a_successor_counts_on_from_the_last_report() {
        let volume = Volume {
            rekey: 6400,
            life: 0,
            rand: 0,
        };
        let child = |before: u64, here: u64| Limited {
            sa: SaId(1),
            spi_in: 7,
            bytes: volume,
            packets: Volume::default(),
            before: Carried {
                bytes: before,
                packets: 0,
            },
            carried: Carried {
                bytes: here,
                packets: 0,
            },
        };
        let mut counts = Counts::new();
        let mut look = |before, here| {
            let mut all = [child(before, here)];
            let said = reports(&mut all, &mut counts);
            (said.first().map(|(_, c)| c.bytes), all[0].due())
        };
        assert_eq!(look(6000, 50), (None, None));
        assert_eq!(look(6000, 150), (Some(6150), None));
        // The state has the report by now, but what was before stays what it was.
        assert_eq!(look(6150, 200), (None, None));
        assert_eq!(
            look(6150, 400),
            (Some(6400), Some((SaId(1), 7, Due::Rekey)))
        );
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
