//! What the Child SAs of an IKE SA carry together, in both directions: the IKE SA is rekeyed after so much, authenticated again, or deleted.

use super::{AT_ONCE, Asked, Due, REPORTS, ask, margin, report};
use crate::shared::Shared;
use evergate_ike::{
    config::{Connection, IkeVolume, Policy},
    record::{Phase, Record, SaId},
    sa::Command,
};
use evergate_state::{Carried, CarriedTogether, Command as Replicated};
use std::collections::{HashMap, HashSet};

/// Counts for all IKE SAs of a gateway, and does what becomes due.
#[derive(Default)]
pub(super) struct Together {
    asked: Asked<SaId>,
    counts: Counts,
}

/// An IKE SA whose Child SAs may carry only so much together.
#[derive(Clone, Debug)]
struct Limited {
    sa: SaId,
    bytes: IkeVolume,
    packets: IkeVolume,
    /// Its Child SAs, by our inbound SPIs.
    children: Vec<u32>,
    /// As far as it was reported.
    reported: CarriedTogether,
    /// A new authentication is under way, or the peer was asked for it.
    is_ending: bool,
}

impl Together {
    pub(super) async fn look(&mut self, shared: &Shared, policy: &Policy) {
        if !policy.connections.iter().any(is_limited) {
            return;
        }
        let limited = all_limited(shared, policy);
        let carried = |spi| {
            let stats = shared.plane.stats(spi)?;
            Some(Carried {
                bytes: stats.bytes_in.saturating_add(stats.bytes_out),
                packets: stats.packets_in.saturating_add(stats.packets_out),
            })
        };
        for some in self.counts.count(&limited, carried).chunks(AT_ONCE) {
            let command = Replicated::ReportCarriedTogether {
                gateway: shared.gateway,
                epoch: shared.epoch,
                carried: some.to_vec(),
            };
            if !report(shared, command).await {
                return;
            }
        }
        self.asked.forget();
        for ike in &limited {
            let Some(due) = ike.due(self.counts.of(ike.sa)) else {
                continue;
            };
            let command = match due {
                Due::Rekey => Command::RekeyIke,
                Due::Reauthenticate => Command::Reauthenticate,
                Due::Delete => Command::Delete,
            };
            if self.asked.is_new(ike.sa, due) {
                ask(shared, ike.sa, command).await;
            }
        }
    }
}

fn is_limited(c: &Connection) -> bool {
    c.bytes != IkeVolume::default() || c.packets != IkeVolume::default()
}

/// All IKE SAs of the gateway whose Child SAs may carry only so much together.
fn all_limited(shared: &Shared, policy: &Policy) -> Vec<Limited> {
    let of = |record: &Record, reported: CarriedTogether, now| {
        let Phase::Established(e) = &record.phase else {
            return None;
        };
        let connection = policy.connection(&record.connection)?;
        (e.replaced_by.is_none() && is_limited(connection)).then(|| Limited {
            sa: record.id,
            bytes: connection.bytes,
            packets: connection.packets,
            children: e.children.iter().map(|c| c.spi_in).collect(),
            reported,
            is_ending: e.reauthenticates(now),
        })
    };
    let now = shared.clock.now();
    shared.read(|state| {
        let own = state.sas().filter(|r| r.gateway == shared.gateway);
        own.filter_map(|r| of(r, state.carried_together(r.id), now))
            .collect()
    })
}

impl Limited {
    fn due(&self, carried: CarriedTogether) -> Option<Due> {
        // The upper half of an SPI for IKE is random.
        let random = u32::try_from(self.sa.0 >> 32).unwrap_or(u32::MAX);
        let (all, present) = (carried.all, carried.since_rekey());
        let by_bytes = of_volume(self.bytes, random, all.bytes, present.bytes);
        let by_packets = of_volume(self.packets, random, all.packets, present.packets);
        let due = by_bytes.max(by_packets)?;
        (due == Due::Delete || !self.is_ending).then_some(due)
    }

    /// Whether enough has come together for a report.
    fn is_to_be_reported(&self, now: Carried, before: Carried) -> bool {
        let grown = |volume: IkeVolume, more: u64| {
            let limits = [volume.rekey, volume.reauth].into_iter();
            let least = limits.filter(|limit| *limit != 0).min();
            least.is_some_and(|least| more > least / REPORTS)
        };
        let more = now.since(before);
        grown(self.bytes, more.bytes) || grown(self.packets, more.packets)
    }
}

