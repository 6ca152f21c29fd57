//! What the TUN device has: several small packets at a time, so that memory is waited for once for all their Child SAs, and not for each.

use crate::{tables::Tables, train::MAX_INNER, tun::Tun, virtio};
use evergate_esp::packet;
use std::io;

/// Packets that are read before the first is worked on, at most.
const SLOTS: usize = 16;
/// Behind one that is longer than this, the device is not asked for another: it stands for many, and is to be in the cache still when it is cut.
const SMALL: usize = 2048;

/// Packets as they were read.
#[derive(Default)]
pub(crate) struct Intake {
    slots: Vec<Slot>,
    filled: usize,
}

struct Slot {
    header: [u8; virtio::LEN],
    /// As long as the longest packet: pages that none has reached cost nothing.
    bytes: Vec<u8>,
    len: usize,
}

impl Intake {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let slot = |_| Slot {
            header: [0; virtio::LEN],
            bytes: vec![0; MAX_INNER],
            len: 0,
        };
        Self {
            slots: (0..SLOTS).map(slot).collect(),
            filled: 0,
        }
    }

    /// Reads from a queue, `most` packets or fewer, in the place of those of before. Yields whether there may be more.
    ///
    /// # Errors
    /// If the device cannot be read. What was read before that is here.
    pub(crate) fn fill(&mut self, tun: &Tun, queue: usize, most: usize) -> io::Result<bool> {
        self.filled = 0;
        for slot in self.slots.iter_mut().take(most) {
            let Some(len) = tun.read(queue, &mut slot.header, &mut slot.bytes)? else {
                return Ok(false);
            };
            slot.len = len;
            self.filled += 1;
            if len > SMALL {
                break;
            }
        }
        Ok(true)
    }

    /// How many packets are here.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// The packets that are here, in the order in which they came.
    pub(crate) fn packets(&mut self) -> impl Iterator<Item = (&[u8; virtio::LEN], &mut [u8])> {
        let filled = self.slots[..self.filled].iter_mut();
        filled.map(|slot| (&slot.header, &mut slot.bytes[..slot.len]))
    }

    /// Has the memory fetched that sending these packets takes. Those of one flow that follow each other count once, and one alone is not worth it.
    pub(crate) fn look_ahead(&self, tables: &Tables) {
        let all = self.slots[..self.filled].iter();
        let mut selectors = all.filter_map(|slot| {
            let inner = packet::parse(&slot.bytes[..slot.len]).ok()?;
            Some(inner.selectors)
        });
        let Some(first) = selectors.next() else {
            return;
        };
        let (mut ahead, mut count) = ([first; SLOTS], 1);
        for selectors in selectors {
            if ahead[count - 1] != selectors {
                ahead[count] = selectors;
                count += 1;
            }
        }
        if count > 1 {
            tables.look_ahead_out(&ahead[..count]);
        }
    }
}
