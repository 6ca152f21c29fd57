//! `evergate keygen`: makes the key under which a cluster's state is sealed.

use evergate_cluster::ClusterKey;
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Arguments of `evergate keygen`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to make; it must not exist
    #[arg(long)]
    out: PathBuf,
}

/// Makes a key file that only its owner can read. An existing file is left alone: overwriting a cluster key would lose the state that
/// is sealed with it.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match ClusterKey::create_file(&arguments.out) {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}
