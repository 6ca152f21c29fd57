//! What came out, for programs and for people.

use super::{checker::Findings, traffic::Totals};
use serde::Serialize;
use std::time::Duration;

/// The result of a demo. Times are milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether everything held.
    pub(super) ok: bool,
    /// What did not, a sentence each.
    pub(super) failures: Vec<String>,
    pub(super) members: usize,
    pub(super) peers: usize,
    /// Kills of the active member after which traffic flowed again.
    pub(super) kills: usize,
    /// The longest time without a packet in some direction, for each kill.
    pub(super) gaps_ms: Vec<f64>,
    pub(super) gap_ms_max: f64,
    pub(super) gap_ms_median: f64,
    /// From the start of a new process until packets sent after it had arrived in every direction.
    pub(super) restart_to_first_packet_ms_max: f64,
    pub(super) restart_to_first_packet_ms_median: f64,
    pub(super) packets_sent: u64,
    pub(super) packets_lost: u64,
    pub(super) packets_duplicated: u64,
    /// Packets with other contents than were sent.
    pub(super) packets_damaged: u64,
    /// IKE SAs and Child SAs of the members, before the first kill and at the end.
    pub(super) sas_before: usize,
    pub(super) sas_after: usize,
    /// Their SPIs, a line for each IKE SA.
    pub(super) spis_before: Vec<String>,
    pub(super) spis_after: Vec<String>,
    /// Whether members and peers have the SAs that they had, and each the same as the other.
    pub(super) same_spis: bool,
    /// IKE SAs that were begun anew, by what was on the wire and by what members and peers say.
    pub(super) reauthentications: u64,
    /// Different ciphertexts under one key and IV.
    pub(super) iv_reuse: u64,
    /// Frames with inner addresses or contents.
    pub(super) in_clear: u64,
    /// Frames of which nothing can be said.
    pub(super) unexplained: u64,
    pub(super) frames_checked: u64,
    /// Frames that the machine was too busy to check.
    pub(super) frames_missed: u32,
    /// Protected packets among them.
    pub(super) esp_checked: u64,
    pub(super) ike_checked: u64,
    /// How long it took.
    pub(super) seconds: f64,
}

/// How a kill went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    /// The longest time without a packet in some direction.
    pub(super) gap: Duration,
    /// From the start of the new process.
    pub(super) restart_to_first_packet: Duration,
}

/// The SAs before or after, as descriptions, and how many they are.
pub(super) struct Sas {
    pub(super) count: usize,
    pub(super) spis: Vec<String>,
}

/// What a report is made of.
pub(super) struct Facts {
    pub(super) members: usize,
    pub(super) peers: usize,
    /// Those after which traffic flowed again.
    pub(super) kills: Vec<Kill>,
    /// Why it ended too early.
    pub(super) trouble: Option<String>,
    pub(super) totals: Totals,
    pub(super) before: Sas,
    pub(super) after: Sas,
    pub(super) same_spis: bool,
    pub(super) reauthentications: u64,
    pub(super) wire: Findings,
    pub(super) frames_missed: u32,
    pub(super) took: Duration,
}

impl Report {
    /// Judges the facts.
    pub(super) fn new(facts: Facts) -> Self {
        let gaps: Vec<f64> = facts.kills.iter().map(|k| ms(k.gap)).collect();
        let restarts: Vec<f64> = facts
            .kills
            .iter()
            .map(|k| ms(k.restart_to_first_packet))
            .collect();
        let failures = failures(&facts);
        let Facts {
            totals,
            wire,
            before,
            after,
            ..
        } = facts;
        Self {
            ok: failures.is_empty(),
            failures,
            members: facts.members,
            peers: facts.peers,
            kills: facts.kills.len(),
            gap_ms_max: max(&gaps),
            gap_ms_median: median(&gaps),
            gaps_ms: gaps,
            restart_to_first_packet_ms_max: max(&restarts),
            restart_to_first_packet_ms_median: median(&restarts),
            packets_sent: totals.sent,
            packets_lost: totals.lost,
            packets_duplicated: totals.duplicated,
            packets_damaged: totals.damaged,
            sas_before: before.count,
            sas_after: after.count,
            spis_before: before.spis,
            spis_after: after.spis,
            same_spis: facts.same_spis,
            reauthentications: facts.reauthentications,
            iv_reuse: wire.iv_reuse,
            in_clear: wire.in_clear,
            unexplained: wire.unexplained,
            frames_checked: wire.frames,
            frames_missed: facts.frames_missed,
            esp_checked: wire.esp,
            ike_checked: wire.ike,
            seconds: (facts.took.as_secs_f64() * 10.0).round() / 10.0,
        }
    }

