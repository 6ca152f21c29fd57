//! Opened packets go to the kernel: those of one flow together.

use crate::{DropReason, child::Child, userspace::Shared, virtio};
use evergate_esp::{
    packet::{Inner, PacketSelectors},
    segment::{Kind, Large},
};
use std::{
    io::{self, IoSlice},
    mem,
    sync::Arc,
};

/// Flows that are put together at a time; when another comes, the one that has waited for longest goes.
const FLOWS: usize = 8;
/// Parts of one packet: what [`Large`] puts together at most.
const PARTS: usize = 64;

/// Packets on their way to the TUN device. They stay in the buffers that they were opened in.
///
/// A packet that could be followed by others of its flow waits for them, at most until [`Self::finish`]. The order within a flow stays.
#[derive(Default)]
pub(crate) struct Delivery<'p> {
    waiting: Vec<Waiting<'p>>,
    /// Lists without items, for packets that others follow.
    spare: Vec<Vec<IoSlice<'p>>>,
}

/// The memory of a delivery, for the next.
#[derive(Default)]
pub(crate) struct Stock {
    waiting: Vec<Waiting<'static>>,
    spare: Vec<Vec<IoSlice<'static>>>,
}

impl Stock {
    /// A delivery that takes no memory of its own.
    pub(crate) fn take<'p>(&mut self) -> Delivery<'p> {
        let spare = mem::take(&mut self.spare);
        Delivery {
            waiting: recycle(mem::take(&mut self.waiting)),
            spare: spare.into_iter().map(recycle).collect(),
        }
    }
}

/// The memory of a list, for items that differ in nothing but what they borrow.
fn recycle<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    let none = |_| unreachable!("there are no items");
    // The library collects into the memory that it iterates over.
    list.into_iter().map(none).collect()
}

struct Waiting<'p> {
    child: Arc<Child>,
    selectors: PacketSelectors,
    large: Large,
    first: &'p mut [u8],
    behind: Vec<IoSlice<'p>>,
    bytes: usize,
}

impl<'p> Delivery<'p> {
    /// Delivers a packet, now or with others.
    pub(crate) fn put(
        &mut self,
        shared: &Shared,
        child: &Arc<Child>,
        packet: &'p mut [u8],
        inner: &Inner,
    ) {
        let flow = self
            .waiting
            .iter()
            .position(|w| w.selectors == inner.selectors && Arc::ptr_eq(&w.child, child));
        let packet = match flow {
            Some(at) => match self.waiting[at].follow(packet, inner) {
                Ok(()) => {
                    if self.waiting[at].large.is_complete() {
                        let complete = self.waiting.remove(at);
                        self.write(shared, complete);
                    }
                    return;
                }
                Err(packet) => packet,
            },
            None => packet,
        };
        // What it cannot follow goes before it; where ports do not show, all between the same hosts.
        self.let_go(shared, inner);
        let large = Large::begin(packet, inner).filter(|l| {
            !l.is_complete() && (l.kind() == Kind::Tcp || shared.tun.takes_large_udp())
        });
        let Some(large) = large else {
            let len = packet.len();
            return count(shared, child, 1, len, shared.tun.write(packet));
        };
        if self.waiting.len() == FLOWS {
            let oldest = self.waiting.remove(0);
            self.write(shared, oldest);
        }
        self.waiting.push(Waiting {
            child: Arc::clone(child),
            selectors: inner.selectors,
            large,
            bytes: packet.len(),
            first: packet,
            behind: self.spare.pop().unwrap_or_default(),
        });
    }

    fn let_go(&mut self, shared: &Shared, inner: &Inner) {
        let PacketSelectors {
            source,
            destination,
            ports,
            ..
        } = inner.selectors;
        let same = |w: &Waiting<'_>| {
            let s = &w.selectors;
            let hosts = (s.source, s.destination) == (source, destination);
            hosts && (ports.is_none() || s.ports == ports)
        };
        while let Some(at) = self.waiting.iter().position(same) {
            let waiting = self.waiting.remove(at);
            self.write(shared, waiting);
        }
    }

    fn write(&mut self, shared: &Shared, waiting: Waiting<'p>) {
        let mut behind = waiting.write(shared);
        behind.clear();
        self.spare.push(behind);
    }

    /// Delivers all that waits for more, and gives the memory back.
    pub(crate) fn finish(mut self, shared: &Shared) -> Stock {
        let mut all = mem::take(&mut self.waiting);
        for waiting in all.drain(..) {
            self.write(shared, waiting);
        }
        Stock {
            waiting: recycle(all),
            spare: self.spare.into_iter().map(recycle).collect(),
        }
    }
}

impl<'p> Waiting<'p> {
    /// Takes a packet that goes behind the others; else gives it back.
    fn follow(&mut self, packet: &'p mut [u8], inner: &Inner) -> Result<(), &'p mut [u8]> {
        let Some(payload) = self.large.follow(self.first, packet, inner) else {
            return Err(packet);
        };
        if self.behind.is_empty() {
            self.behind.reserve_exact(PARTS);
        }
        self.bytes += packet.len();
        self.behind.push(IoSlice::new(&packet[payload]));
        Ok(())
    }

    /// Yields the list of those behind the first.
    fn write(self, shared: &Shared) -> Vec<IoSlice<'p>> {
        if self.behind.is_empty() {
            let written = shared.tun.write(self.first);
            count(shared, &self.child, 1, self.bytes, written);
            return self.behind;
        }
        self.large.finish(self.first);
        let header = virtio::of_large(&self.large, self.selectors.source.is_ipv4());
        let mut parts = [IoSlice::new(&[]); PARTS + 1];
        parts[0] = IoSlice::new(&header);
        parts[1] = IoSlice::new(self.first);
        let end = self.behind.len() + 2;
        parts[2..end].copy_from_slice(&self.behind);
        let written = shared.tun.write_parts(&parts[..end]);
        count(shared, &self.child, self.large.count(), self.bytes, written);
        self.behind
    }
}

/// Delivers a packet by itself.
pub(crate) fn deliver(shared: &Shared, child: &Child, packet: &[u8]) {
    count(shared, child, 1, packet.len(), shared.tun.write(packet));
}

/// Counts packets that the kernel has now, or not.
fn count(shared: &Shared, child: &Child, packets: usize, bytes: usize, written: io::Result<()>) {
    match written {
        Ok(()) => {
            child.traffic.received(packets, bytes);
            shared.traffic.received(packets, bytes);
        }
        Err(error) => {
            tracing::debug!(%error, "TUN device takes no packet");
            child.dropped_many(DropReason::TunFailed, packets, &shared.traffic);
        }
    }
}
