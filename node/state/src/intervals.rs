//! A set of numbers that knows its gaps: finds the lowest absent one of a range in logarithmic time, however wide the range.

use std::collections::BTreeMap;

/// A set of numbers as disjoint intervals that do not touch: first to last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervals(BTreeMap<u128, u128>);

impl Intervals {
    /// Adds a number; nothing happens if it is there.
    pub(crate) fn insert(&mut self, n: u128) {
        if self.around(n).is_some() {
            return;
        }
        let mut first = n;
        let mut last = n;
        if let Some((f, _)) = n.checked_sub(1).and_then(|below| self.around(below)) {
            first = f;
        }
        if let Some(l) = n.checked_add(1).and_then(|above| self.0.remove(&above)) {
            last = l;
        }
        self.0.insert(first, last);
    }

    /// Takes a number out; nothing happens if it is not there.
    pub(crate) fn remove(&mut self, n: u128) {
        let Some((first, last)) = self.around(n) else {
            return;
        };
        self.0.remove(&first);
        if first < n {
            self.0.insert(first, n - 1);
        }
        if n < last {
            self.0.insert(n + 1, last);
        }
    }

    /// The lowest number from `first` to `last` that is not in the set.
    pub(crate) fn lowest_absent(&self, first: u128, last: u128) -> Option<u128> {
        let candidate = match self.around(first) {
            Some((_, end)) => end.checked_add(1)?,
            None => first,
        };
        (candidate <= last).then_some(candidate)
    }

    /// The interval that holds `n`.
    fn around(&self, n: u128) -> Option<(u128, u128)> {
        self.0
            .range(..=n)
            .next_back()
            .map(|(f, l)| (*f, *l))
            .filter(|(_, last)| n <= *last)
    }
}
