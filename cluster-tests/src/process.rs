//! Processes started by a drill: logs in files, ended by their own pid.

use crate::{Result, secs, until};
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// A process of the drill. Dropping it ends the process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// The process dies with the thread that started it, so that an aborted
    /// test run leaves nothing behind.
    pub fn start(command: &[&str], env: &[(&str, &str)], log: &Path) -> Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let err = out.try_clone()?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(command)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Sends `signal`; a process that is gone already is no error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        match kill(pid, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).context("kill"),
        }
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// The exit status if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks the process to end and waits for it.
    pub fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.end(signal, secs(30))
    }

    fn end(&mut self, signal: Signal, within: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        let mut status = None;
        until(within, "the process ends when asked", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("no exit status")
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        text.lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .context("no VmRSS")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Continued first: a stopped process would not see SIGTERM.
            let _ = self.signal(Signal::SIGCONT);
            if self.end(Signal::SIGTERM, secs(10)).is_err() {
                let _ = self.kill9();
            }
        }
    }
}

/// Runs a short command and returns its standard output; fails with its
/// standard error.
pub fn run(command: &[&str]) -> Result<String> {
    let output = output(command, &[])?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a short command and returns all of its outcome.
pub fn output(command: &[&str], env: &[(&str, &str)]) -> Result<Output> {
    let (program, args) = command.split_first().context("an empty command")?;
    Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))
}

/// The last `lines` lines of a file, for the report of a failure.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Truncates a log, so that what follows stands alone.
pub fn truncate(path: &Path) -> Result<()> {
    File::create(path)?;
    Ok(())
}
