use super::*;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Few hashes, so that chains are long.
fn hash(n: u32) -> u32 {
    n / 3 * 0x9e37
}

fn holds(table: &Table<u32>, n: u32) -> bool {
    table.find(hash(n), |m| (*m == n).then_some(())).is_some()
}

fn all(table: &Table<u32>) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    table.for_each(|n| assert!(all.insert(*n), "{n} is there twice"));
    all
}

#[test]
fn what_was_added_is_found_until_it_is_removed() {
    let table = Table::default();
    for n in 0..1000 {
        table.insert_before(hash(n), n, |_| true);
    }
    assert_eq!(table.len(), 1000);
    assert_eq!(all(&table), (0..1000).collect());
    for n in (0..1000).step_by(2) {
        assert_eq!(table.remove(hash(n), |m| *m == n), Some(n));
        assert_eq!(table.remove(hash(n), |m| *m == n), None);
    }
    assert_eq!(table.len(), 500);
    assert!((0..1000).all(|n| holds(&table, n) == (n % 2 == 1)));
    assert_eq!(table.replace(hash(1), 2, |m| *m == 1), Some(1));
    assert_eq!(table.replace(hash(1), 2, |m| *m == 1), None);
}

#[test]
fn the_order_of_equal_hashes_outlasts_growth() {
    let table = Table::default();
    for n in [5, 1, 3, 0, 4, 2] {
        table.insert_before(7, n, |other| *other > n);
    }
    for n in 10..1000 {
        table.insert_before(n * 8, n, |_| false);
    }
    let mut seen = Vec::new();
    let _ = table.find(7, |n| {
        seen.push(*n);
        None::<()>
    });
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_long_chain_takes_no_long_stack() {
    let table = Table::default();
    for n in 0..200_000 {
        table.insert_before(7, n, |_| true);
    }
    drop(table);
}

/// What stays is found at every moment, whatever is changed beside it.
#[test]
fn readers_are_never_told_that_nothing_is_there() {
    let table = Table::default();
    for n in (0..300).step_by(3) {
        table.insert_before(hash(n), n, |other| *other > n);
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for n in (0..300).step_by(3) {
                        assert!(holds(&table, n));
                    }
                }
            });
        }
        for round in 0..20 {
            for n in (0..6000).filter(|n| n % 3 != 0) {
                table.insert_before(hash(n), n, |other| *other > n);
            }
            for n in (0..300).step_by(3) {
                table.replace(hash(n), n, |other| *other == n);
            }
            for n in (0..6000).filter(|n| n % 3 != 0) {
                assert_eq!(
                    table.remove(hash(n), |other| *other == n),
                    Some(n),
                    "{round}"
                );
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
