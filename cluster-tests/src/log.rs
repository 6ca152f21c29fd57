//! When members said what.

/// When an event is first in a log after that, in microseconds of Unix time.
#[must_use]
pub fn first(log: &str, event: &str, after: u64) -> Option<u64> {
    let name = format!("event=\"{event}\"");
    let lines = log.lines().filter(|line| line.contains(&name));
    lines.filter_map(timestamp).filter(|at| *at > after).min()
}

/// The time at the beginning of a log line, 2026-01-02T03:04:05.678901Z, in microseconds of Unix time.
fn timestamp(line: &str) -> Option<u64> {
    let field = |from: usize, to: usize| line.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    // Days since 1970, with years that begin in March.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year.checked_sub(1)?, month + 9)
    };
    let days =
        (365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day).checked_sub(719_469)?;
    let seconds = ((days * 24 + field(11, 13)?) * 60 + field(14, 16)?) * 60 + field(17, 19)?;
    Some(seconds * 1_000_000 + field(20, 26)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_log_lines_are_read() {
        let at = |line| timestamp(line);
        assert_eq!(at("1970-01-01T00:00:00.000001Z  INFO"), Some(1));
        assert_eq!(
            at("2024-02-29T12:30:15.250000Z x"),
            Some(1_709_209_815_250_000)
        );
        assert_eq!(
            at("2026-03-01T00:00:00.000000Z"),
            Some(1_772_323_200_000_000)
        );
        assert_eq!(at("not a log line"), None);
    }

    #[test]
    fn the_first_line_after_a_time_counts() {
        let log = "1970-01-01T00:00:01.000000Z event=\"leads\"\n\
                   1970-01-01T00:00:02.000000Z event=\"assigning\"\n\
                   1970-01-01T00:00:03.000000Z event=\"leads\"";
        assert_eq!(first(log, "leads", 0), Some(1_000_000));
        assert_eq!(first(log, "leads", 1_000_000), Some(3_000_000));
        assert_eq!(first(log, "leads", 3_000_000), None);
    }
}
