//! A program for `updown` that writes a line for each run.

use crate::connection::Connection;
use crate::{Result, secs, until};
use anyhow::ensure;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A program that writes a line for each run: verb, connection, identity of the peer, both networks, the member, and the reason if there is one.
#[derive(Debug)]
pub struct Hook {
    directory: tempfile::TempDir,
}

impl Hook {
    /// Writes the program.
    pub fn new() -> Result<Self> {
        let hook = Self {
            directory: tempfile::tempdir()?,
        };
        let text = format!(
            "#!/bin/sh\n[ ! -e {} ] || exec sleep 600\n\
             echo \"$PLUTO_VERB $PLUTO_CONNECTION $PLUTO_PEER_ID $PLUTO_MY_CLIENT $PLUTO_PEER_CLIENT $EVERGATE_MEMBER $EVERGATE_REASON\" >> {}\n\
             echo \"said by the hook for $PLUTO_VERB\"\n",
            hook.hangs_file().display(),
            hook.lines_file().display()
        );
        fs::write(hook.program(), text)?;
        fs::set_permissions(hook.program(), fs::Permissions::from_mode(0o755))?;
        Ok(hook)
    }

    /// Where the program is.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.directory.path().join("updown")
    }

    /// If this file is there, it hangs.
    fn hangs_file(&self) -> PathBuf {
        self.directory.path().join("hangs")
    }

    /// Has it hang from now on. The program is not written anew: nobody can run a file that is open for writing, and what other drills start
    /// has all our files open for a moment.
    pub fn hang(&self) -> Result<()> {
        Ok(fs::write(self.hangs_file(), "")?)
    }

    /// Where it writes its lines.
    #[must_use]
    pub fn lines_file(&self) -> PathBuf {
        self.directory.path().join("lines")
    }

    /// Has a member run it for this connection, once for each event: for one pair of selectors.
    pub fn install(&self, connection: &mut Connection) {
        connection.local_ts.truncate(1);
        connection.remote_ts.truncate(1);
        connection.actions += &format!("\nupdown = {:?}", self.program());
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.lines_file()).unwrap_or_default();
        text.lines().map(|l| l.trim_end().to_owned()).collect()
    }

    /// Waits until it was run so many times, and yields the lines: there are no more.
    pub fn ran(&self, times: usize) -> Result<Vec<String>> {
        until(secs(30), "the program is run", || {
            let lines = self.lines();
            ensure!(lines.len() >= times, "{lines:?}");
            Ok(true)
        })?;
        let lines = self.lines();
        ensure!(lines.len() == times, "{lines:?}");
        Ok(lines)
    }
}
