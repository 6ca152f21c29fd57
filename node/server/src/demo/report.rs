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
    /// The program that the peers are, with its version.
    pub(super) peer: String,
    /// Kills of the active member after which traffic flowed again.
    pub(super) kills: usize,
    /// The longest time without a packet in some direction, for each kill.
    pub(super) gaps_ms: Vec<f64>,
    pub(super) gap_ms_max: f64,
    pub(super) gap_ms_median: f64,
    /// The longest gap that was allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gap_ms_limit: Option<f64>,
    /// Who was killed and who took over, for each kill; with several members only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) takeovers: Vec<Takeover>,
    /// From the start of a new process until packets sent after it had arrived in every direction; with a single member only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restart_to_first_packet_ms_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restart_to_first_packet_ms_median: Option<f64>,
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
    /// Child SAs that were rekeyed by request of either side when all of the above had been noted: the IKE SAs go on, too.
    pub(super) rekeyed_after: u64,
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

/// Another member went on.
#[derive(Debug, Serialize)]
pub(super) struct Takeover {
    /// Who was killed.
    pub(super) killed: String,
    /// Whether it was the leader of the cluster, too.
    pub(super) leader: bool,
    /// Who took over.
    pub(super) successor: String,
    /// The new epoch.
    pub(super) epoch: u32,
    /// The longest time without a packet in some direction, until the next kill.
    pub(super) gap_ms: f64,
    /// From the new start of the killed member until it was part of the cluster again.
    pub(super) rejoin_ms: f64,
}

/// How a kill went.
#[derive(Clone, Debug)]
pub(super) struct Kill {
    /// When, in the time of the traffic.
    pub(super) at: u64,
    /// Who was killed.
    pub(super) member: String,
    /// The longest time without a packet in some direction, until the next kill.
    pub(super) gap: Duration,
    /// How it went on.
    pub(super) restart: Restart,
}

/// How it went on after a kill.
#[derive(Clone, Debug)]
pub(super) enum Restart {
    /// The member is alone.
    Alone {
        /// From the start of the new process until packets sent after it had arrived.
        first_packet: Duration,
    },
    /// Another took over.
    Cluster {
        /// Whether the killed one was the leader.
        led: bool,
        /// Who.
        successor: String,
        /// In which epoch.
        epoch: u32,
        /// How long the killed one needed to come back.
        rejoined: Duration,
    },
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
    /// The program that they are, with its version.
    pub(super) peer: String,
    /// Those after which traffic flowed again.
    pub(super) kills: Vec<Kill>,
    /// The longest gap that is allowed.
    pub(super) gap_limit: Option<Duration>,
    /// Why it ended too early.
    pub(super) trouble: Option<String>,
    pub(super) totals: Totals,
    pub(super) before: Sas,
    pub(super) after: Sas,
    pub(super) same_spis: bool,
    pub(super) reauthentications: u64,
    /// Child SAs that could be rekeyed afterwards, by either side.
    pub(super) rekeyed: u64,
    pub(super) wire: Findings,
    pub(super) frames_missed: u32,
    pub(super) took: Duration,
}

impl Report {
    /// Judges the facts.
    pub(super) fn new(facts: Facts) -> Self {
        let gaps: Vec<f64> = facts.kills.iter().map(|k| ms(k.gap)).collect();
        let (takeovers, restarts) = split(&facts.kills);
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
            peer: facts.peer,
            kills: facts.kills.len(),
            gap_ms_max: max(&gaps),
            gap_ms_median: median(&gaps),
            gaps_ms: gaps,
            gap_ms_limit: facts.gap_limit.map(ms),
            takeovers,
            restart_to_first_packet_ms_max: (!restarts.is_empty()).then(|| max(&restarts)),
            restart_to_first_packet_ms_median: (!restarts.is_empty()).then(|| median(&restarts)),
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
            rekeyed_after: facts.rekeyed,
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
            "\n{kills} kill{}, {members} member{}, {peers} peer{} ({peer}), {seconds} s\n\
             \x20 gap                      {gap_ms_median} ms median, {gap_ms_max} ms longest\n\
             {restarts}\
             \x20 packets                  {packets_sent} sent, {packets_lost} lost, {packets_duplicated} duplicated\n\
             \x20 security associations    {sas_before} before, {sas_after} after, {same}, {reauthentications} reauthentications\n\
             \x20 afterwards               {rekeyed_after} rekeyed, by both sides\n\
             \x20 on the wire              {frames_checked} frames: {iv_reuse} IVs used twice, {in_clear} frames in the clear\n\
             {verdict}\n",
            plural(self.kills),
            plural(self.members),
            plural(self.peers),
            kills = self.kills,
            members = self.members,
            peers = self.peers,
            peer = self.peer,
            seconds = self.seconds,
            gap_ms_median = self.gap_ms_median,
            gap_ms_max = self.gap_ms_max,
            restarts = self.restarts(),
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
            rekeyed_after = self.rekeyed_after,
            frames_checked = self.frames_checked,
            iv_reuse = self.iv_reuse,
            in_clear = self.in_clear,
        )
    }
}

