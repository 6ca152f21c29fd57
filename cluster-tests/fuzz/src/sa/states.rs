//! SAs in every state, for who wants to say something to one.

use super::{Pair, script::policies};
use evergate_ike::sa::Command;
use std::{sync::OnceLock, time::Duration};

/// A pair, and which end is spoken to.
struct Prepared {
    pair: Pair,
    to_b: bool,
}

/// SAs in every state.
pub(crate) struct States;

impl States {
    /// Lets `work` have a pair in which an SA is in the state of this number.
    pub(crate) fn with(number: u8, work: impl FnOnce(&mut Pair, bool)) {
        static ALL: OnceLock<Vec<Prepared>> = OnceLock::new();
        let all = ALL.get_or_init(|| (0..policies().len()).flat_map(states).collect());
        let chosen = &all[usize::from(number) % all.len()];
        work(&mut chosen.pair.like(), chosen.to_b);
    }
}

/// What an end has to do when it is spoken to.
const COMMANDS: [Option<Command>; 5] = [
    None,
    Some(Command::RekeyIke),
    Some(Command::RekeyChild(0)),
    Some(Command::DeleteChild(0)),
    Some(Command::Delete),
];

/// All states of one setup: while it is set up, as each end, and established with and without a request under way.
fn states(setup: usize) -> Vec<Prepared> {
    let mut all = Vec::new();
    // Setting up: every message is the last one that arrives.
    for messages in 1..8 {
        let mut pair = Pair::new(&policies()[setup]);
        pair.initiate(false, 0);
        let mut last = false;
        for _ in 0..messages {
            let Some(packet) = pair.wire.pop_front() else {
                break;
            };
            last = packet.to_b;
            pair.deliver(&packet);
        }
        all.push(Prepared {
            pair: pair.like(),
            to_b: last,
        });
        if pair.wire.is_empty() {
            break;
        }
    }
    for to_b in [false, true] {
        for command in &COMMANDS {
            let mut pair = Pair::new(&policies()[setup]);
            pair.initiate(false, 0);
            pair.settle();
            pair.pass(Duration::from_secs(1), true);
            let child = pair
                .sa_of(to_b)
                .and_then(|sa| sa.record().children().first())
                .map_or(0, |c| c.spi_in);
            let command = match command {
                Some(Command::RekeyChild(_)) => Some(Command::RekeyChild(child)),
                Some(Command::DeleteChild(_)) => Some(Command::DeleteChild(child)),
                other => other.clone(),
            };
            if let Some(command) = command {
                pair.command(to_b, command);
            }
            all.push(Prepared {
                pair: pair.like(),
                to_b,
            });
        }
    }
    all
}
