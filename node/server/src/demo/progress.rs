//! What is going on, on the standard error output: a line that changes on a terminal, else a line for each event.

use super::traffic::Traffic;
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often the line changes.
const INTERVAL: Duration = Duration::from_millis(80);
/// Longer than this without a packet is worth to be shown while it lasts.
const SILENCE: Duration = Duration::from_millis(20);

/// Shows what is going on.
pub(super) struct Progress {
    terminal: bool,
    drawn: Option<Instant>,
}

/// What the changing line shows.
pub(super) struct Scene<'a> {
    /// The active member and its epoch, if one is.
    pub(super) active: Option<(&'a str, u32)>,
    /// Kills until now, and in all.
    pub(super) kills: (usize, usize),
    /// The gap of the last kill.
    pub(super) gap: Option<Duration>,
    /// The traffic, once there is some.
    pub(super) traffic: Option<&'a Traffic>,
}

impl Scene<'_> {
    fn line(&self) -> String {
        let traffic = self.traffic.map(|t| (t.counts(), t.silence()));
        let silence = traffic.map(|(_, silence)| silence);
        let active = match self.active {
            Some((name, epoch)) => format!("{name} (epoch {epoch})"),
            None => "nobody".to_owned(),
        };
        let gap = match (silence.filter(|s| *s >= SILENCE), self.gap) {
            (Some(silence), _) => format!("  gap: {} ms and on", silence.as_millis()),
            (None, Some(gap)) => format!("  gap: {} ms", gap.as_millis()),
            (None, None) => String::new(),
        };
        let packets = traffic
            .map(|((sent, arrived), _)| format!("  packets: {sent} sent, {arrived} arrived"));
        let (killed, kills) = self.kills;
        let packets = packets.unwrap_or_default();
        format!("active: {active}  kills: {killed}/{kills}{gap}{packets}")
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            drawn: None,
        }
    }

    /// Something happened.
    pub(super) fn event(&mut self, text: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Time goes by.
    pub(super) fn tick(&mut self, scene: &Scene<'_>) {
        if !self.terminal || self.drawn.is_some_and(|d| d.elapsed() < INTERVAL) {
            return;
        }
        // Back to the first column, and nothing left of what stood there; what is longer than the terminal is wide does not go on in the next line.
        let _ = write!(io::stderr(), "\r\x1b[2K\x1b[?7l{}\x1b[?7h", scene.line());
        let _ = io::stderr().flush();
        self.drawn = Some(Instant::now());
    }

    /// Removes the changing line.
    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_who_is_active_and_how_long_the_last_gap_was() {
        let mut scene = Scene {
            active: Some(("m2", 3)),
            kills: (1, 4),
            gap: Some(Duration::from_micros(147_900)),
            traffic: None,
        };
        let line = "active: m2 (epoch 3)  kills: 1/4  gap: 147 ms";
        assert_eq!(scene.line(), line);
        scene.active = None;
        scene.gap = None;
        assert_eq!(scene.line(), "active: nobody  kills: 1/4");
    }
}
