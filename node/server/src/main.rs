//! The `evergate` binary.

mod check;
mod config;
mod keygen;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A clustered IKEv2/IPsec gateway.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with a configuration file, if anything
    Check(check::Arguments),
    /// Make a cluster key
    Keygen(keygen::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Check(arguments) => check::run(&arguments),
        Command::Keygen(arguments) => keygen::run(&arguments),
    }
}
