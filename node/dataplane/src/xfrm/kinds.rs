//! Kinds of Child SAs.

use crate::{ChildSa, Marks, Selector};
use std::collections::{HashMap, hash_map};

/// Our kinds of Child SAs have numbers (`reqid`) from here on, so that people can tell them from those of others.
const FIRST_KIND: u32 = 0xE600_0001;

type Key = (Vec<Selector>, Vec<Selector>, Marks);

fn key(sa: &ChildSa) -> Key {
    (sa.local_ts.clone(), sa.remote_ts.clone(), sa.marks)
}

/// Child SAs with the same selectors and marks are of one kind: what one receives any may receive.
#[derive(Default)]
pub(super) struct Kinds {
    numbers: HashMap<Key, (u32, usize)>,
    next: u32,
}

impl Kinds {
    /// The number of a Child SA's kind, which there is until the last of them leaves.
    pub(super) fn enter(&mut self, sa: &ChildSa) -> u32 {
        let key = key(sa);
        let next = &mut self.next;
        let (reqid, count) = self.numbers.entry(key).or_insert_with(|| {
            *next += 1;
            (FIRST_KIND + *next % 0x00ff_0000, 0)
        });
        *count += 1;
        *reqid
    }

    pub(super) fn leave(&mut self, sa: &ChildSa) {
        let key = key(sa);
        if let hash_map::Entry::Occupied(mut entry) = self.numbers.entry(key) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }
}