/// What is due when so much was carried since the authentication, and so much of it with the present keys.
fn of_volume(volume: IkeVolume, random: u32, all: u64, present: u64) -> Option<Due> {
    let reached = |limit: u64, carried: u64, due: Due| {
        let margin = margin(volume.rand.min(limit / 2), random);
        if limit == 0 || carried < limit - margin {
            None
        } else if carried >= limit.saturating_add(volume.over) {
            Some(Due::Delete)
        } else {
            Some(due)
        }
    };
    let rekey = reached(volume.rekey, present, Due::Rekey);
    rekey.max(reached(volume.reauth, all, Due::Reauthenticate))
}

/// What was counted so far.
#[derive(Default)]
struct Counts {
    /// What a Child SA had carried in this process when it was last looked at, and of which IKE SA it was.
    seen: HashMap<u32, (SaId, Carried)>,
    /// By IKE SA: how much, and how much of it was reported.
    tallies: HashMap<SaId, (CarriedTogether, Carried)>,
}

impl Counts {
    /// What an IKE SA is known to have carried.
    fn of(&self, sa: SaId) -> CarriedTogether {
        self.tallies.get(&sa).map(|t| t.0).unwrap_or_default()
    }

    /// Adds what was carried since the last time, and says what is to be reported.
    fn count(
        &mut self,
        limited: &[Limited],
        carried: impl Fn(u32) -> Option<Carried>,
    ) -> Vec<(SaId, Carried)> {
        let mut due = Vec::new();
        for ike in limited {
            let (mut tally, mut reported) = self.tally(ike);
            for &spi in &ike.children {
                let Some(now) = carried(spi) else {
                    continue;
                };
                let before = self.seen.insert(spi, (ike.sa, now));
                let before = before.map(|(_, carried)| carried).unwrap_or_default();
                tally.all = tally.all.plus(now.since(before));
            }
            if ike.is_to_be_reported(tally.all, reported) {
                reported = tally.all;
                due.push((ike.sa, reported));
            }
            self.tallies.insert(ike.sa, (tally, reported));
        }
        let sas: HashSet<SaId> = limited.iter().map(|l| l.sa).collect();
        self.tallies.retain(|sa, _| sas.contains(sa));
        let spis: HashSet<u32> = limited.iter().flat_map(|l| &l.children).copied().collect();
        self.seen.retain(|spi, _| spis.contains(spi));
        due
    }

