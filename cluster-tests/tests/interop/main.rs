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

use libtest_mimic::{Arguments, Failed, Trial};
use page::Results;
use scenario::Scenario;
use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

/// Every scenario, by topic.
fn table() -> Vec<(&'static str, Vec<Scenario>)> {
    vec![
        ("Authentication", authentication::scenarios()),
        ("Algorithms", algorithms::scenarios()),
        ("Networks", network::scenarios()),
        ("Lifetime", lifetime::scenarios()),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let table = table();
    let results = Arc::new(Mutex::new(Results::default()));
    let (mut trials, mut all) = (Vec::new(), 0);
    for scenario in table.iter().flat_map(|(_, scenarios)| scenarios) {
        for case in scenario.cases() {
            let (scenario, results) = (scenario.clone(), Arc::clone(&results));
            all += 1;
            let name = format!("interop::{}::{}", scenario.name, case.name());
            trials.push(Trial::test(name, move || {
                let played = play::play(&scenario, case);
                results
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((scenario.name, case), played.is_ok());
                played.map_err(|e| Failed::from(format!("{e:?}")))
            }));
        }
    }
    let listing = arguments.list;
    let conclusion = libtest_mimic::run(&arguments, trials);
    let results = results.lock().unwrap_or_else(PoisonError::into_inner);
    let complete = !listing && results.len() == all;
    match page::settle(&table, &results, complete) {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}
