//! The planted fault of the demo: a member that is started again finds the state of an earlier moment, so that it opens a reservation for a
//! second time. What looks for IVs that were used twice must find it.

use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The state directory of a member, as it was at its first death.
pub(super) struct Rollback {
    state: PathBuf,
    kept: PathBuf,
}

impl Rollback {
    /// Of the member whose files are in this directory.
    pub(super) fn new(member: &Path) -> Self {
        Self {
            state: member.join(super::topology::STATE_DIR),
            kept: member.join("kept"),
        }
    }

    /// While the member is dead: the first time keeps its state, the others put that back.
    pub(super) fn play(&self) -> Result<()> {
        if self.kept.exists() {
            fs::remove_dir_all(&self.state)
                .with_context(|| format!("cannot remove {}", self.state.display()))?;
            copy(&self.kept, &self.state)
        } else {
            copy(&self.state, &self.kept)
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
