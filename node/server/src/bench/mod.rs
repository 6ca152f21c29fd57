//! `evergate bench`: load for a responder, or for two data planes, and what it costs.

mod clients;
mod esp;
mod handshake;
mod links;
mod load;
mod report;
mod takeover;
#[cfg(test)]
mod tests;
mod usage;

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
        What::Esp(options) => esp::run(&options),
        What::EspEnd(options) => esp::run_end(&options),
    }
}
