//! Configuration: TOML in the vocabulary of swanctl.conf.
//!
//! A file has a local part (`[member]`, `[dataplane]`, `[limits]`), which only the process that reads it uses, and the
//! policy (`[connections]`, `[secrets]`, `[authorities]`, `[pools]`), which is replicated as one versioned document. Reading goes in
//! two steps: every value by itself while it is parsed, then the document as a whole. Whatever is wrong has a place.

mod child;
mod cluster;
mod connection;
mod credentials;
mod document;
mod headers;
mod local;
mod marks;
mod problem;
mod secrets;
#[cfg(test)]
mod tests;
mod times;
mod validate;
mod values;
mod volumes;

pub(crate) use cluster::{ClusterConfig, is_endpoint};
pub(crate) use document::{Dataplane, Limits, Member, PlaneKind};
pub(crate) use problem::{Problem, Severity, render};

use document::Document;
use evergate_ike::config::Policy;
use std::{fs, io, path::Path, time::Duration};

/// A configuration that is free of errors.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Who this member is; absent in a file that only holds policy.
    pub(crate) member: Option<Member>,
    /// The other members; absent where there are none.
    pub(crate) cluster: Option<ClusterConfig>,
    /// The data plane's settings.
    pub(crate) dataplane: Dataplane,
    /// What bounds the load that strangers can cause.
    pub(crate) limits: Limits,
    /// What is replicated.
    pub(crate) policy: Policy,
    /// What is allowed, but probably not meant.
    pub(crate) warnings: Vec<Problem>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The file is wrong; warnings are listed too.
    #[error("{}", render(path, problems))]
    Invalid {
        /// Which file.
        path: String,
        /// What is wrong where.
        problems: Vec<Problem>,
    },
}

/// Reads a configuration file.
///
/// # Errors
/// If it cannot be read or has errors.
pub(crate) fn load(path: &Path) -> Result<Config, LoadError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| LoadError::Unreadable {
        path: name.clone(),
        error,
    })?;
    let directory = path.parent().unwrap_or(Path::new("."));
    parse(&text, directory).map_err(|problems| LoadError::Invalid {
        path: name,
        problems,
    })
}

/// Reads a duration as it stands in a configuration.
///
/// # Errors
/// If it is none.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    <Duration as values::Textual>::read(text)
}

/// Reads a configuration from text. Relative paths of secrets count from `directory`.
///
/// # Errors
/// All that is wrong, at least one [`Severity::Error`] among it.
pub(crate) fn parse(text: &str, directory: &Path) -> Result<Config, Vec<Problem>> {
    let document: Document = toml::from_str(text).map_err(|e| {
        vec![Problem::at(
            text,
            e.span().unwrap_or_default(),
            Severity::Error,
            e.message(),
        )]
    })?;
    validate::validate(document, text, directory)
}
