//! Plays seeds, each in a process of its own.

use crate::{FOUND, play};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Which seeds are played.
pub(crate) struct Range<'a> {
    pub(crate) from: u64,
    pub(crate) count: u64,
    pub(crate) jobs: Option<usize>,
    pub(crate) log: &'a str,
    pub(crate) strict: bool,
    /// What is to be found, if anything is.
    pub(crate) expect: Option<&'a str>,
}

/// Findings that are shown before it ends.
const MANY: usize = 5;

/// Of many seeds there is a line after so many.
const SOME: u64 = 500;

/// A simulation that takes longer stands still.
const TOO_LONG: Duration = Duration::from_secs(300);

/// Plays one here.
pub(crate) fn one(seed: u64, loud: bool, strict: bool, log: &str) -> ExitCode {
    fix_addresses();
    play::play(seed, loud, strict, log)
}

/// Has the system put this program always at the same addresses: no order may follow from them.
#[allow(unsafe_code)]
fn fix_addresses() {
    const FIXED: &str = "EVERGATE_SIMULATION_FIXED";
    if std::env::var_os(FIXED).is_some() {
        return;
    }
    // SAFETY: it sets a flag of this process.
    let set = unsafe { libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) };
    if set < 0 {
        return;
    }
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().unwrap_or_else(|_| "simulate".into());
    // Returns only if it failed, and then addresses are what they are.
    let _ = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(FIXED, "1")
        .exec();
}

/// The processors that this process may use.
fn processors() -> Vec<usize> {
    let may_use = sched_getaffinity(Pid::this()).unwrap_or_default();
    (0..CpuSet::count())
        .filter(|n| may_use.is_set(*n).unwrap_or(false))
        .collect()
}

/// A simulation that runs.
struct Running {
    child: Child,
    since: Instant,
    /// The processor that it has.
    processor: Option<usize>,
}

impl Running {
    fn start(seed: u64, range: &Range<'_>, processor: Option<usize>) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--quiet", "--seed", &seed.to_string(), "--log", range.log])
            .args(range.strict.then_some("--strict"))
            .stdout(Stdio::piped());
        if let Some(processor) = processor {
            stay_on(&mut command, processor);
        }
        let child = command.spawn()?;
        Ok(Self {
            child,
            since: Instant::now(),
            processor,
        })
    }

    /// How it ended: empty if it is well. `None` if it runs; what stands still is ended.
    fn outcome(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) if self.since.elapsed() < TOO_LONG => None,
            Ok(None) => {
                let _ = self.child.kill();
                Some(format!("stands still after {} s", TOO_LONG.as_secs()))
            }
            Ok(Some(status)) if status.success() => Some(String::new()),
            Ok(Some(status)) if status.code() == Some(FOUND) => Some("found".to_owned()),
            Ok(Some(status)) => Some(status.to_string()),
            Err(e) => Some(e.to_string()),
        }
    }
}

/// One thread of a simulation runs at a time: where all are on one processor, handing over to the next is much cheaper.
#[allow(unsafe_code)]
fn stay_on(command: &mut Command, processor: usize) {
    use std::os::unix::process::CommandExt;
    let mut set = CpuSet::new();
    if set.set(processor).is_err() {
        return;
    }
    // SAFETY: it makes one system call, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            // Without it, the simulation is slower.
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
            Ok(())
        });
    }
}

/// Plays many, and says what was found.
pub(crate) fn many(range: &Range<'_>) -> ExitCode {
    let processors = processors();
    let jobs = range.jobs.unwrap_or(processors.len()).max(1);
    let began = Instant::now();
    let mut running: BTreeMap<u64, Running> = BTreeMap::new();
    let (mut next, mut done, mut findings) = (range.from, 0, Vec::new());
    let mut unwell = Vec::new();
    let mut faults = BTreeMap::new();
    let end = range.from + range.count;
    // What is not expected ends nothing.
    let many = if range.expect.is_some() {
        usize::MAX
    } else {
        MANY
    };
    while (next < end && findings.len() < many) || !running.is_empty() {
        while running.len() < jobs && next < end && findings.len() < many {
            let used = |p: &usize| running.values().filter(|r| r.processor == Some(*p)).count();
            let processor = processors.iter().copied().min_by_key(used);
            match Running::start(next, range, processor) {
                Ok(started) => drop(running.insert(next, started)),
                Err(e) => {
                    println!("cannot start: {e}");
                    return ExitCode::FAILURE;
                }
            }
            next += 1;
        }
        thread::sleep(Duration::from_millis(5));
        let seeds: Vec<u64> = running.keys().copied().collect();
        for seed in seeds {
            let Some(over) = running.get_mut(&seed).and_then(Running::outcome) else {
                continue;
            };
            let Some(Running { child, .. }) = running.remove(&seed) else {
                continue;
            };
            done += 1;
            let said = child.wait_with_output().map(|o| o.stdout);
            let said = said.unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            if over.is_empty() && said.contains(play::UNWELL) {
                unwell.push(seed);
            }
            count(&said, &mut faults);
            if done % SOME == 0 && range.count > SOME {
                println!("{done} seeds, {} findings", findings.len());
            }
            if !over.is_empty() {
                findings.push(seed);
                if let Some(expected) = range.expect {
                    let last = said.lines().last().unwrap_or(&over);
                    println!("{last}");
                    if last.contains(&format!("violated: {expected}")) {
                        kill(&mut running);
                        return ExitCode::SUCCESS;
                    }
                    continue;
                }
                println!("{said}seed {seed}: {over}");
            }
        }
    }
    println!(
        "{done} seeds in {:.0} s, findings: {findings:?}, not well in time: {unwell:?}",
        began.elapsed().as_secs_f64()
    );
    let faults: Vec<_> = faults
        .iter()
        .map(|(what, n)| format!("{what} {n}"))
        .collect();
    println!("what happened in them: {}", faults.join(", "));
    match findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Adds up what happened in a simulation.
fn count(said: &str, faults: &mut BTreeMap<String, u64>) {
    let Some((_, happened)) = said.rsplit_once(play::FAULTS_WERE) else {
        return;
    };
    for fault in happened.trim().split(", ") {
        if let Some((what, times)) = fault.rsplit_once(' ') {
            *faults.entry(what.to_owned()).or_default() += times.parse::<u64>().unwrap_or(0);
        }
    }
}

fn kill(running: &mut BTreeMap<u64, Running>) {
    for Running { child, .. } in running.values_mut() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
