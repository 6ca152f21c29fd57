//! What was found.

use super::{Case, end::Snapshot};
use serde::Serialize;
use std::{fmt, time::Duration};

/// What one run gave.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    case: Case,
    /// `tcp STREAMS` or `udp MBIT`.
    load: String,
    /// Payload received.
    pub(super) mbit_per_second: f64,
    /// Processor seconds of both planes for 10^9 bytes of payload.
    cpu_seconds_per_gb: f64,
    /// Processor nanoseconds of both planes for one packet that one of them sealed or opened.
    cpu_ns_per_packet: f64,
}

/// The report. The names of its fields are an interface.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Medians.
    medians: Vec<Measured>,
    /// Every run.
    runs: Vec<Measured>,
}

impl Measured {
    pub(super) fn new(
        case: Case,
        load: &str,
        took: Duration,
        before: [Snapshot; 2],
        after: [Snapshot; 2],
    ) -> Self {
        let grown = |of: fn(&Snapshot) -> u64| {
            let sum = |all: [Snapshot; 2]| all.iter().map(of).sum::<u64>();
            sum(after).saturating_sub(sum(before)) as f64
        };
        let (payload, cpu) = (grown(|s| s.payload), grown(|s| s.plane_cpu_ns));
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Self {
            case,
            load: load.to_owned(),
            mbit_per_second: payload * 8.0 / 1e6 / took.as_secs_f64(),
            cpu_seconds_per_gb: ratio(cpu, payload),
            cpu_ns_per_packet: ratio(cpu, grown(|s| s.packets)),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        self.case == other.case && self.load == other.load
    }
}

impl Report {
    pub(super) fn new(runs: &[Measured]) -> Self {
        let mut medians: Vec<Measured> = Vec::new();
        for run in runs {
            if medians.iter().any(|m| m.is_like(run)) {
                continue;
            }
            let median = |of: fn(&Measured) -> f64| {
                let alike = runs.iter().filter(|m| m.is_like(run));
                let mut values: Vec<f64> = alike.map(of).collect();
                values.sort_by(f64::total_cmp);
                values[(values.len() - 1) / 2]
            };
            medians.push(Measured {
                mbit_per_second: median(|m| m.mbit_per_second),
                cpu_seconds_per_gb: median(|m| m.cpu_seconds_per_gb),
                cpu_ns_per_packet: median(|m| m.cpu_ns_per_packet),
                ..run.clone()
            });
        }
        Self {
            medians,
            runs: runs.to_vec(),
        }
    }

    /// Whether something came through with each load.
    pub(super) fn is_whole(&self) -> bool {
        self.runs.iter().all(|m| m.mbit_per_second > 0.0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<18} {:<5} {:>7} {:<9} {:>8} {:>9} {:>10}",
            "cipher", "encap", "SAs", "load", "Mbit/s", "CPU s/GB", "ns/packet"
        )?;
        for m in &self.medians {
            let (cipher, encap) = (
                format!("{:?}", m.case.cipher).to_lowercase(),
                format!("{:?}", m.case.encap).to_lowercase(),
            );
            writeln!(
                f,
                "{cipher:<18} {encap:<5} {:>7} {:<9} {:>8.0} {:>9.2} {:>10.0}",
                m.case.sas, m.load, m.mbit_per_second, m.cpu_seconds_per_gb, m.cpu_ns_per_packet
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{CipherName, Encap},
        *,
    };

    #[test]
    fn medians_are_of_like_runs() {
        let run = |sas, payload| {
            let case = Case {
                encap: Encap::Udp,
                cipher: CipherName::Aes256gcm16,
                sas,
                hosts: sas,
            };
            let after = Snapshot {
                plane_cpu_ns: 2_000_000_000,
                payload,
                packets: 1_000_000,
            };
            let none = [Snapshot::default(); 2];
            let after = [after, Snapshot::default()];
            Measured::new(case, "tcp 1", Duration::from_secs(2), none, after)
        };
        let gb = 1_000_000_000;
        let report = Report::new(&[run(1, gb), run(9, gb), run(1, 3 * gb), run(1, 2 * gb)]);
        let medians: Vec<_> = report
            .medians
            .iter()
            .map(|m| (m.case.sas, m.mbit_per_second, m.cpu_seconds_per_gb))
            .collect();
        assert_eq!(medians, [(1, 8000.0, 1.0), (9, 4000.0, 2.0)]);
        assert_eq!(report.medians[0].cpu_ns_per_packet, 2000.0);
        assert!(report.is_whole() && !Report::new(&[run(1, 0)]).is_whole());
    }
}
