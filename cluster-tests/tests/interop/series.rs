//! Rows that differ in their proposals only: one after the other on the same processes, each with the whole course.

use crate::page::Line;
use crate::play;
use crate::scenario::{Case, Version};
use anyhow::Context;
use evergate_cluster_tests::Result;
use evergate_cluster_tests::connection::Connection;
use evergate_cluster_tests::duo::{Duo, Setup};

/// A row of the table: its name, what it shows, and the proposals for the IKE SA and the Child SA.
pub(crate) type Row = (&'static str, &'static str, &'static str, &'static str);

/// Rows that are played on the same processes.
#[derive(Clone)]
pub(crate) struct Series {
    /// As in the name of a test.
    pub(crate) name: &'static str,
    /// The rows.
    pub(crate) rows: &'static [Row],
    /// The keys of an IKE SA change while it is set up (RFC 9370 §2.2.2): Wireshark of Debian 12 knows one set of keys for each, so it looks at
    /// what is not encrypted only.
    pub(crate) changes_keys: bool,
    /// A version that is left out, and why.
    pub(crate) without: Option<(Version, &'static str)>,
}

impl Series {
    /// The columns that are played.
    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> {
        let without = self.without.map(|(version, _)| version);
        Case::ALL
            .into_iter()
            .filter(move |case| Some(case.version) != without)
    }

    /// Its lines of the page.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let without: Vec<_> = self
            .without
            .into_iter()
            .flat_map(|(version, why)| {
                let left_out = Case::ALL.into_iter().filter(move |c| c.version == version);
                left_out.map(move |case| (case, why))
            })
            .collect();
        self.rows
            .iter()
            .map(|(name, what, ..)| Line {
                name,
                what,
                without: without.clone(),
            })
            .collect()
    }

    /// Plays all rows of a column. The member accepts the proposals of all of them, and the peer only those of the one.
    pub(crate) fn play(&self, case: Case) -> Vec<(&'static str, Result<()>)> {
        let failed = |why: &anyhow::Error| {
            let all = self.rows.iter();
            all.map(|row| (row.0, Err(anyhow::anyhow!("{why:?}"))))
                .collect()
        };
        let setup = self.setup(case);
        let duo = match Duo::start(&setup) {
            Ok(duo) => duo,
            Err(error) => return failed(&error),
        };
        let mut results = Vec::new();
        for (name, _, ike, esp) in self.rows {
            let played = one(&duo, &setup.peer, case, (ike, esp), !self.changes_keys);
            results.push((*name, played.with_context(|| format!("{ike} / {esp}"))));
        }
        match duo.finish() {
            Ok(_) => results,
            Err(error) => failed(&error),
        }
    }

    fn setup(&self, case: Case) -> Setup {
        let mut setup = case.setup();
        setup.gateway.proposals = self.rows.iter().map(|row| row.2.to_owned()).collect();
        setup.gateway.esp = self.rows.iter().map(|row| row.3.to_owned()).collect();
        setup
    }
}

fn one(
    duo: &Duo,
    peer: &Connection,
    case: Case,
    (ike, esp): (&str, &str),
    keys: bool,
) -> Result<()> {
    duo.peer.load(&[Connection {
        proposals: vec![ike.into()],
        esp: vec![esp.into()],
        ..peer.clone()
    }])?;
    play::initiate(duo, case.by)?;
    let first = duo.agree(1)?;
    play::between_networks(duo)?;
    play::rekey(duo, 1, case.by, &first)?;
    play::between_networks(duo)?;
    play::end(duo, case.by)?;
    play::dissected(duo, keys)
}
