//! Interoperability with strongSwan 5.9 and 6.1: a table of scenarios, each
//! played with either side as initiator, as one test each.
//!
//! `docs/interop.md` is generated from the results. A complete run fails if
//! the page says something else; `cluster-tests/interop` writes it anew.

mod algorithms;
mod authentication;
mod lifetime;
mod network;
mod page;
mod play;
mod scenario;
mod series;

use evergate_cluster_tests::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use page::{Line, Results};
use scenario::{Case, Scenario};
use series::Series;
use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

/// What is played for one table of the page.
struct Topic {
    name: &'static str,
    scenarios: Vec<Scenario>,
    series: Vec<Series>,
}

/// Everything, by topic.
fn table() -> Vec<Topic> {
    let of = |name, scenarios| Topic {
        name,
        scenarios,
        series: Vec::new(),
    };
    vec![
        of("Authentication", authentication::scenarios()),
        Topic {
            series: algorithms::series(),
            ..of("Algorithms", algorithms::scenarios())
        },
        of("Networks", network::scenarios()),
        of("Lifetime", lifetime::scenarios()),
    ]
}

impl Topic {
    fn lines(&self) -> (&'static str, Vec<Line>) {
        let own = self.scenarios.iter().map(Scenario::line);
        let others = self.series.iter().flat_map(Series::lines);
        (self.name, own.chain(others).collect())
    }

    /// The tests, and how many cells they fill.
    fn trials(&self, results: &Arc<Mutex<Results>>) -> (Vec<Trial>, usize) {
        let (mut trials, mut cells) = (Vec::new(), 0);
        for scenario in &self.scenarios {
            for case in scenario.cases() {
                let (scenario, results) = (scenario.clone(), Arc::clone(results));
                cells += 1;
                let name = format!("interop::{}::{}", scenario.name, case.name());
                trials.push(Trial::test(name, move || {
                    let played = play::play(&scenario, case);
                    note(&results, case, vec![(scenario.name, played)])
                }));
            }
        }
        for series in &self.series {
            for case in series.cases() {
                let (series, results) = (series.clone(), Arc::clone(results));
                cells += series.rows.len();
                let name = format!("interop::{}::{}", series.name, case.name());
                trials.push(Trial::test(name, move || {
                    note(&results, case, series.play(case))
                }));
            }
        }
        (trials, cells)
    }
}

/// Notes how rows of a column went; all must have gone well.
fn note(
    results: &Mutex<Results>,
    case: Case,
    played: Vec<(&'static str, Result<()>)>,
) -> std::result::Result<(), Failed> {
    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failed = Vec::new();
    for (name, played) in played {
        results.insert((name, case), played.is_ok());
        if let Err(error) = played {
            failed.push(format!("{name}: {error:?}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failed::from(failed.join("\n")))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let table = table();
    let results = Arc::new(Mutex::new(Results::default()));
    let (mut trials, mut all) = (Vec::new(), 0);
    for topic in &table {
        let (more, cells) = topic.trials(&results);
        trials.extend(more);
        all += cells;
    }
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    let results = results.lock().unwrap_or_else(PoisonError::into_inner);
    let complete = !listing && results.len() == all;
    let lines: Vec<_> = table.iter().map(Topic::lines).collect();
    match page::settle(&lines, &results, complete) {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
