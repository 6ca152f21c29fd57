//! `evergate check`.

use crate::config::{self, LoadError};
use std::{io::Write, path::PathBuf, process::ExitCode};

/// Arguments of `evergate check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The configuration file
    file: PathBuf,
}

/// Prints problems, one a line; fails if one of them is an error.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let path = arguments.file.display().to_string();
    let (text, code) = match config::load(&arguments.file) {
        Ok(config) => {
            let mut lines = Vec::new();
            if !config.warnings.is_empty() {
                lines.push(config::render(&path, &config.warnings));
            }
            let use_for = match config.member {
                Some(_) => "",
                None => " (no [member] table: it can be applied, but not run)",
            };
            lines.push(format!(
                "{path}: good: {} connections, {} secrets, {} pools{use_for}",
                config.policy.connections.len(),
                config.policy.secrets.len(),
                config.policy.pools.len(),
            ));
            (lines.join("\n"), ExitCode::SUCCESS)
        }
        Err(error @ LoadError::Invalid { .. }) => (error.to_string(), ExitCode::FAILURE),
        Err(error @ LoadError::Unreadable { .. }) => (format!("error: {error}"), ExitCode::FAILURE),
    };
    match writeln!(out, "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
