//! What a Child SA carries, in whichever direction it is more: it is rekeyed after so much, or deleted.

use super::{AT_ONCE, Asked, Due, REPORTS, ask, margin, report};
use crate::shared::Shared;
use evergate_ike::{
    config::{ChildConfig, Policy, Volume},
    record::{Fate, SaId},
    sa::Command,
};
use evergate_state::{Carried, Command as Replicated};
use std::collections::{HashMap, HashSet};

/// Counts for all Child SAs of a gateway, and does what becomes due.
#[derive(Default)]
pub(super) struct Each {
    asked: Asked<u32>,
    counts: Counts,
}

/// What was carried by Child SAs before this epoch, and what was reported last.
type Counts = HashMap<u32, (Carried, Carried)>;

impl Each {
    pub(super) async fn look(&mut self, shared: &Shared, policy: &Policy) {
        if !is_limited(policy) {
            self.counts.clear();
            return;
        }
        let mut limited = all_limited(shared, policy);
        let there: HashSet<u32> = limited.iter().map(|l| l.spi_in).collect();
        self.counts.retain(|spi, _| there.contains(spi));
        for some in reports(&mut limited, &mut self.counts).chunks(AT_ONCE) {
            let command = Replicated::ReportCarried {
                gateway: shared.gateway,
                epoch: shared.epoch,
                carried: some.to_vec(),
            };
            if !report(shared, command).await {
                return;
            }
        }
        self.asked.forget();
        for (sa, spi_in, due) in limited.iter().filter_map(Limited::due) {
            let command = match due {
                Due::Delete => Command::DeleteChild(spi_in),
                _ => Command::RekeyChild(spi_in),
            };
            if self.asked.is_new(spi_in, due) {
                ask(shared, sa, command).await;
            }
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
        child.carried = child.carried.plus(*before);
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

/// What is due when `carried` went over a Child SA. The random part of its margin comes from its SPI, so that it is always the same.
fn of_volume(volume: Volume, spi_in: u32, carried: u64) -> Option<Due> {
    let margin = margin(volume.rand, spi_in);
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
