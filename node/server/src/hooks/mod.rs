//! Programs that an operator wants to be run when Child SAs come and go (`updown`).
//!
//! Workers only say what happened; the programs run elsewhere ([`Runner`]), a few at a time. What this process serves is known here, so that each
//! Child SA that came also goes: a standby runs nothing, a successor says that it has taken over.

mod environment;
mod runner;

use crate::shared::Shared;
use environment::{Ends, Facts, Verb};
use evergate_ike::{
    record::{Child, CloseReason, Fate, GatewayId, Phase, Record},
    sa::Event,
};
use runner::{Job, Runner};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Pairs of selectors of a Child SA for which a program is run: each is a run of its own, as with other implementations.
const MAX_PAIRS: usize = 16;

/// The hooks of a process.
#[derive(Default)]
pub(crate) struct Hooks {
    /// What is up here and has a program.
    table: Mutex<Table>,
    runner: Runner,
}

#[derive(Default)]
struct Table {
    /// Child SAs, by their inbound SPIs.
    up: HashMap<u32, Up>,
    /// How many are the same to a program: while a new authentication replaces one, there are two.
    same: HashMap<Traffic, usize>,
}

/// What a program sees of a Child SA.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Traffic {
    connection: String,
    child: String,
    peer: String,
    pairs: Vec<Ends>,
}

/// A Child SA that came.
struct Up {
    gateway: GatewayId,
    program: String,
    facts: Facts,
    traffic: Traffic,
}

impl Table {
    /// It is up. Whether a program should know.
    fn add(&mut self, spi_in: u32, up: Up) -> bool {
        let same = self.same.entry(up.traffic.clone()).or_default();
        *same += 1;
        let is_news = *same == 1;
        self.up.insert(spi_in, up);
        is_news
    }

    /// It is not up any more. Yields it if a program should know.
    fn remove(&mut self, spi_in: u32) -> Option<Up> {
        let up = self.up.remove(&spi_in)?;
        if let Some(same) = self.same.get_mut(&up.traffic) {
            *same -= 1;
            if *same > 0 {
                return None;
            }
        }
        self.same.remove(&up.traffic);
        Some(up)
    }
}

impl Hooks {
    /// Something happened to an IKE SA, whose record has it already.
    pub(crate) fn happened(&self, shared: &Shared, record: &Record, event: &Event) {
        match event {
            Event::ChildEstablished {
                spi_in, replaces, ..
            } => {
                let child = record.children().iter().find(|c| c.spi_in == *spi_in);
                match (child, replaces) {
                    (Some(child), Some(old)) => goes_on(&mut self.table(), *old, child),
                    (Some(child), None) => self.comes(shared, record, child, Verb::Up),
                    (None, _) => {}
                }
            }
            Event::ChildClosed { spi_in, reason, .. } => self.closed(record, *spi_in, *reason),
            _ => {}
        }
    }

    /// A Child SA is gone.
    fn closed(&self, record: &Record, spi_in: u32, reason: CloseReason) {
        let table = &mut self.table();
        let Some(up) = table.up.get(&spi_in) else {
            return;
        };
        // A former process may have set up what takes its place.
        let heir = record.children().iter().find(|c| c.name == up.facts.child);
        if let (CloseReason::Rekeyed, Some(heir)) = (reason, heir) {
            return goes_on(table, spi_in, heir);
        }
        if let Some(gone) = table.remove(spi_in) {
            self.run(&gone, Verb::Down(reason));
        }
    }

    /// This process serves an IKE SA that another process, or a former one, has set up.
    pub(crate) fn taken_over(&self, shared: &Shared, record: &Record) {
        for child in record.children().iter().filter(|c| c.fate == Fate::Live) {
            self.comes(shared, record, child, Verb::Takeover);
        }
    }

    /// This process does not serve a gateway any more.
    pub(crate) fn released(&self, gateway: GatewayId) {
        let table = &mut self.table();
        let gone = table.up.iter().filter(|(_, up)| up.gateway == gateway);
        let gone: Vec<u32> = gone.map(|(spi_in, _)| *spi_in).collect();
        for up in gone.into_iter().filter_map(|spi_in| table.remove(spi_in)) {
            self.run(&up, Verb::Release);
        }
    }

    /// Waits, for a while, until what was begun has ended.
    pub(crate) async fn finish(&self) {
        self.runner.finish().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn comes(&self, shared: &Shared, record: &Record, child: &Child, verb: Verb) {
        let policy = shared.policy.load();
        let config = policy
            .connection(&record.connection)
            .and_then(|c| c.child(&child.name));
        let program = config.and_then(|c| c.updown.clone());
        let (Some(program), Phase::Established(ike)) = (program, &record.phase) else {
            return;
        };
        let pairs = child
            .local_ts
            .iter()
            .flat_map(|mine| child.remote_ts.iter().map(|peer| Ends::new(mine, peer)))
            .filter(Ends::of_one_family)
            .take(MAX_PAIRS);
        let up = Up {
            gateway: shared.gateway,
            program,
            facts: Facts::new(shared, record, ike, child),
            traffic: Traffic {
                connection: record.connection.clone(),
                child: child.name.clone(),
                peer: ike.remote_id.to_string(),
                pairs: pairs.collect(),
            },
        };
        let table = &mut self.table();
        if !table.up.contains_key(&child.spi_in) && table.add(child.spi_in, up) {
            self.run(&table.up[&child.spi_in], verb);
        }
    }

    fn run(&self, up: &Up, verb: Verb) {
        for ends in &up.traffic.pairs {
            self.runner.run(Job {
                program: up.program.clone(),
                // What happens to a child happens in this order, whichever IKE SA it is of.
                subject: format!("{}/{}", up.facts.connection, up.facts.child),
                environment: up.facts.environment(verb, ends),
            });
        }
    }
}

/// A Child SA took the place of another: nothing has changed but its SPIs.
fn goes_on(table: &mut Table, old: u32, child: &Child) {
    if let Some(mut up) = table.up.remove(&old) {
        up.facts.spis = (child.spi_in, child.spi_out);
        table.up.insert(child.spi_in, up);
    }
}
