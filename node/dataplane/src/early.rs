//! ESP that comes before its Child SA is there.
//!
//! A peer may send as soon as it has answered our request for a Child SA, and its answer is still to be read and committed here. What comes meanwhile waits, so
//! that a tunnel that is made in the place of another loses nothing.

use crate::Datagram;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// SPIs that are expected at a time: more requests of ours are not under way.
const MAX_EXPECTED: usize = 4096;
/// Packets that wait for one Child SA: what comes in a few milliseconds.
const MAX_WAITING: usize = 256;
/// Packets that wait in all: bounds the memory.
const MAX_EARLY: usize = 4096;
/// How long an SPI is expected: as long as a request of ours is repeated while it can still be answered in good time.
const EXPECTED_FOR: Duration = Duration::from_secs(30);
/// How often what is over is forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// What waits.
#[derive(Default)]
pub(crate) struct Early {
    expected: BTreeMap<u32, (Instant, Vec<Datagram>)>,
    waiting: usize,
    swept: Option<Instant>,
}

impl Early {
    /// From now on packets with this SPI wait. If too many SPIs are expected this one is not.
    pub(crate) fn expect(&mut self, spi: u32, now: Instant) {
        self.expire(now);
        if self.expected.len() < MAX_EXPECTED {
            self.expected.entry(spi).or_insert((now, Vec::new())).0 = now;
        }
    }

    /// Lets a packet wait; `false` if its SPI is not expected, or too many wait.
    pub(crate) fn keep(&mut self, spi: u32, packet: impl FnOnce() -> Datagram) -> bool {
        let Some((_, packets)) = self.expected.get_mut(&spi) else {
            return false;
        };
        let room = packets.len() < MAX_WAITING && self.waiting < MAX_EARLY;
        if room {
            packets.push(packet());
            self.waiting += 1;
        }
        room
    }

    /// The Child SA is there: what has waited for it.
    pub(crate) fn take(&mut self, spi: u32) -> Vec<Datagram> {
        let packets = self.expected.remove(&spi).map(|(_, packets)| packets);
        let packets = packets.unwrap_or_default();
        self.waiting -= packets.len();
        packets
    }

    /// Forgets what nobody came for, once a second.
    fn expire(&mut self, now: Instant) {
        let swept = self.swept.get_or_insert(now);
        if now.saturating_duration_since(*swept) < SWEEP {
            return;
        }
        *swept = now;
        let waiting = &mut self.waiting;
        self.expected.retain(|_, (since, packets)| {
            let stays = now.saturating_duration_since(*since) < EXPECTED_FOR;
            if !stays {
                *waiting -= packets.len();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DatagramKind;

    fn packet(n: u8) -> Datagram {
        Datagram {
            kind: DatagramKind::Esp,
            local: "192.0.2.1:0".parse().unwrap(),
            remote: "192.0.2.2:0".parse().unwrap(),
            traffic_class: 0,
            bytes: vec![n; 40],
        }
    }

    #[test]
    fn only_what_is_expected_waits_and_in_its_order() {
        let mut early = Early::default();
        assert!(!early.keep(7, || packet(1)));
        early.expect(7, Instant::now());
        assert!(early.keep(7, || packet(1)) && early.keep(7, || packet(2)));
        let bytes: Vec<u8> = early.take(7).iter().map(|p| p.bytes[0]).collect();
        assert_eq!(bytes, [1, 2]);
        assert!(early.take(7).is_empty() && !early.keep(7, || packet(3)));
        assert_eq!(early.waiting, 0);
    }

    #[test]
    fn there_are_bounds_in_number_and_time() {
        let mut early = Early::default();
        let now = Instant::now();
        for spi in 0..40 {
            early.expect(spi, now);
            for n in 0..300_u16 {
                let kept = early.keep(spi, || packet(0));
                assert_eq!(kept, n < 256 && spi < 16);
            }
        }
        early.expect(99, now + EXPECTED_FOR);
        assert_eq!((early.expected.len(), early.waiting), (1, 0));
        for spi in 1000..6000 {
            early.expect(spi, now + EXPECTED_FOR);
        }
        assert_eq!(early.expected.len(), MAX_EXPECTED);
    }
}
