//! A process in a namespace of its own, with a directory for its files.

use super::network::NetNs;
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Lines of the log that an error shows.
const LOG_LINES: usize = 12;

/// A process that is started, and may be killed and started again. Dropping it kills it.
pub(super) struct Process {
    name: String,
    ns: NetNs,
    dir: PathBuf,
    log: &'static str,
    child: Option<Child>,
}

impl Process {
    /// Makes its directory, which has its name, in `root`. What it has to say goes to the file `log` there.
    pub(super) fn new(name: &str, ns: &NetNs, root: &Path, log: &'static str) -> Result<Self> {
        let dir = root.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            name: name.to_owned(),
            ns: ns.clone(),
            dir,
            log,
            child: None,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A file in its directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts it in its namespace. In a process group of its own: a terminal's signals are not for it.
    pub(super) fn start(&mut self, command: &mut Command) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(self.log))?;
        command.process_group(0).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let what = || format!("cannot start {}", self.name);
        self.child = Some(self.ns.run(|| command.spawn().with_context(what))?);
        Ok(())
    }

    /// Kills it with SIGKILL; afterwards it is gone.
    pub(super) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Whether it was started, and not killed since.
    pub(super) fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// Looks whether it still runs, if it was started.
    ///
    /// # Errors
    /// If it ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            self.child = None;
            bail!("{} ended by itself ({status})", self.name);
        }
        Ok(())
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        let text = fs::read(self.path(self.log)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!(
            "the end of the log of {}:\n  {}",
            self.name,
            shown.join("\n  ")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}
