//! Echo requests that go on: whoever has the address answers, also after it went to another host.

use crate::lab::Lab;
use crate::process::Process;
use crate::{Result, until};
use anyhow::bail;
use std::time::Duration;

/// A running `ping`.
#[derive(Debug)]
pub struct Pings {
    process: Process,
}

impl Pings {
    /// Starts one from `host` to an address, every `interval` seconds.
    pub fn start(lab: &Lab, host: &str, to: &str, interval: &str) -> Result<Self> {
        let log = lab.dir_of(host)?.join("ping.log");
        let namespace = lab.namespace(host);
        let command = ["ip", "netns", "exec", &namespace, "ping", "-n", "-i"];
        let command = [&command[..], &[interval, "-s", "200", to]].concat();
        Ok(Self {
            process: Process::start(&command, &[], &log)?,
        })
    }

    /// How many answers came by now.
    pub fn answered(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.process.log_path())?;
        Ok(log.matches(" bytes from ").count())
    }

    /// Waits for `more` answers.
    pub fn run(&self, more: usize, timeout: Duration) -> Result<()> {
        let before = self.answered()?;
        until(timeout, "echo requests are answered", || {
            match self.answered()? {
                now if now >= before + more => Ok(true),
                now => bail!("{before} at first, now {now}"),
            }
        })
    }
}
