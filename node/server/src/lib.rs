//! The gateway: everything that the `evergate` binary does.
//!
//! [`main`] is that binary. [`member`] is a member on a machine of the caller's choice, for the simulation.

mod abilities;
mod admin;
mod bench;
mod capture;
mod check;
mod children;
mod clock;
mod cluster;
mod config;
mod counters;
mod credentials;
mod ctl;
mod demo;
mod dispatch;
mod doctor;
mod drills;
mod founding;
mod gateway;
mod handovers;
mod hooks;
mod keygen;
#[cfg(feature = "drills")]
mod keylog;
mod keys;
pub mod machine;
pub mod member;
mod network;
mod node;
mod outer;
mod pki;
mod policy;
mod protection;
mod received;
mod reload;
mod run;
mod shared;
mod starter;
mod transport;
mod trap;
mod volume;
mod wireshark;
mod wishes;
mod worker;

use clap::{Parser, Subcommand};
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// A clustered IKEv2/IPsec gateway.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a member
    Run(run::Arguments),
    /// Say what is wrong with a configuration file, if anything
    Check(check::Arguments),
    /// Administer a running member
    Ctl(ctl::Arguments),
    /// Show on this machine alone that a killed member's tunnels go on
    Demo(demo::Args),
    /// Load a responder, and say what it costs
    Bench(bench::Args),
    /// Make a cluster key
    Keygen(keygen::Arguments),
    /// Go on with one member of a cluster that has lost most of them for good, which must not run
    Recover(founding::Recover),
    /// Begin a cluster again from a backup, with one member that has no state
    Restore(founding::Restore),
    /// Make certificates for the members of a cluster
    #[command(subcommand)]
    Pki(pki::Command),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Ctl(arguments) => ctl::run(&arguments),
        Command::Demo(arguments) => finish(demo::run(arguments)),
        Command::Bench(arguments) => finish(bench::run(arguments)),
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Recover(arguments) => finish(founding::recover(&arguments)),
        Command::Restore(arguments) => finish(founding::restore(&arguments)),
        Command::Pki(command) => pki::run(&command),
    }
}

/// Says what went wrong, with everything that led to it.
fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_as_clap_wants_it() {
        Arguments::command().debug_assert();
    }
}