    /// What is known of an IKE SA. One that is new here goes on with what the one had whose Child SAs it has; or, if it has none of those, with what was reported.
    fn tally(&mut self, ike: &Limited) -> (CarriedTogether, Carried) {
        if let Some(tally) = self.tallies.get(&ike.sa) {
            return *tally;
        }
        let mut former = ike.children.iter().filter_map(|spi| self.seen.get(spi));
        former
            .find_map(|(sa, _)| self.tallies.get(sa))
            .map(|(known, reported)| (known.rekeyed(), *reported))
            .unwrap_or((ike.reported, ike.reported.all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: IkeVolume = IkeVolume {
        rekey: 1000,
        reauth: 3000,
        over: 100,
        rand: 0,
    };

    fn bytes(bytes: u64) -> Carried {
        Carried { bytes, packets: 0 }
    }

    fn ike(sa: u64, children: &[u32], reported: CarriedTogether) -> Limited {
        Limited {
            sa: SaId(sa),
            bytes: VOLUME,
            packets: IkeVolume::default(),
            children: children.to_vec(),
            reported,
            is_ending: false,
        }
    }

    /// An IKE SA of which nothing was reported.
    fn new(sa: u64, children: &[u32]) -> Limited {
        ike(sa, children, CarriedTogether::default())
    }

    #[test]
    fn what_is_due_follows_from_both_counts() {
        let due = |all, present| of_volume(VOLUME, 7, all, present);
        assert_eq!(due(999, 999), None);
        assert_eq!(due(1000, 1000), Some(Due::Rekey));
        assert_eq!(due(2999, 999), None);
        assert_eq!(due(3000, 10), Some(Due::Reauthenticate));
        assert_eq!(due(3000, 1000), Some(Due::Reauthenticate));
        assert_eq!(due(1100, 1100), Some(Due::Delete), "it was not rekeyed");
        assert_eq!(due(3100, 0), Some(Due::Delete), "nor authenticated");
        assert_eq!(of_volume(IkeVolume::default(), 7, u64::MAX, u64::MAX), None);
    }

    #[test]
    fn margins_are_random_and_no_more_than_half() {
        let volume = IkeVolume {
            rand: 100,
            ..VOLUME
        };
        let wide = IkeVolume {
            rand: 900,
            ..VOLUME
        };
        assert_eq!(of_volume(volume, u32::MAX, 900, 900), Some(Due::Rekey));
        assert_eq!(of_volume(volume, 0, 999, 999), None);
        assert_eq!(of_volume(volume, u32::MAX / 2, 940, 940), None);
        assert_eq!(of_volume(wide, u32::MAX, 499, 499), None);
        assert_eq!(of_volume(wide, u32::MAX, 500, 500), Some(Due::Rekey));
    }

    #[test]
    fn children_count_together_and_also_those_that_are_gone() {
        let mut counts = Counts::default();
        counts.count(&[new(1, &[10, 11])], |spi| Some(bytes(spi.into())));
        assert_eq!(counts.of(SaId(1)).all, bytes(21));
        // One is rekeyed: the other goes on, and the new one begins at zero.
        counts.count(&[new(1, &[10, 12])], |spi| {
            Some(bytes(if spi == 10 { 15 } else { 4 }))
        });
        assert_eq!(counts.of(SaId(1)).all, bytes(21 + 5 + 4));
        // One of which the plane knows nothing adds nothing.
        counts.count(&[new(1, &[10])], |_| None);
        assert_eq!(counts.of(SaId(1)).all, bytes(30));
    }

    #[test]
    fn a_rekeyed_ike_sa_goes_on_with_its_count() {
        let mut counts = Counts::default();
        counts.count(&[new(1, &[10])], |_| Some(bytes(900)));
        counts.count(&[new(2, &[10])], |_| Some(bytes(1000)));
        let known = counts.of(SaId(2));
        assert_eq!(known.all, bytes(1000));
        assert_eq!(known.since_rekey(), bytes(100));
        assert_eq!(counts.of(SaId(1)), CarriedTogether::default());
    }

    #[test]
    fn a_new_authentication_begins_at_zero() {
        let mut counts = Counts::default();
        let carried = |spi| Some(bytes(if spi == 10 { 3000 } else { 5 }));
        counts.count(&[new(1, &[10])], carried);
        let both = [new(1, &[10]), new(2, &[11])];
        counts.count(&both, carried);
        assert_eq!(counts.of(SaId(2)).all, bytes(5));
        let of_old = counts.of(SaId(1));
        assert_eq!(both[0].due(of_old), Some(Due::Delete));
        let ending = Limited {
            is_ending: true,
            ..new(1, &[10])
        };
        let full = CarriedTogether {
            all: bytes(3000),
            before_rekey: bytes(2500),
        };
        assert_eq!(ending.due(full), None, "it is under way");
        assert_eq!(both[0].due(full), Some(Due::Reauthenticate));
    }

    #[test]
    fn a_successor_counts_on_from_the_last_report() {
        let mut counts = Counts::default();
        let reported = CarriedTogether {
            all: bytes(2500),
            before_rekey: bytes(2000),
        };
        let mut look = |known, now| {
            let said = counts.count(&[ike(1, &[10], known)], |_| Some(bytes(now)));
            (said, counts.of(SaId(1)))
        };
        let (said, known) = look(reported, 10);
        assert_eq!((said.len(), known.all), (0, bytes(2510)));
        let (said, known) = look(reported, 60);
        assert_eq!(said, [(SaId(1), bytes(2560))]);
        assert_eq!(known.since_rekey(), bytes(560));
        // The state has the report by now, but what was before stays what it was.
        let (said, known) = look(known, 61);
        assert_eq!((said.len(), known.all), (0, bytes(2561)));
    }
}