    /// A short text.
    pub(super) fn text(&self) -> String {
        let verdict = match self.failures.as_slice() {
            [] => "Everything held.".to_owned(),
            failures => format!("This did not hold:\n  {}", failures.join("\n  ")),
        };
        format!(
            "\n{kills} kill{}, {members} member{}, {peers} peer{}, {seconds} s\n\
             \x20 gap                      {gap_ms_median} ms median, {gap_ms_max} ms longest\n\
             \x20 restart to first packet  {restart_to_first_packet_ms_median} ms median, {restart_to_first_packet_ms_max} ms longest\n\
             \x20 packets                  {packets_sent} sent, {packets_lost} lost, {packets_duplicated} duplicated\n\
             \x20 security associations    {sas_before} before, {sas_after} after, {same}, {reauthentications} reauthentications\n\
             \x20 on the wire              {frames_checked} frames: {iv_reuse} IVs used twice, {in_clear} frames in the clear\n\
             {verdict}\n",
            plural(self.kills),
            plural(self.members),
            plural(self.peers),
            kills = self.kills,
            members = self.members,
            peers = self.peers,
            seconds = self.seconds,
            gap_ms_median = self.gap_ms_median,
            gap_ms_max = self.gap_ms_max,
            restart_to_first_packet_ms_median = self.restart_to_first_packet_ms_median,
            restart_to_first_packet_ms_max = self.restart_to_first_packet_ms_max,
            packets_sent = self.packets_sent,
            packets_lost = self.packets_lost,
            packets_duplicated = self.packets_duplicated,
            sas_before = self.sas_before,
            sas_after = self.sas_after,
            same = if self.same_spis {
                "the same SPIs"
            } else {
                "not the same SPIs"
            },
            reauthentications = self.reauthentications,
            frames_checked = self.frames_checked,
            iv_reuse = self.iv_reuse,
            in_clear = self.in_clear,
        )
    }
}

fn failures(facts: &Facts) -> Vec<String> {
    let wire = &facts.wire;
    let none = |count: u64, what: &str| (count != 0).then(|| format!("{count} {what}"));
    let checks = [
        facts.trouble.clone(),
        (!facts.same_spis).then(|| "the SAs are not those from before".to_owned()),
        (facts.before.count == 0).then(|| "there were no SAs".to_owned()),
        none(facts.reauthentications, "new authentications"),
        none(
            wire.iv_reuse,
            "different ciphertexts under a key and IV that was used before",
        ),
        none(wire.in_clear, "frames show what is inside"),
        none(wire.unexplained, "frames that are neither IKE nor ESP"),
        none(
            facts.frames_missed.into(),
            "frames were not checked: the machine is too busy",
        ),
        none(facts.totals.duplicated, "packets arrived twice"),
        none(facts.totals.damaged, "packets arrived damaged"),
        // A check of nothing proves nothing: whatever arrived was seen.
        (facts.frames_missed == 0
            && wire.esp < facts.totals.sent - facts.totals.lost.min(facts.totals.sent))
        .then(|| "the capture saw fewer protected packets than arrived".to_owned()),
        (facts.totals.sent == facts.totals.lost).then(|| "no packet arrived".to_owned()),
    ];
    checks.into_iter().flatten().collect()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Milliseconds, to a tenth.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// The one in the middle, or the mean of both in the middle; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => ((sorted[middle - 1] + sorted[middle]) * 5.0).round() / 10.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let kill = |gap, restart_to_first_packet| Kill {
            gap: Duration::from_micros(gap),
            restart_to_first_packet: Duration::from_micros(restart_to_first_packet),
        };
        let sas = || Sas {
            count: 2,
            spis: vec!["ike 1/2 child 3/4".to_owned()],
        };
        Facts {
            members: 1,
            peers: 1,
            trouble: None,
            kills: vec![kill(200_040, 150_000), kill(100_000, 90_000)],
            totals: Totals {
                sent: 100,
                lost: 10,
                ..Totals::default()
            },
            before: sas(),
            after: sas(),
            same_spis: true,
            reauthentications: 0,
            wire: Findings {
                frames: 200,
                esp: 95,
                ..Findings::default()
            },
            frames_missed: 0,
            took: Duration::from_secs(3),
        }
    }

    #[test]
    fn what_held_is_said_in_the_names_that_programs_know() {
        let report = Report::new(good());
        assert!(report.ok, "{:?}", report.failures);
        let json = serde_json::to_value(&report).unwrap();
        for (name, value) in [
            ("members", 1.0),
            ("peers", 1.0),
            ("kills", 2.0),
            ("gap_ms_max", 200.0),
            ("gap_ms_median", 150.0),
            ("restart_to_first_packet_ms_max", 150.0),
            ("restart_to_first_packet_ms_median", 120.0),
            ("packets_sent", 100.0),
            ("packets_lost", 10.0),
            ("packets_duplicated", 0.0),
            ("sas_before", 2.0),
            ("sas_after", 2.0),
            ("reauthentications", 0.0),
            ("iv_reuse", 0.0),
            ("frames_checked", 200.0),
        ] {
            assert_eq!(json[name].as_f64(), Some(value), "{name}");
        }
        assert_eq!(json["same_spis"], true);
        assert!(report.text().ends_with("Everything held.\n"));
    }

    #[test]
    fn each_thing_that_did_not_hold_is_a_failure() {
        type Spoil = fn(&mut Facts);
        let spoils: [Spoil; 11] = [
            |f| f.trouble = Some("no traffic".to_owned()),
            |f| f.same_spis = false,
            |f| f.before.count = 0,
            |f| f.reauthentications = 1,
            |f| f.wire.iv_reuse = 1,
            |f| f.wire.in_clear = 1,
            |f| f.wire.unexplained = 1,
            |f| f.totals.duplicated = 1,
            |f| f.totals.damaged = 1,
            |f| f.wire.esp = 89,
            |f| f.frames_missed = 1,
        ];
        for (index, spoil) in spoils.into_iter().enumerate() {
            let mut facts = good();
            spoil(&mut facts);
            let report = Report::new(facts);
            assert!(
                !report.ok && report.failures.len() == 1,
                "{index}: {:?}",
                report.failures
            );
            assert!(report.text().contains(&report.failures[0]));
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }
}
