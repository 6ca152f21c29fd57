//! Both ends at the same time (RFC 7296 §2.8.1, §2.8.2, §2.25).

use super::bench::Pair;
use crate::{record::Fate, sa::Command};
use std::time::Duration;

fn both(pair: &mut Pair, command: impl Fn(&mut Pair, bool) -> Command) {
    for b in [false, true] {
        let command = command(pair, b);
        pair.command(b, command);
    }
}

fn finish(mut pair: Pair, what: &str) {
    pair.settle();
    pair.pass(Duration::from_secs(30));
    pair.check_agreement();
    assert_eq!(pair.a.children().len(), 1, "{what}: {:?}", pair.a.events);
    assert!(
        pair.a
            .children()
            .iter()
            .chain(pair.b.children())
            .all(|c| c.fate == Fate::Live),
        "{what}"
    );
    pair.pass(Duration::from_secs(900));
    assert_eq!((pair.a.sas.len(), pair.b.sas.len()), (1, 1), "{what}");
}

#[test]
fn both_rekey_the_same_child() {
    for seed in 0..16 {
        let mut pair = Pair::new();
        pair.now.0 += seed;
        pair.connect();
        for _ in 0..seed {
            pair.command(false, Command::RekeyIke); // moves the random numbers on, so that either end's nonce is the lowest
            pair.settle();
        }
        both(&mut pair, |p, b| {
            Command::RekeyChild(p.end(b).children()[0].spi_in)
        });
        finish(pair, "child");
    }
}

#[test]
fn both_rekey_the_ike_sa() {
    for seed in 0..16 {
        let mut pair = Pair::new();
        pair.connect();
        for _ in 0..seed {
            pair.command(true, Command::RekeyIke);
            pair.settle();
        }
        both(&mut pair, |_, _| Command::RekeyIke);
        finish(pair, "ike");
    }
}

#[test]
fn one_rekeys_the_child_and_the_other_the_ike_sa() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        if b {
            Command::RekeyIke
        } else {
            Command::RekeyChild(p.a.children()[0].spi_in)
        }
    });
    finish(pair, "both");
}

#[test]
fn one_rekeys_what_the_other_deletes() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        let spi = p.end(b).children()[0].spi_in;
        if b {
            Command::DeleteChild(spi)
        } else {
            Command::RekeyChild(spi)
        }
    });
    pair.settle();
    pair.pass(Duration::from_secs(30));
    pair.check_agreement();
    assert!(pair.a.children().is_empty());
}

#[test]
fn both_delete_the_same_child() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |p, b| {
        Command::DeleteChild(p.end(b).children()[0].spi_in)
    });
    pair.settle();
    pair.check_agreement();
    assert!(pair.a.children().is_empty());
}

#[test]
fn both_delete_the_ike_sa() {
    let mut pair = Pair::new();
    pair.connect();
    both(&mut pair, |_, _| Command::Delete);
    pair.settle();
    pair.pass(Duration::from_secs(900));
    assert!(pair.a.sas.is_empty() && pair.b.sas.is_empty());
}

/// Each message of a double rekey may be lost, once.
#[test]
fn collisions_with_loss() {
    for ike in [false, true] {
        for lost in 0..12 {
            let mut pair = Pair::new();
            pair.connect();
            both(&mut pair, |p, b| {
                if ike {
                    Command::RekeyIke
                } else {
                    Command::RekeyChild(p.end(b).children()[0].spi_in)
                }
            });
            let mut n = 0;
            pair.settle_if(|_| {
                n += 1;
                n - 1 != lost
            });
            finish(pair, &format!("ike {ike}, lost {lost}"));
        }
    }
}
