//! What is wrong with a configuration, and where.

use std::{fmt, ops::Range};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The configuration is not used.
    Error,
    /// The configuration is used, but something in it is probably not meant.
    Warning,
}

/// A problem and its place. Lines and columns count from one, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// Line.
    pub(crate) line: usize,
    /// Column.
    pub(crate) column: usize,
    /// What is wrong and what is expected.
    pub(crate) message: String,
}

impl Problem {
    /// A problem with the part of `text` that `span` (in bytes) covers.
    pub(super) fn at(
        text: &str,
        span: Range<usize>,
        severity: Severity,
        message: impl Into<String>,
    ) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Self {
            severity,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        // Messages of the TOML parser may span lines; a problem is one line everywhere.
        let message = self.message.replace('\n', ", ");
        write!(f, "{}:{}: {severity}: {message}", self.line, self.column)
    }
}

/// Problems as lines, each with the name of the file.
pub(crate) fn render(path: &str, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("{path}:{p}")).collect();
    lines.join("\n")
}
