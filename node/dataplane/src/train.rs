//! Sealed packets that wait to leave together.

use crate::{Gate, child::Child, exit::Destination};
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

/// Packets that go to one place, one behind the other: all as long as the first, only the last may be shorter. They may be of several Child SAs, whose
/// gate is the same.
pub(crate) struct Run {
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

/// Packets of one Child SA that follow each other in a train: from those of the group before up to this one.
struct Group {
    child: Arc<Child>,
    end: usize,
}

/// What was sealed since the last departure. Its memory is used again and again.
pub(crate) struct Train {
    bytes: Vec<u8>,
    used: usize,
    /// The length of the inner packet of each.
    inner_lens: Vec<usize>,
    groups: Vec<Group>,
    runs: Vec<Run>,
}

impl Train {
    pub(crate) fn new() -> Self {
        Self {
            // The last packet may begin just before the capacity is reached.
            bytes: vec![0; CAPACITY + HEADROOM + MAX_INNER + TAILROOM],
            used: 0,
            inner_lens: Vec::with_capacity(MAX_PACKETS),
            groups: Vec::with_capacity(MAX_PACKETS),
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
        let first = self.inner_lens.len();
        self.used = sealed.end;
        self.inner_lens.push(inner_len);
        let same_gate = self.belongs_to(child, first);
        if let Some(last) = self.runs.last_mut()
            && same_gate
            && last.takes(&to, sealed.len())
        {
            last.complete = sealed.len() < last.segment;
            last.bytes.end = sealed.end;
            last.count += 1;
            return;
        }
        self.runs.push(Run {
            to,
            segment: sealed.len(),
            bytes: sealed,
            count: 1,
            first,
            complete: false,
        });
    }

    /// Notes whose packet this is. Yields whether the gate of the one before is the same.
    fn belongs_to(&mut self, child: &Arc<Child>, packet: usize) -> bool {
        let end = packet + 1;
        let same_gate = match self.groups.last_mut() {
            Some(last) if Arc::ptr_eq(&last.child, child) => {
                last.end = end;
                return true;
            }
            Some(last) => Arc::ptr_eq(&last.child.gate, &child.gate),
            None => false,
        };
        let child = Arc::clone(child);
        self.groups.push(Group { child, end });
        same_gate
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.inner_lens.clear();
        self.groups.clear();
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

    /// Whose packets of a run these are: each Child SA with those that follow each other.
    pub(crate) fn children(
        &self,
        run: &Run,
        packets: Range<usize>,
    ) -> impl Iterator<Item = (&Arc<Child>, Range<usize>)> {
        let (mut next, end) = (packets.start, packets.end);
        let first = run.first;
        let at = self.groups.partition_point(|g| g.end <= first + next);
        let groups = self.groups[at..].iter();
        groups.map_while(move |group| {
            let start = next;
            next = end.min(group.end - first);
            (start < next).then_some((&group.child, start..next))
        })
    }

    /// What lets a run out.
    pub(crate) fn gate(&self, run: &Run) -> &Gate {
        let at = self.groups.partition_point(|g| g.end <= run.first);
        &self.groups[at].child.gate
    }
}

impl Run {
    fn takes(&self, to: &Destination, len: usize) -> bool {
        !self.complete
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

    /// Child SAs with one gate.
    fn children() -> [Arc<Child>; 2] {
        let sa = child_sa(0x1000);
        [Child::new(&sa), Child::new(&sa)].map(|child| Arc::new(child.unwrap()))
    }

    fn to(class: u8) -> Destination {
        Destination {
            exit: Exit::Socket(1),
            remote: "192.0.2.2:4500".parse().unwrap(),
            local: "192.0.2.1".parse().unwrap(),
            traffic_class: class,
            fragmentable: false,
            hop: None,
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

    /// Whose packets they are: `a`'s or others'.
    fn owners(
        train: &Train,
        run: usize,
        of: Range<usize>,
        a: &Arc<Child>,
    ) -> Vec<(bool, Range<usize>)> {
        let children = train.children(&train.runs()[run], of);
        children
            .map(|(child, range)| (Arc::ptr_eq(child, a), range))
            .collect()
    }

    #[test]
    fn equal_packets_of_one_way_run_together_and_a_shorter_one_is_the_last() {
        let (mut train, [a, _]) = (Train::new(), children());
        for (fill, len) in [(1, 100), (2, 100), (3, 60), (4, 60), (5, 100)] {
            add(&mut train, &a, 0, fill, len);
        }
        add(&mut train, &a, 8, 6, 100);
        let expected = [(3, 104), (1, 64), (1, 104), (1, 104)];
        assert_eq!(shape(&train), expected);
        let first = &train.runs()[0];
        assert_eq!(train.bytes(first, 0..3).len(), 104 + 104 + 64);
        assert_eq!(train.bytes(first, 1..2), [2; 104]);
        assert_eq!(train.bytes(first, 2..3), [3; 64]);
        assert_eq!(train.inner_bytes(first, 0..3), 260);
        assert_eq!(train.inner_bytes(first, 2..3), 60);
        assert_eq!(train.inner_bytes(&train.runs()[3], 0..1), 100);
        assert_eq!(owners(&train, 0, 0..3, &a), [(true, 0..3)]);
        assert_eq!(owners(&train, 3, 0..1, &a), [(true, 0..1)]);
    }

    #[test]
    fn child_sas_of_one_gate_run_together_and_each_packet_is_of_its_own() {
        let (mut train, [a, b]) = (Train::new(), children());
        for child in [&a, &b, &b, &a, &b] {
            add(&mut train, child, 0, 0, 100);
        }
        let other = Arc::new(Child::new(&child_sa(0x2000)).unwrap());
        for child in [&other, &a] {
            add(&mut train, child, 0, 0, 100);
        }
        assert_eq!(shape(&train), [(5, 104), (1, 104), (1, 104)]);
        let all = [(true, 0..1), (false, 1..3), (true, 3..4), (false, 4..5)];
        assert_eq!(owners(&train, 0, 0..5, &a), all);
        assert_eq!(owners(&train, 0, 2..4, &a), [(false, 2..3), (true, 3..4)]);
        assert_eq!(owners(&train, 0, 2..2, &a), []);
        assert_eq!(owners(&train, 1, 0..1, &other), [(true, 0..1)]);
        assert!(std::ptr::eq(train.gate(&train.runs()[0]), &*a.gate));
        assert!(std::ptr::eq(train.gate(&train.runs()[1]), &*other.gate));
        assert!(std::ptr::eq(train.gate(&train.runs()[2]), &*a.gate));
    }

    #[test]
    fn runs_and_trains_are_bounded() {
        let (mut train, [child, _]) = (Train::new(), children());
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
