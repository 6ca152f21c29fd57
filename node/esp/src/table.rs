//! A hash table that is read without a lock.
//!
//! A bucket is a chain of nodes that never change. Whoever changes the table makes the nodes in front of the change anew and then exchanges the
//! head of the chain, so that a reader sees the chain as it was or as it is. A table that becomes full gets twice as many buckets, made anew
//! beside the old ones: so adding an item costs the same however many there are, taken together.

use arc_swap::{ArcSwap, ArcSwapOption};
use evergate_crypto::prefetch;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Buckets of an empty table.
const FIRST: usize = 64;

/// Items by a hash, which the owner computes. One thread at a time changes it; the others read.
pub(crate) struct Table<T> {
    buckets: ArcSwap<Buckets<T>>,
    /// How many items there are. Held while something changes.
    count: Mutex<usize>,
}

/// As many as a power of two.
type Buckets<T> = Box<[ArcSwapOption<Node<T>>]>;

struct Node<T> {
    hash: u32,
    item: T,
    next: Chain<T>,
}

type Chain<T> = Option<Arc<Node<T>>>;

impl<T> Drop for Node<T> {
    /// A long chain would take a long stack.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut node) = next.and_then(Arc::into_inner) {
            next = node.next.take();
        }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            buckets: ArcSwap::from_pointee(empty(FIRST)),
            count: Mutex::new(0),
        }
    }
}

fn empty<T>(count: usize) -> Buckets<T> {
    (0..count).map(|_| ArcSwapOption::empty()).collect()
}

fn of<T>(buckets: &Buckets<T>, hash: u32) -> &ArcSwapOption<Node<T>> {
    &buckets[hash as usize & (buckets.len() - 1)]
}

impl<T: Clone> Table<T> {
    /// What `look` makes of the first of the items with this hash (and maybe others) of which it makes something.
    pub(crate) fn find<R>(&self, hash: u32, mut look: impl FnMut(&T) -> Option<R>) -> Option<R> {
        let buckets = self.buckets.load();
        let head = of(&buckets, hash).load();
        let mut next = head.as_deref();
        while let Some(node) = next {
            let found = look(&node.item);
            if found.is_some() {
                return found;
            }
            next = node.next.as_deref();
        }
        None
    }

    /// Prepares to find items with these hashes: has fetched at once what all of them need, first the buckets, then what is first in them. Of the items there
    /// `first` is to have fetched what they point to, and then `next` what that points to.
    pub(crate) fn look_ahead(&self, hashes: &[u32], first: impl Fn(&T), next: impl Fn(&T)) {
        let buckets = self.buckets.load();
        for hash in hashes {
            prefetch(of(&buckets, *hash));
        }
        for hash in hashes {
            if let Some(node) = &*of(&buckets, *hash).load() {
                prefetch(&**node);
            }
        }
        for stage in [&first as &dyn Fn(&T), &next] {
            for hash in hashes {
                let head = of(&buckets, *hash).load();
                let mut node = head.as_deref();
                while let Some(n) = node {
                    if n.hash == *hash {
                        stage(&n.item);
                    }
                    node = n.next.as_deref();
                }
            }
        }
    }

    /// Shows all items, in no particular order.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&T)) {
        for bucket in self.buckets.load().iter() {
            let head = bucket.load();
            let mut next = head.as_deref();
            while let Some(node) = next {
                look(&node.item);
                next = node.next.as_deref();
            }
        }
    }

    /// Adds an item before the first of which this is said, of those with this hash and maybe others; else as the last.
    pub(crate) fn insert_before(&self, hash: u32, item: T, before: impl Fn(&T) -> bool) {
        let mut count = self.changing();
        if *count >= self.buckets.load().len() {
            self.grow();
        }
        let (ahead, behind) = self.split(hash, before);
        self.put(hash, &ahead, Some(node(hash, item, behind)));
        *count += 1;
    }

    /// Puts an item in the place of the one of which this is said; yields that, or does nothing.
    pub(crate) fn replace(&self, hash: u32, item: T, is: impl Fn(&T) -> bool) -> Option<T> {
        let _count = self.changing();
        let (ahead, found) = self.split(hash, is);
        let found = found?;
        self.put(hash, &ahead, Some(node(hash, item, found.next.clone())));
        Some(found.item.clone())
    }

    /// Removes the item of which this is said, and yields it.
    pub(crate) fn remove(&self, hash: u32, is: impl Fn(&T) -> bool) -> Option<T> {
        let mut count = self.changing();
        let (ahead, found) = self.split(hash, is);
        let found = found?;
        self.put(hash, &ahead, found.next.clone());
        *count -= 1;
        Some(found.item.clone())
    }

    /// How many items there are.
    pub(crate) fn len(&self) -> usize {
        *self.changing()
    }

    /// A panic elsewhere leaves the table whole: what is exchanged last is the head of a chain.
    fn changing(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes ahead of the first of which this is said, and the chain from there on.
    fn split(&self, hash: u32, is: impl Fn(&T) -> bool) -> (Vec<Arc<Node<T>>>, Chain<T>) {
        let mut ahead = Vec::new();
        let mut next = of(&self.buckets.load(), hash).load_full();
        while let Some(node) = next.take_if(|node| !is(&node.item)) {
            next.clone_from(&node.next);
            ahead.push(node);
        }
        (ahead, next)
    }

    fn put(&self, hash: u32, ahead: &[Arc<Node<T>>], behind: Chain<T>) {
        let again = |behind, n: &Arc<Node<T>>| Some(node(n.hash, n.item.clone(), behind));
        let chain = ahead.iter().rev().fold(behind, again);
        of(&self.buckets.load(), hash).store(chain);
    }

    /// Whoever still reads the old buckets sees the table as it was when they began.
    fn grow(&self) {
        let old = self.buckets.load();
        let new = empty(old.len() * 2);
        for bucket in old.iter() {
            let mut nodes = Vec::new();
            let mut next = bucket.load_full();
            while let Some(node) = next {
                next = node.next.clone();
                nodes.push(node);
            }
            // From the last to the first, so that each chain keeps its order.
            for n in nodes.into_iter().rev() {
                let bucket = of(&new, n.hash);
                let behind = bucket.load_full();
                bucket.store(Some(node(n.hash, n.item.clone(), behind)));
            }
        }
        self.buckets.store(Arc::new(new));
    }
}

fn node<T>(hash: u32, item: T, next: Chain<T>) -> Arc<Node<T>> {
    Arc::new(Node { hash, item, next })
}

#[cfg(test)]
mod tests;
