//! `evergate keygen`: makes the key under which a cluster's state is sealed.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};
use zeroize::Zeroizing;

/// Length of a cluster key in bytes.
pub(crate) const KEY_LEN: usize = 32;

/// Arguments of `evergate keygen`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to make; it must not exist
    #[arg(long)]
    out: PathBuf,
}

/// Makes a key file that only its owner can read.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match make(&arguments.out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(
                io::stderr(),
                "error: cannot make {}: {e}",
                arguments.out.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// An existing file is left alone: overwriting a cluster key would lose the state that is sealed with it.
fn make(path: &Path) -> io::Result<()> {
    let mut key = Zeroizing::new([0_u8; KEY_LEN]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| io::Error::other("no randomness"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&*key)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn keys_are_private_differ_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make(&a).unwrap();
        make(&b).unwrap();
        let key = fs::read(&a).unwrap();
        assert_eq!(key.len(), KEY_LEN);
        assert_ne!(key, fs::read(&b).unwrap());
        assert_eq!(
            fs::metadata(&a).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(make(&a).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&a).unwrap(), key);
    }
}
