//! Invariant 7: keys that data planes were given are in no line of a log, in no stream between members, and on no disk.

use crate::checks::violated;
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// So much of a key is enough to know it by.
const ENOUGH: usize = 12;

struct Secrets {
    known: BTreeSet<[u8; ENOUGH]>,
    /// Which pairs of bytes keys begin with: nearly all that is searched is passed over by this.
    begins: Vec<bool>,
}

static SECRETS: Mutex<Secrets> = Mutex::new(Secrets {
    known: BTreeSet::new(),
    begins: Vec::new(),
});

fn secrets() -> MutexGuard<'static, Secrets> {
    SECRETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This is a key.
pub(crate) fn learn(key: &[u8]) {
    let Some(start) = key.first_chunk::<ENOUGH>() else {
        return;
    };
    let mut secrets = secrets();
    secrets.begins.resize(1 << 16, false);
    secrets.begins[usize::from(u16::from_be_bytes([start[0], start[1]]))] = true;
    secrets.known.insert(*start);
}

impl Secrets {
    fn are_in(&self, bytes: &[u8]) -> bool {
        if self.known.is_empty() {
            return false;
        }
        bytes.windows(ENOUGH).any(|w| {
            self.begins[usize::from(w[0]) << 8 | usize::from(w[1])] && self.known.contains(w)
        })
    }
}

/// Looks for keys in what is written, or sent.
pub(crate) fn search(where_: &str, bytes: &[u8]) {
    let found = secrets().are_in(bytes);
    if found {
        violated("7, no key in the clear", where_);
    }
}

/// Looks for keys in a line of a log, also where they are written as hexadecimal digits or as numbers.
pub(crate) fn search_line(line: &str) {
    search("a line of a log", line.as_bytes());
    for bytes in [hex(line), numbers(line)].into_iter().flatten() {
        if bytes.len() >= ENOUGH {
            search("a line of a log", &bytes);
        }
    }
}

/// What could be bytes in hexadecimal digits, with or without something between them.
fn hex(line: &str) -> Vec<Vec<u8>> {
    let runs = line.split(|c: char| !c.is_ascii_hexdigit() && !", :".contains(c));
    let digits = runs.map(|run| {
        run.chars()
            .filter_map(|c| c.to_digit(16))
            .collect::<Vec<_>>()
    });
    let long = digits.filter(|d| d.len() >= 2 * ENOUGH);
    // Where the first digit of a byte is, is not known.
    long.flat_map(|d| [pairs(&d), pairs(&d[1..])]).collect()
}

fn pairs(digits: &[u32]) -> Vec<u8> {
    let (pairs, _) = digits.as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| u8::try_from(high << 4 | low));
    bytes.map(Result::unwrap_or_default).collect()
}

/// What could be bytes in a list of numbers.
fn numbers(line: &str) -> Vec<Vec<u8>> {
    let lists = line.split(['[', ']', '(', ')']);
    let bytes = lists.map(|list| list.split(", ").map_while(|n| n.parse().ok()).collect());
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_however_they_are_written() {
        let key = [0x1a, 0xff, 0x00, 0x5c, 9, 10, 11, 12, 13, 14, 15, 16];
        let plain = format!("key={}", key.map(|b| format!("{b:02x}")).concat());
        for line in [
            plain.clone(),
            format!("sa=c64691187e64d180 a{plain}"),
            format!("key {key:02x?} of a child"),
        ] {
            assert!(
                hex(&line).iter().any(|b| b.windows(12).any(|w| w == key)),
                "{line}"
            );
        }
        assert!(numbers(&format!("key {key:?}")).contains(&key.to_vec()));
        let mut secrets = Secrets {
            known: BTreeSet::from([key]),
            begins: vec![false; 1 << 16],
        };
        assert!(!secrets.are_in(&key));
        secrets.begins[0x1aff] = true;
        assert!(secrets.are_in(&[&[7; 40], &key[..], &[8]].concat()));
        assert!(!secrets.are_in(&[&[7; 40], &key[..11], &[8]].concat()));
    }
}
