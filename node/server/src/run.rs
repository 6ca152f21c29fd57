//! `evergate run`.

use crate::{
    config::{self, Config},
    gateway,
};
use anyhow::Context;
use clap::ValueEnum;
use evergate_cluster::KeyRing;
use nix::sys::{
    resource::{Resource, setrlimit},
    stat::{Mode, umask},
};
use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// Arguments of `evergate run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The configuration file
    #[arg(long, default_value = "/etc/evergate/evergate.toml")]
    config: PathBuf,
    /// The file with the token that a new member joins a cluster with, instead of `join_token_file`
    #[arg(long)]
    join_token_file: Option<PathBuf>,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// What is logged, as in "info" or "info,evergate=debug"
    #[arg(long, env = "EVERGATE_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines to read
    Human,
    /// One JSON object a line
    Json,
}

/// Runs a member until SIGTERM or SIGINT. After SIGHUP it looks at once at the files that may change meanwhile.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match member(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Buffers of the log and of snapshots come from the system and go back to it. After the first few of a size glibc would keep them, between what stays:
/// with 10,000 IKE SAs that is a tenth of the memory. And threads share as many arenas as there are processors, not eight times as many: what one thread frees
/// another can use, which is a twentieth.
fn spare_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 128 << 10;
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let arenas = libc::c_int::try_from(processors.max(2)).unwrap_or(libc::c_int::MAX);
        // SAFETY: it sets numbers of the allocator, and concerns no memory that there is.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}

fn member(arguments: &Arguments) -> anyhow::Result<()> {
    keep_secrets()?;
    spare_memory();
    start_logging(arguments)?;
    let mut config = config::load(&arguments.config)?;
    if let Some(file) = &arguments.join_token_file {
        let cluster = config.cluster.as_mut();
        let cluster = cluster.context("--join-token-file is given, but there is no [cluster]")?;
        cluster.join_token_file = Some(file.clone());
    }
    for warning in &config.warnings {
        warn!(event = "config", "{}:{warning}", arguments.config.display());
    }
    #[cfg(feature = "drills")]
    crate::keylog::announce();
    let key_file = config
        .member
        .as_ref()
        .map(|m| m.key_file.clone())
        .context("the configuration has no [member] table")?;
    let keys = KeyRing::from_file(&key_file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(until_stopped(config, keys))
}

async fn until_stopped(config: Config, keys: KeyRing) -> anyhow::Result<()> {
    // Taken first, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let reload = Arc::new(Notify::new());
    let running = gateway::start(config, keys, Arc::clone(&reload)).await?;
    // Ends with the process.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload.notify_one();
        }
    });
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stop);
    let name = tokio::select! {
        name = &mut stop => name,
        () = running.passive() => {
            error!(event = "passive", "this member serves nothing any more; waiting to be stopped");
            stop.await
        }
    };
    info!(event = "stopping", signal = name, "stopping");
    running.stop().await;
    Ok(())
}

/// What this process makes is for its owner alone, and so is its memory. Called before there are threads.
///
/// # Errors
/// If core dumps cannot be forbidden.
pub(crate) fn keep_secrets() -> anyhow::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    forbid_dumps().context("cannot forbid core dumps")
}

/// Keys must not reach a disk by a core dump, nor another process by a debugger (invariant 7).
fn forbid_dumps() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)
}

fn start_logging(arguments: &Arguments) -> anyhow::Result<()> {
    let mut filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("{:?} is no log filter", arguments.log))?;
    if !arguments.log.contains("openraft") {
        // It warns of every message that a dead member does not get.
        filter = filter.add_directive("openraft=error".parse()?);
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Human => builder.with_ansi(false).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
