//! What happened, as lines: of the world, and of the logs of all processes.

use crate::conductor::{self, MICRO, SECOND};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// So many lines are kept, of which the last are shown when something is wrong.
const KEPT: usize = 400;

struct Trace {
    names: Vec<String>,
    lines: VecDeque<String>,
    /// Lines are written at once, too.
    loud: bool,
}

static TRACE: Mutex<Trace> = Mutex::new(Trace {
    names: Vec::new(),
    lines: VecDeque::new(),
    loud: false,
});

fn trace() -> MutexGuard<'static, Trace> {
    TRACE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a trace, with the logs of processes as far as the filter lets them through.
pub(crate) fn begin(loud: bool, filter: &str) -> anyhow::Result<()> {
    trace().loud = loud;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(Lines)
        .finish();
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(())
}

/// Names a process.
pub(crate) fn name(process: usize, name: &str) {
    let mut trace = trace();
    if trace.names.len() <= process {
        trace.names.resize(process + 1, String::new());
    }
    name.clone_into(&mut trace.names[process]);
}

/// Adds a line.
pub(crate) fn line(text: &str) {
    let now = conductor::now();
    let process = conductor::process();
    crate::secrecy::search_line(text);
    conductor::note(text.as_bytes());
    let mut trace = trace();
    let name = trace.names.get(process).cloned().unwrap_or_default();
    let line = format!(
        "{:>3}.{:06} {name:>8} {text}",
        now / SECOND,
        now % SECOND / MICRO
    );
    if trace.loud {
        let _ = writeln!(io::stdout(), "{line}");
    }
    if trace.lines.len() == KEPT {
        trace.lines.pop_front();
    }
    trace.lines.push_back(line);
}

/// The last lines.
pub(crate) fn tail(count: usize) -> Vec<String> {
    let trace = trace();
    if trace.loud {
        return Vec::new();
    }
    let skipped = trace.lines.len().saturating_sub(count);
    trace.lines.iter().skip(skipped).cloned().collect()
}

/// Adds a line of the world's.
macro_rules! say {
    ($($part:tt)*) => { $crate::trace::line(&format!($($part)*)) };
}
pub(crate) use say;

/// Makes lines of what processes log.
struct Lines;

struct Line(Vec<u8>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.0);
        line(text.trim());
    }
}

/// How the simulation is called, for reports.
static CALLED: Mutex<String> = Mutex::new(String::new());

/// Says how this simulation is called again.
pub(crate) fn called(how: String) {
    *CALLED.lock().unwrap_or_else(PoisonError::into_inner) = how;
}

/// So many lines are shown.
const SHOWN: usize = 60;

/// The simulation has found something, and ends.
pub(crate) fn fatal(what: &str) -> ! {
    let how = CALLED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let mut out = io::stdout().lock();
    for line in tail(SHOWN) {
        let _ = writeln!(out, "{line}");
    }
    let now = conductor::now();
    let _ = writeln!(
        out,
        "{how}: at {}.{:06}: {what}",
        now / SECOND,
        now % SECOND / MICRO
    );
    let _ = out.flush();
    drop(out);
    crate::leave(crate::FOUND)
}
