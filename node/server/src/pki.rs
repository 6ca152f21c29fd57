//! `evergate pki`: certificates for the members of a cluster that has no authority of its own.

use evergate_cluster::pki;
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// What `evergate pki` can do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an authority: ca.pem, and ca.key, which no member needs
    Init {
        /// The directory to make it in
        directory: PathBuf,
    },
    /// Make a certificate for a member: NAME.pem and NAME.key
    Issue {
        /// The name of the member, as in its configuration
        #[arg(long)]
        name: String,
        /// The directory of the authority
        directory: PathBuf,
    },
}

/// Makes files that only their owner can read. What is there already is left alone.
pub(crate) fn run(command: &Command) -> ExitCode {
    let made = match command {
        Command::Init { directory } => pki::init(directory),
        Command::Issue { name, directory } => pki::issue_in(directory, name),
    };
    match made {
        Ok(_) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "error: {e}");
            ExitCode::FAILURE
        }
    }
}
