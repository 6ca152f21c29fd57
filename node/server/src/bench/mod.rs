//! `evergate bench`: load for a responder, and what it costs.

mod clients;
mod handshake;
mod links;
mod load;
mod report;
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
}

/// Runs a benchmark and prints what came of it.
///
/// # Errors
/// If it cannot be run, or if not one handshake succeeded.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Handshake(options) => handshake::run(&options),
    }
}
