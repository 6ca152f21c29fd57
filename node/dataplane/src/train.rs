//! Sealed packets that wait to leave together.

use crate::{child::Child, exit::Destination};
use evergate_esp::{HEADROOM, TAILROOM};
use std::{ops::Range, sync::Arc};

/// Bytes of packets that leave together: what fits the cache of one core beside the rest.
const CAPACITY: usize = 256 << 10;
/// The largest inner packet.
pub(crate) const MAX_INNER: usize = 65_535;
/// Packets that leave together at most.
pub(crate) const MAX_PACKETS: usize = 256;
/// Packets that the kernel takes as one to cut (UDP_MAX_SEGMENTS of older kernels)...
const MAX_SEGMENTS: usize = 64;
/// ... and their bytes: a UDP datagram over IPv4.
const MAX_BYTES: usize = 65_507;

/// Packets of one Child SA that go to one place, one behind the other: all as long as the first, only the last may be shorter.
pub(crate) struct Run {
    pub(crate) child: Arc<Child>,
    pub(crate) to: Destination,
    /// Where they are.
    bytes: Range<usize>,
    /// The length of each but the last.
    pub(crate) segment: usize,
    pub(crate) count: usize,
    /// Which of all packets of the train is its first.
    first: usize,
    /// The last was shorter.
    complete: bool,
}

/// What was sealed since the last departure. Its memory is used again and again.
pub(crate) struct Train {
    bytes: Vec<u8>,
    used: usize,
    /// The length of the inner packet of each.
    inner_lens: Vec<usize>,
    runs: Vec<Run>,
}

impl Train {
    pub(crate) fn new() -> Self {
        Self {
            // The last packet may begin just before the capacity is reached.
            bytes: vec![0; CAPACITY + HEADROOM + MAX_INNER + TAILROOM],
            used: 0,
            inner_lens: Vec::with_capacity(MAX_PACKETS),
            runs: Vec::with_capacity(MAX_PACKETS),
        }
    }

    /// Whether it must leave before anything is added.
    pub(crate) fn is_full(&self) -> bool {
        self.used >= CAPACITY || self.inner_lens.len() >= MAX_PACKETS
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Where the next inner packet goes if its ESP header has this length, and the buffer with room around that.
    pub(crate) fn room(&mut self, head_len: usize, inner_len: usize) -> (&mut [u8], Range<usize>) {
        let start = self.used + head_len;
        (&mut self.bytes, start..start + inner_len)
    }

    /// What was put there is sealed and goes.
    pub(crate) fn add(
        &mut self,
        child: &Arc<Child>,
        to: Destination,
        sealed: Range<usize>,
        inner_len: usize,
    ) {
        self.used = sealed.end;
        self.inner_lens.push(inner_len);
        if let Some(last) = self.runs.last_mut()
            && last.takes(child, &to, sealed.len())
        {
            last.complete = sealed.len() < last.segment;
            last.bytes.end = sealed.end;
            last.count += 1;
            return;
        }
        self.runs.push(Run {
            child: Arc::clone(child),
            to,
            segment: sealed.len(),
            bytes: sealed,
            count: 1,
            first: self.inner_lens.len() - 1,
            complete: false,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.inner_lens.clear();
        self.runs.clear();
    }

    /// The bytes of packets of a run.
    pub(crate) fn bytes(&self, run: &Run, packets: Range<usize>) -> &[u8] {
        let start = run.bytes.start + packets.start * run.segment;
        let end = run.bytes.start + packets.end * run.segment;
        &self.bytes[start..end.min(run.bytes.end)]
    }

    /// How many bytes their inner packets have.
    pub(crate) fn inner_bytes(&self, run: &Run, packets: Range<usize>) -> usize {
        let lens = &self.inner_lens[run.first + packets.start..run.first + packets.end];
        lens.iter().sum()
    }
}

impl Run {
    fn takes(&self, child: &Arc<Child>, to: &Destination, len: usize) -> bool {
        !self.complete
            && Arc::ptr_eq(&self.child, child)
            && self.to == *to
            && len <= self.segment
            && self.count < MAX_SEGMENTS
            && self.bytes.len() + len <= MAX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{child::tests::child_sa, exit::Exit};

    fn child() -> Arc<Child> {
        Arc::new(Child::new(&child_sa(0x1000)).unwrap())
    }

    fn to(class: u8) -> Destination {
        Destination {
            exit: Exit::Socket(1),
            remote: "192.0.2.2:4500".parse().unwrap(),
            local: "192.0.2.1".parse().unwrap(),
            traffic_class: class,
            fragmentable: false,
        }
    }

    /// Adds a packet whose bytes are all `fill`, as if sealing had added 4 bytes.
    fn add(train: &mut Train, child: &Arc<Child>, class: u8, fill: u8, len: usize) {
        let (buffer, inner) = train.room(4, len);
        let sealed = inner.start - 4..inner.end;
        buffer[sealed.clone()].fill(fill);
        train.add(child, to(class), sealed, len);
    }

    fn shape(train: &Train) -> Vec<(usize, usize)> {
        train.runs().iter().map(|r| (r.count, r.segment)).collect()
    }

    #[test]
    fn equal_packets_of_one_way_run_together_and_a_shorter_one_is_the_last() {
        let (mut train, a, b) = (Train::new(), child(), child());
        for (fill, len) in [(1, 100), (2, 100), (3, 60), (4, 60), (5, 100)] {
            add(&mut train, &a, 0, fill, len);
        }
        add(&mut train, &a, 8, 6, 100);
        add(&mut train, &b, 8, 7, 100);
        let expected = [(3, 104), (1, 64), (1, 104), (1, 104), (1, 104)];
        assert_eq!(shape(&train), expected);
        let first = &train.runs()[0];
        assert_eq!(train.bytes(first, 0..3).len(), 104 + 104 + 64);
        assert_eq!(train.bytes(first, 1..2), [2; 104]);
        assert_eq!(train.bytes(first, 2..3), [3; 64]);
        assert_eq!(train.inner_bytes(first, 0..3), 260);
        assert_eq!(train.inner_bytes(first, 2..3), 60);
        assert_eq!(train.inner_bytes(&train.runs()[4], 0..1), 100);
    }

    #[test]
    fn runs_and_trains_are_bounded() {
        let (mut train, child) = (Train::new(), child());
        for _ in 0..100 {
            add(&mut train, &child, 0, 0, 100);
        }
        assert_eq!(shape(&train), [(64, 104), (36, 104)]);
        assert!(!train.is_full());
        train.clear();
        assert!(train.runs().is_empty());
        while !train.is_full() {
            add(&mut train, &child, 0, 0, 1400);
        }
        assert_eq!(shape(&train)[0], (46, 1404), "no longer than a datagram");
        let packets: usize = train.runs().iter().map(|r| r.count).sum();
        assert!(packets < MAX_PACKETS && packets * 1404 >= CAPACITY);
        train.clear();
        while !train.is_full() {
            add(&mut train, &child, 0, 0, 40);
        }
        assert_eq!(shape(&train).len(), MAX_PACKETS / MAX_SEGMENTS);
        // What is added just before it is full finds room, however long it is.
        train.clear();
        for _ in 0..4 {
            add(&mut train, &child, 0, 0, MAX_INNER - 4);
        }
        assert!(!train.is_full());
        add(&mut train, &child, 0, 0, MAX_INNER);
        assert!(train.is_full());
    }
}
