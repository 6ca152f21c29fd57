//! `evergate keygen`: makes the key under which a cluster's state is sealed, and the files of a rotation.

use evergate_cluster::ClusterKey;
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Arguments of `evergate keygen`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Arguments {
    /// Make this file, which must not exist, with a new key
    #[arg(long)]
    out: Option<PathBuf>,
    /// Put a new key before the one that this file has: the first step of a rotation
    #[arg(long, value_name = "FILE")]
    rotate: Option<PathBuf>,
    /// Leave in this file its first key alone: the last step of a rotation
    #[arg(long, value_name = "FILE")]
    prune: Option<PathBuf>,
}

/// Makes or changes a key file that only its owner can read. With `--out` an existing file is left alone: overwriting a cluster key would lose the state that
/// is sealed with it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let done = match (&arguments.out, &arguments.rotate, &arguments.prune) {
        (Some(path), _, _) => ClusterKey::create_file(path),
        (_, Some(path), _) => ClusterKey::add_to_file(path),
        (_, _, Some(path)) => ClusterKey::prune_file(path),
        // The arguments do not allow it.
        (None, None, None) => return ExitCode::FAILURE,
    };
    match done {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}
