//! What is going on, on the standard error output: a line that changes on a terminal, else a line for each event.

use super::traffic::Traffic;
use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

/// How often the line changes.
const INTERVAL: Duration = Duration::from_millis(80);

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
    /// The traffic, once there is some.
    pub(super) traffic: Option<&'a Traffic>,
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
        let active = match scene.active {
            Some((name, epoch)) => format!("{name} (epoch {epoch})"),
            None => "nobody".to_owned(),
        };
        let (killed, kills) = scene.kills;
        let mut line = format!("active: {active:<14}  kills: {killed}/{kills}");
        if let Some(traffic) = scene.traffic {
            let (sent, arrived) = traffic.counts();
            let silence = traffic.silence().as_millis();
            line.push_str(&format!("  packets: {sent} sent, {arrived} arrived"));
            if silence >= 20 {
                line.push_str(&format!("  silent for {silence} ms"));
            }
        }
        // Back to the first column, and nothing left of what stood there.
        let _ = write!(io::stderr(), "\r\x1b[2K{line}");
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
