//! `evergate demo`: the main job on one machine. It makes its own namespaces, starts the members of a cluster and their peers as real
//! processes, streams numbered packets, kills the active member, and says whether the peers noticed.

mod capture;
mod charon;
mod checker;
mod gateway;
mod isolate;
mod network;
mod peer;
mod picture;
mod play;
mod process;
mod progress;
mod report;
#[cfg(feature = "drills")]
mod rollback;
#[cfg(test)]
mod tests;
mod topology;
mod traffic;

use anyhow::{Context, Result};
use std::{
    io::{self, Write},
    path::PathBuf,
    process::exit,
};

/// Arguments of `evergate demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often the active member is killed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    kills: u16,
    /// How many members there are: 1, which is started again after each kill, or at least 3, so that a majority is left
    #[arg(long, default_value_t = 3, value_parser = members)]
    members: u8,
    /// How many peers there are
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(topology::MAX_PEERS)))]
    peers: u8,
    /// Which program the peers are
    #[arg(long, value_enum, default_value_t = peer::Kind::Evergate)]
    peer: peer::Kind,
    /// A gap of so many milliseconds is a failure [default: 1000 with several members, else none]
    #[arg(long, value_name = "MS")]
    max_gap: Option<u32>,
    /// Encapsulate ESP in UDP as behind a NAT
    #[arg(long)]
    encap: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
    /// Keep configurations, state and logs in this directory, instead of in memory only
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Put back the state of an earlier moment at the second kill
    #[cfg(feature = "drills")]
    #[arg(long, hide = true)]
    roll_back: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

/// A cluster that loses one member needs a majority of the others.
fn members(text: &str) -> Result<u8, String> {
    let count = text.parse::<u8>().ok();
    let sensible = |n: &u8| *n == 1 || (3..=topology::MAX_MEMBERS).contains(n);
    count
        .filter(sensible)
        .ok_or_else(|| format!("expected 1, or 3 to {}", topology::MAX_MEMBERS))
}

/// Runs the demo. It ends the process with another status than 0 if anything did not hold.
///
/// # Errors
/// If it could not be run to its end.
pub(crate) fn run(args: Args) -> Result<()> {
    if !args.inside {
        if args.peer == peer::Kind::Strongswan {
            // Said before anything is made.
            charon::Programs::find()?;
        }
        return isolate::run_inside();
    }
    let dir = isolate::settle(args.keep.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(play::play(&args, &dir))?;
    let text = if args.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        report.text()
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot print the report")?;
    if !report.ok {
        exit(1);
    }
    Ok(())
}