/// Takeovers, or the times of restarts.
fn split(kills: &[Kill]) -> (Vec<Takeover>, Vec<f64>) {
    let (mut takeovers, mut restarts) = (Vec::new(), Vec::new());
    for kill in kills {
        match &kill.restart {
            Restart::Alone { first_packet } => restarts.push(ms(*first_packet)),
            Restart::Cluster {
                led,
                successor,
                epoch,
                rejoined,
            } => takeovers.push(Takeover {
                killed: kill.member.clone(),
                leader: *led,
                successor: successor.clone(),
                epoch: *epoch,
                gap_ms: ms(kill.gap),
                rejoin_ms: ms(*rejoined),
            }),
        }
    }
    (takeovers, restarts)
}

fn failures(facts: &Facts) -> Vec<String> {
    let wire = &facts.wire;
    let none = |count: u64, what: &str| (count != 0).then(|| format!("{count} {what}"));
    let gap = facts.kills.iter().map(|k| k.gap).max().unwrap_or_default();
    let too_long = facts.gap_limit.filter(|limit| gap >= *limit);
    let checks = [
        facts.trouble.clone(),
        too_long.map(|limit| {
            let (gap, limit) = (gap.as_millis(), limit.as_millis());
            format!("a gap of {gap} ms, and less than {limit} ms is expected")
        }),
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
        (facts.trouble.is_none() && facts.rekeyed < 2 * facts.peers as u64)
            .then(|| "not all Child SAs could be rekeyed by both sides".to_owned()),
        // A check of nothing proves nothing: whatever arrived was seen.
        (facts.frames_missed == 0
            && wire.esp < facts.totals.sent - facts.totals.lost.min(facts.totals.sent))
        .then(|| "the capture saw fewer protected packets than arrived".to_owned()),
        (facts.totals.sent == facts.totals.lost).then(|| "no packet arrived".to_owned()),
    ];
    checks.into_iter().flatten().collect()
}

impl Report {
    /// A line about what came after the kills.
    fn restarts(&self) -> String {
        let restart = self
            .restart_to_first_packet_ms_median
            .zip(self.restart_to_first_packet_ms_max);
        if let Some((median, longest)) = restart {
            return format!(
                "\x20 restart to first packet  {median} ms median, {longest} ms longest\n"
            );
        }
        let Some(last) = self.takeovers.last() else {
            return String::new();
        };
        let order = self.takeovers.iter().map(|t| t.killed.as_str());
        let order: Vec<&str> = order.chain([last.successor.as_str()]).collect();
        format!(
            "\x20 active                   {}, epoch {}\n",
            order.join(" > "),
            last.epoch
        )
    }
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
        let kill = |gap, first_packet| Kill {
            at: 0,
            member: "m1".to_owned(),
            gap: Duration::from_micros(gap),
            restart: Restart::Alone {
                first_packet: Duration::from_micros(first_packet),
            },
        };
        let sas = || Sas {
            count: 2,
            spis: vec!["ike 1/2 child 3/4".to_owned()],
        };
        Facts {
            members: 1,
            peers: 1,
            peer: "evergate 1".to_owned(),
            gap_limit: None,
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
            rekeyed: 2,
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
    fn takeovers_are_listed() {
        let mut facts = good();
        facts.members = 3;
        facts.gap_limit = Some(Duration::from_millis(201));
        for (kill, (successor, epoch)) in facts.kills.iter_mut().zip([("m2", 2), ("m3", 3)]) {
            kill.restart = Restart::Cluster {
                led: epoch == 2,
                successor: successor.to_owned(),
                epoch,
                rejoined: Duration::from_millis(80),
            };
        }
        facts.kills[1].member = "m2".to_owned();
        let report = Report::new(facts);
        assert!(report.ok, "{:?}", report.failures);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["takeovers"][1]["killed"], "m2");
        assert_eq!(json["takeovers"][0]["leader"], true);
        assert_eq!(json["takeovers"][1]["gap_ms"], 100.0);
        assert_eq!(json["takeovers"][0]["rejoin_ms"], 80.0);
        assert!(json.get("restart_to_first_packet_ms_max").is_none());
        assert!(report.text().contains("m1 > m2 > m3, epoch 3"));
    }

    #[test]
    fn each_thing_that_did_not_hold_is_a_failure() {
        type Spoil = fn(&mut Facts);
        let spoils: [Spoil; 13] = [
            |f| f.gap_limit = Some(Duration::from_millis(200)),
            |f| f.trouble = Some("no traffic".to_owned()),
            |f| f.same_spis = false,
            |f| f.before.count = 0,
            |f| f.reauthentications = 1,
            |f| f.rekeyed = 1,
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
