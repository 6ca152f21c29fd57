//! How long commits take, as `status` shows it.

use evergate_proto::admin::Commits;
use serde_json::{Value, json};

/// The time that so many of a hundred proposals did not exceed, in microseconds; zero if there were none.
fn percentile(commits: &Commits, percent: u64) -> u64 {
    let total: u64 = commits.latencies.iter().map(|l| l.count).sum();
    let mut below = 0_u64;
    let found = commits.latencies.iter().find(|latency| {
        below = below.saturating_add(latency.count);
        below.saturating_mul(100) >= total.saturating_mul(percent)
    });
    found.map_or(0, |latency| latency.micros)
}

/// In a line.
pub(super) fn text(commits: &Commits) -> String {
    let ms = |percent| percentile(commits, percent) as f64 / 1000.0;
    format!(
        "{} entries, {} snapshots; a proposal took {:.1} ms (median), {:.1} ms (99 %), {:.1} ms (worst)",
        commits.entries,
        commits.snapshots,
        ms(50),
        ms(99),
        ms(100)
    )
}

/// With the histogram, of which whoever looks again can take the difference.
pub(super) fn json(commits: &Commits) -> Value {
    let latencies = commits.latencies.iter();
    let latencies: Vec<Value> = latencies.map(|l| json!([l.micros, l.count])).collect();
    json!({
        "entries": commits.entries,
        "snapshots": commits.snapshots,
        "median_us": percentile(commits, 50),
        "p99_us": percentile(commits, 99),
        "worst_us": percentile(commits, 100),
        "latencies_us": latencies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use evergate_proto::admin::Latency;

    #[test]
    fn the_histogram_is_shown_in_a_line_and_in_full() {
        let latency = |(micros, count)| Latency { micros, count };
        let commits = Commits {
            entries: 7,
            snapshots: 1,
            latencies: [(1000, 98), (5000, 1), (90_000, 1)].map(latency).into(),
        };
        assert_eq!(
            text(&commits),
            "7 entries, 1 snapshots; a proposal took 1.0 ms (median), 5.0 ms (99 %), 90.0 ms (worst)"
        );
        let value = json(&commits);
        assert_eq!(
            (&value["p99_us"], &value["latencies_us"][2]),
            (&json!(5000), &json!([90_000, 1]))
        );
        assert_eq!(json(&Commits::default())["worst_us"], 0);
    }
}
