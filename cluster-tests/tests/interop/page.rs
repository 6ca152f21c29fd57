//! `docs/interop.md`.

use crate::scenario::Case;
use anyhow::{Context, bail};
use evergate_cluster_tests::Result;
use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

/// Whether each case of each scenario went well.
pub(crate) type Results = BTreeMap<(&'static str, Case), bool>;

/// A line of a table.
pub(crate) struct Line {
    /// Its name, as in the name of a test.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) what: &'static str,
    /// Columns that are left out, and why.
    pub(crate) without: Vec<(Case, &'static str)>,
}

/// Writes the page if the environment asks for it; else, after a complete run, it must be what the results say.
pub(crate) fn settle(
    table: &[(&'static str, Vec<Line>)],
    results: &Results,
    complete: bool,
) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interop.md");
    let write = std::env::var_os("EVERGATE_WRITE_INTEROP").is_some();
    if !complete {
        return if write {
            bail!(
                "not all scenarios were played, so that {} is not written",
                path.display()
            )
        } else {
            Ok(())
        };
    }
    let page = page(table, results);
    if write {
        return fs::write(&path, page).with_context(|| path.display().to_string());
    }
    if fs::read_to_string(&path).unwrap_or_default() != page {
        bail!("docs/interop.md is not what was seen: cluster-tests/interop writes it");
    }
    Ok(())
}

fn page(table: &[(&'static str, Vec<Line>)], results: &Results) -> String {
    let mut out = String::from(
        "# Interoperability\n\n\
         This page is written by `cluster-tests/interop` from what it saw: each cell was played with real processes in network namespaces. The tunnel \
         comes up, carries numbered datagrams of both IP versions both ways, the other side rekeys the Child SA and the initiator the IKE SA, datagrams again, \
         and the responder ends it. No datagram is lost, no IV is used twice, and Wireshark finds nothing wrong with any message \
         (of hybrid key exchanges, with what is not encrypted). \
         `cluster-tests/run` plays all of it and fails if a cell is another.\n\n\
         *5.9* is strongSwan of Debian 12 (ESP in UDP from user space), *6.1* that of Debian forky (plain ESP). *starts* means that strongSwan is the initiator, \
         *answers* that Evergate is.\n",
    );
    let mut notes: Vec<&str> = Vec::new();
    for (topic, lines) in table {
        let _ = write!(
            out,
            "\n## {topic}\n\n| scenario | what | 5.9 starts | 5.9 answers | 6.1 starts | 6.1 answers |\n| --- | --- | --- | --- | --- | --- |\n"
        );
        for line in lines {
            let cells =
                Case::ALL.map(
                    |case| match line.without.iter().find(|(other, _)| *other == case) {
                        Some((_, why)) => format!("[{}]", note(&mut notes, why)),
                        None if results.get(&(line.name, case)) == Some(&true) => "yes".to_owned(),
                        None => "**no**".to_owned(),
                    },
                );
            let _ = writeln!(
                out,
                "| `{}` | {} | {} |",
                line.name,
                line.what,
                cells.join(" | ")
            );
        }
    }
    if !notes.is_empty() {
        out.push('\n');
    }
    for (number, note) in (1..).zip(&notes) {
        let _ = writeln!(out, "[{number}] {note}");
    }
    out
}

/// The number of a note, the same for the same text.
fn note<'n>(notes: &mut Vec<&'n str>, why: &'n str) -> usize {
    let at = notes.iter().position(|n| *n == why).unwrap_or_else(|| {
        notes.push(why);
        notes.len() - 1
    });
    at + 1
}
