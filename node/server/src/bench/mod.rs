//! `evergate bench`: load for a responder, or for two data planes, and what it costs.

mod clients;
mod echo;
mod esp;
mod handshake;
mod ivs;
mod links;
mod load;
mod report;
mod scale;
mod takeover;
#[cfg(test)]
mod tests;
mod traffic;
mod usage;

use std::{
    io::BufRead,
    sync::mpsc::{Receiver, channel},
    thread,
};

/// Arguments of `evergate bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Set up many IKE SAs with any IKEv2 responder, and say how fast it went
    Handshake(Box<handshake::Options>),
    /// Send through many IKE SAs, kill a process, and say when each SA passes traffic again
    Takeover(Box<takeover::Options>),
    /// Keep traffic on many SAs while members are killed or drained as standard input says, and say how long each SA was without, and what was lost
    Traffic(Box<traffic::Options>),
    /// Let ever more peers ask whether the gateway is there, and new ones come in bursts, as standard input says
    Scale(Box<scale::Options>),
    /// Send through two data planes of this program, and say how fast it went and what it cost. Needs root and iproute2
    Esp(esp::Options),
    /// One end of that
    #[command(hide = true)]
    EspEnd(esp::EndOptions),
}

/// Runs a benchmark and prints what came of it.
///
/// # Errors
/// If it cannot be run, or if not one handshake succeeded.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Handshake(options) => handshake::run(&options),
        What::Takeover(options) => takeover::run(&options),
        What::Traffic(options) => traffic::run(&options),
        What::Scale(options) => scale::run(&options),
        What::Esp(options) => esp::run(&options),
        What::EspEnd(options) => esp::run_end(&options),
    }
}

/// Lines of standard input, as they come.
fn commands() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let lines = std::io::stdin().lock().lines();
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}
