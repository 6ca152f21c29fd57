//! Whole clusters, their peers and the network in one process, in virtual time, from one seed.
//!
//! - `conductor`: runs the threads of all processes one at a time, in an order that follows from the seed.
//! - `host`, `plane`, `wire`, `network`: what the machine of a process is made of. `world`: what is between them.
//! - `config`, `script`: who there is, and what happens. `checks`, `secrecy`, `agreement`: what must hold then.

// What it says is for people, and its threads panic if it is wrong itself.
#![allow(clippy::print_stdout)]

mod agreement;
mod checks;
mod conductor;
mod config;
mod host;
mod network;
mod plane;
mod play;
mod script;
mod secrecy;
mod seeds;
mod trace;
mod wire;
mod world;

use clap::Parser;
use std::process::ExitCode;

/// What a simulation ends with when it found something.
const FOUND: i32 = 1;

/// Plays clusters under faults, in virtual time.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// Play this one, and show what happens
    #[arg(long)]
    seed: Option<u64>,
    /// Play so many
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// So many at a time; one for each processor unless given
    #[arg(long)]
    jobs: Option<usize>,
    /// What is shown of the logs of all processes, as in "info" or "debug"
    #[arg(long, default_value = "info,openraft=error")]
    log: String,
    /// Say nothing of what happens, also with --seed
    #[arg(long)]
    quiet: bool,
    /// A cluster that is not well in time after all faults is a finding, too
    #[arg(long)]
    strict: bool,
    /// Succeed once what begins so is found to be violated, and fail if only other things are
    #[arg(long, value_name = "INVARIANT")]
    expect: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => seeds::one(seed, !arguments.quiet, arguments.strict, &arguments.log),
        None => seeds::many(&seeds::Range {
            from: arguments.from,
            count: arguments.seeds,
            jobs: arguments.jobs,
            log: &arguments.log,
            strict: arguments.strict,
            expect: arguments.expect.as_deref(),
        }),
    }
}

/// Ends the process without touching anything of the simulation.
#[allow(unsafe_code)]
fn leave(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}
